"""One child that misbehaves, and the fork server by itself."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from host.child import Child, InitializationError, Watch
from host.errors import HostError
from host.forkserver import require_single_thread
from host.lifecycle import ChildState, FairClock
from host.process import describe_exit, execute
from inference.wire import supervision as s
from inference.wire.connection import FORKSERVER, Connection, Received, Role
from tests.host.processes.conftest import DEADLINE_S, eventually

pytestmark = pytest.mark.processes

JOB = s.InitializeJob("a.py:f", "", "")
WATCH = Watch(ping_interval=0.1, ping_timeout=0.3, high_ping_threshold=0.5)

PREAMBLE = """
import argparse, os, signal, socket, time
parser = argparse.ArgumentParser()
parser.add_argument("--control", type=int)
parser.add_argument("--parent", type=int)
arguments = parser.parse_args()
assert arguments.parent == os.getppid()
control = socket.socket(fileno=arguments.control)
"""


def child_of(code, watch=WATCH):
    """A child that runs ``code`` with its socket in ``control``, and the messages it sends."""
    messages = []
    process, control = execute((sys.executable, "-c", PREAMBLE + code), os.environ)
    child = Child("child", "job", process, control, watch=watch, receive=messages.append)
    return child, messages


async def run(child):
    async with asyncio.timeout(DEADLINE_S):
        return await child.run()


async def test_garbage_on_the_socket_ends_the_child():
    child, messages = child_of("control.sendall(b'GET / HTTP/1.1' * 3); time.sleep(1000)")
    assert await run(child) == -signal.SIGKILL
    assert child.describe_end().startswith("killed by SIGKILL: its connection failed: not a frame")
    assert child.state is ChildState.ENDED
    assert messages == []


LOGGING = """
from inference.wire import supervision as s
from inference.wire.tlv import encode
for fields in ('{"msg": "taken", "customer": "Ada"}', '[1]', '{', '[' * 100_000):
    control.sendall(encode(s.LogLine(30, "odd", "text", float("inf"), fields)))
"""


async def test_odd_log_lines_are_logged_and_hurt_nobody(caplog):
    child, _ = child_of(LOGGING)
    assert await run(child) == 0
    records = [record for record in caplog.records if record.name == "odd"]
    assert [record.getMessage() for record in records] == ["text"] * 4
    assert records[0].customer == "Ada"
    assert not hasattr(records[0], "job_id"), "it has no job"
    assert [record.fields for record in records[1:]] == ["[1]", "{", "[" * 100_000]


async def test_a_child_is_out_of_reach_of_the_terminal():
    child, _ = child_of("control.recv(1)")
    assert os.getpgid(child.pid) == child.pid
    child.stop("done", DEADLINE_S)
    assert await run(child) == 0


PREPARED = """
from inference.supervised import prepare_process
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
assert {signal.SIGINT, signal.SIGTERM} <= blocked, blocked
prepare_process(arguments.parent)
assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
control.recv(1)
os._exit(7)
"""


def signals(pid, field):
    """SIGINT's and SIGTERM's bits of a field of ``/proc/PID/status``."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    bits = int(line.split()[1], 16)
    return {number for number in (signal.SIGINT, signal.SIGTERM) if bits >> (number - 1) & 1}


async def test_sigint_and_sigterm_do_not_reach_a_child_that_starts_or_runs():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    child, _ = child_of(PREPARED)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    # It is not even Python yet.
    os.kill(child.pid, signal.SIGTERM)
    os.kill(child.pid, signal.SIGINT)
    running = asyncio.create_task(run(child))
    await eventually(lambda: not signals(child.pid, "SigBlk"))
    assert signals(child.pid, "SigIgn") == {signal.SIGINT, signal.SIGTERM}
    os.kill(child.pid, signal.SIGTERM)
    child.stop("done", DEADLINE_S)
    assert await running == 7


async def test_a_child_that_closes_its_socket_and_lives_on_is_killed(monkeypatch):
    monkeypatch.setattr("host.child.EXIT_GRACE_S", 0.1)
    child, _ = child_of("control.close(); time.sleep(1000)")
    assert await run(child) == -signal.SIGKILL
    assert child.killed_because == "it closed its connection and did not end"


async def test_a_child_that_ends_before_it_is_ready():
    child, _ = child_of("os._exit(3)")
    running = asyncio.create_task(run(child))
    with pytest.raises(InitializationError, match=r"it ended before it was ready: exit code 3") as raised:
        await child.initialize(JOB, DEADLINE_S)
    assert not raised.value.refused
    assert await running == 3


async def test_the_wish_to_stop_reaches_a_child_that_still_loads():
    child, _ = child_of("control.recv(10); time.sleep(1000)")
    child.stop("never mind", 0.2)
    assert await run(child) == -signal.SIGKILL
    assert child.killed_because == "it did not end within 0.2 s of being told to"


async def test_cancelling_the_supervision_kills_the_child():
    child, _ = child_of("time.sleep(1000)")
    running = asyncio.create_task(child.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not child.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


async def test_something_the_child_started_may_hold_its_socket(monkeypatch):
    monkeypatch.setattr("host.child._LAST_WORDS_S", 0.2)
    # The grandchild ends with its sleep; it is nobody's here.
    child, _ = child_of("if os.fork() == 0:\n    time.sleep(2)\nos._exit(0)")
    assert await asyncio.wait_for(child.run(), 1.5) == 0


LATE = """
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Connection, Received, Role
connection = Connection(Role.SERVER, SUPERVISION)
def send(message):
    control.sendall(connection.send(message))
def receive():
    while not isinstance(event := connection.next_event(), Received):
        connection.receive_data(control.recv(4096))
    return event.message
receive()
send(s.Ready())
late_s = 2.2
while not isinstance(message := receive(), s.Shutdown):
    send(s.LogLine(20, "late", "pinged", 0.0))
    time.sleep(late_s)
    late_s = 0
    send(s.Pong(message.sent_ns))
"""


async def test_time_in_which_the_supervisor_was_blocked_is_not_held_against_the_child(caplog):
    caplog.set_level("INFO")
    fair = FairClock(0.1, time.monotonic())

    async def pulse():
        while True:
            await asyncio.sleep(0.1)
            fair.pulse(time.monotonic())

    def pings():
        return [record.name for record in caplog.records].count("late")

    child, _ = child_of(
        LATE,
        watch=Watch(
            ping_interval=0.1, ping_timeout=1.5, high_ping_threshold=1.4, clock=lambda: fair.read(time.monotonic())
        ),
    )
    pulsing = asyncio.create_task(pulse())
    running = asyncio.create_task(run(child))
    await child.initialize(JOB, DEADLINE_S)
    await eventually(lambda: pings() == 1)
    # A ping is on its way and its answer will come after the timeout, because nobody could have read it before.
    time.sleep(2.0)  # noqa: ASYNC251 - this is the fault under test
    await eventually(lambda: pings() >= 2)
    child.stop("done", DEADLINE_S)
    assert await running == 0
    pulsing.cancel()
    assert child.killed_because == ""
    assert {record.name for record in caplog.records} == {"late"}


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(HostError, match="cannot start /not/there"):
        execute(("/not/there",), {})


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-99, "killed by signal 99"),
    ],
)
def test_exit_codes_as_a_person_reads_them(code, text):
    assert describe_exit(code) == text


# --- the fork server ----------------------------------------------------------------------------

FORK_SERVER = """
import errno, os, socket, sys
from host.forkserver import ForkServer
def job_main(control, parent_pid):
    assert parent_pid == 0
    control.sendall(" ".join(sorted(os.listdir("/proc/self/fd"), key=int)).encode() + b"|" + control.recv(100))
    return 5
if sys.argv[2] == "refused":
    def fork():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    os.fork = fork
ForkServer(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[3]), job_main).serve()
"""


class ForkServerPeer:
    """A blocking peer of a fork server that runs by itself."""

    def __init__(self, mode="works"):
        self.control, theirs = socket.socketpair()
        self.control.settimeout(DEADLINE_S)
        life, self.life = os.pipe()
        with theirs:
            command = [sys.executable, "-c", FORK_SERVER, str(theirs.fileno()), mode, str(life)]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno(), life])
        os.close(life)
        self.connection = Connection(Role.CLIENT, FORKSERVER)

    def spawn(self, *names):
        """Ask for all at once, in one write for each; returns our ends."""
        ours = []
        for name in names:
            mine, theirs = socket.socketpair()
            mine.settimeout(DEADLINE_S)
            with theirs:
                socket.send_fds(self.control, [self.connection.send(s.Spawn(name))], [theirs.fileno()])
            ours.append(mine)
        return ours

    def receive(self):
        while not isinstance(event := self.connection.next_event(), Received):
            data, descriptors, _, _ = socket.recv_fds(self.control, 4096, 8)
            assert data
            self.connection.receive_data(data, descriptors)
        return event

    def close(self):
        self.control.close()
        os.close(self.life)
        return self.process.wait(DEADLINE_S)


def test_the_fork_server_reports_children_and_their_ends():
    peer = ForkServerPeer()
    jobs = peer.spawn("job-1", "job-2", "job-3")
    spawned = [peer.receive() for _ in jobs]
    pids = [event.message.pid for event in spawned]
    assert len(set(pids)) == 3
    for event in spawned:
        (pidfd,) = event.descriptors
        signal.pidfd_send_signal(pidfd, 0)
        os.close(pidfd)
    for job in jobs:
        job.sendall(b"hello")
        # Standard streams, its own socket, the pipe that it dies with: nothing of the fork server's, nothing of
        # another job's. One more is the directory that it lists.
        descriptors, _, said = job.recv(4096).partition(b"|")
        assert len(descriptors.split()) == 6
        assert said == b"hello"
        job.close()
    ends = {peer.receive().message for _ in jobs}
    assert ends == {s.Reaped(pid, 5) for pid in pids}
    assert peer.close() == 0


def test_the_fork_server_says_that_the_system_refuses_and_goes_on():
    peer = ForkServerPeer("refused")
    for name in ("one", "two"):
        (job,) = peer.spawn(name)
        assert peer.receive().message == s.SpawnFailed("fork: Resource temporarily unavailable")
        # Nobody holds the other end.
        assert job.recv(1) == b""
        job.close()
    assert peer.close() == 0


def test_the_fork_server_has_one_thread_or_does_not_fork():
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, name="second")
    thread.start()
    try:
        with pytest.raises(RuntimeError, match=r"\d+ threads"):
            require_single_thread()
    finally:
        leave.set()
        thread.join()
