"""Who gets which job, decided by a real livekit-server: by room, by name, for publishers and participants, by load."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from caller import until
from dispatching import caller_in, dispatch, dispatch_by
from host_process import HostProcess, fake_engines, host_serve
from livekit import api
from livekit_server import LiveKitServer, livekit_server
from records import ServerJobs, job_pids, job_results

pytestmark = pytest.mark.e2e

AGENTS = Path(__file__).parent / "agents"
ORDERS = AGENTS / "orders.py"
GREETER = AGENTS / "greeter.py"

EVERY_ROOM = """
async def entrypoint(ctx):
    await ctx.connect()
    await ctx.wait_for_participant()
    await ctx.room.wait_closed()
"""


@pytest.fixture(scope="module")
def livekit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveKitServer]:
    """A server of its own: hosts that serve every room would answer in other tests' rooms."""
    with livekit_server(tmp_path_factory.mktemp("livekit")) as server:
        yield server


@pytest.fixture
def jobs(livekit: LiveKitServer) -> ServerJobs:
    return ServerJobs(livekit)


def said(host: HostProcess, room: str) -> list[str]:
    """What the agent in the room wrote into its log."""
    return [r["message"] for r in host.records() if r["logger"] in ("greeter", "doorkeeper") and r["room"] == room]


# --- who is asked --------------------------------------------------------------------------------


async def test_without_a_name_every_room_has_its_agent(
    livekit: LiveKitServer, jobs: ServerJobs, tmp_path: Path, room_name: str
) -> None:
    agent = tmp_path / "every_room.py"
    agent.write_text(EVERY_ROOM)
    with host_serve(livekit, tmp_path / "host", str(agent), config=fake_engines()) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name) as caller:
            await caller.wait(lambda: bool(caller.agents()), 20, "the agent")
            (here,) = caller.agents()
            assert here.identity.startswith("agent-AJ_")
            assert host.worker()["worker_type"] == "JT_ROOM"
            assert host.worker()["agent_name"] == ""
            # One job a room, not one a participant.
            async with caller_in(livekit, room_name, "second") as second:
                await second.wait(lambda: bool(second.agents()), 20, "the agent to be seen")
                assert len(second.agents()) == 1
                assert host.worker()["active_jobs"] == 1
        await until(lambda: bool(jobs.endings(room_name)), 15, "the job's end")
        assert jobs.endings(room_name) == [("JS_SUCCESS", "")]
        assert len(jobs.assigned(room_name)) == 1


async def test_a_named_agent_comes_only_when_it_is_called(
    livekit: LiveKitServer, jobs: ServerJobs, tmp_path: Path, room_name: str
) -> None:
    config = fake_engines()
    with host_serve(livekit, tmp_path / "host", str(ORDERS), "--agent-name", "by-name", config=config) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name) as caller:
            await dispatch(livekit, room_name, "stay", "by-name")
            await caller.wait_for_speech(20)
            assert [agent.attributes["lk.agent.name"] for agent in caller.agents()] == ["by-name"]
            nobody = jobs.unserved("somebody-else")
            await dispatch(livekit, room_name, "stay", "somebody-else")
            # The name is known to no host, which the server says in one of two ways.
            await until(
                lambda: (
                    jobs.unserved("somebody-else") > nobody
                    or any(r["room"] == room_name for r in livekit.log_lines("not dispatching agent job"))
                ),
                20,
                "the server to find nobody",
            )
            assert len(caller.agents()) == 1
        await until(lambda: bool(jobs.endings(room_name)), 15, "the job's end")
        assert jobs.endings(room_name) == [("JS_SUCCESS", "")]
        assert len(jobs.assigned(room_name)) == 1


async def test_each_publisher_has_an_agent(
    livekit: LiveKitServer, jobs: ServerJobs, tmp_path: Path, room_name: str
) -> None:
    config = fake_engines(worker_type="publisher")
    with host_serve(livekit, tmp_path / "host", str(GREETER), config=config) as host:
        host.wait_registered(60)
        assert host.worker()["worker_type"] == "JT_PUBLISHER"
        # Both publish a microphone as soon as they are in.
        async with caller_in(livekit, room_name, "alice"), caller_in(livekit, room_name, "bob"):
            await until(lambda: len(said(host, room_name)) == 4, 30, "both agents to meet their publishers")
            assert Counter(said(host, room_name)) == Counter(
                ["called for alice", "called for bob", "met alice", "met bob"]
            )
        await until(lambda: len(jobs.endings(room_name)) == 2, 15, "the jobs' ends")
        assert jobs.endings(room_name) == [("JS_SUCCESS", "")] * 2


async def test_each_participant_has_an_agent(
    livekit: LiveKitServer, jobs: ServerJobs, tmp_path: Path, room_name: str
) -> None:
    config = fake_engines(worker_type="participant")
    with host_serve(livekit, tmp_path / "host", str(GREETER), config=config) as host:
        host.wait_registered(60)
        assert host.worker()["worker_type"] == "JT_PARTICIPANT"
        async with caller_in(livekit, room_name, "alice"):
            await until(lambda: said(host, room_name) == ["called for alice", "met alice"], 30, "alice's agent")
            async with caller_in(livekit, room_name, "bob"):
                await until(lambda: len(said(host, room_name)) == 4, 30, "bob's agent")
                assert said(host, room_name)[2:] == ["called for bob", "met bob"]
                assert len(jobs.assigned(room_name)) == 2, "an agent is no participant to be served"
            # Bob's agent ends with Bob and leaves Alice's alone.
            await until(lambda: len(jobs.endings(room_name)) == 1, 15, "the end of bob's job")
            await until(lambda: host.worker()["active_jobs"] == 1, 10, "the host to have one job")
            assert len(jobs.endings(room_name)) == 1
        await until(lambda: len(jobs.endings(room_name)) == 2, 15, "the jobs' ends")
        assert jobs.endings(room_name) == [("JS_SUCCESS", "")] * 2


# --- who takes it --------------------------------------------------------------------------------


def jobs_by_host(hosts: list[HostProcess], rooms: list[str]) -> list[int]:
    return [sum(bool(job_pids(host, room)) for room in rooms) for host in hosts]


async def run_short_jobs(
    server: api.LiveKitAPI, jobs: ServerJobs, rooms: list[str], agent: str, at_once: int = 2
) -> None:
    """Jobs that return at once, ``at_once`` at a time: the loads hardly change meanwhile."""
    for first in range(0, len(rooms), at_once):
        some = rooms[first : first + at_once]
        await asyncio.gather(*(dispatch_by(server, room, "return", agent) for room in some))
        await until(lambda some=some: all(jobs.endings(room) for room in some), 20, f"the ends of {some}")
    assert [jobs.endings(room) for room in rooms] == [[("JS_SUCCESS", "")]] * len(rooms)


async def test_two_hosts_share_by_load_and_a_full_one_gets_none(
    livekit: LiveKitServer, jobs: ServerJobs, tmp_path: Path, room_name: str
) -> None:
    """One host has five of its six rooms taken, the other none: of forty jobs it gets fewer; with six, none."""
    name, release = "shared", tmp_path / "release"
    with ExitStack() as stack:

        def start(number: int) -> HostProcess:
            folder = tmp_path / f"host-{number}"
            arguments = (str(ORDERS), "--agent-name", name)
            # With so many cores, what else this machine does is no load.
            cores = {"NUM_CPUS": "1000"}
            host = stack.enter_context(host_serve(livekit, folder, *arguments, config=fake_engines(6), secrets=cores))
            host.wait_registered(60)
            return host

        async with livekit.api() as server:
            busy = start(1)
            long_rooms = [f"{room_name}-long-{number}" for number in range(6)]
            for room in long_rooms[:5]:
                await dispatch_by(server, room, f"until {release}", name)
            await until(lambda: busy.worker()["active_jobs"] == 5, 30, "five rooms")
            idle = start(2)

            await until(lambda: busy.worker()["worker_load"] > 0.5, 10, "the server to be told of the load")
            assert idle.worker()["worker_load"] < 0.1
            assert {host.worker()["worker_status"] for host in (busy, idle)} == {"WS_AVAILABLE"}
            rooms = [f"{room_name}-{number}" for number in range(40)]
            await run_short_jobs(server, jobs, rooms, name)
            shares = jobs_by_host([busy, idle], rooms)
            print(f"of 40 jobs the busy host got {shares[0]}, the idle one {shares[1]}")  # noqa: T201
            assert sum(shares) == 40
            # About three to seven; an even split is five standard deviations away.
            assert 0 < shares[0] < shares[1]

            # The busy one takes its last room (the idle one may win it some times: those are short jobs).
            for attempt in range(40):
                if busy.worker()["active_jobs"] == 6:
                    break
                room = f"{room_name}-last-{attempt}"
                await dispatch_by(server, room, f"until {release}-{attempt}", name)
                await until(lambda room=room: bool(jobs.assigned(room)), 20, "the job to be given out")
                await until(lambda room=room: sum(jobs_by_host([busy, idle], [room])) == 1, 20, "the job to start")
                if jobs_by_host([busy, idle], [room]) == [0, 1]:
                    Path(f"{release}-{attempt}").touch()
                    await until(lambda room=room: bool(jobs.endings(room)), 20, "the job's end")
            await until(lambda: busy.worker()["worker_status"] == "WS_FULL", 10, "the busy host to be full")
            more_rooms = [f"{room_name}-more-{number}" for number in range(12)]
            await run_short_jobs(server, jobs, more_rooms, name)
            assert jobs_by_host([busy, idle], more_rooms) == [0, 12]

            release.touch()
            for attempt in range(40):
                Path(f"{release}-{attempt}").touch()
            await until(lambda: busy.worker()["active_jobs"] == 0, 20, "the busy host to be idle")
            await until(lambda: busy.worker()["worker_status"] == "WS_AVAILABLE", 10, "it to be available again")


async def test_a_load_function_decides(
    livekit: LiveKitServer, jobs: ServerJobs, tmp_path: Path, room_name: str
) -> None:
    """``load_fnc`` in the agent file: what it says is what the server is told, and at the threshold it is full."""
    with ExitStack() as stack:
        hosts = []
        for number, load in enumerate((0.6, 0.05)):
            folder = tmp_path / f"host-{number}"
            folder.mkdir()
            (folder / "load").write_text(str(load))
            # The agent file is found beside its neighbour, and the configured threshold is the usual one.
            arguments = (str(AGENTS / "measured.py"), "--agent-name", "measured")
            config = fake_engines(6, load_threshold=0.7)
            hosts.append(stack.enter_context(host_serve(livekit, folder, *arguments, config=config)))
        loaded, free = hosts
        for host in hosts:
            host.wait_registered(60)
        await until(lambda: loaded.worker()["worker_load"] > 0.4, 10, "the load to be told")
        async with livekit.api() as server:
            rooms = [f"{room_name}-{number}" for number in range(40)]
            await run_short_jobs(server, jobs, rooms, "measured", at_once=1)
            shares = jobs_by_host(hosts, rooms)
            print(f"of 40 jobs the host at 0.6 got {shares[0]}, the one at 0.05 {shares[1]}")  # noqa: T201
            assert 0 < shares[0] < shares[1]

            (loaded.folder / "load").write_text("0.9")
            await until(lambda: loaded.worker()["worker_status"] == "WS_FULL", 10, "the loaded host to be full")
            rooms = [f"{room_name}-full-{number}" for number in range(6)]
            await run_short_jobs(server, jobs, rooms, "measured")
            assert jobs_by_host(hosts, rooms) == [0, 6]

            (loaded.folder / "load").write_text("0.0")
            (free.folder / "load").write_text("1.0")
            await until(lambda: loaded.worker()["worker_status"] == "WS_AVAILABLE", 10, "it to be free")
            await until(lambda: free.worker()["worker_status"] == "WS_FULL", 10, "the other to be full")
            rooms = [f"{room_name}-other-{number}" for number in range(6)]
            await run_short_jobs(server, jobs, rooms, "measured")
            assert jobs_by_host(hosts, rooms) == [6, 0]


# --- how it comes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doorkeeper(livekit: LiveKitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    arguments = (str(AGENTS / "doorkeeper.py"), "--agent-name", "doorkeeper")
    with host_serve(livekit, tmp_path_factory.mktemp("doorkeeper"), *arguments, config=fake_engines()) as host:
        host.wait_registered(60)
        yield host


async def test_the_request_function_says_who_the_agent_is(
    livekit: LiveKitServer, jobs: ServerJobs, doorkeeper: HostProcess, room_name: str
) -> None:
    async with caller_in(livekit, room_name) as caller:
        await dispatch(livekit, room_name, agent="doorkeeper")
        await caller.wait(lambda: bool(caller.agents()), 20, "the agent")
        (agent,) = caller.agents()
        assert (agent.name, agent.identity, agent.metadata) == ("Ada", f"ada-in-{room_name}", "at your service")
        assert agent.attributes["language"] == "en"
        assert agent.attributes["room"] == room_name
        assert agent.attributes["lk.agent.name"] == "doorkeeper"
        await until(lambda: bool(said(doorkeeper, room_name)), 10, "the agent's own word")
        assert said(doorkeeper, room_name) == [f"in as Ada, ada-in-{room_name}, at your service"]
    await until(lambda: bool(jobs.endings(room_name)), 15, "the job's end")
    assert jobs.endings(room_name) == [("JS_SUCCESS", "")]


async def test_the_request_function_turns_a_room_away(
    livekit: LiveKitServer, jobs: ServerJobs, doorkeeper: HostProcess, room_name: str
) -> None:
    closed = f"closed-{room_name}"
    unserved = jobs.unserved("doorkeeper")
    async with caller_in(livekit, closed) as caller:
        await dispatch(livekit, closed, agent="doorkeeper")
        await until(lambda: any(r.get("room") == closed for r in doorkeeper.records("job refused")), 20, "the refusal")
        # The next room is served: nothing of the one that was turned away is held.
        async with caller_in(livekit, room_name) as other:
            await dispatch(livekit, room_name, agent="doorkeeper")
            await other.wait(lambda: bool(other.agents()), 20, "the agent in the other room")
        assert not caller.agents()
    assert not jobs.assigned(closed)
    # "terminate": the server asks nobody else, and does not call it a failure.
    assert jobs.unserved("doorkeeper") == unserved
    await until(lambda: doorkeeper.worker()["active_jobs"] == 0, 10, "no job")


async def test_a_request_function_that_raises_turns_the_room_away(
    livekit: LiveKitServer, jobs: ServerJobs, doorkeeper: HostProcess, room_name: str
) -> None:
    broken = f"broken-{room_name}"
    unserved = jobs.unserved("doorkeeper")
    async with caller_in(livekit, broken):
        await dispatch(livekit, broken, agent="doorkeeper")
        await until(lambda: "the list of guests is lost" in doorkeeper.log, 20, "its error in the log")
        await until(lambda: jobs.unserved("doorkeeper") > unserved, 20, "the server to find nobody")
    assert not jobs.assigned(broken)
    assert doorkeeper.get("/") == (200, "OK")


async def test_a_request_function_may_take_its_time_but_not_more(
    livekit: LiveKitServer, jobs: ServerJobs, doorkeeper: HostProcess, room_name: str
) -> None:
    """The server waits 3 s for all its hosts together: whoever has not answered by then would lose the job."""
    slow, silent = f"slow-{room_name}", f"silent-{room_name}"
    unserved = jobs.unserved("doorkeeper")
    async with caller_in(livekit, slow) as caller:
        await dispatch(livekit, slow, agent="doorkeeper")
        await caller.wait(lambda: bool(caller.agents()), 20, "the agent")
    async with caller_in(livekit, silent):
        await dispatch(livekit, silent, agent="doorkeeper")
        await until(lambda: jobs.unserved("doorkeeper") > unserved, 20, "the server to find nobody")
    assert not jobs.assigned(silent)
    # It was told in time: nothing was answered too late, and no place is held for what cannot come.
    assert not livekit.log_lines("received availability response for unknown job")
    assert any("did not answer within" in r["message"] and r["room"] == silent for r in doorkeeper.records())
    assert not doorkeeper.records("no assignment came")


async def test_a_hidden_agent_is_not_seen(
    livekit: LiveKitServer, jobs: ServerJobs, tmp_path: Path, room_name: str
) -> None:
    release = tmp_path / "release"
    config = fake_engines(more="[worker.permissions]\nhidden = true\n")
    with host_serve(livekit, tmp_path / "host", str(ORDERS), "--agent-name", "hidden", config=config) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name) as caller, livekit.api() as server:
            await dispatch(livekit, room_name, f"until {release}", "hidden")
            await until(
                lambda: any(r["room"] == room_name for r in active_agents(livekit)), 20, "the agent to be in the room"
            )
            assert not caller.agents()
            (job_id,) = jobs.assigned(room_name)
            agent = await server.room.get_participant(
                api.RoomParticipantIdentity(room=room_name, identity=f"agent-{job_id}")
            )
            assert agent.permission.hidden
            release.touch()
            await until(lambda: bool(jobs.endings(room_name)), 15, "the job's end")
            assert not caller.left
        assert jobs.endings(room_name) == [("JS_SUCCESS", "")]


def active_agents(livekit: LiveKitServer) -> list[dict[str, str]]:
    return [r for r in livekit.log_lines("participant active") if r["participant"].startswith("agent-")]


async def test_an_agent_that_may_not_publish(
    livekit: LiveKitServer, jobs: ServerJobs, tmp_path: Path, room_name: str
) -> None:
    config = fake_engines(more="[worker.permissions]\ncan_publish = false\ncan_update_metadata = false\n")
    with host_serve(livekit, tmp_path / "host", str(ORDERS), "--agent-name", "mute", config=config) as host:
        host.wait_registered(60)
        async with caller_in(livekit, room_name) as caller, livekit.api() as server:
            await dispatch(livekit, room_name, "publish", "mute")
            await caller.wait(lambda: bool(caller.agents()), 20, "the agent")
            (agent,) = caller.agents()
            seen = await server.room.get_participant(
                api.RoomParticipantIdentity(room=room_name, identity=agent.identity)
            )
            assert not seen.permission.can_publish
            assert not seen.permission.can_update_metadata
            assert seen.permission.can_subscribe
            # livekit.rtc gives up publishing after 10 s.
            await until(lambda: bool(jobs.endings(room_name)), 40, "the job's end")
            assert not agent.track_publications
        ((status, error),) = jobs.endings(room_name)
        assert status == "JS_FAILED"
        assert error
        assert "cannot publish" in host.log
        await until(lambda: job_results(host, room_name) == [f"failed {error}"], 10, "the host's own record")
