"""Seeded numbers that are the same on every machine and in every version of Python. Pure.

SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

T = TypeVar("T")


class Draws:
    """A stream of numbers. Streams of different ``seed`` and ``names`` have nothing to do with each other."""

    def __init__(self, seed: int, *names: int) -> None:
        self._state = seed & _MASK
        for name in names:
            self._state = (self._next() ^ name) & _MASK

    def _next(self) -> int:
        self._state = (self._state + _GOLDEN) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def uniform(self, low: float, high: float) -> float:
        """A number from ``low`` to ``high``."""
        return low + (high - low) * (self._next() >> 11) / (1 << 53)

    def chance(self, share: float) -> bool:
        """True in ``share`` (0 to 1) of the draws."""
        return self.uniform(0.0, 1.0) < share

    def exponential(self, mean: float) -> float:
        """A time until something that happens once in ``mean`` on average."""
        return -mean * math.log(1.0 - self.uniform(0.0, 1.0))

    def choice(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[min(len(items) - 1, int(self.uniform(0.0, len(items))))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """``items`` in any order."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = min(last, int(self.uniform(0.0, last + 1)))
            result[last], result[other] = result[other], result[last]
        return result
