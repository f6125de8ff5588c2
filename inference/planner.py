"""Which quantum the device lane runs next. Pure: takes ``now``, returns a decision and says why.

A *task* is a request that could take part in a quantum now; its *deadline* is when somebody would notice that it
has not begun. A task that goes on is a new task after each of its quanta.

=============================================  ==============================================
task                                           deadline
=============================================  ==============================================
first speech for a room that is silent         asked + 20 ms
a token, or more speech, for a silent room     its last quantum + 50 ms
transcription: its audio, then its words       asked, or its last quantum, + 100 ms
prefill for a room that is silent              asked, or its last quantum, + 150 ms
a guess at what will be asked for              when it will be, if ever
speech for a room with speech buffered         when half a second is left
text for a room with speech buffered           when one second is left
=============================================  ==============================================

Earliest deadline first, in three tiers: everybody; then *greedy* rooms; then rooms more than ``AHEAD_S`` ahead of
their listeners. A guess waits where its cost would make one of the first tier late.

*Greedy* is a room that has had more than ``GREEDY`` times what is usual among those that converse. It gets what the
others leave. Of each room only the most urgent task of a stage counts; what it has piled up behind that waits.

*Batch*: the first task brings along its peers of the same stage where one quantum is cheaper than two, and
whoever else rides nearly for free.

The device never idles while there is a task. Voice activity has a lane of its own (its forward takes a thousandth of
a window's time), and a cancel takes effect at once, in whatever thread it arrives; neither is ever behind a quantum.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from inference.costs import CostTable, Stage

V = {}
for item in filter(None, os.environ.get("V", "").split(",")):
    k, _, v = item.partition("=")
    V[k] = float(v or 1)

AHEAD_S = 4.0
"""Speech buffered, in seconds, beyond which a room can wait."""
GUESS_S = 0.4
"""After the first pause, in seconds: then a turn has surely ended, and its transcription is no guess any more."""
USAGE_S = V.get("usage", 10.0)
"""Time constant of forgetting device time, in seconds: about one turn of conversation."""
CONVERSES_S = 15.0
"""A room that has asked for something within this time converses."""
MODEST_S = V.get("modest", 1.0)
"""Device seconds that a room may have had at any rate before it is greedy."""
GREEDY = V.get("greedy", 2.0)
"""How many times the others' mean of device time a room may have had before it is greedy."""

_FIRST_SPEECH_S = 0.02
_GOING_ON_S = 0.05
_TURN_S = 0.1
_PREFILL_S = V.get("prefill", 0.15)
_ENOUGH_SPEECH_S = 0.5
_ENOUGH_TEXT_S = 1.0
_PEER_GAIN = V.get("peer", 0.95)
"""A peer joins a batch when that costs less than this share of what it costs alone."""
_FREE_RIDE = V.get("free", 0.25)
"""Anybody else does when it costs less than this share."""
LONG_S = V.get("long", 0.05)
PACE = V.get("pace", 0)


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


@dataclass(frozen=True, slots=True)
class Task:
    """One request that could take part in a quantum now.

    ``since``: when it was asked for or when its last quantum ended, in seconds of the clock that ``now`` comes
    from. ``wanted``: from when on somebody waits for it; later than ``now`` for a guess, never if infinite.
    ``buffered_s``: speech that the room has ahead of its listener.
    """

    stage: Stage
    request: int
    room: int
    since: float
    wanted: float = -math.inf
    buffered_s: float = 0.0

    def deadline(self, now: float) -> float:
        """When somebody would notice the wait."""
        match self.stage:
            case Stage.ENCODE | Stage.TRANSCRIBE:
                patience_s = _TURN_S
            case Stage.PREFILL | Stage.DECODE:
                if self.buffered_s > 0 and not self.is_guess(now):
                    return now + self.buffered_s - _ENOUGH_TEXT_S
                patience_s = _PREFILL_S if self.stage is Stage.PREFILL else _GOING_ON_S
            case Stage.FIRST_SPEECH | Stage.SPEECH:
                if self.buffered_s > 0:
                    return now + self.buffered_s - _ENOUGH_SPEECH_S
                patience_s = _FIRST_SPEECH_S if self.stage is Stage.FIRST_SPEECH else _GOING_ON_S
        return max(self.since + patience_s, self.wanted)

    def is_guess(self, now: float) -> bool:
        """Whether nobody waits for it yet."""
        return now < self.wanted

    def can_wait(self) -> bool:
        """Whether the room is so far ahead of its listener that anything else goes first."""
        return KIND_OF[self.stage] is not Kind.STT and self.buffered_s > AHEAD_S


class Why(enum.Enum):
    """What decided."""

    DEADLINE = "earliest deadline"
    SPARE_TIME = "a guess, and nobody is late for it"
    GREEDY = "had more than others, and nobody else waits"
    AHEAD = "ahead of its listener, and nobody else waits"


@dataclass(frozen=True, slots=True)
class Quantum:
    """One batch for one engine: the requests that take part, most urgent first, and the room of each."""

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
    until: float
    why: str
    request: int


class _Tier(enum.IntEnum):
    ALL = 0
    GREEDY = 1
    AHEAD = 2


@dataclass(slots=True)
class _Room:
    used_s: float = 0.0
    used_at: float = -math.inf
    asked_at: float = -math.inf
    paid_until: float = -math.inf

    def usage(self, now: float) -> float:
        return self.used_s * math.exp(min(0.0, (self.used_at - now) / USAGE_S)) if self.used_s else 0.0


class Planner:
    """Decides for one lane. Remembers what each room has had."""

    def __init__(self, costs: CostTable, *, max_utterances: int) -> None:
        self.costs = costs
        self._max_utterances = max_utterances
        self._rooms: dict[int, _Room] = {}

    # --- what happens -----------------------------------------------------------------------------

    def asked(self, room: int, now: float) -> None:
        """A room has asked for something."""
        self._rooms.setdefault(room, _Room()).asked_at = now

    def left(self, room: int) -> None:
        """A room is gone; another one may get its number."""
        self._rooms.pop(room, None)

    def ran(self, stage: Stage, rooms: Sequence[int], seconds: float, now: float) -> None:
        """A quantum for ``rooms`` has taken ``seconds``: they pay for it, and the table of costs learns."""
        if not rooms:
            return
        self.costs.learn(stage, len(rooms), seconds)
        n = sum(now - s.asked_at < CONVERSES_S for s in self._rooms.values())
        for room in rooms:
            state = self._rooms.setdefault(room, _Room())
            state.used_s = state.usage(now) + seconds / len(rooms)
            state.used_at = now
            state.paid_until = now + seconds / len(rooms) * (n - 1) * PACE

    # --- what is asked ----------------------------------------------------------------------------

    def usage(self, room: int, now: float) -> float:
        """Device seconds that a room has had, as far as they are not forgotten."""
        state = self._rooms.get(room)
        return state.usage(now) if state else 0.0

    def greedy(self, now: float) -> frozenset[int]:
        """The rooms that have had much more than is usual among those that converse."""
        usage = {room: state.usage(now) for room, state in self._rooms.items()}
        conversing = [usage[room] for room, state in self._rooms.items() if now - state.asked_at < CONVERSES_S]
        total, count = sum(conversing), len(conversing)
        return frozenset(
            room
            for room, state in self._rooms.items()
            if usage[room] > MODEST_S
            and (others := count - (now - state.asked_at < CONVERSES_S))
            and usage[room] > GREEDY * (total - usage[room]) / others
        )

    def decide(self, now: float, tasks: Sequence[Task]) -> Quantum | None:
        """The next quantum; None when there is nothing to do."""
        if not tasks:
            return None
        greedy = self.greedy(now)
        tiers = {
            task.request: _Tier.AHEAD if task.can_wait() else _Tier.GREEDY if task.room in greedy else _Tier.ALL
            for task in tasks
        }
        deadlines = {task.request: task.deadline(now) for task in tasks}
        ordered = sorted(
            tasks, key=lambda task: (tiers[task.request], deadlines[task.request], task.since, task.request)
        )
        heads: dict[tuple[int, Stage], Task] = {}
        for task in ordered:
            heads.setdefault((task.room, task.stage), task)
        ordered = list(heads.values())
        if PACE:
            piled = {t.room for t in tasks if heads[t.room, t.stage] is not t}
            free = [t for t in ordered if not (t.room in piled and t.room in greedy and self._rooms[t.room].paid_until > now and self.costs.predict(t.stage, 1) > LONG_S)]
            if not free:
                return Hold(min(self._rooms[t.room].paid_until for t in ordered), "unshared", ordered[0].request)
            ordered = free
        urgent = [
            deadlines[task.request]
            for task in ordered
            if tiers[task.request] is _Tier.ALL and not task.is_guess(now)
        ]
        earliest = min(urgent, default=math.inf)
        first = next(
            (
                task
                for task in ordered
                if not task.is_guess(now) or now + self.costs.predict(task.stage, 1) <= earliest
            ),
            ordered[0],
        )
        chosen = [first]
        for task in ordered:
            if task is first or task.stage is not first.stage or task.is_guess(now) != first.is_guess(now):
                continue
            if KIND_OF[task.stage] is Kind.STT and len(chosen) == self._max_utterances:
                break
            alone = self.costs.predict(task.stage, 1)
            more = self.costs.predict(task.stage, len(chosen) + 1) - self.costs.predict(task.stage, len(chosen))
            is_peer = tiers[task.request] is tiers[first.request] and (task.buffered_s > 0) == (first.buffered_s > 0)
            if more <= (_PEER_GAIN if is_peer else _FREE_RIDE) * alone:
                chosen.append(task)
        tier = tiers[first.request]
        why = (
            Why.AHEAD
            if tier is _Tier.AHEAD
            else Why.GREEDY
            if tier is _Tier.GREEDY
            else Why.SPARE_TIME
            if first.is_guess(now)
            else Why.DEADLINE
        )
        return Quantum(
            first.stage,
            tuple(task.request for task in chosen),
            tuple(task.room for task in chosen),
            self.costs.predict(first.stage, len(chosen)),
            why,
        )
