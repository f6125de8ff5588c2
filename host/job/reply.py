"""One thing the agent says, from the decision to answer to its report: what is known and measured of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from host.job.audio import Utterance
from inference.wire.supervision import TurnReport

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class AnsweredTurn:
    """The caller's turn that is answered. Times are monotonic seconds.

    ``decided``: the turn was over; ``committed``: its transcript was at hand; ``asked``: the model was
    asked; ``first_text``: it began to answer (None: not yet). ``delay_ms``: the silence that was chosen to end the
    turn. ``ahead_ms``: how long before ``committed`` the answer was begun on speculation. ``guesses_dropped``: answers
    that were begun so in vain.
    """

    number: int
    transcript: str
    audio_s: float
    last_voiced: float
    decided: float
    committed: float
    asked: float = 0.0
    first_text: float | None = None
    delay_ms: float = -1.0
    ahead_ms: float = 0.0
    guesses_dropped: int = 0


class Over(asyncio.Event):
    """Set once, when something is over; calls back then."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], None]] = []

    def set(self) -> None:
        """It is over."""
        super().set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._call(callback)

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when it is over; at once if it is."""
        if self.is_set():
            self._call(callback)
        else:
            self._callbacks.append(callback)

    @staticmethod
    def _call(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            logger.exception("a callback at the end of a speech failed")


@dataclass(eq=False, slots=True)
class Reply:
    """``write`` makes it (again, where it was lost unheard), ``turn`` is None where nothing was asked.

    ``known``: its text, where that was known from the start. ``allow_interruptions``: None is as the settings say.
    ``continued`` makes what follows the text that is left to say, None where nothing does. ``silent``: it says nothing
    more, and is not to. ``segment`` names it to the caller's client, once it has begun. ``source``: what writes this
    attempt. ``text``: all that was written so far (``complete``: to its end). ``said``: what was heard of it, also
    before an interruption that it was resumed from; ``shown``: the same of this attempt alone, a beginning of ``text``.
    ``span``: where it lies in the room's recording, in seconds. ``before``: what was said of its text before this
    attempt. ``attempts``: how often it was begun and the inference process went away. ``interrupted``: it ended before
    its end. ``over`` is set when nothing more of it is heard.
    """

    write: Callable[[], AsyncGenerator[str, None]]
    turn: AnsweredTurn | None = None
    known: str = ""
    allow_interruptions: bool | None = None
    continued: Callable[[str], AsyncGenerator[str, None] | None] | None = None
    silent: bool = False
    segment: str = ""
    source: AsyncGenerator[str, None] | None = None
    text: str = ""
    complete: bool = False
    said: str = ""
    shown: str = ""
    before: str = ""
    utterance: Utterance | None = None
    task: asyncio.Task[None] | None = None
    first_read: float | None = None
    first_heard: float | None = None
    audio_s: float = 0.0
    span: tuple[float, float] = (0.0, 0.0)
    interrupted: bool = False
    interrupted_at: float = 0.0
    silent_at: float | None = None
    attempts: int = 0
    over: Over = field(default_factory=Over)

    @classmethod
    def of(cls, text: str, *, allow_interruptions: bool | None = None) -> Reply:
        """A reply whose text is known."""
        return cls(lambda: whole(text), known=text, allow_interruptions=allow_interruptions)

    def unsaid(self) -> str:
        """What is left to say of it: up to its last whole phrase if it was not all written."""
        spoken = "".join(spoken.text.shown for spoken in self.utterance.phrases) if self.utterance else ""
        written = self.known or (self.text if self.complete else spoken)
        return written[len(self.shown) :]

    def begin(self) -> AsyncGenerator[str, None]:
        """What writes this attempt."""
        if self.source is None:
            self.source = self.write()
        return self.source

    def begin_again(self) -> None:
        """Its attempt was lost before anything of it was heard: it is written anew."""
        self._attempt()
        self.before = ""

    def go_on(self) -> None:
        """Its attempt was cut off: the next one says what is left of its text. What was heard stays said."""
        left, before = self.unsaid(), self.before + self.shown
        self._attempt()
        self.before = before
        continued = self.continued(left) if self.continued is not None else None
        self.known = left if continued is None else ""
        self.source = continued or whole(left)
        self.interrupted, self.interrupted_at, self.silent_at = False, 0.0, None

    def _attempt(self) -> None:
        self.source = self.utterance = self.task = None
        self.text, self.complete, self.shown = "", False, ""

    def keep_heard(self, utterance: Utterance, shown: str, sample_rate: int) -> None:
        """Its utterance is over: ``shown`` is the text of it that was heard."""
        self.shown = shown
        self.said = join(self.said, shown)
        self.audio_s += utterance.heard / sample_rate
        self.first_read = self.first_read or utterance.first_read
        self.first_heard = self.first_heard or utterance.first_heard

    def report(self, job_id: str, *, interrupted: bool) -> TurnReport | None:
        """The turn as the supervisor is told it; None for a reply that answers nobody."""
        turn = self.turn
        if turn is None:
            return None
        return TurnReport(
            job_id=job_id,
            turn=turn.number,
            transcript=turn.transcript,
            reply=self.said,
            interrupted=interrupted,
            audio_s=turn.audio_s,
            endpointing_ms=(turn.decided - turn.last_voiced) * 1000,
            stt_ms=max(0.0, turn.committed - turn.decided) * 1000,
            ttft_ms=_ms(turn.asked, turn.first_text),
            ttfa_ms=_ms(turn.asked, self.first_read),
            response_ms=_ms(turn.last_voiced, self.first_heard),
            reply_audio_s=self.audio_s,
            out_start_s=self.span[0],
            out_end_s=self.span[1],
            barge_in_ms=_ms(self.interrupted_at, self.silent_at),
            endpointing_delay_ms=turn.delay_ms,
            ahead_ms=turn.ahead_ms,
            guesses_dropped=turn.guesses_dropped,
        )


async def whole(text: str) -> AsyncGenerator[str, None]:
    """A source that knows its text from the start."""
    if text:
        yield text


def join(said: str, more: str) -> str:
    """Two texts said one after the other."""
    return f"{said} {more.strip()}".strip()


def _ms(since: float, until: float | None) -> float:
    """Milliseconds between two moments; -1 where it did not come to the second."""
    return -1.0 if until is None else (until - since) * 1000
