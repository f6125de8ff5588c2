"""A call, with a device made of lists and the job's real end of the line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from host.console import call as calls
from host.console.call import Call, EchoMode
from host.errors import DeviceError
from host.job.line import TICK_BYTES
from host.job.room_line import SCHEME, WRITTEN_SCHEME, LineRoom

RATE = 22_050
DEADLINE_S = 20
LOUD = b"\x00\x20" * (TICK_BYTES // 2)
SILENCE = bytes(TICK_BYTES)


class Device:
    """What is recorded is given by the test; what is played is asked for by it."""

    name = "a device of lists"
    starved = 0

    def __init__(self, failure: DeviceError | None = None) -> None:
        self.failure = failure
        self.hear: Callable[[bytes], None] | None = None
        self.pull: Callable[[int], bytes] | None = None
        self.closed = False

    def open_microphone(self, hear: Callable[[bytes], None]) -> None:
        if self.failure is not None:
            raise self.failure
        self.hear = hear

    def open_loudspeaker(self, rate: int, pull: Callable[[int], bytes]) -> float:
        assert rate == RATE
        self.pull = pull
        return 0.0

    def close(self) -> None:
        self.closed = True

    async def record(self, block: bytes = LOUD) -> None:
        """From another thread, as a device does."""
        assert self.hear is not None
        await asyncio.to_thread(self.hear, block)

    def play(self, samples: int) -> bytes:
        assert self.pull is not None
        return self.pull(samples)


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 (a thread's work, or another process's)
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited {DEADLINE_S} s for {what}") from None


@asynccontextmanager
async def connected(
    folder: Path, device: Device | None, echo: EchoMode = "off", **more: object
) -> AsyncIterator[tuple[Call, LineRoom, asyncio.Task[str]]]:
    call = Call(device, echo, **more)  # type: ignore[arg-type]
    path = folder / "line.sock"
    held = asyncio.create_task(call.hold(str(path)))
    await until(path.exists, "the socket")
    room = LineRoom("console", f"{WRITTEN_SCHEME if device is None else SCHEME}{path}")
    await room.connect()
    try:
        if device is not None:
            await room.open_speech(RATE)
            await until(lambda: device.hear is not None or call.failure is not None, "the devices")
        yield call, room, held
    finally:
        await room.leave()
        call.hang_up()
        await asyncio.wait([held])


async def heard_by(room: LineRoom) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(room.caller_audio())


async def test_both_sides_are_heard_and_the_job_knows_how_much(tmp_path: Path) -> None:
    device = Device()
    async with connected(tmp_path, device) as (call, room, _):
        await device.record()
        assert await heard_by(room) == LOUD
        assert call.microphone.level > -20
        await room.play(b"\x01\x00" * 1000)
        await until(lambda: device.play(1) == b"\x01\x00", "the speech")
        assert device.play(1000) == b"\x01\x00" * 999 + bytes(2)
        device.play(1)
        await device.record()
        await heard_by(room)
        assert room.heard_samples() == 1000


async def test_silence_is_at_once_and_the_job_is_told(tmp_path: Path) -> None:
    device = Device()
    async with connected(tmp_path, device) as (_, room, _):
        await room.play(b"\x01\x00" * 1000)
        await until(lambda: device.play(1) == b"\x01\x00", "the speech")
        room.clear()
        await until(lambda: device.play(1) == bytes(2), "the silence")
        over = asyncio.create_task(room.wait_for_playout())
        await device.record()
        await asyncio.wait_for(over, DEADLINE_S)
        assert room.heard_samples() < 1000


async def test_a_muted_microphone_says_nothing_and_still_ticks(tmp_path: Path) -> None:
    device = Device()
    async with connected(tmp_path, device) as (call, room, _):
        call.toggle_mute()
        await device.record()
        assert await heard_by(room) == SILENCE
        # The meter shows that there is something to unmute.
        assert call.microphone.level > -20
        call.toggle_mute()
        await device.record()
        assert await heard_by(room) == LOUD


async def test_mute_holds_the_microphone_back_while_the_agent_is_heard(tmp_path: Path) -> None:
    device = Device()
    async with connected(tmp_path, device, "mute") as (call, room, _):
        await device.record()
        assert await heard_by(room) == LOUD
        await room.play(b"\x01\x00" * 100)
        await until(call.is_held_back, "the speech")
        device.play(100)
        await device.record()
        assert await heard_by(room) == SILENCE
        # The room still sounds for a moment.
        device.play(RATE)
        assert not call.is_held_back()
        await device.record()
        assert await heard_by(room) == LOUD


async def test_a_canceller_gets_a_second_to_learn_the_room(tmp_path: Path) -> None:
    device = Device()

    class Canceller:
        def clean(self, block: bytes, played: bytes) -> bytes:
            return block

    async with connected(tmp_path, device, "cancel", make_echo=lambda *_: Canceller()) as (call, room, _):
        await device.record()
        assert await heard_by(room) == LOUD
        playing = asyncio.create_task(room.play(b"\x01\x00" * RATE * 2))
        await until(call.is_held_back, "the speech")
        device.play(RATE // 2)
        await device.record()
        assert await heard_by(room) == SILENCE
        device.play(RATE // 2)
        device.play(1)
        await device.record()
        assert await heard_by(room) == LOUD
        device.play(RATE)
        await device.record()
        await playing


async def test_the_canceller_gets_what_is_played_between_two_blocks(tmp_path: Path) -> None:
    device = Device()
    given: list[tuple[bytes, bytes]] = []

    class Canceller:
        def clean(self, block: bytes, played: bytes) -> bytes:
            given.append((block, played))
            return SILENCE

    def make(rate: int, delay_s: float) -> Canceller:
        assert rate == RATE
        assert delay_s == 0.0
        return Canceller()

    async with connected(tmp_path, device, "cancel", make_echo=make) as (_, room, _):
        await room.play(b"\x01\x00" * 10)
        await until(lambda: device.play(1) == b"\x01\x00", "the speech")
        while device.play(1) == b"\x01\x00":
            pass
        await device.record()
        assert await heard_by(room) == SILENCE
        ((block, played),) = given
        assert block == LOUD
        assert played.strip(b"\x00") == (b"\x01\x00" * 10).strip(b"\x00")


async def test_what_is_typed_reaches_the_job(tmp_path: Path) -> None:
    async with connected(tmp_path, None) as (call, room, _):
        assert room.written
        assert call.in_writing
        call.type("Grüße")
        async with asyncio.timeout(DEADLINE_S):
            assert await anext(room.text_input()) == "Grüße"
        assert [entry.text for entry in call.script.take_settled()] == ["Grüße"]
        assert not call.is_answered()
        await room.publish_transcript("agent", "agent-1", "Good day.", final=True)
        await room.set_agent_state("listening")
        await asyncio.wait_for(call.wait_for(call.is_answered), DEADLINE_S)


async def test_hanging_up_ends_the_job(tmp_path: Path) -> None:
    device = Device()
    async with connected(tmp_path, device) as (call, room, held):
        call.hang_up()
        assert await asyncio.wait_for(room.wait_closed(), DEADLINE_S) == "the caller has left"
        assert await asyncio.wait_for(held, DEADLINE_S) == "you have left"
        assert device.closed
        # Nobody is there to read it.
        call.type("hello?")
        assert call.script.take_all() == []


async def test_the_agent_may_hang_up(tmp_path: Path) -> None:
    device = Device()
    async with connected(tmp_path, device) as (_, room, held):
        await room.leave()
        assert await asyncio.wait_for(held, DEADLINE_S) == "the agent has left"
        assert device.closed
        # A device's thread may be a block behind.
        await device.record()


async def test_hanging_up_before_anybody_came(tmp_path: Path) -> None:
    call = Call(None)
    call.hang_up()
    assert await asyncio.wait_for(call.hold(str(tmp_path / "line.sock")), DEADLINE_S) == "you have left"


async def test_a_device_that_cannot_be_opened_ends_the_call(tmp_path: Path) -> None:
    async with connected(tmp_path, Device(DeviceError("no such microphone"))) as (_, room, held):
        with pytest.raises(DeviceError, match="no such microphone"):
            await asyncio.wait_for(held, DEADLINE_S)
        await asyncio.wait_for(room.wait_closed(), DEADLINE_S)


async def test_a_microphone_that_falls_silent_ends_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "SILENT_MICROPHONE_S", 0.05)
    async with connected(tmp_path, Device()) as (_, _, held):
        with pytest.raises(DeviceError, match="a device of lists: nothing comes from the microphone"):
            await asyncio.wait_for(held, DEADLINE_S)


async def test_a_second_job_finds_the_line_taken(tmp_path: Path) -> None:
    device = Device()
    async with connected(tmp_path, device) as (_, room, held):
        other = LineRoom("other", f"{SCHEME}{tmp_path / 'line.sock'}")
        await other.connect()
        await asyncio.wait_for(other.wait_closed(), DEADLINE_S)
        await other.leave()
        assert not held.done()
        await device.record()
        assert await heard_by(room) == LOUD
