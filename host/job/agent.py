"""What an agent is."""

from __future__ import annotations

from dataclasses import dataclass

from host.job.settings import SessionSettings


@dataclass(frozen=True, slots=True)
class VoiceAgent:
    """How the agent behaves: ``instructions`` for the model, ``greeting`` that it opens with ("" waits for the caller).

    ``settings``: how the conversation is held; None takes the host's own.
    """

    instructions: str
    greeting: str = ""
    settings: SessionSettings | None = None
