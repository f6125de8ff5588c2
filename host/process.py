"""A process of the host as the system sees it: how it is started, signalled, asked for its stacks, and ended.

Children ignore SIGTERM and SIGINT (only the supervisor acts on them), so in order is by message and by
force is SIGKILL. Every signal goes through a pidfd, which cannot come to mean another process.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from host.errors import HostError
from host.memory import cpu_seconds
from host.observer import ProcessKind

EXIT_UNKNOWN = 255
"""Stands for the exit code of a process whose parent is gone: nobody can be told it any more."""

_STDERR = 2
_STACKS_APPEAR_S = 0.5
"""How long a process that does not answer has to begin writing its stacks."""
_STACKS_SETTLE_S = 0.15
"""Stacks that have not grown for so long are whole: nothing tells when they are."""
_STACKS_AT_MOST_S = 1.0
_STACKS_POLL_S = 0.02
_MAX_STACKS_BYTES = 200_000


class SpawnError(Exception):
    """There is no new process: the fork server is gone, or the system refused."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process that runs now, for a person to look at.

    ``state``: of a ``ChildState``. ``job_id`` and ``room``: "" without a job. ``memory_mb``: proportional
    set size in MB (10^6 bytes), 0 while it is not known. ``ping_ms``: the last round trip, -1 before the first.
    ``age_s``: since its start. ``cpu_s``: CPU time that it has used.
    """

    name: str
    kind: ProcessKind
    pid: int
    state: str
    job_id: str = ""
    room: str = ""
    memory_mb: float = 0.0
    ping_ms: float = -1.0
    age_s: float = 0.0
    cpu_s: float = 0.0


class Handle(Protocol):
    """What ``Child`` needs of whatever runs at the other end of its socket."""

    pid: int

    def is_alive(self) -> bool:
        """Whether it runs, asked now."""
        ...

    def kill(self) -> None:
        """Make it end; if it has ended this does nothing."""
        ...

    def cpu_s(self) -> float:
        """CPU time that it has used, in seconds; 0 where that is not known."""
        ...

    async def stacks(self, stacks_file: str) -> str:
        """Its stacks now, or a sentence that says why there are none. Takes about a second at most."""
        ...

    async def wait(self) -> int:
        """Its exit code, when it has ended."""
        ...

    def close(self) -> None:
        """Give everything back; what still runs is nobody's."""
        ...


def describe_exit(code: int) -> str:
    """An exit code as a person reads it; negative codes are signals, as in ``subprocess``."""
    if code == EXIT_UNKNOWN:
        return "its exit code is not known, because its fork server is gone"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}"


class Process:
    """A process that cannot be mistaken for another. ``reap(pidfd)`` gives its exit code once it has ended.

    Belongs to the event loop that made it. Takes ``pidfd`` over.
    """

    def __init__(self, pid: int, pidfd: int, reap: Callable[[int], Awaitable[int]]) -> None:
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

    def kill(self) -> None:
        """SIGKILL it; if it has ended this does nothing."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if not self.is_alive():
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            # It ended in between.
            return

    def cpu_s(self) -> float:
        """CPU time that it has used, in seconds."""
        return cpu_seconds(self.pid)

    async def stacks(self, stacks_file: str) -> str:
        """Have it write its stacks to ``stacks_file`` ("": its standard error), and return them."""
        stopped, catches = self._condition()
        if stopped:
            return "it was stopped (SIGSTOP, or a debugger), so it wrote no stacks"
        if not catches:
            return "it had not come so far that it could write its stacks"
        path = Path(stacks_file)
        begin = _size(path) if stacks_file else 0
        self._signal(signal.SIGUSR1)
        if not stacks_file:
            await asyncio.sleep(_STACKS_APPEAR_S)
            return "its stacks are on its standard error"
        await self._written(path, begin)
        return _text_from(path, begin) or f"it wrote no stacks within {_STACKS_APPEAR_S:g} s"

    async def _written(self, path: Path, begin: int) -> None:
        """Return when the file has stopped growing, or there will be nothing."""
        loop = asyncio.get_running_loop()
        asked_at = grown_at = loop.time()
        size = begin
        while self.is_alive() and (now := loop.time()) - asked_at < _STACKS_AT_MOST_S:
            if (grown := _size(path)) > size:
                size, grown_at = grown, now
            if now - grown_at >= (_STACKS_SETTLE_S if size > begin else _STACKS_APPEAR_S):
                return
            await asyncio.sleep(_STACKS_POLL_S)

    def _condition(self) -> tuple[bool, bool]:
        """Whether it is stopped, and whether it handles SIGUSR1: unhandled, that signal would end it."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return False, False
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        stopped = fields.get("State", "").strip()[:1] in ("T", "t")
        return stopped, bool(int(fields.get("SigCgt", "0"), 16) >> (signal.SIGUSR1 - 1) & 1)

    async def wait(self) -> int:
        """Return its exit code when it has ended."""
        await self._ended.wait()
        return await self._reap(self._pidfd)

    def close(self) -> None:
        """Give the descriptor back; the process, if it still runs, is nobody's."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _text_from(path: Path, begin: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(begin)
            return file.read(_MAX_STACKS_BYTES).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def execute(
    command: Sequence[str], environment: Mapping[str, str], *, pass_fds: Sequence[int] = ()
) -> tuple[Process, socket.socket]:
    """Start ``command --control FD --parent PID``; returns the process and our end of its control socket.

    Its standard output goes where its standard error goes: ours. It begins with SIGINT and SIGTERM blocked,
    and unblocks them (``prepare_process``) when it ignores them. Raises ``HostError``.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [*command, "--control", str(theirs.fileno()), "--parent", str(os.getpid())]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            popen = subprocess.Popen(
                arguments,
                env=dict(environment),
                pass_fds=(theirs.fileno(), *pass_fds),
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                # Ctrl-C goes to the terminal's process group; what a child starts later need not know of it.
                process_group=0,
            )
        except OSError as exc:
            ours.close()
            raise HostError(f"cannot start {command[0]}: {exc}") from exc
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    async def reap(_pidfd: int) -> int:
        return popen.wait()

    return Process(popen.pid, os.pidfd_open(popen.pid), reap), ours
