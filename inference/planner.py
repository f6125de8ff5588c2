"""Which quantum the device lane runs next. Pure: takes ``now``, returns a decision and says why.

A *task* is a request that could take part in a quantum now; its *deadline* is when somebody would notice that it
has not begun. A task that goes on is a new task after each of its quanta.

=============================================  ==============================================
task                                           deadline
=============================================  ==============================================
first speech for a room that is silent         asked + 20 ms
a token, or more speech, for a silent room     its last quantum + 50 ms
transcription of a finished turn               asked + 100 ms
prefill for a room that is silent              asked, or its last quantum, + 150 ms
speculative transcription                      asked + 400 ms; then its turn has surely ended
speech for a room with speech buffered         when half a second is left
text for a room with speech buffered           when one second is left
=============================================  ==============================================

Earliest deadline first, within tiers: the rooms within their share of the device, then rooms over their share, then
rooms more than ``AHEAD_S`` ahead of their listeners. Speculative work waits where its cost would make a deadline late.

*Share*: device seconds are counted per room and forgotten with ``USAGE_S``. While others converse, a room is over
its share when it has had more than all of them would get if everybody took the same, and more than
``GREEDY`` times the median of the others. Short quanta of such a room fill gaps; a long one, which would be in
the way of whoever asks next, waits until the room is within its share again (and after ``SAVING_S`` its short ones
wait with it). So everybody is served, a room
alone may have the whole device, and one that floods it is one room among the others.

*Batch*: the first task brings along others of its stage: its peers where a larger batch is cheaper than two
batches, what is due before the batch would end, and anything that rides nearly for free.

*Hold*: for a moment the lane stays idle on purpose: for a transcription that is known to be about to be asked for,
so that both share a batch (never for a lone one), and, before long work that can wait, for a room between two
stages of its turn. See ``Hold``.

Voice activity has a lane of its own (its forward takes a thousandth of a window's time), and a cancel takes effect
at once, in whatever thread it arrives; neither is ever behind a quantum.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inference.costs import CostTable, Stage

AHEAD_S = 4.0
"""Speech buffered, in seconds, beyond which a room can wait."""
USAGE_S = 10.0
"""Time constant of forgetting device time, in seconds: about one turn of conversation."""
CONVERSES_S = 15.0
"""A room that has asked for something within this time converses."""
MODEST_S = 1.0
"""What a room may have had at any rate, within its share."""
GREEDY = 1.25
"""How many times the others' median of device time a room may have had within its share."""
EXCESS_WEIGHT = 3.0
"""By how many seconds a room's deadlines lie later for each second that it has had beyond the median."""
LONG_S = 0.05
"""Work that takes longer than this is in the way of whoever asks next."""
SAVING_S = 2.0
"""How long the short work of a room over its share may fill gaps while its long work waits."""
HOLD_S = 0.006
"""How long a transcription waits for another one that is about to be asked for."""
BETWEEN_STAGES_S = 0.02
"""How long work that can wait waits for a room whose job is about to ask for the next stage of its turn."""

_PATIENCE = 0.05
"""How old a request can get, in seconds, times the seconds that its room has had beyond the median."""
_FIRST_SPEECH_S = 0.02
_GOING_ON_S = 0.05
_TURN_S = 0.1
_PREFILL_S = 0.15
_GUESS_S = 0.4
_ENOUGH_SPEECH_S = 0.5
_ENOUGH_TEXT_S = 1.0
_PEER_GAIN = 0.95
"""A peer joins a batch when that costs less than this share of what it costs alone."""
_FREE_RIDE = 0.25
"""Anybody else does when it costs less than this share."""


class Kind(enum.Enum):
    """Which engine a quantum belongs to."""

    STT = "stt"
    LLM = "llm"
    TTS = "tts"


KIND_OF = {
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
    from. ``buffered_s``: speech that the room has ahead of its listener. ``work``: what it adds to the size of
    a batch.
    """

    stage: Stage
    request: int
    room: int
    since: float
    speculative: bool = False
    buffered_s: float = 0.0
    work: int = 1

    def deadline(self, now: float) -> float:
        """When somebody would notice the wait."""
        match self.stage:
            case Stage.TRANSCRIBE:
                return self.since + (_GUESS_S if self.speculative else _TURN_S)
            case Stage.PREFILL | Stage.DECODE:
                if self.buffered_s > 0:
                    return now + self.buffered_s - _ENOUGH_TEXT_S
                return self.since + (_PREFILL_S if self.stage is Stage.PREFILL else _GOING_ON_S)
            case Stage.FIRST_SPEECH | Stage.SPEECH:
                if self.buffered_s > 0:
                    return now + self.buffered_s - _ENOUGH_SPEECH_S
                return self.since + (_FIRST_SPEECH_S if self.stage is Stage.FIRST_SPEECH else _GOING_ON_S)

    def can_wait(self) -> bool:
        """Whether the room is so far ahead of its listener that anything else goes first."""
        return self.stage is not Stage.TRANSCRIBE and self.buffered_s > AHEAD_S

    def is_guess(self, now: float) -> bool:
        """Whether nobody waits for it yet."""
        return self.speculative and now < self.since + _GUESS_S


class Why(enum.Enum):
    """What decided."""

    DEADLINE = "earliest deadline"
    SPARE_TIME = "speculative, and nobody is late for it"
    OVER_SHARE = "over its share, and nobody else waits"
    AHEAD = "ahead of its listener, and nobody else waits"
    TOGETHER = "another transcription is about to be asked for"
    MID_TURN = "another room is between two stages of its turn"
    UNSHARED = "long work of a room over its share, while others converse"


@dataclass(frozen=True, slots=True)
class Quantum:
    """One batch for one engine: the requests that take part, most urgent first.

    ``size`` and ``cost_s`` as in the table of costs; ``work``: what each request adds to the size, by its room.
    """

    stage: Stage
    requests: tuple[int, ...]
    work: tuple[tuple[int, int], ...]
    cost_s: float
    why: Why

    @property
    def kind(self) -> Kind:
        """The engine that runs it."""
        return KIND_OF[self.stage]

    @property
    def size(self) -> int:
        """In the units of the table of costs."""
        return sum(work for _, work in self.work)


@dataclass(frozen=True, slots=True)
class Hold:
    """Run nothing before ``until``, unless something is asked for before.

    Never while anything may run that is not held itself. ``TOGETHER`` ends ``HOLD_S`` after the transcription that
    waits was asked for, at the latest, and ``MID_TURN`` ``BETWEEN_STAGES_S`` after another room was last expected.
    """

    until: float
    why: Why
    request: int


Decision = Quantum | Hold | None


@dataclass(slots=True)
class _Room:
    used_s: float = 0.0
    used_at: float = -math.inf
    asked_at: float = -math.inf
    heard_at: float = -math.inf
    expected: Kind | None = None
    expected_at: float = -math.inf

    def usage(self, now: float) -> float:
        return self.used_s * math.exp(min(0.0, (self.used_at - now) / USAGE_S)) if self.used_s else 0.0


class Planner:
    """Decides for one lane. Knows of rooms what they had and what they are about to ask for."""

    def __init__(self, costs: CostTable, *, max_utterances: int) -> None:
        self.costs = costs
        self._max_utterances = max_utterances
        self._rooms: dict[int, _Room] = {}

    # --- what happens -----------------------------------------------------------------------------

    def asked(self, room: int, now: float) -> None:
        """A room has asked for something."""
        state = self._room(room)
        state.asked_at = now
        state.expected = None

    def expect(self, room: int, kind: Kind, now: float) -> None:
        """What a room was told makes it ask for ``kind``, most likely within milliseconds."""
        state = self._room(room)
        state.expected, state.expected_at = kind, now

    def left(self, room: int) -> None:
        """A room is gone; another one may get its number."""
        self._rooms.pop(room, None)

    def ran(self, quantum: Quantum, seconds: float, now: float) -> None:
        """A quantum has taken ``seconds``: the rooms pay for it, and the table of costs learns."""
        size = quantum.size
        if size <= 0:
            return
        self.costs.learn(quantum.stage, size, seconds)
        for room, work in quantum.work:
            state = self._room(room)
            state.used_s = state.usage(now) + seconds * work / size
            state.used_at = now
            if quantum.stage is Stage.TRANSCRIBE:
                state.heard_at = now

    # --- what is asked ----------------------------------------------------------------------------

    def usage(self, room: int, now: float) -> float:
        """Device seconds that a room has had, as far as they are not forgotten."""
        state = self._rooms.get(room)
        return state.usage(now) if state else 0.0

    def share(self, room: int, now: float) -> float:
        """Device seconds up to which ``room`` is within its share; infinite while nobody else converses."""
        return _Standing(self._rooms, now).share(room)

    def decide(self, now: float, tasks: Sequence[Task]) -> Decision:
        """The next quantum; ``Hold`` to wait although there is work; None when there is none."""
        if not tasks:
            return None
        field = _Field(self.costs, _Standing(self._rooms, now), now, tasks)
        held: Hold | None = None
        for first in field.candidates:
            quantum = field.batch(first, self._max_utterances)
            hold = self._hold(now, field, first, quantum)
            if hold is None:
                return quantum
            if held is None or hold.until < held.until:
                held = hold
        return held

    # --- inside -----------------------------------------------------------------------------------

    def _room(self, room: int) -> _Room:
        return self._rooms.setdefault(room, _Room())

    def _hold(self, now: float, field: _Field, first: Task, quantum: Quantum) -> Hold | None:
        is_long = self.costs.predict(first.stage, first.work) > LONG_S
        if quantum.why is Why.OVER_SHARE and (is_long or first.room in field.saving):
            # When it will have been forgotten far enough, if nothing else changes.
            over = field.standing.usage(first.room) / field.standing.share(first.room)
            return Hold(now + min(1.0, max(0.001, USAGE_S * math.log(over))), Why.UNSHARED, first.request)
        if quantum.why is not Why.DEADLINE and is_long:
            until = self._expected_until(now, BETWEEN_STAGES_S, field, first.room)
            if until > now:
                return Hold(until, Why.MID_TURN, first.request)
        if first.stage is Stage.TRANSCRIBE and len(quantum.requests) < self._max_utterances:
            until = min(first.since + HOLD_S, self._expected_until(now, HOLD_S, field, first.room, Kind.STT))
            alone = self.costs.predict(Stage.TRANSCRIBE, 1)
            joined = self.costs.predict(Stage.TRANSCRIBE, quantum.size + 1) - quantum.cost_s
            if until > now and alone - joined > HOLD_S:
                return Hold(until, Why.TOGETHER, first.request)
        return None

    def _expected_until(
        self, now: float, patience_s: float, field: _Field, but: int, kind: Kind | None = None
    ) -> float:
        """When the last of the requests that are expected must have come; rooms over their share do not count."""
        return max(
            (
                state.expected_at + patience_s
                for room, state in self._rooms.items()
                if state.expected is not None
                and room != but
                and (kind is None or state.expected is kind)
                and now < state.expected_at + patience_s
                and not field.standing.is_over_share(room)
            ),
            default=-math.inf,
        )


class _Standing:
    """What the rooms have had, at one moment."""

    def __init__(self, rooms: Mapping[int, _Room], now: float) -> None:
        self._rooms = rooms
        self._usage = {room: state.usage(now) for room, state in rooms.items()}
        conversing = sorted(
            (self._usage[room], room) for room, state in rooms.items() if now - state.asked_at < CONVERSES_S
        )
        self._sorted = [usage for usage, _ in conversing]
        self._place = {room: place for place, (_, room) in enumerate(conversing)}

    def usage(self, room: int) -> float:
        """Device seconds, as far as they are not forgotten."""
        return self._usage.get(room, 0.0)

    def heard_at(self, room: int) -> float:
        """When a room's last transcription was done."""
        state = self._rooms.get(room)
        return state.heard_at if state else -math.inf

    def share(self, room: int) -> float:
        """Beyond which a room is over its share; infinite for one alone."""
        typical = self._typical(room)
        return math.inf if typical is None else max(MODEST_S, GREEDY * typical)

    def is_over_share(self, room: int) -> bool:
        """Whether a room has had more than its share."""
        return self.usage(room) > self.share(room)

    def excess(self, room: int) -> float:
        """Device seconds that a room has had beyond what is usual among those that converse; 0 for one alone."""
        typical = self._typical(room)
        return 0.0 if typical is None else max(0.0, self.usage(room) - max(MODEST_S / 2, typical))

    def _typical(self, but: int) -> float | None:
        """The (lower) median of what the other rooms have had; None while no other one converses."""
        place = self._place.get(but, len(self._sorted))
        others = len(self._sorted) - (but in self._place)
        if others == 0:
            return None
        middle = (others - 1) // 2
        return self._sorted[middle if middle < place else middle + 1]


class _Tier(enum.IntEnum):
    FAIR = 0
    OVER_SHARE = 1
    AHEAD = 2


class _Field:
    """The tasks of one moment, in order."""

    def __init__(self, costs: CostTable, standing: _Standing, now: float, tasks: Sequence[Task]) -> None:
        self._costs = costs
        self.standing = standing
        self._now = now
        self._since = {
            task.request: max(task.since, standing.heard_at(task.room))
            if task.stage is Stage.TRANSCRIBE
            else task.since
            for task in tasks
        }
        self._deadlines = {task.request: self._deadline(task) for task in tasks}
        self._tiers = {task.request: self._tier(task) for task in tasks}
        self._ordered = sorted(tasks, key=self._order)
        # Only a room's most urgent transcription is urgent; what it has piled up behind that waits its turn.
        self._heads: set[int] = set()
        self._most_urgent: dict[int, Task] = {}
        seen: set[tuple[int, Stage]] = set()
        for task in self._ordered:
            self._most_urgent.setdefault(task.room, task)
            if (task.room, task.stage) not in seen:
                seen.add((task.room, task.stage))
                self._heads.add(task.request)
        self.candidates = self._candidates()
        self.saving = {
            task.room
            for task in tasks
            if self._since[task.request] < now - SAVING_S
            and self._tiers[task.request] is _Tier.OVER_SHARE
            and costs.predict(task.stage, task.work) > LONG_S
        }
        """Rooms over their share that have to stop their short work, too, or their long work would never run."""

    def batch(self, first: Task, max_utterances: int) -> Quantum:
        """``first`` and whoever had better come along."""
        chosen, size, now = [first], first.work, self._now
        for task in self._ordered:
            if task is first or task.stage is not first.stage or task.is_guess(now) != first.is_guess(now):
                continue
            if task.stage is Stage.TRANSCRIBE and len(chosen) == max_utterances:
                break
            if self._joins(first, task, size):
                chosen.append(task)
                size += task.work
        return Quantum(
            first.stage,
            tuple(task.request for task in chosen),
            tuple((task.room, task.work) for task in chosen),
            self._costs.predict(first.stage, size),
            self._why(first),
        )

    def _deadline(self, task: Task) -> float:
        """The more a room has had, the later its deadlines lie, and the less it gets older by waiting."""
        deadline = task.deadline(self._now)
        excess = self.standing.excess(task.room)
        if not excess:
            return deadline
        # Of all that such a room has piled up, one has waited for the others only since the one before was done.
        deadline += self._since[task.request] - task.since
        return max(deadline, self._now - _PATIENCE / excess) + EXCESS_WEIGHT * excess

    def _tier(self, task: Task) -> _Tier:
        if task.can_wait():
            return _Tier.AHEAD
        return _Tier.OVER_SHARE if self.standing.is_over_share(task.room) else _Tier.FAIR

    def _order(self, task: Task) -> tuple[int, float, float, int]:
        return self._tiers[task.request], self._deadlines[task.request], self._since[task.request], task.request

    def _candidates(self) -> list[Task]:
        """One first task for each quantum that could run, best first. A guess that would make others late is none."""
        found: list[Task] = []
        put_off: list[Task] = []
        seen: set[tuple[Stage, bool, _Tier]] = set()
        for task in self._ordered:
            kind = task.stage, task.is_guess(self._now), self._tiers[task.request]
            if task.request not in self._heads or kind in seen:
                continue
            seen.add(kind)
            (put_off if self._makes_late(task) else found).append(task)
        # What makes them late is among those found.
        return found or put_off

    def _makes_late(self, guess: Task) -> bool:
        if not guess.is_guess(self._now):
            return False
        ends = self._now + self._costs.predict(guess.stage, guess.work)
        return any(
            self._deadlines[task.request] < ends
            for task in self._ordered
            if not task.is_guess(self._now) and self._tiers[task.request] is _Tier.FAIR
        )

    def _joins(self, first: Task, task: Task, size: int) -> bool:
        costs, stage = self._costs, task.stage
        alone = costs.predict(stage, task.work)
        together = costs.predict(stage, size + task.work)
        if self._tiers[first.request] is not _Tier.FAIR and together > LONG_S:
            # What fills a gap stays short.
            return False
        more = together - costs.predict(stage, size)
        if self._tiers[task.request] is not self._tiers[first.request] or task.request not in self._heads:
            return more <= _FREE_RIDE * alone
        if self.standing.excess(task.room) and self._most_urgent[task.room].stage is not stage:
            # What it gets by riding along it would lack for what it needs most.
            return more <= _FREE_RIDE * alone
        if self._deadlines[task.request] <= self._now + costs.predict(stage, size):
            return True
        is_peer = (task.buffered_s > 0) == (first.buffered_s > 0)
        return more <= (_PEER_GAIN if is_peer else _FREE_RIDE) * alone

    def _why(self, first: Task) -> Why:
        match self._tiers[first.request]:
            case _Tier.AHEAD:
                return Why.AHEAD
            case _Tier.OVER_SHARE:
                return Why.OVER_SHARE
        return Why.SPARE_TIME if first.is_guess(self._now) else Why.DEADLINE
