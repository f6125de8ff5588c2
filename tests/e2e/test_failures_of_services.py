"""The inference process killed and the LiveKit server restarted, with callers on the line."""

from __future__ import annotations

import asyncio
import csv
import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from caller import Caller, read_wave, until
from dispatching import caller_in, dispatch
from host_process import HostProcess, fake_engines, host_serve
from listening import normal, word_error_rate
from livekit_server import LiveKitServer, Ports, livekit_server
from records import ServerJobs, job_pids, job_results

pytestmark = pytest.mark.e2e

AGENTS = Path(__file__).parent / "agents"
ORDERS = AGENTS / "orders.py"
SPEECH = Path(__file__).parents[1] / "data" / "speech"
QUESTION = "set-a-timer.wav"
ROOMS = 3


def agent_of(caller: Caller) -> str:
    (agent,) = caller.agents()
    return agent.identity


async def ask(caller: Caller, wave: str = QUESTION) -> None:
    await caller.say(read_wave(SPEECH / wave))


async def answer(caller: Caller, number: int, deadline_s: float) -> str:
    """Wait until the agent has said ``number`` things to the end; returns the last of them."""
    agent = agent_of(caller)
    await caller.wait(lambda: len(caller.texts(agent)) >= number, deadline_s, f"thing {number} that the agent says")
    return caller.texts(agent)[number - 1]


# --- inference -----------------------------------------------------------------------------------


async def test_inference_is_killed_under_load(livekit: LiveKitServer, tmp_path: Path, room_name: str) -> None:
    """Three callers speak when it dies: all stay, and all are answered."""
    jobs = ServerJobs(livekit)
    rooms = [f"{room_name}-{number}" for number in range(ROOMS)]
    config = fake_engines(ROOMS)
    with host_serve(livekit, tmp_path / "host", str(ORDERS), "--agent-name", "talking", config=config) as host:
        host.wait_registered(60)
        async with AsyncExitStack() as stack:
            callers = [await stack.enter_async_context(caller_in(livekit, room)) for room in rooms]
            for room in rooms:
                await dispatch(livekit, room, "talk", "talking")
            for caller in callers:
                await caller.wait(lambda caller=caller: bool(caller.agents()), 20, "the agent")
                await answer(caller, 1, 20)
            await asyncio.gather(*(ask(caller) for caller in callers))
            for caller in callers:
                assert "heard" in await answer(caller, 2, 20)
            pids = [job_pids(host, room) for room in rooms]

            questions = [asyncio.create_task(ask(caller)) for caller in callers]
            await asyncio.wait(questions, timeout=1.0)
            first = host.inference().pid
            os.kill(first, signal.SIGKILL)
            killed_at = time.monotonic()
            # Made-up engines are up again sooner than a busy machine may look.
            await until(lambda: host.worker()["inference"]["restarts"] == 1, 30, "it to be noticed")
            await until(lambda: host.get("/") == (200, "OK"), 30, "another inference process")
            up_s = time.monotonic() - killed_at
            await asyncio.gather(*questions)
            for caller in callers:
                assert "heard" in await answer(caller, 3, 30)
            print(f"up again after {up_s:.1f} s, all answered {time.monotonic() - killed_at:.1f} s after the kill")  # noqa: T201
            # And the conversation goes on as before.
            await asyncio.gather(*(ask(caller) for caller in callers))
            for caller in callers:
                assert "heard" in await answer(caller, 4, 30)

            assert host.inference().pid != first
            assert [job_pids(host, room) for room in rooms] == pids, "the jobs are the same"
            assert not any(caller.left for caller in callers)
            assert host.worker()["active_jobs"] == ROOMS
            assert len(host.memfds(host.inference().pid)) > 0
        for room in rooms:
            await until(lambda room=room: bool(jobs.endings(room)), 15, "the job's end")
            assert jobs.endings(room) == [("JS_SUCCESS", "")]
        await until(lambda: not host.memfds(host.inference().pid), 10, "the rooms' memory to be freed")
        assert host.worker()["worker_status"] == "WS_AVAILABLE"


REAL = """
[inference]
device = "cpu"
max_rooms = 2
[worker]
load_threshold = 100.0
agent_name = "reading"
[session]
temperature = 0.0
max_reply_tokens = 48
"""


@pytest.mark.models
async def test_inference_is_killed_while_it_speaks_with_the_real_models(
    livekit: LiveKitServer, tmp_path: Path, room_name: str
) -> None:
    """The caller hears a pause, the rest of what was begun, and an answer to the next question."""
    from agents.reader import PASSAGE

    jobs = ServerJobs(livekit)
    room = f"read-{room_name}"
    with host_serve(livekit, tmp_path / "host", str(AGENTS / "reader.py"), config=REAL) as host:
        host.wait_registered(180)
        async with caller_in(livekit, room) as caller:
            await dispatch(livekit, room, agent="reading")
            await caller.wait_for_speech(60)
            heard = len(caller.heard)
            await caller.wait(lambda: len(caller.heard) > heard + 2 * 16_000 * 5, 30, "five seconds of the passage")
            first = host.inference().pid
            os.kill(first, signal.SIGKILL)
            killed_at = time.monotonic()
            await until(lambda: host.get("/") == (503, "inference process not running"), 10, "it to be noticed")
            await until(lambda: host.get("/") == (200, "OK"), 120, "another inference process")
            assert host.inference().pid != first
            print(f"the models were up again after {time.monotonic() - killed_at:.1f} s")  # noqa: T201
            agent = agent_of(caller)
            read = set(normal(PASSAGE).split())
            await caller.wait(
                lambda: read <= set(normal(" ".join(caller.texts(agent))).split()), 120, "the rest of the passage"
            )
            await caller.wait_for_silence()
            said = len(caller.texts(agent))
            await ask(caller, "whats-the-date-today.wav")
            reply = await answer(caller, said + 1, 90)
            print(f"answered: {reply!r}")  # noqa: T201
            assert len(normal(reply).split()) >= 3
            assert word_error_rate(transcript_of("whats-the-date-today.wav"), caller.texts("caller")[-1]) <= 0.25
            assert not caller.left
        await until(lambda: bool(jobs.endings(room)), 20, "the job's end")
        assert jobs.endings(room) == [("JS_SUCCESS", "")]


def transcript_of(wave: str) -> str:
    with (SPEECH / "transcripts.tsv").open(newline="") as table:
        return next(row["transcript"] for row in csv.DictReader(table, delimiter="\t") if row["file"] == wave)


# --- the LiveKit server --------------------------------------------------------------------------


async def test_the_server_restarts_with_a_room_open(tmp_path: Path, room_name: str) -> None:
    """WebRTC joins both sides again: the call goes on in the same job. The worker registers again and takes jobs.

    The server that came back knows nothing of the old job, and says so when its end is reported; the
    host's own log has it.
    """
    ports = Ports()
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with livekit_server(tmp_path / "first", ports=ports) as first:
        config = fake_engines(2)
        with host_serve(first, tmp_path / "host", str(ORDERS), "--agent-name", "staying", config=config) as host:
            host.wait_registered(60)
            async with caller_in(first, room_name) as caller:
                await dispatch(first, room_name, "stay", "staying")
                await caller.wait_for_speech(20)
                (job_id,) = ServerJobs(first).assigned(room_name)
                first.process.kill()
                first.process.wait()
                killed_at = time.monotonic()
                with livekit_server(tmp_path / "second", ports=ports) as second:
                    host.wait_registered(60, times=2)
                    print(f"registered again {time.monotonic() - killed_at:.1f} s after the kill")  # noqa: T201
                    assert host.worker()["active_jobs"] == 1
                    await hears_again(caller, killed_at)
                    assert joined(second, room_name) == {"caller", f"agent-{job_id}"}
                    await new_job(second, host, f"{room_name}-new")
                    await caller.hang_up()
                    await until(lambda: bool(job_results(host, room_name)), 30, "the old job's end")
                    assert job_results(host, room_name) == ["success"]
                    await until(lambda: host.worker()["active_jobs"] == 0, 10, "the host to be idle")
                    assert host.get("/") == (200, "OK")
                    assert host.stop() == 0


async def hears_again(caller: Caller, killed_at: float) -> None:
    """The agent's track is a different one after the reconnection; its tone is the same."""
    heard = len(caller.heard)
    await caller.wait(
        lambda: len(caller.heard) > heard + 64_000 and caller.loudness(1_000) > 0.01, 60, "the agent's tone again"
    )
    print(f"the caller hears the agent again {time.monotonic() - killed_at:.1f} s after the kill")  # noqa: T201


def joined(livekit: LiveKitServer, room: str) -> set[str]:
    """Who the server has had in the room."""
    return {record["participant"] for record in livekit.log_lines("participant active") if record["room"] == room}


async def new_job(livekit: LiveKitServer, host: HostProcess, room: str) -> None:
    jobs = ServerJobs(livekit)
    await dispatch(livekit, room, "visit", "staying")
    await until(lambda: bool(jobs.endings(room)), 20, "the end of a new job")
    assert jobs.endings(room) == [("JS_SUCCESS", "")]
