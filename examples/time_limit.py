"""A call that ends after three minutes, politely, and a line in the log about every call.

Shows what else an agent file may do: prepare something before a caller waits (``prewarm``), speak
on its own (``session.say``), read the history, end the job, and be told when it has ended.
"""

import asyncio
import logging
import time

from host import JobContext, JobProcess, SessionSettings, VoiceAgent

LIMIT_S = 180.0

logger = logging.getLogger("time_limit")


def prewarm(process: JobProcess) -> None:
    """Run once in every job process, before it is given a caller."""
    process.userdata["instructions"] = "You are a friendly tutor of English. Answer in one or two short sentences."


async def entrypoint(ctx: JobContext) -> None:
    """One call; whoever still talks after the limit is told goodbye."""
    await ctx.connect()
    # A tutor gives time to think: one second of silence ends the caller's turn.
    settings = SessionSettings(min_endpointing_delay_ms=1000)
    agent = VoiceAgent(instructions=ctx.proc.userdata["instructions"], greeting="Hello!", settings=settings)
    session = await ctx.start_session(agent)
    began = time.monotonic()

    def note(reason: str) -> None:
        seconds = time.monotonic() - began
        logger.info("%d messages in %.0f s; ended: %s", len(session.history.items), seconds, reason)

    ctx.add_shutdown_callback(note)
    try:
        async with asyncio.timeout(LIMIT_S):
            await session.wait_closed()
    except TimeoutError:
        await session.say("Our time is over. It was nice to talk to you. Goodbye!")
        ctx.shutdown("the time was over")
