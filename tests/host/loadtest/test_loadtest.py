"""``host loadtest`` as a user runs it: real processes, callers in real time, made-up engines."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from host.loadtest.report import Report

pytestmark = pytest.mark.processes

HOST = str(Path(sys.executable).parent / "host")
TIMEOUT_S = 150
CONFIG = """
[inference]
engines = "fake"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "roomful.toml").write_text(CONFIG)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LIVEKIT_", "ROOMFUL_"))}
    return {**kept, "TMPDIR": str(folder / "tmp"), "COLUMNS": "160"}


def loadtest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [HOST, "loadtest", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=folder,
        env=environment(folder),
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert list((folder / "tmp").iterdir()) == []
    return done


def report_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    assert set(loaded) == {field.name for field in dataclasses.fields(Report)}
    return loaded


def test_callers_come_and_go_talk_and_are_measured(folder: Path) -> None:
    done = loadtest(
        folder, "--rooms", "2", "--duration", "24", "--cycle-s", "5", "--call-s", "8", "--places", "2", "--out", "out"
    )
    assert done.returncode == 0, done.stderr
    assert "2 rooms (fake)" in done.stderr
    report = report_of(folder)
    (curve,) = report["curves"]
    (point,) = curve["points"]
    talk = point["conversations"]
    assert (curve["engines"], point["rooms"], point["refused"], point["failed"]) == ("fake", 2, [], [])
    assert talk["turns"] >= 4
    assert talk["answered"] + talk["cut_off"] == talk["turns"]
    assert talk["lost"] == 0
    # The made-up engines take no time; the endpointing delay of 500 ms is there.
    assert 0.2 < talk["response"]["p50"] < 3
    assert point["stages"]["endpointing"]["p50"] >= 0.4
    kinds = {use["kind"] for use in point["processes"]}
    assert {"host", "inference", "forkserver", "job", "callers"} <= kinds
    assert all(use["memory_mb"] > 5 for use in point["processes"] if use["memory_mb"] is not None)
    page = (folder / "out" / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert set(re.findall(r"https?://[^/\"]+", page)) == {"http://www.w3.org"}, "only names of namespaces"


def test_a_room_too_many_is_refused_and_the_others_talk_on(folder: Path) -> None:
    done = loadtest(folder, "--rooms", "2", "--places", "1", "--duration", "8", "--cycle-s", "4", "--out", "out")
    assert done.returncode == 0, done.stderr
    ((point,),) = [curve["points"] for curve in report_of(folder)["curves"]]
    assert len(point["refused"]) == 1
    assert "all 1 rooms are taken" in point["refused"][0]["reason"]
    assert point["conversations"]["turns"] >= 1
    assert (point["holds"], point["binding"]["stage"]) == (False, "places")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rooms", "none"), "--rooms none: allowed is auto"),
        (("--rooms", "0"), "--rooms 0"),
        (("--transport", "pigeon"), "--transport pigeon: allowed is local or livekit"),
        (("--transport", "livekit"), "--transport livekit needs --url"),
        (("--speech", "nowhere"), "nowhere"),
        (("--out", "roomful.toml"), "this is no folder"),
        (("--cycle-s", "1"), "no recording of 0.6 s or less"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_tested_is_said_before_anything_starts(
    folder: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = loadtest(folder, *arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_an_interrupt_ends_the_callers_and_the_host(folder: Path) -> None:
    process = subprocess.Popen(
        [HOST, "loadtest", "--rooms", "1", "--duration", "60", "--cycle-s", "5"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(folder),
    )
    with process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("rooms" in line for line in lines)
        process.send_signal(signal.SIGINT)
        # To the end: no process of the host and no caller holds the pipe any more.
        rest = process.stderr.read()
        assert process.wait(TIMEOUT_S) == 130
    assert "Traceback" not in rest
    assert list((folder / "tmp").iterdir()) == []


def test_callers_that_die_end_the_test(folder: Path) -> None:
    process = subprocess.Popen(
        [HOST, "loadtest", "--rooms", "1", "--duration", "60", "--cycle-s", "5"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(folder),
    )
    with process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("rooms" in line for line in lines)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (callers,) = [pid for pid in children if b"caller_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(callers), signal.SIGKILL)
        rest = process.stderr.read()
        assert process.wait(TIMEOUT_S) == 1
    assert "the callers' process has ended by itself" in rest
    assert "Traceback" not in rest
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.models
@pytest.mark.parametrize("engines", ["real", "stock"])
def test_real_engines_answer_and_what_was_heard_is_checked(folder: Path, engines: str) -> None:
    (folder / "roomful.toml").write_text(f'[inference]\nengines = "{engines}"\n')
    done = loadtest(
        folder, "--rooms", "1", "--duration", "24", "--cycle-s", "8", "--interruptions", "0", "--target-ms", "60000",
        "--out", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (curve,) = report_of(folder)["curves"]
    (point,) = curve["points"]
    talk = point["conversations"]
    assert (curve["engines"], point["failed"], point["cross_talk"], curve["left_over"]) == (engines, [], [], [])
    assert talk["answered"] >= 1
    # Words were understood, and what the agent says it said was heard.
    assert talk["word_error_rate"] < 0.5
    assert len(point["checked"]) >= 2
    assert max(check["likeness"] for check in point["checked"]) > 0.8
    assert any("Amber Badger" in check["text"] for check in point["checked"])
    assert set(point["device"]["stages"]) == {"stt", "llm", "tts"}
    assert sum(point["device"]["stages"].values()) > 0
