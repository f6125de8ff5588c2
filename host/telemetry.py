"""What a person and a log collector see: one line a record, on stderr."""

from __future__ import annotations

import logging
import sys


class _Formatter(logging.Formatter):
    """``12:34:56.789 INFO host.dispatch registered worker_id=AW_x``: extra fields behind the text."""

    _standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
    default_msec_format = "%s.%03d"
    default_time_format = "%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in self._standard)
        first, newline, rest = line.partition("\n")
        return f"{first}  [{fields}]{newline}{rest}" if fields else line


def configure_logging(level: str) -> None:
    """Send every record from ``level`` up to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s  %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # aiohttp reports every request at INFO; a health check a second is not news.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
