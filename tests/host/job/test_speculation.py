"""What a session does beforehand: it prepares answers, and transcribes a caller who is still speaking."""

from __future__ import annotations

from dataclasses import replace

import pytest

from host.job.transcripts import PARTIAL_EVERY, UserTranscript
from host.job.turn_events import DropPreparation, PrepareAnswer, State, TranscriptArrived
from host.job.user_turn import PADDING, Unfinished
from inference.client import RequestFailedError
from inference.wire.messages import SpeechPaused, SpeechResumed, SpeechStarted, Transcript
from tests.host.job.fakes import PLAIN, RATE, FakeGeneration, until
from tests.host.job.test_session import Talk, talking
from tests.host.job.test_turn import MS, Conversation

PARTIAL = replace(PLAIN, partial_transcripts=True)


def asked(generation: FakeGeneration) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in generation.messages]


# --- in the table of the turns --------------------------------------------------------------------------


def test_an_answer_is_prepared_when_all_that_was_said_is_transcribed() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.paused(2000)
    assert talk.transcript("Hello,") == [PrepareAnswer(1, "Hello,")]
    assert talk.resumed(2200) == [DropPreparation()]
    talk.paused(3000)
    assert talk.transcript("Hello, what is the date?") == [PrepareAnswer(2, "Hello, what is the date?")]
    talk.until(3600)
    assert talk.state is State.THINKING
    # It is answered: there is nothing to drop but the answer.
    assert not any(isinstance(action, DropPreparation) for action in talk.started(3700))


def test_nothing_is_prepared_for_no_words_or_while_a_part_is_missing() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.paused(2000)
    assert talk.transcript("") == []
    assert talk.resumed(2200) == []
    talk.paused(23_000)
    first = talk.asked()[-1]
    talk.resumed(23_300)
    # The first part was long enough to be kept.
    talk.paused(24_000)
    assert talk.transcript("later part") == []
    assert talk.feed(TranscriptArrived(first.ticket, "first part")) == [PrepareAnswer(1, "first part later part")]


def test_what_is_unfinished_is_what_the_caller_is_saying() -> None:
    talk = Conversation()
    assert talk.turns.unfinished() is None
    talk.started(1000)
    talk.until(2000)
    assert talk.turns.unfinished() == Unfinished("", 1000 * MS - PADDING, 2000 * MS)
    talk.paused(23_000)
    assert talk.turns.unfinished() is None
    talk.transcript("first part")
    talk.resumed(23_300)
    talk.until(24_000)
    assert talk.turns.unfinished() == Unfinished("first part", talk.asked()[-1].end, 24_000 * MS)


# --- prefill ----------------------------------------------------------------------------------------------


async def test_the_model_reads_what_every_conversation_begins_with() -> None:
    async with talking() as talk:
        (opening,) = talk.inference.prefills
        assert asked(opening) == [("system", "Be brief.")]
        assert opening.max_tokens == 0
        opening.finish()
        assert talk.inference.generations == []


async def test_the_greeting_is_read_as_well() -> None:
    async with talking(greeting="Hello!") as talk:
        await until(lambda: talk.inference.prefills)
        assert asked(talk.inference.prefills[0]) == [("system", "Be brief."), ("assistant", "Hello!")]


async def test_an_answer_is_prepared_at_a_pause_and_asked_for_after_it() -> None:
    async with talking() as talk:
        talk.inference.prefills.pop().finish()
        generation = await talk.asks("What is the date?")
        (prefill,) = talk.inference.prefills
        # The same conversation, to the letter: what was read need not be read again.
        assert asked(prefill) == asked(generation) == [("system", "Be brief."), ("user", "What is the date?")]
        # It was not over yet, and an answer goes first.
        assert prefill.cancelled
        assert [kind for kind, _ in talk.inference.log][-3:] == ["prefill", "cancel", "generate"]


async def test_a_caller_who_goes_on_is_not_prepared_for() -> None:
    async with talking() as talk:
        await talk.starts()
        paused = talk.inference.position
        await talk.silence(100)
        talk.inference.voice.put_nowait(SpeechPaused(0, paused))
        await until(lambda: talk.inference.transcriptions)
        talk.transcribed("What")
        await until(lambda: len(talk.inference.prefills) == 2)
        opening, prefill = talk.inference.prefills
        assert opening.cancelled, "one at a time"
        assert asked(prefill)[-1] == ("user", "What")
        assert not prefill.cancelled
        talk.inference.voice.put_nowait(SpeechResumed(talk.inference.position))
        await until(lambda: prefill.cancelled)
        assert talk.inference.generations == []


@pytest.mark.parametrize("code", ["too_long", "engine", "cancelled"])
async def test_a_preparation_that_fails_is_no_failure(code: str) -> None:
    async with talking() as talk:
        talk.inference.prefills[0].fail(RequestFailedError(code, "no"))  # type: ignore[arg-type]
        generation = await talk.asks("Hello")
        talk.inference.prefills[1].fail(RequestFailedError(code, "no"))  # type: ignore[arg-type]
        generation.write("Hi.")
        generation.finish()
        await talk.hears_everything()
        assert talk.said() == [("user", "Hello"), ("assistant", "Hi.")]


async def test_a_conversation_that_would_lose_turns_is_not_prepared_for() -> None:
    async with talking(context_tokens=340) as talk:
        generation = await talk.asks("word " * 40)
        generation.write("Hi.")
        generation.finish()
        await talk.hears_everything()
        prepared = len(talk.inference.prefills)
        generation = await talk.asks("word " * 70)
        assert len(talk.inference.prefills) == prepared
        assert len(generation.messages) == 2, "the oldest turn is left out of the question itself"


async def test_the_conversation_is_read_again_by_a_process_that_does_not_know_it() -> None:
    async with talking() as talk:
        generation = await talk.asks("Hello")
        generation.write("Hi.")
        generation.finish()
        await talk.hears_everything()
        prepared = len(talk.inference.prefills)
        talk.inference.go_away()
        await until(lambda: talk.outages)
        talk.inference.come_back()
        await until(lambda: len(talk.inference.prefills) > prepared)
        assert asked(talk.inference.prefills[-1])[1:] == [("user", "Hello"), ("assistant", "Hi.")]


# --- partial transcripts ------------------------------------------------------------------------------------


async def speaks(talk: Talk, ms: int) -> None:
    await talk.silence(ms)


def partial(talk: Talk, text: str, n: int = -1) -> None:
    talk.inference.partials[n][2].set_result(Transcript(1, text, "en", -0.1, 0.0, 1.0))


async def test_nobody_asks_for_partial_transcripts_by_default() -> None:
    async with talking() as talk:
        await talk.starts()
        await speaks(talk, 3000)
        assert talk.inference.partials == []


async def test_a_caller_who_speaks_is_transcribed_every_second() -> None:
    async with talking(settings=PARTIAL) as talk:
        heard: list[UserTranscript] = []
        talk.session.add_transcript_callback(heard.append)
        await talk.starts()
        await speaks(talk, 800)
        assert talk.inference.partials == []
        await speaks(talk, 400)
        ((start, end, _),) = talk.inference.partials
        assert start == 0
        assert PARTIAL_EVERY <= end - start < PARTIAL_EVERY + 20 * MS
        # One at a time, however long it takes.
        await speaks(talk, 2000)
        assert len(talk.inference.partials) == 1
        partial(talk, "What is")
        await speaks(talk, 40)
        assert len(talk.inference.partials) == 2
        assert talk.inference.partials[1][1] > end + 2 * RATE
        partial(talk, "What is the")
        await speaks(talk, 40)
        await talk.stops("What is the date?")
        await until(lambda: talk.inference.generations)
        assert heard == [
            UserTranscript("user-1", "What is", final=False),
            UserTranscript("user-1", "What is the", final=False),
            UserTranscript("user-1", "What is the date?", final=True),
        ]
        await until(lambda: len(talk.room.transcripts) == 3)
        assert talk.room.transcripts == [("user", said.segment, said.text, said.final) for said in heard]


async def test_the_transcript_of_a_pause_overtakes_a_partial_one() -> None:
    async with talking(settings=PARTIAL) as talk:
        await talk.starts()
        await speaks(talk, 1200)
        ((_, _, result),) = talk.inference.partials
        await talk.stops("Hello")
        assert result.cancelled()
        await until(lambda: talk.room.transcripts)
        assert talk.room.transcripts == [("user", "user-1", "Hello", True)]


async def test_a_partial_transcript_of_no_words_is_taken_back() -> None:
    async with talking(settings=PARTIAL) as talk:
        await talk.starts()
        await speaks(talk, 1200)
        partial(talk, "Hm")
        await speaks(talk, 40)
        await talk.stops("")
        await until(lambda: len(talk.room.transcripts) == 2)
        assert talk.room.transcripts == [("user", "user-1", "Hm", False), ("user", "user-1", "", True)]
        await talk.asks("Hello")
        await until(lambda: len(talk.room.transcripts) == 3)
        assert talk.room.transcripts[-1] == ("user", "user-1", "Hello", True)


async def test_a_partial_transcript_that_fails_or_is_lost_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with talking(settings=PARTIAL) as talk:

        def broken(_: UserTranscript) -> None:
            raise ValueError("mine")

        talk.session.add_transcript_callback(broken)
        await talk.starts()
        await speaks(talk, 1200)
        talk.inference.partials[0][2].set_exception(RequestFailedError("overloaded", "no time"))
        await speaks(talk, 1100)
        assert len(talk.inference.partials) == 2
        talk.inference.go_away()
        await until(lambda: talk.outages)
        talk.inference.come_back()
        await until(talk.inference.attached.is_set)
        talk.inference.voice.put_nowait(SpeechStarted(0))
        await speaks(talk, 1100)
        await until(lambda: len(talk.inference.partials) == 3)
        partial(talk, "Still here")
        await until(lambda: talk.room.transcripts)
        assert "a transcript callback failed" in caplog.text


# --- how the voice speaks -----------------------------------------------------------------------------------


async def test_speed_and_volume_of_the_session_reach_every_phrase() -> None:
    async with talking(greeting="Hello! Bye.", settings=replace(PLAIN, speed=1.5, volume=0.25)) as talk:
        await until(lambda: len(talk.inference.phrases) == 2)
        assert [(phrase.speed, phrase.volume) for phrase in talk.inference.phrases] == [(1.5, 0.25)] * 2
        await talk.hears_everything()
        generation = await talk.asks("Hello")
        generation.write("One. Two.")
        generation.finish()
        await until(lambda: len(talk.inference.phrases) == 4)
        assert {(phrase.speed, phrase.volume) for phrase in talk.inference.phrases} == {(1.5, 0.25)}
