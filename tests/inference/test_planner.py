"""Which quantum goes first."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.costs import CostTable, Stage
from inference.planner import (
    COURTESY_S,
    GREEDY,
    GUESS_S,
    KIND_OF,
    MODEST_S,
    USAGE_S,
    Hold,
    Kind,
    Planner,
    Quantum,
    Task,
    Why,
)
from tests.inference.devices import LIMITS, small_cpu, true_cost

NOW = 100.0
ENCODE, WORDS, PREFILL, DECODE, FIRST, SPEECH = Stage


def planner(costs: CostTable | None = None) -> Planner:
    return Planner(costs or small_cpu(), LIMITS)


def task(stage: Stage, request: int, since: float = NOW, *, room: int | None = None, **rest: object) -> Task:
    return Task(stage, request, request if room is None else room, since, **rest)  # type: ignore[arg-type]


def guess(request: int, since: float = NOW, stage: Stage = ENCODE) -> Task:
    return task(stage, request, since, wanted=since + GUESS_S)


def decide(*tasks: Task, by: Planner | None = None, now: float = NOW) -> Quantum:
    by = by or planner()
    decided = by.decide(now, tasks)
    assert isinstance(decided, Quantum), "the device does not idle while there is a task"
    assert decided == by.decide(now, tuple(reversed(tasks))), "the order must not matter"
    return decided


def chosen(*tasks: Task, by: Planner | None = None, now: float = NOW) -> tuple[int, ...]:
    return decide(*tasks, by=by, now=now).requests


def had(by: Planner, room: int, seconds: float, now: float = NOW) -> None:
    """``room`` has had the device for so long until now; what quanta cost stays as it was."""
    costs, by.costs = by.costs, CostTable()
    by.ran(SPEECH, [room], seconds, now)
    by.costs = costs


# --- who goes first -------------------------------------------------------------------------------


def test_nothing_to_do() -> None:
    assert planner().decide(NOW, []) is None


def test_of_requests_of_one_instant_first_audio_goes_first_and_guesses_last() -> None:
    waiting = [guess(0), task(WORDS, 1), task(ENCODE, 2), task(DECODE, 3), task(FIRST, 4)]
    order = []
    while waiting:
        requests = chosen(*waiting)
        order.append(requests)
        waiting = [one for one in waiting if one.request not in requests]
    assert order == [(4,), (3,), (1,), (2,), (0,)]


@pytest.mark.parametrize("stage", [PREFILL, DECODE, FIRST, SPEECH])
def test_a_silent_room_goes_before_one_with_speech_buffered(stage: Stage) -> None:
    assert chosen(task(stage, 1, NOW - 0.001), task(SPEECH, 2, NOW - 9, buffered_s=2.0))[0] == 1


def test_a_room_that_runs_dry_goes_before_one_that_just_asked() -> None:
    assert chosen(task(WORDS, 1), task(SPEECH, 2, buffered_s=0.2)) == (2,)


def test_a_room_that_is_about_to_run_dry_goes_before_everybody() -> None:
    assert chosen(task(FIRST, 1, NOW - 9), task(SPEECH, 2, buffered_s=0.19)) == (2,)
    assert chosen(task(FIRST, 1, NOW - 9), task(SPEECH, 2, buffered_s=0.21)) == (1,)
    assert chosen(task(FIRST, 1, NOW - 9), task(DECODE, 2, buffered_s=0.39)) == (2,)
    assert chosen(task(FIRST, 1, NOW - 9), task(DECODE, 2, buffered_s=0.41)) == (1,)
    assert chosen(task(FIRST, 1, NOW - 9), task(DECODE, 2, buffered_s=0.39, speaks=True)) == (1,), "first its phrase"
    held_back = task(SPEECH, 2, NOW - 9, buffered_s=0.09, wanted=math.inf)
    assert chosen(task(ENCODE, 1), held_back) == (1,), "nobody listens to a guess"


def test_a_room_far_ahead_of_its_listener_waits_for_everything_that_somebody_wants() -> None:
    ahead = task(SPEECH, 1, NOW - 60, buffered_s=9.0)
    assert chosen(ahead, guess(2)) == (2,)
    assert chosen(ahead) == (1,)


def test_a_turn_that_has_waited_goes_before_the_next_token() -> None:
    assert chosen(task(ENCODE, 1, NOW - 0.2), task(DECODE, 2)) == (1,)


def test_a_room_speaks_its_phrase_before_it_thinks_of_the_next() -> None:
    """And another room's first words come before the second phrase of one that has not begun to speak."""
    thinks = task(DECODE, 1, NOW - 1, room=1, speaks=True)
    assert chosen(thinks, task(FIRST, 2, room=1)) == (2,)
    assert chosen(thinks, task(ENCODE, 3, room=3)) == (3,)
    assert chosen(task(DECODE, 1, NOW - 1, room=1), task(ENCODE, 3, room=3)) == (1,)


def test_a_generation_that_goes_on_does_not_grow_old_in_front_of_everybody() -> None:
    """Its last step is what its listener has; what it asked for long ago does not count again and again."""
    now = step = NOW
    by = planner()
    while now < NOW + 1.0:
        if 2 in chosen(task(DECODE, 1, step), task(ENCODE, 2, NOW), by=by, now=now):
            break
        now += 0.0085
        step = now
    assert now < NOW + 0.2


# --- guesses --------------------------------------------------------------------------------------


def test_a_guess_runs_in_spare_time() -> None:
    decided = decide(guess(1), task(SPEECH, 2, buffered_s=3.0))
    assert (decided.requests, decided.why) == ((1,), Why.SPARE_TIME)


def test_a_guess_that_has_waited_out_the_endpointing_delay_is_a_turn() -> None:
    late = guess(1, NOW - GUESS_S - 0.01)
    assert decide(late, task(DECODE, 2)).requests == (1,)
    assert decide(late).why is Why.DEADLINE


@pytest.mark.parametrize("stage", [ENCODE, PREFILL, DECODE, FIRST, SPEECH])
def test_what_nobody_ever_waits_for_comes_after_everything_else(stage: Stage) -> None:
    never = task(stage, 1, NOW - 99, wanted=math.inf)
    for other in (guess(2), task(SPEECH, 2, buffered_s=9.0), task(DECODE, 2)):
        assert chosen(never, other) == (2,)
    assert decide(never).why is Why.SPARE_TIME


@pytest.mark.parametrize("stage", [ENCODE, PREFILL, DECODE, FIRST])
def test_a_guess_that_somebody_waits_for_after_all_is_like_any_other(stage: Stage) -> None:
    """Promoted: ``wanted`` is when that was said, and so is ``since``."""
    promoted = task(stage, 1, NOW - 0.01, wanted=NOW - 0.01)
    assert promoted.deadline(NOW) == task(stage, 1, NOW - 0.01).deadline(NOW)
    assert chosen(promoted, task(stage, 2))[0] == 1
    assert decide(promoted).why is Why.DEADLINE
    assert chosen(promoted, guess(2, NOW - 0.3)) == (1,)


def test_an_answer_that_nobody_waits_for_yet_comes_even_after_a_greedy_room() -> None:
    by = planner()
    had(by, 1, 5.0)
    had(by, 2, 0.1)
    assert by.greedy(NOW) == {1}
    for stage in (DECODE, FIRST, SPEECH):
        never = task(stage, 2, NOW - 9, wanted=math.inf)
        assert chosen(task(ENCODE, 1), never, by=by) == (1,)
        assert chosen(task(ENCODE, 1), task(stage, 2, NOW - 9), by=by) == (2,), "until somebody does"
    # What is decoded at a pause is cheap, and will hardly be in vain.
    assert chosen(task(ENCODE, 1), task(PREFILL, 2, wanted=math.inf), by=by) == (2,)


def test_an_answer_that_nobody_waits_for_yet_is_written_and_spoken_in_turns() -> None:
    """The text of one room, and its first phrase: whichever has waited longer."""
    by = planner()
    writes, speaks = (task(stage, n, room=1, wanted=math.inf) for n, stage in enumerate((DECODE, FIRST)))
    order = []
    for step in range(4):
        now = NOW + 0.05 * (step + 1)
        decided = decide(writes, speaks, by=by, now=now)
        order.append(decided.stage)
        by.ran(decided.stage, [1], 0.04, now, guess=True)
        if decided.stage is DECODE:
            writes = task(DECODE, 0, now, room=1, wanted=math.inf)
        else:
            speaks = task(SPEECH, 1, now, room=1, wanted=math.inf, buffered_s=0.3 * step)
    assert sorted(stage is DECODE for stage in order) == [False, False, True, True]


# --- batches --------------------------------------------------------------------------------------


def test_peers_share_a_batch_most_urgent_first() -> None:
    assert chosen(task(DECODE, 1, NOW - 1), task(DECODE, 2, NOW - 2), task(FIRST, 3, NOW + 1)) == (2, 1)


def test_audio_is_encoded_in_the_order_of_asking_and_the_words_are_found_together() -> None:
    """One that joins while another is encoded is encoded before the words of both are looked for."""
    by = planner()
    first, second = task(WORDS, 1, NOW), task(ENCODE, 2, NOW - 0.05)
    assert chosen(first, second, by=by) == (2,)
    assert chosen(first, task(WORDS, 2, NOW + 0.09), by=by, now=NOW + 0.09) == (1, 2)


def test_a_batch_has_a_limit_and_guesses_do_not_ride_along() -> None:
    tasks = [task(WORDS, n, NOW - 1 + n / 1000) for n in range(6)]
    assert chosen(*tasks, guess(9, stage=WORDS)) == (0, 1, 2, 3)
    assert chosen(task(ENCODE, 1), task(ENCODE, 2, NOW + 1)) == (1,)


def test_a_room_with_speech_buffered_rides_along_only_where_it_costs_next_to_nothing() -> None:
    silent, buffered = task(DECODE, 1), task(DECODE, 2, buffered_s=3.0)
    assert chosen(silent, buffered) == (1,)
    gpu = CostTable()
    for size in (1, 2):
        gpu.learn(DECODE, size, 0.010 + 0.001 * size)
    assert chosen(silent, buffered, by=planner(gpu)) == (1, 2)


def test_of_each_room_one_request_of_an_engine_counts_the_oldest_that_somebody_waits_for() -> None:
    pile = [task(WORDS, n, NOW - 5, room=1) for n in range(6)]
    assert chosen(*pile, task(WORDS, 10, NOW - 0.1, room=2)) == (0, 10)
    assert chosen(task(WORDS, 1, NOW, room=1), task(ENCODE, 2, NOW - 0.05, room=1)) == (1,)
    assert chosen(guess(1), task(ENCODE, 2, room=1)) == (2,)
    assert chosen(task(PREFILL, 1, NOW - 9, wanted=math.inf), task(PREFILL, 2, room=1)) == (2,)


# --- shares ---------------------------------------------------------------------------------------


def test_a_room_alone_may_have_the_whole_device() -> None:
    by = planner()
    had(by, 1, 9.0)
    assert chosen(task(ENCODE, 1), by=by) == (1,)


def test_a_greedy_room_gets_what_the_others_leave() -> None:
    by = planner()
    for room, seconds in ((1, 5.0), (2, 1.0), (3, 1.0)):
        had(by, room, seconds)
    assert by.greedy(NOW) == {1}
    assert chosen(task(FIRST, 1, NOW - 9), task(ENCODE, 2), by=by) == (2,)
    decided = decide(task(ENCODE, 1, NOW - 9), by=by)
    assert (decided.requests, decided.why) == ((1,), Why.GREEDY)


def test_a_little_more_than_the_others_is_not_greedy_and_it_is_forgotten() -> None:
    by = planner()
    had(by, 1, MODEST_S)
    assert by.greedy(NOW) == frozenset()
    had(by, 1, 1.0)
    had(by, 2, 2.0 * GREEDY - 0.1)
    had(by, 3, 2.0)
    assert by.greedy(NOW) == frozenset()
    had(by, 2, 3.0)
    assert by.greedy(NOW) == {2}
    assert by.usage(3, NOW + USAGE_S) == pytest.approx(2.0 / math.e)
    assert by.greedy(NOW + 2 * USAGE_S) == frozenset()


def test_a_room_that_left_owes_nothing() -> None:
    by = planner()
    had(by, 1, 5.0)
    had(by, 2, 0.1)
    by.left(1)
    assert by.usage(1, NOW) == 0.0
    assert by.greedy(NOW) == frozenset()


def test_everybody_pays_for_a_batch_and_nobody_who_was_not_served() -> None:
    by = planner()
    by.ran(WORDS, [1, 2], 0.4, NOW)
    assert by.usage(1, NOW) == by.usage(2, NOW) == pytest.approx(0.2)
    assert by.usage(3, NOW) == 0.0
    known = by.costs.known(WORDS)
    by.ran(WORDS, [], 0.4, NOW)
    assert by.costs.known(WORDS) == known


# --- courtesy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [WORDS, PREFILL, DECODE])
def test_between_two_stages_of_a_turn_nothing_begins_that_can_wait(stage: Stage) -> None:
    by = planner()
    had(by, 1, 5.0)
    by.ran(stage, [2], 0.05, NOW)
    held = Hold(NOW + COURTESY_S)
    assert by.decide(NOW, [task(ENCODE, 1)]) == held
    assert by.decide(NOW, [task(ENCODE, 3, wanted=math.inf)]) == held
    assert chosen(task(ENCODE, 1), task(FIRST, 2), by=by) == (2,)
    assert chosen(task(ENCODE, 1), guess(3), by=by) == (3,)
    assert chosen(task(ENCODE, 1), by=by, now=NOW + COURTESY_S) == (1,)


def test_words_that_nobody_may_ever_want_delay_nothing() -> None:
    """Nor do they delay each other: an answer is guessed at as fast as it is written."""
    by = planner()
    by.ran(DECODE, [1], 0.01, NOW, guess=True)
    assert chosen(task(DECODE, 1, room=1, wanted=math.inf), by=by) == (1,)


def test_nobody_is_courteous_to_a_greedy_room_or_while_a_turn_only_begins() -> None:
    by = planner()
    had(by, 1, 5.0)
    by.ran(DECODE, [1], 0.05, NOW)
    by.ran(ENCODE, [2], 0.05, NOW)
    assert chosen(task(ENCODE, 1), by=by) == (1,)


# --- properties -----------------------------------------------------------------------------------

TASKS = st.lists(
    st.builds(
        Task,
        stage=st.sampled_from(Stage),
        request=st.integers(1, 40),
        room=st.integers(0, 5),
        since=st.floats(NOW - 20, NOW),
        wanted=st.sampled_from([-math.inf, -math.inf, NOW - 0.1, NOW + 0.2, math.inf]),
        buffered_s=st.sampled_from([0.0, 0.0, 0.05, 0.4, 1.2, 3.0, 6.0]),
        speaks=st.booleans(),
    ),
    unique_by=lambda task: task.request,
    min_size=1,
    max_size=25,
)
USAGE = st.lists(st.floats(0.0, 9.0), min_size=6, max_size=6)


@given(TASKS, USAGE)
def test_what_is_decided_makes_sense(tasks: list[Task], usage: list[float]) -> None:
    by = planner()
    for room, seconds in enumerate(usage):
        had(by, room, seconds)
    decided = decide(*tasks, by=by)
    by_request = {task.request: task for task in tasks}
    batch = [by_request[request] for request in decided.requests]
    assert len(set(decided.requests)) == len(decided.requests) > 0
    assert len(set(decided.rooms)) == len(decided.rooms), "one of each room"
    assert decided.rooms == tuple(task.room for task in batch)
    assert {task.stage for task in batch} == {decided.stage}
    assert len(batch) <= LIMITS.get(decided.stage, math.inf)
    assert decided.cost_s == by.costs.predict(decided.stage, len(batch))
    first, greedy = batch[0], by.greedy(NOW)
    heads: dict[tuple[int, Kind], Task] = {}
    for one in sorted(tasks, key=lambda task: (task.is_guess(NOW), task.request)):
        heads.setdefault((one.room, KIND_OF[one.stage]), one)
    best = [task for task in heads.values() if not task.is_spare(NOW)] or list(heads.values())
    assert first in best, "an answer that nobody waits for goes after everything"
    best = [task for task in best if task.room not in greedy or task.runs_dry(NOW)] or best
    assert first in best, "a greedy room goes after all others"
    best = [task for task in best if task.runs_dry(NOW)] or best
    assert first in best, "a room that runs dry goes first"
    assert first.deadline(NOW) == min(task.deadline(NOW) for task in best)
    assert (decided.why is Why.GREEDY) == (first.room in greedy and not first.is_spare(NOW))


class Endless:
    """Rooms that always want something, on a virtual clock: what each gets and how long each waits.

    ``piles``: how much of each stage a room asks for at a time.
    """

    def __init__(self, rooms: Sequence[frozenset[Stage]], piles: Sequence[int]) -> None:
        self.by = planner()
        self.now = 0.0
        self.got: dict[int, float] = defaultdict(float)
        self.longest_wait: dict[int, float] = defaultdict(float)
        self.numbers = numbers = itertools.count(1)
        self.tasks = {
            number: Task(stage, number, room, 0.0)
            for room, (stages, pile) in enumerate(zip(rooms, piles, strict=True))
            for stage in sorted(stages, key=lambda stage: stage.value)
            for _ in range(pile)
            for number in [next(numbers)]
        }

    def run(self, seconds: float) -> None:
        while self.now < seconds:
            decided = self.by.decide(self.now, list(self.tasks.values()))
            if isinstance(decided, Hold):
                assert self.now < decided.until <= self.now + COURTESY_S
                self.now = decided.until
                continue
            assert decided is not None, "never idle"
            cost = true_cost(decided.stage, len(decided.requests))
            self.now += cost
            self.by.ran(decided.stage, decided.rooms, cost, self.now)
            for room in decided.rooms:
                self.got[room] += cost / len(decided.rooms)
            for request in decided.requests:
                old = self.tasks.pop(request)
                self.longest_wait[old.room] = max(self.longest_wait[old.room], self.now - old.since)
                number = next(self.numbers)
                self.tasks[number] = Task(old.stage, number, old.room, self.now)


WANTS = st.lists(
    st.tuples(st.frozensets(st.sampled_from(Stage), min_size=1), st.sampled_from([1, 1, 1, 8])), min_size=2, max_size=6
)


@settings(max_examples=15)
@given(WANTS)
def test_nobody_starves_and_nobody_takes_much_more_than_the_others(rooms: list[tuple[frozenset[Stage], int]]) -> None:
    wants, piles = [want for want, _ in rooms], [pile for _, pile in rooms]
    endless = Endless(wants, piles)
    endless.run(40.0)
    for room, seconds in endless.got.items():
        others = [endless.got[other] for other in range(len(rooms)) if other != room]
        assert seconds < 2 * sum(others) / len(others) + 2 * MODEST_S
        assert seconds > 0
        if piles[room] == 1:
            assert endless.longest_wait[room] < USAGE_S
