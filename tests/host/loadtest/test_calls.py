"""Calls in real time: a caller at one end of a line, a job's room at the other; and the process of callers."""

from __future__ import annotations

import asyncio
import os
from array import array
from pathlib import Path

import pytest

from host.config import job_environment
from host.errors import HostError
from host.job.room_line import LineRoom
from host.loadtest.call import RunningCall
from host.loadtest.callers import Habits
from host.loadtest.callers_process import CallersProcess
from host.loadtest.line_local import LocalLines
from host.loadtest.plan import Call, CallersPlan, HangUp, Happened, Ready, decode, encode
from host.loadtest.speech import default_folder, read_recordings
from host.loadtest.timeline import Answer, Event, Gap, Heard, Joined, Left, Said, Shown

RATE = 22_050
HABITS = Habits(cycle_s=3.0, hesitates=0.0, interrupts=0.0, stays_silent=0.0, think_s=(0.1, 0.2))


class Told:
    """What was told, and waiting for it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.changed = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.changed.set()

    async def wait(self, kind: type[Event]) -> Event:
        async with asyncio.timeout(20):
            while not any(isinstance(event, kind) for event in self.events):
                self.changed.clear()
                await self.changed.wait()
        return next(event for event in self.events if isinstance(event, kind))


def call(told: Told, folder: Path, *, keep: float = 1.0) -> RunningCall:
    return RunningCall(
        "kitchen",
        0,
        0,
        recordings=read_recordings(default_folder(), longest_s=2.5),
        habits=HABITS,
        seed=1,
        folder=folder,
        keep=keep,
        report=told,
        leave_s=None,
    )


def voice(seconds: float) -> bytes:
    return array("h", [8000, -8000] * round(seconds * RATE / 2)).tobytes()


@pytest.mark.parametrize("job_first", [True, False], ids=["the job first", "the caller first"])
async def test_one_turn_of_a_call(tmp_path: Path, *, job_first: bool) -> None:
    told = Told()
    lines = LocalLines(str(tmp_path / "callers.sock"))
    await lines.start()
    running = call(told, tmp_path)
    room = LineRoom("kitchen", f"unix:{tmp_path / 'callers.sock'}")

    async def hold() -> None:
        await running.run(await lines.answer(running, ""))

    if job_first:
        await room.connect()
        await asyncio.sleep(0)
    holding = asyncio.create_task(hold())
    await room.connect()
    await room.open_speech(RATE)
    await told.wait(Joined)
    await room.set_agent_state("listening")
    said = await told.wait(Said)
    assert isinstance(said, Said)
    blocks = room.caller_audio()
    async with asyncio.timeout(20):
        # The caller's words come in real time; the agent answers when they are over.
        heard = b"".join([await anext(blocks) for _ in range(round((said.end_s - said.begin_s + 0.5) * 50))])
        assert max(array("h", heard)) > 1000
        await room.set_agent_state("speaking")
        await room.play(voice(0.4))
        await room.wait_for_playout()
        await room.publish_transcript("agent", "agent-1", "Hello.", final=True)
        await room.set_agent_state("listening")
    answer = await told.wait(Answer)
    assert isinstance(answer, Answer)
    assert (answer.text, answer.segment, answer.rate) == ("Hello.", "agent-1", RATE)
    assert Path(answer.file).read_bytes() == voice(0.4)
    assert room.heard_samples() == len(voice(0.4)) // 2
    running.hang_up()
    await asyncio.wait_for(holding, 10)
    assert await room.wait_closed() == "the caller has left"
    await room.leave()
    await lines.aclose()
    ended = [event for event in told.events if isinstance(event, Heard) and event.end_s is not None]
    (stretch,) = ended
    assert stretch.begin_s > said.end_s
    assert stretch.end_s is not None
    assert stretch.end_s - stretch.begin_s == pytest.approx(0.4, abs=0.01)
    assert not any(isinstance(event, Gap) for event in told.events)
    left = told.events[-1]
    assert isinstance(left, Left)
    assert left.error == ""


async def test_a_job_that_goes_ends_the_call(tmp_path: Path) -> None:
    told = Told()
    lines = LocalLines(str(tmp_path / "callers.sock"))
    await lines.start()
    running = call(told, tmp_path)
    room = LineRoom("kitchen", f"unix:{tmp_path / 'callers.sock'}")
    await room.connect()
    line = await asyncio.wait_for(lines.answer(running, ""), 10)
    holding = asyncio.create_task(running.run(line))
    await told.wait(Joined)
    await room.leave()
    await asyncio.wait_for(holding, 10)
    left = told.events[-1]
    assert isinstance(left, Left)
    assert left.error.startswith("the agent has left")
    await lines.aclose()


# --- the process ------------------------------------------------------------------------------------


def plan(folder: Path) -> CallersPlan:
    return CallersPlan(
        "local", str(default_folder()), 2.5, 1, str(folder), socket=str(folder / "callers.sock"), habits=HABITS
    )


def test_a_plan_and_messages_come_back(tmp_path: Path) -> None:
    assert CallersPlan.from_json(plan(tmp_path).to_json()) == plan(tmp_path)
    shown = Shown(1.0, "user", "user-1", "Hé", final=True)
    for message in (Call("kitchen", 1, 2, 3.5, "token"), HangUp("kitchen"), Ready(), Happened("kitchen", shown)):
        assert decode(encode(message)) == message
    for garbage in (b"{}\n", b"[]\n", b'{"kind": "Call"}\n', b"x\n"):
        with pytest.raises(ValueError, match=r"not a message|Expecting value"):
            decode(garbage)


@pytest.fixture
def events() -> list[Happened]:
    return []


@pytest.mark.processes
async def test_the_process_ends_when_it_is_told_to(tmp_path: Path, events: list[Happened]) -> None:
    callers = CallersProcess(events.append)
    await callers.start(plan(tmp_path), job_environment())
    pid = callers.pid
    callers.begin(Call("kitchen", 0, 0))
    callers.hang_up()
    await callers.wait_ended()
    assert not Path(f"/proc/{pid}").exists()
    await callers.kill()


@pytest.mark.processes
async def test_a_process_that_ends_by_itself_is_an_error(tmp_path: Path, events: list[Happened]) -> None:
    callers = CallersProcess(events.append)
    await callers.start(plan(tmp_path), job_environment())
    os.kill(callers.pid, 9)
    with pytest.raises(HostError, match="ended by itself: killed by SIGKILL"):
        await callers.wait_ended()


@pytest.mark.processes
async def test_a_process_that_does_not_come_up_is_an_error(tmp_path: Path, events: list[Happened]) -> None:
    callers = CallersProcess(events.append)
    with pytest.raises(HostError, match="does not come up"):
        await callers.start(plan(tmp_path / "nowhere"), job_environment())
