"""Devices for tests of the planner: what quanta cost."""

from __future__ import annotations

from inference.costs import CostTable, Stage

ALONE = {
    Stage.ENCODE: 0.09,
    Stage.TRANSCRIBE: 0.08,
    Stage.PREFILL: 0.06,
    Stage.DECODE: 0.0085,
    Stage.FIRST_SPEECH: 0.05,
    Stage.SPEECH: 0.018,
}
"""Seconds for one, on a small CPU with nothing else to do."""
MORE = {
    Stage.ENCODE: 1.0,
    Stage.TRANSCRIBE: 0.25,
    Stage.PREFILL: 0.8,
    Stage.DECODE: 0.5,
    Stage.FIRST_SPEECH: 0.95,
    Stage.SPEECH: 0.95,
}
"""What each further one adds, as a share of that."""
LIMITS = {Stage.ENCODE: 1, Stage.TRANSCRIBE: 4}


def true_cost(stage: Stage, size: int, slower: float = 1.0) -> float:
    return slower * ALONE[stage] * (1 + MORE[stage] * (size - 1))


def small_cpu(slower: float = 1.0) -> CostTable:
    """``slower``: times as long as that."""
    costs = CostTable()
    for stage in Stage:
        for size in (1, 2, 4, 8, 16):
            costs.learn(stage, size, true_cost(stage, size, slower))
    return costs
