"""The job's life as its supervisor sees it, in this process: the same conversation that a job thread has."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from livekit.protocol.agent import Job, JobType

from host.job import functions
from host.job import main as job_main
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Role
from inference.wire.stream import MessageStream
from inference.wire.tlv import Message

DEADLINE_S = 20.0
M = TypeVar("M", bound=Message)

AGENT = """
import logging
from host import JobContext, JobProcess

log = logging.getLogger("the.agent")

def prewarm(process: JobProcess) -> None:
    process.userdata["warm"] = "yes"

async def entrypoint(ctx: JobContext) -> None:
    log.info("this is %s", ctx.proc.userdata.get("warm"))
    ctx.log_context_fields["customer"] = 7
    log.info("for a customer")
    what = ctx.job.metadata
    if what == "raise":
        raise RuntimeError("as it was asked")
    if what == "describe":
        raise RuntimeError(f"{ctx.worker_id} {ctx.accept.name} {ctx.local_participant_identity} {ctx.job.id}"
                           f" {ctx.job.room.name} {ctx.accept.attributes} {ctx.agent.identity}")
"""


class Peer:
    """The supervisor's end."""

    def __init__(self, stream: MessageStream) -> None:
        self.stream = stream

    async def expect(self, kind: type[M]) -> M:
        received = await self.stream.receive()
        assert received is not None
        assert isinstance(received.message, kind), received.message
        return received.message

    async def hold(self, start: s.StartJob) -> tuple[s.JobUpdate, s.Exiting]:
        """Run a job from ``Ready`` to its end."""
        await self.expect(s.Ready)
        self.stream.send(start)
        assert (await self.expect(s.JobUpdate)).status == "running"
        await self.expect(s.Ending)
        final = await self.expect(s.JobUpdate)
        self.stream.send(s.JobUpdateAck(final.job_id))
        return final, await self.expect(s.Exiting)


@pytest.fixture
def initialize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> s.InitializeJob:
    monkeypatch.setattr(functions, "_loaded", {})
    (tmp_path / "agent.py").write_text(AGENT)
    agent = str(tmp_path / "agent.py")
    return s.InitializeJob(f"{agent}:entrypoint", str(tmp_path / "no.sock"), "token", prewarm=f"{agent}:prewarm")


@asynccontextmanager
async def job_thread(initialize: s.InitializeJob) -> AsyncIterator[tuple[Peer, list[int]]]:
    """A job in a thread of this process; the list gets its exit code."""
    ours, theirs = socket.socketpair()
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(asyncio.run(job_main.run(theirs, in_thread=True))), name="job-1"
    )
    thread.start()
    stream = MessageStream(ours, Role.CLIENT, SUPERVISION)
    try:
        async with asyncio.timeout(DEADLINE_S):
            stream.send(initialize)
            yield Peer(stream), codes
    finally:
        stream.close()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


START = s.StartJob("AJ_1", "support", "local")


async def test_a_job_in_a_thread_logs_with_its_fields_where_the_process_logs(
    initialize: s.InitializeJob, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with job_thread(initialize) as (peer, codes):
        final, exiting = await peer.hold(START)
        logging.getLogger("somebody.else").info("not of the job")
    assert (final.status, final.error) == ("success", "")
    assert exiting.reason == "the entrypoint returned"
    assert codes == [0]
    fields = {record.message: (record.__dict__.get("job_id"), record.__dict__.get("room")) for record in caplog.records}
    assert fields["this is yes"] == fields["for a customer"] == ("AJ_1", "support")
    assert fields["not of the job"] == (None, None)
    customers = [record.__dict__.get("customer") for record in caplog.records if record.name == "the.agent"]
    assert customers == [None, 7]


async def test_the_job_is_the_servers_own(initialize: s.InitializeJob) -> None:
    job = Job(id="AJ_1", type=JobType.JT_ROOM, room={"name": "support"}, metadata="describe")
    start = replace(
        START,
        job=job.SerializeToString(),
        worker_id="AW_1",
        identity="mia",
        name="Mia",
        attributes='{"mood": "good"}',
    )
    async with job_thread(initialize) as (peer, _):
        final, _ = await peer.hold(start)
    assert final.error == "RuntimeError: AW_1 Mia mia AJ_1 support {'mood': 'good'} mia"


async def test_an_entrypoint_that_raises_is_a_failed_job_and_no_failed_process(initialize: s.InitializeJob) -> None:
    job = Job(id="AJ_1", room={"name": "support"}, metadata="raise").SerializeToString()
    async with job_thread(initialize) as (peer, codes):
        final, exiting = await peer.hold(replace(START, job=job))
    assert (final.status, final.error) == ("failed", "RuntimeError: as it was asked")
    assert exiting.reason == final.error
    assert codes == [0]


@pytest.mark.parametrize(
    ("agent", "says"),
    [
        (AGENT.replace("async def entrypoint", "def entrypoint"), "it must define `async def entrypoint(ctx:"),
        (AGENT.replace("def entrypoint", "def other"), "it defines no function 'entrypoint'"),
        (AGENT.replace('["warm"] = "yes"', '["warm"] = 1 / 0'), "line 8: prewarm: ZeroDivisionError"),
        (AGENT.replace("import logging", "import loggin"), "line 2: ModuleNotFoundError"),
        ("exit(1)", "line 1: SystemExit: 1"),
    ],
)
async def test_functions_that_cannot_be_used_are_told_with_their_place(
    initialize: s.InitializeJob, agent: str, says: str
) -> None:
    Path(initialize.entrypoint.removesuffix(":entrypoint")).write_text(agent)
    async with job_thread(initialize) as (peer, codes):
        failed = await peer.expect(s.InitializeFailed)
    assert failed.reason.startswith("agent file /")
    assert says in failed.reason
    assert codes == [failed.exit_code] == [2]


async def test_a_warm_job_that_is_not_needed_ends(initialize: s.InitializeJob) -> None:
    async with job_thread(initialize) as (peer, codes):
        await peer.expect(s.Ready)
        peer.stream.send(s.Shutdown("the pool shrinks"))
        assert (await peer.expect(s.Exiting)).reason == "the pool shrinks"
    assert codes == [0]


async def test_functions_of_modules_are_found_where_the_starter_found_them(
    initialize: s.InitializeJob, tmp_path: Path
) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "agent_of_a_module.py").write_text(AGENT)
    initialize = replace(
        initialize,
        entrypoint="agent_of_a_module:entrypoint",
        prewarm="",
        import_path=(str(tmp_path / "agents"),),
    )
    async with job_thread(initialize) as (peer, _):
        final, _ = await peer.hold(START)
    assert final.status == "success"


def test_a_warning_of_livekit_that_means_nothing_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    """A remote track's handle is given back twice, whoever uses it: natively, and with its Python object."""
    for text in ("room_apis::server - Attempted to drop unknown FFI handle: 99", "signal client closed"):
        logging.getLogger("livekit").warning(text)
    assert [record.message for record in caplog.records] == ["signal client closed"]
