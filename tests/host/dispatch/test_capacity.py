from __future__ import annotations

import pytest

from host.capacity import SERVER_TARGET_LOAD, Capacity


def capacity(max_jobs: int = 2, *, threshold: float = 0.7) -> Capacity:
    return Capacity(max_jobs, threshold, ready=True)


def test_places_are_taken_from_the_promise_to_the_end() -> None:
    rooms = capacity(2)
    assert rooms.reserve("a", 0.0) == ""
    assert rooms.reserve("b", 0.0) == ""
    assert rooms.reserve("c", 0.0) == "all 2 rooms are taken"
    assert rooms.job_count == 0
    rooms.launched("a")
    assert rooms.job_count == 1
    assert rooms.reserve("c", 0.0) == "all 2 rooms are taken"
    rooms.release("b")
    assert rooms.reserve("c", 0.0) == ""
    rooms.launched("c")
    rooms.release("a")
    rooms.release("c")
    assert rooms.is_empty()


def test_the_same_job_offered_twice_takes_one_place() -> None:
    rooms = capacity(2)
    assert rooms.reserve("a", 0.0) == ""
    assert rooms.reserve("a", 0.0) == ""
    rooms.launched("a")
    assert rooms.reserve("a", 0.0) == ""
    assert rooms.job_count == 1
    assert rooms.reserve("b", 0.0) == ""


@pytest.mark.parametrize(
    ("ready", "draining", "reason"),
    [(False, False, "the inference process is not running"), (True, True, "draining"), (False, True, "draining")],
)
def test_nothing_is_admitted_while_it_cannot_be_served(ready: bool, draining: bool, reason: str) -> None:
    rooms = Capacity(2, ready=ready, draining=draining)
    assert rooms.reserve("a", 0.0) == reason
    assert rooms.status(0.0).full
    assert rooms.is_empty()


def test_the_cpu_is_asked_about_only_while_rooms_run() -> None:
    rooms = capacity(4)
    assert rooms.reserve("a", 1.0) == ""
    assert "CPU load 0.70 is not below 0.70" in rooms.reserve("b", 0.70)
    assert rooms.reserve("b", 0.69) == ""
    assert capacity(4, threshold=float("inf")).reserve("a", 1.0) == ""


def test_an_available_host_never_reports_the_load_from_which_the_server_ignores_it() -> None:
    rooms = capacity(100)
    for number in range(100):
        for cpu in (0.0, 0.3, 0.699, 0.7, 1.0):
            status = rooms.status(cpu)
            assert status.full == bool(rooms.refusal(cpu))
            assert status.load == 1.0 if status.full else 0.0 <= status.load < SERVER_TARGET_LOAD
        assert rooms.reserve(f"{number}", 0.0) == ""
        rooms.launched(f"{number}")
    assert rooms.status(0.0).full
    assert rooms.status(0.0).job_count == 100


def test_load_grows_with_rooms_and_with_the_cpu() -> None:
    rooms = capacity(4)
    loads = [rooms.status(0.0).load]
    for job_id in "abc":
        rooms.reserve(job_id, 0.0)
        loads.append(rooms.status(0.0).load)
    assert loads == sorted(loads)
    assert loads == pytest.approx([0.0, 0.175, 0.35, 0.525])
    assert rooms.status(0.6).load == pytest.approx(0.6)


def test_a_host_without_places_is_full() -> None:
    assert capacity(0).status(0.0).full
    assert capacity(0).reserve("a", 0.0) == "all 0 rooms are taken"
