"""A trace of what the lanes do and why, for https://ui.perfetto.dev or chrome://tracing. Off unless asked for.

The file is Chrome's JSON array of events, whose closing bracket may be missing, so it can be read at any
time and after a crash. Times are microseconds of the monotonic clock, which all processes of a machine share.

====================  =================================================================================
in the viewer         what it is
====================  =================================================================================
slice in a lane       one quantum (or voice activity tick); its arguments say what decided, what it was
                      expected to cost, for whom it was, and what waited
asynchronous slice    one request from asked for to its end, with its first quantum and its first result
                      as instants
====================  =================================================================================

It is bounded: a file that has grown to half of ``limit_bytes`` becomes ``NAME.previous.json`` in place of an
older one, and a new one begins. Where the disk cannot keep up, events are dropped and counted, and nobody waits.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from pathlib import Path
from typing import Any, BinaryIO, Final

logger = logging.getLogger(__name__)

LIMIT_BYTES: Final = 64 * 1024 * 1024
DEVICE_LANE: Final = 1
VAD_LANE: Final = 2
_NAMES: Final = {DEVICE_LANE: "device lane", VAD_LANE: "voice activity lane"}
_PENDING: Final = 20_000
"""Events that may wait for the disk."""
_FLUSH_S: Final = 0.5


class Trace:
    """Writes to ``path`` from a thread of its own. Methods may be called from any thread; times are in seconds.

    Raises ``OSError`` when the file cannot be written. A disk that fails later ends the trace, with a warning.
    """

    def __init__(self, path: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._half = limit_bytes // 2
        self._pid = os.getpid()
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._dropped = 0
        self._written = 0
        self._file = self._begin()
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left."""
        self._events.put(None)
        self._thread.join()

    def slice(self, lane: int, name: str, began: float, ended: float, **arguments: object) -> None:
        """What a lane did from ``began`` to ``ended``."""
        self._put(
            {"ph": "X", "name": name, "tid": lane, "ts": _us(began), "dur": _us(ended - began), "args": arguments}
        )

    def request_asked(self, key: int, name: str, at: float, **arguments: object) -> None:
        """A request begins to wait. ``key`` is its own."""
        self._put(_of_request("b", key, name, at) | {"args": arguments})

    def request_event(self, key: int, name: str, event: str, at: float) -> None:
        """Something happened to it."""
        self._put(_of_request("n", key, name, at) | {"args": {"event": event}})

    def request_ended(self, key: int, name: str, outcome: str, at: float) -> None:
        """It ends."""
        self._put(_of_request("e", key, name, at) | {"args": {"outcome": outcome}})

    # --- inside -----------------------------------------------------------------------------------

    def _put(self, event: dict[str, Any]) -> None:
        if self._events.qsize() < _PENDING:
            self._events.put(event)
        else:
            self._dropped += 1

    def _run(self) -> None:
        try:
            try:
                self._write_until_closed()
            finally:
                self._file.close()
        except OSError as exc:
            logger.warning("the trace ends: %s: %s", self._path, exc)
            while self._events.get() is not None:
                continue

    def _write_until_closed(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=_FLUSH_S)
            except queue.Empty:
                self._file.flush()
                continue
            if event is None:
                break
            self._write(event)
            if self._written >= self._half:
                self._file.close()
                self._path.replace(self._path.with_name(f"{self._path.stem}.previous{self._path.suffix}"))
                self._file = self._begin()
        # A last event without a comma after it makes the file plain JSON as well.
        last = self._event({"ph": "M", "name": "dropped", "args": {"events": self._dropped}})
        self._file.write(json.dumps(last).encode() + b"\n]\n")

    def _begin(self) -> BinaryIO:
        opened = self._path.open("wb")
        opened.write(b"[\n")
        self._file, self._written = opened, 0
        self._write({"ph": "M", "name": "process_name", "args": {"name": "inference"}})
        for lane, name in _NAMES.items():
            self._write({"ph": "M", "name": "thread_name", "tid": lane, "args": {"name": name}})
        return opened

    def _event(self, event: dict[str, Any]) -> dict[str, Any]:
        return {"pid": self._pid, "tid": 0, **event}

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps(self._event(event), separators=(",", ":"), default=str).encode() + b",\n"
        self._file.write(line)
        self._written += len(line)


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def _of_request(phase: str, key: int, name: str, at: float) -> dict[str, Any]:
    # Events of one category and id are one track, each nested in the one before.
    return {"ph": phase, "cat": "request", "id": f"{key:#x}", "name": name, "ts": _us(at)}
