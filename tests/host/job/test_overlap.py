"""Who speaks over whom, on the audio clock: barge-in, back-channels, coughs, resuming, manual turns, being away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from host.job.endpointing import CAUTION
from host.job.turn import BOUNDARY, PROBE_EVERY, REACTION
from host.job.turn_events import (
    AnswerAhead,
    AnswerFinished,
    AnswerHeard,
    CancelAnswer,
    ClearAsked,
    CommitAsked,
    CommitTurn,
    DetectionRestarted,
    DropPreparation,
    DropTranscript,
    DropTurn,
    EndOfTurn,
    Interrupt,
    InterruptAsked,
    Interruptible,
    PrepareAnswer,
    PromoteTranscript,
    ResumeAnswer,
    SayStarted,
    State,
    Transcribe,
    TranscriptArrived,
    TranscriptFailed,
)
from host.job.turn_rules import Rules
from host.job.user_turn import EVIDENCE_WAIT, MAX_PART, PADDING
from tests.host.job.test_turn import MS, Conversation

RULES = Rules()
MANUAL = Rules(detection="manual")
LONG = 600
"""Of the default rules: speech over the agent of this length interrupts, in ms."""


def speaking(rules: Rules = RULES, *, since: int = 1000) -> Conversation:
    """An agent that has been heard since ``since`` ms."""
    talk = Conversation(rules)
    talk.until(since - 100)
    talk.feed(SayStarted())
    talk.until(since)
    talk.feed(AnswerHeard())
    talk.actions.clear()
    return talk


# --- endpointing: evidence that comes early, late, or never -------------------------------------------------


def asked(rules: Rules = RULES) -> Conversation:
    """A caller who spoke from 1000 to 2000 ms."""
    talk = Conversation(rules)
    talk.started(1000)
    talk.paused(2000)
    return talk


def read(talk: Conversation, probability: float, ticket: int = 1) -> list[object]:
    return list(talk.feed(EndOfTurn(ticket, probability)))


def committed_at(talk: Conversation, ms: int = 20_000) -> int:
    """When the turn was committed, in ms, if the clock runs on."""
    while not any(isinstance(action, CommitTurn) for action in talk.actions):
        talk.until(talk.turns.position // MS + 20)
        assert talk.turns.position < ms * MS
    return talk.turns.position // MS


def test_a_turn_that_is_surely_over_ends_early_and_one_that_is_not_late() -> None:
    ends = []
    for probability in (0.98, 0.8, 0.5, 0.02):
        talk = asked()
        talk.transcript("I would like a room.")
        read(talk, probability)
        ends.append(committed_at(talk))
    assert ends == sorted(ends)
    assert ends[0] <= 2420
    assert ends[-1] == 4500


def test_evidence_that_comes_late_may_still_say_that_the_caller_goes_on() -> None:
    talk = asked()
    assert talk.until(2600) == [PromoteTranscript(1)]
    assert talk.state is State.TRANSCRIBING
    assert talk.transcript("I would like to") == [PrepareAnswer(1, "I would like to")]
    assert talk.state is State.ENDPOINTING
    read(talk, 0.02)
    assert committed_at(talk) == 4500


def test_late_evidence_that_the_turn_is_over_ends_it_at_once() -> None:
    talk = asked()
    talk.until(2700)
    talk.transcript("Thank you.")
    assert talk.state is State.ENDPOINTING
    (commit,) = read(talk, 0.99)
    assert isinstance(commit, CommitTurn)
    # It was over when it had been silent for long enough, and that is what is reported.
    assert commit.decided == commit.last_voiced + commit.delay < 2500 * MS


def test_a_model_that_never_answers_is_waited_for_a_bounded_time() -> None:
    talk = asked()
    talk.until(2900)
    talk.transcript("I live in London.")
    assert 0 <= committed_at(talk) - (2900 + EVIDENCE_WAIT // MS) < 20


def test_a_model_that_cannot_tell_is_not_waited_for() -> None:
    talk = asked()
    talk.until(2900)
    talk.transcript("I live in London.")
    (commit,) = read(talk, -1.0)
    assert isinstance(commit, CommitTurn)


def test_what_the_model_made_of_an_earlier_pause_does_not_count() -> None:
    talk = asked()
    talk.transcript("I would like to")
    talk.resumed(2200)
    talk.paused(3000)
    talk.transcript("I would like to book a room.")
    assert read(talk, 0.01, ticket=1) == []
    read(talk, 0.98, ticket=2)
    assert committed_at(talk) <= 3420


def test_plain_detection_waits_for_the_same_silence_whatever_is_said() -> None:
    talk = asked(Rules(detection="vad"))
    talk.transcript("I would like to")
    read(talk, 0.0)
    assert committed_at(talk) == 2500


def test_a_caller_who_goes_on_teaches_how_long_to_wait() -> None:
    talk = Conversation(RULES)
    talk.started(1000)
    at = 2000
    for _ in range(4):
        talk.paused(at)
        talk.transcript("and")
        talk.resumed(at + 400)
        at += 1400
    assert talk.turns.endpointing.patience() < RULES.max_delay
    talk.paused(at)
    talk.transcript("and the")
    read(talk, 0.0, ticket=5)
    assert committed_at(talk) < at + 1600


def test_a_caller_who_was_cut_off_is_waited_for_longer_until_an_answer_was_heard_to_its_end() -> None:
    delays = []
    talk = asked()
    talk.transcript("I live in London.")
    read(talk, 0.98)
    at = committed_at(talk)
    for ticket in (2, 3):
        delays.append(next(action.delay for action in talk.actions if isinstance(action, CommitTurn)))
        if ticket == 3:
            talk.feed(AnswerHeard())
            talk.feed(AnswerFinished())
        talk.actions = [action for action in talk.actions if isinstance(action, Transcribe)]
        talk.started(at + 100)
        talk.paused(at + 1100)
        talk.transcript("I live in London.")
        read(talk, 0.98, ticket)
        at = committed_at(talk)
    delays.append(next(action.delay for action in talk.actions if isinstance(action, CommitTurn)))
    assert delays[1] == delays[0] + CAUTION
    assert delays[2] == delays[0]


def test_who_speaks_over_an_answer_later_has_listened_to_it() -> None:
    talk = asked()
    talk.transcript("I live in London.")
    read(talk, 0.98)
    usual = talk.turns.endpointing.delay("I live in London.", 0.98)
    talk.started(committed_at(talk) + 100)
    assert talk.turns.endpointing.delay("I live in London.", 0.98) == usual + CAUTION
    talk.actions.clear()
    talk.paused(4000)
    talk.transcript("I live in London.")
    read(talk, 0.98, ticket=2)
    at = committed_at(talk)
    talk.feed(AnswerHeard())
    talk.started(at + 1000)
    assert talk.turns.endpointing.delay("I live in London.", 0.98) == usual


# --- speculation ----------------------------------------------------------------------------------------------


def test_an_answer_is_begun_shortly_before_the_turn_is_expected_to_end_and_committed_with_it() -> None:
    talk = asked()
    talk.transcript("I would like a room.")
    read(talk, 0.5)
    assert not any(isinstance(action, AnswerAhead) for action in talk.actions)
    talk.until(2700)
    ahead = next(action for action in talk.actions if isinstance(action, AnswerAhead))
    assert ahead == AnswerAhead(1, "I would like a room.")
    committed_at(talk)
    commit = talk.actions[-1]
    assert isinstance(commit, CommitTurn)
    assert commit.ahead == 1


def test_an_answer_that_was_begun_is_dropped_when_the_caller_goes_on() -> None:
    talk = asked()
    talk.transcript("I am here.")
    assert read(talk, 0.98) == []
    assert talk.until(2200) == [AnswerAhead(1, "I am here.")]
    assert talk.resumed(2250) == [DropPreparation()]
    talk.paused(3000)
    talk.transcript("I am here. How are you?")
    read(talk, 0.98, ticket=2)
    assert talk.until(3200) == [AnswerAhead(2, "I am here. How are you?")]


def test_nothing_is_begun_where_that_is_switched_off() -> None:
    talk = asked(replace(RULES, preemptive=False))
    talk.transcript("Hello.")
    read(talk, 0.98)
    committed_at(talk)
    commit = talk.actions[-1]
    assert isinstance(commit, CommitTurn)
    assert commit.ahead == 0
    assert not any(isinstance(action, AnswerAhead) for action in talk.actions)


# --- barge-in ----------------------------------------------------------------------------------------------------


def test_speech_over_the_agent_interrupts_it_when_it_has_lasted() -> None:
    talk = speaking()
    assert talk.started(3000) == []
    assert talk.state is State.OVERLAP
    assert talk.until(3000 + LONG - 20) == []
    assert talk.until(3000 + LONG) == [Interrupt()]
    assert talk.state is State.USER_SPEAKING
    (ask,) = talk.paused(4500)
    assert isinstance(ask, Transcribe)
    assert ask.start == 3000 * MS - PADDING, "all that was said over the agent is of the turn"


def test_short_words_interrupt_as_soon_as_they_are_understood() -> None:
    talk = speaking()
    talk.started(3000)
    (ask,) = talk.paused(3300)
    assert ask == Transcribe(1, 3000 * MS - PADDING, talk.turns.position, speculative=False)
    assert talk.state is State.OVERLAP_PAUSED
    talk.until(3500)
    assert talk.transcript("Stop.") == [Interrupt(), PrepareAnswer(1, "Stop.")]
    assert talk.state is State.ENDPOINTING
    read(talk, 0.98)
    committed_at(talk)


@pytest.mark.parametrize("text", ["Mhm.", "Yeah, right.", "", "[cough]", "..."])
def test_back_channels_and_coughs_do_not_stop_the_agent(text: str) -> None:
    talk = speaking()
    talk.started(3000)
    talk.paused(3400)
    assert talk.transcript(text) == []
    assert talk.state is State.SPEAKING
    talk.ended(3400)
    talk.until(9000)
    talk.feed(AnswerFinished())
    assert talk.state is State.LISTENING
    assert not any(isinstance(action, Interrupt) for action in talk.actions)


def test_back_channels_stop_the_agent_where_they_are_not_known_as_such() -> None:
    talk = speaking(replace(RULES, backchannels=False))
    talk.started(3000)
    talk.paused(3400)
    assert Interrupt() in talk.transcript("Mhm.")


def test_a_back_channel_at_the_end_of_what_the_agent_says_is_an_answer() -> None:
    talk = speaking()
    talk.started(3000)
    talk.paused(3400)
    talk.transcript("Yes.")
    talk.until(3400 + BOUNDARY // MS)
    assert talk.feed(AnswerFinished()) == [PrepareAnswer(1, "Yes.")]
    (commit,) = read(talk, 0.98)
    assert isinstance(commit, CommitTurn)
    assert (commit.text, commit.last_voiced) == ("Yes.", 3400 * MS)


def test_speech_that_outlasts_the_agent_is_no_interruption() -> None:
    talk = speaking()
    talk.started(3000)
    talk.until(3200)
    assert talk.feed(AnswerFinished()) == []
    assert talk.state is State.USER_SPEAKING
    talk.paused(3500)
    talk.transcript("")
    talk.until(3800)
    assert talk.actions[-1] == DropTurn(), "nothing is resumed"


def test_speech_that_goes_on_after_a_short_pause_may_interrupt_by_what_came_before_it() -> None:
    talk = speaking()
    talk.started(3000)
    talk.paused(3200)
    assert talk.resumed(3320) == []
    assert talk.state is State.OVERLAP
    assert talk.feed(TranscriptArrived(1, "Wait,")) == [Interrupt()]
    assert talk.state is State.USER_SPEAKING


def test_two_back_channels_in_a_row_do_not_add_up() -> None:
    talk = speaking()
    talk.started(3000)
    talk.paused(3300)
    talk.resumed(3420)
    assert talk.feed(TranscriptArrived(1, "Mhm.")) == []
    talk.until(3700)
    assert talk.paused(3720)
    assert talk.transcript("Mhm, mhm.") == []
    assert talk.state is State.SPEAKING


def test_a_transcription_that_fails_lets_the_agent_go_on() -> None:
    talk = speaking()
    talk.started(3000)
    talk.paused(3300)
    assert talk.feed(TranscriptFailed(1)) == []
    assert talk.state is State.SPEAKING


def test_where_words_are_needed_length_alone_does_not_interrupt() -> None:
    talk = speaking(replace(RULES, min_interruption_words=3))
    talk.started(3000)
    (probe,) = talk.until(3600)
    assert probe == Transcribe(1, 3000 * MS - PADDING, 3600 * MS, speculative=False)
    assert talk.until(3980) == []
    assert talk.feed(TranscriptArrived(1, "Excuse me")) == []
    assert talk.state is State.OVERLAP
    (again,) = talk.until(3600 + PROBE_EVERY // MS)
    assert isinstance(again, Transcribe)
    assert talk.feed(TranscriptArrived(2, "Excuse me, may I")) == [Interrupt()]


def test_a_probe_is_dropped_when_it_is_of_no_use_any_more() -> None:
    talk = speaking(replace(RULES, min_interruption_words=3))
    talk.started(3000)
    talk.until(3600)
    assert talk.feed(AnswerFinished()) == [DropTranscript(1)]


def test_of_long_speech_over_the_agent_no_more_is_asked_for_than_one_transcription_may_be() -> None:
    talk = speaking(replace(RULES, min_interruption_words=3))
    talk.started(3000)
    asked = [action for action in talk.until(60_000) if isinstance(action, Transcribe)]
    assert len(asked) == 1, "one probe at a time"
    talk.paused(60_000)
    assert talk.asked()[-1].end - talk.asked()[-1].start == MAX_PART


def test_who_speaks_with_the_first_sound_of_an_answer_goes_on_and_is_let() -> None:
    talk = asked()
    talk.transcript("I would like a room.")
    read(talk, 0.98)
    at = committed_at(talk)
    talk.feed(AnswerHeard())
    assert talk.started(at + REACTION // MS - 60) == [Interrupt()]
    assert talk.state is State.USER_SPEAKING
    late = asked()
    late.transcript("I would like a room.")
    read(late, 0.98)
    at = committed_at(late)
    late.feed(AnswerHeard())
    assert late.started(at + REACTION // MS + 20) == []
    assert late.state is State.OVERLAP


# --- interruptions that were none -------------------------------------------------------------------------------


def false_interruption(rules: Rules = RULES) -> Conversation:
    talk = speaking(rules)
    talk.started(3000)
    talk.until(3600)
    talk.paused(3700)
    return talk


@pytest.mark.parametrize("text", ["", "[cough]", "Yeah, yeah."])
def test_an_agent_that_was_stopped_for_nothing_goes_on_after_a_set_time(text: str) -> None:
    talk = false_interruption()
    assert talk.transcript(text) == []
    assert talk.state is State.HELD
    assert talk.until(4680) == []
    assert talk.until(4700) == [ResumeAnswer()]
    assert talk.state is State.SPEAKING
    # It is heard again at once, so what is said over it later has to last again.
    assert talk.started(6000) == []
    assert talk.state is State.OVERLAP


def test_a_transcript_that_comes_later_than_that_resumes_at_once() -> None:
    talk = false_interruption()
    talk.until(5000)
    assert talk.transcript("") == [ResumeAnswer()]


def test_a_caller_who_goes_on_in_that_time_has_the_turn() -> None:
    talk = false_interruption()
    talk.transcript("")
    assert talk.started(4200) == []
    assert talk.state is State.USER_SPEAKING
    (ask,) = talk.paused(5000)
    assert isinstance(ask, Transcribe)
    assert ask.start == 3000 * MS - PADDING
    talk.transcript("Excuse me, stop.")
    read(talk, 0.98)
    committed_at(talk)


def test_it_does_not_go_on_where_nobody_knows_what_was_said() -> None:
    talk = false_interruption()
    talk.feed(TranscriptFailed(1))
    retry = talk.asked()[-1]
    assert retry.ticket == 1
    talk.until(4100)
    retry = talk.asked()[-1]
    assert retry == Transcribe(2, retry.start, retry.end, speculative=False)
    assert talk.feed(TranscriptFailed(2)) == [DropTurn()]
    assert talk.state is State.LISTENING


def test_what_is_stopped_on_request_does_not_go_on() -> None:
    talk = false_interruption()
    talk.transcript("")
    assert talk.feed(InterruptAsked()) == [DropTurn()]
    assert talk.state is State.LISTENING
    talk = false_interruption()
    talk.feed(InterruptAsked())
    talk.transcript("")
    talk.until(9000)
    assert ResumeAnswer() not in talk.actions


# --- speech that may not be interrupted -------------------------------------------------------------------------


def test_speech_may_become_uninterruptible_and_interruptible_again() -> None:
    talk = speaking()
    talk.feed(Interruptible(False))
    talk.started(3000)
    assert talk.until(6000) == []
    talk.feed(Interruptible(True))
    assert talk.until(6020) == [Interrupt()]


def test_the_next_answer_may_be_interrupted_again() -> None:
    talk = speaking()
    talk.feed(Interruptible(False))
    talk.feed(AnswerFinished())
    talk.started(3000)
    talk.paused(4000)
    talk.transcript("Hello.")
    read(talk, 0.98)
    at = committed_at(talk)
    talk.feed(AnswerHeard())
    talk.started(at + 2000)
    assert talk.until(at + 3000) == [Interrupt()]


# --- manual turns -----------------------------------------------------------------------------------------------


def test_with_manual_turns_no_silence_ends_a_turn_but_who_asks() -> None:
    talk = asked(MANUAL)
    assert talk.transcript("Hello there.") == [PrepareAnswer(1, "Hello there.")]
    read(talk, 1.0)
    assert talk.until(60_000) == []
    assert talk.state is State.ENDPOINTING
    assert talk.feed(CommitAsked()) == [
        CommitTurn("Hello there.", 1000 * MS, 2000 * MS, 60_000 * MS, 58_000 * MS),
    ]


def test_a_turn_that_is_committed_while_the_caller_speaks_ends_there() -> None:
    talk = Conversation(MANUAL)
    talk.started(1000)
    talk.until(2000)
    (ask,) = talk.feed(CommitAsked())
    assert ask == Transcribe(1, 1000 * MS - PADDING, 2000 * MS, speculative=False)
    # The rest of the stretch is not listened to.
    talk.paused(2300)
    talk.resumed(2500)
    assert talk.state is State.TRANSCRIBING
    prepare, commit = talk.transcript("Hello.")
    assert isinstance(prepare, PrepareAnswer)
    assert isinstance(commit, CommitTurn)
    assert talk.paused(2700) == []
    assert talk.started(3000) == [], "nor does it take the turn back"
    assert talk.state is State.THINKING


def test_a_turn_that_was_committed_is_over_also_where_detection_begins_again() -> None:
    talk = Conversation(MANUAL)
    talk.started(1000)
    talk.until(2000)
    talk.feed(CommitAsked())
    talk.feed(DetectionRestarted(1500 * MS, 0))
    _, commit = talk.transcript("Hello.")
    assert isinstance(commit, CommitTurn)


def test_with_manual_turns_voice_does_not_interrupt_and_is_kept_for_the_next_turn() -> None:
    talk = speaking(MANUAL)
    talk.started(3000)
    assert talk.until(5000) == []
    talk.paused(5000)
    assert talk.transcript("Next question.") == []
    assert talk.state is State.OVERLAP_PAUSED
    assert talk.feed(InterruptAsked()) == [Interrupt(), PrepareAnswer(1, "Next question.")]
    assert talk.state is State.ENDPOINTING
    (commit,) = talk.feed(CommitAsked())
    assert isinstance(commit, CommitTurn)
    assert commit.text == "Next question."


def test_a_commit_while_the_agent_speaks_interrupts_it() -> None:
    talk = speaking(MANUAL)
    talk.started(3000)
    talk.until(4000)
    interrupt, ask = talk.feed(CommitAsked())
    assert interrupt == Interrupt()
    assert isinstance(ask, Transcribe)
    assert talk.state is State.TRANSCRIBING


def test_what_is_cleared_is_not_transcribed() -> None:
    talk = Conversation(MANUAL)
    talk.started(1000)
    talk.until(3000)
    assert talk.feed(ClearAsked()) == [DropTurn()]
    assert talk.state is State.USER_SPEAKING
    (ask,) = talk.paused(4000)
    assert isinstance(ask, Transcribe)
    assert ask.start == 3000 * MS


@pytest.mark.parametrize("rules", [RULES, MANUAL], ids=["model", "manual"])
def test_a_turn_may_be_committed_or_cleared_by_hand_in_any_mode(rules: Rules) -> None:
    talk = asked(rules)
    talk.transcript("I would like to")
    (commit,) = talk.feed(CommitAsked())
    assert isinstance(commit, CommitTurn)
    talk = asked(rules)
    assert talk.feed(ClearAsked()) == [DropTranscript(1), DropTurn()]
    assert talk.state is State.LISTENING


def test_an_answer_is_stopped_before_anything_of_it_is_heard() -> None:
    talk = asked()
    talk.transcript("Hello.")
    read(talk, 0.98)
    committed_at(talk)
    assert talk.feed(InterruptAsked()) == [Interrupt()]
    assert talk.state is State.LISTENING


# --- away -------------------------------------------------------------------------------------------------------


def test_a_caller_is_away_after_both_were_silent_for_long_and_back_with_the_first_word() -> None:
    talk = speaking()
    talk.until(8000)
    talk.feed(AnswerFinished())
    talk.until(22_980)
    assert talk.turns.user == "listening"
    talk.until(23_000)
    assert talk.turns.user == "away"
    assert not talk.turns.needs_clock
    talk.started(30_000)
    assert talk.turns.user == "speaking"
    talk.paused(31_000)
    assert talk.turns.user == "listening"


def test_a_caller_who_is_spoken_to_is_not_away_and_one_who_was_stays_so() -> None:
    talk = speaking()
    talk.until(60_000)
    assert talk.turns.user == "listening"
    talk.feed(AnswerFinished())
    talk.until(76_000)
    assert talk.turns.user == "away"
    talk.feed(SayStarted())
    assert talk.turns.user == "away"
    never = Conversation(replace(RULES, away=0))
    never.until(100_000)
    assert never.turns.user == "listening"


# --- rules that change --------------------------------------------------------------------------------------------


def test_other_rules_hold_from_where_they_are_adopted() -> None:
    talk = asked()
    talk.transcript("I would like to")
    read(talk, 0.0)
    talk.turns.adopt(Rules(detection="vad"))
    assert committed_at(talk) == 2500
    assert talk.started(2600) == [CancelAnswer()]
