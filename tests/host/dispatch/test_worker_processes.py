"""A worker with its real processes, against the fake server: jobs that need no room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
from fake_livekit import FakeLiveKit
from livekit.protocol import agent
from workers import ENTRYPOINT, config, options, registered, running, until

from host.options import JobExecutorType
from host.worker import Worker

pytestmark = pytest.mark.processes

RUNNING, SUCCESS, FAILED = agent.JobStatus.JS_RUNNING, agent.JobStatus.JS_SUCCESS, agent.JobStatus.JS_FAILED


@pytest.fixture(autouse=True)
def _nothing_is_left() -> object:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    after = {process.pid for process in psutil.Process().children(recursive=True)}
    assert after <= before


async def test_jobs_end_as_their_entrypoints_do(server: FakeLiveKit, tmp_path: Path) -> None:
    async with registered(server, num_idle_processes=1, drain_timeout=0.5) as (worker, session):
        await server.run_job(session, "AJ_return", "return")
        await server.job_status(session, "AJ_return", SUCCESS)
        await server.run_job(session, "AJ_raise", "raise")
        assert (await server.job_status(session, "AJ_raise", FAILED)).error == "ValueError: the room is cursed"
        # Each was running before it ended.
        await server.job_status(session, "AJ_return", RUNNING)
        await server.job_status(session, "AJ_raise", RUNNING)

        for job_id in ("AJ_told", "AJ_drained"):
            await server.run_job(session, job_id, "hold", metadata=str(tmp_path / job_id))
            await server.job_status(session, job_id, RUNNING)
        await session.terminate("AJ_told")
        # Draining ends what does not end by itself, with its shutdown callbacks.
        async with asyncio.timeout(30):
            await worker.drain()
        for job_id, reason in (("AJ_told", "terminated by the server"), ("AJ_drained", "the host has drained")):
            await server.job_status(session, job_id, SUCCESS)
            assert (tmp_path / job_id).read_text() == f"hold: {reason}\n"


async def test_what_is_too_large_fails_its_own_job_and_nobody_elses(server: FakeLiveKit, tmp_path: Path) -> None:
    async with registered(server, num_idle_processes=1) as (_, session):
        await server.run_job(session, "AJ_hold", "hold", metadata=str(tmp_path / "AJ_hold"))
        await server.job_status(session, "AJ_hold", RUNNING)
        await server.run_job(session, "AJ_large", "return", metadata="x" * 1_200_000)
        error = (await server.job_status(session, "AJ_large", FAILED)).error
        assert "StartJob needs" in error
        # An error's text is as long as it likes, and need not be encodable.
        await server.run_job(session, "AJ_text", "raise at length")
        error = (await server.job_status(session, "AJ_text", FAILED)).error
        assert error.startswith("ValueError: \\udcffxxx")
        assert len(error) < 3000
        assert not (tmp_path / "AJ_hold").exists()


@pytest.mark.parametrize("executor", list(JobExecutorType))
async def test_a_simulated_job_without_a_server(executor: JobExecutorType) -> None:
    worker = Worker(options(None, job_executor_type=executor), config())
    async with running(worker, unregistered=True):
        async with asyncio.timeout(60):
            result = await worker.simulate_job("return")
            assert (result.status, result.error) == ("success", "")
            result = await worker.simulate_job("raise")
            assert (result.status, result.error) == ("failed", "ValueError: the room is cursed")


async def test_a_host_that_is_told_to_end_while_it_comes_up_leaves_nothing(server: FakeLiveKit) -> None:
    worker = Worker(options(server), config())
    task = asyncio.create_task(worker.run())
    await until(lambda: bool(worker.describe()["processes"]), 30.0)
    async with asyncio.timeout(30):
        await worker.aclose()
    await task
    assert not server.sessions


async def test_a_function_of_this_module_is_found_by_its_jobs(server: FakeLiveKit) -> None:
    from agents import by_room

    async with registered(server, entrypoint_fnc=by_room.entrypoint) as (_, session):
        await server.run_job(session, "AJ_1", "raise")
        assert "cursed" in (await server.job_status(session, "AJ_1", FAILED)).error
    assert ENTRYPOINT.endswith("by_room.py:entrypoint")
