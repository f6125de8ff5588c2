"""The report of a load test as one JSON file. Its parts are the classes of ``results`` and ``measure``; ``schema``
gives the JSON Schema of it all.

Times are in seconds unless a name says otherwise, memory is in MB (10^6 bytes), CPU of a process in cores, shares
are from 0 to 1; null is not known.
"""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from host.config import Config
from host.description import version
from host.loadtest.load_test import Curve, LoadTest
from host.loadtest.results import Point

FORMAT = 1
"""Counts up when a name changes its meaning or goes; new names may come any time."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran. ``device``: as the inference process reported it."""

    cpu: str
    cores: float
    memory_mb: float
    system: str
    device: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of it. ``endpointing_ms``: the delay that is set; ``target_ms``: of the p95 without it."""

    target_ms: float
    duration_s: float
    cycle_s: float
    call_s: float
    endpointing_ms: float
    reply_tokens: int
    transport: str
    speech: str
    seed: int
    profile: str


@dataclass(frozen=True, slots=True)
class CurveReport:
    """``engines``: "real", "stock" (one request at a time) or "fake". ``most``: rooms that held; 0 for none."""

    engines: str
    most: int
    points: tuple[Point, ...]
    left_over: tuple[str, ...] = ()
    """Processes of the host that were there after it had ended."""


@dataclass(frozen=True, slots=True)
class Report:
    """The whole file."""

    format: int
    made_at: str
    roomful: str
    machine: Machine
    asked: Asked
    curves: tuple[CurveReport, ...]


def make(test: LoadTest, config: Config, curves: list[Curve]) -> Report:
    """The report of what was found."""
    points = [point for curve in curves for point in curve.points]
    return Report(
        FORMAT,
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version(),
        Machine(
            _cpu(),
            points[0].cores if points else config.cores(),
            _memory_mb(),
            f"{platform.system()} {platform.release()}",
            points[0].device.name if points else config.inference.device,
        ),
        Asked(
            test.target_ms,
            test.duration_s,
            test.habits.cycle_s,
            test.habits.call_s,
            config.session.vad_endpointing_delay_ms,
            test.reply_tokens,
            test.transport,
            str(test.speech),
            test.seed,
            config.models.profile,
        ),
        tuple(
            CurveReport(
                curve.engines, curve.best(), tuple(sorted(curve.points, key=lambda point: point.rooms)), curve.left_over
            )
            for curve in curves
        ),
    )


def to_json(report: Report) -> bytes:
    """Indented, for people who look into it, too."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1)


def from_json(data: bytes) -> dict[str, Any]:
    """As plain objects: a later version may have other names."""
    decoded: dict[str, Any] = msgspec.json.decode(data)
    return decoded


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    whole: dict[str, Any] = _with_unknown(msgspec.json.schema(Report))
    return whole


def _with_unknown(part: Any) -> Any:
    """Numbers that are not known are null."""
    if isinstance(part, dict):
        number = {"type": ["number", "null"]} if part.get("type") == "number" else {}
        return {key: _with_unknown(value) for key, value in part.items()} | number
    return [_with_unknown(item) for item in part] if isinstance(part, list) else part


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _memory_mb() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
