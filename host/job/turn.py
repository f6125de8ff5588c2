"""Whose turn it is: a table on the audio clock. Pure.

Everything that decides about turns is here, and nothing but positions (samples at 16 kHz on the
room's up clock) goes in: no wall clock, no I/O. Feed an input, perform the actions that come back::

    LISTENING --speech--> USER_SPEAKING --pause--> ENDPOINTING --silence--> TRANSCRIBING
              TRANSCRIBING --words--> THINKING --heard--> SPEAKING --finished--> LISTENING

    speech goes on   ENDPOINTING, TRANSCRIBING, THINKING --> USER_SPEAKING
    barge-in         SPEAKING --> USER_SPEAKING
    no words         ENDPOINTING, TRANSCRIBING --> LISTENING (SPEAKING again, if it had interrupted)
    nothing to hear  THINKING --> LISTENING
    a greeting       LISTENING --> SPEAKING
    detection lost   USER_SPEAKING --> ENDPOINTING, until it has heard the caller again

At a pause the utterance so far is transcribed, and an answer to it prepared, on speculation. The turn
ends ``endpointing`` samples after the last voiced one; a result that covers it is used at once. A
caller who goes on before any of the answer was heard continues the turn: the answer is cancelled, and
the utterance is transcribed from its first start. What is longer than one transcription may be is cut
into parts, whose texts are joined.

``TABLE`` says what may happen when; a row that is missing is the error (``TurnError``).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inference.wire.messages import AudioLost, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted

SAMPLE_RATE = 16_000
SAMPLES_PER_MS = SAMPLE_RATE // 1000
PADDING = 250 * SAMPLES_PER_MS
"""Heard before the first voiced window as well: detection is late on soft consonants."""
MAX_PART = 28 * SAMPLE_RATE
"""Longest stretch transcribed in one piece: Whisper's window is 30 s."""
CLOSE_PART = 20 * SAMPLE_RATE
"""A part that has reached this length at a pause is kept when the caller goes on, and a new one begins."""


class TurnError(Exception):
    """An input that the table has no row for."""


class State(enum.Enum):
    """Where the conversation stands."""

    LISTENING = "listening"
    USER_SPEAKING = "user speaking"
    ENDPOINTING = "endpointing"
    TRANSCRIBING = "transcribing"
    THINKING = "thinking"
    SPEAKING = "speaking"


# --- inputs (with SpeechStarted, SpeechPaused, SpeechResumed, SpeechEnded and AudioLost of the wire) ---


@dataclass(frozen=True, slots=True)
class Tick:
    """The caller's audio has reached ``position``."""

    position: int


@dataclass(frozen=True, slots=True)
class TranscriptArrived:
    """The result of ``Transcribe`` number ``ticket``. One that was dropped meanwhile is ignored."""

    ticket: int
    text: str


@dataclass(frozen=True, slots=True)
class TranscriptFailed:
    """``Transcribe`` number ``ticket`` failed. A speculative one is tried again when it is needed."""

    ticket: int


@dataclass(frozen=True, slots=True)
class SayStarted:
    """The agent begins to speak of its own accord (a greeting)."""


@dataclass(frozen=True, slots=True)
class AnswerHeard:
    """The first sample of what the agent says was heard."""


@dataclass(frozen=True, slots=True)
class AnswerFinished:
    """All that the agent had to say was heard, or it failed: the caller's turn."""


@dataclass(frozen=True, slots=True)
class DetectionRestarted:
    """Voice activity detection was lost and begins again at ``at``; what it hears there is reported (again).

    The caller's audio before ``oldest`` is not kept any more.
    """

    at: int
    oldest: int


Input = (
    SpeechStarted
    | SpeechPaused
    | SpeechResumed
    | SpeechEnded
    | AudioLost
    | Tick
    | TranscriptArrived
    | TranscriptFailed
    | SayStarted
    | AnswerHeard
    | AnswerFinished
    | DetectionRestarted
)


# --- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transcribe:
    """Transcribe the caller from ``start`` to ``end``; answer with ``ticket``."""

    ticket: int
    start: int
    end: int
    speculative: bool


@dataclass(frozen=True, slots=True)
class DropTranscript:
    """The result of ``ticket`` is of no use any more."""

    ticket: int


@dataclass(frozen=True, slots=True)
class PrepareAnswer:
    """The caller said ``text`` before this pause, and may have finished: get ready to answer it."""

    text: str


@dataclass(frozen=True, slots=True)
class DropPreparation:
    """The caller goes on: what ``PrepareAnswer`` said is not all."""


@dataclass(frozen=True, slots=True)
class CommitTurn:
    """The caller said ``text``, from ``start`` to ``last_voiced``; decided at ``decided``: answer it."""

    text: str
    start: int
    last_voiced: int
    decided: int


@dataclass(frozen=True, slots=True)
class DropTurn:
    """What sounded like speech had no words in it; nothing follows."""


@dataclass(frozen=True, slots=True)
class CancelAnswer:
    """The caller goes on: take the answer, of which nothing was heard, and the turn it answers back."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Barge-in: silence now; what was heard of the answer stays said."""


@dataclass(frozen=True, slots=True)
class ResumeAnswer:
    """The interruption had no words in it: say the rest of what was interrupted."""


Action = (
    Transcribe
    | DropTranscript
    | PrepareAnswer
    | DropPreparation
    | CommitTurn
    | DropTurn
    | CancelAnswer
    | Interrupt
    | ResumeAnswer
)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What the caller has said of a turn so far: ``said``, and then what lies from ``start`` to ``end``."""

    said: str
    start: int
    end: int


# --- the machine ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Part:
    """A stretch of the utterance that is transcribed in one piece. ``ticket`` 0: nothing asked."""

    start: int
    end: int = 0
    ticket: int = 0
    final: bool = False
    text: str | None = None


@dataclass(slots=True)
class _Turn:
    """``stretch``: where the caller began to speak last. ``last_voiced``: where the caller last fell silent."""

    start: int
    stretch: int
    last_voiced: int
    parts: list[_Part]
    decided: int = 0
    interrupted_answer: bool = False
    failed: bool = False
    prepared: bool = False
    committed: str = ""

    def text(self) -> str | None:
        """What was said; None while a transcript of it is missing."""
        texts = [part.text for part in self.parts if part.text is not None]
        # Whatever is heard of a caller who goes on, this much has been said.
        return (" ".join(filter(None, texts)) or self.committed) if len(texts) == len(self.parts) else None


@dataclass(slots=True)
class TurnTaking:
    """The turns of one room. ``endpointing``: silence that ends a turn, in samples at 16 kHz."""

    endpointing: int
    allow_interruptions: bool = True
    state: State = State.LISTENING
    position: int = 0
    _turn: _Turn | None = None
    _floor: int = 0
    _tickets: int = 0
    _actions: list[Action] = field(default_factory=list)

    def feed(self, event: Input) -> list[Action]:
        """What follows from ``event``. Raises ``TurnError`` when the table has no row for it; nothing changes then."""
        row = TABLE.get((self.state, type(event)))
        if row is None:
            raise TurnError(f"{type(event).__name__} is not legal while {self.state.value}")
        follows = row.handler(self, event)
        assert follows in row.follows, f"{follows} is not in the row of {self.state} and {type(event).__name__}"
        self.state = follows
        actions, self._actions = self._actions, []
        return actions

    def unfinished(self) -> Unfinished | None:
        """What could be transcribed of a caller who is speaking; None while nobody speaks to the agent."""
        if self.state is not State.USER_SPEAKING:
            return None
        *before, part = self._open_turn.parts
        said = " ".join(earlier.text for earlier in before if earlier.text)
        return Unfinished(said, part.start, max(part.start, self.position))

    # --- nothing to decide --------------------------------------------------------------------------

    def _stay(self, _: Input) -> State:
        return self.state

    def _tick(self, event: Tick) -> State:
        self.position = max(self.position, event.position)
        return self.state

    # --- the caller speaks --------------------------------------------------------------------------

    def _begin(self, event: SpeechStarted | SpeechResumed) -> State:
        start = event.start if isinstance(event, SpeechStarted) else event.at
        self._turn = _Turn(start, start, start, [_Part(max(start - PADDING, self._floor, 0))])
        return State.USER_SPEAKING

    def _barge_in(self, event: SpeechStarted | SpeechResumed) -> State:
        if not self.allow_interruptions:
            return State.SPEAKING
        self._actions.append(Interrupt())
        self._begin(event)
        self._open_turn.interrupted_answer = True
        return State.USER_SPEAKING

    def _go_on(self, event: SpeechStarted | SpeechResumed) -> State:
        at = event.start if isinstance(event, SpeechStarted) else event.at
        turn = self._open_turn
        turn.stretch = at
        if turn.prepared:
            turn.prepared = False
            self._actions.append(DropPreparation())
        part = turn.parts[-1]
        if at - part.start > CLOSE_PART:
            if part.text is None and not part.ticket:
                self._ask(part, part.end, speculative=False)
            turn.parts.append(_Part(max(at - PADDING, part.end)))
        else:
            if part.text is None and part.ticket:
                self._actions.append(DropTranscript(part.ticket))
            turn.parts[-1] = _Part(part.start)
        return State.USER_SPEAKING

    def _take_back(self, event: SpeechStarted | SpeechResumed) -> State:
        self._actions.append(CancelAnswer())
        return self._go_on(event)

    def _tick_speaking(self, event: Tick) -> State:
        self._tick(event)
        part = self._open_turn.parts[-1]
        if self.position - part.start >= MAX_PART:
            # Nobody talks this long without a pause that detection sees; music and noise do.
            self._ask(part, part.start + MAX_PART, speculative=False)
            self._open_turn.parts.append(_Part(part.end))
        return State.USER_SPEAKING

    # --- the caller pauses --------------------------------------------------------------------------

    def _pause(self, event: SpeechPaused | SpeechEnded | AudioLost) -> State:
        turn = self._open_turn
        # Where audio was lost, detection starts anew and reports no end of what it was hearing.
        turn.last_voiced = event.resumed - event.lost_samples if isinstance(event, AudioLost) else event.end
        self._ask(turn.parts[-1], max(self.position, turn.last_voiced), speculative=True)
        return self._decide()

    def _tick_endpointing(self, event: Tick) -> State:
        self._tick(event)
        return self._decide()

    def _decide(self) -> State:
        turn = self._open_turn
        if self.position - turn.last_voiced < self.endpointing:
            return State.ENDPOINTING
        turn.decided = self.position
        for part in turn.parts:
            if part.text is None and not part.ticket:
                self._ask(part, part.end, speculative=False)
        return self._commit()

    # --- what was said ------------------------------------------------------------------------------

    def _transcript(self, event: TranscriptArrived) -> State:
        if (part := self._asked(event.ticket)) is not None:
            part.text = event.text
        if self.state is State.TRANSCRIBING:
            return self._commit()
        if part is not None and self.state is State.ENDPOINTING and (text := self._open_turn.text()):
            self._open_turn.prepared = True
            self._actions.append(PrepareAnswer(text))
        return self.state

    def _transcript_failed(self, event: TranscriptFailed) -> State:
        part = self._asked(event.ticket)
        if part is None:
            return self.state
        part.ticket = 0
        if part.final:
            part.text, self._open_turn.failed = "", True
        elif self.state is not State.ENDPOINTING or part is not self._open_turn.parts[-1]:
            self._ask(part, part.end, speculative=False)
        return self._commit() if self.state is State.TRANSCRIBING else self.state

    def _commit(self) -> State:
        turn = self._open_turn
        text = turn.text()
        if text is None:
            return State.TRANSCRIBING
        if text:
            self._actions.append(CommitTurn(text, turn.start, turn.last_voiced, turn.decided))
            turn.committed, turn.prepared = text, False
            return State.THINKING
        resume = turn.interrupted_answer and not turn.failed
        self._actions.append(ResumeAnswer() if resume else DropTurn())
        self._close_turn()
        return State.SPEAKING if resume else State.LISTENING

    # --- the agent speaks ---------------------------------------------------------------------------

    def _say(self, _: SayStarted) -> State:
        return State.SPEAKING

    def _heard(self, _: AnswerHeard) -> State:
        self._close_turn()
        return State.SPEAKING

    def _finished(self, _: AnswerFinished) -> State:
        self._close_turn()
        return State.LISTENING

    # --- detection is lost --------------------------------------------------------------------------

    def detect_from(self, heard: int) -> int:
        """Where detection must begin again when it had got to about ``heard``, to miss and repeat nothing."""
        if self.state is State.USER_SPEAKING:
            # What was cut off before the stretch's last part is heard already.
            return max(self._open_turn.stretch, self._open_turn.parts[-1].start)
        return max(heard, self._turn.last_voiced if self._turn is not None else self._floor)

    def _restarted(self, event: DetectionRestarted) -> State:
        self.position = event.at
        if self.state is not State.USER_SPEAKING:
            return self.state
        # Nobody reports the end of this stretch of speech. It is taken for a pause, which is over as soon as the
        # stretch is heard again, and ends the turn with what was heard before it if it is not.
        turn = self._open_turn
        part = turn.parts[-1]
        part.start = max(part.start, event.oldest)
        part.end = max(event.at, part.start)
        if part.end == part.start:
            part.text = ""
        turn.last_voiced = event.at
        return State.ENDPOINTING

    # --- the open turn --------------------------------------------------------------------------------

    @property
    def _open_turn(self) -> _Turn:
        assert self._turn is not None
        return self._turn

    def _close_turn(self) -> None:
        if self._turn is not None:
            self._floor = self._turn.last_voiced
            self._turn = None

    def _ask(self, part: _Part, end: int, *, speculative: bool) -> None:
        self._tickets += 1
        part.ticket, part.end, part.final = self._tickets, end, not speculative
        self._actions.append(Transcribe(part.ticket, part.start, end, speculative))

    def _asked(self, ticket: int) -> _Part | None:
        if self._turn is None:
            return None
        return next((part for part in self._turn.parts if part.ticket == ticket), None)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: what decides, and the states that may follow."""

    handler: Callable[[TurnTaking, Any], State]
    follows: tuple[State, ...]


_L, _U, _E, _R, _T, _S = State
_ANY_END = (_E, _R, _T, _L, _S)


def _rows(
    state: State, *rows: tuple[tuple[type[Any], ...], Callable[[TurnTaking, Any], State], tuple[State, ...]]
) -> dict[tuple[State, type[Any]], Row]:
    return {(state, event): Row(handler, follows) for events, handler, follows in rows for event in events}


_SPEECH = (SpeechStarted, SpeechResumed)

TABLE: Mapping[tuple[State, type[Any]], Row] = (
    _rows(
        _L,
        (_SPEECH, TurnTaking._begin, (_U,)),
        # The end of speech that the agent was not listening to.
        ((SpeechPaused, SpeechEnded, AudioLost), TurnTaking._stay, (_L,)),
        ((Tick,), TurnTaking._tick, (_L,)),
        ((DetectionRestarted,), TurnTaking._restarted, (_L,)),
        ((TranscriptArrived, TranscriptFailed), TurnTaking._stay, (_L,)),
        ((SayStarted,), TurnTaking._say, (_S,)),
    )
    | _rows(
        _U,
        ((SpeechPaused, SpeechEnded, AudioLost), TurnTaking._pause, _ANY_END),
        ((Tick,), TurnTaking._tick_speaking, (_U,)),
        ((DetectionRestarted,), TurnTaking._restarted, (_E,)),
        ((TranscriptArrived,), TurnTaking._transcript, (_U,)),
        ((TranscriptFailed,), TurnTaking._transcript_failed, (_U,)),
    )
    | _rows(
        _E,
        (_SPEECH, TurnTaking._go_on, (_U,)),
        ((SpeechEnded, AudioLost), TurnTaking._stay, (_E,)),
        ((Tick,), TurnTaking._tick_endpointing, _ANY_END),
        ((DetectionRestarted,), TurnTaking._restarted, (_E,)),
        ((TranscriptArrived,), TurnTaking._transcript, (_E,)),
        ((TranscriptFailed,), TurnTaking._transcript_failed, (_E,)),
    )
    | _rows(
        _R,
        (_SPEECH, TurnTaking._go_on, (_U,)),
        ((SpeechEnded, AudioLost), TurnTaking._stay, (_R,)),
        ((Tick,), TurnTaking._tick, (_R,)),
        ((DetectionRestarted,), TurnTaking._restarted, (_R,)),
        ((TranscriptArrived,), TurnTaking._transcript, (_R, _T, _L, _S)),
        ((TranscriptFailed,), TurnTaking._transcript_failed, (_R, _T, _L, _S)),
    )
    | _rows(
        _T,
        (_SPEECH, TurnTaking._take_back, (_U,)),
        ((SpeechEnded, AudioLost), TurnTaking._stay, (_T,)),
        ((Tick,), TurnTaking._tick, (_T,)),
        ((DetectionRestarted,), TurnTaking._restarted, (_T,)),
        ((TranscriptArrived, TranscriptFailed), TurnTaking._stay, (_T,)),
        ((AnswerHeard,), TurnTaking._heard, (_S,)),
        ((AnswerFinished,), TurnTaking._finished, (_L,)),
    )
    | _rows(
        _S,
        (_SPEECH, TurnTaking._barge_in, (_U, _S)),
        # Of the turn that is being answered, or of speech that may not interrupt.
        ((SpeechPaused, SpeechEnded, AudioLost), TurnTaking._stay, (_S,)),
        ((Tick,), TurnTaking._tick, (_S,)),
        ((DetectionRestarted,), TurnTaking._restarted, (_S,)),
        ((TranscriptArrived, TranscriptFailed), TurnTaking._stay, (_S,)),
        ((AnswerHeard,), TurnTaking._stay, (_S,)),
        ((AnswerFinished,), TurnTaking._finished, (_L,)),
    )
)
