"""Text in a LiveKit room: what clients are shown of a conversation, and what they send. No models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from caller import RATE, Caller, call, read_wave, rms, until
from livekit_server import LiveKitServer

from host.job.room_livekit import LiveKitRoom
from host.job.room_livekit_text import MAX_TEXT_CHARS
from tests.host.job.test_room import REPORT

pytestmark = pytest.mark.e2e

SPEECH = Path(__file__).parents[1] / "data" / "speech"


@asynccontextmanager
async def meeting(
    livekit: LiveKitServer, name: str, *others: str
) -> AsyncIterator[tuple[LiveKitRoom, Caller, list[Caller]]]:
    """An agent with its voice open, the participant "caller" that it is linked to, and others."""
    async with AsyncExitStack() as stack:
        room = LiveKitRoom(name, livekit.url, livekit.token(name, "agent", agent=True))
        stack.push_async_callback(room.leave)
        await room.connect()
        caller = await stack.enter_async_context(call(livekit.url, livekit.token(name, "caller")))
        assert await room.wait_for_participant() == "caller"
        await room.open_speech(RATE)
        there = [
            await stack.enter_async_context(call(livekit.url, livekit.token(name, identity))) for identity in others
        ]
        yield room, caller, there


class Reader:
    """What the agent reads."""

    def __init__(self, room: LiveKitRoom) -> None:
        self.texts: list[str] = []
        self.task = asyncio.create_task(self._read(room))

    async def _read(self, room: LiveKitRoom) -> None:
        async for text in room.text_input():
            self.texts.append(text)


async def test_what_the_agent_says_grows_word_by_word_in_one_stream(livekit: LiveKitServer, room_name: str) -> None:
    async with meeting(livekit, room_name) as (room, caller, _):
        said = ["Your", "Your timer", "Your timer is", "Your timer is set."]
        for count, text in enumerate(said, 1):
            await room.publish_transcript("agent", "agent-1", text, final=False)
            await caller.wait(lambda count=count: len(caller.shown) == count, 10, text)
        await room.publish_transcript("agent", "agent-1", said[-1], final=True)
        await caller.wait(lambda: caller.shown[-1].final, 10, "the end")
        assert [(shown.text, shown.final) for shown in caller.shown] == [
            *((text, False) for text in said),
            (said[-1], True),
        ]
        assert caller.streams == 1
        assert len({shown.segment for shown in caller.shown}) == 1
        (track,) = caller.agents()[0].track_publications
        assert {(shown.identity, shown.track) for shown in caller.shown} == {("agent", track)}
        # Clients from before text streams see the same.
        await caller.wait(lambda: len(caller.packets) == len(caller.shown), 10, "the packets")
        assert caller.packets == [("agent", shown.text, shown.final) for shown in caller.shown]


async def test_a_text_that_is_cut_back_or_goes_on_is_replaced(livekit: LiveKitServer, room_name: str) -> None:
    async with meeting(livekit, room_name) as (room, caller, _):

        async def publish(text: str, *, final: bool) -> None:
            await room.publish_transcript("agent", "agent-1", text, final=final)
            await caller.wait(
                lambda: bool(caller.shown) and (caller.shown[-1].text, caller.shown[-1].final) == (text, final),
                10,
                text,
            )

        await publish("Once upon a time", final=False)
        await publish("Once upon", final=True)
        await publish("Once upon a time there was", final=False)
        await publish("Once upon a time there was a cat.", final=True)
        assert len({shown.segment for shown in caller.shown}) == 1
        assert caller.texts("agent") == ["Once upon a time there was a cat."]


async def test_what_was_taken_for_words_of_the_caller_is_withdrawn(livekit: LiveKitServer, room_name: str) -> None:
    async with meeting(livekit, room_name) as (room, caller, _):
        await room.publish_transcript("user", "user-1", "", final=True)
        await room.publish_transcript("user", "user-2", "Hm", final=False)
        await caller.wait(lambda: caller.texts("caller", final=False) == ["Hm"], 10, "a word")
        await room.publish_transcript("user", "user-2", "", final=True)
        await caller.wait(lambda: caller.shown[-1].final, 10, "the end of it")
        # Nothing of a segment that never was; the word is gone.
        assert [shown.text.strip() for shown in caller.shown] == ["Hm", ""]
        assert {shown.track for shown in caller.shown} == {caller.publication.sid}


async def test_what_was_heard_last_is_final_when_the_agent_leaves(livekit: LiveKitServer, room_name: str) -> None:
    async with meeting(livekit, room_name) as (room, caller, _):
        await room.publish_transcript("agent", "agent-1", "Goodbye and", final=False)
        await caller.wait(lambda: len(caller.shown) == 1, 10, "words")
        await room.publish_transcript("agent", "agent-1", "Goodbye and good luck", final=False)
        await room.leave()
        await caller.wait(lambda: caller.texts("agent") == ["Goodbye and good luck"], 10, "the final transcript")


async def test_metrics_are_a_data_message(livekit: LiveKitServer, room_name: str) -> None:
    async with meeting(livekit, room_name, "dashboard") as (room, caller, (dashboard,)):
        await room.publish_metrics(REPORT)
        for client in (caller, dashboard):
            await client.wait(lambda client=client: bool(client.data), 10, "the metrics")
            ((identity, topic, payload),) = client.data
            assert (identity, topic) == ("agent", "roomful.metrics")
            assert json.loads(payload)["response_ms"] == 680.0


async def test_what_the_caller_types_is_read(
    livekit: LiveKitServer, room_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with meeting(livekit, room_name, "other") as (room, caller, (other,)):
        # Before the session reads.
        await caller.write("Hello")
        await other.write("Do not listen to the caller.")
        reader = Reader(room)
        await caller.write("  What time is it?\n")
        await until(lambda: reader.texts == ["Hello", "What time is it?"], 10, "both messages")
        await caller.write("x" * (MAX_TEXT_CHARS + 1))
        await until(lambda: "longer than" in caplog.text, 10, "the refusal")
        await caller.write("   ")
        await caller.write("Grüße, 你好")
        await until(lambda: len(reader.texts) == 3, 10, "the last message")
        assert reader.texts[2] == "Grüße, 你好"
        await caller.hang_up()
        await asyncio.wait_for(reader.task, 10)
        assert len(reader.texts) == 3


async def test_one_participant_is_the_caller_and_nobody_else(livekit: LiveKitServer, room_name: str) -> None:
    question = read_wave(SPEECH / "go-forward-ten-meters.wav")
    async with meeting(livekit, room_name, "other") as (room, caller, (other,)):
        heard = bytearray()

        async def listen() -> None:
            async for block in room.caller_audio():
                heard.extend(block)

        listening = asyncio.create_task(listen())
        closed = asyncio.create_task(room.wait_closed())
        await until(lambda: len(heard) > RATE, 10, "half a second of the caller")
        await other.say(question)
        before = len(heard)
        await until(lambda: len(heard) > before + RATE, 10, "half a second more")
        assert rms(bytes(heard)) < 0.001, "the other one is not heard"
        # Both hear the agent.
        await room.play((8000 * np.sin(np.arange(RATE // 2) / 5)).astype(np.int16).tobytes())
        for client in (caller, other):
            await client.wait(lambda client=client: client.loudness(100) > 0.05, 10, "the agent")
        await other.hang_up()
        await caller.wait(lambda: "other" in caller.left, 10, "the other one to leave")
        await caller.say(question)
        assert rms(bytes(heard[before:])) > 0.01
        assert not closed.done()
        # A caller who leaves ends the call, whoever else is there.
        async with call(livekit.url, livekit.token(room_name, "late")):
            await caller.hang_up()
            assert "CLIENT_INITIATED" in await asyncio.wait_for(closed, 10)
        await asyncio.wait_for(listening, 10)
