"""What a session does while the inference process is away and when it is back: on rooms made of lists."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import cast

import pytest

from host.job.audio import Player
from host.job.speech import SpeakablePhrase
from host.job.spoken import Word
from host.job.transcripts import MAX_ATTEMPTS
from inference.client import InferenceRoom, InferenceUnavailableError
from inference.wire.messages import SpeechEnded, SpeechPaused, SpeechStarted, Transcript
from tests.host.job.fakes import PLAIN, SAMPLES_PER_CHAR, FakeInference, FakeRoom, until
from tests.host.job.test_session import MS, Talk, talking


async def away(talk: Talk) -> None:
    """The process dies, and the session has noticed."""
    before = talk.outages
    talk.inference.go_away()
    await until(lambda: talk.outages > before)


async def back(talk: Talk) -> None:
    """Another process has taken its place, and the session has attached its room."""
    talk.inference.listening.clear()
    talk.inference.come_back()
    await until(lambda: talk.inference.listening)


async def test_listening(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with talking() as talk:
        await talk.silence(1_000)
        await away(talk)
        (gone,) = [record for record in caplog.records if "went away" in record.message]
        assert gone.levelno == logging.WARNING
        lost_at = talk.inference.position
        # The caller goes on speaking into the ring.
        await talk.silence(2_000)
        assert talk.inference.position == lost_at + 2_000 * MS
        await back(talk)
        assert "is back after" in caplog.text
        # What detection had begun to take for speech is heard again.
        assert talk.inference.listening["start"] == lost_at - (64 + 64) * MS
        assert talk.inference.listening["pause_ms"] == 96
        generation = await talk.asks("Hello?")
        assert [message.content for message in generation.messages] == ["Be brief.", "Hello?"]


async def test_while_the_caller_speaks() -> None:
    async with talking() as talk:
        await talk.silence(1_000)
        began = talk.inference.position
        await talk.starts()
        await talk.silence(1_000)
        await away(talk)
        await talk.silence(1_000)
        assert talk.inference.transcriptions == []
        await back(talk)
        assert talk.inference.listening["start"] == began
        # It is heard again, and with it what was said meanwhile.
        talk.inference.voice.put_nowait(SpeechStarted(began))
        await talk.silence(100)
        ended = talk.inference.position - 100 * MS
        talk.inference.voice.put_nowait(SpeechPaused(began, ended))
        await until(lambda: talk.inference.transcriptions)
        start, end, _, _ = talk.inference.transcriptions[-1]
        assert start == began - 250 * MS
        assert end >= ended > began + 2_000 * MS
        talk.transcribed("All of this.")
        await talk.silence(600)
        await until(lambda: talk.inference.generations)
        assert talk.said() == [("user", "All of this.")]


async def test_while_the_caller_pauses_the_turn_waits_for_detection() -> None:
    async with talking() as talk:
        await talk.starts()
        ended = talk.inference.position
        await talk.silence(100)
        talk.inference.voice.put_nowait(SpeechPaused(0, ended))
        await until(lambda: talk.inference.transcriptions)
        await away(talk)
        # Nobody has listened to this second: it is not known to be silent.
        await talk.silence(1_000)
        assert talk.room.states == ["listening"]
        await back(talk)
        assert talk.inference.listening["start"] == ended
        # The speculative transcription is asked for again.
        await until(lambda: len(talk.inference.transcriptions) == 2)
        assert talk.inference.transcriptions[0][:3] == talk.inference.transcriptions[1][:3]
        # The caller had gone on.
        talk.inference.voice.put_nowait(SpeechStarted(ended + 300 * MS))
        await until(talk.inference.voice.empty)
        await talk.silence(700)
        assert talk.inference.generations == []
        talk.inference.voice.put_nowait(SpeechPaused(0, ended + 1_200 * MS))
        await until(lambda: len(talk.inference.transcriptions) == 3)
        talk.transcribed("One thing and another.")
        await talk.silence(700)
        await until(lambda: talk.inference.generations)
        assert talk.said() == [("user", "One thing and another.")]


async def test_transcribing() -> None:
    async with talking() as talk:
        await talk.starts()
        await talk.stops(None)
        await until(lambda: talk.room.states[-1] == "thinking")
        await away(talk)
        await talk.silence(500)
        assert len(talk.inference.transcriptions) == 1
        await back(talk)
        await until(lambda: len(talk.inference.transcriptions) == 2)
        talk.transcribed("Hello?")
        await until(lambda: talk.inference.generations)
        assert talk.said() == [("user", "Hello?")]


async def test_thinking_an_unanswered_turn_is_answered() -> None:
    async with talking() as talk:
        first = await talk.asks("Tell me a story.")
        first.write("Once upon a time. There")
        await until(lambda: talk.inference.phrases)
        await until(lambda: talk.room.queue)
        await away(talk)
        # None of it was heard: it is as if it had not been said.
        assert not talk.room.queue
        await talk.silence(500)
        assert len(talk.inference.generations) == 1
        await back(talk)
        await until(lambda: len(talk.inference.generations) == 2)
        again = talk.inference.generations[1]
        assert again.messages == first.messages
        again.write("A cat.")
        again.finish()
        await talk.hears_everything()
        assert talk.said() == [("user", "Tell me a story."), ("assistant", "A cat.")]
        assert talk.room.voices() == [2]
    (report,) = talk.reports
    assert (report.turn, report.reply, report.interrupted, report.barge_in_ms) == (1, "A cat.", False, -1)


async def test_speaking_what_was_heard_is_kept_and_the_rest_is_said() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time. There was a cat. It slept.")
        generation.finish()
        await talk.hears(20 * SAMPLES_PER_CHAR)
        await until(lambda: len(talk.inference.phrases) >= 3)
        await away(talk)
        assert not talk.room.queue, "silence at once"
        heard = talk.room.heard_samples()
        assert talk.said()[-1] == ("assistant", "Once upon a time.")
        # A client is not shown an agent that speaks and is silent.
        assert talk.room.states[-1] == "thinking"
        await talk.silence(2_000)
        assert talk.room.heard_samples() == heard
        before = len(talk.inference.phrases)
        await back(talk)
        await talk.hears_everything()
        assert talk.said() == [
            ("user", "Tell me a story."),
            ("assistant", "Once upon a time. There was a cat. It slept."),
        ]
        said_again = "".join(phrase.text for phrase in talk.inference.phrases[before:])
        assert said_again.split() == ["There", "was", "a", "cat.It", "slept."]
        assert talk.room.states[-3:] == ["thinking", "speaking", "listening"]
    (report,) = talk.reports
    assert report.reply == "Once upon a time. There was a cat. It slept."
    assert not report.interrupted
    assert len(talk.inference.generations) == 1, "the model is not asked for what it has written"


async def test_a_greeting_and_a_say_are_said_to_their_end() -> None:
    async with talking(greeting="Good day. How can I help?") as talk:
        await until(lambda: talk.inference.phrases)
        await away(talk)
        saying = talk.session.say("The call is recorded.")
        await talk.silence(300)
        await back(talk)
        await talk.hears_everything()
        await until(lambda: talk.room.queue or saying.done())
        while not saying.done():
            talk.room.hear(320)
            await asyncio.sleep(0)
        assert saying.said == "The call is recorded."
        assert talk.said() == [("assistant", "Good day. How can I help?"), ("assistant", "The call is recorded.")]


async def test_the_author_who_waits_for_a_say_gets_all_that_was_heard() -> None:
    async with talking() as talk:
        saying = talk.session.say("One two three four five six.")
        await until(lambda: talk.inference.phrases)
        await talk.hears(8 * SAMPLES_PER_CHAR)
        await away(talk)
        assert not saying.done()
        await back(talk)
        await talk.hears_everything()
        assert (await asyncio.wait_for(saying, 10)).said == "One two three four five six."


async def test_who_goes_on_while_nobody_listened_takes_the_turn_back() -> None:
    async with talking() as talk:
        await talk.asks("Tell me a story.")
        ended = talk.inference.position - 500 * MS
        await away(talk)
        await talk.silence(1_000)
        await back(talk)
        talk.inference.voice.put_nowait(SpeechStarted(ended + 800 * MS))
        await until(lambda: talk.room.states[-1] == "listening")
        assert talk.said() == []
        assert not talk.reports


async def test_who_interrupted_while_nobody_listened_is_answered() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was. And then there was another.")
        generation.finish()
        await talk.hears(9 * SAMPLES_PER_CHAR)
        await away(talk)
        began = talk.inference.position
        await talk.silence(1_000)
        await back(talk)
        talk.inference.voice.put_nowait(SpeechStarted(began))
        talk.inference.voice.put_nowait(SpeechPaused(began, began + 500 * MS))
        talk.inference.voice.put_nowait(SpeechEnded(began, began + 500 * MS))
        await until(lambda: len(talk.inference.transcriptions) == 2)
        talk.transcribed("Stop.")
        await talk.silence(600)
        await until(lambda: len(talk.inference.generations) == 2)
        assert talk.said() == [("user", "Tell me a story."), ("assistant", "Once upon"), ("user", "Stop.")]


async def test_noise_while_nobody_listened_does_not_cost_the_rest() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was. And then there was another.")
        generation.finish()
        await talk.hears(9 * SAMPLES_PER_CHAR)
        await away(talk)
        began = talk.inference.position
        await talk.silence(1_000)
        talk.inference.come_back()
        # The rest has not even begun when the noise is heard.
        talk.inference.voice.put_nowait(SpeechStarted(began))
        talk.inference.voice.put_nowait(SpeechPaused(began, began + 500 * MS))
        talk.inference.voice.put_nowait(SpeechEnded(began, began + 500 * MS))
        await until(lambda: len(talk.inference.transcriptions) == 2)
        talk.transcribed("")
        await talk.silence(600)
        await talk.hears_everything()
        assert talk.said()[-1] == ("assistant", "Once upon a time there was. And then there was another.")


async def test_an_outage_in_the_middle_of_an_interruption() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was.")
        generation.finish()
        await talk.hears(9 * SAMPLES_PER_CHAR)
        began = talk.inference.position
        await talk.starts()
        await until(lambda: talk.room.states[-1] == "listening")
        await away(talk)
        await talk.silence(500)
        await back(talk)
        assert talk.inference.listening["start"] == began
        talk.inference.voice.put_nowait(SpeechStarted(began))
        await talk.stops("")
        await talk.hears_everything()
        # No words: the rest is said.
        assert talk.said()[-1] == ("assistant", "Once upon a time there was.")


async def test_twice_in_a_row() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was. And then.")
        generation.finish()
        await talk.hears(9 * SAMPLES_PER_CHAR)
        await away(talk)
        # Gone again before anything was asked of it.
        talk.inference.come_back()
        await away(talk)
        await back(talk)
        await talk.hears(4 * SAMPLES_PER_CHAR)
        await away(talk)
        await back(talk)
        await talk.hears_everything()
        assert talk.said()[-1] == ("assistant", "Once upon a time there was. And then.")


async def test_an_answer_that_the_process_never_survives_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as talk:
        await talk.asks("Crash, please.")
        for attempt in range(1, MAX_ATTEMPTS + 1):
            await until(lambda: len(talk.inference.generations) == attempt)  # noqa: B023
            await away(talk)
            await back(talk)
        await until(lambda: talk.room.states[-1] == "listening")
        assert "the answer failed: the inference process went away 3 times" in caplog.text
        generation = await talk.asks("Something else.")
        assert generation.messages[-1].content == "Crash, please. Something else."
    assert [report.reply for report in talk.reports] == ["", ""]


async def test_an_utterance_that_the_process_never_survives_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async with talking(settings=replace(PLAIN, vad_endpointing_delay_ms=2_000)) as talk:
        await talk.starts()
        ended = talk.inference.position
        await talk.silence(100)
        talk.inference.voice.put_nowait(SpeechPaused(0, ended))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            await until(lambda: len(talk.inference.transcriptions) == attempt)  # noqa: B023
            await away(talk)
            await back(talk)
        await until(lambda: "transcription failed" in caplog.text)
        await talk.silence(2_500)
        # Once more, because it is needed now; then other words may follow.
        await until(lambda: len(talk.inference.transcriptions) == 4)
        talk.inference.transcriptions[-1][3].set_result(Transcript(1, "Well.", "en", -0.1, 0.0, 1.0))
        await until(lambda: talk.inference.generations)


async def test_an_absence_longer_than_the_ring_loses_its_beginning_only() -> None:
    async with talking() as talk:
        await talk.silence(1_000)
        await talk.starts()
        await away(talk)
        await talk.silence(80_000)
        talk.inference.oldest = 20_000 * MS
        await back(talk)
        assert talk.inference.listening["start"] == 25_000 * MS
        talk.inference.voice.put_nowait(SpeechStarted(25_000 * MS))
        await talk.silence(100)
        talk.inference.voice.put_nowait(SpeechPaused(25_000 * MS, 26_000 * MS))
        await until(lambda: talk.inference.transcriptions)
        assert all(start >= 25_000 * MS for start, *_ in talk.inference.transcriptions[-1:])


async def test_the_end_in_the_middle_of_an_outage() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was. And then.")
        generation.finish()
        await talk.hears(9 * SAMPLES_PER_CHAR)
        saying = talk.session.say("Never said.")
        await away(talk)
    assert (await asyncio.wait_for(saying, 10)).said == ""
    (report,) = talk.reports
    assert (report.reply, report.interrupted) == ("Once upon", True)
    assert talk.said()[-1] == ("assistant", "Once upon")


async def test_an_utterance_that_can_never_come_is_still_there_to_be_interrupted() -> None:
    room, inference = FakeRoom(), FakeInference()
    player = Player(room, cast(InferenceRoom, inference))
    running = asyncio.create_task(player.run())
    await asyncio.sleep(0)
    utterance = await player.begin()
    inference.hold = True
    player.speak(utterance, SpeakablePhrase((Word("One. ", "One."),)), speed=1.0, volume=1.0)
    inference.go_away()
    with pytest.raises(InferenceUnavailableError, match="went away"):
        await asyncio.wait_for(player.finish(utterance), 10)
    await asyncio.wait_for(player.interrupt(utterance), 10)
    # And the next may begin.
    assert await asyncio.wait_for(player.begin(), 10) is not utterance
    running.cancel()
    await asyncio.wait([running])
