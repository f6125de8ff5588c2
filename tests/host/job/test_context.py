"""The life of a job around its entrypoint: what ends it, in which order, with which status."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from livekit.protocol.agent import Job as JobMessage
from livekit.protocol.agent import JobType

from host.job import context, link
from host.job.agent import VoiceAgent
from host.job.context import JobContext, JobOutcome, JobProcess, run_job
from host.request import JobAcceptArguments
from tests.host.job.fakes import PLAIN, FakeRoom


class Job:
    """A job on a room that only logs."""

    def __init__(self, tmp_path: Path) -> None:
        self.room = FakeRoom()
        self.log = self.room.log
        self.ctx = JobContext(
            self.room,
            JobMessage(id="job-1", room={"name": "fake"}, metadata="{}"),
            JobProcess({"warm": 1}),
            str(tmp_path / "no.sock"),
            "token",
            PLAIN,
            lambda _: None,
            worker_id="AW_1",
            accept=JobAcceptArguments("Mia", "agent", "meta", {"mood": "good"}),
        )

    async def update(self, status: str, error: str) -> None:
        self.log.append(f"{status} {error}".strip())
        await asyncio.sleep(0)
        self.log.append(f"{status} passed on")

    async def run(self, entrypoint: Callable[[JobContext], Awaitable[None]]) -> JobOutcome:
        async with asyncio.timeout(20):
            return await run_job(entrypoint, self.ctx, self.update)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


async def test_the_status_is_passed_on_before_the_room_is_left(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "ENTRYPOINT_GRACE_S", 0.1)

    async def entrypoint(ctx: JobContext) -> None:
        assert ctx.proc.userdata == {"warm": 1}
        assert (ctx.job.id, ctx.job.room.name, ctx.job.metadata) == ("job-1", "fake", "{}")
        assert (ctx.worker_id, ctx.accept.name, ctx.accept.attributes) == ("AW_1", "Mia", {"mood": "good"})
        assert ctx.local_participant_identity == ctx.agent.identity == "agent"
        assert ctx.log_context_fields == {"job_id": "job-1", "room": "fake"}

        async def late(reason: str) -> None:
            job.log.append(f"async callback: {reason}")

        ctx.add_shutdown_callback(lambda reason: job.log.append(f"callback: {reason}"))
        ctx.add_shutdown_callback(late)
        await ctx.connect()
        await ctx.connect()
        job.room.closed.set()
        await asyncio.Event().wait()

    # The entrypoint waits for ever: it is given its time and cancelled.
    outcome = await job.run(entrypoint)
    assert outcome == JobOutcome("success", "", "the caller has left")
    assert job.log == [
        "running",
        "running passed on",
        "connect",
        "callback: the caller has left",
        "async callback: the caller has left",
        "success",
        "success passed on",
        "leave",
    ]


async def test_an_entrypoint_that_raises_fails_the_job(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    async def entrypoint(ctx: JobContext) -> None:
        await ctx.connect()
        raise KeyError("customer")

    outcome = await job.run(entrypoint)
    assert (outcome.status, outcome.error) == ("failed", "KeyError: 'customer'")
    assert job.log[-3:] == ["failed KeyError: 'customer'", "failed passed on", "leave"]
    assert 'raise KeyError("customer")' in caplog.text, "the author needs the traceback"


async def test_an_entrypoint_that_returns_without_a_session_ends_the_job(job: Job) -> None:
    async def entrypoint(ctx: JobContext) -> None:
        await ctx.connect()

    assert await job.run(entrypoint) == JobOutcome("success", "", "the entrypoint returned")


async def test_shutdown_ends_the_job_with_its_first_reason(job: Job) -> None:
    async def entrypoint(ctx: JobContext) -> None:
        ctx.shutdown("done")
        ctx.shutdown("done again")

    assert await job.run(entrypoint) == JobOutcome("success", "", "done")


async def test_shutdown_before_the_start_ends_the_job_too(job: Job) -> None:
    async def entrypoint(ctx: JobContext) -> None:
        await ctx.connect()
        await asyncio.sleep(0)

    job.ctx.shutdown("the host drains")
    assert await job.run(entrypoint) == JobOutcome("success", "", "the host drains")


async def test_a_callback_that_fails_is_logged_and_the_others_run(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    def bad(reason: str) -> None:
        raise RuntimeError("no database")

    async def entrypoint(ctx: JobContext) -> None:
        ctx.add_shutdown_callback(bad)
        ctx.add_shutdown_callback(lambda reason: job.log.append("second callback"))

    outcome = await job.run(entrypoint)
    assert outcome.status == "success"
    assert "second callback" in job.log
    assert "no database" in caplog.text


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (SystemExit(0), "the entrypoint raised SystemExit(0)"),
        (KeyboardInterrupt(), "the entrypoint raised KeyboardInterrupt()"),
        (asyncio.CancelledError("a task of its own"), "the entrypoint raised CancelledError('a task of its own')"),
        (BaseExceptionGroup("several", [SystemExit(3)]), "the entrypoint raised BaseExceptionGroup"),
    ],
)
async def test_whatever_an_entrypoint_raises_fails_the_job_in_order(job: Job, raised: BaseException, says: str) -> None:
    async def entrypoint(ctx: JobContext) -> None:
        await ctx.connect()
        ctx.add_shutdown_callback(lambda reason: job.log.append("callback"))
        raise raised

    outcome = await job.run(entrypoint)
    assert outcome.status == "failed"
    assert outcome.error.startswith(f"EntrypointError: {says}")
    assert job.log[-4:] == ["callback", f"failed {outcome.error}", "failed passed on", "leave"]


async def test_an_entrypoint_that_raises_after_its_session_has_failed(job: Job) -> None:
    async def entrypoint(ctx: JobContext) -> None:
        await ctx.connect()
        job.room.closed.set()
        await asyncio.sleep(0.05)
        raise OSError("the summary cannot be stored")

    outcome = await job.run(entrypoint)
    assert outcome == JobOutcome("failed", "OSError: the summary cannot be stored", "the caller has left")


async def test_an_exception_group_is_told_by_its_first(job: Job) -> None:
    async def entrypoint(ctx: JobContext) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(10))
            raise KeyError("customer")

    assert (await job.run(entrypoint)).error == "KeyError: 'customer'"


@pytest.mark.parametrize("raised", [SystemExit(1), asyncio.CancelledError(), KeyboardInterrupt()])
async def test_a_callback_may_raise_anything(job: Job, caplog: pytest.LogCaptureFixture, raised: BaseException) -> None:
    async def bad(reason: str) -> None:
        raise raised

    async def entrypoint(ctx: JobContext) -> None:
        ctx.add_shutdown_callback(bad)
        ctx.add_shutdown_callback(lambda reason: job.log.append("second callback"))

    assert (await job.run(entrypoint)).status == "success"
    assert job.log[-4:] == ["second callback", "success", "success passed on", "leave"]
    assert "a shutdown callback failed" in caplog.text


async def test_a_callback_that_hangs_keeps_no_other_from_running(job: Job) -> None:
    hangs = asyncio.Event()

    async def entrypoint(ctx: JobContext) -> None:
        async def waits_for_the_other(reason: str) -> None:
            await hangs.wait()

        ctx.add_shutdown_callback(waits_for_the_other)
        ctx.add_shutdown_callback(lambda reason: hangs.set())

    assert (await job.run(entrypoint)).status == "success"


async def test_without_an_inference_process_the_job_fails_with_one_line(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "AWAY_TIMEOUT_S", 0.6)

    async def entrypoint(ctx: JobContext) -> None:
        await ctx.start_session(VoiceAgent("Be brief."))

    outcome = await job.run(entrypoint)
    assert outcome.status == "failed"
    assert "the inference process was away for 0.6 s: no inference process at" in outcome.error
    assert "Traceback" not in caplog.text
    assert job.log[-1] == "leave"


@pytest.mark.parametrize("what", ["session", "connection"])
async def test_a_job_that_waits_for_the_inference_process_ends_when_it_is_told_to(job: Job, what: str) -> None:
    async def entrypoint(ctx: JobContext) -> None:
        asyncio.get_running_loop().call_later(0.05, ctx.shutdown, "the host drains")
        await (ctx.start_session(VoiceAgent("Be brief.")) if what == "session" else ctx.connect_inference())

    began = asyncio.get_running_loop().time()
    assert await job.run(entrypoint) == JobOutcome("success", "", "the host drains")
    assert asyncio.get_running_loop().time() - began < context.ENTRYPOINT_GRACE_S, "it was cancelled, not told"
    assert len(asyncio.all_tasks()) == 1


async def test_there_is_no_connection_before_it_was_made(job: Job) -> None:
    async def entrypoint(ctx: JobContext) -> None:
        with pytest.raises(RuntimeError, match="await connect_inference"):
            _ = ctx.inference

    assert (await job.run(entrypoint)).status == "success"


async def test_a_room_that_cannot_be_joined_fails_the_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse() -> None:
        raise ConnectionError("cannot join room 'fake' at ws://x: refused")

    async def entrypoint(ctx: JobContext) -> None:
        await ctx.connect()

    monkeypatch.setattr(job.room, "connect", refuse)
    outcome = await job.run(entrypoint)
    assert (outcome.status, outcome.error) == ("failed", "ConnectionError: cannot join room 'fake' at ws://x: refused")


async def test_a_job_for_a_participant_waits_for_that_one(job: Job) -> None:
    job.ctx.job.type = JobType.JT_PUBLISHER
    job.ctx.job.participant.identity = "ada"

    async def entrypoint(ctx: JobContext) -> None:
        assert await ctx.wait_for_participant() == "ada"
        assert await ctx.wait_for_participant("bob") == "bob"

    assert (await job.run(entrypoint)).status == "success"
    assert job.log[2:4] == ["wait_for_participant ada", "wait_for_participant bob"]
