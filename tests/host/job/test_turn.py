"""The turn table on the audio clock: no sleeping, no tasks, positions only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from host.job.turn import TurnTaking
from host.job.turn_events import (
    Action,
    AnswerFinished,
    AnswerHeard,
    CancelAnswer,
    CommitTurn,
    DetectionRestarted,
    DropPreparation,
    DropTranscript,
    DropTurn,
    Input,
    Interrupt,
    PrepareAnswer,
    PromoteTranscript,
    ResumeAnswer,
    SayStarted,
    State,
    Tick,
    Transcribe,
    TranscriptArrived,
    TranscriptFailed,
)
from host.job.turn_rules import SAMPLE_RATE, Rules
from host.job.user_turn import MAX_PART, PADDING
from inference.wire.messages import AudioLost, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted

MS = SAMPLE_RATE // 1000
DELAY = 500 * MS
PLAIN = Rules(
    detection="vad",
    vad_delay=DELAY,
    min_interruption=0,
    false_interruption=0,
    backchannels=False,
    away=0,
    preemptive=False,
)
"""A fixed silence ends a turn, and any sound interrupts."""
DEAF = replace(PLAIN, allow_interruptions=False)


class Conversation:
    """Plays inputs on one clock and keeps the actions. Times are milliseconds."""

    def __init__(self, rules: Rules = PLAIN) -> None:
        self.turns = TurnTaking(rules)
        self.actions: list[Action] = []

    @property
    def state(self) -> State:
        return self.turns.state

    def feed(self, event: Input) -> list[Action]:
        actions = self.turns.feed(event)
        self.actions += actions
        return actions

    def until(self, ms: int) -> list[Action]:
        """The audio clock runs to ``ms``, in blocks of 20 ms."""
        first = self.turns.position // MS + 20
        return [a for at in range(first, ms + 1, 20) for a in self.feed(Tick(at * MS))]

    def started(self, ms: int, *, heard_at: int | None = None) -> list[Action]:
        self.until(heard_at or ms + 64)
        return self.feed(SpeechStarted(ms * MS))

    def paused(self, ms: int, *, heard_at: int | None = None) -> list[Action]:
        self.until(heard_at or ms + 96)
        return self.feed(SpeechPaused(0, ms * MS))

    def resumed(self, ms: int) -> list[Action]:
        self.until(ms + 32)
        return self.feed(SpeechResumed(ms * MS))

    def ended(self, ms: int) -> list[Action]:
        self.until(ms + 256)
        return self.feed(SpeechEnded(0, ms * MS))

    def transcript(self, text: str) -> list[Action]:
        """The newest transcription is done."""
        return self.feed(TranscriptArrived(self.asked()[-1].ticket, text))

    def asked(self) -> list[Transcribe]:
        return [action for action in self.actions if isinstance(action, Transcribe)]


def say_something(talk: Conversation, start: int = 1000, end: int = 2000, text: str = "Hello.") -> CommitTurn:
    """A whole utterance, up to THINKING."""
    talk.started(start)
    talk.paused(end)
    talk.transcript(text)
    (commit,) = talk.until(end + 500)
    assert isinstance(commit, CommitTurn)
    return commit


def test_a_turn_is_committed_when_the_silence_is_long_enough_with_the_speculative_transcript() -> None:
    talk = Conversation()
    talk.started(1000)
    assert talk.state is State.USER_SPEAKING
    (ask,) = talk.paused(2000)
    position = talk.turns.position
    assert ask == Transcribe(1, 1000 * MS - PADDING, position, speculative=True)
    assert position >= 2096 * MS - 20 * MS
    assert talk.state is State.ENDPOINTING
    assert talk.transcript("Hello there.") == [PrepareAnswer(1, "Hello there.")]
    assert talk.ended(2000) == []
    assert talk.until(2480) == []
    assert talk.until(2500) == [CommitTurn("Hello there.", 1000 * MS, 2000 * MS, 2500 * MS, DELAY)]
    assert talk.state is State.THINKING


def test_a_late_transcript_is_awaited() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.paused(2000)
    assert talk.until(2600) == [PromoteTranscript(1)]
    assert talk.state is State.TRANSCRIBING
    assert talk.transcript("Hello.") == [
        PrepareAnswer(1, "Hello."),
        CommitTurn("Hello.", 1000 * MS, 2000 * MS, 2500 * MS, DELAY),
    ]


def test_a_pause_that_is_reported_late_ends_the_turn_at_once() -> None:
    talk = Conversation()
    talk.started(1000)
    (ask,) = talk.paused(2000, heard_at=2600)
    assert isinstance(ask, Transcribe)
    assert talk.state is State.TRANSCRIBING


def test_a_caller_who_goes_on_makes_the_old_transcript_worthless() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.paused(2000)
    assert talk.resumed(2300) == [DropTranscript(1)]
    assert talk.feed(TranscriptArrived(1, "stale")) == []
    (ask,) = talk.paused(3000)
    assert isinstance(ask, Transcribe)
    assert (ask.ticket, ask.start) == (2, 1000 * MS - PADDING)
    talk.transcript("Hello there, all.")
    assert talk.until(3500) == [CommitTurn("Hello there, all.", 1000 * MS, 3000 * MS, 3500 * MS, DELAY)]


def test_a_new_start_within_the_delay_continues_the_turn() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.paused(2000)
    talk.transcript("Hello")
    talk.ended(2000)
    # The finished result needs no dropping; the new one covers it.
    assert talk.started(2350) == [DropPreparation()]
    (ask,) = talk.paused(3000)
    assert isinstance(ask, Transcribe)
    assert ask.start == 1000 * MS - PADDING


@pytest.mark.parametrize("early", ["transcribing", "thinking"])
def test_speech_before_the_answer_is_heard_takes_the_turn_back(early: str) -> None:
    talk = Conversation()
    talk.started(1000)
    talk.paused(2000)
    if early == "thinking":
        talk.transcript("Tell me")
    talk.until(2600)
    assert talk.state is (State.THINKING if early == "thinking" else State.TRANSCRIBING)
    assert talk.started(2700) == ([CancelAnswer()] if early == "thinking" else [DropTranscript(1)])
    assert talk.state is State.USER_SPEAKING
    (ask,) = talk.paused(3500)
    assert isinstance(ask, Transcribe)
    assert ask.start == 1000 * MS - PADDING
    talk.transcript("Tell me a story.")
    assert talk.until(4000) == [CommitTurn("Tell me a story.", 1000 * MS, 3500 * MS, 4000 * MS, DELAY)]


def test_a_cough_before_the_answer_is_heard_does_not_lose_the_question() -> None:
    talk = Conversation()
    say_something(talk, text="What time is it?")
    assert talk.started(2700) == [CancelAnswer()]
    talk.paused(2900)
    talk.transcript("")
    (commit,) = talk.until(3400)
    assert isinstance(commit, CommitTurn)
    assert commit.text == "What time is it?"


def test_barge_in_interrupts_at_once_and_begins_a_new_turn() -> None:
    talk = Conversation()
    say_something(talk, 1000, 2000)
    talk.feed(AnswerHeard())
    assert talk.state is State.SPEAKING
    assert talk.started(4000) == [Interrupt()]
    assert talk.state is State.USER_SPEAKING
    (ask,) = talk.paused(5000)
    assert isinstance(ask, Transcribe)
    assert ask.start == 4000 * MS - PADDING
    talk.transcript("Stop.")
    assert talk.until(5500) == [CommitTurn("Stop.", 4000 * MS, 5000 * MS, 5500 * MS, DELAY)]


def test_a_barge_in_without_words_resumes_the_answer() -> None:
    talk = Conversation()
    say_something(talk)
    talk.feed(AnswerHeard())
    talk.started(4000)
    talk.paused(4200)
    assert talk.transcript("") == [ResumeAnswer()]
    assert talk.state is State.SPEAKING
    assert talk.feed(AnswerHeard()) == []
    assert talk.feed(AnswerFinished()) == []
    assert talk.state is State.LISTENING


def test_a_barge_in_whose_transcription_failed_does_not_resume() -> None:
    talk = Conversation()
    say_something(talk)
    talk.feed(AnswerHeard())
    talk.started(4000)
    talk.paused(4200)
    talk.until(4700)
    (retry,) = talk.feed(TranscriptFailed(2))
    assert isinstance(retry, Transcribe)
    assert talk.feed(TranscriptFailed(retry.ticket)) == [DropTurn()]
    assert talk.state is State.LISTENING


def test_where_interruptions_are_not_allowed_speech_over_the_agent_is_not_listened_to() -> None:
    talk = Conversation(DEAF)
    say_something(talk)
    talk.feed(AnswerHeard())
    assert talk.started(4000) == []
    assert talk.state is State.OVERLAP
    assert talk.paused(4500) == []
    assert talk.state is State.SPEAKING
    talk.feed(AnswerFinished())
    assert talk.ended(4500) == []
    assert talk.state is State.LISTENING
    assert talk.started(6000) == []
    assert talk.state is State.USER_SPEAKING


def test_where_interruptions_are_not_allowed_speech_that_goes_on_after_the_agent_is_a_turn() -> None:
    talk = Conversation(DEAF)
    say_something(talk)
    talk.feed(AnswerHeard())
    talk.started(4000)
    talk.paused(4500)
    talk.feed(AnswerFinished())
    talk.resumed(4700)
    (ask,) = talk.paused(5000)
    assert isinstance(ask, Transcribe)
    # What was said over the agent and ended before it did is not listened to.
    assert ask.start == 4500 * MS


def test_speech_that_outlasts_an_agent_that_may_not_be_interrupted_is_a_turn_from_its_beginning() -> None:
    talk = Conversation(DEAF)
    say_something(talk)
    talk.feed(AnswerHeard())
    talk.started(4000)
    assert talk.until(4500) == []
    talk.feed(AnswerFinished())
    assert talk.state is State.USER_SPEAKING
    (ask,) = talk.paused(5000)
    assert isinstance(ask, Transcribe)
    assert ask.start == 4000 * MS - PADDING


def test_noise_without_words_is_no_turn() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.paused(1200)
    talk.transcript("")
    assert talk.until(1700) == [DropTurn()]
    assert talk.state is State.LISTENING


def test_a_speculative_failure_is_tried_again_when_the_turn_ends_and_a_second_one_drops_it() -> None:
    talk = Conversation()
    talk.started(1000)
    (speculative,) = talk.paused(2000)
    assert isinstance(speculative, Transcribe)
    assert talk.feed(TranscriptFailed(speculative.ticket)) == []
    assert talk.until(2500) == [Transcribe(2, speculative.start, speculative.end, speculative=False)]
    assert talk.state is State.TRANSCRIBING
    assert talk.feed(TranscriptFailed(2)) == [DropTurn()]


def test_padding_does_not_reach_into_the_turn_before() -> None:
    talk = Conversation()
    say_something(talk, 1000, 2000)
    talk.feed(AnswerFinished())
    talk.started(2100, heard_at=2520)
    (ask,) = talk.paused(3000)
    assert isinstance(ask, Transcribe)
    assert ask.start == 2000 * MS


def test_padding_does_not_reach_before_the_first_sample() -> None:
    talk = Conversation()
    talk.started(100)
    (ask,) = talk.paused(1000)
    assert isinstance(ask, Transcribe)
    assert ask.start == 0


def test_a_long_monologue_is_transcribed_in_parts_cut_at_pauses() -> None:
    talk = Conversation()
    talk.started(0)
    (first,) = talk.paused(22_000)
    assert isinstance(first, Transcribe)
    # Longer than CLOSE_PART: what is under way is kept.
    assert talk.resumed(22_300) == []
    (second,) = talk.paused(40_000)
    assert isinstance(second, Transcribe)
    assert second.start == max(22_300 * MS - PADDING, first.end)
    talk.feed(TranscriptArrived(second.ticket, "and two."))
    assert talk.until(40_500) == [PromoteTranscript(first.ticket)]
    assert talk.state is State.TRANSCRIBING
    prepare, commit = talk.feed(TranscriptArrived(first.ticket, "One"))
    assert prepare == PrepareAnswer(1, "One and two.")
    assert isinstance(commit, CommitTurn)
    assert (commit.text, commit.start, commit.last_voiced) == ("One and two.", 0, 40_000 * MS)


def test_a_kept_part_that_fails_is_asked_for_again_at_once() -> None:
    talk = Conversation()
    talk.started(0)
    (first,) = talk.paused(22_000)
    assert isinstance(first, Transcribe)
    talk.resumed(22_300)
    (again,) = talk.feed(TranscriptFailed(first.ticket))
    assert again == Transcribe(first.ticket + 1, first.start, first.end, speculative=False)


def test_speech_without_any_pause_is_cut_before_it_outgrows_one_transcription() -> None:
    talk = Conversation()
    talk.started(0)
    asked = [action for action in talk.until(60_000) if isinstance(action, Transcribe)]
    assert [(ask.start, ask.end) for ask in asked] == [(0, MAX_PART), (MAX_PART, 2 * MAX_PART)]
    assert not any(ask.speculative for ask in asked)


def test_a_turn_taken_back_long_after_its_start_keeps_its_text() -> None:
    talk = Conversation()
    say_something(talk, 1000, 2000, "First.")
    assert talk.started(30_000) == [CancelAnswer()]
    (ask,) = talk.paused(31_000)
    assert isinstance(ask, Transcribe)
    assert ask.start == 30_000 * MS - PADDING
    talk.transcript("Second.")
    (commit,) = talk.until(31_500)
    assert isinstance(commit, CommitTurn)
    assert commit.text == "First. Second."


def test_lost_audio_ends_the_speech_that_was_being_heard() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.until(1500)
    (ask,) = talk.feed(AudioLost(lost_samples=100 * MS, resumed=1500 * MS))
    assert isinstance(ask, Transcribe)
    talk.transcript("Hel")
    (commit,) = talk.until(1900)
    assert isinstance(commit, CommitTurn)
    assert commit.last_voiced == 1400 * MS


def test_the_agent_may_speak_of_its_own_accord_and_be_interrupted() -> None:
    talk = Conversation()
    assert talk.feed(SayStarted()) == []
    assert talk.state is State.SPEAKING
    assert talk.started(500) == [Interrupt()]


def test_an_answer_that_failed_unheard_ends_the_turn() -> None:
    talk = Conversation()
    say_something(talk)
    assert talk.feed(AnswerFinished()) == []
    assert talk.state is State.LISTENING


# --- detection is lost ----------------------------------------------------------------------------


def restart(talk: Conversation, heard: int, *, oldest: int = 0) -> int:
    """Detection, which had got to ``heard`` ms, begins again; returns where, in ms."""
    at = talk.turns.detect_from(heard * MS)
    assert talk.feed(DetectionRestarted(at, oldest * MS)) == []
    return at // MS


def test_speech_that_was_lost_in_the_middle_is_heard_again_from_its_start() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.until(3000)
    assert restart(talk, 2900) == 1000
    assert talk.state is State.ENDPOINTING
    # The clock is where detection is: nothing is decided before it has heard the speech again.
    assert talk.until(1400) == []
    talk.started(1000, heard_at=1400)
    assert talk.state is State.USER_SPEAKING
    talk.paused(5000)
    assert talk.asked()[-1] == Transcribe(1, 1000 * MS - PADDING, 5080 * MS, speculative=True)
    talk.transcript("hello")
    talk.until(5600)
    assert talk.actions[-1] == CommitTurn("hello", 1000 * MS, 5000 * MS, 5500 * MS, DELAY)


def test_speech_after_a_pause_is_heard_again_from_the_pause() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.paused(2000)
    talk.resumed(2200)
    talk.until(3000)
    assert restart(talk, 2900) == 2200
    # What came before it is kept, and is the turn if nothing more is heard.
    talk.until(2720)
    assert talk.asked()[-1] == Transcribe(2, 1000 * MS - PADDING, 2200 * MS, speculative=False)
    talk.transcript("hello")
    assert talk.actions[-1] == CommitTurn("hello", 1000 * MS, 2200 * MS, 2700 * MS, DELAY)


def test_speech_that_is_not_heard_again_is_no_turn() -> None:
    talk = Conversation()
    talk.started(0)
    talk.until(500)
    assert restart(talk, 400) == 0
    talk.until(600)
    # There is nothing before it to transcribe.
    assert talk.asked() == []
    assert talk.actions == [DropTurn()]
    assert talk.state is State.LISTENING


def test_what_is_not_kept_any_more_is_not_asked_for() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.until(20_000)
    at = talk.turns.detect_from(20_000 * MS)
    assert at == 1000 * MS
    talk.feed(DetectionRestarted(10_000 * MS, 10_000 * MS))
    talk.started(10_032, heard_at=10_100)
    talk.paused(21_000)
    assert talk.asked()[-1] == Transcribe(1, 10_000 * MS, 21_080 * MS, speculative=True)


def test_a_part_that_was_cut_off_is_not_heard_again() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.until(1000 + 28_000)
    (first,) = talk.asked()
    assert restart(talk, 29_000) == first.end // MS


def in_state(state: State) -> Conversation:
    talk = Conversation()
    if state is State.SPEAKING:
        talk.feed(SayStarted())
    elif state is not State.LISTENING:
        talk.started(1000)
        talk.paused(2000)
        if state is State.TRANSCRIBING:
            talk.until(2600)
    assert talk.state is state
    return talk


@pytest.mark.parametrize("state", [State.LISTENING, State.ENDPOINTING, State.TRANSCRIBING, State.SPEAKING])
def test_elsewhere_detection_goes_on_where_it_was(state: State) -> None:
    talk = in_state(state)
    talk.until(2600)
    here = talk.state
    assert restart(talk, 2500) == 2500
    assert talk.state is here
    assert talk.turns.position == 2500 * MS
    # But never before the end of what was reported last.
    if state in (State.ENDPOINTING, State.TRANSCRIBING):
        assert restart(talk, 1900) == 2000


def test_a_caller_who_went_on_while_nobody_listened_continues_the_turn() -> None:
    talk = Conversation()
    talk.started(1000)
    talk.paused(2000)
    restart(talk, 2100)
    talk.started(2304, heard_at=2400)
    talk.paused(3000)
    talk.transcript("all of it")
    talk.until(3600)
    assert talk.actions[-1] == CommitTurn("all of it", 1000 * MS, 3000 * MS, 3500 * MS, DELAY)
