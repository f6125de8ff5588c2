"""Answers that are begun before the turn is over, and speech over the agent, as a conversation performs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from host.job.settings import SessionSettings
from inference.client import RequestFailedError
from inference.wire.messages import SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted
from tests.host.job.fakes import PLAIN, RATE, SAMPLES_PER_CHAR, FakeGeneration, until
from tests.host.job.test_session import Talk, talking

AHEAD = replace(PLAIN, preemptive=True)
"""The answer is begun with the transcript, and the turn ends 500 ms after the last voiced sample."""
OVER = replace(PLAIN, min_interruption_ms=500, backchannels=True, false_interruption_timeout_ms=1_000)
MANUAL = replace(PLAIN, turn_detection="manual")


async def pauses(talk: Talk, text: str) -> None:
    """The caller speaks and pauses; what was said is known at once."""
    await talk.starts()
    ended = talk.inference.position
    await talk.silence(100)
    asked = len(talk.inference.transcriptions)
    talk.inference.voice.put_nowait(SpeechPaused(0, ended))
    await until(lambda: len(talk.inference.transcriptions) > asked)
    talk.transcribed(text)


@asynccontextmanager
async def guessing(text: str, settings: SessionSettings = AHEAD) -> AsyncIterator[tuple[Talk, FakeGeneration]]:
    """A caller who has paused after ``text``, and an answer that was begun."""
    async with talking(settings=settings) as talk:
        await pauses(talk, text)
        await talk.silence(120)
        await until(lambda: talk.inference.generations)
        yield talk, talk.inference.generations[-1]


# --- answers on speculation -------------------------------------------------------------------------------------


async def test_the_first_phrase_is_spoken_ahead_and_heard_when_the_turn_is_over() -> None:
    async with guessing("What is the date?") as (talk, generation):
        generation.write("It is Monday. The rest comes ")
        await until(lambda: talk.inference.phrases)
        (phrase,) = talk.inference.phrases
        assert phrase.speculative
        await talk.silence(100)
        # It lies in the ring, and nobody hears it.
        assert talk.inference.read_position() == 0
        assert not talk.room.queue
        assert talk.said() == []
        assert talk.room.states == ["listening"]
        await talk.silence(200)
        await until(lambda: talk.room.queue)
        assert phrase.promoted
        assert generation.promoted
        assert len(talk.inference.generations) == 1
        generation.write("later. Bye.")
        generation.finish()
        await talk.hears_everything()
        assert talk.said() == [("user", "What is the date?"), ("assistant", "It is Monday. The rest comes later. Bye.")]
        assert [phrase.speculative for phrase in talk.inference.phrases] == [True] + [False] * (
            len(talk.inference.phrases) - 1
        )
        (report,) = talk.reports
        assert 200 < report.ahead_ms <= 300
        assert report.endpointing_delay_ms == 500
        assert report.guesses_dropped == 0
        assert report.ttft_ms == 0, "it had begun to write before it was asked"


async def test_only_the_first_phrase_is_spoken_ahead() -> None:
    async with guessing("What is the date?") as (talk, generation):
        generation.write("One. ")
        await until(lambda: talk.inference.phrases)
        generation.write("Two. Three. Four. ")
        await talk.silence(100)
        assert [phrase.text for phrase in talk.inference.phrases] == ["One."]
        await talk.silence(300)
        generation.finish()
        await talk.hears_everything()
        assert "".join(phrase.text for phrase in talk.inference.phrases) == "One.Two.Three.Four."


async def test_a_caller_who_goes_on_never_hears_what_was_begun() -> None:
    async with guessing("What is") as (talk, generation):
        generation.write("It is a question. ")
        await until(lambda: talk.inference.phrases)
        talk.inference.voice.put_nowait(SpeechResumed(talk.inference.position))
        await until(lambda: generation.cancelled)
        assert talk.inference.phrases[0].cancelled
        await until(lambda: not talk.inference.ring_samples)
        await talk.stops("What is the date?")
        await until(lambda: len(talk.inference.generations) == 2)
        second = talk.inference.generations[-1]
        second.write("Monday.")
        second.finish()
        await talk.hears_everything()
        assert talk.room.voices() == [2]
        assert talk.said() == [("user", "What is the date?"), ("assistant", "Monday.")]
        assert talk.reports[0].guesses_dropped == 1
        assert "clear" not in talk.room.log, "nothing was to be silenced"


async def test_a_turn_that_ends_before_anything_was_written_waits_for_the_same_answer() -> None:
    async with guessing("What is the date?") as (talk, generation):
        await talk.silence(500)
        await until(lambda: talk.room.states[-1] == "thinking")
        generation.write("Monday.")
        generation.finish()
        await talk.hears_everything()
        assert len(talk.inference.generations) == 1
        assert talk.said()[-1] == ("assistant", "Monday.")


async def test_a_caller_who_goes_on_after_the_turn_was_committed_takes_the_answer_back() -> None:
    async with guessing("What is") as (talk, generation):
        generation.write("It is a question.")
        await talk.silence(500)
        await until(lambda: talk.room.states[-1] == "thinking")
        talk.inference.voice.put_nowait(SpeechStarted(talk.inference.position))
        await until(lambda: talk.room.states[-1] == "listening")
        assert talk.said() == []
        await talk.stops("What is the date?")
        await until(lambda: len(talk.inference.generations) == 2)
        talk.inference.generations[-1].write("Monday.")
        talk.inference.generations[-1].finish()
        await talk.hears_everything()
        assert talk.said() == [("user", "What is the date?"), ("assistant", "Monday.")]


async def test_what_failed_ahead_is_asked_for_again_when_the_turn_is_over(caplog: pytest.LogCaptureFixture) -> None:
    async with guessing("What is the date?") as (talk, generation):
        generation.write("It is ")
        generation.fail(RequestFailedError("engine", "broken"))
        await talk.silence(500)
        await until(lambda: len(talk.inference.generations) == 2)
        talk.inference.generations[-1].write("Monday.")
        talk.inference.generations[-1].finish()
        await talk.hears_everything()
        assert talk.said() == [("user", "What is the date?"), ("assistant", "Monday.")]
        assert "the answer failed" not in caplog.text


async def test_a_phrase_that_failed_ahead_is_an_answer_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    async with guessing("What is the date?") as (talk, generation):
        talk.inference.hold = True
        generation.write("Monday. ")
        await until(lambda: talk.inference.phrases)
        talk.inference.phrases[0].fail(RequestFailedError("engine", "hoarse"))
        generation.finish()
        await talk.silence(500)
        await until(lambda: "hoarse" in caplog.text)
        await until(lambda: talk.room.states[-1] == "listening")
        assert talk.said() == [("user", "What is the date?")]


async def test_an_answer_begun_ahead_is_asked_for_again_after_an_outage() -> None:
    async with guessing("What is the date?") as (talk, generation):
        generation.write("It is Monday. ")
        await until(lambda: talk.inference.phrases)
        talk.inference.go_away()
        await until(lambda: talk.outages)
        talk.inference.come_back()
        await until(talk.inference.attached.is_set)
        await talk.silence(600)
        await until(lambda: len(talk.inference.generations) == 2)
        talk.inference.generations[-1].write("Monday.")
        talk.inference.generations[-1].finish()
        await talk.hears_everything()
        assert talk.said() == [("user", "What is the date?"), ("assistant", "Monday.")]
        assert talk.room.voices() == [2]


async def test_an_end_of_the_call_with_an_answer_begun_ahead_is_in_order() -> None:
    async with guessing("What is the date?") as (talk, generation):
        generation.write("It is Monday. ")
        await until(lambda: talk.inference.phrases)
    assert talk.said() == []
    assert talk.reports == []


async def test_the_models_word_decides_when_the_turn_ends() -> None:
    async with talking(settings=SessionSettings(user_away_timeout_s=0)) as talk:
        await pauses(talk, "I live in London.")
        await until(lambda: len(talk.inference.prefills) == 2)
        talk.inference.prefills[-1].end_of_turn.set_result(0.01)
        await talk.silence(1_000)
        assert talk.inference.generations == []
        await talk.silence(1_600)
        await until(lambda: talk.inference.generations)
        talk.inference.generations[-1].write("Nice.")
        talk.inference.generations[-1].finish()
        await talk.hears_everything()
        assert talk.reports[0].endpointing_delay_ms == 2_500
        await pauses(talk, "That's all.")
        await until(lambda: len(talk.inference.prefills) >= 3)
        talk.inference.prefills[-1].end_of_turn.set_result(0.98)
        await talk.silence(400)
        await until(lambda: len(talk.inference.generations) == 2)


async def test_a_transcript_that_is_waited_for_is_promoted() -> None:
    async with talking() as talk:
        await talk.starts()
        await talk.stops(None)
        (listening,) = talk.inference.listenings
        await until(lambda: listening.promoted)
        talk.transcribed("Hello.")
        await until(lambda: talk.inference.generations)


# --- speech over the agent ----------------------------------------------------------------------------------------


async def speaking(talk: Talk) -> None:
    """The agent tells a story, and half a second of it was heard."""
    generation = await talk.asks("Tell me a story.")
    generation.write("Once upon a time there was a king. He had a daughter. ")
    generation.finish()
    await talk.hears(RATE // 2)
    await talk.silence(400)


async def over(talk: Talk, ms: int, text: str | None) -> int:
    """The caller says ``text`` over the agent, which takes ``ms``; returns where that began."""
    began = talk.inference.position
    await talk.silence(100)
    talk.inference.voice.put_nowait(SpeechStarted(began))
    await until(talk.inference.voice.empty)
    await talk.silence(ms - 100)
    ended = talk.inference.position
    await talk.silence(100)
    asked = len(talk.inference.transcriptions)
    talk.inference.voice.put_nowait(SpeechPaused(began, ended))
    await until(lambda: len(talk.inference.transcriptions) > asked)
    if text is not None:
        talk.transcribed(text)
    await talk.silence(160)
    talk.inference.voice.put_nowait(SpeechEnded(began, ended))
    await until(talk.inference.voice.empty)
    return began


@pytest.mark.parametrize("text", ["Mhm.", "", "Yeah, okay."])
async def test_the_agent_goes_on_through_a_back_channel_without_a_gap(text: str) -> None:
    async with talking(settings=OVER) as talk:
        await speaking(talk)
        await over(talk, 300, text)
        await talk.hears_everything()
        assert "clear" not in talk.room.log
        said = "".join(phrase.text for phrase in talk.inference.phrases)
        assert talk.room.heard_samples() == SAMPLES_PER_CHAR * len(said)
        assert talk.said()[-1] == ("assistant", "Once upon a time there was a king. He had a daughter.")
        assert talk.room.states == ["listening", "thinking", "speaking", "listening"]


async def test_a_word_stops_the_agent_and_the_history_has_what_was_heard() -> None:
    async with talking(settings=OVER) as talk:
        await speaking(talk)
        heard = talk.room.heard_samples()
        await over(talk, 300, "Stop.")
        await until(lambda: "clear" in talk.room.log)
        assert talk.room.heard_samples() == heard
        await talk.silence(400)
        await until(lambda: len(talk.inference.generations) == 2)
        said = talk.said()
        assert said[-1] == ("user", "Stop.")
        assert "Once upon a time".startswith(said[1][1])
        assert talk.reports[0].interrupted
        assert talk.reports[0].reply == said[1][1]


async def test_long_speech_stops_the_agent_before_anybody_knows_what_it_is_and_it_resumes_where_it_stopped() -> None:
    async with talking(settings=OVER) as talk:
        await speaking(talk)
        began = talk.inference.position
        await talk.silence(100)
        talk.inference.voice.put_nowait(SpeechStarted(began))
        await until(talk.inference.voice.empty)
        assert "clear" not in talk.room.log
        await talk.silence(420)
        await until(lambda: "clear" in talk.room.log)
        heard = talk.room.heard_samples()
        ended = talk.inference.position
        await talk.silence(100)
        talk.inference.voice.put_nowait(SpeechPaused(began, ended))
        await until(lambda: len(talk.inference.transcriptions) == 2)
        talk.transcribed("Yeah, yeah.")
        await talk.silence(700)
        assert talk.room.states[-1] == "listening"
        assert talk.room.heard_samples() == heard
        await talk.silence(300)
        await until(lambda: talk.room.states[-1] == "speaking")
        await talk.hears_everything()
        assert talk.said()[1:] == [("assistant", "Once upon a time there was a king. He had a daughter.")]
        assert len(talk.reports) == 1
        assert not talk.reports[0].interrupted


async def test_the_user_speaks_while_the_agent_does() -> None:
    async with talking(settings=OVER) as talk:
        states: list[str] = []
        talk.session.on("user_state_changed", lambda event: states.append(event.new_state))
        await speaking(talk)
        assert states == ["speaking", "listening"]
        await over(talk, 300, "Mhm.")
        assert states == ["speaking", "listening"] * 2


async def test_speech_that_may_not_be_interrupted_is_not() -> None:
    async with talking(settings=OVER) as talk:
        handle = talk.session.say("This call may be recorded for training.", allow_interruptions=False)
        await talk.hears(RATE // 2)
        began = talk.inference.position
        await talk.silence(100)
        talk.inference.voice.put_nowait(SpeechStarted(began))
        await talk.silence(1_000)
        assert "clear" not in talk.room.log
        assert not talk.conversation.interrupt()
        assert talk.conversation.interrupt(force=True)
        await until(handle.done)
        assert handle.interrupted


# --- manual turns, and being away -----------------------------------------------------------------------------------


async def test_a_push_to_talk_turn() -> None:
    async with talking(settings=MANUAL) as talk:
        await talk.says("What is the date?")
        await talk.silence(3_000)
        assert talk.inference.generations == []
        talk.conversation.commit_user_turn()
        await until(lambda: talk.inference.generations)
        talk.inference.generations[-1].write("It is Monday, and a beautiful day.")
        talk.inference.generations[-1].finish()
        await talk.hears(RATE // 2)
        # The button is pressed again: the agent is silent, what was not heard is not said.
        talk.conversation.interrupt()
        talk.conversation.clear_user_turn()
        await until(lambda: talk.room.states[-1] == "listening")
        assert len(talk.said()[-1][1]) < len("It is Monday, and a beautiful day.")
        await talk.says("Never mind.")
        talk.conversation.clear_user_turn()
        talk.conversation.commit_user_turn()
        await talk.silence(100)
        assert len(talk.inference.generations) == 1


async def test_a_caller_who_is_silent_for_long_is_away() -> None:
    async with talking(settings=replace(PLAIN, user_away_timeout_s=2)) as talk:
        states: list[str] = []
        talk.session.on("user_state_changed", lambda event: states.append(event.new_state))
        await talk.silence(1_900)
        assert states == []
        await talk.silence(200)
        assert states == ["away"]
        await talk.starts()
        assert states == ["away", "speaking"]


async def test_a_muted_caller_is_away_too() -> None:
    async with talking(settings=replace(PLAIN, user_away_timeout_s=0.3)) as talk:
        # No audio comes at all: silence takes its place, until nobody waits for time to pass.
        await until(lambda: talk.session.user_state == "away")
        position = talk.inference.position
        await talk.starts()
        assert talk.inference.position == position + RATE // 10
