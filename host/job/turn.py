"""Whose turn it is: a table on the audio clock. Pure.

Everything that decides about turns is here and in ``user_turn``, and nothing but positions (samples at 16 kHz on the
room's up clock) and words go in: no wall clock, no I/O. Feed an input, perform the actions that come back::

    LISTENING --speech--> USER_SPEAKING --pause--> ENDPOINTING --silence--> THINKING --heard--> SPEAKING
              ENDPOINTING --silence, but no transcript--> TRANSCRIBING --words--> THINKING (or ENDPOINTING again)
              SPEAKING --finished--> LISTENING

    speech goes on   ENDPOINTING, TRANSCRIBING, THINKING, HELD --> USER_SPEAKING
    over the agent   SPEAKING --speech--> OVERLAP --long enough--> USER_SPEAKING: it is interrupted
                     OVERLAP --pause--> OVERLAP_PAUSED --words--> ENDPOINTING: it is interrupted
                     OVERLAP_PAUSED --no words, or a back-channel--> SPEAKING: it never stopped
    no words         ENDPOINTING, TRANSCRIBING --> LISTENING; HELD, if it had interrupted --timeout--> SPEAKING again
    nothing to hear  THINKING --> LISTENING
    a greeting       LISTENING --> SPEAKING
    detection lost   USER_SPEAKING --> ENDPOINTING, until it has heard the caller again

A caller who goes on before any of the answer was heard takes the turn back, and the answer is cancelled. Speech over
what may not be interrupted counts if it outlasts it, and is ignored otherwise. With manual turns voice alone neither
ends a turn nor interrupts.

``TABLE`` says what may happen when; a row that is missing is the error (``TurnError``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from host.job import turn_events as t
from host.job.turn_events import State
from host.job.turn_rules import SAMPLES_PER_MS, Rules
from host.job.user_turn import CLOSE_PART, MAX_PART, Part, Turn, UserTurn, began_at, fell_silent_at
from inference.wire.messages import AudioLost, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted

REACTION = 300 * SAMPLES_PER_MS
"""Who begins to speak so soon after the agent did not react to it, but goes on: the agent gives way at once."""
PROBE_EVERY = 500 * SAMPLES_PER_MS
"""How often speech over the agent is transcribed while words are needed to interrupt it."""
BOUNDARY = 300 * SAMPLES_PER_MS
"""A back-channel this short before the agent's end may have been an answer ("yes")."""


_OVERLAPS = (State.OVERLAP, State.OVERLAP_PAUSED)


@dataclass(slots=True)
class TurnTaking(UserTurn):
    """The turns of one room. ``feed`` is the way in."""

    interruptible: bool = True
    _overheard: Turn | None = None
    """A back-channel, which is an answer if the agent ends soon after it."""
    _quiet_since: int = 0
    _answer_heard: int | None = None
    _answered: int | None = None
    """Where the turn ended that is being answered."""

    def __post_init__(self) -> None:
        UserTurn.__post_init__(self)
        self.interruptible = self.rules.allow_interruptions

    def feed(self, event: t.Input) -> list[t.Action]:
        """What follows from ``event``. Raises ``TurnError`` when the table has no row for it; nothing changes then."""
        row = TABLE.get((self.state, type(event)))
        if row is None:
            raise t.TurnError(f"{type(event).__name__} is not legal while {self.state.value}")
        follows = row.handler(self, event)
        assert follows in row.follows, f"{follows} is not in the row of {self.state} and {type(event).__name__}"
        if follows is not self.state:
            self._entered(follows)
        self.state = follows
        actions, self.actions = self.actions, []
        return actions

    def _entered(self, state: State) -> None:
        match state:
            case State.LISTENING:
                self._quiet_since = self.position
            case State.THINKING:
                self._answered, self._answer_heard = self.open_turn.last_voiced, None
                self.interruptible = self.rules.allow_interruptions
            case State.SPEAKING if self.state not in (State.LISTENING, *_OVERLAPS, State.THINKING):
                # It goes on, and is heard at once.
                self._answer_heard = self.position

    def adopt(self, rules: Rules) -> None:
        """Take turns by ``rules`` from here on; what was learned of the caller stays."""
        self.rules = rules
        self.endpointing.bounds(rules.min_delay, rules.max_delay, rules.language)

    @property
    def user(self) -> Literal["speaking", "listening", "away"]:
        """What the caller does."""
        if self.state in (State.USER_SPEAKING, State.OVERLAP):
            return "speaking"
        return "away" if self.away else "listening"

    @property
    def needs_clock(self) -> bool:
        """Whether somebody waits for time to pass."""
        return self.state not in (State.THINKING, State.SPEAKING) and not (self.state is State.LISTENING and self.away)

    # --- nothing to decide --------------------------------------------------------------------------

    def _stay(self, _: t.Input) -> State:
        return self.state

    def _tick_listening(self, event: t.Tick) -> State:
        self.tick(event)
        self.away = self.away or 0 < self.rules.away <= self.position - self._quiet_since
        return State.LISTENING

    def _allow(self, event: t.Interruptible) -> State:
        self.interruptible = event.allowed
        return self.state

    def _take_back(self, event: SpeechStarted | SpeechResumed) -> State:
        if self.open_turn.ordered is not None:
            return State.THINKING
        self.actions.append(t.CancelAnswer())
        self.endpointing.cut_off()
        return self.go_on(event)

    # --- the caller speaks over the agent -----------------------------------------------------------

    @property
    def _may_interrupt(self) -> bool:
        return self.interruptible and not self.is_manual

    def _speak_over(self, event: SpeechStarted | SpeechResumed) -> State:
        turn = self.open(began_at(event))
        self._overheard = None
        if not self._may_interrupt:
            return State.OVERLAP
        no_reaction = self._answer_heard is None or turn.start - self._answer_heard < REACTION
        if no_reaction and not self.rules.min_interruption_words:
            if self._answered is not None:
                # That pause was not the end.
                self.endpointing.went_on(turn.start - self._answered)
                self.endpointing.cut_off()
            return self._interrupt(State.USER_SPEAKING)
        if not no_reaction:
            self.endpointing.answered()
        return self._overlap()

    def _tick_overlap(self, event: t.Tick) -> State:
        if self._may_interrupt:
            self.tick(event)
            return self._overlap()
        return self.tick_speaking(event)

    def _overlap(self) -> State:
        turn = self.open_turn
        if self.position - turn.stretch < self.rules.min_interruption:
            return State.OVERLAP
        if not self.rules.min_interruption_words:
            return self._interrupt(State.USER_SPEAKING)
        if not turn.probe and self.position - turn.probed >= PROBE_EVERY:
            part = turn.parts[-1]
            part.start = max(part.start, self.position - CLOSE_PART)
            turn.probe, turn.probed = self.ticket(), self.position
            self.actions.append(t.Transcribe(turn.probe, part.start, self.position, speculative=False))
        return State.OVERLAP

    def _interrupt(self, follows: State) -> State:
        self.actions.append(t.Interrupt())
        self.open_turn.interrupted = True
        self._answer_over()
        return follows

    def _probed(self, event: t.TranscriptArrived) -> bool | None:
        """Whether a transcript that was asked for to find that out interrupts; None: it is another one."""
        turn = self.open_turn
        if not turn.probe or event.ticket != turn.probe:
            return None
        turn.probe = 0
        return self._may_interrupt and self.interrupts(event.text)

    def _transcript_overlap(self, event: t.TranscriptArrived) -> State:
        interrupts = self._probed(event)
        if interrupts is None:
            self.take_text(event)
        return self._interrupt(State.USER_SPEAKING) if interrupts else State.OVERLAP

    def _transcript_overlap_paused(self, event: t.TranscriptArrived) -> State:
        turn = self.open_turn
        interrupts = self._probed(event)
        if interrupts is None:
            if self.take_text(event) is None or self.is_manual:
                return State.OVERLAP_PAUSED
            if not (self._may_interrupt and self.interrupts(event.text)):
                return self._overhear(turn)
        elif not interrupts:
            return State.OVERLAP_PAUSED
        self._interrupt(State.ENDPOINTING)
        self.drop_probe(turn)
        self.prepare()
        return self.decide()

    def _failed_overlap(self, event: t.TranscriptFailed) -> State:
        turn = self.open_turn
        if turn.probe and event.ticket == turn.probe:
            turn.probe = 0
        else:
            self.fail(event.ticket)
            if self.state is State.OVERLAP_PAUSED and not turn.parts[-1].ticket and not self.is_manual:
                return self._overhear(None)
        return self.state

    def _pause_overlap(self, event: SpeechPaused | SpeechEnded | AudioLost) -> State:
        turn = self.open_turn
        turn.last_voiced = fell_silent_at(event)
        if not self._may_interrupt and not self.is_manual:
            return self._overhear(None)
        part, end = turn.parts[-1], max(self.position, turn.last_voiced)
        part.start = max(part.start, end - MAX_PART)
        self.ask(part, end, speculative=self.is_manual)
        return State.OVERLAP_PAUSED

    def _go_on_overlap(self, event: SpeechStarted | SpeechResumed) -> State:
        if self.is_manual:
            self.go_on(event)
            return State.OVERLAP
        turn = self.open_turn
        turn.stretch, part = began_at(event), turn.parts[-1]
        self.drop_probe(turn)
        # What is being transcribed may have been enough to interrupt.
        turn.probe = part.ticket
        turn.parts[-1] = Part(max(part.start, turn.stretch - CLOSE_PART))
        return State.OVERLAP

    def _overhear(self, turn: Turn | None) -> State:
        """The agent goes on. ``turn`` may yet have been an answer to what it says."""
        self.drop_requests(self.open_turn)
        self.close()
        self._overheard = turn
        return State.SPEAKING

    def _outlasted(self, _: t.AnswerFinished) -> State:
        """The agent has finished while the caller spoke: that was no interruption."""
        self.drop_probe(self.open_turn)
        self._answer_over()
        return State.USER_SPEAKING

    def _outlasted_paused(self, _: t.AnswerFinished) -> State:
        self.drop_probe(self.open_turn)
        self._answer_over()
        self.prepare()
        return self.decide()

    # --- the agent speaks ---------------------------------------------------------------------------

    def _say(self, _: t.SayStarted) -> State:
        self._answer_over()
        return State.SPEAKING

    def _heard(self, _: t.AnswerHeard) -> State:
        self._answer_heard = self.position
        if self.state is State.THINKING:
            self.close()
            return State.SPEAKING
        return self.state

    def _finished(self, _: t.AnswerFinished) -> State:
        overheard = self._overheard
        if self._answer_heard is not None:
            self.endpointing.answered()
        self.close()
        self._answer_over()
        if overheard is None or not overheard.text() or self.position - overheard.last_voiced > BOUNDARY:
            return State.LISTENING
        self.turn = overheard
        self.prepare()
        return self.decide()

    def _answer_over(self) -> None:
        self._answer_heard = self._answered = self._overheard = None

    # --- somebody asks ------------------------------------------------------------------------------

    def _stop(self, _: t.InterruptAsked) -> State:
        self.actions.append(t.Interrupt())
        self.close()
        self._answer_over()
        return State.LISTENING

    def _stop_overlap(self, _: t.InterruptAsked) -> State:
        self._silence_for_caller()
        if self.state is State.OVERLAP:
            return State.USER_SPEAKING
        self.prepare()
        return self.decide()

    def _silence_for_caller(self) -> None:
        self.actions.append(t.Interrupt())
        self.drop_probe(self.open_turn)
        self._answer_over()

    def _never_resume(self, _: t.InterruptAsked) -> State:
        self.open_turn.interrupted = False
        return self.drop() if self.state is State.HELD else self.state

    def _order(self, _: t.CommitAsked) -> State:
        turn = self.open_turn
        if self.state in _OVERLAPS:
            self._silence_for_caller()
        turn.ordered, turn.interrupted = self.position, False
        if self.state in (State.USER_SPEAKING, State.OVERLAP):
            turn.last_voiced = max(self.position, turn.parts[-1].start)
            self.ask(turn.parts[-1], turn.last_voiced, speculative=False)
        return self.decide()

    def _clear(self, _: t.ClearAsked) -> State:
        self.floor = self.position
        return self.state

    def _clear_turn(self, _: t.ClearAsked) -> State:
        self.drop()
        self.floor = self.position
        if self.state is not State.USER_SPEAKING:
            return State.LISTENING
        self.open(self.position)
        return State.USER_SPEAKING

    def _clear_overlap(self, _: t.ClearAsked) -> State:
        self._overhear(None)
        self.floor = self.position
        if self.state is not State.OVERLAP:
            return State.SPEAKING
        self.open(self.position)
        return State.OVERLAP

    # --- detection is lost --------------------------------------------------------------------------

    def detect_from(self, heard: int) -> int:
        """Where detection must begin again when it had got to about ``heard``, to miss and repeat nothing."""
        if self.state in (State.USER_SPEAKING, State.OVERLAP):
            # What was cut off before the stretch's last part is heard already.
            return max(self.open_turn.stretch, self.open_turn.parts[-1].start)
        return max(heard, self.turn.last_voiced if self.turn is not None else self.floor)

    def _restarted(self, event: t.DetectionRestarted) -> State:
        self.position = event.at
        self._quiet_since = min(self._quiet_since, event.at)
        return self.state

    def _restarted_overlap(self, event: t.DetectionRestarted) -> State:
        self._restarted(event)
        # It is heard again.
        self.drop_requests(self.open_turn)
        self.turn = None
        return State.SPEAKING

    def _restarted_speaking(self, event: t.DetectionRestarted) -> State:
        # Nobody reports the end of this stretch of speech. It is taken for a pause, which is over as soon as the
        # stretch is heard again, and ends the turn with what was heard before it if it is not.
        self._restarted(event)
        turn = self.open_turn
        part = turn.parts[-1]
        part.start = max(part.start, event.oldest)
        part.end = max(event.at, part.start)
        if part.end == part.start:
            part.text = ""
        turn.last_voiced = event.at
        return State.ENDPOINTING


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: what decides, and the states that may follow."""

    handler: Callable[[TurnTaking, Any], State]
    follows: tuple[State, ...]


_L, _U, _E, _R, _T, _S, _O, _P, _H = State
_ANY_END = (_E, _R, _T, _L, _S, _H)


def _rows(
    state: State, *rows: tuple[tuple[type[Any], ...], Callable[[TurnTaking, Any], State], tuple[State, ...]]
) -> dict[tuple[State, type[Any]], Row]:
    return {(state, event): Row(handler, follows) for events, handler, follows in rows for event in events}


_SPEECH = (SpeechStarted, SpeechResumed)
_SILENCE = (SpeechPaused, SpeechEnded, AudioLost)
_RESULTS = (t.TranscriptArrived, t.TranscriptFailed)

TABLE: Mapping[tuple[State, type[Any]], Row] = (
    _rows(
        _L,
        (_SPEECH, TurnTaking.begin, (_U,)),
        # The end of speech that the agent was not listening to.
        (_SILENCE, TurnTaking._stay, (_L,)),
        ((t.Tick,), TurnTaking._tick_listening, (_L,)),
        ((t.DetectionRestarted,), TurnTaking._restarted, (_L,)),
        ((*_RESULTS, t.EndOfTurn, t.CommitAsked, t.InterruptAsked), TurnTaking._stay, (_L,)),
        ((t.SayStarted,), TurnTaking._say, (_S,)),
        ((t.Interruptible,), TurnTaking._allow, (_L,)),
        ((t.ClearAsked,), TurnTaking._clear, (_L,)),
    )
    | _rows(
        _U,
        (_SILENCE, TurnTaking.pause, _ANY_END),
        ((t.Tick,), TurnTaking.tick_speaking, (_U,)),
        ((t.DetectionRestarted,), TurnTaking._restarted_speaking, (_E,)),
        ((t.TranscriptArrived,), TurnTaking.transcript, (_U,)),
        ((t.TranscriptFailed,), TurnTaking.transcript_failed, (_U,)),
        ((t.EndOfTurn,), TurnTaking._stay, (_U,)),
        ((t.Interruptible,), TurnTaking._allow, (_U,)),
        ((t.CommitAsked,), TurnTaking._order, (_R,)),
        ((t.ClearAsked,), TurnTaking._clear_turn, (_U,)),
        ((t.InterruptAsked,), TurnTaking._never_resume, (_U,)),
    )
    | _rows(
        _E,
        (_SPEECH, TurnTaking.go_on, (_U,)),
        ((SpeechEnded, AudioLost), TurnTaking._stay, (_E,)),
        ((t.Tick,), TurnTaking.tick_endpointing, _ANY_END),
        ((t.DetectionRestarted,), TurnTaking._restarted, (_E,)),
        ((t.TranscriptArrived,), TurnTaking.transcript, _ANY_END),
        ((t.TranscriptFailed,), TurnTaking.transcript_failed, _ANY_END),
        ((t.EndOfTurn,), TurnTaking.end_of_turn, (_E, _T)),
        ((t.Interruptible,), TurnTaking._allow, (_E,)),
        ((t.CommitAsked,), TurnTaking._order, (_R, _T, _L)),
        ((t.ClearAsked,), TurnTaking._clear_turn, (_L,)),
        ((t.InterruptAsked,), TurnTaking._never_resume, (_E,)),
    )
    | _rows(
        _R,
        (_SPEECH, TurnTaking.go_on, (_U, _R)),
        # Paused: of speech after the end of the turn was asked for.
        (_SILENCE, TurnTaking._stay, (_R,)),
        ((t.Tick,), TurnTaking.tick, (_R,)),
        ((t.DetectionRestarted,), TurnTaking._restarted, (_R,)),
        ((t.TranscriptArrived,), TurnTaking.transcript, _ANY_END),
        ((t.TranscriptFailed,), TurnTaking.transcript_failed, _ANY_END),
        ((t.EndOfTurn,), TurnTaking._stay, (_R,)),
        ((t.Interruptible,), TurnTaking._allow, (_R,)),
        ((t.CommitAsked,), TurnTaking._order, (_R,)),
        ((t.ClearAsked,), TurnTaking._clear_turn, (_L,)),
        ((t.InterruptAsked,), TurnTaking._never_resume, (_R,)),
    )
    | _rows(
        _T,
        (_SPEECH, TurnTaking._take_back, (_U, _T)),
        (_SILENCE, TurnTaking._stay, (_T,)),
        ((t.Tick,), TurnTaking.tick, (_T,)),
        ((t.DetectionRestarted,), TurnTaking._restarted, (_T,)),
        ((*_RESULTS, t.EndOfTurn, t.CommitAsked, t.ClearAsked), TurnTaking._stay, (_T,)),
        ((t.Interruptible,), TurnTaking._allow, (_T,)),
        ((t.AnswerHeard,), TurnTaking._heard, (_S,)),
        ((t.AnswerFinished,), TurnTaking._finished, (_L,)),
        ((t.InterruptAsked,), TurnTaking._stop, (_L,)),
    )
    | _rows(
        _S,
        (_SPEECH, TurnTaking._speak_over, (_O, _U)),
        # Of the turn that is being answered.
        (_SILENCE, TurnTaking._stay, (_S,)),
        ((t.Tick,), TurnTaking.tick, (_S,)),
        ((t.DetectionRestarted,), TurnTaking._restarted, (_S,)),
        ((*_RESULTS, t.EndOfTurn, t.CommitAsked), TurnTaking._stay, (_S,)),
        ((t.Interruptible,), TurnTaking._allow, (_S,)),
        ((t.AnswerHeard,), TurnTaking._heard, (_S,)),
        ((t.AnswerFinished,), TurnTaking._finished, (_L, _E, _T)),
        ((t.ClearAsked,), TurnTaking._clear, (_S,)),
        ((t.InterruptAsked,), TurnTaking._stop, (_L,)),
    )
    | _rows(
        _O,
        (_SILENCE, TurnTaking._pause_overlap, (_P, _S)),
        ((t.Tick,), TurnTaking._tick_overlap, (_O, _U)),
        ((t.DetectionRestarted,), TurnTaking._restarted_overlap, (_S,)),
        ((t.TranscriptArrived,), TurnTaking._transcript_overlap, (_O, _U)),
        ((t.TranscriptFailed,), TurnTaking._failed_overlap, (_O,)),
        ((t.EndOfTurn,), TurnTaking._stay, (_O,)),
        ((t.Interruptible,), TurnTaking._allow, (_O,)),
        ((t.AnswerHeard,), TurnTaking._heard, (_O,)),
        ((t.AnswerFinished,), TurnTaking._outlasted, (_U,)),
        ((t.CommitAsked,), TurnTaking._order, (_R,)),
        ((t.ClearAsked,), TurnTaking._clear_overlap, (_O,)),
        ((t.InterruptAsked,), TurnTaking._stop_overlap, (_U,)),
    )
    | _rows(
        _P,
        (_SPEECH, TurnTaking._go_on_overlap, (_O,)),
        ((SpeechEnded, AudioLost), TurnTaking._stay, (_P,)),
        ((t.Tick,), TurnTaking.tick, (_P,)),
        ((t.DetectionRestarted,), TurnTaking._restarted, (_P,)),
        ((t.TranscriptArrived,), TurnTaking._transcript_overlap_paused, (_P, *_ANY_END)),
        ((t.TranscriptFailed,), TurnTaking._failed_overlap, (_P, _S)),
        ((t.EndOfTurn,), TurnTaking._stay, (_P,)),
        ((t.Interruptible,), TurnTaking._allow, (_P,)),
        ((t.AnswerHeard,), TurnTaking._heard, (_P,)),
        ((t.AnswerFinished,), TurnTaking._outlasted_paused, _ANY_END),
        ((t.CommitAsked,), TurnTaking._order, (_R, _T, _L)),
        ((t.ClearAsked,), TurnTaking._clear_overlap, (_S,)),
        ((t.InterruptAsked,), TurnTaking._stop_overlap, _ANY_END),
    )
    | _rows(
        _H,
        (_SPEECH, TurnTaking.go_on, (_U,)),
        ((SpeechEnded, AudioLost), TurnTaking._stay, (_H,)),
        ((t.Tick,), TurnTaking.tick_endpointing, (_H, _S)),
        ((t.DetectionRestarted,), TurnTaking._restarted, (_H,)),
        ((*_RESULTS, t.EndOfTurn, t.CommitAsked), TurnTaking._stay, (_H,)),
        ((t.Interruptible,), TurnTaking._allow, (_H,)),
        ((t.ClearAsked, t.InterruptAsked), TurnTaking._never_resume, (_L,)),
    )
)
