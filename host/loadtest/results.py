"""What a load test found: one ``Point`` for each number of rooms. Pure.

Times are in seconds unless a name says otherwise, memory in MB (10^6 bytes), shares from 0 to 1; NaN is not known.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from host.loadtest.measure import Checked, Conversations, CrossTalk, Distribution
from inference.wire.supervision import TurnReport


@dataclass(frozen=True, slots=True)
class Stages:
    """Where the response goes, as the jobs measure it, in seconds. They lie one after the other."""

    endpointing: Distribution
    stt: Distribution
    first_token: Distribution
    first_audio: Distribution
    """From the first text to the first sample at the job."""
    playout: Distribution
    """From there to the caller's ear."""

    @classmethod
    def of(cls, turns: Sequence[TurnReport]) -> Stages:
        """Of the turns that were answered."""
        heard = [turn for turn in turns if turn.response_ms >= 0 and turn.ttfa_ms >= 0 and turn.ttft_ms >= 0]

        def distribution(values: Iterable[float]) -> Distribution:
            return Distribution.of(value / 1000 for value in values)

        return cls(
            distribution(turn.endpointing_ms for turn in heard),
            distribution(turn.stt_ms for turn in heard),
            distribution(turn.ttft_ms for turn in heard),
            distribution(turn.ttfa_ms - turn.ttft_ms for turn in heard),
            distribution(turn.response_ms - turn.endpointing_ms - turn.stt_ms - turn.ttfa_ms for turn in heard),
        )


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """One process, or with ``count`` > 1 the mean of several. ``cpu``: in cores. ``slope_mb_per_min``: of its memory,
    NaN when it was looked at for less than a minute.
    """

    kind: str
    name: str
    cpu: float
    memory_mb: float
    memory_max_mb: float
    slope_mb_per_min: float = math.nan
    count: int = 1


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """``busy``: of the device lane. ``stages``: stage -> its share of the measured time. ``memory_mb`` of all
    ``memory_total_mb``: 0 where that is not known (a CPU).
    """

    name: str
    busy: float
    pressure: float
    stages: dict[str, float] = field(default_factory=dict)
    memory_mb: float = 0.0
    memory_total_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """A room that the host did not take, and why."""

    room: str
    reason: str


@dataclass(frozen=True, slots=True)
class Binding:
    """What keeps more rooms from fitting."""

    stage: str
    why: str


@dataclass(frozen=True, slots=True)
class Point:
    """So many rooms at once."""

    rooms: int
    seconds: float
    conversations: Conversations
    stages: Stages
    processes: tuple[ProcessUse, ...]
    device: DeviceUse
    cpu: float
    """Of the whole machine, or of what may be used of it."""
    cores: float
    others: float
    """Cores that other programs took: what is measured is of both."""
    refused: tuple[Refused, ...]
    failed: tuple[str, ...]
    """Jobs that failed, and why."""
    checked: tuple[Checked, ...]
    cross_talk: tuple[CrossTalk, ...]
    late_ms: float
    """The callers' own ticks, p99, of the worst call: what the load tester itself added."""
    holds: bool
    why_not: str
    binding: Binding

    @property
    def garbled(self) -> int:
        """Answers that were heard as something that nobody said."""
        return sum(check.likeness < 0.5 for check in self.checked)


def why_not(
    talk: Conversations,
    *,
    target_s: float,
    refused: int,
    failed: int,
    cross_talk: int,
) -> str:
    """Why so many rooms do not hold; "" when they do."""
    if cross_talk:
        return "cross-talk"
    if refused:
        return f"{refused} rooms refused"
    if failed:
        return f"{failed} jobs failed"
    if not talk.answered:
        return "nobody was answered"
    if talk.lost:
        return f"{talk.lost} turns lost"
    if talk.underruns:
        return "1 underrun" if talk.underruns == 1 else f"{talk.underruns} underruns"
    if talk.after_endpointing.p95 > target_s:
        return f"p95 is {talk.after_endpointing.p95 * 1000:.0f} ms"
    return ""


def by_kind(processes: Sequence[ProcessUse]) -> tuple[ProcessUse, ...]:
    """Processes of one kind as one: means, and the steepest slope."""
    kinds: dict[str, list[ProcessUse]] = defaultdict(list)
    for process in processes:
        kinds[process.kind].append(process)
    merged = []
    for kind, uses in kinds.items():
        count = len(uses)
        slopes = [use.slope_mb_per_min for use in uses if not math.isnan(use.slope_mb_per_min)]
        merged.append(
            ProcessUse(
                kind,
                uses[0].name if count == 1 else f"{count} processes",
                math.fsum(use.cpu for use in uses) / count,
                math.fsum(use.memory_mb for use in uses) / count,
                max(use.memory_max_mb for use in uses),
                max(slopes) if slopes else math.nan,
                count,
            )
        )
    return tuple(merged)
