"""The agent that is there when the user brings none."""

from __future__ import annotations

from host.job.agent import VoiceAgent
from host.job.context import JobContext

INSTRUCTIONS = (
    "You are a friendly voice assistant in a phone call. Answer in one or two short, plain sentences "
    "that sound natural when they are spoken. Never use lists, markup or emoji."
)
"""Of the built-in agent."""


async def entrypoint(ctx: JobContext) -> None:
    """Hold a conversation until the caller leaves: the built-in agent."""
    await ctx.connect()
    session = await ctx.start_session(VoiceAgent(instructions=INSTRUCTIONS))
    await session.wait_closed()
