"""Its request function blocks the supervisor's event loop, as a user's might, for rooms whose name begins so."""

from __future__ import annotations

import time

from orders import entrypoint

from host import JobRequest

__all__ = ["entrypoint"]

BLOCK_S = 6.0


async def request_fnc(request: JobRequest) -> None:
    if request.room.name.startswith("block"):
        time.sleep(BLOCK_S)  # noqa: ASYNC251 - that is the fault
    await request.accept()
