"""Work for what may never be wanted, against a real inference process: in spare time only, until somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from inference.client import Generation, InferenceRoom, RequestFailedError
from inference.wire import messages as m
from tests.inference.process import inference_process

pytestmark = pytest.mark.processes

DEADLINE_S = 60.0
MODULE = "tests.inference.loaded_main"
LONG = [m.ChatMessage("user", "word " * 400)]
CHAT = [m.ChatMessage("user", "one two three")]


@asynccontextmanager
async def two_rooms(tmp_path: Path) -> AsyncIterator[tuple[InferenceRoom, InferenceRoom]]:
    async with (
        asyncio.timeout(DEADLINE_S),
        inference_process(tmp_path, module=MODULE, max_rooms=2) as process,
        process.room("busy") as busy,
        process.room("guesses") as guesses,
    ):
        yield busy, guesses


async def read(generation: Generation) -> str:
    return "".join([text async for text in generation])


@asynccontextmanager
async def at_work(room: InferenceRoom) -> AsyncIterator[asyncio.Task[str]]:
    """A long answer that somebody waits for is being written."""
    first = asyncio.Event()

    async def write() -> str:
        text = ""
        async for piece in room.generate(LONG, max_tokens=500):
            text += piece
            first.set()
        return text

    async with asyncio.TaskGroup() as group:
        task = group.create_task(write())
        await first.wait()
        yield task
        task.cancel()


async def test_a_phrase_that_may_never_be_heard_waits_for_everybody(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (busy, guesses), at_work(busy) as answer:
        phrase = guesses.speak("one two", speculative=True)
        await phrase.wait_started()
        assert answer.done()
        await phrase.wait()
        assert phrase.end is not None


async def test_a_promoted_phrase_waits_for_nobody(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (busy, guesses), at_work(busy) as answer:
        phrase = guesses.speak("one two", speculative=True)
        phrase.promote()
        await phrase.wait_started()
        await phrase.wait()
        assert not answer.done()


async def test_what_is_said_behind_a_guess_promotes_it(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (busy, guesses), at_work(busy) as answer:
        guess = guesses.speak("one two", speculative=True)
        phrase = guesses.speak("three")
        await guess.wait()
        await phrase.wait()
        assert not answer.done()
        assert guess.end == phrase.start


async def test_an_answer_that_may_never_be_asked_for_waits_until_it_is_promoted(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (busy, guesses), at_work(busy) as answer:
        generation = guesses.generate(CHAT, speculative=True, end_of_turn=True)
        # A round trip, after which it has long been the lane's.
        await guesses.speak("one").wait()
        assert not generation.end_of_turn.done()
        generation.promote()
        assert await generation.end_of_turn == pytest.approx(0.95)
        assert await read(generation) == "You said: one two three"
        assert not answer.done()


async def test_a_transcription_is_promoted_before_its_time(tmp_path: Path) -> None:
    """A partial one would wait for ever behind an answer."""
    async with two_rooms(tmp_path) as (busy, guesses), at_work(busy) as answer:
        guesses.push(np.full(16_000, 9000, np.int16).tobytes())
        listening = guesses.listen_to(0, 16_000, partial=True)
        listening.promote()
        assert (await listening.wait()).text == "heard 1000 ms"
        assert not answer.done()


async def test_the_next_generation_ends_a_guess_but_not_what_was_promoted(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (busy, guesses), at_work(busy):
        guess = guesses.generate(CHAT, speculative=True)
        other = guesses.generate(CHAT)
        with pytest.raises(RequestFailedError, match="overtaken"):
            await read(guess)
        assert await read(other) == "You said: one two three"
        promoted = guesses.generate(CHAT, speculative=True)
        promoted.promote()
        behind = guesses.generate(CHAT)
        assert await read(promoted) == "You said: one two three"
        assert await read(behind) == "You said: one two three"


async def test_a_guess_is_dropped_at_once_whatever_the_lane_does(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (busy, guesses), at_work(busy) as answer:
        phrase = guesses.speak("one two", speculative=True)
        generation = guesses.generate(CHAT, speculative=True, end_of_turn=True)
        phrase.cancel()
        generation.cancel()
        with pytest.raises(RequestFailedError, match="cancelled"):
            await phrase.wait()
        with pytest.raises(RequestFailedError, match="cancelled"):
            await read(generation)
        assert await generation.end_of_turn == -1.0
        assert not answer.done()
        assert guesses.skip_speech() == 0, "nothing was written"


async def test_to_promote_what_has_ended_does_nothing(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (_, guesses):
        generation = guesses.generate(CHAT, speculative=True)
        await generation.end_of_turn
        generation.promote()
        assert await read(generation) == "You said: one two three"
        assert (await guesses.speak("one").wait()) is None


async def test_how_likely_the_turn_is_over_comes_before_the_answer(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (_, room):
        finished = room.generate(CHAT, max_tokens=0, end_of_turn=True)
        assert await finished.end_of_turn == pytest.approx(0.95)
        assert await read(finished) == ""
        unfinished = room.generate([m.ChatMessage("user", "I want to")], end_of_turn=True)
        pieces = []
        async for piece in unfinished:
            if not pieces:
                assert unfinished.end_of_turn.done()
            pieces.append(piece)
        assert unfinished.end_of_turn.result() == pytest.approx(0.05)
        assert unfinished.done is not None
        nobody = room.generate(CHAT)
        await read(nobody)
        assert nobody.end_of_turn.result() == -1.0


async def test_a_speaker_that_the_voice_has_not_is_named_with_those_it_has(tmp_path: Path) -> None:
    async with two_rooms(tmp_path) as (_, room):
        with pytest.raises(RequestFailedError, match="speaker is 3, allowed: -1 to 0"):
            await room.speak("one", speaker=3).wait()
        await room.speak("one", speaker=0).wait()


@pytest.mark.models
async def test_a_turn_is_prepared_at_its_pause_and_answered_when_it_is_over(tmp_path: Path) -> None:
    """The real models, as a conversation uses them: the caller pauses, goes on, pauses, and has finished."""
    system = m.ChatMessage("system", "You are a voice assistant. Answer in one short sentence.")

    def chat(text: str) -> list[m.ChatMessage]:
        return [system, m.ChatMessage("user", text)]

    async with (
        asyncio.timeout(2 * DEADLINE_S),
        inference_process(tmp_path, engines="real", threads=2) as process,
        process.room() as room,
    ):
        early = room.generate(chat("How long does the"), speculative=True, end_of_turn=True)
        assert 0 <= await early.end_of_turn < 0.3
        early.cancel()
        prepared = room.generate(chat("How long does the delivery take?"), speculative=True, end_of_turn=True)
        with pytest.raises(RequestFailedError, match="cancelled"):
            await read(early)
        assert await prepared.end_of_turn > 0.7
        pieces = aiter(prepared)
        text = await anext(pieces)
        phrase = room.speak("It takes three days.", speculative=True)
        await phrase.wait_started()
        prepared.promote()
        phrase.promote()
        async for piece in pieces:
            text += piece
        await phrase.wait()
        assert text.strip()
        assert prepared.done is not None
        assert prepared.done.cached_tokens > 10, "what the caller had said before was in the cache"
        assert phrase.end is not None
        assert phrase.end > room.speech_rate
