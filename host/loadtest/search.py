"""Which number of rooms to try next: up by doubling until one fails, then between. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def next_rooms(held: Mapping[int, bool], most: int, first: int = 1) -> int | None:
    """The next number of rooms to try, or None when the largest that holds is known.

    ``held``: what was tried and whether it held. ``most``: more are not tried.

    >>> next_rooms({1: True, 2: True, 4: False}, most=64)
    3
    """
    holds = best(held)
    # A number that failed below one that held was bad luck: more rooms are not less work.
    fails = min((rooms for rooms, ok in held.items() if not ok and rooms > holds), default=0)
    if not held:
        return min(first, most)
    if not fails:
        return min(2 * holds, most) if holds < most else None
    if fails - holds <= 1:
        return None
    return (holds + fails) // 2


def best(held: Mapping[int, bool]) -> int:
    """The largest number of rooms that held; 0 for none."""
    return max((rooms for rooms, ok in held.items() if ok), default=0)
