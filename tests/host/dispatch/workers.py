"""Workers that run for the length of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fake_livekit import KEY, SECRET, FakeLiveKit, Session

from host.config import Config, InferenceConfig
from host.options import WorkerOptions
from host.worker import Worker

AGENT = Path(__file__).parent / "agents" / "by_room.py"
ENTRYPOINT = f"{AGENT}:entrypoint"
DEADLINE_S = 30.0


def config(**inference: Any) -> Config:
    return Config(inference=InferenceConfig(engines="fake", **inference))


def options(server: FakeLiveKit | None, **given: Any) -> WorkerOptions:
    values: dict[str, Any] = {
        "entrypoint_fnc": ENTRYPOINT,
        "num_idle_processes": 0,
        # What else this machine does must not decide a test.
        "load_threshold": float("inf"),
        "host": "127.0.0.1",
        "port": 0,
    }
    if server is not None:
        values |= {"ws_url": server.url, "api_key": KEY, "api_secret": SECRET}
    return WorkerOptions(**(values | given))


async def until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Wait for what only asking again can tell."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(worker: Worker, **how: Any) -> AsyncIterator[asyncio.Task[None]]:
    """``worker.run()`` as a task; whatever it ends with is raised at the end."""
    task = asyncio.create_task(worker.run(**how))
    try:
        yield task
    finally:
        await worker.aclose()
        await asyncio.wait([task])
    await task


@asynccontextmanager
async def registered(
    server: FakeLiveKit, configuration: Config | None = None, **given: Any
) -> AsyncIterator[tuple[Worker, Session]]:
    """A worker that the server knows."""
    worker = Worker(options(server, **given), configuration or config())
    number = len(server.sessions) + 1
    async with running(worker) as task:
        session = asyncio.create_task(server.session(number, DEADLINE_S))
        await asyncio.wait([session, task], return_when=asyncio.FIRST_COMPLETED)
        if not session.done():
            session.cancel()
            await task
        yield worker, session.result()
