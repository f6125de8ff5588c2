"""A room whose caller is another program, with a caller made of a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from host.job import line
from host.job.room import metrics_message
from host.job.room_line import LineRoom
from tests.host.job.test_room import REPORT

RATE = 22_050
QUEUE = RATE // 5
"""Samples in 200 ms."""


class Caller:
    """The other end: takes frames, sends ticks."""

    def __init__(self) -> None:
        self.frames: list[tuple[line.Kind, bytes]] = []
        self.changed = asyncio.Event()
        self.writer: asyncio.StreamWriter | None = None
        self.heard = self.dropped = self.cleared = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        frames = line.Frames()
        while data := await reader.read(65536):
            self.frames += frames.push(data)
            self.changed.set()
        writer.close()

    async def wait(self, kind: line.Kind) -> bytes:
        async with asyncio.timeout(10):
            while not any(frame is kind for frame, _ in self.frames):
                self.changed.clear()
                await self.changed.wait()
        return next(body for frame, body in self.frames if frame is kind)

    def spoken(self) -> int:
        return sum(len(body) // 2 for kind, body in self.frames if kind is line.Kind.SPEECH)

    def tick(self, *, heard: int = 0, dropped: int = 0, cleared: int | None = None, pcm: bytes = b"") -> None:
        assert self.writer is not None
        self.heard += heard
        self.dropped += dropped
        self.cleared = self.cleared if cleared is None else cleared
        self.writer.write(line.Tick(self.heard, self.dropped, self.cleared, pcm).pack())


@asynccontextmanager
async def called(folder: Path) -> AsyncIterator[tuple[LineRoom, Caller]]:
    caller = Caller()
    path = str(folder / "caller.sock")
    server = await asyncio.start_unix_server(caller.serve, path)
    room = LineRoom("kitchen", f"unix:{path}")
    try:
        await room.connect()
        await caller.wait(line.Kind.ROOM)
        await room.open_speech(RATE)
        yield room, caller
    finally:
        await room.leave()
        server.close()


async def within(done: asyncio.Task[None], what: str) -> None:
    try:
        await asyncio.wait_for(asyncio.shield(done), 10)
    except TimeoutError:
        raise AssertionError(f"waited 10 s for {what}") from None


async def test_it_says_which_room_it_is_and_what_the_agent_does(tmp_path: Path) -> None:
    async with called(tmp_path) as (room, caller):
        await room.set_agent_state("thinking")
        await room.publish_transcript("user", "user-1", "Hé", final=True)
        assert line.words(await caller.wait(line.Kind.ROOM)) == "kitchen"
        assert line.read_number(await caller.wait(line.Kind.RATE)) == RATE
        assert line.words(await caller.wait(line.Kind.STATE)) == "thinking"
        assert line.Text.unpack(await caller.wait(line.Kind.TEXT)) == line.Text("user", "user-1", "Hé", final=True)


async def test_what_the_caller_types_comes_until_he_hangs_up(tmp_path: Path) -> None:
    async with called(tmp_path) as (room, caller):
        assert caller.writer is not None
        for text in ("What time is it?", "Hé"):
            caller.writer.write(line.pack(line.Kind.CHAT, text.encode()))
        caller.writer.close()
        async with asyncio.timeout(10):
            assert [text async for text in room.text_input()] == ["What time is it?", "Hé"]


async def test_what_was_measured_of_a_turn_is_told(tmp_path: Path) -> None:
    async with called(tmp_path) as (room, caller):
        await room.publish_metrics(REPORT)
        assert line.words(await caller.wait(line.Kind.METRICS)) == metrics_message(REPORT)


async def test_the_callers_audio_comes_until_he_hangs_up(tmp_path: Path) -> None:
    async with called(tmp_path) as (room, caller):
        caller.tick(pcm=b"\x01\x00" * 320)
        caller.tick(pcm=b"\x02\x00" * 320)
        assert caller.writer is not None
        caller.writer.close()
        async with asyncio.timeout(10):
            blocks = [block async for block in room.caller_audio()]
            assert blocks == [b"\x01\x00" * 320, b"\x02\x00" * 320]
            assert await room.wait_closed() == "the caller has left"
            # Nothing waits for a caller who is gone.
            await room.play(bytes(2 * RATE))
            await room.wait_for_playout()


async def test_play_waits_for_the_listener(tmp_path: Path) -> None:
    async with called(tmp_path) as (room, caller):
        await room.play(bytes(2 * QUEUE))
        playing = asyncio.create_task(room.play(bytes(2 * 100)))
        await asyncio.sleep(0.05)
        assert not playing.done()
        caller.tick(heard=100)
        await within(playing, "play")
        assert room.heard_samples() == 100


async def test_playout_is_over_when_all_was_heard(tmp_path: Path) -> None:
    async with called(tmp_path) as (room, caller):
        await room.play(bytes(2 * 1000))
        over = asyncio.create_task(room.wait_for_playout())
        caller.tick(heard=999)
        await asyncio.sleep(0.05)
        assert not over.done()
        caller.tick(heard=1)
        await within(over, "playout")


async def test_a_silence_is_over_when_the_caller_has_obeyed_it(tmp_path: Path) -> None:
    async with called(tmp_path) as (room, caller):
        await room.play(bytes(2 * 1000))
        room.clear()
        over = asyncio.create_task(room.wait_for_playout())
        # This tick was on its way when the silence was asked for.
        caller.tick(heard=400)
        await asyncio.sleep(0.05)
        assert not over.done()
        assert line.read_number(await caller.wait(line.Kind.CLEAR)) == 1
        caller.tick(dropped=600, cleared=1)
        await within(over, "the silence")
        assert room.heard_samples() == 400
        # What is said afterwards is counted from there.
        await room.play(bytes(2 * 50))
        caller.tick(heard=50)
        await asyncio.wait_for(room.wait_for_playout(), 10)
        assert room.heard_samples() == 450


async def test_after_a_silence_there_is_room_for_new_speech_at_once(tmp_path: Path) -> None:
    async with called(tmp_path) as (room, caller):
        await room.play(bytes(2 * QUEUE))
        room.clear()
        await asyncio.wait_for(room.play(bytes(2 * QUEUE)), 10)
        caller.tick(dropped=QUEUE, cleared=1)
        over = asyncio.create_task(room.wait_for_playout())
        caller.tick(heard=QUEUE)
        await within(over, "playout")
        assert caller.spoken() == 2 * QUEUE


async def test_a_caller_who_sends_garbage_is_hung_up_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with called(tmp_path) as (room, caller):
        assert caller.writer is not None
        caller.writer.write(b"GET / HTTP/1.1\r\n")
        async with asyncio.timeout(10):
            assert "no frame" in await room.wait_closed()
    assert "no frame" in caplog.text


async def test_nobody_calls(tmp_path: Path) -> None:
    room = LineRoom("kitchen", f"unix:{tmp_path / 'nobody.sock'}")
    with pytest.raises(ConnectionError, match="room kitchen: nobody calls at"):
        await room.connect()
    await room.leave()


async def test_leaving_twice_is_leaving_once(tmp_path: Path) -> None:
    async with called(tmp_path) as (room, _):
        await room.leave()
        assert await room.wait_closed() == "the agent left"
