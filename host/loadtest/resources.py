"""What the processes take while a load test runs: looked at every second, from outside of them."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from host.load import CpuMeter, DeviceMemory
from host.loadtest.measure import slope_per_min
from host.loadtest.results import DeviceUse, ProcessUse
from host.memory import MemoryMeter, cpu_seconds

LOOK_S = 1.0
_MEMORY_LOOK_S = 5.0


@dataclass(slots=True)
class _Seen:
    """One process. ``cpu_s`` at ``since_s`` and at ``last_s``."""

    kind: str
    name: str
    since_s: float
    cpu_since_s: float
    last_s: float = 0.0
    cpu_last_s: float = 0.0
    memory: list[tuple[float, float]] = field(default_factory=list)

    def use(self) -> ProcessUse:
        """What it took."""
        seconds = self.last_s - self.since_s
        sizes = [mb for _, mb in self.memory] or [math.nan]
        return ProcessUse(
            self.kind,
            self.name,
            (self.cpu_last_s - self.cpu_since_s) / seconds if seconds > 0 else math.nan,
            sizes[-1],
            max(sizes),
            slope_per_min(self.memory),
        )


class Watch:
    """Looks at the host (as ``Worker.describe`` tells of it), at the callers and at the whole machine."""

    def __init__(self, num_cpus: float) -> None:
        self.cpu = 0.0
        """In the last second."""
        self._meter = CpuMeter(num_cpus)
        self._memory = MemoryMeter()
        self._device_memory: DeviceMemory | None = None
        self._pids: dict[int, str] = {}
        self._restart()

    def _restart(self) -> None:
        self._meter.read()
        self._seen: dict[int, _Seen] = {}
        self._cpu: list[float] = []
        self._busy: list[float] = []
        self._pressure: list[float] = []
        self._busy_s: dict[str, tuple[float, float]] = {}
        self._began_s = time.monotonic()
        self._memory_at_s = -math.inf

    @property
    def cores(self) -> float:
        """How many may be used."""
        return self._meter.cores

    def begin(self) -> None:
        """What was before does not count."""
        self._restart()

    async def look(self, description: Mapping[str, Any], callers: Mapping[int, str]) -> None:
        """Once. ``callers``: process id -> name."""
        now = time.monotonic()
        self.cpu = self._meter.read()
        self._cpu.append(self.cpu)
        inference = description["inference"]
        self._busy.append(inference["busy"])
        self._pressure.append(inference["pressure"])
        for stage in inference["stages"]:
            begun, _ = self._busy_s.get(stage["stage"], (stage["busy_s"], 0.0))
            self._busy_s[stage["stage"]] = (begun, stage["busy_s"])
        self._look_at_device(inference["device"], description)
        alive = {os.getpid(): ("host", "supervisor and load test")}
        alive |= {process["pid"]: (_kind(process), process["name"]) for process in description["processes"]}
        alive |= {pid: ("callers", name) for pid, name in callers.items()}
        self._pids |= {pid: name for pid, (_, name) in alive.items() if pid != os.getpid()}
        for pid, (kind, name) in alive.items():
            cpu_s = cpu_seconds(pid)
            seen = self._seen.setdefault(pid, _Seen(kind, name, now, cpu_s))
            # An idle process becomes a job's.
            seen.kind, seen.name = kind, name
            if cpu_s:
                seen.last_s, seen.cpu_last_s = now, cpu_s
        if now - self._memory_at_s >= _MEMORY_LOOK_S:
            self._memory_at_s = now
            for pid, mb in zip(alive, await self._memory.measure(list(alive)), strict=True):
                if mb:
                    self._seen[pid].memory.append((now, mb))

    def _look_at_device(self, device: str, description: Mapping[str, Any]) -> None:
        if not device.startswith("cuda"):
            return
        if self._device_memory is None:
            self._device_memory = DeviceMemory()
            self._device_memory.start()
        pids = [process["pid"] for process in description["processes"] if process["kind"] == "inference"]
        self._device_memory.pid = pids[0] if pids else 0

    def processes(self) -> tuple[ProcessUse, ...]:
        """Every process that was seen since ``begin``."""
        return tuple(seen.use() for seen in self._seen.values() if seen.last_s > seen.since_s)

    def left_over(self) -> tuple[str, ...]:
        """Of all processes that were ever seen, those that are there still (but ours)."""
        return tuple(f"{name} ({pid})" for pid, name in self._pids.items() if cpu_seconds(pid))

    def machine(self) -> float:
        """The CPU since ``begin``, 0 to 1."""
        return _mean(self._cpu)

    def others(self) -> float:
        """Cores that were used since ``begin`` by what is not ours."""
        seconds = time.monotonic() - self._began_s
        ours_s = sum(seen.cpu_last_s - seen.cpu_since_s for seen in self._seen.values() if seen.cpu_last_s)
        return max(0.0, self.machine() * self.cores - ours_s / seconds)

    def device(self, name: str) -> DeviceUse:
        """The device since ``begin``."""
        seconds = time.monotonic() - self._began_s
        uses = self._device_memory.uses if self._device_memory is not None else ()
        return DeviceUse(
            name,
            _mean(self._busy),
            _mean(self._pressure),
            {stage: (end - begin) / seconds for stage, (begin, end) in self._busy_s.items()},
            sum(use.used_mb for use in uses),
            sum(use.total_mb for use in uses),
        )

    async def aclose(self) -> None:
        """End the threads."""
        await asyncio.to_thread(self._memory.close)
        if self._device_memory is not None:
            self._device_memory.close()


def _kind(process: Mapping[str, Any]) -> str:
    kind: str = process["kind"]
    return "idle job" if kind == "job" and not process["job_id"] else kind


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
