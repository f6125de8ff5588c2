"""One child under supervision: the conversation with it, from its first message to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from host.lifecycle import Beat, ChildEvent, ChildState, Heartbeat, RateLimit, follow
from host.observer import KillReason, NoObserver, Observer, ProcessKind
from host.process import Handle, ProcessInfo, describe_exit
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Role, State
from inference.wire.errors import WireError
from inference.wire.stream import MessageStream
from inference.wire.tlv import Message

logger = logging.getLogger(__name__)

EXIT_GRACE_S = 10.0
"""How long a child may take from its last word to its end: a device's memory is given back in that time."""
_LAST_WORDS_S = 2.0
"""How long to read on after a process has ended, should something it started hold its socket open."""
_PING_WARNING_INTERVAL_S = 10.0
"""A child that is slow all the time is said to be so this often."""

_LOG_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class InitializationError(Exception):
    """A child did not become ready. ``exit_code`` as in ``host.errors``; ``refused``: it said so itself."""

    def __init__(self, reason: str, exit_code: int = 1, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Watch:
    """How children are watched. Times are in seconds: see ``SupervisorOptions``.

    ``clock`` need not count time in which this process stood still. ``runtime_dir``: where children write
    their stacks ("": to standard error).
    """

    ping_interval: float = 2.5
    ping_timeout: float = 60.0
    high_ping_threshold: float = 0.5
    clock: Callable[[], float] = time.monotonic
    observer: Observer = field(default_factory=NoObserver)
    runtime_dir: str = ""

    def stacks_file(self, name: str) -> str:
        """Where the child of that name writes its stacks; "" for its standard error."""
        return str(Path(self.runtime_dir) / f"{name}.stacks") if self.runtime_dir else ""

    async def wait(self, future: asyncio.Future[Any], timeout_s: float) -> bool:
        """Wait for ``future``; whether it was done within ``timeout_s`` on ``clock``. Does not cancel it."""
        deadline = self.clock() + timeout_s
        while not future.done():
            if (left_s := deadline - self.clock()) <= 0:
                return False
            # The clock may stand still in between; then this waits again.
            await asyncio.wait([future], timeout=left_s)
        return True


def _extra_fields(text: str) -> dict[str, Any]:
    """A log line's extra fields; what is not as promised is shown as it came."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return {"fields": text}
    return {key: value for key, value in fields.items() if key not in _LOG_RECORD_FIELDS}


class Child:
    """Something that speaks ``SUPERVISION``: a process, or a thread that stands for one.

    ``run`` must be running for anything to happen. ``receive`` gets the messages that are not about
    being alive. ``name`` is given to one child at a time.
    """

    def __init__(
        self,
        name: str,
        kind: ProcessKind,
        process: Handle,
        control: socket.socket,
        *,
        watch: Watch,
        receive: Callable[[Message], None],
    ) -> None:
        self.name = name
        self.kind = kind
        self.pid = process.pid
        self.state = follow(ChildState.STARTING, ChildEvent.STARTED)
        self.job_id = ""
        self.room = ""
        self.memory_mb = 0.0
        """As it was measured last; 0 before."""
        self.killed_because = ""
        self.exit_code = 0
        """Known when ``run`` has returned; negative for a signal, as in ``subprocess``."""
        self.was_told_to_end = False
        """Whether it ends because the supervisor wants it, by message or by force."""
        self.stacks_file = watch.stacks_file(name)
        self._process = process
        self._stream = MessageStream(control, Role.CLIENT, SUPERVISION)
        self._watch = watch
        self._receive = receive
        self._started_at = time.monotonic()
        self._ready: asyncio.Future[InitializationError | None] = asyncio.get_running_loop().create_future()
        self._heartbeat: Heartbeat | None = None
        self._pong = asyncio.Event()
        self._ping_s = -1.0
        self._slow_pings = RateLimit(_PING_WARNING_INTERVAL_S)
        self._group: asyncio.TaskGroup | None = None
        self._end_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Child {self.name} pid={self.pid} {self.state.value}>"

    @property
    def log_fields(self) -> dict[str, object]:
        """What a log record about it carries: its job and room, too, where it has one."""
        job = {"job_id": self.job_id, "room": self.room} if self.job_id else {}
        return {"pid": self.pid, **job}

    def is_idle(self) -> bool:
        """Whether it can be given a job."""
        return self.state is ChildState.READY

    def is_alive(self) -> bool:
        """Whether it runs, asked of the kernel now."""
        return self._process.is_alive()

    def describe(self) -> ProcessInfo:
        """How it is now."""
        return ProcessInfo(
            name=self.name,
            kind=self.kind,
            pid=self.pid,
            state=self.state.value,
            job_id=self.job_id,
            room=self.room,
            memory_mb=self.memory_mb,
            ping_ms=self._ping_s * 1000 if self._ping_s >= 0 else -1.0,
            age_s=time.monotonic() - self._started_at,
            cpu_s=self._process.cpu_s(),
        )

    async def initialize(self, message: s.InitializeInference | s.InitializeJob, timeout_s: float) -> None:
        """Have it load; returns when it is ready. Raises ``InitializationError``; then it ends or is killed."""
        self._send(message)
        if not await self._watch.wait(self._ready, timeout_s):
            reason = f"it was not ready within {timeout_s:g} s"
            self.condemn(reason, "initialize")
            raise InitializationError(reason)
        if (error := self._ready.result()) is not None:
            raise error
        self._watch.observer.process_ready(self.kind, time.monotonic() - self._started_at)

    def start_job(self, start: s.StartJob) -> None:
        """Give an idle job process its room."""
        self.state = follow(self.state, ChildEvent.ASSIGNED)
        self.job_id = start.job_id
        self.room = start.room
        self._send(start)

    def acknowledge(self, job_id: str) -> None:
        """Let a job leave its room: its final status has been passed on."""
        self._send(s.JobUpdateAck(job_id))

    def stop(self, reason: str, grace_s: float) -> None:
        """Tell it to end; it is killed if it has not ended after ``grace_s`` seconds. Only the first call counts."""
        if self.state in (ChildState.STOPPING, ChildState.ENDED):
            return
        self.state = follow(self.state, ChildEvent.STOP)
        self.was_told_to_end = True
        self._send(s.Shutdown(reason))
        self.expect_end(grace_s, f"it did not end within {grace_s:g} s of being told to", "shutdown")

    def expect_end(self, grace_s: float, reason: str, why: KillReason) -> None:
        """Kill it after ``grace_s`` seconds, unless that is to happen earlier anyway."""
        end_at = self._watch.clock() + grace_s
        if self._end_at is None or end_at < self._end_at:
            self._end_at = end_at
            self._set_timer(end_at, reason, why)

    def found_dead(self) -> None:
        """It has ended, or is about to: it is not idle any more."""
        self.state = follow(self.state, ChildEvent.STOP)

    def condemn(self, reason: str, why: KillReason) -> None:
        """Kill it for a fault: its stacks go into the log first. Returns at once; the first reason is kept."""
        if self.state is ChildState.ENDED or self.killed_because or not self._process.is_alive():
            return
        if self._group is None:
            self.kill(reason, why)
            return
        self._note(reason, why)
        self._group.create_task(self._show_and_kill(reason), name=f"{self.name}-kill")

    def kill(self, reason: str, why: KillReason = "other") -> None:
        """SIGKILL it now. The first ``reason`` given is kept in ``killed_because``."""
        if self.state is ChildState.ENDED or not self._process.is_alive():
            return
        if not self.killed_because:
            self._note(reason, why)
        self._process.kill()

    def _note(self, reason: str, why: KillReason) -> None:
        self.state = follow(self.state, ChildEvent.STOP)
        self.killed_because = reason
        self.was_told_to_end = True
        self._watch.observer.process_killed(self.kind, why)

    async def _show_and_kill(self, reason: str) -> None:
        try:
            stacks = await self._process.stacks(self.stacks_file)
            logger.error(
                "%s (pid %d) is killed: %s. Its stacks:\n%s",
                self.name,
                self.pid,
                reason,
                stacks,
                extra=self.log_fields,
            )
        finally:
            self._process.kill()

    async def run(self) -> int:
        """Supervise it to its end and give everything back; returns the exit code. Cancelling kills it."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                reading = group.create_task(self._read(), name=f"{self.name}-read")
                beating = group.create_task(self._beat(), name=f"{self.name}-beat")
                try:
                    self.exit_code = await self._process.wait()
                    # What it said before it ended is still in the socket.
                    await asyncio.wait([reading], timeout=_LAST_WORDS_S)
                finally:
                    # It has ended, or is to be killed without ceremony.
                    self._group = None
                reading.cancel()
                beating.cancel()
        finally:
            if self._process.is_alive():
                self.kill("its supervision was given up")
                self.exit_code = await self._process.wait()
            self._end()
        return self.exit_code

    def _end(self) -> None:
        self.state = follow(self.state, ChildEvent.EXITED)
        if self._timer is not None:
            self._timer.cancel()
        if not self._ready.done():
            self._ready.set_result(InitializationError(f"it ended before it was ready: {self.describe_end()}"))
        self._stream.close()
        self._process.close()
        if self.stacks_file:
            Path(self.stacks_file).unlink(missing_ok=True)

    def describe_end(self) -> str:
        """How it ended, for a person: the exit code or signal, and why it was killed if we did it."""
        how = describe_exit(self.exit_code)
        return f"{how}: {self.killed_because}" if self.killed_because else how

    # --- what it says -----------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        if self._stream.connection.state is not State.CLOSED:
            self._stream.send(message)

    async def _read(self) -> None:
        try:
            async for received in self._stream:
                self._handle(received.message)
        except WireError as exc:
            self.condemn(f"its connection failed: {exc}", "other")
            return
        self.found_dead()
        self.expect_end(EXIT_GRACE_S, "it closed its connection and did not end", "other")

    def _handle(self, message: Message) -> None:
        match message:
            case s.Pong():
                self._answered()
            case s.LogLine():
                self._log(message)
            case s.Ready():
                self.state = follow(self.state, ChildEvent.READY)
                self._heartbeat = Heartbeat(self._watch.ping_interval, self._watch.ping_timeout, self._watch.clock())
                if not self._ready.done():
                    self._ready.set_result(None)
            case s.InitializeFailed(reason=reason, exit_code=exit_code):
                if not self._ready.done():
                    self._ready.set_result(InitializationError(reason, exit_code, refused=True))
                self.expect_end(EXIT_GRACE_S, "it could not serve and did not end", "other")
            case s.Exiting():
                # Its event loop is over: nobody answers pings any more.
                self._heartbeat = None
                self.expect_end(EXIT_GRACE_S, "it said that it ends and did not", "shutdown")
            case _:
                self._receive(message)

    def _log(self, line: s.LogLine) -> None:
        target = logging.getLogger(line.logger)
        if not target.isEnabledFor(line.level):
            return
        record = logging.makeLogRecord(
            self.log_fields
            | _extra_fields(line.fields)
            | {
                "name": line.logger,
                "levelno": line.level,
                "levelname": logging.getLevelName(line.level),
                "msg": line.text,
                "created": line.created,
                "msecs": line.created % 1 * 1000,
                "process": self.pid,
                "processName": self.name,
                "pid": self.pid,
            }
        )
        target.handle(record)

    # --- whether it lives -------------------------------------------------------------------------

    async def _beat(self) -> None:
        await asyncio.wait([self._ready])
        while (heartbeat := self._heartbeat) is not None and not self._stream.is_closed:
            match heartbeat.beat(self._watch.clock()):
                case Beat.PING:
                    self._send(s.Ping(time.monotonic_ns()))
                case Beat.DEAD:
                    self.condemn(f"it did not answer a ping within {self._watch.ping_timeout:g} s", "ping")
                    return
            self._pong.clear()
            with contextlib.suppress(TimeoutError):
                # The clock may stand still in between; then this waits again.
                async with asyncio.timeout(max(heartbeat.wait_s(self._watch.clock()), 0.01)):
                    await self._pong.wait()

    def _answered(self) -> None:
        if self._heartbeat is None:
            return
        now = self._watch.clock()
        self._ping_s = self._heartbeat.answered(now)
        self._pong.set()
        self._watch.observer.ping(self.kind, self._ping_s)
        if self._ping_s <= self._watch.high_ping_threshold:
            return
        if (held_back := self._slow_pings.admit(now)) is not None:
            logger.warning(
                "%s (pid %d) took %.0f ms to answer a ping: something blocks its event loop%s",
                self.name,
                self.pid,
                self._ping_s * 1000,
                f" ({held_back} more such pings since this was said last)" if held_back else "",
                extra=self.log_fields,
            )

    def _set_timer(self, end_at: float, reason: str, why: KillReason) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left_s = end_at - self._watch.clock()
        if left_s <= 0:
            self.condemn(reason, why)
        else:
            # The clock may stand still in between; then this waits again.
            self._timer = asyncio.get_running_loop().call_later(left_s, self._set_timer, end_at, reason, why)
