from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from host.load import CpuMeter, DeviceMemory, LoadMeter, MemoryShare, MemoryUse, RoomShare
from inference.wire.supervision import InferenceReport

DEADLINE_S = 20.0
CORES = len(os.sched_getaffinity(0))


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Use:
    pid: int
    kind: str = "job"
    cpu_s: float = 0.0
    memory_mb: float = 0.0


def report(device: str = "cpu", pressure: float = 0.0) -> InferenceReport:
    return InferenceReport(device, 0, 4, 0.0, pressure)


def wait_until(what: Callable[[], bool], *, called: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {called}"
        time.sleep(0.01)


# --- control groups -------------------------------------------------------------------------------


@dataclass
class Tree:
    """Control group files, laid out as the kernel does."""

    root: Path
    own: Path
    clock: Clock = field(default_factory=Clock)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def v2(self, group: str, *, used_s: float, limit: str | None = None) -> None:
        self.write("cgroup.controllers", "cpu memory\n")
        self.write(
            f"{group}/cpu.stat", f"usage_usec {round(used_s * 1e6)}\nuser_usec 1\nsystem_usec 2\nnr_throttled 3\n"
        )
        if limit is not None:
            self.write(f"{group}/cpu.max", f"{limit}\n")

    def v1(self, group: str, *, used_s: float, quota: int = -1, cpu: str = "cpu", accounting: str = "cpuacct") -> None:
        self.write(f"{cpu}/{group}/cpu.cfs_quota_us", f"{quota}\n")
        self.write(f"{cpu}/{group}/cpu.cfs_period_us", "100000\n")
        self.write(f"{accounting}/{group}/cpuacct.usage", f"{round(used_s * 1e9)}\n")

    def meter(self, num_cpus: float = 0.0) -> CpuMeter:
        return CpuMeter(num_cpus, root=self.root, own=self.own, clock=self.clock)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    own = tmp_path / "self-cgroup"
    own.write_text("0::/\n")
    root = tmp_path / "cgroup"
    root.mkdir()
    return Tree(root, own)


def test_a_container_with_a_quota(tree: Tree) -> None:
    tree.v2(".", used_s=10.0, limit="50000 100000")
    meter = tree.meter()
    assert meter.cores == 0.5
    tree.clock.now += 2.0
    tree.v2(".", used_s=10.4)
    assert meter.read() == pytest.approx(0.4)
    tree.clock.now += 1.0
    tree.v2(".", used_s=12.0)
    assert meter.read() == 1.0, "more than all is all"


def test_the_group_nearest_its_limit_counts(tree: Tree) -> None:
    tree.own.write_text("0::/slice/host.service\n")

    def write(own_s: float, slice_s: float) -> None:
        tree.v2("slice/host.service", used_s=own_s, limit="400000 100000")
        tree.v2("slice", used_s=slice_s, limit="600000 100000")
        tree.v2(".", used_s=1000.0 + 10 * slice_s)

    write(0.0, 0.0)
    meter = tree.meter()
    assert meter.cores == min(4.0, CORES)
    tree.clock.now += 1.0
    write(1.0, 4.5)
    assert meter.read() == pytest.approx(0.75)
    tree.clock.now += 1.0
    write(4.6, 8.4)
    assert meter.read() == pytest.approx(0.9)


def test_a_quota_that_changes_while_we_run(tree: Tree) -> None:
    tree.v2(".", used_s=0.0, limit="400000 100000")
    meter = tree.meter()
    tree.clock.now += 1.0
    tree.v2(".", used_s=1.0, limit="200000 100000")
    assert meter.read() == pytest.approx(0.5)


def test_the_path_of_a_host_that_cannot_be_seen_from_its_container(tree: Tree) -> None:
    tree.own.write_text("0::/docker/0123\n")
    tree.v2(".", used_s=0.0, limit="100000 100000")
    meter = tree.meter()
    tree.clock.now += 1.0
    tree.v2(".", used_s=0.25)
    assert meter.read() == pytest.approx(0.25)
    tree.own.write_text("0::/../elsewhere\n")
    assert tree.meter().cores == 1.0


@pytest.mark.parametrize(("cpu", "accounting"), [("cpu", "cpuacct"), ("cpu,cpuacct", "cpu,cpuacct")])
def test_version_1(tree: Tree, cpu: str, accounting: str) -> None:
    tree.own.write_text("4:memory:/m\n2:cpu,cpuacct:/docker/1\n1:name=systemd:/\n0::/x\n")

    def write(used_s: float) -> None:
        tree.v1("docker/1", used_s=used_s, quota=200_000, cpu=cpu, accounting=accounting)
        tree.v1(".", used_s=1000.0 + used_s, cpu=cpu, accounting=accounting)

    write(3.0)
    meter = tree.meter()
    assert meter.cores == min(2.0, CORES)
    tree.clock.now += 2.0
    write(4.0)
    assert meter.read() == pytest.approx(0.25)


def test_num_cpus_is_the_whole(tree: Tree) -> None:
    tree.v2(".", used_s=0.0, limit="100000 100000")
    meter = tree.meter(num_cpus=8)
    assert meter.cores == 8
    tree.clock.now += 1.0
    tree.v2(".", used_s=2.0)
    assert meter.read() == pytest.approx(0.25)


@pytest.mark.parametrize("limit", [None, "max 100000", "", "0 0", "x y"])
def test_without_a_quota_it_is_the_machine(tree: Tree, limit: str | None) -> None:
    """The group's own use says a hundredth of a core; this test takes a whole one."""
    tree.v2(".", used_s=0.0, limit=limit)
    meter = CpuMeter(root=tree.root, own=tree.own)
    assert meter.cores == CORES
    before = time.process_time()
    while time.process_time() < before + 0.3:
        pass
    tree.v2(".", used_s=0.001)
    assert meter.read() > 0.5 / CORES


def test_the_machine_without_control_groups(tmp_path: Path) -> None:
    meter = CpuMeter(root=tmp_path / "none", own=tmp_path / "neither")
    assert repr(meter) == f"<CpuMeter {CORES} cores, control groups: none>"
    before = time.process_time()
    while time.process_time() < before + 0.3:
        pass
    assert 0.5 / CORES < meter.read() <= 1.0
    tight = CpuMeter(0.01, root=tmp_path / "none", own=tmp_path / "neither")
    while time.process_time() < before + 0.6:
        pass
    assert tight.read() == 1.0


def test_this_machine_as_it_is() -> None:
    meter = CpuMeter()
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        pass
    assert 0.0 < meter.read() <= 1.0
    assert 0.0 < meter.cores <= CORES


# --- memory ---------------------------------------------------------------------------------------


def test_memory_is_what_is_gone_since_the_start() -> None:
    share = MemoryShare()
    assert share.add(0.0, 4000, 10_000) == 0.0
    assert share.add(5.0, 6000, 10_000) == 0.0, "a look from before READY came first"
    assert share.add(8.0, 7000, 10_000) == pytest.approx(0.25)
    assert share.add(9.0, 5000, 10_000) == 0.0
    assert share.add(9.0, 12_000, 10_000) == 1.0
    late = MemoryShare()
    assert late.add(60.0, 6000, 10_000) == 0.0
    assert MemoryShare().add(0.0, 10_000, 10_000) == 1.0, "nothing was left at all"


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """As much of pynvml as is asked for. ``devices``: used and total bytes, and the processes on it."""

    NVMLError = FakeNvmlError

    def __init__(self, *devices: tuple[float, float, list[int]]) -> None:
        self.devices = list(devices)
        self.broken = ""
        self.hides_processes = False
        self.calls: list[str] = []

    def nvmlInit(self) -> None:
        self.calls.append("init")

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        self.calls.append("memory")
        if self.broken:
            raise FakeNvmlError(self.broken)
        used, total, _ = self.devices[handle]
        return SimpleNamespace(used=used, total=total)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        if self.hides_processes:
            raise FakeNvmlError("Not Supported")
        return [SimpleNamespace(pid=pid) for pid in self.devices[handle][2]]


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml((8e9, 10e9, [1, 2]), (4e9, 20e9, [77]))


def test_the_devices_that_the_inference_process_works_on(nvml: FakeNvml) -> None:
    memory = DeviceMemory(lambda: nvml, period_s=0.001)
    memory.pid = 77
    memory.start()
    try:
        wait_until(lambda: bool(memory.uses), called="the first look")
        assert memory.uses == (MemoryUse("cuda:1", 4000.0, 20_000.0),)
        nvml.hides_processes = True
        wait_until(lambda: len(memory.uses) == 2, called="all devices where processes are hidden")
    finally:
        memory.close()
    wait_until(lambda: "shutdown" in nvml.calls, called="the thread's end")
    assert nvml.calls.count("init") == 1


def test_a_driver_that_does_not_tell_is_reported_once(nvml: FakeNvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml.broken = "Not Supported"
    memory = DeviceMemory(lambda: nvml, period_s=0.001)
    memory.start()
    try:
        wait_until(lambda: nvml.calls.count("memory") > 5, called="looks")
        assert memory.uses == ()
        assert caplog.messages == ["the GPU's memory is not known: Not Supported"]
        nvml.broken = ""
        wait_until(lambda: bool(memory.uses), called="a look that succeeds")
    finally:
        memory.close()


def test_no_driver_at_all(caplog: pytest.LogCaptureFixture) -> None:
    def missing() -> FakeNvml:
        raise OSError("NVML Shared Library Not Found")

    memory = DeviceMemory(missing)
    memory.start()
    wait_until(lambda: bool(caplog.messages), called="the warning")
    assert memory.uses == ()
    assert "NVML Shared Library Not Found" in caplog.messages[0]


def test_the_real_library_tells_or_says_why_not(caplog: pytest.LogCaptureFixture) -> None:
    """With a GPU there is memory to see; without one there is a reason, and nothing fails."""
    memory = DeviceMemory(period_s=0.05)
    memory.start()
    try:
        wait_until(lambda: bool(memory.uses or caplog.messages), called="an answer")
    finally:
        memory.close()
    if memory.uses:
        assert all(0 <= use.used_mb <= use.total_mb for use in memory.uses)
    else:
        assert caplog.messages[0].startswith("the GPU's memory is not known: ")


# --- one room -------------------------------------------------------------------------------------


def test_a_rooms_share_of_the_cpu_from_times_that_come_in_steps() -> None:
    """Two rooms at 0.4 cores each (inference included) on 4 cores; CPU times are looked at every 5 s."""
    share = RoomShare(4.0, 0.0)
    uses = [Use(1, "inference", cpu_s=50.0), Use(2), Use(3)]
    values = []
    for step in range(1, 241):
        now = step * 0.5
        if step % 10 == 0:
            uses[0].cpu_s += 0.5 * 2 * 0.4 * 10 / 2
            uses[1].cpu_s += 0.25 * 2 * 0.4 * 10 / 2
            uses[2].cpu_s += 0.25 * 2 * 0.4 * 10 / 2
        share.add(now, uses, rooms=2)
        values.append(share.value)
    assert values[2] == 0.0, "unknown at first"
    assert all(value == pytest.approx(0.1, rel=0.15) for value in values[60:])
    for _ in range(1000):
        now += 0.5
        uses[0].cpu_s += 5.0
        share.add(now, uses, rooms=0)
    assert share.value == pytest.approx(0.1, rel=0.15), "work without rooms says nothing about rooms"
    share.add(now + 0.5, [Use(9, cpu_s=1000.0)], rooms=1)
    assert share.value < 0.2, "what a process did before it was seen is not a room's"


# --- all together ---------------------------------------------------------------------------------


def test_the_parts(tree: Tree) -> None:
    tree.v2(".", used_s=0.0, limit="100000 100000")
    clock = tree.clock
    meter = LoadMeter(memory_budget_mb=5000, cgroup_root=tree.root, own_cgroup=tree.own, clock=clock)
    assert meter.parts(0.0).value == 0.0
    assert meter.cores == 1.0
    inference = Use(1, "inference", memory_mb=0.0)
    used_s = 0.0
    for share in (1.0, 0.5, 0.5, 0.5, 0.5, 0.5):
        clock.now += 0.5
        used_s += share * 0.5
        tree.v2(".", used_s=used_s)
        meter.sample([inference], None, rooms=0)
    parts = meter.parts(0.25)
    assert parts.cpu == pytest.approx(0.5), "the mean of the last five samples"
    assert (parts.memory, parts.pressure, parts.jobs) == (0.0, 0.0, 0.25)
    assert parts.largest == "cpu"

    meter.sample([inference], report(pressure=0.9), rooms=0)
    assert meter.parts(0.0).pressure == 0.9
    inference.memory_mb = 3000
    meter.sample([inference], report(), rooms=0)
    assert meter.parts(0.0).memory == 0.0
    clock.now += 10
    inference.memory_mb = 4500
    meter.sample([inference], report(), rooms=0)
    assert meter.parts(0.0).memory == pytest.approx(0.75)
    # Another inference process begins anew.
    meter.sample([], None, rooms=0)
    assert meter.parts(0.0).memory == 0.0
    meter.sample([inference], report(), rooms=0)
    assert meter.parts(0.0).memory == 0.0
    assert meter.parts(7.0).jobs == 1.0


def test_without_a_budget_memory_is_no_load(tmp_path: Path) -> None:
    meter = LoadMeter(cgroup_root=tmp_path, own_cgroup=tmp_path / "none")
    meter.sample([Use(1, "inference", memory_mb=1e6)], report(), rooms=1)
    assert meter.parts(0.0).memory == 0.0


def test_a_gpu_is_asked_for_its_memory(tmp_path: Path, nvml: FakeNvml) -> None:
    clock = Clock()
    meter = LoadMeter(cgroup_root=tmp_path, own_cgroup=tmp_path / "none", clock=clock, nvml=lambda: nvml)

    def memory() -> float:
        meter.sample([Use(77, "inference")], report("cuda"), rooms=1)
        return meter.parts(0.0).memory

    try:
        assert memory() == 0.0
        # With the second look the first one is known to have been published.
        wait_until(lambda: nvml.calls.count("memory") >= 2, called="the second look")
        assert memory() == 0.0
        clock.now += 8.0
        nvml.devices[1] = (12e9, 20e9, [77])
        wait_until(lambda: memory() > 0, called="what was taken since")
        assert memory() == pytest.approx(0.5)
    finally:
        meter.close()
    wait_until(lambda: "shutdown" in nvml.calls, called="the thread's end")


def test_on_a_cpu_no_gpu_is_asked(tmp_path: Path, nvml: FakeNvml) -> None:
    meter = LoadMeter(device="cpu", cgroup_root=tmp_path, own_cgroup=tmp_path / "none", nvml=lambda: nvml)
    meter.sample([Use(77, "inference")], report("cuda"), rooms=1)
    meter = LoadMeter(cgroup_root=tmp_path, own_cgroup=tmp_path / "none", nvml=lambda: nvml)
    meter.sample([Use(77, "inference")], report("cpu"), rooms=1)
    assert "device-memory" not in {thread.name for thread in threading.enumerate()}
    assert nvml.calls == []


def test_a_sample_of_real_processes_is_quick() -> None:
    """Called twice a second by an event loop that must not stand still."""
    meter = LoadMeter()
    own = psutil.Process()
    uses = [Use(own.pid, cpu_s=sum(own.cpu_times()[:2])) for _ in range(100)]
    took = []
    for _ in range(20):
        began = time.thread_time()
        meter.sample(uses, report(), rooms=100)
        took.append(time.thread_time() - began)
    assert sorted(took)[10] < 0.01
    assert 0.0 <= meter.parts(0.5).cpu <= 1.0
