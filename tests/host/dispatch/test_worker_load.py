from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fake_supervisor import report
from workers import until

from host import worker_load
from host.capacity import Capacity, LoadParts
from host.worker_load import CustomLoad, LoadWatch


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_load, "LOAD_INTERVAL_S", 0.01)


@contextmanager
def asking(function: Callable[..., Any]) -> Iterator[CustomLoad]:
    custom = CustomLoad(function, "the worker")  # type: ignore[arg-type]
    custom.start()
    try:
        yield custom
    finally:
        custom.close()


# --- the user's function --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda: 0.25,
        lambda worker: {"the worker": 0.25}[worker],
        lambda *args: {("the worker",): 0.25}[args],
        lambda worker=None: {"the worker": 0.25}[worker],
        lambda *, scale=0.25: scale,
    ],
)
async def test_it_is_called_with_the_worker_or_with_nothing(function: Callable[..., float]) -> None:
    with asking(function) as custom:
        await custom.first()
        assert custom.value == 0.25


async def test_it_is_called_again_and_again_in_a_thread_of_its_own() -> None:
    calls: list[str] = []

    def load() -> float:
        calls.append(threading.current_thread().name)
        return len(calls) / 100

    with asking(load) as custom:
        await until(lambda: (custom.value or 0) >= 0.05)
    assert set(calls) == {"load-fnc"}


async def test_the_last_good_value_is_kept_and_each_trouble_said_once(caplog: pytest.LogCaptureFixture) -> None:
    no = ValueError("no")
    answers: list[object] = [no, 0.5, no, no, "0.7", None, True, math.nan, SystemExit(3)]
    given = iter(answers)
    values: list[float | None] = []
    done = threading.Event()

    def load() -> Any:
        values.append(custom.value)
        if len(values) > len(answers) + 1:
            done.set()
        answer = next(given, 0.6)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    custom = CustomLoad(load, "the worker")  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO):
        custom.start()
        await until(done.is_set)
        custom.close()
    # Before each call; None: nothing is known yet, the host's own load counts.
    assert values[:11] == [None, None, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6]
    assert [record.getMessage() for record in caplog.records] == [
        "load_fnc raised ValueError: no",
        "load_fnc gives a load again",
        "load_fnc raised ValueError: no",
        "load_fnc returned '0.7', which is no number",
        "load_fnc returned None, which is no number",
        "load_fnc returned True, which is no number",
        "load_fnc returned nan, which is no number",
        "load_fnc raised SystemExit: 3",
        "load_fnc gives a load again",
    ]
    # The first of a trouble has its traceback.
    assert caplog.records[0].exc_info


@pytest.mark.parametrize(("returned", "taken"), [(1.5, 1.0), (-0.1, 0.0), (math.inf, 1.0), (1, 1.0), (0, 0.0)])
async def test_a_load_is_from_0_to_1(returned: float, taken: float, caplog: pytest.LogCaptureFixture) -> None:
    with asking(lambda: returned) as custom:
        await custom.first()
        assert custom.value == taken
    assert bool(caplog.records) == (not 0 <= returned <= 1)


async def test_one_that_hangs_is_warned_of_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_load, "_LOAD_FNC_PATIENCE_S", 0.05)
    go_on = threading.Event()
    with asking(lambda: 0.1 if go_on.wait(30) else 0.2) as custom:
        await custom.first()
        assert custom.value is None
        for _ in range(2):
            custom.watch(math.inf)
        assert [record.getMessage() for record in caplog.records] == ["load_fnc has not returned for 0.05 s"]
        go_on.set()
        await until(lambda: custom.value == 0.1)


# --- watching -------------------------------------------------------------------------------------


class Meter:
    """Measures what a test says."""

    def __init__(self) -> None:
        self.cpu = 0.0
        self.room_cpu = 0.1
        self.samples: list[tuple[Any, Any, int]] = []
        self.trouble: Exception | None = None
        self.closed = False

    def sample(self, processes: Any, report: Any, rooms: int) -> None:
        self.samples.append((processes, report, rooms))
        if self.trouble is not None:
            raise self.trouble

    def parts(self, jobs: float) -> LoadParts:
        return LoadParts(cpu=self.cpu, jobs=jobs)

    def close(self) -> None:
        self.closed = True


class Processes:
    inference_ready = True
    inference_report: Any = report()

    def processes(self) -> tuple[str, ...]:
        return ("a process",)


@pytest.fixture
def meter() -> Meter:
    return Meter()


@contextmanager
def watching(meter: Meter, capacity: Capacity, supervisor: Processes) -> Iterator[tuple[LoadWatch, list[bool]]]:
    changes: list[bool] = []
    watch: LoadWatch
    watch = LoadWatch(
        meter,  # type: ignore[arg-type]
        capacity,
        lambda: changes.append(bool(capacity.refusal(1e9, watch.current()))),
    )
    running = asyncio.create_task(watch.run(supervisor))  # type: ignore[arg-type]
    try:
        yield watch, changes
    finally:
        running.cancel()
        watch.close()


async def test_it_measures_and_says_when_the_host_becomes_full_or_free(meter: Meter) -> None:
    capacity, supervisor = Capacity(4, 0.7), Processes()
    capacity.launched("a", 0.0)
    with watching(meter, capacity, supervisor) as (watch, changes):
        await until(lambda: changes == [False])
        assert meter.samples[0] == (("a process",), supervisor.inference_report, 1)
        meter.cpu = 0.8
        await until(lambda: changes == [False, True])
        load = watch.current()
        assert (load.parts, load.room_cpu, load.custom) == (LoadParts(cpu=0.8, jobs=0.25), 0.1, None)
        supervisor.inference_ready, meter.cpu = False, 0.0
        before = len(meter.samples)
        await until(lambda: len(meter.samples) > before + 2)
        # From one reason to the other there is nothing to say.
        assert changes == [False, True]
        supervisor.inference_ready = True
        await until(lambda: changes == [False, True, False])
    assert meter.closed


async def test_a_measurement_that_fails_is_said_once_and_ends_nothing(
    meter: Meter, caplog: pytest.LogCaptureFixture
) -> None:
    meter.trouble = OSError("no such file")
    with watching(meter, Capacity(4), Processes()):
        await until(lambda: len(meter.samples) > 3)
        assert [record.getMessage() for record in caplog.records] == ["the load cannot be measured"]
        meter.trouble = OSError("another")
        await until(lambda: len(caplog.records) == 2)


async def test_slots_are_what_inference_says_of_them(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_load, "_SETTLED_S", 0.2)
    capacity, supervisor = Capacity(8), Processes()
    with watching(meter, capacity, supervisor):
        supervisor.inference_report = report(rooms=2, max_rooms=6)
        await until(lambda: (capacity.slots, capacity.extra_slots) == (6, 2))
        # A job that has just begun: its room may be in the report, or not yet.
        capacity.launched("a", 0.0)
        before = len(meter.samples)
        await until(lambda: len(meter.samples) > before + 1)
        supervisor.inference_report = report(rooms=4, max_rooms=6)
        before = len(meter.samples)
        await until(lambda: len(meter.samples) > before + 1)
        assert capacity.extra_slots == 2
        # Less is believed at once; more when everything has settled.
        supervisor.inference_report = report(rooms=1, max_rooms=6)
        await until(lambda: capacity.extra_slots == 0)

        def settled() -> bool:
            supervisor.inference_report = report(rooms=4, max_rooms=6)
            return capacity.extra_slots == 3

        await until(settled)
        supervisor.inference_report = None
        await until(lambda: capacity.extra_slots == 0)
