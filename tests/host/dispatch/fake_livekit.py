"""The server's end of the agent protocol, as far as the tests of reconnecting and timing need it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import jwt
from aiohttp import WSMsgType, web
from livekit.protocol import agent, models

KEY, SECRET = "key", "a-secret-of-at-least-thirty-two-characters"


def _job(job_id: str, room: str, participant: str, metadata: str) -> agent.Job:
    job = agent.Job(id=job_id, type=agent.JobType.JT_ROOM, room=models.Room(name=room), metadata=metadata)
    if participant:
        job.type = agent.JobType.JT_PUBLISHER
        job.participant.identity = participant
    return job


@dataclass
class Session:
    """One websocket. ``received``: what the worker said, in order."""

    ws: web.WebSocketResponse
    received: list[agent.WorkerMessage] = field(default_factory=list)

    async def send(self, message: agent.ServerMessage) -> None:
        await self.ws.send_bytes(message.SerializeToString())

    async def offer(self, job_id: str, room: str = "room", *, participant: str = "", metadata: str = "") -> None:
        request = agent.AvailabilityRequest(job=_job(job_id, room, participant, metadata))
        await self.send(agent.ServerMessage(availability=request))

    async def assign(self, job_id: str, room: str = "room", *, participant: str = "", metadata: str = "") -> None:
        job = _job(job_id, room, participant, metadata)
        assignment = agent.JobAssignment(job=job, token=f"token-{job_id}")
        await self.send(agent.ServerMessage(assignment=assignment))

    async def terminate(self, job_id: str) -> None:
        await self.send(agent.ServerMessage(termination=agent.JobTermination(job_id=job_id)))

    def said(self, kind: str) -> list[agent.WorkerMessage]:
        return [message for message in self.received if message.WhichOneof("message") == kind]


@dataclass
class FakeLiveKit:
    """``status``: answer the next upgrades with this HTTP status. ``register``: answer registrations.
    ``alive``: answer the websocket's own pings.
    """

    url: str = ""
    status: int = 101
    register: bool = True
    answer_pings: bool = True
    alive: bool = True
    attempts: list[float] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, condition: Callable[[], bool], deadline_s: float = 5.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def session(self, number: int = 1, deadline_s: float = 5.0) -> Session:
        """The ``number``-th connection that registered."""
        await self.wait(lambda: len([s for s in self.sessions if s.said("register")]) >= number, deadline_s)
        return [s for s in self.sessions if s.said("register")][number - 1]

    async def said(
        self, session: Session, kind: str, count: int = 1, *, deadline_s: float = 5.0
    ) -> agent.WorkerMessage:
        """The ``count``-th message of its kind."""
        await self.wait(lambda: len(session.said(kind)) >= count, deadline_s)
        return session.said(kind)[count - 1]

    async def full(self, session: Session, *, full: bool = True, deadline_s: float = 5.0) -> agent.UpdateWorkerStatus:
        """The worker's last word on itself, once it says that it is full (or that it is not)."""
        status = agent.WorkerStatus.WS_FULL if full else agent.WorkerStatus.WS_AVAILABLE

        def told() -> bool:
            updates = session.said("update_worker")
            return bool(updates) and updates[-1].update_worker.status == status

        await self.wait(told, deadline_s)
        return session.said("update_worker")[-1].update_worker

    async def run_job(self, session: Session, job_id: str, room: str = "hold", *, metadata: str = "") -> None:
        """Offer and assign a job that the worker takes."""
        offers = len(session.said("availability"))
        await session.offer(job_id, room, metadata=metadata)
        answer = (await self.said(session, "availability", offers + 1)).availability
        assert (answer.job_id, answer.available) == (job_id, True)
        await session.assign(job_id, room, metadata=metadata)

    async def job_status(
        self, session: Session, job_id: str, status: agent.JobStatus, deadline_s: float = 20.0
    ) -> agent.UpdateJobStatus:
        """What the worker says of a job, once it says that it has that status."""

        def found() -> list[agent.UpdateJobStatus]:
            updates = [message.update_job for message in session.said("update_job")]
            return [update for update in updates if (update.job_id, update.status) == (job_id, status)]

        await self.wait(lambda: bool(found()), deadline_s)
        return found()[0]

    async def _agent(self, request: web.Request) -> web.StreamResponse:
        self.attempts.append(asyncio.get_running_loop().time())
        self.changed.set()
        if self.status != 101:
            return web.Response(status=self.status)
        claims = jwt.decode(request.headers["Authorization"].removeprefix("Bearer "), SECRET, algorithms=["HS256"])
        assert claims["iss"] == KEY
        assert claims["video"]["agent"] is True
        ws = web.WebSocketResponse(autoping=self.alive)
        await ws.prepare(request)
        session = Session(ws)
        self.sessions.append(session)
        async for frame in ws:
            if frame.type == WSMsgType.PING:
                continue
            assert frame.type == WSMsgType.BINARY
            message = agent.WorkerMessage()
            message.ParseFromString(frame.data)
            session.received.append(message)
            kind = message.WhichOneof("message")
            if kind == "register" and not self.register:
                await ws.close()
            elif kind == "register":
                info = models.ServerInfo(version="1.13.5")
                answer = agent.RegisterWorkerResponse(worker_id=f"AW_{len(self.sessions)}", server_info=info)
                await session.send(agent.ServerMessage(register=answer))
            elif kind == "ping" and self.answer_pings:
                pong = agent.WorkerPong(last_timestamp=message.ping.timestamp, timestamp=1)
                await session.send(agent.ServerMessage(pong=pong))
            self.changed.set()
        self.changed.set()
        return ws


@asynccontextmanager
async def fake_livekit() -> AsyncIterator[FakeLiveKit]:
    server = FakeLiveKit()
    app = web.Application()
    app.router.add_get("/agent", server._agent)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"ws://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        for session in server.sessions:
            await session.ws.close()
        await runner.cleanup()
