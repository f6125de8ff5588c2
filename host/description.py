"""What ``/worker`` tells: one JSON object, for programs, ``host status`` and the metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from livekit.protocol import agent

from host.capacity import Load, LoadParts, Status
from host.dispatch import JOB_TYPES, PROTOCOL_VERSION
from host.options import WorkerOptions
from host.places import Sustained
from host.process import ProcessInfo
from inference.wire.supervision import InferenceReport


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A worker at one moment. ``told``: what the server believes, None while it knows nothing of us."""

    options: WorkerOptions
    worker_id: str = ""
    status: Status = field(default_factory=lambda: Status(True, 1.0, 0))
    told: Status | None = None
    uptime_s: float = 0.0
    draining: bool = False
    places: int = 0
    refusal: str = ""
    load: Load = field(default_factory=Load)
    inference_ready: bool = False
    inference_restarts: int = 0
    report: InferenceReport | None = None
    max_rooms: int = 0
    sustained: Sustained | None = None
    device: str = ""
    """As configured, like ``max_rooms``; the report knows better."""
    processes: Sequence[ProcessInfo] = ()


def describe(now: Snapshot) -> dict[str, Any]:
    """The object. Shares are from 0 to 1, memory is in MB (10^6 bytes)."""
    threshold = now.options.load_threshold
    return {
        # As LiveKit's own workers.
        "worker_type": agent.JobType.Name(JOB_TYPES[now.options.worker_type]),
        "agent_name": now.options.agent_name,
        "worker_id": now.worker_id,
        "active_jobs": now.status.job_count,
        "worker_load": round(now.status.load, 3),
        "worker_status": "" if now.told is None else "WS_FULL" if now.told.full else "WS_AVAILABLE",
        "sdk_version": version(),
        "protocol_version": PROTOCOL_VERSION,
        # Ours.
        "dev": now.options.dev,
        "uptime_s": round(now.uptime_s, 1),
        "draining": now.draining,
        "max_jobs": now.places,
        "load_threshold": threshold if threshold is not None and math.isfinite(threshold) else None,
        "load": {**_parts(now.load.parts), "value": round(now.load.value, 3)},
        "admission": {"accepts": not now.refusal, "reason": now.refusal},
        "inference": _inference(now),
        "processes": [_process(process) for process in now.processes],
    }


def version() -> str:
    """The version of this distribution; "0" where it is not installed."""
    try:
        return metadata.version("roomful")
    except metadata.PackageNotFoundError:
        return "0"


def _parts(parts: LoadParts) -> dict[str, float]:
    return {name: round(getattr(parts, name), 3) for name in ("cpu", "memory", "pressure", "jobs")}


def _inference(now: Snapshot) -> dict[str, Any]:
    report = now.report
    return {
        "ready": now.inference_ready,
        "device": report.device if report is not None else now.device,
        "rooms": report.rooms if report is not None else 0,
        "max_rooms": report.max_rooms if report is not None else now.max_rooms,
        "busy": round(report.busy, 3) if report is not None else 0.0,
        "pressure": round(report.pressure, 3) if report is not None else 0.0,
        "restarts": now.inference_restarts,
        "sustained": None if now.sustained is None else asdict(now.sustained),
        "memory": {
            name: getattr(report.memory, name) if report is not None else 0
            for name in ("planned_mb", "available_mb", "room_mb", "more_rooms")
        },
        "stages": [
            {name: getattr(stage, name) for name in ("stage", "waiting", "requests", "late", "quanta", "busy_s")}
            for stage in (report.stages if report is not None else ())
        ],
    }


def _process(process: ProcessInfo) -> dict[str, Any]:
    return {
        "name": process.name,
        "kind": process.kind,
        "pid": process.pid,
        "state": process.state,
        "job_id": process.job_id,
        "room": process.room,
        "memory_mb": round(process.memory_mb, 1),
        "ping_ms": round(process.ping_ms, 2),
        "age_s": round(process.age_s, 1),
    }
