"""How many rooms a device holds, predicted: conversations simulated on a virtual clock, with its table of costs.

The planner is the one that runs live (``inference/planner.py``), the callers are those of the load test by their
numbers (``host/loadtest/callers.py``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

from host.device_table import DeviceTable
from host.loadtest import callers
from host.loadtest.callers import Clip
from inference.budget import MB, Fit, Sizes, fit
from inference.costs import Stage
from inference.simulator import Habits, Outcome, Script, Simulation, Utterance

MOST_ROOMS = 255
TICK_S = 0.032
"""Between two windows of voice activity detection."""
CLIPS = (
    Clip("whats-the-date-today.wav", 1.27, 0.15, 1.12, (0.78,)),
    Clip("set-a-timer.wav", 2.06, 0.04, 1.91, (0.22, 1.28)),
    Clip("go-forward-ten-meters.wav", 2.19, 0.15, 2.04, (0.845,)),
    Clip("sense-and-sensibility-0930.wav", 3.2, 0.15, 3.11, (2.885,)),
    Clip("arctic-aew-a0003.wav", 3.51, 0.15, 3.42, (0.82, 0.915, 1.53, 2.93)),
)
"""The recordings that the callers of a load test speak in a cycle of 10 s, shortest first."""
_GREETING_S = 2.7
"""Of the agent of a load test."""
_HESITATION_S = 0.1
"""Of silence, where a caller hesitates, is in the recording already."""
_LEAST_S, _MOST_S = 120.0, 1800.0
"""Of virtual time, for any number of rooms."""
PATH_S = 0.11
"""What lies between the ears of a load test and the device: the voice's leading silence (some 50 ms), how much later
voice activity detection hears the last sound than a loudness threshold does, the windows and blocks of the audio. The
difference of both in a load test with a local room; WebRTC adds its jitter buffers."""
_HOST_CORES = 0.03
"""Of the supervisor and of the inference process's event loop."""
_CPU_FULL = 0.9
"""A machine whose cores are busier has no time left for what comes at once."""
_TWICE = 2.0
_DRY_SHARE = 0.001
"""Of the time in which listeners may wait in the middle of answers, all together: more are underruns."""

NAMES: Mapping[Stage, str] = {
    Stage.ENCODE: "speech to text",
    Stage.TRANSCRIBE: "speech to text",
    Stage.PREFILL: "language model",
    Stage.DECODE: "language model",
    Stage.FIRST_SPEECH: "voice",
    Stage.SPEECH: "voice",
}
ENGINES = ("speech to text", "language model", "voice")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. ``target_s``: of the response's p95, without the endpointing delay.

    ``context_tokens``, ``available``: for the memory; 0 is what the table's machine has. ``busy_cores``: what others
    take of the CPU, the callers of a load test, say.
    """

    target_s: float = 1.5
    cycle_s: float = 10.0
    endpointing_s: float = 0.5
    interrupts: float = 0.1
    context_tokens: int = 2048
    available: int = 0
    busy_cores: float = 0.0
    path_s: float = PATH_S
    seed: int | None = None
    """The callers of a load test with this seed; None: many others, whose mean a single test may miss by far."""
    duration_s: float = 60.0
    """Is simulated at a stretch, as long as a load test measures: callers fall out of step with time."""
    room_seconds: float = 6000.0
    """Simulated for every number of rooms, of all of them together: some 600 turns."""


@dataclass(frozen=True, slots=True)
class Row:
    """So many rooms. Responses in seconds, without the endpointing delay. ``dry_s``: of silence within answers, a
    minute and room. ``shares``: of the time, by engine. ``cpu``: cores, without the engines' own on a CPU.
    """

    rooms: int
    p50_s: float
    p95_s: float
    dry_s: float
    busy: float
    shares: Mapping[str, float]
    cpu: float

    def holds(self, question: Question) -> bool:
        """Whether all is well."""
        return not self.trouble(question)

    def trouble(self, question: Question) -> str:
        """What is not well; "" when all is."""
        if self.p95_s > question.target_s:
            return f"the p95 is {1000 * self.p95_s:.0f} ms"
        return "speech runs dry within answers" if self.dry_s > 60 * _DRY_SHARE else ""


@dataclass(frozen=True, slots=True)
class Bound:
    """What allows so many rooms, and not one more."""

    what: str
    rooms: int
    why: str


@dataclass(frozen=True, slots=True)
class Lift:
    """What would allow more."""

    what: str
    rooms: int


@dataclass(frozen=True, slots=True)
class Plan:
    """``rooms``: how many hold; ``rows``: the curve up to what does not, or those that were asked for."""

    rooms: int
    rows: tuple[Row, ...]
    bounds: tuple[Bound, ...]
    lifts: tuple[Lift, ...]
    memory: Fit

    @property
    def binding(self) -> Bound:
        """The one that allows the fewest."""
        return min(self.bounds, key=lambda bound: bound.rooms)


def make_plan(
    table: DeviceTable,
    question: Question,
    rooms: tuple[int, ...] = (),
    on_progress: Callable[[int], None] = lambda _: None,
) -> Plan:
    """The plan; with ``rooms`` the curve is of these. ``on_progress`` is told each number that is simulated."""

    @cache
    def row(count: int, engine: str = "") -> Row:
        on_progress(count)
        return simulate(table, question, count, {stage: _TWICE for stage, name in NAMES.items() if name == engine})

    memory = memory_of(table, question, 1)
    by_cpu = _most(lambda count: _cpu(table, question, count) <= _CPU_FULL * table.hardware.cores, MOST_ROOMS)
    # What does not fit need not be simulated.
    limit = min(memory.rooms, by_cpu)
    by_time = _most(lambda count: row(count).holds(question), limit)
    bounds = [
        Bound("memory", memory.rooms, f"one room takes {memory.budget.room / MB:.0f} MB"),
        Bound("CPU beside the models", by_cpu, f"a job takes {table.job_cores:.3f} cores"),
    ]
    lifts = []
    if by_time < limit:
        for engine in ENGINES:
            holds = partial(_holds_with, row, question, engine)
            lifts.append(Lift(f"{engine} twice as fast", _most(holds, limit, max(1, by_time))))
        shares = row(max(1, by_time)).shares
        # The one whose speed would help most; of several the one that takes most of the time.
        rooms_of = dict(zip(ENGINES, (lift.rooms for lift in lifts), strict=True))
        slowest = max(ENGINES, key=lambda engine: (rooms_of[engine], shares[engine]))
        device = "GPU" if table.device == "cuda" else "CPU"
        why = (
            f"it takes {shares[slowest]:.0%} of the {device}'s time; with one more {row(by_time + 1).trouble(question)}"
        )
        bounds.insert(0, Bound(slowest, by_time, why))
    most = min(bound.rooms for bound in bounds)
    curve = rooms or tuple(sorted({*_curve(most), min(MOST_ROOMS, most + 1)}))
    return Plan(
        most,
        tuple(row(count) for count in curve),
        tuple(bounds),
        tuple(lifts),
        memory_of(table, question, max(1, most)),
    )


def _holds_with(row: Callable[[int, str], Row], question: Question, engine: str, rooms: int) -> bool:
    return row(rooms, engine).holds(question)


def simulate(table: DeviceTable, question: Question, rooms: int, faster: dict[Stage, float] | None = None) -> Row:
    """One number of rooms."""
    others = _cpu(table, question, rooms)
    # Whoever else wants a core takes it from a team of threads that waits for its last one.
    slower = 1.0 / max(0.05, 1.0 - others / table.hardware.cores) if table.device == "cpu" else 1.0
    costs = table.costs(slower, faster)
    seconds = min(_MOST_S, max(_LEAST_S, question.room_seconds / rooms))
    outcomes = [
        Simulation(
            costs,
            rooms,
            random.Random(f"{question.seed} {number}").uniform,
            habits=habits(table, question),
            limits=table.limits(),
            scripts=scripts(question, rooms, number + 1 if question.seed is None else question.seed),
            counts_from_s=question.cycle_s,
        ).run(question.cycle_s + question.duration_s)
        for number in range(max(1, round(seconds / question.duration_s)))
    ]
    return _row(rooms, outcomes, question, others)


def scripts(question: Question, rooms: int, seed: int) -> list[Script]:
    """The callers of a load test with ``seed``: they come, speak, pause and interrupt as they do there."""
    people = callers.Habits(cycle_s=question.cycle_s, interrupts=question.interrupts)
    longest_s = max(callers.LONGEST_OF_CYCLE * question.cycle_s, CLIPS[0].seconds)
    clips = [clip for clip in CLIPS if clip.seconds <= longest_s]
    return [
        Script(
            callers.joins_after_s(seed, seat, rooms, people),
            _GREETING_S,
            map(_utterance, callers.turns(seed, seat, 0, clips, people)),
        )
        for seat in range(rooms)
    ]


def _utterance(turn: callers.Turn) -> Utterance:
    pauses = ((turn.pause_s, turn.pause_s + _HESITATION_S + turn.hesitation_s),) if turn.hesitation_s else ()
    return Utterance(turn.after_s, turn.think_s, turn.end_s, pauses, turn.interrupt_after_s)


def habits(table: DeviceTable, question: Question) -> Habits:
    """The callers of a load test, and the answers of the table's models."""
    return Habits(
        endpointing_s=question.endpointing_s,
        prepares=True,
        answers=tuple(tuple((phrase.tokens, phrase.speech_s) for phrase in answer) for answer in table.answers),
        first_block_s=table.first_block_s,
        block_s=table.block_s,
    )


def memory_of(table: DeviceTable, question: Question, rooms: int) -> Fit:
    """What so many rooms take, and how many there is memory for."""
    sizes = Sizes(table.device, rooms, question.context_tokens, table.threads)
    there = table.hardware.gpu_memory if table.device == "cuda" else table.hardware.memory
    return fit(table.facts, sizes, question.available or there)


def _cpu(table: DeviceTable, question: Question, rooms: int) -> float:
    ticking = table.tick_s(rooms) / TICK_S if table.device == "cpu" else 0.0
    return ticking + rooms * table.job_cores + _HOST_CORES + question.busy_cores


def _row(rooms: int, outcomes: list[Outcome], question: Question, cpu: float) -> Row:
    merged = replace(
        outcomes[0], responses=tuple(sorted(response for outcome in outcomes for response in outcome.responses))
    )
    seconds = sum(outcome.seconds for outcome in outcomes)
    shares = dict.fromkeys(ENGINES, 0.0)
    for outcome in outcomes:
        for stage, taken in outcome.stage_s.items():
            shares[NAMES[stage]] += taken / seconds
    return Row(
        rooms,
        merged.response_s(0.5) - question.endpointing_s + question.path_s,
        merged.response_s(0.95) - question.endpointing_s + question.path_s,
        60 * sum(outcome.dry_s for outcome in outcomes) / seconds / rooms,
        sum(shares.values()),
        shares,
        cpu,
    )


def _most(holds: Callable[[int], bool], limit: int, start: int = 1) -> int:
    """The most rooms that hold, up to ``limit``; 0 for none."""
    low, high = 0, start
    while high <= limit and holds(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _curve(most: int) -> set[int]:
    """Numbers on the way up to ``most`` that show the curve."""
    return {count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255) if count < most} | {
        max(1, most)
    }
