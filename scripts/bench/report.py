"""What every bench prints: the hardware, tables, the bars, and one JSON object as the last line.

    {"bench": "vad", "device": "...", "bars": [{"name", "value", "unit", "bar", "holds"}]}

A bench is run from a set-up checkout as ``python scripts/bench/NAME.py``; it imports this module first, so
that the packages of the checkout are found without having been installed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

QUIET_SHARE = 0.1
"""Of all cores: what others may use while something is timed."""

console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Bar:
    """What must hold: ``value`` at most ``bar``, or at least ``bar``. Both in ``unit``."""

    name: str
    value: float
    unit: str
    bar: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the bar is met. A value that is no number meets none."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def as_dict(self) -> dict[str, object]:
        value = float(f"{self.value:.4g}") if math.isfinite(self.value) else None
        return {"name": self.name, "value": value, "unit": self.unit, "bar": self.bar, "holds": self.holds}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median_s(work: Callable[[], object], repeats: int = 3) -> float:
    """Seconds that ``work`` takes, the median of ``repeats``."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return percentile(taken, 0.5)


def device() -> str:
    """The GPU if the driver shows one, otherwise the processor."""
    gpu = _gpu()
    return gpu or _processor()


def hardware() -> str:
    """One line of everything that a number depends on."""
    memory_gb = psutil.virtual_memory().total / 1e9
    cores = len(os.sched_getaffinity(0))
    parts = [_processor(), f"{cores} cores", f"{memory_gb:.0f} GB", f"Linux {platform.release()}"]
    gpu = _gpu()
    return ", ".join([*([gpu] if gpu else []), *parts, f"Python {platform.python_version()}"])


def versions(*packages: str) -> str:
    """Names and versions of installed packages, for a caption."""
    return ", ".join(f"{package} {metadata.version(package)}" for package in packages)


def warn_if_busy(seconds: float = 1.0) -> None:
    """Say so when other processes use the machine: one busy core makes spinning thread teams many times slower."""
    share = psutil.cpu_percent(interval=seconds) / 100
    if share > QUIET_SHARE:
        console.print(f"[yellow]the machine is not quiet: {share:.0%} of its cores are in use; times are too long")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float]], caption: str = "") -> None:
    """Print a table; the first column is text, the others are numbers."""
    shown = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, str) else _number(cell) for cell in row))
    console.print(shown)


def finish(bench: str, bars: Sequence[Bar]) -> int:
    """Print the bars and the JSON line; returns the exit code: 0 when all hold, else 1."""
    rows = [
        (bar.name, f"{_number(bar.value)} {bar.unit}", f"{'≥' if bar.at_least else '≤'} {bar.bar:g}", _mark(bar))
        for bar in bars
    ]
    table("Bars", ("what", "measured", "bar", "holds"), rows)
    sys.stdout.flush()
    print(json.dumps({"bench": bench, "device": device(), "bars": [bar.as_dict() for bar in bars]}), flush=True)
    return 0 if all(bar.holds for bar in bars) else 1


def _mark(bar: Bar) -> str:
    return "yes" if bar.holds else "NO"


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _gpu() -> str:
    try:
        shown = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return shown.stdout.splitlines()[0].strip() if shown.stdout.strip() else ""
