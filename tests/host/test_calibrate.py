from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from host.calibrate import answers_of, calibrate
from host.cli import app
from host.config import Config, load_config
from host.device_table import read_table
from host.errors import ConfigError, DeviceError, InferenceError
from inference.costs import Stage
from models.catalog import load_catalog

CONFIG = """
[inference]
engines = "fake"
device = "cpu"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The fakes take no models; what the table says of the memory is read from the files of the default profile."""
    (tmp_path / "roomful.toml").write_text(CONFIG)
    return load_config(tmp_path / "roomful.toml")


def a_stand_in(body: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{body}")


@pytest.mark.models
@pytest.mark.processes
async def test_a_table_of_the_fakes(config: Config) -> None:
    heard: list[str] = []
    table = await calibrate(config, name="fakes", rooms=4, job_cores=0.5, note="made up", on_progress=heard.append)
    assert (table.name, table.device, table.profile, table.job_cores) == ("fakes", "cpu", "cpu-small", 0.5)
    assert set(table.stages) == {stage.value for stage in Stage}
    for stage, sizes in table.stages.items():
        assert set(sizes) <= {1, 2, 4}, stage
        assert all(seconds >= 0 for seconds in sizes.values())
    assert set(table.ticks) == {1, 2, 4}
    assert table.answers
    assert all(phrase.tokens >= 1 and phrase.speech_s > 0 for answer in table.answers for phrase in answer)
    assert table.block_s > 0
    assert table.hardware.cores >= 1
    assert table.facts.llm.vocabulary == 49_152
    assert "measuring language model: 4 at once" in heard


@pytest.mark.models
@pytest.mark.processes
def test_host_calibrate_and_then_host_plan(tmp_path: Path) -> None:
    (tmp_path / "roomful.toml").write_text(CONFIG)
    out = tmp_path / "mine.json"
    command = ["calibrate", "--config", str(tmp_path / "roomful.toml"), "--rooms", "2", "--out", str(out)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "voice activity tick" in result.output
    assert read_table(str(out)).name == "mine"
    # Nothing takes any time there.
    planned = CliRunner().invoke(app, ["plan", "--device", str(out), "--rooms", "2", "--memory-gb", "1.4"])
    assert planned.exit_code == 0, planned.output
    assert "memory binds" in planned.output


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", "--out", str(tmp_path / "no" / "x.json")])
    assert isinstance(result.exception, ConfigError)
    assert "no such folder" in str(result.exception)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("body", "error", "complaint"),
    [
        ("sys.exit(3)", InferenceError, "ended before it had measured everything"),
        (
            """
import argparse, socket
parser = argparse.ArgumentParser()
parser.add_argument("--control", type=int)
parser.add_argument("--parent")
control = socket.socket(fileno=parser.parse_args().control)
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Connection, Role
control.recv(65536)
connection = Connection(Role.SERVER, SUPERVISION)
""",
            InferenceError,
            "ended before it had measured everything",
        ),
    ],
)
async def test_a_process_that_ends(config: Config, body: str, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        await calibrate(config, name="x", rooms=1, command=a_stand_in(body))


@pytest.mark.processes
async def test_a_device_that_is_not_there(config: Config) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    on_gpu = msgspec.structs.replace(config, inference=msgspec.structs.replace(config.inference, device="cuda"))
    with pytest.raises(DeviceError, match="device 'cuda' was asked for"):
        await calibrate(on_gpu, name="x", rooms=1)


def test_answers_are_cut_into_phrases_as_jobs_do(config: Config) -> None:
    text = "Of course. The museum opens at nine in the morning and it closes at six in the evening on all days."
    pieces = [word + " " for word in text.split(" ")]
    measured: dict[str, Any] = {"spoken": [["x" * 100, 5.0]], "answers": [pieces, [""], ["..."]]}
    (answer,) = answers_of(measured, config)
    assert sum(phrase.tokens for phrase in answer) == len(pieces)
    assert len(answer) >= 2
    assert sum(phrase.speech_s for phrase in answer) == pytest.approx(0.05 * len(text), rel=0.1)


def test_the_default_profile_is_the_one_that_is_measured() -> None:
    assert Config().models.profile == load_catalog().default_profile == "cpu-small"
