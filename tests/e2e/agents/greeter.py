"""Says whom a job is for: publishers and participants each have one."""

from __future__ import annotations

import logging

from host import JobContext

logger = logging.getLogger("greeter")


async def entrypoint(ctx: JobContext) -> None:
    logger.info("called for %s", ctx.job.participant.identity)
    await ctx.connect()
    identity = await ctx.wait_for_participant()
    logger.info("met %s", identity)
    await ctx.room.wait_closed()
