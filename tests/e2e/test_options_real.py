"""Options whose effect only a real host shows: its exit, its ports, its log, its processes, the server's records."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from caller import until
from dispatching import caller_in, dispatch
from holdings import is_job
from host_process import HostProcess, fake_engines, host_serve
from livekit_server import KEY, SECRET, LiveKitServer, free_port, livekit_server
from records import ServerJobs, job_pids

pytestmark = pytest.mark.e2e

AGENT = str(Path(__file__).parent / "agents" / "orders.py")


def job_processes(host: HostProcess) -> list[psutil.Process]:
    return [process for process in host.processes() if is_job(process)]


def listening(host: HostProcess) -> list[tuple[str, int]]:
    """Where the supervisor takes connections over TCP."""
    found = psutil.Process(host.process.pid).net_connections("tcp")
    return sorted({(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN})


# --- ending --------------------------------------------------------------------------------------


async def test_after_drain_timeout_the_rooms_are_ended_in_order(
    livekit: LiveKitServer, tmp_path: Path, room_name: str
) -> None:
    jobs, release = ServerJobs(livekit), tmp_path / "release"
    config = fake_engines(2, drain_timeout=2.0)
    with host_serve(livekit, tmp_path / "host", AGENT, "--agent-name", "drained", config=config) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name) as caller:
            await dispatch(livekit, room_name, f"linger {release}", "drained")
            await caller.wait(lambda: bool(caller.agents()), 20, "the agent")
            host.processes()
            host.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await until(lambda: "ending because" in host.log, 20, "the shutdown callback")
            assert time.monotonic() - began >= 1.9, "the room had its time"
            assert host.process.poll() is None, "callbacks are waited for"
            release.touch()
            assert await asyncio.to_thread(host.wait_exit, 20) == 0
        assert "ended in order" in host.log
        assert jobs.endings(room_name) == [("JS_SUCCESS", "")]
        assert not host.left_over()
        assert not host.runtime_folders()


async def test_after_shutdown_process_timeout_a_job_is_killed(
    livekit: LiveKitServer, tmp_path: Path, room_name: str
) -> None:
    jobs = ServerJobs(livekit)
    config = fake_engines(2, shutdown_process_timeout=1.0)
    with host_serve(livekit, tmp_path / "host", AGENT, "--agent-name", "late", config=config) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name) as caller:
            await dispatch(livekit, room_name, f"linger {tmp_path / 'never'}", "late")
            await caller.wait(lambda: bool(caller.agents()), 20, "the agent")
            host.processes()
            host.process.send_signal(signal.SIGTERM)
            await until(lambda: "draining" in host.log, 10, "draining")
            began = time.monotonic()
            host.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(host.wait_exit, 30) == 0
            print(f"ended {time.monotonic() - began:.1f} s after the second signal")  # noqa: T201
        (pid,) = job_pids(host, room_name)
        # Where it hung is in the log, as before every kill for a fault.
        (killed,) = [
            r["message"] for r in host.records(level="ERROR") if r.get("pid") == pid and "killed" in r["message"]
        ]
        assert "orders.py" in killed
        ((status, error),) = jobs.endings(room_name)
        assert status == "JS_FAILED"
        assert "SIGKILL" in error
        assert not host.left_over()
        assert not host.runtime_folders()


async def test_sigquit_ends_at_once(livekit: LiveKitServer, tmp_path: Path, room_name: str) -> None:
    jobs = ServerJobs(livekit)
    config = fake_engines(2)
    with host_serve(livekit, tmp_path / "host", AGENT, "--agent-name", "quick", config=config) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name) as caller:
            await dispatch(livekit, room_name, "stay", "quick")
            await caller.wait_for_speech(20)
            began = time.monotonic()
            assert await asyncio.to_thread(host.stop, 20, signal.SIGQUIT) == 0
            print(f"ended in {time.monotonic() - began:.1f} s")  # noqa: T201
            await caller.wait(lambda: bool(caller.left), 10, "the agent to leave")
        assert jobs.endings(room_name) == [("JS_SUCCESS", "")]
        assert not host.left_over()
        assert not host.runtime_folders()


# --- the connection ------------------------------------------------------------------------------


def test_flags_win_over_the_environment(livekit: LiveKitServer, tmp_path: Path) -> None:
    wrong = {
        "LIVEKIT_API_KEY": "nobody",
        "LIVEKIT_API_SECRET": "another-secret-of-thirty-two-characters",
        "LIVEKIT_AGENT_NAME": "from-the-environment",
    }
    flags = ("--url", livekit.url, "--api-key", KEY, "--api-secret", SECRET, "--agent-name", "from-a-flag")
    nowhere = f"ws://127.0.0.1:{free_port()}"
    with host_serve(nowhere, tmp_path, AGENT, *flags, config=fake_engines(), secrets=wrong) as host:
        host.wait_registered(60)
        assert host.worker()["agent_name"] == "from-a-flag"
        assert host.stop() == 0
        assert SECRET not in host.log


def test_the_environment_wins_over_the_file(livekit: LiveKitServer, tmp_path: Path) -> None:
    config = fake_engines(ws_url="ws://127.0.0.1:9", api_key="nobody", api_secret="x" * 32, agent_name="from-the-file")
    variables = {"LIVEKIT_AGENT_NAME": "from-the-environment"}
    with host_serve(livekit, tmp_path, AGENT, config=config, secrets=variables) as host:
        host.wait_registered(60)
        assert host.worker()["agent_name"] == "from-the-environment"
        assert host.stop() == 0


def test_the_file_alone_is_enough(livekit: LiveKitServer, tmp_path: Path) -> None:
    config = fake_engines(ws_url=livekit.url, api_key=KEY, api_secret=SECRET, agent_name="from-the-file")
    nothing = {"LIVEKIT_API_KEY": "", "LIVEKIT_API_SECRET": ""}
    with host_serve("", tmp_path, AGENT, config=config, secrets=nothing) as host:
        host.wait_registered(60)
        assert host.worker()["agent_name"] == "from-the-file"
        assert host.stop() == 0


def test_a_server_that_stays_away_ends_the_host(tmp_path: Path) -> None:
    """``max_retry`` counts the tries after the first, and anew after a registration."""
    (tmp_path / "server").mkdir()
    with livekit_server(tmp_path / "server") as server:
        config = fake_engines(max_retry=1)
        with host_serve(server, tmp_path / "host", AGENT, config=config) as host:
            host.wait_registered(60)
            server.process.kill()
            server.process.wait()
            assert host.wait_exit(60) == 6
            assert server.url in host.log
            assert "error:" in host.log
            assert "Traceback" not in host.log
            assert not host.left_over()
            assert not host.runtime_folders()


# --- the HTTP port -------------------------------------------------------------------------------


def test_host_and_port_of_the_health_check(livekit: LiveKitServer, tmp_path: Path) -> None:
    port = free_port()
    config = fake_engines(host="127.0.0.1", port=port)
    with host_serve(livekit, tmp_path, AGENT, config=config, port=None) as host:
        host.wait_registered(60)
        host.port = port
        assert host.get("/") == (200, "OK")
        assert host.get("/worker")[0] == 200
        assert host.get("/metrics")[0] == 200
        assert listening(host) == [("127.0.0.1", port)]
        assert host.stop() == 0


# --- the log -------------------------------------------------------------------------------------


async def test_json_logs(livekit: LiveKitServer, tmp_path: Path, room_name: str) -> None:
    jobs = ServerJobs(livekit)
    flags = ("--agent-name", "json", "--log-format", "json")
    with host_serve(livekit, tmp_path / "host", AGENT, *flags, config=fake_engines()) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name):
            await dispatch(livekit, room_name, "raise two\nlines", "json")
            await until(lambda: bool(jobs.endings(room_name)), 20, "the job's end")
        assert host.stop() == 0
        (job_id,) = jobs.assigned(room_name)
        # What a person is told on a terminal (that it drains) is no record.
        lines = [line for line in host.log.splitlines() if not line.startswith("draining")]
        records = [json.loads(line) for line in lines]
        for record in records:
            assert {"timestamp", "level", "logger", "message"} <= record.keys(), record
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|\+00:00)", record["timestamp"]), record
        of_job = [record for record in records if record.get("job_id") == job_id]
        assert {record["room"] for record in of_job} == {room_name}
        (pid,) = job_pids(host, room_name)
        from_child = [record for record in of_job if record["logger"].startswith("host.job")]
        assert from_child
        assert {record["pid"] for record in from_child} == {pid}
        (failure,) = [record for record in from_child if "exception" in record]
        assert "ValueError: two" in failure["exception"]
        assert failure["level"] == "ERROR"


def test_text_logs_and_the_log_level(livekit: LiveKitServer, tmp_path: Path) -> None:
    flags = ("--log-format", "text", "--log-level", "WARNING")
    with host_serve(livekit, tmp_path / "quiet", AGENT, *flags, config=fake_engines()) as host:
        host.wait(host.healthy, 60, "the host")
        assert not re.search(r"\b(INFO|DEBUG)\b", host.log)
        assert host.stop() == 0
    flags = ("--log-format", "text", "--log-level", "DEBUG")
    with host_serve(livekit, tmp_path / "loud", AGENT, *flags, config=fake_engines()) as host:
        host.wait_registered(60)
        assert re.search(r"\bINFO\b", host.log)
        assert re.search(r"\bDEBUG\b", host.log)
        assert not any(line.startswith("{") for line in host.log.splitlines())
        assert host.stop() == 0


# --- development ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flag", "environment"])
async def test_development(livekit: LiveKitServer, tmp_path: Path, room_name: str, how: str) -> None:
    """No idle processes, no threshold, any free port, everything in a readable log; a signal does not wait."""
    jobs = ServerJobs(livekit)
    name = f"dev-{how}"
    flags = ("--agent-name", name, *(("--dev",) if how == "flag" else ()))
    variables = {"LIVEKIT_DEV_MODE": "1"} if how == "environment" else {}
    config = '[inference]\nengines = "fake"\n'
    with host_serve(livekit, tmp_path / "host", AGENT, *flags, config=config, secrets=variables, port=None) as host:
        host.wait_registered(60)
        ((_, host.port),) = listening(host)
        described = host.worker()
        assert described["dev"] is True
        assert described["load_threshold"] is None
        assert re.search(r"\bDEBUG\b", host.log)
        assert not host.records(), "a readable log"
        assert not job_processes(host)
        async with caller_in(livekit, room_name) as caller:
            await dispatch(livekit, room_name, "stay", name)
            await caller.wait_for_speech(30)
            assert len(job_processes(host)) == 1
            began = time.monotonic()
            assert await asyncio.to_thread(host.stop, 20) == 0
            print(f"ended in {time.monotonic() - began:.1f} s with a room open")  # noqa: T201
            await caller.wait(lambda: bool(caller.left), 10, "the agent to leave")
        assert jobs.endings(room_name) == [("JS_SUCCESS", "")]
        assert not host.left_over()
        assert not host.runtime_folders()


# --- jobs ----------------------------------------------------------------------------------------


async def test_idle_processes_and_max_jobs(livekit: LiveKitServer, tmp_path: Path, room_name: str) -> None:
    jobs, release = ServerJobs(livekit), tmp_path / "release"
    flags = ("--agent-name", "few", "--num-idle-processes", "3", "--max-jobs", "1")
    with host_serve(livekit, tmp_path / "host", AGENT, *flags, config=fake_engines(4)) as host:
        host.wait_registered(60)
        await until(lambda: len(job_processes(host)) == 3, 20, "three idle processes")
        await dispatch(livekit, room_name, f"until {release}", "few")
        await until(lambda: host.worker()["worker_status"] == "WS_FULL", 20, "the host to be full")
        unserved = jobs.unserved("few")
        await dispatch(livekit, f"{room_name}-2", "return", "few")
        await until(lambda: jobs.unserved("few") > unserved, 20, "the server to find nobody")
        assert host.worker()["active_jobs"] == 1
        release.touch()
        await until(lambda: bool(jobs.endings(room_name)), 20, "the end of the first")
        await until(lambda: host.worker()["worker_status"] == "WS_AVAILABLE", 20, "a free place")
        await dispatch(livekit, f"{room_name}-3", "return", "few")
        await until(lambda: bool(jobs.endings(f"{room_name}-3")), 20, "the end of the next")
        assert host.stop() == 0


async def test_jobs_in_threads(livekit: LiveKitServer, tmp_path: Path, room_name: str) -> None:
    """For a debugger: one process has everything but the inference."""
    jobs = ServerJobs(livekit)
    rooms = [f"{room_name}-{number}" for number in range(2)]
    config = fake_engines(2, job_executor_type="thread")
    with host_serve(livekit, tmp_path / "host", AGENT, "--agent-name", "threads", config=config) as host:
        host.wait_registered(60)
        async with caller_in(livekit, rooms[0]) as first, caller_in(livekit, rooms[1]) as second:
            await dispatch(livekit, rooms[0], "stay", "threads")
            await dispatch(livekit, rooms[1], "talk", "threads")
            await first.wait_for_speech(20)
            await second.wait_for_speech(20)
            assert len(host.processes()) == 2, "the supervisor and the inference process"
            assert host.worker()["active_jobs"] == 2
        for room in rooms:
            await until(lambda room=room: bool(jobs.endings(room)), 15, "the job's end")
            assert jobs.endings(room) == [("JS_SUCCESS", "")]
        await until(lambda: host.worker()["worker_status"] == "WS_AVAILABLE", 10, "a free place")
        await dispatch(livekit, f"{room_name}-raises", "raise no such customer", "threads")
        await until(lambda: bool(jobs.endings(f"{room_name}-raises")), 15, "the end of a job that raises")
        assert jobs.endings(f"{room_name}-raises") == [("JS_FAILED", "ValueError: no such customer")]
        assert host.stop() == 0
        assert not host.left_over()
        assert not host.runtime_folders()
