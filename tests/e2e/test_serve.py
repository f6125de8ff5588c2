"""``host serve`` against a real livekit-server: jobs come, run, end, and are recorded. No models: an agent's tone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from caller import until
from dispatching import caller_in, dispatch
from host_process import FAKE_ENGINES, HostProcess, host_serve
from livekit import api
from livekit_server import LiveKitServer, free_port, livekit_server
from records import endings, job_pids, job_results

pytestmark = pytest.mark.e2e

AGENT = Path(__file__).parent / "agents" / "tone.py"
ROOMS = 2


@pytest.fixture(scope="module")
def host(livekit: LiveKitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    folder = tmp_path_factory.mktemp("host")
    config = FAKE_ENGINES.format(max_rooms=ROOMS)
    with host_serve(livekit, folder, str(AGENT), "--agent-name", "tone", config=config) as host:
        host.wait_registered(60)
        yield host


async def test_a_job_is_taken_and_ends_with_success_when_the_caller_leaves(
    livekit: LiveKitServer, host: HostProcess, room_name: str
) -> None:
    before = host.worker()
    assert before["agent_name"] == "tone"
    assert before["worker_type"] == "JT_ROOM"
    assert before["active_jobs"] == 0
    assert host.get("/") == (200, "OK")
    async with caller_in(livekit, room_name, "observer"):
        async with caller_in(livekit, room_name) as caller:
            await dispatch(livekit, room_name)
            await caller.wait_for_speech(20)
            await caller.wait(lambda: bool(caller.states), 5, "the agent's state")
            assert host.worker()["active_jobs"] == 1
            (agent,) = caller.agents()
            assert agent.identity.startswith("agent-AJ_")
            assert agent.attributes["lk.agent.name"] == "tone"
        await until(lambda: bool(endings(livekit, room_name)), 10, "the job's end")
        # The room goes on, so it is the job's own word and not the room's end that the server recorded.
        assert endings(livekit, room_name) == [("JS_SUCCESS", "")]
        (pid,) = job_pids(host, room_name)
        await until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the job's process to be gone")
        await until(lambda: host.worker()["active_jobs"] == 0, 5, "the host to be idle")
        assert not host.memfds(host.inference().pid)


async def test_deleting_the_dispatch_ends_the_job(livekit: LiveKitServer, host: HostProcess, room_name: str) -> None:
    async with caller_in(livekit, room_name) as caller:
        dispatch_id = await dispatch(livekit, room_name, "session")
        await caller.wait_for_speech(20)
        async with livekit.api() as server:
            await server.agent_dispatch.delete_dispatch(dispatch_id, room_name)
        # The server first waits for what else the dispatch may have started.
        await caller.wait(lambda: bool(caller.left), 15, "the agent to leave")
        await until(lambda: host.worker()["active_jobs"] == 0, 10, "the host to be idle")
    assert "the server ends the job" in host.log
    # The agent left by itself and in order; 3 s later the server would have thrown it out.
    (closing,) = [r for r in livekit.log_lines("participant closing") if r["participant"] == caller.left[0]]
    assert closing["reason"] == "CLIENT_REQUEST_LEAVE"
    assert endings(livekit, room_name) == [("JS_SUCCESS", "")]


async def test_a_room_that_ends_before_a_caller_comes_is_no_failure(
    livekit: LiveKitServer, host: HostProcess, room_name: str
) -> None:
    async with livekit.api() as server:
        await server.room.create_room(api.CreateRoomRequest(name=room_name))
        await dispatch(livekit, room_name, "session")
        await until(
            lambda: any(r["room"] == room_name for r in livekit.log_lines("participant active")), 20, "the agent"
        )
        await server.room.delete_room(api.DeleteRoomRequest(room=room_name))
    await until(lambda: host.worker()["active_jobs"] == 0, 10, "the host to be idle")
    assert job_results(host, room_name) == ["success"]


async def test_an_agent_that_raises_is_recorded_as_failed(
    livekit: LiveKitServer, host: HostProcess, room_name: str
) -> None:
    async with caller_in(livekit, room_name):
        await dispatch(livekit, room_name, "raise")
        await until(lambda: bool(endings(livekit, room_name)), 20, "the job's end")
    assert endings(livekit, room_name) == [("JS_FAILED", "ValueError: as the metadata asked")]


async def test_a_job_process_that_is_killed_is_recorded_as_failed(
    livekit: LiveKitServer, host: HostProcess, room_name: str
) -> None:
    async with caller_in(livekit, room_name) as caller:
        await dispatch(livekit, room_name)
        await caller.wait_for_speech(20)
        (pid,) = job_pids(host, room_name)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: bool(endings(livekit, room_name)), 20, "the job's end")
        ((status, error),) = endings(livekit, room_name)
        assert status == "JS_FAILED"
        assert "SIGKILL" in error
        await until(lambda: host.worker()["active_jobs"] == 0, 10, "the host to be idle")
    assert host.get("/") == (200, "OK")


def unserved(livekit: LiveKitServer) -> list[dict[str, object]]:
    """The rooms' jobs for this host's agent that the server found nobody for."""
    requests = livekit.log_lines("failed to send job request")
    return [record for record in requests if (record.get("agentName"), record.get("jobType")) == ("tone", "JT_ROOM")]


async def test_no_more_rooms_than_there_are_slots(livekit: LiveKitServer, host: HostProcess, room_name: str) -> None:
    rooms = [f"{room_name}-{number}" for number in range(ROOMS + 1)]
    async with (
        caller_in(livekit, rooms[0]) as first,
        caller_in(livekit, rooms[1]) as second,
        caller_in(livekit, rooms[2]),
    ):
        await dispatch(livekit, rooms[0])
        await dispatch(livekit, rooms[1])
        await first.wait_for_speech(20)
        await second.wait_for_speech(20)
        assert host.worker()["worker_load"] == 1.0
        before = len(unserved(livekit))
        await dispatch(livekit, rooms[2])
        await until(lambda: len(unserved(livekit)) > before, 20, "the server to find nobody for the third room")
        assert host.worker()["active_jobs"] == ROOMS
        await first.hang_up()
        await until(lambda: host.worker()["active_jobs"] == ROOMS - 1, 10, "a free place")
        # A place that is free again is taken again.
        async with caller_in(livekit, f"{room_name}-again") as again:
            await dispatch(livekit, f"{room_name}-again")
            await again.wait_for_speech(20)


async def test_sigterm_lets_the_room_finish_and_leaves_nothing(
    livekit: LiveKitServer, tmp_path: Path, room_name: str
) -> None:
    config = FAKE_ENGINES.format(max_rooms=1)
    with host_serve(livekit, tmp_path / "host", str(AGENT), "--agent-name", "draining", config=config) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name) as caller:
            await dispatch(livekit, room_name, agent="draining")
            await caller.wait_for_speech(20)
            host.processes()
            host.process.send_signal(signal.SIGTERM)
            await until(lambda: "draining" in host.log, 5, "draining")
            assert host.worker()["worker_load"] == 1.0
            silence_before = len(caller.heard)
            await caller.wait(lambda: len(caller.heard) > silence_before + 32_000, 10, "a second more")
            assert caller.loudness(500) > 0.01
            assert host.process.poll() is None
        assert await asyncio.to_thread(host.wait_exit) == 0
        assert endings(livekit, room_name)[-1] == ("JS_SUCCESS", "")
        assert not host.left_over()
        assert not host.runtime_folders()


async def test_a_second_sigterm_ends_the_rooms_in_order(livekit: LiveKitServer, tmp_path: Path, room_name: str) -> None:
    config = FAKE_ENGINES.format(max_rooms=1)
    with host_serve(livekit, tmp_path / "host", str(AGENT), "--agent-name", "ending", config=config) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name) as caller:
            await dispatch(livekit, room_name, "session", agent="ending")
            await caller.wait_for_speech(20)
            host.processes()
            host.process.send_signal(signal.SIGTERM)
            await until(lambda: "draining" in host.log, 5, "draining")
            host.process.send_signal(signal.SIGTERM)
            await caller.wait(lambda: bool(caller.left), 5, "the agent to leave")
            assert await asyncio.to_thread(host.wait_exit, 15) == 0
            assert endings(livekit, room_name) == [("JS_SUCCESS", "")]
        assert not host.left_over()
        assert not host.runtime_folders()


async def test_without_its_inference_process_a_host_takes_nothing(
    livekit: LiveKitServer, host: HostProcess, room_name: str
) -> None:
    first = host.inference().pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: host.get("/") == (503, "inference process not running"), 5, "the health check to notice")
    await until(lambda: host.worker()["worker_status"] == "WS_FULL", 5, "the server to be told")
    await until(lambda: host.get("/") == (200, "OK"), 20, "another inference process")
    await until(lambda: host.worker()["worker_status"] == "WS_AVAILABLE", 5, "the server to be told")
    assert host.inference().pid != first
    async with caller_in(livekit, room_name) as caller:
        await dispatch(livekit, room_name, "session")
        await caller.wait_for_speech(20)


async def test_the_server_goes_and_comes_back(tmp_path: Path, room_name: str) -> None:
    config = FAKE_ENGINES.format(max_rooms=1)
    port = free_port()
    with livekit_server(tmp_path, port) as server:
        pass
    with host_serve(server, tmp_path / "host", str(AGENT), "--agent-name", "tone", config=config) as host:
        host.wait(lambda: "cannot connect to LiveKit" in host.log, 60, "the first refusal")
        assert host.get("/") == (503, "failed to connect to livekit")
        with livekit_server(tmp_path, port):
            host.wait_registered(30)
            assert host.get("/") == (200, "OK")
        refusals = host.log.count("cannot connect to LiveKit")
        host.wait(lambda: host.log.count("cannot connect to LiveKit") > refusals, 30, "the next refusal")
        # A host that was registered is not ill because its server restarts.
        assert host.get("/") == (200, "OK")
        with livekit_server(tmp_path, port) as server:
            host.wait_registered(30, times=2)
            async with caller_in(server, room_name) as caller:
                await dispatch(server, room_name)
                await caller.wait_for_speech(20)
        assert host.stop() == 0


# --- what cannot work ----------------------------------------------------------------------------


def refused(host: HostProcess, exit_code: int, *words: str) -> None:
    assert host.wait_exit(60) == exit_code, host.log
    for word in words:
        assert word in host.log
    assert "Traceback" not in host.log
    assert not host.left_over()
    assert not host.runtime_folders()


def test_a_bad_api_key(livekit: LiveKitServer, tmp_path: Path) -> None:
    config = FAKE_ENGINES.format(max_rooms=1)
    with host_serve(livekit, tmp_path, config=config, secrets={"LIVEKIT_API_KEY": "nobody"}) as host:
        refused(host, 7, "nobody", livekit.url)


def test_a_bad_api_secret(livekit: LiveKitServer, tmp_path: Path) -> None:
    config = FAKE_ENGINES.format(max_rooms=1)
    wrong = {"LIVEKIT_API_SECRET": "another-secret-of-thirty-two-characters"}
    with host_serve(livekit, tmp_path, config=config, secrets=wrong) as host:
        refused(host, 7, livekit.url)


def test_no_server_at_the_url(tmp_path: Path) -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    with host_serve(url, tmp_path, "--max-retry", "0", config=FAKE_ENGINES.format(max_rooms=1)) as host:
        refused(host, 6, url)


def test_a_port_in_use(livekit: LiveKitServer, tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        config = FAKE_ENGINES.format(max_rooms=1)
        with host_serve(livekit, tmp_path, config=config, port=port) as host:
            refused(host, 8, str(port))
            assert len(host.seen) <= 1, "nothing was started"
