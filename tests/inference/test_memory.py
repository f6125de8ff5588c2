from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference import device
from inference.device import NoDeviceError, free_gpu_memory
from inference.memory import available_memory
from inference.wire import supervision as s
from tests.inference.process import NotReadyError, inference_process

MB = 1_000_000


class Machine:
    """Files of a kernel."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        self.write("proc/meminfo", "MemTotal: 16000 kB\nMemAvailable: 8000000 kB\n")
        self.folder = folder

    def write(self, name: str, text: str) -> None:
        path = self.proc.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def available(self, budget_mb: float = 0.0) -> int:
        return available_memory("cpu", budget_mb, proc=self.proc, control_groups=self.groups)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_machine_alone(machine: Machine) -> None:
    assert machine.available() == 8_000_000 * 1024


def test_a_budget(machine: Machine) -> None:
    assert machine.available(budget_mb=1500.0) == 1500 * MB
    assert machine.available(budget_mb=1e6) == 8_000_000 * 1024


def test_the_control_group_above_ours_counts(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/a/b\n")
    machine.write("cgroup/a/b/memory.max", "max\n")
    machine.write("cgroup/a/b/memory.current", "900\n")
    machine.write("cgroup/a/memory.max", f"{2000 * MB}\n")
    machine.write("cgroup/a/memory.current", f"{700 * MB}\n")
    machine.write("cgroup/a/memory.stat", f"anon 1\ninactive_file {100 * MB}\n")
    assert machine.available() == 1400 * MB


def test_control_groups_of_version_1_in_a_container(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/not/to/be/seen\n")
    machine.write("cgroup/memory/memory.limit_in_bytes", f"{3000 * MB}\n")
    machine.write("cgroup/memory/memory.usage_in_bytes", f"{500 * MB}\n")
    assert machine.available() == 2500 * MB


# --- a GPU ----------------------------------------------------------------------------------------


class Driver:
    """As much of libcuda as is asked; functions answer with a status and write to what they are pointed at."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == "cuMemGetInfo_v2":
                for pointer, value in zip(arguments, (70_000 * MB, 80_000 * MB), strict=True):
                    ctypes.cast(pointer, ctypes.POINTER(ctypes.c_size_t))[0] = value
            elif name == "cuDeviceGetCount":
                ctypes.cast(arguments[0], ctypes.POINTER(ctypes.c_int))[0] = 1
            return 2 if name == self.failing else 0

        return call


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: driver)
    assert free_gpu_memory() == available_memory("cuda", budget_mb=1.0) == 70_000 * MB
    assert driver.called.index("cuDevicePrimaryCtxRetain") < driver.called.index("cuMemGetInfo_v2")


def test_a_driver_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: Driver("cuDevicePrimaryCtxRetain"))
    with pytest.raises(NoDeviceError, match="error 2 when it is asked for free memory"):
        free_gpu_memory()


# --- the process ----------------------------------------------------------------------------------


@pytest.mark.models
@pytest.mark.processes
async def test_too_little_memory_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError) as failed:
        async with inference_process(
            tmp_path, engines="real", max_rooms=64, context_tokens=4096, memory_budget_mb=2000.0
        ):
            pass
    assert failed.value.exit_code == 4
    assert "64 rooms of 4096 tokens take" in str(failed.value)
    assert "2.00 GB are available; what would fit: " in str(failed.value)


@pytest.mark.models
@pytest.mark.processes
async def test_the_plan_is_reported(tmp_path: Path) -> None:
    async with inference_process(tmp_path, engines="real", max_rooms=2, context_tokens=512) as process:
        report = await process.report()
    assert 900 < report.memory.planned_mb < report.memory.available_mb
    assert report.memory.room_mb == pytest.approx(23_040 * 512 / 1e6, abs=4)
    assert report.memory.more_rooms > 0


@pytest.mark.processes
async def test_fakes_take_none(tmp_path: Path) -> None:
    async with inference_process(tmp_path) as process:
        assert (await process.report()).memory == s.MemoryReport()
