"""Roomful: many LiveKit voice agents on one GPU that you own.

The public names are loaded when they are first used, so that a job process never imports what only
the supervisor needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from host.capacity import LoadParts
    from host.errors import HostError
    from host.job.agent import VoiceAgent
    from host.job.context import JobContext, JobProcess
    from host.job.session import VoiceSession
    from host.job.settings import SessionSettings
    from host.job.transcripts import UserTranscript
    from host.options import JobExecutorType, WorkerOptions, WorkerPermissions, WorkerType
    from host.program import run_worker
    from host.request import AssignmentTimeoutError, JobAcceptArguments, JobRequest, NoCapacityError
    from host.worker import Worker

__all__ = [
    "AssignmentTimeoutError",
    "HostError",
    "JobAcceptArguments",
    "JobContext",
    "JobExecutorType",
    "JobProcess",
    "JobRequest",
    "LoadParts",
    "NoCapacityError",
    "SessionSettings",
    "UserTranscript",
    "VoiceAgent",
    "VoiceSession",
    "Worker",
    "WorkerOptions",
    "WorkerPermissions",
    "WorkerType",
    "run_worker",
]

_HOMES = {
    "AssignmentTimeoutError": "host.request",
    "HostError": "host.errors",
    "JobAcceptArguments": "host.request",
    "JobContext": "host.job.context",
    "JobExecutorType": "host.options",
    "JobProcess": "host.job.context",
    "JobRequest": "host.request",
    "LoadParts": "host.capacity",
    "NoCapacityError": "host.request",
    "SessionSettings": "host.job.settings",
    "UserTranscript": "host.job.transcripts",
    "VoiceAgent": "host.job.agent",
    "VoiceSession": "host.job.session",
    "Worker": "host.worker",
    "WorkerOptions": "host.options",
    "WorkerPermissions": "host.options",
    "WorkerType": "host.options",
    "run_worker": "host.program",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
