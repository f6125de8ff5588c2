"""The search finds the largest number of rooms that holds, with few tries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.loadtest.search import best, next_rooms


def search(limit: int, most: int) -> dict[int, bool]:
    held: dict[int, bool] = {}
    while (rooms := next_rooms(held, most)) is not None:
        assert rooms not in held
        assert 1 <= rooms <= most
        held[rooms] = rooms <= limit
    return held


@given(st.integers(0, 100), st.integers(1, 100))
def test_it_finds_the_limit(limit: int, most: int) -> None:
    held = search(limit, most)
    assert best(held) == min(limit, most)
    assert len(held) <= 14


@pytest.mark.parametrize(
    ("limit", "most", "tried"),
    [
        (0, 16, [1]),
        (1, 16, [1, 2]),
        (5, 16, [1, 2, 4, 8, 6, 5]),
        (20, 16, [1, 2, 4, 8, 16]),
        (3, 3, [1, 2, 3]),
    ],
)
def test_it_goes_up_by_doubling_and_then_between(limit: int, most: int, tried: list[int]) -> None:
    assert list(search(limit, most)) == tried


def test_a_number_that_failed_by_bad_luck_does_not_end_it() -> None:
    assert next_rooms({1: False, 2: True}, most=16) == 4
