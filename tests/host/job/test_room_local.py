"""The local room on a virtual clock: hours of conversation in milliseconds."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from host.job.room import Room
from host.job.room_local import LocalRoom
from host.job.waves import read_wave, write_wave

RATE = 22_050
TICK = RATE // 50
LOUD = 8_000


class VirtualClock:
    """Time that passes only when nothing else is left to do."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self.time

    async def sleep_until(self, deadline: float) -> None:
        if deadline <= self.time:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (deadline, next(self._order), woken))
        await woken.wait()

    async def sleep(self, seconds: float) -> None:
        await self.sleep_until(self.time + seconds)

    async def run(self) -> None:
        """Wake sleepers in order. Ten turns of the loop let everybody else come to rest in between."""
        while True:
            for _ in range(10):
                await asyncio.sleep(0)
            if self._sleepers:
                self.time, _, woken = heapq.heappop(self._sleepers)
                woken.set()


@pytest.fixture
async def clock() -> AsyncIterator[VirtualClock]:
    clock = VirtualClock()
    running = asyncio.create_task(clock.run())
    yield clock
    running.cancel()
    await asyncio.wait([running])


@pytest.fixture
def caller(tmp_path: Path) -> Callable[..., str]:
    """Writes a caller's wave: ``level`` of a square wave for ``seconds``, then ``tail`` seconds of silence."""
    names = itertools.count(1)

    def make(seconds: float = 1.0, tail: float = 0.0, level: int = LOUD, rate: int = 16_000) -> str:
        path = str(tmp_path / f"caller{next(names)}.wav")
        loud = np.where(np.arange(round(seconds * rate)) % 40 < 20, level, -level).astype(np.int16)
        write_wave(path, np.concatenate([loud, np.zeros(round(tail * rate), np.int16)]), rate)
        return path

    return make


class Agent:
    """What a session does to a room, in a few words."""

    def __init__(self, room: LocalRoom, clock: VirtualClock) -> None:
        self.room = room
        self.clock = clock
        self.began = clock.now()
        self.blocks: list[tuple[float, bool]] = []
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for block in self.room.caller_audio():
            assert len(block) == 640
            self.blocks.append((self.clock.now() - self.began, any(block)))

    async def heard_everything(self) -> list[tuple[float, float]]:
        """Wait until the caller is gone; returns (begin, end) of each stretch of sound, in seconds."""
        await self._listening
        sounds: list[tuple[float, float]] = []
        for at, loud in self.blocks:
            if loud and sounds and at - sounds[-1][1] < 0.001:
                sounds[-1] = (sounds[-1][0], at + 0.02)
            elif loud:
                sounds.append((at, at + 0.02))
        return sounds

    async def until_heard(self, sounds: int, silence: float = 0.5) -> None:
        """Wait for the ``sounds``-th stretch of sound to end, as endpointing would."""
        while True:
            await self.clock.sleep(0.02)
            loud = [at for at, loud in self.blocks if loud]
            edges = sum(1 for a, b in itertools.pairwise([-1.0, *loud]) if b - a > 0.1)
            if edges >= sounds and self.clock.now() - self.began - loud[-1] >= silence:
                return

    async def answer(self, seconds: float) -> None:
        await self.room.set_agent_state("speaking")
        pcm = np.full(round(seconds * RATE), 1000, np.int16)
        for start in range(0, len(pcm), TICK):
            await self.room.play(pcm[start : start + TICK].tobytes())
        await self.room.wait_for_playout()
        self.room.end_answer()
        await self.room.set_agent_state("listening")


async def start(room: LocalRoom, clock: VirtualClock) -> Agent:
    await room.connect()
    await room.open_speech(RATE)
    agent = Agent(room, clock)
    await room.set_agent_state("listening")
    return agent


def near(a: float, b: float, within: float = 0.061) -> bool:
    return abs(a - b) <= within


def test_it_is_a_room(caller: Callable[..., str]) -> None:
    room: Room = LocalRoom("r", [caller()])
    assert room.name == "r"


async def test_the_next_wave_comes_half_a_second_after_the_answer_and_the_caller_leaves_after_the_last(
    clock: VirtualClock, caller: Callable[..., str], tmp_path: Path
) -> None:
    out, record = tmp_path / "out.wav", tmp_path / "record.wav"
    room = LocalRoom("r", [caller(1.0), caller(2.0)], str(out), str(record), clock=clock)
    agent = await start(room, clock)
    await agent.until_heard(1)
    await agent.answer(1.5)
    await agent.until_heard(2)
    await agent.answer(0.5)
    first, second = await agent.heard_everything()
    assert near(first[0], 0.5)
    assert near(first[1] - first[0], 1.0)
    assert near(second[0] - first[1], 0.5 + 1.5 + 0.5, 0.1)
    assert near(second[1] - second[0], 2.0)
    assert await room.wait_closed() == "the caller has left"
    assert room.unanswered == []
    await room.leave()
    samples, rate = read_wave(str(out))
    assert rate == RATE
    assert near(len(samples) / RATE, 1.5 + 0.3 + 0.5, 0.001)
    both, rate = read_wave(str(record))
    assert near(len(both) / rate, second[1] + 0.5 + 0.5 + 0.5, 0.1)


async def test_nothing_drifts_in_ten_minutes(clock: VirtualClock, caller: Callable[..., str]) -> None:
    room = LocalRoom("r", [caller(1.0)], response_timeout_s=600, clock=clock)
    agent = await start(room, clock)
    await agent.heard_everything()
    assert near(agent.blocks[-1][0], 0.5 + 1.0 + 600, 0.1)
    assert len(agent.blocks) == pytest.approx(agent.blocks[-1][0] * 50, abs=2)
    await room.leave()


async def test_a_wave_without_an_answer_is_given_up(clock: VirtualClock, caller: Callable[..., str]) -> None:
    waves = [caller(1.0), caller(1.0)]
    room = LocalRoom("r", waves, response_timeout_s=5.0, clock=clock)
    agent = await start(room, clock)
    await agent.until_heard(2)
    await agent.answer(1.0)
    first, second = await agent.heard_everything()
    assert near(second[0] - first[1], 5.0)
    assert room.unanswered == [waves[0]]
    await room.leave()


async def test_the_caller_interrupts(clock: VirtualClock, caller: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    room = LocalRoom("r", [caller(1.0), caller(1.0)], str(out), interrupt_after_s=2.0, clock=clock)
    agent = await start(room, clock)
    await agent.until_heard(1)
    began = clock.now() - agent.began
    answering = asyncio.create_task(agent.answer(60.0))
    while not (agent.blocks[-1][1] and agent.blocks[-1][0] > began):
        await clock.sleep(0.02)
    assert near(clock.now() - agent.began, began + 2.0)
    room.clear()
    answering.cancel()
    heard = room.heard_samples()
    assert heard == pytest.approx(2.0 * RATE, abs=3 * TICK)
    silent_from = clock.now()
    await room.wait_for_playout()
    assert clock.now() - silent_from <= 0.0201
    assert room.heard_samples() == heard, "what was dropped is never counted"
    start_s, end_s = room.end_answer()
    assert start_s == 0
    assert end_s == pytest.approx(heard / RATE)
    await room.set_agent_state("listening")
    await agent.until_heard(2)
    await agent.answer(1.0)
    await agent.heard_everything()
    await room.leave()
    samples, _ = read_wave(str(out))
    assert len(samples) / RATE == pytest.approx(end_s + 0.3 + 1.0, abs=0.001)


async def test_a_short_answer_is_not_waited_out_for_an_interruption(
    clock: VirtualClock, caller: Callable[..., str]
) -> None:
    room = LocalRoom("r", [caller(1.0), caller(1.0)], interrupt_after_s=30.0, clock=clock)
    agent = await start(room, clock)
    await agent.until_heard(1)
    await agent.answer(1.0)
    await agent.until_heard(2)
    await agent.answer(1.0)
    first, second = await agent.heard_everything()
    assert near(second[0] - first[1], 0.5 + 1.0 + 0.5, 0.1)
    await room.leave()


async def test_silence_at_the_end_of_a_wave_is_not_waited_out(clock: VirtualClock, caller: Callable[..., str]) -> None:
    room = LocalRoom("r", [caller(1.0, tail=20.0), caller(1.0)], clock=clock)
    agent = await start(room, clock)
    await agent.until_heard(1)
    await agent.answer(1.0)
    await agent.until_heard(2)
    await agent.answer(1.0)
    first, second = await agent.heard_everything()
    assert near(second[0] - first[1], 2.0, 0.1)
    await room.leave()


async def test_an_answer_to_the_first_half_of_a_wave_is_not_its_answer(
    clock: VirtualClock, tmp_path: Path, caller: Callable[..., str]
) -> None:
    """The caller pauses for longer than endpointing waits, and goes on."""
    loud, silence = np.full(16_000, LOUD, np.int16), np.zeros(3 * 16_000, np.int16)
    write_wave(str(tmp_path / "pausing.wav"), np.concatenate([loud, silence, loud]), 16_000)
    room = LocalRoom("r", [str(tmp_path / "pausing.wav"), caller(1.0)], clock=clock)
    agent = await start(room, clock)
    await agent.until_heard(1)
    await agent.answer(1.0)
    await agent.until_heard(2)
    assert not room.unanswered
    await agent.answer(1.0)
    await agent.until_heard(3)
    await agent.answer(1.0)
    sounds = await agent.heard_everything()
    assert near(sounds[1][0] - sounds[0][1], 3.0)
    assert near(sounds[2][0] - sounds[1][1], 2.0, 0.1)
    await room.leave()


async def test_play_paces_and_clear_lets_a_waiting_player_go(clock: VirtualClock, caller: Callable[..., str]) -> None:
    room = LocalRoom("r", [caller()], clock=clock)
    await start(room, clock)
    began = clock.now()
    await room.play(bytes(2 * RATE))
    assert near(clock.now() - began, 0.8)
    playing = asyncio.create_task(room.play(bytes(2 * RATE)))
    await clock.sleep(0.1)
    assert not playing.done()
    room.clear()
    await asyncio.wait_for(playing, 5)
    await room.wait_for_playout()
    assert near(room.heard_samples() / RATE, 0.9)
    await room.leave()


@pytest.mark.parametrize("rate", [8_000, 44_100])
async def test_a_wave_of_any_rate_takes_its_own_time(
    clock: VirtualClock, caller: Callable[..., str], rate: int
) -> None:
    room = LocalRoom("r", [caller(1.5, rate=rate)], response_timeout_s=1.0, clock=clock)
    agent = await start(room, clock)
    (sound,) = await agent.heard_everything()
    assert near(sound[1] - sound[0], 1.5)
    await room.leave()


async def test_leaving_early_twice_and_before_connecting(
    clock: VirtualClock, caller: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "out.wav"
    room = LocalRoom("r", [caller()], str(out), clock=clock)
    await room.leave()
    assert not out.exists()
    agent = await start(room, clock)
    await room.leave()
    await room.leave()
    assert await room.wait_closed() == "the agent left"
    await agent.heard_everything()
    with pytest.raises(ValueError, match="no samples"):
        read_wave(str(out))
