"""One process under supervision: how it is made, watched, told to end, and made to end.

A process comes from ``execute`` or from the ``ForkServerProcess``; ``Child`` is the conversation with it.
Children ignore SIGTERM and SIGINT (only the supervisor acts on them), so in order is by message and by
force is SIGKILL. Every signal goes through a pidfd,
which cannot come to mean another process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from host.errors import HostError
from host.lifecycle import Beat, ChildEvent, ChildState, Heartbeat, follow
from inference.wire import supervision as s
from inference.wire.connection import FORKSERVER, SUPERVISION, Role, State
from inference.wire.errors import WireError
from inference.wire.stream import MessageStream
from inference.wire.tlv import Message

logger = logging.getLogger(__name__)

EXIT_GRACE_S = 10.0
"""How long a child may take from its last word to its end: a device's memory is given back in that time."""
_DUMP_GRACE_S = 0.5
"""How long a child that does not answer has to write its stacks; nothing tells when they are written."""
_LAST_WORDS_S = 2.0
"""How long to read on after a process has ended, should something it started hold its socket open."""
_STDERR = 2

_LOG_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class SpawnError(Exception):
    """There is no new process: the fork server is gone, or the system refused."""


class InitializationError(Exception):
    """A child did not become ready. ``exit_code`` as in ``host.errors``; ``refused``: it said so itself."""

    def __init__(self, reason: str, exit_code: int = 1, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
        self.refused = refused


def describe_exit(code: int) -> str:
    """An exit code as a person reads it; negative codes are signals, as in ``subprocess``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}"


class Process:
    """A process that cannot be mistaken for another. ``reap`` gives its exit code once it has ended.

    Belongs to the event loop that made it. Takes ``pidfd`` over.
    """

    def __init__(self, pid: int, pidfd: int, reap: Callable[[], Awaitable[int]]) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._reap = reap
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._on_ended)

    def _on_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._ended.set()

    def is_alive(self) -> bool:
        """Whether it runs, asked of the kernel now."""
        if self._pidfd < 0 or self._ended.is_set():
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it; if it has ended this does nothing."""
        if not self.is_alive():
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            # It ended in between.
            return

    async def wait(self) -> int:
        """Return its exit code when it has ended."""
        await self._ended.wait()
        return await self._reap()

    def close(self) -> None:
        """Give the descriptor back; the process, if it still runs, is nobody's."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def execute(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Process, socket.socket]:
    """Start ``command --control FD --parent PID``; returns the process and our end of its control socket.

    Its standard output goes where its standard error goes: ours. Raises ``HostError``.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [*command, "--control", str(theirs.fileno()), "--parent", str(os.getpid())]
        try:
            popen = subprocess.Popen(
                arguments,
                env=dict(environment),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                # Ctrl-C goes to the terminal's process group, and a child that still starts up does not ignore it yet.
                process_group=0,
            )
        except OSError as exc:
            ours.close()
            raise HostError(f"cannot start {command[0]}: {exc}") from exc

    async def reap() -> int:
        return popen.wait()

    return Process(popen.pid, os.pidfd_open(popen.pid), reap), ours


def _extra_fields(text: str) -> dict[str, Any]:
    """A log line's extra fields; what is not as promised is shown as it came."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return {"fields": text}
    return {key: value for key, value in fields.items() if key not in _LOG_RECORD_FIELDS}


@dataclass(frozen=True, slots=True)
class Watch:
    """How closely a child is watched, in seconds: see ``SupervisorOptions``."""

    ping_interval: float
    ping_timeout: float
    high_ping_threshold: float


class Child:
    """A process that speaks ``SUPERVISION``.

    ``run`` must be running for anything to happen. ``receive`` gets the messages that are not about
    being alive. ``clock`` is in seconds and need not count time in which this process stood still.
    """

    def __init__(
        self,
        name: str,
        process: Process,
        control: socket.socket,
        *,
        watch: Watch,
        clock: Callable[[], float],
        receive: Callable[[Message], None],
    ) -> None:
        self.name = name
        self.pid = process.pid
        self.state = follow(ChildState.STARTING, ChildEvent.STARTED)
        self.job_id = ""
        self.killed_because = ""
        self.exit_code = 0
        """Known when ``run`` has returned; negative for a signal, as in ``subprocess``."""
        self._process = process
        self._stream = MessageStream(control, Role.CLIENT, SUPERVISION)
        self._watch = watch
        self._clock = clock
        self._receive = receive
        self._ready: asyncio.Future[InitializationError | None] = asyncio.get_running_loop().create_future()
        self._heartbeat: Heartbeat | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Child {self.name} pid={self.pid} {self.state.value}>"

    def is_idle(self) -> bool:
        """Whether it can be given a job."""
        return self.state is ChildState.READY

    def is_alive(self) -> bool:
        """Whether the process runs, asked of the kernel now."""
        return self._process.is_alive()

    async def initialize(self, message: s.InitializeInference | s.InitializeJob, timeout_s: float) -> None:
        """Have it load; returns when it is ready. Raises ``InitializationError``; then it ends or is killed."""
        self._send(message)
        await asyncio.wait([self._ready], timeout=timeout_s)
        if not self._ready.done():
            reason = f"it was not ready within {timeout_s:g} s"
            self.kill(reason)
            raise InitializationError(reason)
        if (error := self._ready.result()) is not None:
            raise error

    def start_job(self, start: s.StartJob) -> None:
        """Give an idle job process its room."""
        self.state = follow(self.state, ChildEvent.ASSIGNED)
        self.job_id = start.job_id
        self._send(start)

    def acknowledge(self, job_id: str) -> None:
        """Let a job leave its room: its final status has been passed on."""
        self._send(s.JobUpdateAck(job_id))

    def stop(self, reason: str, grace_s: float) -> None:
        """Tell it to end; it is killed if it has not ended after ``grace_s`` seconds. Only the first call counts."""
        if self.state in (ChildState.STOPPING, ChildState.ENDED):
            return
        self.state = follow(self.state, ChildEvent.STOP)
        self._send(s.Shutdown(reason))
        self._expect_end(grace_s, f"it did not end within {grace_s:g} s of being told to")

    def kill(self, reason: str) -> None:
        """SIGKILL it. The first ``reason`` given is kept in ``killed_because``."""
        if self.state is ChildState.ENDED:
            return
        self.state = follow(self.state, ChildEvent.STOP)
        self.killed_because = self.killed_because or reason
        self._process.send_signal(signal.SIGKILL)

    async def run(self) -> int:
        """Supervise it to its end and give everything back; returns the exit code. Cancelling kills it."""
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(), name=f"{self.name}-read")
                beating = group.create_task(self._beat(), name=f"{self.name}-beat")
                self.exit_code = await self._process.wait()
                # What it said before it ended is still in the socket.
                await asyncio.wait([reading], timeout=_LAST_WORDS_S)
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
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._ready.done():
            self._ready.set_result(InitializationError(f"it ended before it was ready: {self.describe_end()}"))
        self._stream.close()
        self._process.close()

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
            self.kill(f"its connection failed: {exc}")
            return
        self._expect_end(EXIT_GRACE_S, "it closed its connection and did not end")

    def _handle(self, message: Message) -> None:
        match message:
            case s.Pong():
                self._answered()
            case s.LogLine():
                self._log(message)
            case s.Ready():
                self.state = follow(self.state, ChildEvent.READY)
                self._heartbeat = Heartbeat(self._watch.ping_interval, self._watch.ping_timeout, self._clock())
                self._ready.set_result(None)
            case s.InitializeFailed(reason=reason, exit_code=exit_code):
                self._ready.set_result(InitializationError(reason, exit_code, refused=True))
                self._expect_end(EXIT_GRACE_S, "it could not serve and did not end")
            case s.Exiting():
                # Its event loop is over: nobody answers pings any more.
                self._heartbeat = None
                self._expect_end(EXIT_GRACE_S, "it said that it ends and did not")
            case _:
                self._receive(message)

    def _log(self, line: s.LogLine) -> None:
        target = logging.getLogger(line.logger)
        if not target.isEnabledFor(line.level):
            return
        record = logging.makeLogRecord(
            _extra_fields(line.fields)
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
                "job": self.job_id,
            }
        )
        target.handle(record)

    # --- whether it lives -------------------------------------------------------------------------

    async def _beat(self) -> None:
        await asyncio.wait([self._ready])
        while (heartbeat := self._heartbeat) is not None and not self._stream.is_closed:
            match heartbeat.beat(self._clock()):
                case Beat.PING:
                    self._send(s.Ping(time.monotonic_ns()))
                case Beat.DEAD:
                    await self._kill_unresponsive()
                    return
            # The clock may stand still in between; then this waits again.
            await asyncio.sleep(max(heartbeat.wait_s(self._clock()), 0.01))

    def _answered(self) -> None:
        if self._heartbeat is None:
            return
        round_trip_s = self._heartbeat.answered(self._clock())
        if round_trip_s > self._watch.high_ping_threshold:
            logger.warning(
                "%s (pid %d) took %.0f ms to answer a ping: something blocks its event loop",
                self.name,
                self.pid,
                round_trip_s * 1000,
                extra={"pid": self.pid, "job": self.job_id},
            )

    async def _kill_unresponsive(self) -> None:
        reason = f"it did not answer a ping within {self._watch.ping_timeout:g} s"
        logger.error(
            "%s (pid %d): %s; its stacks follow on stderr, then it is killed",
            self.name,
            self.pid,
            reason,
            extra={"pid": self.pid, "job": self.job_id},
        )
        self._process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(_DUMP_GRACE_S)
        self.kill(reason)

    def _expect_end(self, grace_s: float, reason: str) -> None:
        """Kill it after ``grace_s``, unless that is to happen earlier anyway."""
        loop = asyncio.get_running_loop()
        if self._deadline is not None:
            if self._deadline.when() <= loop.time() + grace_s:
                return
            self._deadline.cancel()
        self._deadline = loop.call_later(grace_s, self.kill, reason)


class ForkServerProcess:
    """The fork server as the supervisor sees it. ``run`` must be running for anything to happen."""

    COMMAND = (sys.executable, "-P", "-m", "host.forkserver")

    def __init__(self, environment: Mapping[str, str]) -> None:
        # A BLAS with threads of its own could not be forked.
        self._process, control = execute(self.COMMAND, {**environment, "OPENBLAS_NUM_THREADS": "1"})
        self.pid = self._process.pid
        self._stream = MessageStream(control, Role.CLIENT, FORKSERVER)
        self._spawning: deque[asyncio.Future[Process]] = deque()
        self._exit_codes: dict[int, asyncio.Future[int]] = {}
        self._gone = ""
        self._deadline: asyncio.TimerHandle | None = None

    async def spawn(self, name: str) -> tuple[Process, socket.socket]:
        """A warm process, and our end of its control socket. Raises ``SpawnError``."""
        if self._gone:
            raise SpawnError(self._gone)
        ours, theirs = socket.socketpair()
        answer: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        try:
            with theirs:
                self._spawning.append(answer)
                self._stream.send(s.Spawn(name), (theirs.fileno(),))
                await self._stream.drain()
            return await answer, ours
        except BaseException:
            ours.close()
            raise

    async def run(self) -> int:
        """Serve until the process has ended; returns its exit code. Its jobs are gone then, too."""
        code = 0
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(), name="forkserver-read")
                code = await self._process.wait()
                await asyncio.wait([reading], timeout=_LAST_WORDS_S)
                reading.cancel()
        finally:
            if self._process.is_alive():
                self._process.send_signal(signal.SIGKILL)
                code = await self._process.wait()
            self._end(code)
        return code

    def stop(self) -> None:
        """Have it end by closing its socket; its jobs, if there still are any, are killed with it."""
        self._stream.close()
        if self._deadline is None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(EXIT_GRACE_S, self._process.send_signal, signal.SIGKILL)

    async def _read(self) -> None:
        try:
            async for received in self._stream:
                match received.message:
                    case s.Spawned(pid=pid):
                        self._spawned(pid, received.descriptors[0])
                    case s.SpawnFailed(reason=reason):
                        self._answer(SpawnError(reason))
                    case s.Reaped(pid=pid, exit_code=code) if pid in self._exit_codes:
                        self._exit_codes.pop(pid).set_result(code)
        except WireError:
            logger.exception("the fork server's connection failed")
        self.stop()

    def _spawned(self, pid: int, pidfd: int) -> None:
        exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exit_codes[pid] = exit_code

        async def reap() -> int:
            return await asyncio.shield(exit_code)

        self._answer(Process(pid, pidfd, reap))

    def _answer(self, answer: Process | SpawnError) -> None:
        waiting = self._spawning.popleft()
        if isinstance(answer, SpawnError):
            if not waiting.done():
                waiting.set_exception(answer)
        elif waiting.done():
            # Whoever asked has given up.
            answer.send_signal(signal.SIGKILL)
            answer.close()
        else:
            waiting.set_result(answer)

    def _end(self, code: int) -> None:
        self._gone = f"the fork server has ended: {describe_exit(code)}"
        if self._deadline is not None:
            self._deadline.cancel()
        while self._spawning:
            self._answer(SpawnError(self._gone))
        # Nobody is left to tell how they ended; but the kernel has killed them with their parent.
        for exit_code in self._exit_codes.values():
            exit_code.set_result(-signal.SIGKILL)
        self._exit_codes.clear()
        self._stream.close()
        self._process.close()
