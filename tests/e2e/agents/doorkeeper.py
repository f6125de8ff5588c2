"""Looks at every request before it is taken: who comes in, and under which name the agent does."""

from __future__ import annotations

import asyncio
import logging

from host import JobContext, JobRequest

SLOW_S = 2.0

logger = logging.getLogger("doorkeeper")


async def request_fnc(request: JobRequest) -> None:
    if request.room.name.startswith("closed"):
        await request.reject()
        return
    if request.room.name.startswith("broken"):
        raise RuntimeError("the list of guests is lost")
    if request.room.name.startswith("slow"):
        await asyncio.sleep(SLOW_S)
    if request.room.name.startswith("silent"):
        await asyncio.Event().wait()
    await request.accept(
        name="Ada",
        identity=f"ada-in-{request.room.name}",
        metadata="at your service",
        attributes={"language": "en", "room": request.room.name},
    )


async def entrypoint(ctx: JobContext) -> None:
    await ctx.connect()
    logger.info("in as %s, %s, %s", ctx.agent.name, ctx.agent.identity, ctx.agent.metadata)
    await ctx.wait_for_participant()
    await ctx.room.wait_closed()
