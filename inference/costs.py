"""What a quantum costs: a table of seconds per stage and batch size. Pure.

It is filled at warm-up (``inference/measuring.py``) and refined by every quantum that runs: the mean of a batch
size moves towards what was measured, by ``LEARN`` of the way. A quantum that took many times what was expected
(the machine was busy with something else) moves it no further than ``OUTLIER`` times the mean would, so that one
hiccup is forgotten after a few quanta, while a device that has become slow is believed after as many.

Sizes that were never run are taken from their neighbours: between two known sizes along a straight line, beyond
them in proportion to the size for one half and constant for the other: half of a quantum is what every batch pays.
"""

from __future__ import annotations

import enum
from bisect import bisect_left

LEARN = 0.2
"""Weight of the latest quantum in the mean."""
OUTLIER = 3.0
"""A quantum counts for at most this many times the mean."""
_FIXED = 0.5
"""The share of a quantum that does not grow with its batch, where nothing is known."""


class Stage(enum.Enum):
    """What a quantum does. Only tasks of one stage share one."""

    ENCODE = "encode"
    """The audio of utterances, for speech to text."""
    TRANSCRIBE = "transcribe"
    """The words of utterances that are encoded."""
    PREFILL = "prefill"
    """A chunk of prompts."""
    DECODE = "decode"
    """One token of each generation."""
    FIRST_SPEECH = "first speech"
    """The first block of phrases, with all that comes before it."""
    SPEECH = "speech"
    """A later block of phrases."""


ASSUMED_S = {
    Stage.ENCODE: 0.1,
    Stage.TRANSCRIBE: 0.1,
    Stage.PREFILL: 0.05,
    Stage.DECODE: 0.01,
    Stage.FIRST_SPEECH: 0.06,
    Stage.SPEECH: 0.03,
}
"""What one alone is taken to cost before anything was measured: a small CPU."""


class CostTable:
    """Seconds per stage and batch size."""

    def __init__(self) -> None:
        self._means: dict[Stage, dict[int, float]] = {stage: {} for stage in Stage}
        self._sizes: dict[Stage, list[int]] = {stage: [] for stage in Stage}

    def __repr__(self) -> str:
        known = {stage.value: {n: round(1000 * s, 2) for n, s in self.known(stage)} for stage in Stage}
        return f"<CostTable in ms: {known}>"

    def copy(self) -> CostTable:
        """Another one that knows as much and learns for itself."""
        other = CostTable()
        for stage in Stage:
            for size, seconds in self.known(stage):
                other.learn(stage, size, seconds)
        return other

    def learn(self, stage: Stage, size: int, seconds: float) -> None:
        """A quantum of ``size`` took ``seconds``; one that served nobody teaches nothing."""
        if size < 1:
            return
        means = self._means[stage]
        mean = means.get(size)
        if mean is None:
            means[size] = seconds
            self._sizes[stage] = sorted(means)
        else:
            # From nothing at all no multiple gets anywhere.
            bounded = min(seconds, OUTLIER * mean) if mean > 0 else seconds
            means[size] = mean + LEARN * (bounded - mean)

    def predict(self, stage: Stage, size: int) -> float:
        """Seconds that a quantum of ``size`` will take; 0 for none."""
        if size <= 0:
            return 0.0
        means, sizes = self._means[stage], self._sizes[stage]
        if not sizes:
            return _beyond(ASSUMED_S[stage], 1, size)
        if (known := means.get(size)) is not None:
            return known
        above = bisect_left(sizes, size)
        if above == 0:
            return _beyond(means[sizes[0]], sizes[0], size)
        if above == len(sizes):
            return _beyond(means[sizes[-1]], sizes[-1], size)
        low, high = sizes[above - 1], sizes[above]
        share = (size - low) / (high - low)
        return means[low] + share * (means[high] - means[low])

    def known(self, stage: Stage) -> list[tuple[int, float]]:
        """Sizes that were run, smallest first, with their means."""
        means = self._means[stage]
        return [(size, means[size]) for size in self._sizes[stage]]


def _beyond(seconds: float, known: int, size: int) -> float:
    return seconds * (_FIXED + (1 - _FIXED) * size / known)
