from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from host.capacity import LOAD_WINDOW_S, SERVER_TARGET_LOAD, Capacity, Load, LoadParts

IDLE = Load()


def capacity(places: int = 2, *, threshold: float = 0.7) -> Capacity:
    return Capacity(places, threshold, ready=True)


def cpu(share: float, room: float = 0.0) -> Load:
    return Load(LoadParts(cpu=share), room_cpu=room)


def running(places: int, jobs: int, *, threshold: float = 0.7) -> Capacity:
    """Rooms that began long ago: at time 100 they are all in the measured load."""
    rooms = capacity(places, threshold=threshold)
    for number in range(jobs):
        assert rooms.reserve(f"old-{number}", 0.0, IDLE) == ""
        rooms.launched(f"old-{number}", 0.0)
    return rooms


# --- places ---------------------------------------------------------------------------------------


def test_places_are_taken_from_the_promise_to_the_end() -> None:
    rooms = capacity(2)
    assert rooms.reserve("a", 0.0, IDLE) == ""
    assert rooms.reserve("b", 0.0, IDLE) == ""
    assert rooms.reserve("c", 0.0, IDLE) == "all 2 rooms are taken"
    assert (rooms.taken, rooms.reserved, rooms.job_count) == (2, 2, 0)
    rooms.launched("a", 0.0)
    assert (rooms.taken, rooms.reserved, rooms.job_count) == (2, 1, 1)
    assert rooms.reserve("c", 0.0, IDLE) == "all 2 rooms are taken"
    rooms.release("b")
    assert rooms.reserve("c", 0.0, IDLE) == ""
    rooms.launched("c", 0.0)
    rooms.release("a")
    rooms.release("c")
    assert rooms.is_empty()


def test_the_same_job_offered_twice_takes_one_place() -> None:
    rooms = capacity(2)
    assert rooms.reserve("a", 0.0, IDLE) == ""
    assert rooms.reserve("a", 0.0, IDLE) == ""
    assert rooms.taken == 1
    rooms.launched("a", 0.0)
    assert rooms.reserve("a", 0.0, IDLE) == "the job runs already"
    assert rooms.job_count == 1
    assert rooms.reserve("b", 0.0, IDLE) == ""


@pytest.mark.parametrize(
    ("ready", "draining", "reason"),
    [(False, False, "the inference process is not running"), (True, True, "draining"), (False, True, "draining")],
)
def test_nothing_is_admitted_while_it_cannot_be_served(ready: bool, draining: bool, reason: str) -> None:
    rooms = Capacity(2, ready=ready, draining=draining)
    assert rooms.reserve("a", 0.0, IDLE) == reason
    assert rooms.status(0.0, IDLE).full
    assert rooms.is_empty()


def test_a_host_without_places_is_full() -> None:
    assert capacity(0).status(0.0, IDLE).full
    assert capacity(0).reserve("a", 0.0, IDLE) == "all 0 rooms are taken"
    assert capacity(0).share == 1.0


def test_slots_that_jobs_hold_besides_their_own_are_not_promised_to_others() -> None:
    rooms = running(4, 1)
    rooms.extra_slots = 3
    assert "no inference slot is free" in rooms.refusal(100.0, IDLE)
    rooms.extra_slots = 2
    assert rooms.refusal(100.0, IDLE) == ""
    # They are slots of the inference process, not jobs.
    assert Capacity(4, ready=True, max_jobs=1, extra_slots=3).refusal(0.0, IDLE) == ""


def test_the_smaller_of_max_jobs_and_slots_holds() -> None:
    assert Capacity(4).places == 4
    assert Capacity(4, max_jobs=2).places == 2
    assert Capacity(4, max_jobs=9).places == 4
    rooms = Capacity(4, ready=True, max_jobs=1)
    assert rooms.reserve("a", 0.0, IDLE) == ""
    assert rooms.reserve("b", 0.0, IDLE) == "all 1 rooms are taken"


# --- load -----------------------------------------------------------------------------------------


def test_parts_and_the_one_that_decides() -> None:
    parts = LoadParts(cpu=0.2, memory=0.1, pressure=0.6, jobs=0.5)
    assert (parts.value, parts.largest) == (0.6, "pressure")
    assert Load(parts).value == 0.6
    assert Load(parts, custom=0.3).value == 0.3


@pytest.mark.parametrize("part", ["cpu", "memory", "pressure"])
def test_every_measured_part_is_compared_with_the_threshold_while_rooms_run(part: str) -> None:
    rooms = running(8, 1)
    below, at = (Load(LoadParts(**{part: value})) for value in (0.69, 0.70))
    assert rooms.refusal(100.0, below) == ""
    assert rooms.refusal(100.0, at) == f"{part} load 0.70 is not below 0.70"
    # What others do on an idle host says nothing about us.
    assert capacity(8).refusal(100.0, at) == ""
    assert running(8, 1, threshold=math.inf).refusal(100.0, Load(LoadParts(**{part: 1.0}))) == ""


def test_taken_places_are_no_load_that_keeps_others_free() -> None:
    """All of ``max_jobs`` can be had: 3 of 4 places are more than the threshold of 0.7."""
    assert running(4, 3).refusal(100.0, Load(LoadParts(jobs=0.75))) == ""


def test_a_load_function_of_the_user_decides_alone_even_when_idle() -> None:
    busy = LoadParts(cpu=1.0, memory=1.0, pressure=1.0)
    assert running(4, 1).refusal(100.0, Load(busy, room_cpu=0.5, custom=0.3)) == ""
    assert capacity(4).refusal(0.0, Load(custom=0.7)) == "load 0.70 is not below 0.70"
    assert capacity(4).refusal(0.0, Load(custom=0.69)) == ""
    assert "all 1 rooms are taken" in running(1, 1).refusal(100.0, Load(custom=0.0))


def test_rooms_that_the_load_does_not_show_yet_are_added() -> None:
    rooms = running(8, 1)
    # Each room costs 0.2 of the CPU, and a threshold of 0.7 lets the third in, not the fourth.
    loads = cpu(0.2, room=0.2)
    assert rooms.effective(100.0, loads) == pytest.approx(0.2)
    assert rooms.reserve("a", 100.0, loads) == ""
    assert rooms.reserve("b", 100.0, loads) == ""
    rooms.launched("a", 100.0)
    assert rooms.effective(100.1, loads) == pytest.approx(0.6)
    assert rooms.reserve("c", 100.1, loads) == ""
    assert rooms.reserve("d", 100.1, loads) == "cpu load 0.80 is not below 0.70"
    # Once it has been measured, the room is no more added.
    rooms.launched("b", 100.0)
    rooms.release("c")
    assert rooms.effective(100.0 + LOAD_WINDOW_S, loads) == pytest.approx(0.2)


def test_pressure_and_a_users_load_grow_by_what_the_seen_rooms_make_of_them() -> None:
    rooms = running(8, 2)
    for load in (Load(LoadParts(pressure=0.3)), Load(custom=0.3)):
        assert rooms.effective(100.0, load) == pytest.approx(0.3)
    rooms.reserve("a", 100.0, IDLE)
    for load in (Load(LoadParts(pressure=0.3)), Load(custom=0.3)):
        assert rooms.effective(100.0, load) == pytest.approx(0.45)
    # The device's memory is taken once, at start.
    assert rooms.effective(100.0, Load(LoadParts(memory=0.3))) == pytest.approx(0.3)
    # Nothing is seen, so there is nothing to judge by.
    empty = capacity(8)
    empty.reserve("a", 100.0, IDLE)
    assert empty.effective(100.0, Load(custom=0.3)) == pytest.approx(0.3)


def test_a_room_whose_share_of_the_cpu_is_not_there_is_refused() -> None:
    rooms = running(8, 1)
    assert rooms.refusal(100.0, cpu(0.5, room=0.5)) == ""
    assert rooms.refusal(100.0, cpu(0.55, room=0.55)) == "a room takes 55% of the CPU, and 55% of it is in use"
    assert capacity(8).refusal(100.0, cpu(0.55, room=0.55)) == ""
    assert running(8, 1, threshold=math.inf).refusal(100.0, cpu(0.9, room=0.5)) == ""


# --- what the server is told ----------------------------------------------------------------------


def test_load_grows_with_rooms_and_with_the_cpu() -> None:
    rooms = capacity(4)
    loads = [rooms.status(0.0, IDLE).load]
    for job_id in "abc":
        rooms.reserve(job_id, 0.0, IDLE)
        loads.append(rooms.status(0.0, IDLE).load)
    assert loads == pytest.approx([0.0, 0.175, 0.35, 0.525])
    assert rooms.status(0.0, cpu(0.6)).load == pytest.approx(0.6)


def test_a_users_load_is_told_as_it_is_at_the_usual_threshold() -> None:
    assert running(4, 2).status(100.0, Load(custom=0.2)).load == pytest.approx(0.2)
    assert running(4, 2, threshold=0.4).status(100.0, Load(custom=0.2)).load == pytest.approx(0.35)
    assert running(4, 2, threshold=math.inf).status(100.0, Load(custom=1.0)).load < SERVER_TARGET_LOAD


def test_of_two_idle_hosts_the_less_busy_one_is_preferred() -> None:
    assert capacity(4).status(0.0, cpu(0.9)).load > capacity(4).status(0.0, cpu(0.1)).load > 0.0


# --- properties -----------------------------------------------------------------------------------

SHARES = st.floats(0.0, 1.0)
LOADS = st.builds(
    Load,
    st.builds(LoadParts, SHARES, SHARES, SHARES, SHARES),
    room_cpu=SHARES,
    custom=st.none() | SHARES,
)
THRESHOLDS = st.sampled_from([0.01, 0.4, 0.7, 1.0, 100.0, math.inf])
JOBS = st.sampled_from([f"job-{number}" for number in range(6)])


class Host(RuleBasedStateMachine):
    """Any order of offers, launches and ends, under any load."""

    @initialize(slots=st.integers(0, 4), max_jobs=st.none() | st.integers(0, 6), threshold=THRESHOLDS)
    def begin(self, slots: int, max_jobs: int | None, threshold: float) -> None:
        self.rooms = Capacity(slots, threshold, max_jobs, ready=True)
        self.most = slots if max_jobs is None else min(slots, max_jobs)
        self.promised: set[str] = set()
        self.running: set[str] = set()
        self.now = 0.0
        self.load = IDLE

    @rule(seconds=st.floats(0.0, 5.0), load=LOADS)
    def passes(self, seconds: float, load: Load) -> None:
        self.now += seconds
        self.load = load

    @rule(job_id=JOBS)
    def offered(self, job_id: str) -> None:
        held = job_id in self.promised
        refusal = self.rooms.refusal(self.now, self.load)
        answer = self.rooms.reserve(job_id, self.now, self.load)
        if held:
            assert answer == ""
        elif job_id in self.running:
            assert answer
        else:
            assert answer == refusal
            if not answer:
                self.promised.add(job_id)

    @rule(job_id=JOBS)
    def launched(self, job_id: str) -> None:
        if job_id in self.promised:
            self.rooms.launched(job_id, self.now)
            self.promised.remove(job_id)
            self.running.add(job_id)

    @rule(job_id=JOBS)
    def released(self, job_id: str) -> None:
        self.rooms.release(job_id)
        self.promised.discard(job_id)
        self.running.discard(job_id)

    @rule(ready=st.booleans(), draining=st.booleans(), extra=st.integers(0, 3))
    def changes(self, ready: bool, draining: bool, extra: int) -> None:
        self.rooms.ready, self.rooms.draining, self.rooms.extra_slots = ready, draining, extra

    @invariant()
    def never_more_than_the_places(self) -> None:
        assert len(self.promised) + len(self.running) == self.rooms.taken <= self.most
        assert self.rooms.job_count == len(self.running)

    @invariant()
    def available_hosts_stay_where_the_server_sees_them(self) -> None:
        status = self.rooms.status(self.now, self.load)
        assert status.full == bool(self.rooms.refusal(self.now, self.load))
        assert status.load == 1.0 if status.full else 0.0 <= status.load < SERVER_TARGET_LOAD
        assert 0.0 <= self.rooms.effective(self.now, self.load) <= 1.0

    @invariant()
    def nothing_is_taken_that_cannot_be_served(self) -> None:
        if not self.rooms.ready or self.rooms.draining:
            assert self.rooms.status(self.now, self.load).full


TestHost = Host.TestCase
TestHost.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(places=st.integers(1, 20), offers=st.integers(1, 40), load=LOADS, threshold=THRESHOLDS)
def test_offers_in_one_instant_never_take_the_same_place(
    places: int, offers: int, load: Load, threshold: float
) -> None:
    rooms = Capacity(places, threshold, ready=True)
    answers = [rooms.reserve(f"{number}", 0.0, load) for number in range(offers)]
    assert answers.count("") == rooms.taken <= places
    # Once refused, the rest of the instant is refused, too.
    assert answers == sorted(answers, key=bool)
    idle = Capacity(places, threshold, ready=True)
    assert [idle.reserve(f"{n}", 0.0, IDLE) for n in range(offers)].count("") == min(offers, places)


@given(load=LOADS, threshold=THRESHOLDS, jobs=st.integers(1, 5))
def test_more_load_never_opens_a_host(load: Load, threshold: float, jobs: int) -> None:
    rooms = running(8, jobs, threshold=threshold)
    if rooms.refusal(100.0, load):
        parts = LoadParts(1.0, 1.0, 1.0, 1.0)
        more = dataclasses.replace(load, parts=parts, custom=None if load.custom is None else 1.0)
        assert rooms.refusal(100.0, more)
