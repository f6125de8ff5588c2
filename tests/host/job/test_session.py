"""What a session does when things go wrong, late or twice: on a room and an inference room made of lists."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest

from host.job.agent import VoiceAgent
from host.job.dialogue import Dialogue
from host.job.pipeline import Conversation
from host.job.session import VoiceSession
from host.job.settings import SessionSettings
from inference.client import InferenceRoom, InferenceUnavailableError, RequestFailedError
from inference.wire.messages import SpeechEnded, SpeechPaused, SpeechStarted, Transcript
from inference.wire.supervision import TurnReport
from tests.host.job.fakes import PLAIN, RATE, SAMPLES_PER_CHAR, FakeGeneration, FakeInference, FakeRoom, until

MS = RATE // 1000


class Talk:
    """A running session, and a caller who speaks by the millisecond."""

    def __init__(
        self, agent: VoiceAgent, settings: SessionSettings, context_tokens: int, userdata: object = None
    ) -> None:
        self.room = FakeRoom()
        self.inference = FakeInference()
        self.reports: list[TurnReport] = []
        self.given_up = False
        self.outages = 0
        self.agent = agent
        self.settings = settings
        self.session = VoiceSession(
            agent,
            cast(InferenceRoom, self.inference),
            self._converse,
            settings=settings,
            context_tokens=context_tokens,
            report=self.reports.append,
            userdata=userdata,
            now=self.now,
        )

    def _converse(self, dialogue: Dialogue) -> Conversation:
        self.dialogue = dialogue
        self.conversation = Conversation(
            self.room,
            cast(InferenceRoom, self.inference),
            dialogue,
            settings=self.agent.settings(self.settings),
            job_id="job",
            attach_again=self.attach_again,
            now=self.now,
        )
        return self.conversation

    async def attach_again(self) -> None:
        self.outages += 1
        await self.inference.wait_attached()
        if self.given_up:
            raise InferenceUnavailableError("the inference process was away for 300 s")

    def now(self) -> float:
        """Time passes as audio does, in either direction."""
        return (self.inference.position + self.room.heard_samples()) / RATE

    async def silence(self, ms: int) -> None:
        for _ in range(ms // 20):
            self.room.caller.put_nowait(bytes(2 * 20 * MS))
        await until(self.room.caller.empty)
        await asyncio.sleep(0.001)

    async def starts(self) -> None:
        """The caller starts to speak, and detection says so."""
        began = self.inference.position
        await self.silence(100)
        self.inference.voice.put_nowait(SpeechStarted(began))
        await until(self.inference.voice.empty)

    async def stops(self, text: str | RequestFailedError | None) -> None:
        """The caller falls silent; the transcription says ``text`` at once (None: not yet)."""
        ended = self.inference.position
        await self.silence(100)
        asked = len(self.inference.transcriptions)
        self.inference.voice.put_nowait(SpeechPaused(0, ended))
        await until(lambda: len(self.inference.transcriptions) > asked)
        if text is not None:
            self.transcribed(text)
        await self.silence(200)
        self.inference.voice.put_nowait(SpeechEnded(0, ended))
        await self.silence(300)

    def transcribed(self, text: str | RequestFailedError) -> None:
        result = self.inference.transcriptions[-1][3]
        if isinstance(text, RequestFailedError):
            result.set_exception(text)
        else:
            result.set_result(Transcript(1, text, "en", -0.1, 0.0, 1.0))

    async def says(self, text: str | RequestFailedError) -> None:
        await self.starts()
        await self.stops(text)

    async def asks(self, text: str) -> FakeGeneration:
        """A whole turn of the caller; returns the generation that answers it."""
        before = len(self.inference.generations)
        await self.says(text)
        await until(lambda: len(self.inference.generations) > before)
        return self.inference.generations[-1]

    async def hears(self, samples: int) -> None:
        """The caller hears so many samples, as they come."""
        goal = self.room.heard_samples() + samples
        while self.room.heard_samples() < goal:
            await until(lambda: self.room.queue)
            self.room.hear(min(320, goal - self.room.heard_samples()))
            await asyncio.sleep(0)
        # The session looks every few milliseconds.
        await until(lambda: self.room.states[-1] == "speaking")

    async def hears_everything(self) -> None:
        """The agent finishes what it says."""
        async with asyncio.timeout(10):
            while self.room.states[-1:] != ["listening"]:
                self.room.hear(320)
                await asyncio.sleep(0)

    def said(self) -> list[tuple[str, str]]:
        return [(item.role, item.content) for item in self.session.history.messages()]


@asynccontextmanager
async def talking(
    *,
    greeting: str = "",
    context_tokens: int = 2048,
    settings: SessionSettings | None = None,
    agent: VoiceAgent | None = None,
    userdata: object = None,
) -> AsyncIterator[Talk]:
    """A conversation with ``agent``, or one that is brief."""
    agent = agent or VoiceAgent("Be brief.", greeting=greeting)
    talk = Talk(agent, settings or PLAIN, context_tokens, userdata)
    running = asyncio.create_task(talk.session.hold())
    try:
        if not agent.greeting:
            await until(lambda: talk.room.states)
        yield talk
    finally:
        await asyncio.wait_for(talk.session.aclose("the test is over"), 10)
        await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()) is not None:
            raise error


async def test_speech_starts_while_the_model_still_thinks() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        assert talk.room.states[-1] == "thinking"
        generation.write("Once upon a time. There")
        await until(lambda: talk.inference.phrases)
        assert [phrase.text for phrase in talk.inference.phrases] == ["Once upon a time."]
        await talk.hears(500)
        assert talk.room.states == ["listening", "thinking", "speaking"]
        generation.write(" was a cat.")
        generation.finish()
        await talk.hears_everything()
        assert talk.room.voices() == [1, 2]
        assert talk.said() == [("user", "Tell me a story."), ("assistant", "Once upon a time. There was a cat.")]
    (report,) = talk.reports
    assert (report.turn, report.transcript, report.interrupted) == (1, "Tell me a story.", False)
    assert report.reply == "Once upon a time. There was a cat."
    assert report.reply_audio_s == pytest.approx(SAMPLES_PER_CHAR * (len(report.reply) - 1) / RATE)
    assert report.audio_s == pytest.approx(0.1)
    assert report.endpointing_ms == pytest.approx(500)
    assert report.stt_ms == 0
    # The caller's audio went on for another 100 ms before the answer was begun; then it was heard at once.
    assert report.response_ms == pytest.approx(600)
    assert report.ttfa_ms >= report.ttft_ms >= 0
    assert report.barge_in_ms == -1
    assert talk.room.transcripts[0] == ("user", "user-1", "Tell me a story.", True)
    agent = [entry for entry in talk.room.transcripts if entry[0] == "agent"]
    assert {entry[1] for entry in agent} == {"agent-1"}
    assert agent[-1] == ("agent", "agent-1", report.reply, True)


async def test_barge_in_is_silence_at_once_and_the_history_is_what_was_heard() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was. And then")
        await talk.hears(16 * SAMPLES_PER_CHAR)
        await talk.starts()
        await until(lambda: generation.cancelled)
        assert not talk.room.queue
        heard = talk.room.heard_samples()
        assert talk.room.log[-1] == "clear"
        assert talk.said() == [("user", "Tell me a story."), ("assistant", "Once upon a time")]
        await talk.stops("Stop.")
        await until(lambda: len(talk.inference.generations) == 2)
        (report,) = talk.reports
        assert report.interrupted
        assert report.reply == "Once upon a time"
        assert 0 <= report.barge_in_ms < 100
        assert [m.content for m in talk.inference.generations[1].messages] == [
            "Be brief.",
            "Tell me a story.",
            "Once upon a time",
            "Stop.",
        ]
        talk.inference.generations[1].write("Fine.")
        talk.inference.generations[1].finish()
        await talk.hears_everything()
        assert talk.room.heard_samples() == heard + 5 * SAMPLES_PER_CHAR
        assert talk.room.voices() == [1, 2]
    assert ("agent", "agent-1", "Once upon a time", True) in talk.room.transcripts


async def test_what_a_cancelled_phrase_still_writes_is_never_played() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        talk.inference.hold = True
        generation.write("Once upon a time. And then. ")
        await until(lambda: len(talk.inference.phrases) == 2)
        first, second = talk.inference.phrases
        first.write(4_000)
        await talk.hears(3_000)
        await talk.starts()
        await until(lambda: first.cancelled and second.cancelled)
        # The voice was in the middle of something, and says it before it learns of the cancellation.
        first.write(2_000)
        await talk.stops("Stop.")
        answer = talk.inference.generations[-1]
        await talk.silence(100)
        assert answer is generation, "nothing new is asked for before the old phrases have ended"
        first.complete()
        second.write(1_000)
        second.fail(RequestFailedError("cancelled", "cancelled by the job"))
        await until(lambda: talk.inference.generations[-1] is not generation)
        talk.inference.hold = False
        talk.inference.generations[-1].write("Fine.")
        talk.inference.generations[-1].finish()
        await talk.hears_everything()
        assert talk.room.voices() == [1, 3]
        assert talk.room.heard_samples() == 3_000 + 5 * SAMPLES_PER_CHAR


async def test_a_block_that_the_room_takes_only_after_the_barge_in_is_dropped_too() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was a cat. ")
        await talk.hears(1_000)
        talk.room.takes_speech.clear()
        talk.room.hear(RATE)
        await talk.starts()
        await until(lambda: generation.cancelled)
        played = talk.room.log.count("play")
        talk.room.takes_speech.set()
        await until(lambda: talk.room.log.count("play") > played)
        await until(lambda: not talk.room.queue)
        assert talk.room.log[-1] == "clear"


async def test_a_barge_in_without_words_resumes_where_it_stopped() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was a cat. It slept. It")
        await until(lambda: len(talk.inference.phrases) == 2)
        await talk.hears(16 * SAMPLES_PER_CHAR)
        await talk.starts()
        await talk.stops("")
        await talk.hears_everything()
        # The sentence that the model had not finished is not begun.
        assert [phrase.text for phrase in talk.inference.phrases[2:]] == ["there was a cat.", "It slept."]
        assert talk.said() == [
            ("user", "Tell me a story."),
            ("assistant", "Once upon a time there was a cat. It slept."),
        ]
        (report,) = talk.reports
        assert report.reply == "Once upon a time there was a cat. It slept."
        assert not report.interrupted
        assert len(talk.inference.generations) == 1


async def test_a_caller_who_goes_on_before_the_answer_is_heard_continues_the_turn() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me")
        generation.write("What? Tell you what?")
        await until(lambda: talk.room.queue)
        await talk.starts()
        await until(lambda: generation.cancelled)
        assert not talk.room.queue
        assert talk.said() == []
        await talk.stops("Tell me a story.")
        await until(lambda: len(talk.inference.generations) == 2)
        assert talk.inference.transcriptions[1][0] == talk.inference.transcriptions[0][0]
        talk.inference.generations[1].write("Once.")
        talk.inference.generations[1].finish()
        await talk.hears_everything()
        assert talk.said() == [("user", "Tell me a story."), ("assistant", "Once.")]
        (report,) = talk.reports
        assert (report.turn, report.transcript) == (1, "Tell me a story.")
        assert 1 not in talk.room.voices()


async def test_a_barge_in_counts_what_was_heard_until_this_moment() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time. ")
        await until(lambda: len(talk.room.queue) >= 2 * 5 * SAMPLES_PER_CHAR)
        talk.room.hear(5 * SAMPLES_PER_CHAR)
        # Nobody had time to look yet.
        talk.inference.voice.put_nowait(SpeechStarted(talk.inference.position))
        await until(lambda: talk.room.states[-1] == "listening")
        assert talk.said() == [("user", "Tell me a story."), ("assistant", "Once")]


async def test_noise_is_no_turn() -> None:
    async with talking() as talk:
        await talk.says("")
        await talk.silence(1000)
        assert talk.inference.generations == []
        assert talk.room.states == ["listening"]
        # Whisper's own sign of no speech.
        await talk.starts()
        await talk.stops(None)
        talk.inference.transcriptions[-1][3].set_result(Transcript(1, "Thank you.", "en", -1.2, 0.9, 1.0))
        await until(lambda: talk.room.states[-2:] == ["thinking", "listening"])
        assert talk.inference.generations == []
        assert talk.said() == []


async def test_a_failed_generation_ends_the_turn_and_the_agent_listens_on(caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time. There")
        await until(lambda: talk.inference.phrases)
        generation.fail(RequestFailedError("engine", "the model broke"))
        await talk.hears_everything()
        assert "the model broke" in caplog.text
        assert talk.said() == [("user", "Tell me a story."), ("assistant", "Once upon a time.")]
        again = await talk.asks("Again.")
        again.write("Once.")
        again.finish()
        await talk.hears_everything()
    assert [report.reply for report in talk.reports] == ["Once upon a time.", "Once."]


async def test_a_generation_that_fails_unheard_is_a_turn_without_an_answer() -> None:
    async with talking() as talk:
        (await talk.asks("Tell me a story.")).fail(RequestFailedError("overloaded", "too busy"))
        await until(lambda: talk.reports)
        (report,) = talk.reports
        assert (report.reply, report.response_ms, report.ttft_ms, report.ttfa_ms) == ("", -1, -1, -1)
        # The next question is asked together with the one that was not answered.
        generation = await talk.asks("Hello?")
        assert generation.messages[-1].content == "Tell me a story. Hello?"


async def test_a_failed_phrase_ends_the_turn(caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time.\n")
        await until(lambda: talk.inference.phrases)
        talk.inference.hold = True
        generation.write("There was.\n")
        generation.finish()
        await until(lambda: len(talk.inference.phrases) == 2)
        talk.inference.phrases[1].write(100)
        talk.inference.phrases[1].fail(RequestFailedError("engine", "the voice broke"))
        await talk.hears_everything()
        assert "the voice broke" in caplog.text
        assert talk.said()[-1] == ("assistant", "Once upon a time.")
        talk.inference.hold = False
        again = await talk.asks("Again.")
        again.write("Once.")
        again.finish()
        await talk.hears_everything()
        assert talk.room.voices()[-1] == 3


async def test_a_failed_transcription_drops_the_turn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with talking() as talk:
        await talk.starts()
        await talk.stops(RequestFailedError("engine", "deaf"))
        await until(lambda: len(talk.inference.transcriptions) == 2)
        assert [speculative for _, _, speculative, _ in talk.inference.transcriptions] == [True, False]
        talk.transcribed(RequestFailedError("engine", "still deaf"))
        await until(lambda: talk.room.states[-1] == "listening")
        assert "still deaf" in caplog.text
        assert await talk.asks("Hello?")


async def test_an_interrupted_turn_is_reported_when_the_interruption_could_not_be_understood() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time. ")
        await talk.hears(4 * SAMPLES_PER_CHAR)
        await talk.starts()
        await talk.stops(RequestFailedError("engine", "deaf"))
        assert talk.reports == []
        await until(lambda: len(talk.inference.transcriptions) == 3)
        talk.transcribed(RequestFailedError("engine", "still deaf"))
        await until(lambda: talk.reports)
        (report,) = talk.reports
        assert (report.reply, report.interrupted) == ("Once", True)
        assert talk.room.states[-1] == "listening"


async def test_an_answer_is_over_only_when_the_room_has_taken_its_last_block() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        talk.inference.hold = True
        generation.write("Once.")
        generation.finish()
        await until(lambda: talk.inference.phrases)
        (phrase,) = talk.inference.phrases
        phrase.write(3_000)
        await talk.hears(3_000)
        talk.room.takes_speech.clear()
        phrase.write(100)
        phrase.complete()
        await until(lambda: talk.inference.read_position() == 3_100)
        for _ in range(50):
            await asyncio.sleep(0)
        talk.room.takes_speech.set()
        await talk.hears_everything()
        (report,) = talk.reports
        assert report.reply_audio_s == 3_100 / RATE


async def test_a_conversation_that_is_too_long_loses_its_oldest_turn() -> None:
    async with talking() as talk:
        for text in ("One.", "Two."):
            generation = await talk.asks(text)
            generation.write("Yes.")
            generation.finish()
            await talk.hears_everything()
        refused = await talk.asks("Three.")
        refused.fail(RequestFailedError("too_long", "the prompt does not fit"))
        await until(lambda: len(talk.inference.generations) == 4)
        asked = talk.inference.generations[3].messages
        assert [message.content for message in asked] == ["Be brief.", "Two.", "Yes.", "Three."]
        talk.inference.generations[3].write("No.")
        talk.inference.generations[3].finish()
        await talk.hears_everything()
    assert [report.reply for report in talk.reports] == ["Yes.", "Yes.", "No."]


async def test_a_reply_never_asks_for_more_than_half_of_the_context() -> None:
    async with talking(context_tokens=256, settings=replace(PLAIN, max_reply_tokens=1000)) as talk:
        assert (await talk.asks("Hello?")).max_tokens == 128


async def test_the_greeting_is_said_before_the_agent_listens_and_can_be_interrupted() -> None:
    async with talking(greeting="Hello! How can I help you today?") as talk:
        await talk.hears(6 * SAMPLES_PER_CHAR)
        assert "listening" not in talk.room.states
        await talk.starts()
        await until(lambda: talk.room.states[-1] == "listening")
        assert talk.said() == [("assistant", "Hello!")]
        await talk.stops("Help me.")
        await until(lambda: talk.inference.generations)
        assert [m.content for m in talk.inference.generations[0].messages] == ["Be brief.", "Hello!", "Help me."]
    # A greeting answers nobody.
    assert [report.turn for report in talk.reports] == [1]


async def test_say_waits_for_its_turn_and_returns_what_was_heard() -> None:
    async with talking() as talk:
        await talk.starts()
        saying = talk.session.say("The call is recorded.")
        await talk.stops("Hello.")
        await until(lambda: talk.inference.generations)
        talk.inference.generations[0].write("Hi.")
        talk.inference.generations[0].finish()
        await talk.hears(3 * SAMPLES_PER_CHAR)
        assert not saying.done()
        await until(lambda: len(talk.inference.phrases) == 2)
        await talk.hears(4 * SAMPLES_PER_CHAR)
        await talk.says("Stop.")
        assert await asyncio.wait_for(saying, 10) is saying
        assert (saying.said, saying.interrupted) == ("The", True)
        assert talk.said()[1:] == [("assistant", "Hi."), ("assistant", "The"), ("user", "Stop.")]


async def test_say_ends_with_the_session() -> None:
    async with talking() as talk:
        await talk.starts()
        saying = talk.session.say("Never said.")
    assert (await asyncio.wait_for(saying, 10)).said == ""
    assert (await asyncio.wait_for(talk.session.say("Too late."), 10)).said == ""


async def test_where_interruptions_are_not_allowed_the_agent_talks_on() -> None:
    async with talking(settings=replace(PLAIN, allow_interruptions=False)) as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time.")
        generation.finish()
        await talk.hears(1_000)
        await talk.starts()
        await talk.hears_everything()
        assert "clear" not in talk.room.log
        assert talk.said()[-1] == ("assistant", "Once upon a time.")


async def test_a_caller_who_mutes_after_a_question_gets_an_answer() -> None:
    async with talking() as talk:
        await talk.starts()
        ended = talk.inference.position
        await talk.silence(100)
        talk.inference.voice.put_nowait(SpeechPaused(0, ended))
        await until(lambda: talk.inference.transcriptions)
        talk.transcribed("Hello?")
        # No audio comes any more.
        await until(lambda: talk.inference.generations)


async def test_the_end_silences_the_agent_and_reports_what_was_heard() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was. And then")
        await talk.hears(7 * SAMPLES_PER_CHAR)
        # The last of it was heard just before the end.
        await until(lambda: len(talk.room.queue) >= 2 * 9 * SAMPLES_PER_CHAR)
        talk.room.hear(9 * SAMPLES_PER_CHAR)
    assert generation.cancelled
    assert not talk.room.queue
    (report,) = talk.reports
    assert (report.reply, report.interrupted) == ("Once upon a time", True)
    assert await talk.session.wait_closed() == "the test is over"


async def test_inference_that_stays_away_ends_the_session_with_a_clear_reason() -> None:
    talk = Talk(VoiceAgent("Be brief."), PLAIN, 2048)
    running = asyncio.create_task(talk.session.hold())
    await talk.asks("Tell me a story.")
    talk.inference.go_away()
    talk.given_up = True
    talk.inference.come_back()
    for ended in (talk.session.wait_closed(), running):
        with pytest.raises(InferenceUnavailableError, match="was away for 300 s"):
            await asyncio.wait_for(ended, 10)
    assert talk.session.close_reason == "the inference process was away for 300 s"


@pytest.mark.parametrize(("delay", "pause"), [(500, 96), (64, 64), (0, 32)])
async def test_detection_is_set_up_for_the_endpointing_delay(delay: int, pause: int) -> None:
    async with talking(settings=replace(PLAIN, vad_endpointing_delay_ms=delay)) as talk:
        assert talk.inference.listening["pause_ms"] == pause
