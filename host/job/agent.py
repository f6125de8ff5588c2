"""What an agent is, and the agent that is there when the user brings none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from host.job.settings import SessionSettings

if TYPE_CHECKING:
    from host.job.context import JobContext

INSTRUCTIONS = (
    "You are a friendly voice assistant in a phone call. Answer in one or two short, plain sentences "
    "that sound natural when they are spoken. Never use lists, markup or emoji."
)
"""Of the built-in agent."""


@dataclass(frozen=True, slots=True)
class VoiceAgent:
    """How the agent behaves: ``instructions`` for the model, ``greeting`` that it opens with ("" waits for the caller).

    ``settings``: how the conversation is held; None takes the host's own.
    """

    instructions: str
    greeting: str = ""
    settings: SessionSettings | None = None


async def entrypoint(ctx: JobContext) -> None:
    """Hold a conversation until the caller leaves: the built-in agent."""
    await ctx.connect()
    session = await ctx.start_session(VoiceAgent(instructions=INSTRUCTIONS))
    await session.wait_closed()
