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
    from host.job.agent import ModelSettings, Voice, VoiceAgent
    from host.job.chat_context import AgentHandoff, ChatContext, ChatMessage
    from host.job.context import JobContext, JobProcess
    from host.job.events import (
        AgentFalseInterruptionEvent,
        AgentStateChangedEvent,
        CloseEvent,
        ConversationItemAddedEvent,
        ErrorEvent,
        FunctionToolsExecutedEvent,
        MetricsCollectedEvent,
        SpeechCreatedEvent,
        UserInputTranscribedEvent,
        UserStateChangedEvent,
    )
    from host.job.session import VoiceSession
    from host.job.settings import SessionSettings
    from host.job.speech_handle import SpeechHandle
    from host.job.tool_text import FunctionCall, FunctionCallOutput
    from host.job.tools import FunctionTool, RunContext, StopResponse, ToolError, function_tool
    from host.job.transcripts import UserTranscript
    from host.options import JobExecutorType, WorkerOptions, WorkerPermissions, WorkerType
    from host.program import run_worker
    from host.request import AssignmentTimeoutError, JobAcceptArguments, JobRequest, NoCapacityError
    from host.worker import Worker

__all__ = [
    "AgentFalseInterruptionEvent",
    "AgentHandoff",
    "AgentStateChangedEvent",
    "AssignmentTimeoutError",
    "ChatContext",
    "ChatMessage",
    "CloseEvent",
    "ConversationItemAddedEvent",
    "ErrorEvent",
    "FunctionCall",
    "FunctionCallOutput",
    "FunctionTool",
    "FunctionToolsExecutedEvent",
    "HostError",
    "JobAcceptArguments",
    "JobContext",
    "JobExecutorType",
    "JobProcess",
    "JobRequest",
    "LoadParts",
    "MetricsCollectedEvent",
    "ModelSettings",
    "NoCapacityError",
    "RunContext",
    "SessionSettings",
    "SpeechCreatedEvent",
    "SpeechHandle",
    "StopResponse",
    "ToolError",
    "UserInputTranscribedEvent",
    "UserStateChangedEvent",
    "UserTranscript",
    "Voice",
    "VoiceAgent",
    "VoiceSession",
    "Worker",
    "WorkerOptions",
    "WorkerPermissions",
    "WorkerType",
    "function_tool",
    "run_worker",
]

_HOMES = {
    "AgentFalseInterruptionEvent": "host.job.events",
    "AgentHandoff": "host.job.chat_context",
    "AgentStateChangedEvent": "host.job.events",
    "AssignmentTimeoutError": "host.request",
    "ChatContext": "host.job.chat_context",
    "ChatMessage": "host.job.chat_context",
    "CloseEvent": "host.job.events",
    "ConversationItemAddedEvent": "host.job.events",
    "ErrorEvent": "host.job.events",
    "FunctionCall": "host.job.tool_text",
    "FunctionCallOutput": "host.job.tool_text",
    "FunctionTool": "host.job.tools",
    "FunctionToolsExecutedEvent": "host.job.events",
    "HostError": "host.errors",
    "JobAcceptArguments": "host.request",
    "JobContext": "host.job.context",
    "JobExecutorType": "host.options",
    "JobProcess": "host.job.context",
    "JobRequest": "host.request",
    "LoadParts": "host.capacity",
    "MetricsCollectedEvent": "host.job.events",
    "ModelSettings": "host.job.agent",
    "NoCapacityError": "host.request",
    "RunContext": "host.job.tools",
    "SessionSettings": "host.job.settings",
    "SpeechCreatedEvent": "host.job.events",
    "SpeechHandle": "host.job.speech_handle",
    "StopResponse": "host.job.tools",
    "ToolError": "host.job.tools",
    "UserInputTranscribedEvent": "host.job.events",
    "UserStateChangedEvent": "host.job.events",
    "UserTranscript": "host.job.transcripts",
    "Voice": "host.job.agent",
    "VoiceAgent": "host.job.agent",
    "VoiceSession": "host.job.session",
    "Worker": "host.worker",
    "WorkerOptions": "host.options",
    "WorkerPermissions": "host.options",
    "WorkerType": "host.options",
    "function_tool": "host.job.tools",
    "run_worker": "host.program",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
