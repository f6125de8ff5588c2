"""The fork server: imports once what every job needs, then forks a warm process for each.

    python -P -m host.forkserver --control FD --parent PID --life FD [--stacks FILE]

It holds one thread, one socket and one pipe of its own, and no event loop, because all of that would be in
every child. It ends when the supervisor's socket does. Its children end with the supervisor and not with the
fork server, so that one that is stuck can be replaced while rooms go on (``die_with``).
"""

from __future__ import annotations

import argparse
import array
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from inference.supervised import prepare_process, write_stacks_to
from inference.wire import supervision as s
from inference.wire.connection import FORKSERVER, Connection, Received, Role, Signal
from inference.wire.tlv import Message

JobMain = Callable[[socket.socket, int], int]
"""The job's end of its control socket; the pid of the parent that it is to die with (0: see ``die_with``)."""

_READ_BYTES = 4096
_MAX_DESCRIPTORS = 8


class ForkServer:
    """Forks a job process for each ``Spawn``, and reports its pid, its pidfd and its end.

    ``life``: the end for reading of the pipe whose end ends the jobs.
    """

    def __init__(self, control: socket.socket, life: int, job_main: JobMain) -> None:
        self._control = control
        self._life = life
        self._job_main = job_main
        self._connection = Connection(Role.SERVER, FORKSERVER)
        self._children: set[int] = set()
        self._woken, self._wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        # A handler must be there for the wakeup descriptor to be written; the loop does the work.
        signal.signal(signal.SIGCHLD, _only_wake)

    def serve(self) -> None:
        """Serve until the supervisor closes its end. Raises ``RemoteProtocolError`` for garbage."""
        while True:
            readable, _, _ = select.select([self._control.fileno(), self._woken], [], [])
            if self._woken in readable:
                os.read(self._woken, _READ_BYTES)
                self._reap()
            if self._control.fileno() in readable and not self._receive():
                return

    def _receive(self) -> bool:
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return False
        descriptors = [
            descriptor
            for level, kind, content in ancillary
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
            for descriptor in array.array("i", content)
        ]
        self._connection.receive_data(data, descriptors)
        while isinstance(event := self._connection.next_event(), Received):
            match event.message:
                case s.Spawn(name=name):
                    self._spawn(name, event.descriptors[0])
        return event is not Signal.PEER_CLOSED

    def _spawn(self, name: str, descriptor: int) -> None:
        require_single_thread()
        sys.stdout.flush()
        sys.stderr.flush()
        # No signal may run this process's handlers in the child before the child has its own.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
        except OSError as exc:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(descriptor)
            self._send(s.SpawnFailed(f"fork: {exc.strerror}"))
            return
        if pid == 0:
            _be_job(name, descriptor, self._life, mask, self._job_main)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(descriptor)
        self._children.add(pid)
        # The child has not been waited for, so the number is still its own.
        pidfd = os.pidfd_open(pid)
        try:
            self._send(s.Spawned(pid), pidfd)
        finally:
            os.close(pidfd)

    def _reap(self) -> None:
        # SIGCHLDs merge: one wake-up may stand for any number of children.
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            self._send(s.Reaped(pid, os.waitstatus_to_exitcode(status)))

    def _send(self, message: Message, *descriptors: int) -> None:
        data = self._connection.send(message)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        sent = self._control.sendmsg([data], ancillary)
        if sent < len(data):
            self._control.sendall(data[sent:])


def _only_wake(_number: int, _frame: FrameType | None) -> None:
    """SIGCHLD: the wakeup descriptor is readable now, and that is all."""


def die_with(life: int) -> int:
    """Have the kernel SIGKILL this process when nobody holds the pipe ``life`` for writing any more.

    Unlike the parent's death (``PR_SET_PDEATHSIG``), this survives the fork server, and like it, it does
    not need this process to run. Returns the descriptor that must stay open.
    """
    # Opened again: the owner of the signal belongs to the open file, which a fork shares.
    own = os.open(f"/proc/self/fd/{life}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    readable, _, _ = select.select([own], [], [], 0)
    if readable:
        # The end: it came before the kernel was asked.
        os._exit(1)
    return own


def _be_job(name: str, descriptor: int, life: int, mask: set[int], job_main: JobMain) -> None:
    """The child's life, from the fork to its exit. Does not return."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Its file is the fork server's, and is closed with the rest.
        write_stacks_to("")
        kept = sorted((descriptor, die_with(life)))
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # The supervisor's socket, the pipes, and sockets of other jobs that have arrived but are not handed on yet.
        for low, high in zip((2, *kept), (*kept, os.sysconf("SC_OPEN_MAX")), strict=True):
            os.closerange(low + 1, high)
        Path("/proc/self/comm").write_text(name[:15])
        gc.enable()
        code = job_main(socket.socket(fileno=descriptor), 0)
    except BaseException:  # noqa: BLE001 - the last frame of a process: whatever it is, say it and end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def require_single_thread() -> None:
    """Raise ``RuntimeError`` if this process has a second thread: a fork would copy its locks but not it."""
    threads = os.listdir("/proc/self/task")  # noqa: PTH208 - only the names
    if len(threads) != 1:
        raise RuntimeError(f"the fork server has {len(threads)} threads; something it imports starts them")


def main() -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser(prog="host.forkserver")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the supervisor's socket")
    parser.add_argument("--parent", type=int, required=True, help="pid of the supervisor")
    parser.add_argument(
        "--life", type=int, required=True, help="pipe whose end, which is the supervisor's, ends the jobs"
    )
    parser.add_argument("--stacks", default="", help="where the stacks go on SIGUSR1; standard error without it")
    arguments = parser.parse_args()
    prepare_process(arguments.parent)
    write_stacks_to(arguments.stacks)

    # Imported here, after the kernel knows to end us with the supervisor; this takes a second.
    from host.job.main import main as job_main

    require_single_thread()
    # What is there now is never collected: the collector would write into every page, and each job would get a copy.
    gc.disable()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=arguments.control) as control:
        try:
            ForkServer(control, arguments.life, job_main).serve()
        except (BrokenPipeError, ConnectionResetError):
            # The supervisor went away while it was being told something.
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
