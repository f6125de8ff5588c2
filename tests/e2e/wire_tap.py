"""Sits between a host and a real livekit-server, passes everything on, and takes the times of what the host answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import WSMsgType, web
from livekit.protocol import agent
from livekit_server import LiveKitServer

PING_INTERVAL_S = 0.1


@dataclass
class WireTap:
    """``offers``: seconds from an availability request to its answer, in order. ``pongs``: of a websocket's ping.

    ``starts``: seconds from an assignment to the job's own word that it runs.
    """

    url: str = ""
    offers: list[float] = field(default_factory=list)
    pongs: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    _offered_at: dict[str, float] = field(default_factory=dict)
    _assigned_at: dict[str, float] = field(default_factory=dict)

    async def handle(self, request: web.Request, server: str) -> web.StreamResponse:
        host = web.WebSocketResponse(autoping=False)
        await host.prepare(request)
        headers = {"Authorization": request.headers["Authorization"]}
        url = f"{server}/agent?{request.query_string}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=headers) as livekit:
            tasks = [
                asyncio.create_task(self._from_host(host, livekit)),
                asyncio.create_task(self._from_livekit(livekit, host)),
                asyncio.create_task(self._ping(host)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            with contextlib.suppress(ConnectionError):
                await host.close()
            await asyncio.wait(tasks)
        return host

    async def _from_livekit(self, livekit: aiohttp.ClientWebSocketResponse, host: web.WebSocketResponse) -> None:
        async for frame in livekit:
            message = agent.ServerMessage.FromString(frame.data)
            match message.WhichOneof("message"):
                case "availability":
                    self._offered_at[message.availability.job.id] = time.monotonic()
                case "assignment":
                    self._assigned_at[message.assignment.job.id] = time.monotonic()
            await host.send_bytes(frame.data)

    async def _from_host(self, host: web.WebSocketResponse, livekit: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in host:
            if frame.type == WSMsgType.PING:
                await host.pong(frame.data)
            elif frame.type == WSMsgType.PONG:
                self.pongs.append(time.monotonic() - float(bytes(frame.data)))
            else:
                self._note(agent.WorkerMessage.FromString(frame.data))
                await livekit.send_bytes(frame.data)

    def _note(self, message: agent.WorkerMessage) -> None:
        now = time.monotonic()
        match message.WhichOneof("message"):
            case "availability":
                self.offers.append(now - self._offered_at.pop(message.availability.job_id))
            case "update_job" if message.update_job.status == agent.JobStatus.JS_RUNNING:
                self.starts.append(now - self._assigned_at.pop(message.update_job.job_id))

    async def _ping(self, host: web.WebSocketResponse) -> None:
        while True:
            await host.ping(repr(time.monotonic()).encode())
            await asyncio.sleep(PING_INTERVAL_S)


@asynccontextmanager
async def wire_tap(livekit: LiveKitServer) -> AsyncIterator[WireTap]:
    tap = WireTap()

    async def handle(request: web.Request) -> web.StreamResponse:
        return await tap.handle(request, livekit.url)

    app = web.Application()
    app.router.add_get("/agent", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    tap.url = f"ws://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield tap
    finally:
        await runner.cleanup()
