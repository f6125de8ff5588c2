"""An agent without models. Plays a tone as long as the caller is there; the job's metadata asks for other things:

"raise" to fail, "session" for a conversation (with whatever engines the host has).
"""

from __future__ import annotations

import asyncio
import math
import struct

from host import JobContext, VoiceAgent

RATE = 22_050


async def entrypoint(ctx: JobContext) -> None:
    if ctx.job.metadata == "raise":
        raise ValueError("as the metadata asked")
    if ctx.job.metadata == "session":
        session = await ctx.start_session(VoiceAgent(instructions="Be kind.", greeting="Hello there, caller."))
        await session.wait_closed()
        return
    await ctx.connect()
    await ctx.room.open_speech(RATE)
    await ctx.wait_for_participant("caller")
    await ctx.room.set_agent_state("speaking")
    tone = [int(8_000 * math.sin(2 * math.pi * 440 * n / RATE)) for n in range(RATE)]
    playing = asyncio.create_task(play(ctx, struct.pack(f"<{RATE}h", *tone)))
    await ctx.room.wait_closed()
    playing.cancel()


async def play(ctx: JobContext, pcm: bytes) -> None:
    while True:
        await ctx.room.play(pcm)
