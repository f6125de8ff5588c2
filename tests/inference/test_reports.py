from __future__ import annotations

import pytest

from inference.planner import Kind
from inference.reports import LATE_S, PRESSURE_S, BusyShare, Tally, is_late
from inference.wire.supervision import BATCH_BUCKETS, LATENCY_BUCKETS_S, StageReport


def stage(tally: Tally, kind: Kind, now: float = 0.0) -> StageReport:
    return next(stage for stage in tally.stages({}, now) if stage.stage == kind.value)


def judge(tally: Tally, *, late: int = 0, in_time: int = 0, now: float = 0.0) -> None:
    for number in range(late + in_time):
        tally.judge(Kind.STT, number < late, now)


# --- late -----------------------------------------------------------------------------------------


def test_late_is_a_quarter_of_a_second_after_the_deadline() -> None:
    assert not is_late(now=10.1 + LATE_S, asked=10.0, deadline=10.1)
    assert is_late(now=10.11 + LATE_S, asked=10.0, deadline=10.1)


def test_a_request_that_begins_when_it_is_asked_for_is_never_late() -> None:
    """The room was about to fall silent already: that is not the lane's doing."""
    assert not is_late(now=10.0, asked=10.0, deadline=9.0)
    assert is_late(now=10.01 + LATE_S, asked=10.0, deadline=9.0)


# --- pressure -------------------------------------------------------------------------------------


def test_no_pressure_without_requests() -> None:
    assert Tally().pressure(0.0) == 0.0
    assert Tally().pressure(1e9) == 0.0


def test_one_late_request_after_a_silence_is_little_pressure_and_many_are_all() -> None:
    tally = Tally()
    judge(tally, late=1)
    assert 0.0 < tally.pressure(0.0) < 0.5
    judge(tally, late=50)
    assert tally.pressure(0.0) > 0.9


def test_pressure_is_the_share_of_the_late() -> None:
    tally = Tally()
    for second in range(100):
        judge(tally, late=3, in_time=7, now=float(second))
    assert tally.pressure(99.0) == pytest.approx(0.3, abs=0.02)


def test_pressure_follows_within_seconds() -> None:
    tally = Tally()
    for second in range(60):
        judge(tally, late=5, now=float(second))
    high = tally.pressure(59.0)
    assert high > 0.9
    for second in range(60, 75):
        judge(tally, in_time=5, now=float(second))
    assert tally.pressure(74.0) < 0.3
    for second in range(75, 90):
        judge(tally, late=5, now=float(second))
    assert tally.pressure(89.0) > 0.7


def test_pressure_fades_when_nothing_is_asked_for() -> None:
    tally = Tally()
    judge(tally, late=100)
    values = [tally.pressure(seconds) for seconds in (0.0, 2.5, 5.0, 7.5, PRESSURE_S, 100.0)]
    assert values == sorted(values, reverse=True)
    assert values[-2:] == [0.0, 0.0]


# --- counts ---------------------------------------------------------------------------------------


def test_requests_and_late_ones_of_each_stage() -> None:
    tally = Tally()
    judge(tally, late=2, in_time=3)
    tally.judge(Kind.TTS, True, 1.0)
    assert (stage(tally, Kind.STT).requests, stage(tally, Kind.STT).late) == (5, 2)
    assert (stage(tally, Kind.TTS).requests, stage(tally, Kind.TTS).late) == (1, 1)
    assert (stage(tally, Kind.LLM).requests, stage(tally, Kind.LLM).late) == (0, 0)


def test_batches_by_size() -> None:
    tally = Tally()
    for size in (1, 1, 2, 3, 4, 5, 64, 65):
        tally.quantum_begins(Kind.LLM, 0.0)
        tally.quantum_ends(size, 0.5)
    counted = stage(tally, Kind.LLM)
    assert dict(zip([*BATCH_BUCKETS, None], counted.batch_sizes, strict=True)) == {
        1: 2, 2: 1, 4: 2, 8: 1, 16: 0, 32: 0, 64: 1, None: 1,
    }  # fmt: skip
    assert (counted.quanta, counted.batch_items, counted.busy_s) == (8, 145, 4.0)
    assert counted.quanta == sum(counted.batch_sizes)


def test_latencies() -> None:
    tally = Tally()
    for seconds in (0.01, 0.011, 0.2, 9.0, 30.0):
        tally.answered(Kind.TTS, seconds)
    counted = stage(tally, Kind.TTS)
    assert dict(zip([*LATENCY_BUCKETS_S, None], counted.latencies, strict=True)) == {
        0.01: 1, 0.025: 1, 0.05: 0, 0.1: 0, 0.25: 1, 0.5: 0, 1.0: 0, 2.5: 0, 5.0: 0, 10.0: 1, None: 1,
    }  # fmt: skip
    assert counted.latency_sum_s == pytest.approx(39.221)


def test_what_waits_is_reported_as_given() -> None:
    assert {stage.stage: stage.waiting for stage in Tally().stages({Kind.STT: 3, Kind.TTS: 1}, 0.0)} == {
        "stt": 3, "llm": 0, "tts": 1,
    }  # fmt: skip


def test_a_batch_that_runs_is_device_time_already() -> None:
    """A lane that has been in one batch for seconds is busy, not idle."""
    tally, share = Tally(), BusyShare(0.0)
    tally.quantum_begins(Kind.STT, 0.5)
    assert stage(tally, Kind.STT, now=1.0).busy_s == 0.5
    assert share.look(tally.busy_s(1.0), 1.0) == 0.5
    assert share.look(tally.busy_s(2.0), 2.0) == 1.0
    tally.quantum_ends(1, 2.25)
    assert share.look(tally.busy_s(3.0), 3.0) == 0.25
    assert share.look(tally.busy_s(4.0), 4.0) == 0.0
    assert stage(tally, Kind.STT, now=9.0).busy_s == 1.75
    assert share.look(tally.busy_s(4.0), 4.0) == 0.0, "a look at no distance"
