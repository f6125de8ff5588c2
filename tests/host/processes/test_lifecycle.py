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


def test_fair_clock_runs_with_the_pulses():
    clock = FairClock(0.1, now=50.0)
    for tenth in range(1, 11):
        clock.pulse(50.0 + tenth / 10)
    assert clock.read(51.05) == pytest.approx(51.05)


def test_fair_clock_does_not_count_the_time_in_which_the_loop_stood_still():
    clock = FairClock(0.1, now=0.0)
    assert clock.read(60.0) == pytest.approx(0.2)
    clock.pulse(60.0)
    assert clock.read(60.0) == pytest.approx(0.2)
    clock.pulse(60.1)
    assert clock.read(60.1) == pytest.approx(0.3)


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
