"""How loaded the host is: CPU, memory of the inference device, pressure on the device lane, places.

The CPU is what may be used: the quota of the control group (v2, v1) where there is one, else the cores that
this process may run on. Memory is taken once, at start, so its load is the share of what was left then that
has gone since.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from host.capacity import LoadParts
from inference.wire.supervision import InferenceReport

logger = logging.getLogger(__name__)

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")

CPU_SAMPLES = 5
"""Samples half a second apart: CPU load is the mean of 2.5 s, as LiveKit's own workers measure it."""

_SETTLE_S = 7.5
"""How long after READY the memory in use still counts as taken at start. Longer than the period (5 s) in which
the memory of processes is looked at, so that a look from before READY is not mistaken for it."""
_DEVICE_PERIOD_S = 1.0
_ROOM_MEMORY_S = 30.0
"""Time constant with which a room's share of the CPU is forgotten. Several times the period (5 s) of its steps."""
_ROOM_KNOWN_S = 5.0
"""Seconds of rooms before a room's share of the CPU is known at all."""


class ProcessUse(Protocol):
    """What the meter asks about a process: ``cpu_s`` since its start, ``memory_mb`` (10^6 bytes, 0 unknown)."""

    @property
    def pid(self) -> int:
        """Process id."""

    @property
    def kind(self) -> str:
        """ "inference", "forkserver" or "job"."""

    @property
    def cpu_s(self) -> float:
        """CPU time used since it started, in seconds."""

    @property
    def memory_mb(self) -> float:
        """Proportional set size in MB; 0 while unknown."""


class LoadMeter:
    """``sample`` is called every 0.5 s, ``parts`` and ``room_cpu`` say what was found. Nothing here blocks.

    ``num_cpus``: cores to count on, 0 to find out. ``memory_budget_mb``: what the inference process may
    take on a CPU (MB, 10^6 bytes), 0 for no budget. ``device``: "cpu", "cuda", or "auto" for what the
    inference process reports. The rest is for tests: where control groups are, a clock in seconds, and
    what gives the NVML module.
    """

    def __init__(
        self,
        *,
        num_cpus: float = 0.0,
        memory_budget_mb: float = 0.0,
        device: str = "auto",
        cgroup_root: Path = CGROUP_ROOT,
        own_cgroup: Path = OWN_CGROUP,
        clock: Callable[[], float] = time.monotonic,
        nvml: Callable[[], Any] | None = None,
    ) -> None:
        self._clock = clock
        self._cpu = CpuMeter(num_cpus, root=cgroup_root, own=own_cgroup, clock=clock)
        self._cpu_samples: deque[float] = deque(maxlen=CPU_SAMPLES)
        self._device = device
        self._budget_mb = memory_budget_mb
        self._nvml = nvml or _import_nvml
        self._device_memory: DeviceMemory | None = None
        self._shares: dict[str, MemoryShare] = {}
        self._ready_at: float | None = None
        self._pressure = 0.0
        self._memory = 0.0
        self._rooms = RoomShare(self._cpu.cores, clock())

    def sample(self, processes: Sequence[ProcessUse], report: InferenceReport | None, rooms: int) -> None:
        """Look at everything once. ``processes``: the host's own; ``report``: None while inference is away;
        ``rooms``: how many run.
        """
        now = self._clock()
        self._cpu_samples.append(self._cpu.read())
        self._rooms.add(now, processes, rooms)
        self._pressure = report.pressure if report is not None else 0.0
        if report is None:
            self._ready_at, self._memory = None, 0.0
            self._shares.clear()
            return
        if self._ready_at is None:
            self._ready_at = now
        self._memory = max(
            (
                self._shares.setdefault(use.name, MemoryShare()).add(now - self._ready_at, use.used_mb, use.total_mb)
                for use in self._memory_uses(processes, report)
            ),
            default=0.0,
        )

    def parts(self, jobs: float) -> LoadParts:
        """The load from 0 to 1. ``jobs``: the share of the places that is taken or promised."""
        cpu = sum(self._cpu_samples) / len(self._cpu_samples) if self._cpu_samples else 0.0
        return LoadParts(_share(cpu), _share(self._memory), _share(self._pressure), _share(jobs))

    @property
    def room_cpu(self) -> float:
        """What one room takes of the CPU, 0 to 1 of all cores that may be used; 0 while unknown."""
        return self._rooms.value

    @property
    def cores(self) -> float:
        """How many cores may be used; a quota need not be whole."""
        return self._cpu.cores

    def close(self) -> None:
        """End the thread that asks the GPU, where there is one."""
        if self._device_memory is not None:
            self._device_memory.close()
            self._device_memory = None

    def _memory_uses(self, processes: Sequence[ProcessUse], report: InferenceReport) -> Sequence[MemoryUse]:
        inference = next((process for process in processes if process.kind == "inference"), None)
        if self._device != "cpu" and report.device.startswith("cuda"):
            if self._device_memory is None:
                self._device_memory = DeviceMemory(self._nvml)
                self._device_memory.start()
            self._device_memory.pid = inference.pid if inference is not None else 0
            return self._device_memory.uses
        if self._budget_mb > 0 and inference is not None and inference.memory_mb > 0:
            return (MemoryUse("budget", inference.memory_mb, self._budget_mb),)
        return ()


def _share(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


# --- CPU ------------------------------------------------------------------------------------------


class CpuMeter:
    """How much of the CPU that may be used is used. Small files of the kernel, microseconds to read.

    With ``num_cpus`` (> 0) that many cores are the whole. Else a quota of our control group, or of one
    above it, is; of several the one nearest its limit counts. Without a quota it is the machine: the cores
    that this process may run on, with everything that runs there.
    """

    def __init__(
        self,
        num_cpus: float = 0.0,
        *,
        root: Path = CGROUP_ROOT,
        own: Path = OWN_CGROUP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._num_cpus = num_cpus
        self._groups = _control_groups(root, own)
        self._allowed = os.sched_getaffinity(0)
        self._read_at = clock()
        self._used_s = [group.used_s() for group in self._groups]
        self._machine = self._machine_times()

    def __repr__(self) -> str:
        groups = ", ".join(str(group.usage_file.parent) for group in self._groups)
        return f"<CpuMeter {self.cores:g} cores, control groups: {groups or 'none'}>"

    @property
    def cores(self) -> float:
        """How many cores may be used."""
        if self._num_cpus > 0:
            return self._num_cpus
        return min([float(len(self._allowed)), *(group.cores() for group in self._groups)])

    def read(self) -> float:
        """The share since the last ``read``, 0 to 1."""
        now = self._clock()
        elapsed_s, self._read_at = now - self._read_at, now
        before, self._used_s = self._used_s, [group.used_s() for group in self._groups]
        machine, self._machine = self._machine, self._machine_times()
        if elapsed_s <= 0:
            return 0.0
        busy = [(after - since) / elapsed_s for since, after in zip(before, self._used_s, strict=True)]
        if self._num_cpus > 0:
            return _share((busy[0] if busy else self._busy_cores(machine)) / self._num_cpus)
        quotas = [group.cores() for group in self._groups]
        if shares := [used / cores for used, cores in zip(busy, quotas, strict=True) if math.isfinite(cores)]:
            return _share(max(shares))
        return _share(self._busy_cores(machine) / len(self._allowed))

    def _busy_cores(self, before: tuple[float, float]) -> float:
        busy_s, total_s = (after - since for since, after in zip(before, self._machine, strict=True))
        return len(self._allowed) * busy_s / total_s if total_s > 0 else 0.0

    def _machine_times(self) -> tuple[float, float]:
        """Busy and all CPU seconds of the cores that we may run on."""
        busy_s = total_s = 0.0
        for number, times in enumerate(psutil.cpu_times(percpu=True)):
            if number in self._allowed:
                # What guests take is in "user" and "nice" already.
                total = sum(times) - times.guest - times.guest_nice
                busy_s += total - times.idle - times.iowait
                total_s += total
        return busy_s, total_s


class ControlGroup(Protocol):
    """One folder of control group files."""

    @property
    def usage_file(self) -> Path:
        """Where the CPU time is told."""

    def used_s(self) -> float:
        """CPU time used by everything in it, in seconds."""

    def cores(self) -> float:
        """Its quota in cores; infinity without one."""


@dataclass(frozen=True, slots=True)
class _GroupV2:
    usage_file: Path
    max_file: Path

    def used_s(self) -> float:
        for line in _read(self.usage_file).splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec":
                return int(value) / 1e6
        return 0.0

    def cores(self) -> float:
        quota, _, period = _read(self.max_file).strip().partition(" ")
        return _quota(quota, period)


@dataclass(frozen=True, slots=True)
class _GroupV1:
    usage_file: Path
    quota_file: Path
    period_file: Path

    def used_s(self) -> float:
        return int(_read(self.usage_file).strip() or 0) / 1e9

    def cores(self) -> float:
        quota, period = _read(self.quota_file).strip(), _read(self.period_file).strip()
        return _quota(quota, period)


def _quota(quota: str, period: str) -> float:
    """Cores; "max" and -1 are no quota."""
    known = quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0
    return int(quota) / int(period) if known else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        # The root group has no quota file, and a group may go while we look.
        return ""


def _control_groups(root: Path, own: Path) -> list[ControlGroup]:
    """Our group first, then those above it, as far as they can be seen from here."""
    paths: dict[str, str] = {}
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    if (root / "cgroup.controllers").exists():
        return [
            _GroupV2(folder / "cpu.stat", folder / "cpu.max")
            for folder in _folders(root, paths.get("", "/"))
            if (folder / "cpu.stat").exists()
        ]
    for cpu, accounting in (("cpu", "cpuacct"), ("cpu,cpuacct", "cpu,cpuacct"), ("cpuacct,cpu", "cpuacct,cpu")):
        quotas = _folders(root / cpu, paths.get("cpu", "/"))
        usages = _folders(root / accounting, paths.get("cpuacct", "/"))
        groups: list[ControlGroup] = [
            _GroupV1(usage / "cpuacct.usage", quota / "cpu.cfs_quota_us", quota / "cpu.cfs_period_us")
            for quota, usage in zip(quotas, usages, strict=False)
            if (usage / "cpuacct.usage").exists() and (quota / "cpu.cfs_quota_us").exists()
        ]
        if groups:
            return groups
    return []


def _folders(base: Path, path: str) -> list[Path]:
    """``base/a/b``, ``base/a``, ``base``. In a container the path may be one that cannot be seen from inside."""
    parts = [part for part in path.split("/") if part]
    if ".." in parts or not base.joinpath(*parts).is_dir():
        parts = []
    return [base.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


# --- memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """One device's memory, or a budget, in MB."""

    name: str
    used_mb: float
    total_mb: float


class MemoryShare:
    """The share of what was left at start that is gone since. Takes the time since READY in seconds."""

    def __init__(self) -> None:
        self._at_start_mb = 0.0

    def add(self, ready_s: float, used_mb: float, total_mb: float) -> float:
        """The share, 0 to 1; 1 where nothing was left."""
        if ready_s < _SETTLE_S:
            self._at_start_mb = max(self._at_start_mb, used_mb)
        elif not self._at_start_mb:
            # The first look came late.
            self._at_start_mb = used_mb
        left_mb = total_mb - self._at_start_mb
        return _share((used_mb - self._at_start_mb) / left_mb) if left_mb > 0 else 1.0


def _import_nvml() -> Any:
    import pynvml

    return pynvml


class DeviceMemory:
    """Asks NVML in a thread of its own, because a driver may take its time. No CUDA context is made.

    ``uses`` are the devices on which the process ``pid`` works; all devices where NVML cannot tell (in a
    container it knows processes by other numbers). Empty while unknown; the log says why, once.
    """

    def __init__(self, nvml: Callable[[], Any] = _import_nvml, period_s: float = _DEVICE_PERIOD_S) -> None:
        self.uses: tuple[MemoryUse, ...] = ()
        self.pid = 0
        self._nvml = nvml
        self._period_s = period_s
        self._told = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device-memory", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Let the thread end, after the look it is at. Does not wait: a driver may take its time."""
        self._ended.set()

    def _run(self) -> None:
        try:
            nvml = self._nvml()
            nvml.nvmlInit()
        except Exception as exc:  # noqa: BLE001 (no module, no driver, another driver: all mean that nothing is known)
            self._tell(f"the GPU's memory is not known: {exc}")
            return
        try:
            while True:
                try:
                    self.uses = _devices(nvml, self.pid)
                except nvml.NVMLError as exc:
                    self.uses = ()
                    self._tell(f"the GPU's memory is not known: {exc}")
                if self._ended.wait(self._period_s):
                    return
        finally:
            nvml.nvmlShutdown()

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            logger.warning("%s", text)


def gpu(nvml: Callable[[], Any] = _import_nvml) -> tuple[str, int]:
    """The first GPU's name, and its memory in bytes; "" and 0 without one."""
    try:
        loaded = nvml()
        loaded.nvmlInit()
    except Exception:  # noqa: BLE001 (no module, no driver, another driver: all mean that nothing is known)
        return "", 0
    try:
        handle = loaded.nvmlDeviceGetHandleByIndex(0)
        return str(loaded.nvmlDeviceGetName(handle)), int(loaded.nvmlDeviceGetMemoryInfo(handle).total)
    except loaded.NVMLError:
        return "", 0
    finally:
        loaded.nvmlShutdown()


def _devices(nvml: Any, pid: int) -> tuple[MemoryUse, ...]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    ours = [index for index, handle in enumerate(handles) if pid in _process_ids(nvml, handle)]
    uses = []
    for index in ours or range(len(handles)):
        memory = nvml.nvmlDeviceGetMemoryInfo(handles[index])
        uses.append(MemoryUse(f"cuda:{index}", memory.used / 1e6, memory.total / 1e6))
    return tuple(uses)


def _process_ids(nvml: Any, handle: Any) -> Iterator[int]:
    try:
        yield from (process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.NVMLError:
        # Not every driver and container tells; the devices' memory can be known all the same.
        return


# --- a room's share -------------------------------------------------------------------------------


class RoomShare:
    """What one room takes of ``cores``, from CPU times that are known in steps of seconds.

    CPU seconds of our processes and seconds of rooms are both added up and both forgotten alike, so that
    their quotient does not depend on how often either is looked at.
    """

    def __init__(self, cores: float, now: float) -> None:
        self._cores = cores
        self._at = now
        self._seen: dict[int, float] = {}
        self._cpu_s = 0.0
        self._room_s = 0.0

    @property
    def value(self) -> float:
        """The share of one room, 0 to 1; 0 while unknown."""
        return _share(self._cpu_s / self._room_s / self._cores) if self._room_s >= _ROOM_KNOWN_S else 0.0

    def add(self, now: float, processes: Sequence[ProcessUse], rooms: int) -> None:
        """One look. Without rooms nothing is learned and nothing forgotten."""
        elapsed_s, self._at = max(0.0, now - self._at), now
        before, self._seen = self._seen, {process.pid: process.cpu_s for process in processes}
        if not rooms:
            return
        # A process that is seen for the first time may have worked before there was a room.
        used_s = sum(max(0.0, cpu_s - before[pid]) for pid, cpu_s in self._seen.items() if pid in before)
        kept = math.exp(-elapsed_s / _ROOM_MEMORY_S)
        self._cpu_s = self._cpu_s * kept + used_s
        self._room_s = self._room_s * kept + rooms * elapsed_s
