"""The trace file."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from inference.trace import DEVICE_LANE, Trace


def read(path: Path) -> list[dict[str, object]]:
    """As the viewers do: the closing bracket may be missing."""
    text = path.read_text().rstrip()
    return json.loads(text if text.endswith("]") else text.rstrip(",") + "]")  # type: ignore[no-any-return]


def test_it_is_plain_json_when_it_is_closed(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    trace.slice(DEVICE_LANE, "decode x3", 1.0, 1.25, why="because", rooms=["a", 'quote "b"'])
    trace.request_asked(255, "Speak a", 0.5, number=7)
    trace.request_event(255, "Speak a", "first result", 0.75)
    trace.request_ended(255, "Speak a", "done", 2.0)
    trace.close()
    events = json.loads((tmp_path / "trace.json").read_text())
    decode = next(event for event in events if event["name"] == "decode x3")
    assert (decode["ph"], decode["ts"], decode["dur"], decode["tid"]) == ("X", 1e6, 250_000, DEVICE_LANE)
    assert decode["args"] == {"why": "because", "rooms": ["a", 'quote "b"']}
    phases = [(event["ph"], event["id"], event["cat"], event["ts"]) for event in events if "id" in event]
    assert phases == [("b", "0xff", "request", 5e5), ("n", "0xff", "request", 7.5e5), ("e", "0xff", "request", 2e6)]
    assert all({"ph", "pid", "tid", "name"} <= event.keys() for event in events)
    assert events[-1]["args"] == {"events": 0}, "nothing was dropped"


def test_it_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Trace(path)
    for number in range(2000):
        trace.slice(DEVICE_LANE, f"quantum {number}", number, number + 0.5)
    deadline = threading.Event()
    # The writer flushes within half a second.
    for _ in range(100):
        if path.stat().st_size > 100_000:
            break
        deadline.wait(0.1)
    text = path.read_text()
    events = json.loads(text[: text.rindex("\n")].rstrip().rstrip(",") + "]")
    assert len(events) > 500
    trace.close()


def test_it_is_bounded_and_keeps_the_latest(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Trace(path, limit_bytes=40_000)
    for number in range(5000):
        trace.slice(DEVICE_LANE, f"quantum {number}", number, number + 0.5)
    trace.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["trace.json", "trace.previous.json"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 42_000
    names = [event["name"] for event in read(tmp_path / "trace.previous.json") + read(path)]
    assert "quantum 4999" in names
    numbers = [int(str(name).removeprefix("quantum ")) for name in names if str(name).startswith("quantum ")]
    assert numbers == list(range(numbers[0], 5000)), "in order, nothing missing"


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Trace(tmp_path / "nowhere" / "trace.json")


def test_a_disk_that_fails_ends_the_trace_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    trace = Trace(Path("/dev/full"))
    for number in range(2000):
        trace.slice(DEVICE_LANE, f"quantum {number}", number, number + 0.5)
    trace.close()
    assert "the trace ends" in caplog.text
