"""The load of a worker: measured twice a second, or asked of the user's own function, in a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from host.background import in_thread
from host.capacity import Capacity, Load
from inference.wire.supervision import InferenceReport

if TYPE_CHECKING:
    from host.load import LoadMeter
    from host.options import LoadFnc
    from host.supervisor import Supervisor
    from host.worker import Worker

logger = logging.getLogger(__name__)

LOAD_INTERVAL_S = 0.5
_LOAD_FNC_PATIENCE_S = 5.0
"""How long the user's load function may take before it is warned of, and before the worker goes on without it."""
_SETTLED_S = 2.0
"""How long after a job began or ended the inference process's count of rooms is not ours: it comes every second."""


class CustomLoad:
    """The user's load function, called every 0.5 s, one call at a time.

    ``value`` is the last good one, from 0 to 1; None until there is one, for the host's own load. What is
    wrong with it is logged once, until something else is.
    """

    def __init__(self, function: LoadFnc, worker: Worker) -> None:
        self.value: float | None = None
        self._call = _bound(function, worker)
        self._trouble = ""
        self._began = 0.0
        self._first = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load-fnc", daemon=True)

    def start(self) -> None:
        """Start calling it."""
        self._began = time.monotonic()
        self._thread.start()

    async def first(self) -> None:
        """Return after the first call, or after some seconds."""
        await in_thread("load-fnc-first", lambda: self._first.wait(_LOAD_FNC_PATIENCE_S))

    def close(self) -> None:
        """Call it no more. A call that is under way is not waited for."""
        self._ended.set()

    def watch(self, now: float) -> None:
        """Warn of a call that takes too long."""
        if (began := self._began) and now - began > _LOAD_FNC_PATIENCE_S:
            self._tell(f"load_fnc has not returned for {_LOAD_FNC_PATIENCE_S:g} s")

    def _run(self) -> None:
        while not self._ended.is_set():
            self._began = time.monotonic()
            try:
                self._take(self._call())
            except (Exception, SystemExit) as exc:  # noqa: BLE001 (whatever the user's code raises is said)
                self._tell(f"load_fnc raised {type(exc).__name__}: {exc}", exc)
            self._began = 0.0
            self._first.set()
            self._ended.wait(LOAD_INTERVAL_S)

    def _take(self, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            self._tell(f"load_fnc returned {value!r}, which is no number")
            return
        self._tell("" if 0 <= value <= 1 else f"load_fnc returned {value:g}; a load is from 0 to 1")
        self.value = min(max(float(value), 0.0), 1.0)

    def _tell(self, trouble: str, exc: BaseException | None = None) -> None:
        if trouble == self._trouble:
            return
        if trouble:
            logger.error("%s", trouble, exc_info=exc)
        else:
            logger.info("load_fnc gives a load again")
        self._trouble = trouble


def _bound(function: LoadFnc, worker: Worker) -> Callable[[], float]:
    """``f()`` or ``f(worker)``, as a function of nothing."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        # One that is written in C does not say; LiveKit's are given the worker.
        return lambda: function(worker)
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    if any(parameter.kind in positional for parameter in parameters):
        return lambda: function(worker)
    return function


class LoadWatch:
    """Keeps measuring while ``run`` runs, and calls ``changed`` when the host becomes full or free.

    ``capacity`` learns here what the inference process says of its slots, and ``current`` is what admission
    is asked with.
    """

    def __init__(self, meter: LoadMeter, capacity: Capacity, changed: Callable[[], None]) -> None:
        self._meter = meter
        self._capacity = capacity
        self._changed = changed
        self._custom: CustomLoad | None = None
        self._report: InferenceReport | None = None
        self._job_count = 0
        self._settled_at = 0.0
        self._trouble = ""

    def current(self) -> Load:
        """The load now."""
        parts = self._meter.parts(self._capacity.share)
        return Load(parts, self._meter.room_cpu, self._custom.value if self._custom is not None else None)

    async def use(self, custom: CustomLoad) -> None:
        """Ask the user's load function from here on. Returns when it has been asked once."""
        self._custom = custom
        custom.start()
        await custom.first()

    async def run(self, supervisor: Supervisor) -> None:
        """Measure, until cancelled."""
        told = self._is_full()
        while True:
            self._sample(supervisor)
            if (full := self._is_full()) != told:
                told = full
                self._changed()
            await asyncio.sleep(LOAD_INTERVAL_S)

    def close(self) -> None:
        """End the threads."""
        if self._custom is not None:
            self._custom.close()
        self._meter.close()

    def _sample(self, supervisor: Supervisor) -> None:
        now, report = time.monotonic(), supervisor.inference_report
        self._capacity.ready = supervisor.inference_ready
        if self._custom is not None:
            self._custom.watch(now)
        self._count_slots(now, report)
        try:
            self._meter.sample(supervisor.processes(), report, self._capacity.job_count)
        except Exception as exc:
            # Rooms go on without a measurement. Said once, until it is another trouble.
            if (trouble := repr(exc)) != self._trouble:
                self._trouble = trouble
                logger.exception("the load cannot be measured")

    def _count_slots(self, now: float, report: InferenceReport | None) -> None:
        capacity = self._capacity
        if self._job_count != capacity.job_count:
            self._job_count = capacity.job_count
            self._settled_at = now + _SETTLED_S
        if report is None:
            capacity.extra_slots = 0
        elif report is not self._report:
            capacity.slots = report.max_rooms
            extra = max(0, report.rooms - capacity.job_count)
            if now >= self._settled_at or extra < capacity.extra_slots:
                capacity.extra_slots = extra
        self._report = report

    def _is_full(self) -> bool:
        return bool(self._capacity.refusal(time.monotonic(), self.current()))
