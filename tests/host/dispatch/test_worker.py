"""What a worker decides, with a server and a supervisor that are fake: every option has an effect."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from fake_livekit import KEY, SECRET, FakeLiveKit
from fake_supervisor import FakeSupervisor, report
from livekit.protocol import agent, models
from workers import AGENT, ENTRYPOINT, config, options, registered, running, until

from host import dispatch
from host.config import Config, WorkerConfig
from host.errors import AuthenticationError, ConfigError, ConnectionFailedError, HostError, PortInUseError
from host.options import JobExecutorType, WorkerOptions, WorkerPermissions, WorkerType
from host.request import JobRequest
from host.worker import Worker
from inference.wire.supervision import JobUpdate

FULL, AVAILABLE = agent.WorkerStatus.WS_FULL, agent.WorkerStatus.WS_AVAILABLE
RUNNING, SUCCESS, FAILED = agent.JobStatus.JS_RUNNING, agent.JobStatus.JS_SUCCESS, agent.JobStatus.JS_FAILED


@pytest.fixture(autouse=True)
def _only_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server is told in these tests it is told at once, or never."""
    monkeypatch.setattr(dispatch, "STATUS_INTERVAL_S", 600.0)


async def get(worker: Worker, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{worker.port}{path}") as answer:
        return answer.status, await answer.text()


# --- which server, as what ------------------------------------------------------------------------


async def test_it_registers_as_its_options_say(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    permissions = WorkerPermissions(can_publish_data=False, hidden=True, can_publish_sources=("MICROPHONE",))
    async with registered(server, agent_name="helper", worker_type=WorkerType.PUBLISHER, permissions=permissions) as (
        worker,
        session,
    ):
        register = session.said("register")[0].register
        assert (register.type, register.agent_name) == (agent.JobType.JT_PUBLISHER, "helper")
        allowed = register.allowed_permissions
        assert (allowed.can_publish, allowed.can_publish_data, allowed.hidden) == (True, False, True)
        assert list(allowed.can_publish_sources) == [models.TrackSource.MICROPHONE]
        assert register.version
        described = json.loads((await get(worker, "/worker"))[1])
        assert (described["worker_type"], described["agent_name"]) == ("JT_PUBLISHER", "helper")


async def test_what_the_options_leave_open_comes_from_the_configuration(
    server: FakeLiveKit, supervisors: list[FakeSupervisor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (
        ("LIVEKIT_URL", server.url),
        ("LIVEKIT_API_KEY", KEY),
        ("LIVEKIT_API_SECRET", SECRET),
        ("ROOMFUL_CONFIG", str(tmp_path / "some.toml")),
    ):
        monkeypatch.setenv(name, value)
    (tmp_path / "some.toml").write_text('[inference]\nengines = "fake"\nmax_rooms = 3\n')
    worker = Worker(options(None))
    assert worker.max_jobs == 3
    async with running(worker):
        # The fake server has checked key and secret.
        await server.session(1, 30.0)


async def test_options_win_over_the_configuration(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    given = Config(
        inference=config().inference,
        worker=WorkerConfig(ws_url="ws://127.0.0.1:1", api_key="other", api_secret="x" * 32),
    )
    async with registered(server, given) as (worker, _):
        assert (worker.options.ws_url, worker.options.api_key, worker.options.api_secret) == (server.url, KEY, SECRET)


@pytest.mark.parametrize(
    ("missing", "variable"),
    [("ws_url", "LIVEKIT_URL"), ("api_key", "LIVEKIT_API_KEY"), ("api_secret", "LIVEKIT_API_SECRET")],
)
async def test_a_server_that_is_not_named_is_asked_for(server: FakeLiveKit, missing: str, variable: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable} is not set"):
        await Worker(options(server, **{missing: ""}), config()).run()


async def test_a_wrong_option_is_named_at_once(server: FakeLiveKit) -> None:
    with pytest.raises(ConfigError, match="drain_timeout"):
        Worker(options(server, drain_timeout=-1.0), config())
    with pytest.raises(ConfigError, match="expected ws://"):
        await Worker(options(server, ws_url="localhost"), config()).run()


def test_modes_have_their_defaults() -> None:
    production = WorkerOptions(entrypoint_fnc=ENTRYPOINT).resolved(16)
    assert (production.load_threshold, production.num_idle_processes, production.port) == (0.7, 4, 8081)
    assert (production.log_level, WorkerOptions(entrypoint_fnc=ENTRYPOINT).resolved(2).num_idle_processes) == (
        "INFO",
        2,
    )
    dev = WorkerOptions(entrypoint_fnc=ENTRYPOINT, dev=True).resolved(16)
    assert (dev.load_threshold, dev.num_idle_processes, dev.port, dev.log_level) == (float("inf"), 0, 0, "DEBUG")
    chosen = WorkerOptions(entrypoint_fnc=ENTRYPOINT, dev=True, port=9, load_threshold=0.5, num_idle_processes=3)
    assert (chosen.resolved(1).port, chosen.resolved(1).load_threshold, chosen.resolved(1).num_idle_processes) == (
        9,
        0.5,
        3,
    )


async def test_the_supervisor_gets_what_is_its(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    given: dict[str, Any] = {
        "job_executor_type": JobExecutorType.THREAD,
        "num_idle_processes": 2,
        "initialize_process_timeout": 11.0,
        "shutdown_process_timeout": 12.0,
        "ping_interval": 1.0,
        "ping_timeout": 13.0,
        "high_ping_threshold": 0.25,
        "job_memory_warn_mb": 100.0,
        "job_memory_limit_mb": 200.0,
        "log_level": "ERROR",
    }
    async with registered(server, prewarm_fnc=f"{AGENT}:prewarm", **given):
        told = supervisors[0].options
        assert {name: getattr(told, name) for name in given} == given
        assert (told.entrypoint, told.prewarm) == (ENTRYPOINT, f"{AGENT}:prewarm")
        assert Path(told.runtime_dir).is_dir()
    assert not Path(told.runtime_dir).exists()


async def test_the_port_is_bound_before_anything_is_started(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=str(port)):
            await Worker(options(server, port=port), config()).run()
    assert not supervisors
    assert not server.attempts


# --- admission ------------------------------------------------------------------------------------


async def test_max_jobs_holds(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    async with registered(server, max_jobs=1) as (worker, session):
        assert worker.max_jobs == 1
        await server.run_job(session, "AJ_1")
        told = await server.full(session)
        assert told.load == 1.0
        await session.offer("AJ_2")
        assert not (await server.said(session, "availability", 2)).availability.available
        # The end of a job is told at once.
        (await supervisors[0].job("AJ_1")).finish()
        await server.full(session, full=False)
        assert worker.active_jobs == 0


async def test_without_max_jobs_the_slots_hold(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    async with registered(server, config(max_rooms=2)) as (worker, session):
        assert worker.max_jobs == 2
        await server.run_job(session, "AJ_1")
        await server.run_job(session, "AJ_2")
        await server.full(session)


async def test_a_request_function_by_name_and_one_in_hand(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    async def in_hand(request: JobRequest) -> None:
        await request.reject(terminate=False)

    async with registered(server, request_fnc=f"{AGENT}:request_fnc") as (_, session):
        await session.offer("AJ_1", "forbidden")
        assert (await server.said(session, "availability")).availability.terminate
        await server.run_job(session, "AJ_2")
        start = (await supervisors[0].job("AJ_2")).start
        assert (start.identity, start.name, start.token, start.url) == ("door", "Door", "token-AJ_2", server.url)
        assert (start.worker_id, agent.Job.FromString(start.job).room.name) == ("AW_1", "hold")
    async with registered(server, request_fnc=in_hand) as (_, session):
        await session.offer("AJ_3", "hold")
        refused = (await server.said(session, "availability")).availability
        assert (refused.available, refused.terminate) == (False, False)


@pytest.mark.parametrize("option", ["request_fnc", "load_fnc"])
async def test_functions_that_cannot_be_used_are_named(server: FakeLiveKit, option: str) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.py"):
        await Worker(options(server, **{option: "nowhere.py:f"}), config()).run()
    wrong = {"request_fnc": lambda request: None, "load_fnc": JobRequest.accept}[option]
    with pytest.raises(ConfigError, match=f"{option}: .* must be a"):
        await Worker(options(server, **{option: wrong}), config()).run()


async def test_a_load_function_and_its_threshold_decide(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    seen: dict[str, Any] = {}
    load = 0.5

    def load_fnc(worker: Worker) -> float:
        seen.update(worker=worker, parts=worker.load_parts, thread=threading.current_thread().name)
        return load

    async with registered(server, load_fnc=load_fnc, load_threshold=0.6) as (worker, session):
        # It was asked before the registration.
        assert seen["worker"] is worker
        assert seen["thread"] == "load-fnc"
        told = (await server.said(session, "update_worker")).update_worker
        assert (told.status, told.load) == (AVAILABLE, pytest.approx(0.5 / 0.6 * 0.7))
        assert worker.load == 0.5
        load = 0.6
        # At an idle host, too.
        await server.full(session)
        await session.offer("AJ_1")
        assert not (await server.said(session, "availability")).availability.available
        described = json.loads((await get(worker, "/worker"))[1])
        assert described["load"]["value"] == 0.6
        assert described["admission"] == {"accepts": False, "reason": "load 0.60 is not below 0.60"}
        load = 0.1
        await server.full(session, full=False)


async def test_slots_that_jobs_hold_besides_their_own_are_counted(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    async with registered(server) as (worker, session):
        await server.full(session, full=False)
        supervisors[0].inference_report = report(rooms=4)
        await server.full(session)
        assert worker.describe()["admission"]["reason"] == "no inference slot is free: jobs hold 4 besides one each"
        supervisors[0].inference_report = report(rooms=0)
        await server.full(session, full=False)


async def test_while_inference_is_away_nothing_is_taken_and_jobs_go_on(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    async with registered(server) as (worker, session):
        await server.run_job(session, "AJ_1")
        job = await supervisors[0].job("AJ_1")
        assert await get(worker, "/") == (200, "OK")
        supervisors[0].inference_ready, supervisors[0].inference_report = False, None
        told = await server.full(session)
        assert told.job_count == 1
        await session.offer("AJ_2")
        assert not (await server.said(session, "availability", 2)).availability.available
        assert await get(worker, "/") == (503, "inference process not running")
        assert not job.shutdowns
        supervisors[0].inference_ready = True
        await server.full(session, full=False)
        assert await get(worker, "/") == (200, "OK")


# --- jobs -----------------------------------------------------------------------------------------


async def test_how_a_job_ended_is_told_with_its_error(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    async with registered(server) as (worker, session):
        await server.run_job(session, "AJ_1")
        await server.job_status(session, "AJ_1", RUNNING)
        (await supervisors[0].job("AJ_1")).finish()
        assert (await server.job_status(session, "AJ_1", SUCCESS)).error == ""
        await server.run_job(session, "AJ_2")
        (await supervisors[0].job("AJ_2")).finish("failed", "ValueError: no")
        assert (await server.job_status(session, "AJ_2", FAILED)).error == "ValueError: no"
        supervisors[0].refuses = "no job process was ready within 10 s"
        await server.run_job(session, "AJ_3")
        assert (await server.job_status(session, "AJ_3", FAILED)).error == "no job process was ready within 10 s"
        await server.full(session, full=False)
        assert 'roomful_jobs_ended_total{status="failed"} 1.0' in (await get(worker, "/metrics"))[1]


async def test_the_server_ends_a_job(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    async with registered(server) as (_, session):
        await server.run_job(session, "AJ_1")
        job = await supervisors[0].job("AJ_1")
        await session.terminate("AJ_unknown")
        await session.terminate("AJ_1")
        await server.job_status(session, "AJ_1", SUCCESS)
        assert job.shutdowns == ["terminated by the server"]


async def test_after_a_reconnection_jobs_and_what_was_not_said_are_told(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    async with registered(server) as (worker, first):
        await server.run_job(first, "AJ_1")
        await server.run_job(first, "AJ_2")
        await server.job_status(first, "AJ_2", RUNNING)
        server.status = 503
        await first.ws.close()
        await server.wait(lambda: len(server.attempts) >= 2)
        # It ends while nobody listens, and does not wait for anybody.
        (await supervisors[0].job("AJ_2")).finish("failed", "it broke")
        server.status = 101
        second = await server.session(2, 15.0)
        assert (await server.said(second, "migrate_job")).migrate_job.job_ids == ["AJ_1"]
        assert (await server.job_status(second, "AJ_2", FAILED)).error == "it broke"
        assert (await server.said(second, "update_worker")).update_worker.job_count == 1
        assert worker.worker_id == "AW_2"
        assert not supervisors[0].jobs["AJ_1"].shutdowns


# --- the end --------------------------------------------------------------------------------------


async def test_draining_lets_jobs_finish_and_takes_no_more(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    async with registered(server) as (worker, session):
        await server.run_job(session, "AJ_1")
        job = await supervisors[0].job("AJ_1")
        draining = asyncio.create_task(worker.drain())
        assert (await server.full(session)).job_count == 1
        await session.offer("AJ_2")
        assert not (await server.said(session, "availability", 2)).availability.available
        assert worker.describe()["draining"]
        assert not job.shutdowns
        assert not draining.done()
        job.finish()
        await server.job_status(session, "AJ_1", SUCCESS)
        async with asyncio.timeout(5):
            await draining


async def test_draining_keeps_the_promises_that_were_given_and_gives_no_more(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def request_fnc(request: JobRequest) -> None:
        if request.id == "AJ_asked":
            asked.set()
            await go_on.wait()
        await request.accept()

    async with registered(server, request_fnc=request_fnc) as (worker, session):
        await session.offer("AJ_promised")
        assert (await server.said(session, "availability")).availability.available
        await session.offer("AJ_asked")
        await asked.wait()
        draining = asyncio.create_task(worker.drain())
        await server.full(session)
        go_on.set()
        assert not (await server.said(session, "availability", 2)).availability.available
        assert not draining.done()
        await session.assign("AJ_promised")
        job = await supervisors[0].job("AJ_promised")
        assert not job.shutdowns
        job.finish()
        await server.job_status(session, "AJ_promised", SUCCESS)
        async with asyncio.timeout(5):
            await draining


async def test_what_has_not_finished_in_drain_timeout_is_ended(
    server: FakeLiveKit, supervisors: list[FakeSupervisor], caplog: pytest.LogCaptureFixture
) -> None:
    async with registered(server, drain_timeout=0.2) as (worker, session):
        await server.run_job(session, "AJ_1")
        job = await supervisors[0].job("AJ_1")
        async with asyncio.timeout(5):
            await worker.drain()
        assert job.shutdowns == ["the host has drained"]
        # While there was a connection.
        await server.job_status(session, "AJ_1", SUCCESS)
    assert "1 jobs have not ended in 0 s" in caplog.text


async def test_closing_does_not_wait_for_jobs(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    async with registered(server) as (worker, session):
        await server.run_job(session, "AJ_1")
        job = await supervisors[0].job("AJ_1")
        draining = asyncio.create_task(worker.drain())
        await server.full(session)
        async with asyncio.timeout(5):
            await worker.aclose("enough")
            await draining
        assert job.shutdowns == ["enough"]


async def test_a_job_that_is_assigned_while_the_others_end_fails_and_is_told(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    async with registered(server) as (worker, session):
        supervisors[0].stubborn = True
        await server.run_job(session, "AJ_1")
        job = await supervisors[0].job("AJ_1")
        await session.offer("AJ_2")
        assert (await server.said(session, "availability", 2)).availability.available
        closing = asyncio.create_task(worker.aclose())
        await until(lambda: bool(job.shutdowns))
        await session.assign("AJ_2")
        assert "the host is stopping" in (await server.job_status(session, "AJ_2", FAILED)).error
        assert "AJ_2" not in supervisors[0].jobs
        assert not closing.done()
        job.finish()
        await server.job_status(session, "AJ_1", SUCCESS)
        async with asyncio.timeout(5):
            await closing


async def test_a_supervisor_that_fails_ends_the_worker(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    with pytest.raises(HostError, match="again and again"):  # noqa: PT012
        async with registered(server) as (_, session):
            await server.run_job(session, "AJ_1")
            job = await supervisors[0].job("AJ_1")
            supervisors[0].failure.set_result(HostError("it fails again and again"))
            await server.job_status(session, "AJ_1", SUCCESS)
            assert job.shutdowns == ["the host is stopping"]


# --- a server that does not want us ---------------------------------------------------------------


async def test_a_server_that_refuses_the_registration_is_given_up_after_max_retry(
    server: FakeLiveKit, supervisors: list[FakeSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []

    def delay(failures: int) -> float:
        delays.append(real(failures))
        return 0.0

    real = dispatch.retry_delay
    monkeypatch.setattr(dispatch, "retry_delay", delay)
    server.register = False
    with pytest.raises(ConnectionFailedError, match=r"refused the registration.*\(4 attempts\)"):
        await Worker(options(server, max_retry=3), config()).run()
    # With back-off: the websocket alone counts for nothing.
    assert (len(server.sessions), delays) == (4, [0, 2, 4])


async def test_a_wrong_secret_ends_it_at_once(server: FakeLiveKit, supervisors: list[FakeSupervisor]) -> None:
    server.status = 401
    with pytest.raises(AuthenticationError, match=KEY):
        await Worker(options(server), config()).run()
    assert len(server.attempts) == 1


async def test_rooms_outlive_a_server_that_stays_away(
    server: FakeLiveKit, supervisors: list[FakeSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "retry_delay", lambda failures: 0.0)
    with pytest.raises(ConnectionFailedError, match="HTTP 503"):  # noqa: PT012
        async with registered(server, max_retry=1) as (worker, session):
            await server.run_job(session, "AJ_1")
            job = await supervisors[0].job("AJ_1")
            server.status = 503
            await session.ws.close()
            await server.wait(lambda: len(server.attempts) >= 3)
            await until(lambda: worker.draining)
            assert await get(worker, "/") == (503, "failed to connect to livekit")
            assert not job.shutdowns
            job.finish()


# --- jobs without dispatch ------------------------------------------------------------------------


async def test_a_simulated_job_joins_with_a_token_of_its_own(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    updates: list[str] = []

    async def on_update(update: JobUpdate) -> None:
        updates.append(update.status)

    worker = Worker(options(server, worker_type=WorkerType.PARTICIPANT, agent_name="helper"), config())
    async with running(worker, unregistered=True):
        simulated = asyncio.create_task(worker.simulate_job("lobby", "caller", metadata="m", on_update=on_update))
        await until(lambda: bool(supervisors and supervisors[0].jobs))
        (job,) = supervisors[0].jobs.values()
        start = job.start
        described = agent.Job.FromString(start.job)
        assert (start.transport, start.url, start.room) == ("livekit", server.url, "lobby")
        assert (described.type, described.participant.identity, described.metadata, described.agent_name) == (
            agent.JobType.JT_PARTICIPANT,
            "caller",
            "m",
            "helper",
        )
        claims = jwt.decode(start.token, SECRET, algorithms=["HS256"])
        assert (claims["iss"], claims["sub"], claims["kind"]) == (KEY, start.identity, "agent")
        assert (claims["video"]["room"], claims["video"]["roomJoin"]) == ("lobby", True)
        job.finish("failed", "it broke")
        result = await simulated
        assert (result.status, result.error, updates) == ("failed", "it broke", ["running", "failed"])
    # Nothing was said to the server.
    assert not server.attempts


async def test_a_simulated_job_in_a_local_room_needs_no_server(supervisors: list[FakeSupervisor]) -> None:
    worker = Worker(options(None), config())
    async with running(worker, unregistered=True):
        simulated = asyncio.create_task(worker.simulate_job("lobby", waves=["a.wav"], out="o.wav", record="r.wav"))
        await until(lambda: bool(supervisors and supervisors[0].jobs))
        (job,) = supervisors[0].jobs.values()
        start = job.start
        assert (start.transport, start.waves, start.out, start.record) == ("local", ("a.wav",), "o.wav", "r.wav")
        described = json.loads((await get(worker, "/worker"))[1])
        assert (described["active_jobs"], described["worker_status"], described["worker_id"]) == (1, "", "")
        assert await get(worker, "/") == (200, "OK")
        job.finish()
        assert (await simulated).status == "success"


async def test_a_simulated_job_needs_a_place_like_any_other(supervisors: list[FakeSupervisor]) -> None:
    worker = Worker(options(None, max_jobs=1), config())
    async with running(worker, unregistered=True):
        first = asyncio.create_task(worker.simulate_job("one"))
        await until(lambda: bool(supervisors and supervisors[0].jobs))
        with pytest.raises(HostError, match="all 1 rooms are taken"):
            await worker.simulate_job("two")
        next(iter(supervisors[0].jobs.values())).finish()
        assert (await first).status == "success"
    with pytest.raises(HostError, match="the host has ended"):
        await worker.simulate_job("three")
    with pytest.raises(ConfigError, match="name of a room"):
        await worker.simulate_job("")
    with pytest.raises(ConfigError, match="LIVEKIT_API_KEY"):
        await Worker(options(None, ws_url="ws://127.0.0.1:1"), config()).simulate_job("room")


async def test_a_worker_runs_once(supervisors: list[FakeSupervisor], caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(options(None), config())
    with caplog.at_level(logging.WARNING):
        async with running(worker, unregistered=True):
            await until(lambda: bool(supervisors))
            with pytest.raises(RuntimeError, match="once"):
                await worker.run()
    assert not caplog.records


async def test_a_worker_that_was_closed_before_it_ran_starts_nothing(
    server: FakeLiveKit, supervisors: list[FakeSupervisor]
) -> None:
    worker = Worker(options(server), config())
    await worker.drain()
    await worker.run()
    assert not supervisors
    with pytest.raises(HostError, match="the host has ended"):
        await worker.simulate_job("room")
