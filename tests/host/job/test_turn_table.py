"""The turn table itself: every row has a case here, what has no row is an error, and no sequence breaks it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.job.turn import TABLE
from host.job.turn_events import (
    Action,
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
    Input,
    Interrupt,
    InterruptAsked,
    Interruptible,
    PrepareAnswer,
    PromoteTranscript,
    ResumeAnswer,
    SayStarted,
    State,
    Tick,
    Transcribe,
    TranscriptArrived,
    TranscriptFailed,
    TurnError,
)
from host.job.turn_rules import Rules
from host.job.user_turn import MAX_PART
from inference.wire.messages import AudioLost, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted
from tests.host.job.test_turn import DEAF, MS, PLAIN, Conversation

RULES = st.sampled_from(
    [
        PLAIN,
        DEAF,
        Rules(),
        Rules(min_interruption_words=2),
        Rules(detection="vad", false_interruption=400 * MS),
        Rules(detection="manual"),
    ]
)

# --- every row --------------------------------------------------------------------------------------------

PAUSED = 2000
"""Where the caller of ``in_state`` fell silent, in ms; the agent is heard from 1000 ms on where it speaks."""
WORDS = "No, thanks."
"""No back-channel, and where the model is sure, an end after the shortest wait."""


def in_state(state: State, rules: Rules) -> Conversation:
    """A conversation in ``state``. Transcript 1 is open where there is one, and nothing is prepared."""
    talk = Conversation(rules)
    match state:
        case State.LISTENING:
            pass
        case State.SPEAKING | State.OVERLAP | State.OVERLAP_PAUSED:
            talk.until(900)
            talk.feed(SayStarted())
            talk.until(1000)
            talk.feed(AnswerHeard())
            if state is not State.SPEAKING:
                talk.started(1700)
            if state is State.OVERLAP_PAUSED:
                talk.paused(PAUSED)
        case State.HELD:
            talk.until(900)
            talk.feed(SayStarted())
            talk.started(1000)
            talk.paused(PAUSED)
            talk.transcript("")
        case _:
            talk.started(1000)
            if state is not State.USER_SPEAKING:
                talk.paused(PAUSED)
            if state is State.TRANSCRIBING:
                talk.until(PAUSED + 340)
            if state is State.THINKING:
                talk.transcript(WORDS)
                talk.feed(EndOfTurn(1, 1.0))
                talk.until(PAUSED + 340)
    assert talk.state is state
    talk.actions.clear()
    return talk


@dataclass(frozen=True)
class Case:
    """``event`` in ``state`` (after ``before`` there, by ``rules``) gives actions of these types, and ``then``."""

    state: State
    event: Input
    then: State
    actions: tuple[type[Action], ...] = ()
    rules: Rules = field(default_factory=Rules)
    before: tuple[Input, ...] = ()


L, U, E, R, T, S, V, P, H = State
DEFAULT = Rules()
MANUAL = Rules(detection="manual")
QUICK = Rules(detection="vad")
STARTED, RESUMED = SpeechStarted(2200 * MS), SpeechResumed(2200 * MS)
PAUSE, ENDED, LOST = SpeechPaused(0, 2300 * MS), SpeechEnded(0, 2300 * MS), AudioLost(MS, 2300 * MS)
GOT, NOTHING, MHM, FAILED = (
    TranscriptArrived(1, WORDS),
    TranscriptArrived(1, ""),
    TranscriptArrived(1, "Mhm."),
    TranscriptFailed(1),
)
SURE, UNSURE = EndOfTurn(1, 1.0), EndOfTurn(1, 0.0)
STRANGE = EndOfTurn(9, 1.0)


def at(ms: int) -> Tick:
    return Tick(ms * MS)


LATER = at(20_000)
AGAIN = DetectionRestarted(1500 * MS, 0)
YES, NO = Interruptible(True), Interruptible(False)

CASES: tuple[Case, ...] = (
    # LISTENING
    Case(L, STARTED, U),
    Case(L, RESUMED, U),
    Case(L, PAUSE, L),
    Case(L, ENDED, L),
    Case(L, LOST, L),
    Case(L, LATER, L),
    Case(L, AGAIN, L),
    Case(L, GOT, L),
    Case(L, FAILED, L),
    Case(L, SURE, L),
    Case(L, SayStarted(), S),
    Case(L, NO, L),
    Case(L, CommitAsked(), L),
    Case(L, ClearAsked(), L),
    Case(L, InterruptAsked(), L),
    # USER_SPEAKING
    *(Case(U, silence, E, (Transcribe,)) for silence in (PAUSE, ENDED, LOST)),
    *(Case(U, silence, R, (Transcribe,), before=(LATER,)) for silence in (PAUSE, ENDED, LOST)),
    Case(U, at(1200), U),
    Case(U, at(40_000), U, (Transcribe,)),
    Case(U, AGAIN, E),
    Case(U, GOT, U),
    Case(U, GOT, U, before=(at(40_000),)),
    Case(U, FAILED, U),
    Case(U, FAILED, U, (Transcribe,), before=(at(40_000),)),
    Case(U, SURE, U),
    Case(U, NO, U),
    Case(U, CommitAsked(), R, (Transcribe,)),
    Case(U, ClearAsked(), U, (DropTurn,)),
    Case(U, InterruptAsked(), U),
    # ENDPOINTING
    Case(E, STARTED, U, (DropTranscript,)),
    Case(E, RESUMED, U, (DropTranscript,)),
    Case(E, RESUMED, U, (DropPreparation,), before=(GOT,)),
    Case(E, ENDED, E),
    Case(E, LOST, E),
    Case(E, at(2180), E),
    Case(E, at(2300), R, (PromoteTranscript,)),
    Case(E, at(2300), T, (CommitTurn,), before=(GOT, SURE)),
    Case(E, at(2300), L, (DropTurn,), before=(NOTHING,)),
    Case(E, at(2300), E, before=(GOT, UNSURE)),
    Case(E, LATER, T, (CommitTurn,), before=(GOT, UNSURE)),
    Case(E, AGAIN, E),
    Case(E, GOT, E, (PrepareAnswer,)),
    Case(E, GOT, E, (PrepareAnswer, AnswerAhead), rules=QUICK, before=(at(2200),)),
    Case(E, NOTHING, E),
    Case(E, FAILED, E),
    Case(E, FAILED, E, before=(FAILED,)),
    Case(E, SURE, E, (AnswerAhead,), before=(GOT, at(2200))),
    Case(E, SURE, E, before=(GOT,)),
    Case(E, at(2200), E, (AnswerAhead,), before=(GOT, SURE)),
    Case(E, SURE, T, (CommitTurn,), before=(GOT, at(2320))),
    Case(E, STRANGE, E, before=(GOT,)),
    Case(E, NO, E),
    Case(E, CommitAsked(), R, (PromoteTranscript,)),
    Case(E, CommitAsked(), T, (CommitTurn,), before=(GOT,)),
    Case(E, CommitAsked(), L, (DropTurn,), before=(NOTHING,)),
    Case(E, CommitAsked(), T, (CommitTurn,), rules=MANUAL, before=(GOT,)),
    Case(E, LATER, E, rules=MANUAL, before=(GOT,)),
    Case(E, ClearAsked(), L, (DropTranscript, DropTurn)),
    Case(E, ClearAsked(), L, (DropPreparation, DropTurn), before=(GOT,)),
    Case(E, InterruptAsked(), E),
    Case(E, at(4000), E, (AnswerAhead,), before=(GOT, UNSURE)),
    # TRANSCRIBING
    Case(R, STARTED, U, (DropTranscript,)),
    Case(R, RESUMED, U, (DropTranscript,)),
    Case(R, RESUMED, R, before=(CommitAsked(),)),
    Case(R, STARTED, R, before=(CommitAsked(),)),
    Case(R, PAUSE, R),
    Case(R, ENDED, R),
    Case(R, LOST, R),
    Case(R, LATER, R),
    Case(R, AGAIN, R),
    Case(R, GOT, E, (PrepareAnswer,)),
    Case(R, NOTHING, L, (DropTurn,)),
    Case(R, GOT, T, (PrepareAnswer, CommitTurn), before=(CommitAsked(),)),
    Case(R, GOT, T, (PrepareAnswer, CommitTurn), before=(at(4600),)),
    Case(R, TranscriptArrived(9, WORDS), R),
    Case(R, FAILED, R, (Transcribe,)),
    Case(R, TranscriptFailed(2), L, (DropTurn,), before=(FAILED,)),
    Case(R, SURE, R),
    Case(R, NO, R),
    Case(R, CommitAsked(), R),
    Case(R, ClearAsked(), L, (DropTranscript, DropTurn)),
    Case(R, InterruptAsked(), R),
    # THINKING
    Case(T, STARTED, U, (CancelAnswer,)),
    Case(T, RESUMED, U, (CancelAnswer,)),
    Case(T, PAUSE, T),
    Case(T, ENDED, T),
    Case(T, LOST, T),
    Case(T, LATER, T),
    Case(T, AGAIN, T),
    Case(T, GOT, T),
    Case(T, FAILED, T),
    Case(T, SURE, T),
    Case(T, NO, T),
    Case(T, AnswerHeard(), S),
    Case(T, AnswerFinished(), L),
    Case(T, CommitAsked(), T),
    Case(T, ClearAsked(), T),
    Case(T, InterruptAsked(), L, (Interrupt,)),
    # SPEAKING
    Case(S, STARTED, V),
    Case(S, RESUMED, V),
    Case(S, SpeechStarted(1200 * MS), U, (Interrupt,)),
    Case(S, SpeechResumed(1200 * MS), U, (Interrupt,)),
    Case(S, SpeechStarted(1200 * MS), V, before=(NO,)),
    Case(S, SpeechResumed(1200 * MS), V, before=(NO,)),
    Case(S, STARTED, U, (Interrupt,), before=(at(2800),)),
    Case(S, PAUSE, S),
    Case(S, ENDED, S),
    Case(S, LOST, S),
    Case(S, LATER, S),
    Case(S, AGAIN, S),
    Case(S, GOT, S),
    Case(S, FAILED, S),
    Case(S, SURE, S),
    Case(S, YES, S),
    Case(S, AnswerHeard(), S),
    Case(S, AnswerFinished(), L),
    Case(S, CommitAsked(), S),
    Case(S, ClearAsked(), S),
    Case(S, InterruptAsked(), L, (Interrupt,)),
    # OVERLAP
    *(Case(V, silence, P, (Transcribe,)) for silence in (PAUSE, ENDED, LOST)),
    *(Case(V, silence, S, before=(NO,)) for silence in (PAUSE, ENDED, LOST)),
    Case(V, at(2180), V),
    Case(V, at(2200), U, (Interrupt,)),
    Case(V, at(2200), V, (Transcribe,), rules=Rules(min_interruption_words=2)),
    Case(V, at(2200), V, before=(NO,)),
    Case(V, at(31_000), V, (Transcribe,), before=(NO,)),
    Case(V, AGAIN, S),
    Case(V, GOT, V),
    Case(V, GOT, U, (Interrupt,), rules=Rules(min_interruption_words=2), before=(at(2200),)),
    Case(V, MHM, V, rules=Rules(min_interruption_words=2), before=(at(2200),)),
    Case(V, FAILED, V),
    Case(V, FAILED, V, rules=Rules(min_interruption_words=2), before=(at(2200),)),
    Case(V, SURE, V),
    Case(V, NO, V),
    Case(V, AnswerHeard(), V),
    Case(V, AnswerFinished(), U),
    Case(V, CommitAsked(), R, (Interrupt, Transcribe)),
    Case(V, ClearAsked(), V),
    Case(V, InterruptAsked(), U, (Interrupt,)),
    # OVERLAP_PAUSED
    Case(P, STARTED, V),
    Case(P, RESUMED, V),
    Case(P, RESUMED, V, (DropTranscript,), rules=MANUAL),
    Case(P, ENDED, P),
    Case(P, LOST, P),
    Case(P, LATER, P),
    Case(P, AGAIN, P),
    Case(P, GOT, E, (Interrupt, PrepareAnswer)),
    Case(P, GOT, T, (Interrupt, PrepareAnswer, CommitTurn), before=(at(4600),)),
    Case(P, NOTHING, S),
    Case(P, MHM, S),
    Case(P, GOT, S, before=(NO,)),
    Case(P, GOT, P, rules=MANUAL),
    Case(P, TranscriptArrived(9, WORDS), P),
    Case(P, FAILED, S),
    Case(P, TranscriptFailed(9), P),
    Case(P, SURE, P),
    Case(P, NO, P),
    Case(P, AnswerHeard(), P),
    Case(P, AnswerFinished(), E),
    Case(P, AnswerFinished(), R, before=(at(2400),)),
    Case(P, CommitAsked(), R, (Interrupt,)),
    Case(P, CommitAsked(), T, (Interrupt, CommitTurn), rules=MANUAL, before=(GOT,)),
    Case(P, CommitAsked(), L, (Interrupt, DropTurn), rules=MANUAL, before=(NOTHING,)),
    Case(P, ClearAsked(), S, (DropTranscript,)),
    Case(P, InterruptAsked(), E, (Interrupt,)),
    Case(P, InterruptAsked(), R, (Interrupt,), before=(at(2400),)),
    # HELD
    Case(H, STARTED, U),
    Case(H, RESUMED, U),
    Case(H, ENDED, H),
    Case(H, LOST, H),
    Case(H, at(2980), H),
    Case(H, at(3000), S, (ResumeAnswer,)),
    Case(H, AGAIN, H),
    Case(H, GOT, H),
    Case(H, FAILED, H),
    Case(H, SURE, H),
    Case(H, NO, H),
    Case(H, CommitAsked(), H),
    Case(H, ClearAsked(), L, (DropTurn,)),
    Case(H, InterruptAsked(), L, (DropTurn,)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.state.value}-{type(case.event).__name__}")
def test_every_row(case: Case) -> None:
    talk = in_state(case.state, case.rules)
    for event in case.before:
        talk.feed(event)
    actions = talk.feed(case.event)
    assert (talk.state, tuple(map(type, actions))) == (case.then, case.actions)


def test_no_row_is_without_a_case() -> None:
    shown = {(case.state, type(case.event)) for case in CASES}
    assert set(TABLE) - shown == set()
    assert shown - set(TABLE) == set()


# --- what has no row ---------------------------------------------------------------------------------------

ILLEGAL = {(state, kind) for state in State for kind in {type(case.event) for case in CASES}} - set(TABLE)


def test_what_is_legal_when() -> None:
    """The agent begins of its own accord only while nobody speaks; voice activity alternates; answers are heard of
    while there is one."""
    agent = {T, S, V, P}
    assert {state for state in State if (state, SayStarted) not in ILLEGAL} == {L}
    assert {state for state in State if (state, AnswerHeard) in ILLEGAL} == set(State) - agent
    assert {state for state in State if (state, AnswerFinished) in ILLEGAL} == set(State) - agent
    assert {state for state in State if (state, SpeechStarted) in ILLEGAL} == {U, V}
    assert {state for state in State if (state, SpeechPaused) in ILLEGAL} == {E, P, H}
    assert {kind for _, kind in ILLEGAL} == {
        SayStarted, AnswerHeard, AnswerFinished, SpeechStarted, SpeechResumed, SpeechPaused,
    }  # fmt: skip


@pytest.mark.parametrize(("state", "kind"), sorted(ILLEGAL, key=str), ids=str)
def test_what_has_no_row_is_an_error_and_changes_nothing(state: State, kind: type[Input]) -> None:
    talk = in_state(state, DEFAULT)
    event = next(case.event for case in CASES if type(case.event) is kind)
    before = repr(talk.turns)
    with pytest.raises(TurnError, match=f"{kind.__name__} is not legal while {state.value}"):
        talk.feed(event)
    assert repr(talk.turns) == before


@settings(max_examples=200)
@given(st.data())
def test_no_sequence_of_what_a_room_can_do_breaks_the_table(data: st.DataObject) -> None:
    """A model of detection, transcription and the agent drives the table at random."""
    talk = Conversation(data.draw(RULES))
    phase = "silence"
    ms = captured = 0
    open_tickets: list[int] = []
    prepared = ahead = 0
    answering = held = False

    def perform(actions: list[Action]) -> None:
        nonlocal prepared, ahead, answering, held
        for action in actions:
            match action:
                case Transcribe():
                    assert 0 <= action.start <= action.end <= captured
                    assert action.end - action.start <= MAX_PART
                    open_tickets.append(action.ticket)
                case PromoteTranscript():
                    assert action.ticket in open_tickets
                case DropTranscript():
                    open_tickets.remove(action.ticket)
                case PrepareAnswer():
                    assert action.text
                    assert not prepared
                    prepared = action.ticket
                case AnswerAhead():
                    assert action.ticket == prepared
                    assert not ahead
                    ahead = action.ticket
                case DropPreparation():
                    assert prepared
                    prepared = ahead = 0
                case CommitTurn():
                    assert action.text
                    assert action.ahead == ahead
                    assert not answering
                    prepared = ahead = 0
                    answering = True
                case ResumeAnswer():
                    assert held
                    answering, held = True, False
                case DropTurn():
                    held = False
                case CancelAnswer():
                    assert answering
                    answering = False
                case Interrupt():
                    assert answering
                    answering, held = False, True

    for _ in range(data.draw(st.integers(1, 60))):
        ms += data.draw(st.sampled_from([20, 100, 400, 3_000, 25_000]))
        # A restart takes the clock back, and not what the caller said.
        captured = max(captured, ms * MS)
        perform(talk.until(ms))
        actions: list[Action] = []
        choices = {"silence": ["start"], "speech": ["pause", "lost"], "paused": ["resume", "end"]}[phase]
        choices = [*choices, "transcript", "fail", "read", "heard", "finish", "say", "wait", "restart"]
        choices += ["commit", "clear", "interrupt", "forbid"]
        match data.draw(st.sampled_from(choices)):
            case "start":
                actions += talk.feed(SpeechStarted(ms * MS))
                phase = "speech"
            case "pause":
                actions += talk.feed(SpeechPaused(0, ms * MS))
                phase = "paused"
            case "lost":
                actions += talk.feed(AudioLost(MS, ms * MS))
                phase = "silence"
            case "resume":
                actions += talk.feed(SpeechResumed(ms * MS))
                phase = "speech"
            case "end":
                actions += talk.feed(SpeechEnded(0, ms * MS))
                phase = "silence"
            case "restart":
                lost_at = max(0, ms - data.draw(st.sampled_from([0, 100, 30_000])))
                at = talk.turns.detect_from(min(lost_at * MS, talk.turns.position))
                assert at <= talk.turns.position
                actions += talk.feed(DetectionRestarted(at, data.draw(st.sampled_from([0, at]))))
                ms = at // MS
                phase = "silence"
            case "transcript" if open_tickets:
                ticket = open_tickets.pop(0)
                actions += talk.feed(
                    TranscriptArrived(
                        ticket, data.draw(st.sampled_from(["", "mhm", "and some words", "That was all."]))
                    )
                )
            case "fail" if open_tickets:
                actions += talk.feed(TranscriptFailed(open_tickets.pop(0)))
            case "read" if prepared:
                actions += talk.feed(EndOfTurn(prepared, data.draw(st.sampled_from([-1.0, 0.0, 0.5, 1.0]))))
            case "commit":
                actions += talk.feed(CommitAsked())
            case "clear":
                actions += talk.feed(ClearAsked())
            case "interrupt":
                actions += talk.feed(InterruptAsked())
            case "forbid":
                actions += talk.feed(Interruptible(data.draw(st.booleans())))
            case "heard" if answering:
                actions += talk.feed(AnswerHeard())
            case "finish" if answering:
                answering = False
                actions += talk.feed(AnswerFinished())
            case "say" if talk.state is State.LISTENING:
                actions += talk.feed(SayStarted())
                answering = True
        perform(actions)
        assert not prepared or talk.state in (State.ENDPOINTING, State.TRANSCRIBING)
        assert answering == (talk.state in (State.THINKING, State.SPEAKING, State.OVERLAP, State.OVERLAP_PAUSED))
