"""Answers questions; in rooms whose name begins with "read" it first reads a passage aloud, to be interrupted."""

from __future__ import annotations

from host import JobContext, VoiceAgent

PASSAGE = (
    "The lighthouse stood alone on the northern shore. Every evening the keeper climbed the narrow stairs. "
    "He carried a lamp, a loaf of bread, and a letter from his sister. When the storm came in from the west, "
    "he counted the ships that passed. Some of them answered with a bell, and others were silent. "
    "In the morning the sea was calm again, and he walked down to the village to buy fresh milk."
)


async def entrypoint(ctx: JobContext) -> None:
    greeting = PASSAGE if ctx.job.room.name.startswith("read") else ""
    session = await ctx.start_session(
        VoiceAgent(instructions="You are a friendly voice assistant. Answer in one short sentence.", greeting=greeting)
    )
    await session.wait_closed()
