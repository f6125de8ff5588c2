"""The idle pool's decisions, as tables over ``now`` and what is there."""

import pytest

from host.lifecycle import Backoff
from host.pool import MAX_CONCURRENT_STARTS, Assign, Discard, IdleProcess, Retire, Spawn, View, plan


def view(idle="", dead="", starting=0, waiting=(), wanted=1, backoff=None):
    processes = [IdleProcess(name, name not in dead) for name in idle]
    return View(wanted, processes, starting, tuple(waiting), backoff or Backoff())


@pytest.mark.parametrize(
    ("situation", "decisions"),
    [
        pytest.param(view(), [Spawn()], id="empty: start one"),
        pytest.param(view(starting=1), [], id="one is on its way"),
        pytest.param(view(idle="a"), [], id="full"),
        pytest.param(view(wanted=0), [], id="no pool wanted"),
        pytest.param(view(wanted=3, idle="a", starting=1), [Spawn()], id="what is starting counts"),
        pytest.param(view(wanted=9), [Spawn()] * MAX_CONCURRENT_STARTS, id="no more at once than the machine bears"),
        pytest.param(view(wanted=9, starting=MAX_CONCURRENT_STARTS), [], id="the cap counts what is starting"),
        pytest.param(view(idle="a", waiting=["j"]), [Assign("a", "j"), Spawn()], id="hand out, start the next"),
        pytest.param(
            view(idle="ab", wanted=2, waiting=["j", "k", "l"]),
            [Assign("a", "j"), Assign("b", "k"), Spawn(), Spawn(), Spawn()],
            id="oldest to the first that waits; a process for each that waits, and the pool",
        ),
        pytest.param(view(waiting=["j"], wanted=0), [Spawn()], id="a job without a pool starts its own"),
        pytest.param(view(idle="ab"), [Retire("a")], id="the job that it was started for has gone"),
        pytest.param(view(idle="a", dead="a"), [Discard("a"), Spawn()], id="dead: replace"),
        pytest.param(
            view(idle="ab", dead="a", waiting=["j"]),
            [Discard("a"), Assign("b", "j"), Spawn()],
            id="a dead one is not handed out",
        ),
        pytest.param(view(idle="a", dead="a", waiting=["j"], wanted=0), [Discard("a"), Spawn()], id="dead, and needed"),
    ],
)
def test_plan(situation, decisions):
    assert list(plan(0.0, situation).decisions) == decisions
    assert plan(0.0, situation).wait_s is None


def test_after_a_failure_nothing_is_started_before_the_time():
    backoff = Backoff().after_failure(now=10.0)
    waiting = plan(10.2, view(backoff=backoff))
    assert waiting.decisions == ()
    assert waiting.wait_s == pytest.approx(0.3)
    assert plan(10.5, view(backoff=backoff)).decisions == (Spawn(),)


def test_after_a_failure_one_at_a_time_is_tried():
    backoff = Backoff().after_failure(now=10.0)
    assert plan(11.0, view(wanted=4, backoff=backoff)).decisions == (Spawn(),)
    assert plan(11.0, view(wanted=4, starting=1, backoff=backoff)).decisions == ()


def test_a_warm_process_is_handed_out_whatever_has_failed():
    backoff = Backoff().after_failure(now=10.0)
    assert plan(10.0, view(idle="a", waiting=["j"], backoff=backoff)).decisions == (Assign("a", "j"),)


def test_processes_that_always_die_do_not_make_a_hot_loop():
    """A minute of an agent that dies as soon as it is started: a handful of starts."""
    now, starts, backoff = 0.0, 0, Backoff()
    while now < 60.0:
        decided = plan(now, view(wanted=4, backoff=backoff))
        for _ in decided.decisions:
            starts += 1
            backoff = backoff.after_failure(now)
        now += decided.wait_s or 0.001
    assert 4 <= starts <= 12
