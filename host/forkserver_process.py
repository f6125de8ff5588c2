"""The fork server as the supervisor sees it: asks it for processes, hears of their ends, notices that it is stuck."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from host.child import EXIT_GRACE_S, Watch
from host.lifecycle import ChildState
from host.memory import cpu_seconds
from host.observer import KillReason
from host.process import EXIT_UNKNOWN, Process, ProcessInfo, SpawnError, describe_exit, execute
from inference.wire import supervision as s
from inference.wire.connection import FORKSERVER, Role
from inference.wire.errors import WireError
from inference.wire.stream import MessageStream

logger = logging.getLogger(__name__)

_FIRST_ANSWER_S = 60.0
"""How long it may take to answer the first time: it has to import everything before."""
_ANSWER_S = 5.0
"""How long a fork, or the word that a process has ended, may take afterwards: both are milliseconds."""
_LAST_WORDS_S = 2.0


class ForkServerProcess:
    """``run`` must be running for anything to happen.

    ``life``: the end for reading of a pipe whose other end only the supervisor holds; the jobs end when it
    closes, and not when the fork server does.
    """

    COMMAND = (sys.executable, "-P", "-m", "host.forkserver")
    NAME = "forkserver"

    def __init__(self, environment: Mapping[str, str], watch: Watch, life: int) -> None:
        self._stacks_file = watch.stacks_file(self.NAME)
        command = (*self.COMMAND, "--life", str(life), "--stacks", self._stacks_file)
        # A BLAS with threads of its own could not be forked.
        environment = {**environment, "OPENBLAS_NUM_THREADS": "1"}
        self._process, control = execute(command, environment, pass_fds=(life,))
        self.pid = self._process.pid
        self.memory_mb = 0.0
        self.killed_because = ""
        self.answered = asyncio.Event()
        """Set when it has forked for the first time: it has imported what jobs need."""
        self._watch = watch
        self._started_at = time.monotonic()
        self._stream = MessageStream(control, Role.CLIENT, FORKSERVER)
        self._spawning: deque[asyncio.Future[Process]] = deque()
        self._exit_codes: dict[int, asyncio.Future[int]] = {}
        self._gone = ""
        self._group: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None

    def describe(self) -> ProcessInfo:
        """How it is now."""
        state = ChildState.READY if self.answered.is_set() else ChildState.INITIALIZING
        if self._timer is not None or self.killed_because:
            state = ChildState.STOPPING
        return ProcessInfo(
            name=self.NAME,
            kind="forkserver",
            pid=self.pid,
            state=state.value,
            memory_mb=self.memory_mb,
            age_s=time.monotonic() - self._started_at,
            cpu_s=cpu_seconds(self.pid),
        )

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
            timeout_s = _ANSWER_S if self.answered.is_set() else _FIRST_ANSWER_S
            if not await self._watch.wait(answer, timeout_s):
                reason = f"the fork server did not answer within {timeout_s:g} s"
                self.condemn(reason, "ping")
                raise SpawnError(reason)
            return answer.result(), ours
        except BaseException:
            if not answer.cancel() and answer.exception() is None:
                # It came in the moment in which it was given up.
                _give_back(answer.result())
            ours.close()
            raise

    async def run(self) -> int:
        """Serve until the process has ended; returns its exit code. Its jobs run on."""
        code = 0
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                reading = group.create_task(self._read(), name="forkserver-read")
                try:
                    code = await self._process.wait()
                    await asyncio.wait([reading], timeout=_LAST_WORDS_S)
                finally:
                    # It has ended, or is to be killed without ceremony.
                    self._group = None
                reading.cancel()
        finally:
            if self._process.is_alive():
                self._process.kill()
                code = await self._process.wait()
            self._end(code)
        return code

    def stop(self) -> None:
        """Have it end by closing its socket."""
        self._stream.close()
        if self._timer is None:
            loop = asyncio.get_running_loop()
            reason = "its socket was closed and it did not end"
            self._timer = loop.call_later(EXIT_GRACE_S, self.condemn, reason, "shutdown")

    def condemn(self, reason: str, why: KillReason) -> None:
        """Kill it, with its stacks in the log. Returns at once; the first reason counts. Jobs run on."""
        if self.killed_because or self._group is None:
            return
        self.killed_because = reason
        self._watch.observer.process_killed("forkserver", why)
        self._group.create_task(self._show_and_kill(), name="forkserver-kill")

    async def _show_and_kill(self) -> None:
        try:
            stacks = await self._process.stacks(self._stacks_file)
            logger.error(
                "the fork server (pid %d) is killed: %s. Jobs run on; no process is made meanwhile. Its stacks:\n%s",
                self.pid,
                self.killed_because,
                stacks,
                extra={"pid": self.pid},
            )
        finally:
            self._process.kill()

    def describe_end(self, code: int) -> str:
        """How it ended, for a person."""
        how = describe_exit(code)
        return f"{how}: {self.killed_because}" if self.killed_because else how

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

        async def reap(pidfd: int) -> int:
            if not await self._watch.wait(exit_code, _ANSWER_S):
                self._exit_codes.pop(pid, None)
                self.condemn(f"it did not tell within {_ANSWER_S:g} s that process {pid} has ended", "ping")
                return EXIT_UNKNOWN
            code = exit_code.result()
            return _adopted_exit_code(pidfd) if code == EXIT_UNKNOWN else code

        self._answer(Process(pid, pidfd, reap))

    def _answer(self, answer: Process | SpawnError) -> None:
        waiting = self._spawning.popleft()
        if isinstance(answer, SpawnError):
            if not waiting.done():
                waiting.set_exception(answer)
            return
        self.answered.set()
        if waiting.done():
            # Whoever asked has given up.
            _give_back(answer)
        else:
            waiting.set_result(answer)

    def _end(self, code: int) -> None:
        self._gone = f"the fork server has ended: {self.describe_end(code)}"
        if self._timer is not None:
            self._timer.cancel()
        while self._spawning:
            self._answer(SpawnError(self._gone))
        # Its processes run on; nobody is left to tell how they end.
        for exit_code in self._exit_codes.values():
            exit_code.set_result(EXIT_UNKNOWN)
        self._exit_codes.clear()
        self._stream.close()
        self._process.close()
        if self._stacks_file:
            Path(self._stacks_file).unlink(missing_ok=True)


def _give_back(process: Process) -> None:
    """End a process that nobody wants."""
    process.kill()
    process.close()


def _adopted_exit_code(pidfd: int) -> int:
    """The exit code of a process that has become ours when its fork server died: so it is for pid 1."""
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return EXIT_UNKNOWN
    if status is None:
        return EXIT_UNKNOWN
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
