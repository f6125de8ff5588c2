"""The child's end of supervision, with the supervisor played by the test."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest

from inference.supervised import Supervisor
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Received, Role
from inference.wire.errors import LocalProtocolError
from inference.wire.stream import MessageStream

DEADLINE_S = 10.0
Watch = Callable[[], AbstractContextManager[None]]
INITIALIZE = s.InitializeJob("", "/socket", "token")


@asynccontextmanager
async def child() -> AsyncIterator[tuple[Supervisor, MessageStream]]:
    """The child's view of its supervisor, and the supervisor's end."""
    theirs, ours = socket.socketpair()
    parent = MessageStream(ours, Role.CLIENT, SUPERVISION)
    try:
        async with asyncio.timeout(DEADLINE_S), Supervisor(theirs) as supervisor:
            yield supervisor, parent
    finally:
        parent.close()


async def log_line(parent: MessageStream) -> s.LogLine:
    received = await parent.receive()
    assert received is not None
    assert isinstance(received.message, s.LogLine)
    return received.message


async def test_pings_are_answered_and_the_rest_is_for_the_child() -> None:
    async with child() as (supervisor, parent):
        parent.send(s.Ping(7))
        parent.send(INITIALIZE)
        assert await parent.receive() == Received(s.Pong(7))
        assert await supervisor.receive(s.InitializeJob) == INITIALIZE


async def test_a_message_the_child_is_not_ready_for() -> None:
    async with child() as (supervisor, parent):
        parent.send(INITIALIZE)
        with pytest.raises(LocalProtocolError, match="expected StartJob, got InitializeJob"):
            await supervisor.receive(s.StartJob)


async def test_shutdown_ends_every_receive() -> None:
    async with child() as (supervisor, parent):
        parent.send(s.Shutdown("the host is stopping"))
        await supervisor.stopping.wait()
        assert supervisor.reason == "the host is stopping"
        assert await supervisor.receive(s.StartJob) is None
        assert await supervisor.receive(s.StartJob) is None
        # Still there, to hear how it ended; and still answering.
        parent.send(s.Ping(1))
        assert await parent.receive() == Received(s.Pong(1))
        supervisor.send(s.Exiting("done"))
        assert await parent.receive() == Received(s.Exiting("done"))


async def test_the_supervisor_is_gone(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with child() as (supervisor, parent):
            # A ping whose answer finds nobody is no failure of the connection.
            parent.send(s.Ping(1))
            parent.close()
            await supervisor.stopping.wait()
            assert supervisor.reason == "the supervisor is gone"
            assert await supervisor.receive(s.StartJob) is None
            await supervisor.wait_acknowledged()
            supervisor.send(s.Exiting("done"))
            await supervisor.drain()


async def test_garbage_from_the_supervisor_ends_the_child() -> None:
    theirs, ours = socket.socketpair()
    async with asyncio.timeout(DEADLINE_S), Supervisor(theirs) as supervisor:
        ours.send(b"GET / HTTP/1.1\r\n\r\n")
        await supervisor.stopping.wait()
        assert "not a frame" in supervisor.reason
    ours.close()


async def test_log_records_arrive_with_their_fields_and_tracebacks() -> None:
    async with child() as (supervisor, parent):
        supervisor.forward_logs("INFO")
        log = logging.getLogger("some.place")
        log.debug("not this")
        log.info("room %s", "support-42", extra={"room": "support-42", "path": object})
        line = await log_line(parent)
        assert (line.level, line.logger, line.text) == (logging.INFO, "some.place", "room support-42")
        assert json.loads(line.fields)["room"] == "support-42"
        try:
            raise ValueError("no such thing")
        except ValueError:
            log.exception("failed")
        line = await log_line(parent)
        assert line.text == "failed"
        exception = json.loads(line.fields)["exception"]
        assert exception.startswith("Traceback")
        assert exception.endswith("ValueError: no such thing")


async def test_log_records_carry_the_fields_of_the_process_unless_they_have_their_own() -> None:
    async with child() as (supervisor, parent):
        supervisor.forward_logs("INFO")
        supervisor.log_fields["job_id"] = "AJ_1"
        supervisor.log_fields["customer"] = 7
        log = logging.getLogger("some.place")
        log.info("with", extra={"customer": 8})
        assert json.loads((await log_line(parent)).fields) == {"job_id": "AJ_1", "customer": 8}
        del supervisor.log_fields["customer"]
        log.info("without")
        assert json.loads((await log_line(parent)).fields) == {"job_id": "AJ_1"}


async def test_log_records_of_other_threads_arrive() -> None:
    async with child() as (supervisor, parent):
        supervisor.forward_logs("INFO")
        thread = threading.Thread(target=lambda: logging.getLogger("lane").info("from a thread"), name="lane")
        thread.start()
        thread.join()
        assert (await log_line(parent)).text == "from a thread"


async def test_a_log_call_that_is_wrong_does_not_break_its_caller(capsys: pytest.CaptureFixture[str]) -> None:
    async with child() as (supervisor, parent):
        supervisor.forward_logs("INFO")
        log = logging.getLogger("some.place")
        loop: list[object] = []
        loop.append(loop)
        log.info("%d rooms", "seven")
        log.info("circular", extra={"loop": loop})
        log.info("and on it goes")
        assert (await log_line(parent)).text == "and on it goes"
        assert capsys.readouterr().err.count("--- Logging error ---") == 2


async def test_log_records_that_do_not_fit_are_cut_and_still_arrive() -> None:
    async with child() as (supervisor, parent):
        supervisor.forward_logs("INFO")
        log = logging.getLogger("some.place")
        log.info("x" * 3_000_000)
        assert (await log_line(parent)).text == "x" * 100_000
        log.info("語" * 3_000_000)
        assert (await log_line(parent)).text == "語" * 100_000
        log.info("large fields", extra={"blob": "x" * 3_000_000})
        line = await log_line(parent)
        assert (line.text, line.fields) == ("large fields", "{}")


async def test_a_flood_of_log_records_loses_records_and_nothing_else() -> None:
    async with child() as (supervisor, parent):
        supervisor.forward_logs("INFO")
        log = logging.getLogger("some.place")
        parent.send(s.Ping(7))
        for number in range(100_000):
            log.info("line %d of a job that prints whatever it can find", number)
        arrived, lost, answered_after = 0, 0, -1
        while not lost:
            received = await parent.receive()
            assert received is not None
            match received.message:
                case s.Pong(sent_ns=7):
                    answered_after = arrived
                case s.LogLine(logger="some.place", text=text):
                    assert text.startswith(f"line {arrived} of")
                    arrived += 1
                case s.LogLine(level=logging.WARNING, text=text):
                    lost = int(text.split()[0])
        assert arrived + lost == 100_000
        assert 1_000 < arrived < 50_000
        assert answered_after >= 0, "a ping is answered, whatever is lost"
        log.info("calm again")
        assert (await log_line(parent)).text == "calm again"
        assert not supervisor.stopping.is_set()


async def test_file_names_that_are_no_text_are_logged_all_the_same() -> None:
    async with child() as (supervisor, parent):
        supervisor.forward_logs("INFO")
        logging.getLogger("some.place").info("cannot read %s", b"caf\xe9.wav".decode(errors="surrogateescape"))
        assert (await log_line(parent)).text == r"cannot read caf\udce9.wav"


async def test_the_job_learns_that_its_status_was_passed_on() -> None:
    async with child() as (supervisor, parent):
        parent.send(INITIALIZE)
        await supervisor.receive(s.InitializeJob)
        supervisor.send(s.Ready())
        assert await parent.receive() == Received(s.Ready())
        parent.send(s.StartJob("j", "r", "local"))
        await supervisor.receive(s.StartJob)
        supervisor.send(s.JobUpdate("j", "success"))
        assert await parent.receive() == Received(s.JobUpdate("j", "success"))
        waiting = asyncio.create_task(supervisor.wait_acknowledged())
        parent.send(s.Shutdown("x"))
        await supervisor.stopping.wait()
        assert not waiting.done()
        parent.send(s.JobUpdateAck("j"))
        await waiting


IDLE = "await asyncio.sleep(60)"
HANGING = "time.sleep(60)"
IN_C = "re.match(r'(a|aa)+$', 'a' * 100 + 'b')"
CHILD = """
import asyncio, re, signal, sys, threading, time
import uvloop
from inference.supervised import prepare_process, write_stacks_to

async def waits():
    await asyncio.Event().wait()

async def main():
    task = asyncio.create_task(waits(), name="a waiting task")
    threading.Thread(target=time.sleep, args=(60,), name="lane", daemon=True).start()
    await asyncio.sleep(0)
    print("up", sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), flush=True)
    {body}

prepare_process(0)
if len(sys.argv) > 1:
    write_stacks_to(sys.argv[1])
uvloop.run(main())
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("body", "tasks"), [(IDLE, True), (HANGING, True), (IN_C, False)], ids=["idle", "hanging", "in C"]
)
@pytest.mark.parametrize("to_file", [True, False])
def test_stacks_of_threads_and_tasks_on_request(tmp_path: Path, body: str, tasks: bool, to_file: bool) -> None:
    stacks = tmp_path / "stacks"
    stacks.touch()
    # As whoever starts a child does: nothing may end it before it ignores the signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        with stacks.open("ab") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD.format(body=body), *([str(stacks)] if to_file else [])],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if to_file else stderr,
                cwd=Path(__file__).parents[3],
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up []\n"
        os.kill(child.pid, signal.SIGTERM)
        for count in (1, 2):
            deadline = time.monotonic() + DEADLINE_S
            ask_at = 0.0
            while (text := stacks.read_text()).count("Task 'a waiting task'" if tasks else "in main") < count:
                assert time.monotonic() < deadline, text
                if time.monotonic() >= ask_at:
                    # Asked while it still answers the question before, it may take both for one.
                    os.kill(child.pid, signal.SIGUSR1)
                    ask_at = time.monotonic() + 2.0
                time.sleep(0.01)
        assert text.count("hread 0x") >= 2
        assert "in main" in text
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
