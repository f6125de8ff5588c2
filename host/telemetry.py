"""What a person or a log collector reads: one record after the other, on stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["auto", "json", "text"]

STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_FIRST = ("job_id", "room")


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in UTF-8.

    ``timestamp`` (ISO 8601, UTC, milliseconds), ``level``, ``logger``, ``message``; ``job_id`` and ``room``
    where the record is of a job; ``pid`` of the process that logged it; the record's other fields;
    ``exception`` with the traceback. A field of a name that is taken here gets "extra_" before it, and a
    value that JSON does not know is its text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields = extra_fields(record)
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: fields.pop(name) for name in _FIRST if name in fields}
        line["pid"] = fields.pop("pid", record.process)
        exception = fields.pop("exception", "") or self._exception(record)
        for name, value in fields.items():
            line[name if name not in line else f"extra_{name}"] = value
        if exception:
            line["exception"] = exception
        return _dumps(line)

    def _exception(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return "\n".join(parts)


class TextFormatter(logging.Formatter):
    """``12:34:56.789 INFO    host.dispatch  registered  [worker_id=AW_x]``: extra fields behind the text."""

    default_msec_format = "%s.%03d"
    default_time_format = "%H:%M:%S"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s  %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and those of a traceback below it."""
        shown = extra_fields(record)
        exception = shown.pop("exception", "")
        fields = " ".join(f"{name}={_on_one_line(value)}" for name, value in shown.items())
        first, newline, rest = super().format(record).partition("\n")
        line = f"{first}  [{fields}]{newline}{rest}" if fields else f"{first}{newline}{rest}"
        return f"{line}\n{exception}" if exception else line


def _on_one_line(value: object) -> str:
    """A room's name, which strangers choose, must not look like a line of ours."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """What was given with the record besides its text."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD_FIELDS}


def configure_logging(
    level: str,
    log_format: LogFormat = "auto",
    *,
    dev: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Send every record from ``level`` up to ``stream`` (stderr), in place of where it went before.

    ``log_format`` "auto" is text for a person, in development or on a terminal, and JSON for everybody else.
    """
    target = stream if stream is not None else sys.stderr
    as_text = log_format == "text" or (log_format == "auto" and (dev or target.isatty()))
    handler = logging.StreamHandler(target)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # aiohttp reports every request at INFO; a health check a second is not news.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def _dumps(line: dict[str, Any]) -> str:
    try:
        return json.dumps(line, ensure_ascii=False, allow_nan=False, default=str)
    except (TypeError, ValueError):
        return json.dumps({name: _plain(value) for name, value in line.items()}, ensure_ascii=False)


def _plain(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value
