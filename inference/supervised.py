"""The child's end of supervision: what every process below the supervisor does the same way.

It answers pings from its event loop (so a blocked loop is seen), sends its log records as messages,
writes its stacks when it is asked to, dies with its parent, and ends in order when it is told to or
when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import io
import json
import logging
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, BinaryIO, TypeVar

from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Role, State
from inference.wire.errors import LocalProtocolError, WireError
from inference.wire.stream import MessageStream
from inference.wire.tlv import Message

_PR_SET_PDEATHSIG = 1
_STDERR = 2
_MAX_LOG_CHARS = 100_000
"""Keeps a log record well inside one frame."""
_MAX_LOG_WAITING = 1 << 20
"""Of log records, in characters: what is logged while so much waits is lost, so that pings and statuses, which wait
behind them, still come in time, and neither process's memory fills."""

M = TypeVar("M", bound=Message)

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies, however the parent dies.

    The parent is the thread that forked us; the supervisor and the fork server fork from their main
    threads. If the parent is gone already, exits at once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


class _ForwardHandler(logging.Handler):
    """Log records as ``LogLine`` messages. Records from other threads are handed to the loop.

    What is logged faster than the supervisor takes it is lost, and how much of it is told.
    """

    def __init__(
        self, stream: MessageStream, loop: asyncio.AbstractEventLoop, process_fields: Mapping[str, object]
    ) -> None:
        super().__init__()
        self._stream = stream
        self._loop = loop
        self._process_fields = process_fields
        # Both under the handler's own lock.
        self._queued = 0
        self._lost = 0
        self._telling: asyncio.Task[None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._forward(record)
        except Exception:  # noqa: BLE001 (logging's own convention: a wrong log call does not break its caller)
            self.handleError(record)

    def _forward(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        own = {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
        if record.exc_info:
            # A field of its own, so that a log collector need not cut it out of the text.
            own["exception"] = logging.Formatter().formatException(record.exc_info)[-_MAX_LOG_CHARS // 2 :]
        fields = {**self._process_fields, **own}
        # File names may hold bytes that are no UTF-8; they arrive here as lone surrogates.
        text = text[:_MAX_LOG_CHARS].encode(errors="backslashreplace").decode()
        extra = json.dumps(fields, default=str)
        if len(extra) > _MAX_LOG_CHARS:
            extra = "{}"
        line = s.LogLine(record.levelno, record.name, text, record.created, extra)
        size = len(text) + len(extra)
        try:
            if self._queued + self._stream.waiting_bytes + size > _MAX_LOG_WAITING:
                if not self._lost:
                    self._loop.call_soon_threadsafe(self._tell)
                self._lost += 1
                return
            self._loop.call_soon_threadsafe(self._send, line, size)
            self._queued += size
        except RuntimeError:
            # The loop is closed: the process is past its end, and stderr is all that is left.
            if logging.lastResort is not None:
                logging.lastResort.emit(record)

    def _send(self, line: s.LogLine, size: int) -> None:
        with self._locked():
            self._queued -= size
        if self._stream.connection.state is not State.CLOSED:
            self._stream.send(line)

    def _tell(self) -> None:
        self._telling = self._loop.create_task(self._tell_lost(), name="lost-log-records")

    async def _tell_lost(self) -> None:
        await self._stream.drain()
        with self._locked():
            lost, self._lost = self._lost, 0
        text = f"{lost} log records are lost: more was logged at once than could be passed on"
        line = s.LogLine(logging.WARNING, __name__, text, time.time(), json.dumps(self._process_fields, default=str))
        self._send(line, 0)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


class Supervisor:
    """The supervisor as a child sees it. Make it inside the running loop, then ``async with`` it.

    ``receive`` gives the messages that are for the child (pings are answered here). ``stopping`` is
    set, with ``reason``, when the child must end: it was told to, or the supervisor is gone.
    ``log_fields``: what every forwarded log record carries besides its own fields; change it at will.
    """

    def __init__(self, control: socket.socket) -> None:
        self.stopping = asyncio.Event()
        self.reason = ""
        self.log_fields: dict[str, object] = {}
        self._stream = MessageStream(control, Role.SERVER, SUPERVISION)
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._acknowledged = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Supervisor:
        self._task = asyncio.create_task(self._read(), name="supervision")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._stream.drain()
        self._stream.close()

    def forward_logs(self, level: str) -> None:
        """Send every log record of this process from ``level`` up to the supervisor instead of stderr."""
        root = logging.getLogger()
        root.handlers[:] = [_ForwardHandler(self._stream, asyncio.get_running_loop(), self.log_fields)]
        root.setLevel(level)

    def send(self, message: Message) -> None:
        """Tell the supervisor something. To a supervisor that is gone it does nothing."""
        if self._stream.connection.state is State.CLOSED:
            return
        self._stream.send(message)

    async def drain(self) -> None:
        """Wait until everything said and logged is on its way."""
        # Log records come by way of the loop.
        await asyncio.sleep(0)
        await self._stream.drain()

    async def receive(self, kind: type[M]) -> M | None:
        """The next message for this child, which must be a ``kind``; None when the child must end.

        Raises ``LocalProtocolError`` for another message: this child is not ready for it.
        """
        received = await self._inbox.get()
        if received is None:
            self._inbox.put_nowait(None)
            return None
        if not isinstance(received, kind):
            raise LocalProtocolError(f"expected {kind.__name__}, got {type(received).__name__}")
        return received

    async def wait_acknowledged(self) -> None:
        """Return when the job's final status has been passed on, or nobody is there any more to do so."""
        await self._acknowledged.wait()

    async def _read(self) -> None:
        reason = "the supervisor is gone"
        try:
            async for received in self._stream:
                match received.message:
                    case s.Ping(sent_ns=sent_ns):
                        self._stream.send(s.Pong(sent_ns))
                    case s.Shutdown(reason=why):
                        self._stop(why)
                    case s.JobUpdateAck():
                        # Not for ``receive``: it comes after a ``Shutdown``, too.
                        self._acknowledged.set()
                    case message:
                        self._inbox.put_nowait(message)
        except WireError as exc:
            reason = f"the supervisor's connection failed: {exc}"
        self._acknowledged.set()
        self._stop(reason)

    def _stop(self, reason: str) -> None:
        if not self.stopping.is_set():
            self.reason = reason
            self.stopping.set()
            self._inbox.put_nowait(None)


_stacks_file: BinaryIO | None = None
"""Kept open for good: what writes into it in an emergency can open nothing."""


def write_stacks_to(path: str) -> None:
    """On SIGUSR1 append the stacks of all threads and of all asyncio tasks to ``path`` ("" is standard error).

    The threads' come first and always, from C; the tasks' need a main thread that still runs Python.
    The file is there, empty, when this returns. Raises ``OSError``.
    """
    global _stacks_file
    opened = open(path, "ab", buffering=0) if path else None  # noqa: PTH123, SIM115 - kept open
    faulthandler.unregister(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, _write_task_stacks)
    faulthandler.register(signal.SIGUSR1, file=opened or _STDERR, all_threads=True, chain=True)
    if _stacks_file is not None:
        _stacks_file.close()
    _stacks_file = opened


def _write_task_stacks(_number: int, _frame: FrameType | None) -> None:
    text = io.StringIO()
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        # The main thread runs no event loop.
        return
    for task in sorted(tasks, key=lambda task: task.get_name()):
        text.write(f"\nTask {task.get_name()!r} (most recent call last):\n")
        text.writelines(traceback.format_list(traceback.StackSummary.extract(_frames(task.get_coro()))))
    data = text.getvalue().encode(errors="backslashreplace")
    with contextlib.suppress(OSError):
        # Nobody is left to be told that it cannot be written.
        os.write(_stacks_file.fileno() if _stacks_file is not None else _STDERR, data)


def _frames(awaited: object) -> Iterator[tuple[FrameType, int]]:
    """The frames of a coroutine and of what it waits for, outermost first; a task itself tells only the first."""
    while awaited is not None:
        frame = _first(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            yield frame, frame.f_lineno
        awaited = _first(awaited, "cr_await", "gi_yieldfrom", "ag_await")


def _first(what: object, *names: str) -> Any:
    return next((value for name in names if (value := getattr(what, name, None)) is not None), None)


def prepare_process(parent_pid: int) -> None:
    """First thing in every child: die with the parent, leave Ctrl-C to the supervisor, dump stacks on SIGUSR1.

    ``parent_pid`` 0: whoever made this process has arranged that it dies with the supervisor. SIGINT and
    SIGTERM, which whoever starts a child blocks until it ignores them, are unblocked.
    """
    if parent_pid:
        die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    write_stacks_to("")
