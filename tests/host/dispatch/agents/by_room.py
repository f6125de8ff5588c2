"""An agent that does what its room is called, and says in the job's metadata file when its end was told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from host import JobContext, JobRequest


async def entrypoint(ctx: JobContext) -> None:
    told = asyncio.Event()

    def ending(reason: str) -> None:
        if ctx.job.metadata:
            with Path(ctx.job.metadata).open("a") as file:
                file.write(f"{ctx.job.room.name}: {reason}\n")
        told.set()

    ctx.add_shutdown_callback(ending)
    match ctx.job.room.name:
        case "raise":
            raise ValueError("the room is cursed")
        case "raise at length":
            raise ValueError("\udcff" + "x" * 2_000_000)
        case "hold":
            # The callback comes when the entrypoint has ended or its time is over.
            await asyncio.Event().wait()


async def request_fnc(request: JobRequest) -> None:
    if request.room.name == "forbidden":
        await request.reject()
    else:
        await request.accept(name="Door", identity="door")
