"""Places from a table of costs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from host.config import Config, InferenceConfig, ModelsConfig
from host.device_table import write_table
from host.errors import ConfigError
from host.places import with_places
from host.plan import Question, make_plan
from tests.host.test_plan import table


def configured(device_table: str, **changes: object) -> Config:
    inference = InferenceConfig(device_table=device_table, **changes)  # type: ignore[arg-type]
    return Config(models=ModelsConfig(profile="cpu-small"), inference=inference)


@pytest.fixture
def measured(tmp_path: Path) -> str:
    path = tmp_path / "ours.json"
    write_table(table(), path)
    return str(path)


def test_without_a_table_places_are_as_they_were_set() -> None:
    assert with_places(configured("", max_rooms=3)) == (configured("", max_rooms=3), None)


def test_as_many_places_as_the_device_sustains(measured: str) -> None:
    planned = make_plan(table(), Question()).rooms
    config, sustained = with_places(configured(measured, max_rooms=0))
    assert sustained is not None
    assert config.inference.max_rooms == sustained.rooms == planned > 1
    assert config.inference == msgspec.structs.replace(configured(measured).inference, max_rooms=planned)


def test_places_that_were_set_stay_and_what_is_sustained_is_told(measured: str) -> None:
    config, sustained = with_places(configured(measured, max_rooms=3))
    assert config.inference.max_rooms == 3
    assert sustained is not None
    assert sustained.rooms > 3


def test_who_speaks_less_often_leaves_room_for_more(measured: str) -> None:
    _, often = with_places(configured(measured))
    _, seldom = with_places(configured(measured, cycle_s=20.0))
    assert often is not None
    assert seldom is not None
    assert seldom.rooms > often.rooms


def test_no_table_to_tell_them_from() -> None:
    with pytest.raises(ConfigError, match=r"inference\.max_rooms = 0 .*inference\.device_table must tell"):
        with_places(configured("", max_rooms=0))


def test_a_table_of_other_models(measured: str) -> None:
    config = msgspec.structs.replace(configured(measured), models=ModelsConfig(profile="gpu-4b"))
    with pytest.raises(ConfigError, match=r"measured with the profile cpu-small, and models\.profile is gpu-4b"):
        with_places(config)


def test_a_target_that_no_room_meets(measured: str) -> None:
    with pytest.raises(ConfigError, match=r"not one room is answered within inference\.target_ms = 20"):
        with_places(configured(measured, max_rooms=0, target_ms=20.0))
