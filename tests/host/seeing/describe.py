"""What ``/worker`` says of a host in service, for tests of what is made of it."""

from __future__ import annotations

from typing import Any


def process(name: str, kind: str, pid: int, state: str = "ready", **changes: Any) -> dict[str, Any]:
    values = {
        "name": name,
        "kind": kind,
        "pid": pid,
        "state": state,
        "job_id": "",
        "room": "",
        "memory_mb": 41.3,
        "ping_ms": 0.4,
        "age_s": 754.0,
    }
    return values | changes


def description(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "worker_type": "JT_ROOM",
        "agent_name": "reception",
        "worker_id": "AW_kc8PbgQ3vLkZ",
        "active_jobs": 2,
        "worker_load": 0.42,
        "worker_status": "WS_AVAILABLE",
        "sdk_version": "0.1.0",
        "protocol_version": 1,
        "dev": False,
        "uptime_s": 7384.2,
        "draining": False,
        "max_jobs": 8,
        "load_threshold": 0.7,
        "load": {"cpu": 0.42, "memory": 0.0, "pressure": 0.125, "jobs": 0.25, "value": 0.42},
        "admission": {"accepts": True, "reason": ""},
        "inference": {
            "ready": True,
            "device": "cpu",
            "rooms": 2,
            "max_rooms": 8,
            "busy": 0.37,
            "pressure": 0.125,
            "restarts": 1,
            "memory": {"planned_mb": 1834, "available_mb": 21_400, "room_mb": 50, "more_rooms": 247},
            "stages": [
                {"stage": "stt", "waiting": 1, "requests": 120, "late": 3, "quanta": 118},
                {"stage": "llm", "waiting": 2, "requests": 98, "late": 0, "quanta": 5021},
                {"stage": "tts", "waiting": 0, "requests": 240, "late": 7, "quanta": 312},
            ],
        },
        "processes": [
            process("inference", "inference", 4101, "running", memory_mb=1834.0, ping_ms=1.2, age_s=7380.0),
            process("forkserver", "forkserver", 4102, memory_mb=38.5, age_s=7384.0, ping_ms=-1.0),
            process("job-7", "job", 4377, "running", job_id="AJ_4yQzV2Xr9b", room="kitchen", memory_mb=61.0),
            process("job-8", "job", 4379, "running", job_id="AJ_99zzV2Xr9b", room="front-desk-of-the-hotel"),
            process("job-9", "job", 4412, "initializing", memory_mb=0.0, age_s=0.4, ping_ms=-1.0),
        ],
    }
    return values | changes
