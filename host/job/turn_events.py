"""What goes into the turn table, and what comes out of it. Pure.

Positions and lengths are samples at 16 kHz on the room's up clock. The voice's own inputs
(``SpeechStarted``, ``SpeechPaused``, ``SpeechResumed``, ``SpeechEnded``, ``AudioLost``) are those of the wire.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from inference.wire.messages import AudioLost, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted


class TurnError(Exception):
    """An input that the table has no row for."""


class State(enum.Enum):
    """Where the conversation stands.

    ``OVERLAP``: the caller speaks while the agent does, and has not interrupted it (yet). ``OVERLAP_PAUSED``: and
    has fallen silent; whether it was meant to interrupt is being found out. ``HELD``: the agent was interrupted by
    what had no words in it, and goes on soon.
    """

    LISTENING = "listening"
    USER_SPEAKING = "user speaking"
    ENDPOINTING = "endpointing"
    TRANSCRIBING = "transcribing"
    THINKING = "thinking"
    SPEAKING = "speaking"
    OVERLAP = "overlap"
    OVERLAP_PAUSED = "overlap paused"
    HELD = "held"


# --- inputs ---------------------------------------------------------------------------------------


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
class EndOfTurn:
    """The model has read what ``PrepareAnswer`` number ``ticket`` said.

    ``probability`` that the caller has finished, 0 to 1; -1: it cannot be told. May come late, or never.
    """

    ticket: int
    probability: float


@dataclass(frozen=True, slots=True)
class SayStarted:
    """The agent begins to speak of its own accord (a greeting)."""


@dataclass(frozen=True, slots=True)
class Interruptible:
    """Whether what the agent says may be interrupted by voice. Holds until the caller's next turn is committed."""

    allowed: bool


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


@dataclass(frozen=True, slots=True)
class CommitAsked:
    """The caller's turn is over, somebody says (a button was released): answer it."""


@dataclass(frozen=True, slots=True)
class ClearAsked:
    """What the caller has said of a turn so far is to be forgotten."""


@dataclass(frozen=True, slots=True)
class InterruptAsked:
    """The agent is to be silent, and what it was saying is not resumed."""


Input = (
    SpeechStarted
    | SpeechPaused
    | SpeechResumed
    | SpeechEnded
    | AudioLost
    | Tick
    | TranscriptArrived
    | TranscriptFailed
    | EndOfTurn
    | SayStarted
    | Interruptible
    | AnswerHeard
    | AnswerFinished
    | DetectionRestarted
    | CommitAsked
    | ClearAsked
    | InterruptAsked
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
class PromoteTranscript:
    """The result of ``ticket``, asked for on speculation, is waited for."""

    ticket: int


@dataclass(frozen=True, slots=True)
class DropTranscript:
    """The result of ``ticket`` is of no use any more."""

    ticket: int


@dataclass(frozen=True, slots=True)
class PrepareAnswer:
    """The caller said ``text`` before this pause, and may have finished: get ready to answer it.

    Say with ``EndOfTurn`` and ``ticket`` what the model makes of it.
    """

    ticket: int
    text: str


@dataclass(frozen=True, slots=True)
class AnswerAhead:
    """Begin to answer what was prepared as ``ticket``, and let nothing of it be heard until the turn is committed."""

    ticket: int
    text: str


@dataclass(frozen=True, slots=True)
class DropPreparation:
    """The caller goes on: what ``PrepareAnswer`` said is not all. Nor is an answer ahead of it of any use."""


@dataclass(frozen=True, slots=True)
class CommitTurn:
    """The caller said ``text``, from ``start`` to ``last_voiced``; decided at ``decided``: answer it.

    ``delay``: the silence that was chosen to end it. ``ahead``: the ticket of the answer that was begun on
    speculation and holds; 0: there is none.
    """

    text: str
    start: int
    last_voiced: int
    decided: int
    delay: int = 0
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class DropTurn:
    """What sounded like speech had no words in it, or was to be forgotten; nothing follows."""


@dataclass(frozen=True, slots=True)
class CancelAnswer:
    """The caller goes on: take the answer, of which nothing was heard, and the turn it answers back."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Silence now; what was heard of the answer stays said."""


@dataclass(frozen=True, slots=True)
class ResumeAnswer:
    """The interruption had no words in it: say the rest of what was interrupted."""


Action = (
    Transcribe
    | PromoteTranscript
    | DropTranscript
    | PrepareAnswer
    | AnswerAhead
    | DropPreparation
    | CommitTurn
    | DropTurn
    | CancelAnswer
    | Interrupt
    | ResumeAnswer
)
