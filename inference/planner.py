"""Which quantum the device lane runs next. Pure: takes ``now``, returns a decision and says why.

A *task* is a request that could take part in a quantum now; its *deadline* is when somebody would notice that it
has not begun. A task that goes on is a new task after each of its quanta.

===============================================  =====================================
task                                             deadline
===============================================  =====================================
first speech for a room that is silent           asked + 20 ms
text, or more speech, for a silent room          asked, or its last quantum, + 50 ms
transcription: the audio, then its words         asked, or its last quantum, + 100 ms
text for a room with a phrase that is not made   200 ms from now: first the phrase
speech for a room with speech buffered           when 0.3 s are left
text for a room with speech buffered             when 0.8 s are left
a guess at what will be asked for                when it will be; never, if nobody ever waits
===============================================  =====================================

Of each room one request of an engine counts at a time, the oldest that somebody waits for; the rest waits behind it.

Earliest deadline first, but what a room needs that is about to fall silent in mid-answer goes before everything, also
of a greedy one: it is no more than its listener hears in the same time. Then, in the same way, what *greedy* rooms
want: those that have had more device time than ``GREEDY`` times the mean of all others, as far as it is not forgotten.
They get what the others leave; and what these leave goes to an answer that nobody has asked for yet: its words and its
speech.

The first task brings its peers of the same stage along as one batch, as many as take no longer together than one after
the other, and whoever else rides nearly for free.

The device never idles while there is a task, but for a moment: when a room was just given words its job is about to
ask for the next stage of the turn, and for ``COURTESY_S`` nothing begins that is of a greedy room, or that nobody
will ever wait for. Voice activity has a lane of its own (its forward takes a thousandth of
a window's time), and a cancel takes effect at once, in whatever thread it arrives: neither is ever behind a quantum.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inference.costs import CostTable, Stage

GUESS_S = 0.4
"""Seconds after a pause in which a turn usually ends: then its transcription is no guess any more."""
USAGE_S = 10.0
"""Time constant of forgetting device time, in seconds: about one turn of conversation."""
GREEDY = 1.25
"""How many times the others' mean of device time a room may have had: answers differ in length."""
MODEST_S = 1.0
"""Device seconds that a room may have had in any case: about one turn on a small CPU."""
COURTESY_S = 0.01
"""From words for a job to what it asks for next, in seconds: two wake-ups and a message, on a machine at work."""

_FIRST_SPEECH_S = 0.02
_GOING_ON_S = 0.05
_TURN_S = 0.1
_AFTER_SPEECH_S = 0.2
_ENOUGH_SPEECH_S = 0.3
_ENOUGH_TEXT_S = 0.8
_NEARLY_DRY_S = 0.2
"""Of speech buffered: with less, a room falls silent in mid-answer if another's work goes before."""
_TEXT_NEARLY_DRY_S = 0.4
"""The same where the text of its next phrase is still to be written, and spoken after that."""
_FREE_RIDE = 0.25
"""Who is no peer joins a batch when that costs less than this share of what it costs alone."""


class Kind(enum.Enum):
    """Which engine a quantum belongs to."""

    STT = "stt"
    LLM = "llm"
    TTS = "tts"


KIND_OF = {
    Stage.ENCODE: Kind.STT,
    Stage.TRANSCRIBE: Kind.STT,
    Stage.PREFILL: Kind.LLM,
    Stage.DECODE: Kind.LLM,
    Stage.FIRST_SPEECH: Kind.TTS,
    Stage.SPEECH: Kind.TTS,
}


_GIVES_WORDS = (Stage.TRANSCRIBE, Stage.PREFILL, Stage.DECODE)
_ANSWERS = (Stage.DECODE, Stage.FIRST_SPEECH, Stage.SPEECH)


@dataclass(frozen=True, slots=True)
class Task:
    """One request that could take part in a quantum now.

    ``since``: when it was asked for or when its last quantum ended, in seconds of the clock that ``now`` comes
    from. ``wanted``: from when on somebody waits for it: later than ``now`` for a guess, infinite if nobody ever
    does. ``buffered_s``: speech that the room has ahead of its listener. ``speaks``: the room has a phrase that is
    not made yet.
    """

    stage: Stage
    request: int
    room: int
    since: float
    wanted: float = -math.inf
    buffered_s: float = 0.0
    speaks: bool = False

    def deadline(self, now: float) -> float:
        """When somebody would notice the wait."""
        return max(self._deadline(now), self.wanted)

    def is_guess(self, now: float) -> bool:
        """Whether nobody waits for it yet."""
        return now < self.wanted

    def is_spare(self, now: float) -> bool:
        """Whether it writes or speaks an answer that nobody waits for yet: more work than any other guess."""
        return self.stage in _ANSWERS and self.is_guess(now)

    def runs_dry(self, now: float) -> bool:
        """Whether its listener is about to wait in the middle of an answer. Nobody listens to a guess."""
        if self.is_guess(now) or not self.buffered_s > 0:
            return False
        kind = KIND_OF[self.stage]
        if kind is Kind.TTS:
            return self.buffered_s < _NEARLY_DRY_S
        return kind is Kind.LLM and not self.speaks and self.buffered_s < _TEXT_NEARLY_DRY_S

    def _deadline(self, now: float) -> float:
        match self.stage:
            case Stage.ENCODE | Stage.TRANSCRIBE:
                return self.since + _TURN_S
            case Stage.PREFILL | Stage.DECODE if self.speaks:
                return now + max(_AFTER_SPEECH_S, self.buffered_s - _ENOUGH_TEXT_S)
            case Stage.PREFILL | Stage.DECODE if self.buffered_s > 0:
                return now + self.buffered_s - _ENOUGH_TEXT_S
            case Stage.FIRST_SPEECH | Stage.SPEECH if self.buffered_s > 0:
                return now + self.buffered_s - _ENOUGH_SPEECH_S
            case Stage.FIRST_SPEECH:
                return self.since + _FIRST_SPEECH_S
        return self.since + _GOING_ON_S


class Why(enum.Enum):
    """What decided."""

    DEADLINE = "earliest deadline"
    SPARE_TIME = "a guess, in spare time"
    GREEDY = "had more than others, who leave time"


@dataclass(frozen=True, slots=True)
class Quantum:
    """One batch for one engine: the requests that take part, most urgent first, and the room of each.

    ``cost_s``: what the table of costs says. An engine may serve only the first of them.
    """

    stage: Stage
    requests: tuple[int, ...]
    rooms: tuple[int, ...]
    cost_s: float
    why: Why

    @property
    def kind(self) -> Kind:
        """The engine that runs it."""
        return KIND_OF[self.stage]


@dataclass(frozen=True, slots=True)
class Hold:
    """Run nothing before ``until``, unless something else is asked for before."""

    until: float


@dataclass(frozen=True, slots=True)
class _Used:
    """Device seconds, as far as they were not forgotten at ``at``."""

    seconds: float
    at: float

    def left(self, now: float) -> float:
        return self.seconds * math.exp(min(0.0, self.at - now) / USAGE_S)


class Planner:
    """Decides for one lane, and remembers what each room has had.

    ``limits``: how many requests a quantum of a stage serves at most, where there is a limit.
    """

    def __init__(self, costs: CostTable, limits: Mapping[Stage, int] | None = None) -> None:
        self.costs = costs
        self._limits = limits or {}
        self._used: dict[int, _Used] = {}
        self._courteous_until = -math.inf

    def ran(self, stage: Stage, rooms: Sequence[int], seconds: float, now: float, *, guess: bool = False) -> None:
        """A quantum that served ``rooms`` has taken ``seconds``: they pay for it, and the table of costs learns.

        ``guess``: nobody may ever wait for what it gave, or for what is asked for next because of it.
        """
        self.costs.learn(stage, len(rooms), seconds)
        if stage in _GIVES_WORDS and not guess and not self.greedy(now).issuperset(rooms):
            self._courteous_until = now + COURTESY_S
        for room in rooms:
            self._used[room] = _Used(self.usage(room, now) + seconds / len(rooms), now)

    def left(self, room: int) -> None:
        """A room is gone; another one may get its number."""
        self._used.pop(room, None)

    def usage(self, room: int, now: float) -> float:
        """Device seconds that a room has had, as far as they are not forgotten."""
        return self._used[room].left(now) if room in self._used else 0.0

    def greedy(self, now: float) -> frozenset[int]:
        """Rooms that have had much more than the others. A room alone is one, too: it makes no difference."""
        usage = {room: self.usage(room, now) for room in self._used}
        total, others = sum(usage.values()), max(1, len(usage) - 1)
        return frozenset(
            room for room, used in usage.items() if used > MODEST_S and used > GREEDY * (total - used) / others
        )

    def decide(self, now: float, tasks: Sequence[Task]) -> Quantum | Hold | None:
        """The next quantum; None when there is nothing to do. At most some hundred tasks."""
        if not tasks:
            return None
        greedy = self.greedy(now)
        heads: dict[tuple[int, Kind], Task] = {}
        for task in sorted(tasks, key=lambda task: (task.is_guess(now), task.request)):
            heads.setdefault((task.room, KIND_OF[task.stage]), task)
        first, *others = sorted(
            heads.values(),
            key=lambda task: (
                task.is_spare(now),
                task.room in greedy and not task.runs_dry(now),
                not task.runs_dry(now),
                task.deadline(now),
                task.since,
                task.request,
            ),
        )
        if now < self._courteous_until and (first.room in greedy or first.wanted == math.inf):
            return Hold(self._courteous_until)
        batch = [first]
        for task in others:
            if len(batch) >= self._limits.get(first.stage, len(tasks)):
                break
            if task.stage is first.stage and self._joins(batch, task, greedy, now):
                batch.append(task)
        del batch[self._worthwhile(first.stage, len(batch)) :]
        return Quantum(
            first.stage,
            tuple(task.request for task in batch),
            tuple(task.room for task in batch),
            self.costs.predict(first.stage, len(batch)),
            self._why(first, greedy, now),
        )

    def _worthwhile(self, stage: Stage, size: int) -> int:
        """The most of ``size`` that take no longer together than one after the other."""
        alone_s = self.costs.predict(stage, 1)
        return next((n for n in range(size, 1, -1) if self.costs.predict(stage, n) <= n * alone_s), 1)

    @staticmethod
    def _why(first: Task, greedy: frozenset[int], now: float) -> Why:
        if first.room in greedy and not first.is_spare(now):
            return Why.GREEDY
        return Why.SPARE_TIME if first.is_guess(now) else Why.DEADLINE

    def _joins(self, batch: Sequence[Task], task: Task, greedy: frozenset[int], now: float) -> bool:
        """Peers do; so does who rides for free, but neither a guess nor a greedy room, which would pay for it."""
        first, guess, is_greedy = batch[0], task.is_guess(now), task.room in greedy
        if (guess, is_greedy) == (first.is_guess(now), first.room in greedy) and (
            (task.buffered_s > 0) == (first.buffered_s > 0)
        ):
            return True
        predict, size = self.costs.predict, len(batch)
        more = predict(task.stage, size + 1) - predict(task.stage, size)
        return not guess and not is_greedy and more <= _FREE_RIDE * predict(task.stage, 1)
