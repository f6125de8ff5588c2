"""The states of a child, back-off, the fair clock and the heartbeat, as tables over ``now``."""

import pytest

from host.lifecycle import (
    TRANSITIONS,
    Backoff,
    Beat,
    ChildEvent,
    ChildState,
    FairClock,
    Heartbeat,
    IllegalTransitionError,
    MemoryVerdict,
    MemoryWatch,
    RateLimit,
    follow,
)


def test_one_job_process_from_start_to_end():
    state = ChildState.STARTING
    seen = []
    for event in (ChildEvent.STARTED, ChildEvent.READY, ChildEvent.ASSIGNED, ChildEvent.STOP, ChildEvent.EXITED):
        state = follow(state, event)
        seen.append(state)
    assert seen == [
        ChildState.INITIALIZING,
        ChildState.READY,
        ChildState.RUNNING,
        ChildState.STOPPING,
        ChildState.ENDED,
    ]


def test_whatever_is_not_in_the_table_is_an_error():
    for state in ChildState:
        for event in ChildEvent:
            if event in TRANSITIONS[state]:
                assert follow(state, event) is TRANSITIONS[state][event]
            else:
                with pytest.raises(IllegalTransitionError, match=f"{event.value} .* {state.value}"):
                    follow(state, event)


def test_every_state_but_the_last_can_end():
    assert all(
        TRANSITIONS[state][ChildEvent.EXITED] is ChildState.ENDED for state in set(ChildState) - {ChildState.ENDED}
    )
    assert not TRANSITIONS[ChildState.ENDED]


def test_backoff_doubles_up_to_its_maximum_and_starts_again_after_success():
    backoff = Backoff(initial_s=0.5, maximum_s=3.0)
    assert backoff.wait_s(now=0.0) == 0.0
    waits = []
    for _ in range(5):
        backoff = backoff.after_failure(now=100.0)
        waits.append(backoff.wait_s(now=100.0))
    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.failures == 5
    assert backoff.wait_s(now=102.0) == 1.0
    assert backoff.wait_s(now=200.0) == 0.0
    assert backoff.after_success().after_failure(now=300.0).wait_s(now=300.0) == 0.5


def test_backoff_of_endless_failures_stays_a_number():
    backoff = Backoff(failures=5_000)
    assert backoff.after_failure(now=0.0).wait_s(now=0.0) == backoff.maximum_s


def test_backoff_begins_another_row_after_a_quiet_time():
    backoff = Backoff(initial_s=0.5, forget_s=60.0).after_failure(now=0.0).after_failure(now=1.0)
    assert (backoff.failures, backoff.not_before) == (2, 2.0)
    assert backoff.after_failure(now=62.0).failures == 3
    later = backoff.after_failure(now=62.1)
    assert (later.failures, later.wait_s(now=62.1), later.forget_s) == (1, 0.5, 60.0)


def test_fair_clock_runs_with_the_pulses():
    clock = FairClock(0.5, now=50.0)
    for tenth in range(1, 11):
        clock.pulse(50.0 + tenth / 10)
    assert clock.read(51.05) == pytest.approx(51.05)


def test_fair_clock_does_not_count_the_time_in_which_the_loop_stood_still():
    clock = FairClock(0.5, now=0.0)
    assert clock.read(60.0) == pytest.approx(0.5)
    clock.pulse(60.0)
    assert clock.read(60.0) == pytest.approx(0.5)
    clock.pulse(60.1)
    assert clock.read(60.1) == pytest.approx(0.6)


def test_fair_clock_counts_pulses_that_are_only_late():
    clock = FairClock(0.5, now=0.0)
    for pulse in range(1, 11):
        clock.pulse(pulse * 0.45)
    assert clock.read(4.5) == pytest.approx(4.5)


def test_heartbeat_pings_once_an_interval_while_it_is_answered():
    heartbeat = Heartbeat(interval_s=2.0, timeout_s=10.0, now=0.0)
    assert heartbeat.beat(1.9) is Beat.WAIT
    assert heartbeat.wait_s(1.5) == 0.5
    assert heartbeat.beat(2.0) is Beat.PING
    assert heartbeat.beat(2.1) is Beat.WAIT
    assert heartbeat.answered(2.25) == 0.25
    assert heartbeat.beat(3.9) is Beat.WAIT
    assert heartbeat.beat(4.0) is Beat.PING


def test_heartbeat_calls_a_child_dead_that_leaves_one_ping_unanswered_for_the_timeout():
    heartbeat = Heartbeat(interval_s=2.0, timeout_s=10.0, now=0.0)
    assert heartbeat.beat(2.0) is Beat.PING
    assert heartbeat.wait_s(2.0) == 10.0
    assert heartbeat.beat(11.9) is Beat.WAIT
    assert heartbeat.beat(12.0) is Beat.DEAD


def test_heartbeat_asks_at_once_after_a_late_answer():
    heartbeat = Heartbeat(interval_s=2.0, timeout_s=10.0, now=0.0)
    heartbeat.beat(2.0)
    assert heartbeat.answered(9.0) == 7.0
    assert heartbeat.beat(9.0) is Beat.PING


def test_heartbeat_takes_an_answer_to_nothing_for_nothing():
    heartbeat = Heartbeat(interval_s=2.0, timeout_s=10.0, now=0.0)
    assert heartbeat.answered(1.0) == 0.0
    assert heartbeat.beat(2.0) is Beat.PING


def test_rate_limit_counts_what_it_holds_back():
    limit = RateLimit(10.0)
    assert [limit.admit(now) for now in (0.0, 1.0, 9.9, 10.0, 19.9, 40.0, 41.0)] == [0, None, None, 2, None, 1, None]


def test_memory_is_warned_of_at_once_then_when_it_grows_or_stays():
    watch = MemoryWatch(warn_mb=100, limit_mb=0)
    samples = [
        (0, 100),
        (1, 101),
        (2, 150),
        (3, 152),
        (4, 90),
        (5, 140),
        (122, 151),
        (123, 153),
        (242, 110),
        (244, 110),
    ]
    warned = [(now, mb) for now, mb in samples if watch.sample(now, mb) is MemoryVerdict.WARN]
    assert warned == [(1, 101), (3, 152), (123, 153), (244, 110)]


def test_memory_over_its_limit_must_end_warned_or_not():
    watch = MemoryWatch(warn_mb=0, limit_mb=200)
    assert [watch.sample(now, mb) for now, mb in ((0, 200), (1, 200.1), (2, 300))] == [
        MemoryVerdict.FINE,
        MemoryVerdict.LIMIT,
        MemoryVerdict.LIMIT,
    ]


def test_without_a_limit_memory_is_fine():
    watch = MemoryWatch(warn_mb=0, limit_mb=0)
    assert watch.sample(0, 1e9) is MemoryVerdict.FINE
