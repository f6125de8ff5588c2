"""Whether there is memory for the models and the rooms, asked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from inference.budget import MB, Device, Fit, Sizes, fit
from inference.device import free_gpu_memory
from inference.engines.base import EngineError
from inference.model_files import ModelFileError, read_facts
from inference.wire import supervision as s

_PROC = Path("/proc")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")


class NotEnoughMemoryError(Exception):
    """The models and rooms asked for do not fit; the message says what would."""


def check_memory(settings: s.InitializeInference, device: Device) -> Fit:
    """What the models and rooms of ``settings`` will take of ``device``, and what else would fit.

    Raises ``NotEnoughMemoryError``, and ``EngineError`` for a model file that is none.
    """
    try:
        facts = read_facts(Path(settings.stt_path), Path(settings.llm_path), Path(settings.tts_path))
    except ModelFileError as exc:
        raise EngineError(str(exc)) from exc
    sizes = Sizes(device, settings.max_rooms, settings.context_tokens, settings.threads, settings.resident_rooms)
    found = fit(facts, sizes, available_memory(device, settings.memory_budget_mb))
    if not found.fits:
        raise NotEnoughMemoryError(str(found))
    return found


def report_of(found: Fit) -> s.MemoryReport:
    """For the supervisor."""
    return s.MemoryReport(found.budget.total // MB, found.available // MB, found.budget.room // MB, found.more_rooms)


def available_memory(
    device: Device, budget_mb: float = 0.0, *, proc: Path = _PROC, control_groups: Path = _CONTROL_GROUPS
) -> int:
    """Bytes that this process may take: free memory of the GPU, or of the machine and its control groups.

    ``budget_mb`` (0 for none) bounds it on a CPU.
    """
    if device == "cuda":
        return free_gpu_memory()
    left = [_of_machine(proc), *_of_groups(proc, control_groups)]
    if budget_mb > 0:
        left.append(round(budget_mb * MB))
    return min(left)


def _of_machine(proc: Path) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise EngineError("the kernel does not say how much memory is available")


def _of_groups(proc: Path, root: Path) -> list[int]:
    """What is left of the limits of our control group and of those above it, in both of their versions."""
    left = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / controllers
        names = ("memory.max", "memory.current") if not controllers else (
            "memory.limit_in_bytes", "memory.usage_in_bytes"
        )  # fmt: skip
        parts = [part for part in path.split("/") if part]
        if ".." in parts or not base.joinpath(*parts).is_dir():
            parts = []  # in a container the path may be one that cannot be seen from inside
        for count in range(len(parts), -1, -1):
            folder = base.joinpath(*parts[:count])
            limit, used = (_text(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                # Files that were read count as used, and are given back when somebody needs the memory.
                left.append(max(0, int(limit) - int(used) + _cached(folder)))
    return left


def _cached(folder: Path) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
