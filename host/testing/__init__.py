"""Agents are tested like other code: turn by turn, from your own pytest. See docs/testing.md.

    async with host.testing.session(Receptionist(), engines="models") as session:
        result = await session.run(user_input="When is breakfast?")
        result.expect.next_event().is_message(role="assistant", contains="seven")

The names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from host.testing.caller import silence, tone
    from host.testing.rehearsal import Rehearsal, session
    from host.testing.resident import Engines, close_shared, engines, shared
    from host.testing.result import RunResult
    from host.testing.scripted import Call, ScriptedModel, ScriptEndedError, mock_tools

__all__ = [
    "Call",
    "Engines",
    "Rehearsal",
    "RunResult",
    "ScriptEndedError",
    "ScriptedModel",
    "close_shared",
    "engines",
    "mock_tools",
    "session",
    "shared",
    "silence",
    "tone",
]

_HOMES = {
    "Call": "scripted",
    "Engines": "resident",
    "Rehearsal": "rehearsal",
    "RunResult": "result",
    "ScriptEndedError": "scripted",
    "ScriptedModel": "scripted",
    "close_shared": "resident",
    "engines": "resident",
    "mock_tools": "scripted",
    "session": "rehearsal",
    "shared": "resident",
    "silence": "caller",
    "tone": "caller",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"host.testing.{_HOMES[name]}"), name)
