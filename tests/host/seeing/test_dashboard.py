"""The dashboard asks for metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from host.metrics import Metrics
from inference.wire.supervision import InferenceReport
from tests.host.seeing.describe import description
from tests.host.seeing.test_metrics import scrape, stage, turn

DEPLOY = Path(__file__).parents[3] / "deploy"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded = json.loads((DEPLOY / "grafana" / "roomful.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_of_it_is_one_of_the_hosts(dashboard: dict[str, Any]) -> None:
    metrics = Metrics(description)
    metrics.turn(turn())
    metrics.process_failed("job")
    metrics.process_killed("job", "memory")
    stages = (stage("stt"), stage("llm"), stage("tts"))
    metrics.inference_report(InferenceReport("cuda", rooms=1, max_rooms=4, busy=0.5, pressure=0.0, stages=stages))
    there = scrape(metrics).names()
    asked = {name for expression in expressions(dashboard) for name in re.findall(r"\broomful_\w+", expression)}
    assert len(asked) > 20
    assert asked <= there, asked - there


def test_panels_do_not_overlap_and_have_a_source(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasource.yaml").read_text())["datasources"]
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == source["uid"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_it_is_where_compose_takes_it_from(dashboard: dict[str, Any]) -> None:
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())
    mounts = [mount.split(":")[:2] for mount in compose["services"]["grafana"]["volumes"] if mount.startswith("./")]
    for ours, _ in mounts:
        assert (DEPLOY.parent / ours).is_file(), ours
    (provider,) = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yaml").read_text())["providers"]
    assert any(theirs.startswith(provider["options"]["path"]) for _, theirs in mounts)
    assert f"/d/{dashboard['uid']}" in (DEPLOY.parent / "docker-compose.yml").read_text()
