from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from host.telemetry import JsonFormatter, TextFormatter, configure_logging

CREATED = datetime(2024, 2, 29, 13, 4, 5, 678_900, UTC).timestamp()


def record(text: str = "hello %s", *args: object, level: int = logging.INFO, **fields: Any) -> logging.LogRecord:
    values = {
        "name": "host.worker",
        "levelno": level,
        "levelname": logging.getLevelName(level),
        "msg": text,
        "args": args,
        "created": CREATED,
        "msecs": 678.9,
        "process": 4100,
    }
    return logging.makeLogRecord(values | fields)


def parsed(entry: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(entry)
    assert "\n" not in line
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(found, dict)
    return found


def raised() -> Any:
    try:
        raise ValueError("bad")
    except ValueError:
        return sys.exc_info()


# --- JSON -----------------------------------------------------------------------------------------


def test_one_object_a_line() -> None:
    assert parsed(record("hello %s", "world")) == {
        "timestamp": "2024-02-29T13:04:05.678Z",
        "level": "INFO",
        "logger": "host.worker",
        "message": "hello world",
        "pid": 4100,
    }


def test_a_whole_second_has_milliseconds_too() -> None:
    assert parsed(record("x", created=float(int(CREATED))))["timestamp"] == "2024-02-29T13:04:05.000Z"


def test_a_record_of_a_child_names_its_job_room_and_process() -> None:
    entry = record("turn", args=(), job_id="AJ_1", room="kitchen", pid=77, turn=3, name="host.job.pipeline")
    assert list(parsed(entry).items())[2:] == [
        ("logger", "host.job.pipeline"),
        ("message", "turn"),
        ("job_id", "AJ_1"),
        ("room", "kitchen"),
        ("pid", 77),
        ("turn", 3),
    ]


def test_a_traceback_is_a_field_and_not_lines() -> None:
    found = parsed(record("failed", exc_info=raised()))
    assert found["message"] == "failed"
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("ValueError: bad")
    assert parsed(record("failed", exception="Traceback of a child"))["exception"] == "Traceback of a child"
    assert "Stack" in parsed(record("here", stack_info="Stack (most recent call last):\n  x"))["exception"]


def test_text_with_newlines_and_other_alphabets_stays_one_line() -> None:
    found = parsed(record("Grüße\n\t«日本»\u2028", room="Küche"))
    assert (found["message"], found["room"]) == ("Grüße\n\t«日本»\u2028", "Küche")
    assert "Grüße" in JsonFormatter().format(record("Grüße"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        ({1, 2} - {2}, "{1}"),
        ({"a": (1, None)}, {"a": [1, None]}),
        ({("a", "b"): 1}, "{('a', 'b'): 1}"),
        (ValueError("x"), "x"),
        (b"x", "b'x'"),
    ],
)
def test_values_that_json_does_not_know(value: object, shown: object) -> None:
    assert parsed(record("x", value=value, turn=1)) == parsed(record("x", turn=1)) | {"value": shown}


def test_a_value_that_holds_itself() -> None:
    circle: list[object] = []
    circle.append(circle)
    assert parsed(record("x", value=circle))["value"] == "[[...]]"


def test_a_field_whose_name_is_taken_is_kept() -> None:
    found = parsed(record("x", level=logging.WARNING, timestamp="yesterday", logger="mine"))
    assert (found["extra_timestamp"], found["extra_logger"]) == ("yesterday", "mine")
    assert found["level"] == "WARNING"


# --- text -----------------------------------------------------------------------------------------


def test_a_readable_line() -> None:
    line = TextFormatter().format(record("hello %s", "world", job_id="AJ_1", room="kitchen"))
    assert re.fullmatch(r"\d\d:\d\d:05\.678 INFO    host\.worker  hello world  \[job_id=AJ_1 room=kitchen\]", line)
    assert TextFormatter().format(record("hello %s", "world")).endswith("hello world")


def test_fields_stand_on_the_first_line_and_the_traceback_below() -> None:
    lines = TextFormatter().format(record("failed", exc_info=raised(), room="kitchen")).splitlines()
    assert lines[0].endswith("failed  [room=kitchen]")
    assert lines[1] == "Traceback (most recent call last):"
    lines = TextFormatter().format(record("failed", exception="Traceback\nof a child", room="kitchen")).splitlines()
    assert lines[0].endswith("failed  [room=kitchen]")
    assert lines[1:] == ["Traceback", "of a child"]


def test_a_field_cannot_look_like_another_line() -> None:
    line = TextFormatter().format(record("joined", room="x\n12:00:00.000 ERROR   host  on fire\x1b[31m"))
    assert "\n" not in line
    assert "\x1b" not in line


# --- configured -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("log_format", "dev", "stream", "is_json"),
    [
        ("auto", False, io.StringIO, True),
        ("auto", False, Terminal, False),
        ("auto", True, io.StringIO, False),
        ("json", True, Terminal, True),
        ("text", False, io.StringIO, False),
    ],
)
def test_who_gets_what(log_format: Any, dev: bool, stream: type[io.StringIO], is_json: bool) -> None:
    target = stream()
    configure_logging("INFO", log_format, dev=dev, stream=target)
    logging.getLogger("host.x").info("hello", extra={"room": "kitchen"})
    logging.getLogger("host.x").debug("hidden")
    [line] = target.getvalue().splitlines()
    if is_json:
        assert json.loads(line).items() >= {"message": "hello", "room": "kitchen", "pid": os.getpid()}.items()
    else:
        assert line.endswith("hello  [room=kitchen]")


def test_configured_twice_says_everything_once() -> None:
    target = io.StringIO()
    configure_logging("INFO", "text", stream=io.StringIO())
    configure_logging("WARNING", "json", stream=target)
    logging.getLogger("host.x").warning("once")
    logging.getLogger("host.x").info("hidden")
    assert len(target.getvalue().splitlines()) == 1


def test_the_default_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    logging.getLogger("host.x").info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["message"] == "hello"
