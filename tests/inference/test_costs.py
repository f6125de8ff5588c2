"""The table of costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.costs import ASSUMED_S, LEARN, OUTLIER, CostTable, Stage


def test_something_is_assumed_before_anything_is_measured() -> None:
    costs = CostTable()
    for stage in Stage:
        assert costs.predict(stage, 1) == ASSUMED_S[stage]
        assert costs.predict(stage, 4) > costs.predict(stage, 1)
    assert costs.predict(Stage.DECODE, 0) == 0.0


def test_the_first_measurement_is_believed_and_later_ones_move_the_mean() -> None:
    costs = CostTable()
    costs.learn(Stage.DECODE, 1, 0.010)
    assert costs.predict(Stage.DECODE, 1) == 0.010
    costs.learn(Stage.DECODE, 1, 0.020)
    assert costs.predict(Stage.DECODE, 1) == pytest.approx(0.010 + LEARN * 0.010)


def test_one_hiccup_is_bounded_but_a_slower_device_is_believed() -> None:
    costs = CostTable()
    costs.learn(Stage.DECODE, 1, 0.010)
    costs.learn(Stage.DECODE, 1, 10.0)
    assert costs.predict(Stage.DECODE, 1) <= 0.010 * (1 + LEARN * (OUTLIER - 1))
    for _ in range(40):
        costs.learn(Stage.DECODE, 1, 0.1)
    assert costs.predict(Stage.DECODE, 1) == pytest.approx(0.1, rel=0.05)


def test_what_took_no_time_can_take_some_later() -> None:
    costs = CostTable()
    costs.learn(Stage.SPEECH, 1, 0.0)
    for _ in range(40):
        costs.learn(Stage.SPEECH, 1, 0.5)
    assert costs.predict(Stage.SPEECH, 1) == pytest.approx(0.5, rel=0.05)


def test_between_two_sizes_it_is_a_straight_line() -> None:
    costs = CostTable()
    costs.learn(Stage.PREFILL, 2, 0.1)
    costs.learn(Stage.PREFILL, 6, 0.3)
    assert costs.predict(Stage.PREFILL, 4) == pytest.approx(0.2)
    assert costs.predict(Stage.PREFILL, 1) == pytest.approx(0.075)
    assert costs.predict(Stage.PREFILL, 12) == pytest.approx(0.45)
    assert costs.known(Stage.PREFILL) == [(2, 0.1), (6, 0.3)]


def test_a_quantum_that_served_nobody_teaches_nothing() -> None:
    costs = CostTable()
    costs.learn(Stage.SPEECH, 0, 3.0)
    assert costs.known(Stage.SPEECH) == []


def test_a_copy_knows_as_much_and_learns_for_itself() -> None:
    costs = CostTable()
    costs.learn(Stage.DECODE, 2, 0.01)
    copy = costs.copy()
    copy.learn(Stage.DECODE, 2, 0.02)
    assert costs.predict(Stage.DECODE, 2) == 0.01 < copy.predict(Stage.DECODE, 2)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), max_size=20), st.integers(1, 100))
def test_every_size_has_a_cost_within_reason(measured: list[tuple[int, float]], size: int) -> None:
    costs = CostTable()
    for known, seconds in measured:
        costs.learn(Stage.SPEECH, known, seconds)
    most = max([seconds for _, seconds in measured], default=ASSUMED_S[Stage.SPEECH])
    assert 0.0 <= costs.predict(Stage.SPEECH, size) <= most * (1 + size)
