"""What the device lane has done, counted. Pure: takes ``now`` in seconds of one monotonic clock.

Each request is judged once: when its first quantum begins, or as soon as it has waited for ``LATE_S`` beyond its
deadline (``inference/planner.py``). *Pressure* is the share of late ones among those judged lately, both forgotten
exponentially, with two phantom ones in time: a single late request after a silence is no pressure yet. It fades
while nothing is judged at all.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from inference.planner import Kind
from inference.wire.supervision import BATCH_BUCKETS, LATENCY_BUCKETS_S, StageReport

LATE_S = 0.25
"""Beyond a request's deadline, in seconds, from which on a listener notices that it has not begun."""
PRESSURE_S = 10.0
"""Time constant of forgetting; after as long without any request there is no pressure."""
_PHANTOMS = 2.0


def is_late(now: float, asked: float, deadline: float) -> bool:
    """Whether a request that has not begun waits longer than its listener would not notice.

    A deadline may lie before the request was made, where a room was about to fall silent already: only
    the wait in the lane is the lane's.
    """
    return now - max(asked, deadline) > LATE_S


@dataclass(slots=True)
class _Stage:
    requests: int = 0
    late: int = 0
    quanta: int = 0
    busy_s: float = 0.0
    batch_items: int = 0
    batch_sizes: list[int] = field(default_factory=lambda: [0] * (len(BATCH_BUCKETS) + 1))
    latencies: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))
    latency_sum_s: float = 0.0


class Tally:
    """Counts of one lane since it was made."""

    def __init__(self) -> None:
        self._stages = {kind: _Stage() for kind in Kind}
        self._running: tuple[Kind, float] | None = None
        self._judged = 0.0
        self._judged_late = 0.0
        self._judged_at = -math.inf

    # --- what happens -----------------------------------------------------------------------------

    def judge(self, kind: Kind, late: bool, now: float) -> None:
        """A request's first quantum begins, or it waits too long."""
        stage = self._stages[kind]
        stage.requests += 1
        stage.late += late
        kept = math.exp((self._judged_at - now) / PRESSURE_S)
        self._judged = self._judged * kept + 1
        self._judged_late = self._judged_late * kept + late
        self._judged_at = now

    def begun_ahead(self, kind: Kind) -> None:
        """The first quantum of what somebody may want later begins: it cannot be late."""
        self._stages[kind].requests += 1

    def quantum_begins(self, kind: Kind, now: float) -> None:
        """A batch begins."""
        self._running = kind, now

    def quantum_ends(self, size: int, now: float) -> None:
        """The batch is done; it served ``size`` requests."""
        if self._running is not None:
            kind, began = self._running
            stage = self._stages[kind]
            stage.quanta += 1
            stage.batch_items += size
            stage.batch_sizes[bisect_left(BATCH_BUCKETS, size)] += 1
            stage.busy_s += now - began
            self._running = None

    def answered(self, kind: Kind, latency_s: float) -> None:
        """A request has its first result."""
        stage = self._stages[kind]
        stage.latencies[bisect_left(LATENCY_BUCKETS_S, latency_s)] += 1
        stage.latency_sum_s += latency_s

    def running_s(self, now: float) -> float:
        """For how long the batch that runs has been running; 0 without one."""
        return now - self._running[1] if self._running is not None else 0.0

    # --- what is reported -------------------------------------------------------------------------

    def busy_s(self, now: float) -> float:
        """Device time since the tally was made, with that of the batch that runs."""
        return sum(self._busy_s(kind, now) for kind in Kind)

    def pressure(self, now: float) -> float:
        """0 to 1."""
        fading = max(0.0, 1.0 - (now - self._judged_at) / PRESSURE_S)
        return min(1.0, fading * self._judged_late / (self._judged + _PHANTOMS))

    def stages(self, waiting: Mapping[Kind, int], now: float) -> tuple[StageReport, ...]:
        """Each stage. ``waiting``: requests that have not ended."""
        return tuple(
            StageReport(
                stage=kind.value,
                waiting=waiting.get(kind, 0),
                requests=stage.requests,
                late=stage.late,
                quanta=stage.quanta,
                busy_s=self._busy_s(kind, now),
                batch_sizes=tuple(stage.batch_sizes),
                latencies=tuple(stage.latencies),
                latency_sum_s=stage.latency_sum_s,
                batch_items=stage.batch_items,
            )
            for kind, stage in self._stages.items()
        )

    def _busy_s(self, kind: Kind, now: float) -> float:
        match self._running:
            case (running, began) if running is kind:
                return self._stages[kind].busy_s + max(0.0, now - began)
        return self._stages[kind].busy_s


class BusyShare:
    """The share of the time between two looks in which a lane worked."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._busy_s = 0.0

    def look(self, busy_s: float, now: float) -> float:
        """0 to 1. ``busy_s``: ``Tally.busy_s`` of the same moment."""
        elapsed_s, self._at = now - self._at, now
        used_s, self._busy_s = busy_s - self._busy_s, busy_s
        return min(1.0, max(0.0, used_s / elapsed_s)) if elapsed_s > 0 else 0.0
