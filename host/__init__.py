"""Roomful: many LiveKit voice agents on one GPU that you own.

The public names are loaded when they are first used, so that a job process never imports what only
the supervisor needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from host.errors import HostError
    from host.job.agent import VoiceAgent
    from host.job.context import JobContext, JobProcess
    from host.job.pipeline import VoiceSession
    from host.job.settings import SessionSettings
    from host.worker import Worker, WorkerOptions

__all__ = [
    "HostError",
    "JobContext",
    "JobProcess",
    "SessionSettings",
    "VoiceAgent",
    "VoiceSession",
    "Worker",
    "WorkerOptions",
]

_HOMES = {
    "HostError": "host.errors",
    "JobContext": "host.job.context",
    "JobProcess": "host.job.context",
    "SessionSettings": "host.job.settings",
    "VoiceAgent": "host.job.agent",
    "VoiceSession": "host.job.pipeline",
    "Worker": "host.worker",
    "WorkerOptions": "host.worker",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
