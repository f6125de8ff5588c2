"""The LiveKit server as a worker sees it: registration, jobs offered and assigned, statuses, one websocket.

https://github.com/livekit/protocol ``protobufs/livekit_agent.proto`` is the protocol::

    host                                        LiveKit server
     | -- GET /agent, upgrade, JWT (agent) ----------> |
     | -- RegisterWorkerRequest ---------------------> |
     | <---------------------- RegisterWorkerResponse  |
     | -- UpdateWorkerStatus (every 2.5 s, on change)> |
     | <----------------- AvailabilityRequest(job)     |   a place is reserved
     | -- AvailabilityResponse ----------------------> |
     | <------------ JobAssignment(job, token)         |   within 7.5 s, or the place is free again
     | -- UpdateJobStatus(running, success | failed)-> |
     | <----------------- JobTermination(job_id)       |

The websocket may break and come back while rooms go on: nothing here ends a job but the server's own
termination.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from google.protobuf.message import DecodeError
from livekit.api import AccessToken, VideoGrants
from livekit.protocol import agent, models

from host.capacity import Status
from host.errors import AuthenticationError, ConfigError, ConnectionFailedError, HostError

logger = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
ASSIGNMENT_TIMEOUT_S = 7.5
STATUS_INTERVAL_S = 2.5
HEARTBEAT_S = 30.0
_CONNECT_TIMEOUT_S = 10.0
FENCE_TIMEOUT_S = 2.0
_TOKEN_TTL = timedelta(hours=1)
_AGENT_NAME_ATTRIBUTE = "lk.agent.name"

JobStatus = Literal["running", "success", "failed"]

_JOB_STATUS = {
    "running": agent.JobStatus.JS_RUNNING,
    "success": agent.JobStatus.JS_SUCCESS,
    "failed": agent.JobStatus.JS_FAILED,
}


@dataclass(frozen=True, slots=True)
class Permissions:
    """What the server lets the agent do in its rooms."""

    can_publish: bool = True
    can_subscribe: bool = True
    can_publish_data: bool = True
    can_update_metadata: bool = True
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class DispatchOptions:
    """``max_retry``: how many times a connection that failed is tried again before giving up."""

    ws_url: str
    api_key: str
    api_secret: str
    agent_name: str = ""
    version: str = ""
    max_retry: int = 16
    permissions: Permissions = field(default_factory=Permissions)


class JobHandler(Protocol):
    """Who owns the rooms. Every method is called from the event loop and returns at once."""

    def offered(self, job: agent.Job) -> str:
        """Reserve a place for the job. Returns "" or the reason why there is none."""

    def withdrawn(self, job_id: str) -> None:
        """A job that a place was reserved for is not coming."""

    def assigned(self, job: agent.Job, url: str, token: str) -> None:
        """Join the job's room at ``url`` with ``token``."""

    def terminated(self, job_id: str) -> None:
        """The server wants the job to end."""

    def job_ids(self) -> Sequence[str]:
        """The jobs that run now."""

    def status(self) -> Status:
        """What to tell the server about this host."""


def agent_endpoint(url: str) -> str:
    """The websocket address of the agent protocol at a LiveKit server. Raises ``ConfigError``."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigError(f"LiveKit URL {url!r}: expected ws://HOST[:PORT] or wss://HOST[:PORT]")
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/agent", "", ""))


def retry_delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0, 2, 4, 6, 8, 10, 10, ..."""
    return min(2.0 * (failures - 1), 10.0)


def agent_identity(job_id: str) -> str:
    """The identity that the agent joins the job's room with."""
    return f"agent-{job_id}"


class Dispatch:
    """One registration after the other with a LiveKit server, for as long as ``run`` runs."""

    def __init__(self, options: DispatchOptions, handler: JobHandler) -> None:
        self._options = options
        self._endpoint = agent_endpoint(options.ws_url)
        self._handler = handler
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._failures = 0
        self._was_registered = False
        self._worker_id = ""
        self._told: Status | None = None
        self._promised: dict[str, asyncio.TimerHandle] = {}
        self._unsent: dict[str, agent.UpdateJobStatus] = {}
        self._fences: dict[int, asyncio.Future[None]] = {}
        self._fence_numbers = itertools.count(1)
        self._status_changed = asyncio.Event()

    @property
    def worker_id(self) -> str:
        """The server's name for the present registration, "" while there is none."""
        return self._worker_id if self._ws is not None else ""

    @property
    def told(self) -> Status | None:
        """The status that the server was told last; None while there is no registration."""
        return self._told if self._ws is not None else None

    @property
    def unreachable(self) -> bool:
        """No registration has succeeded yet and at least one attempt has failed."""
        return self._failures > 0 and not self._was_registered

    def status_changed(self) -> None:
        """Tell the server the host's status now instead of at the next interval."""
        self._status_changed.set()

    # --- connection -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Register and serve, again and again, until cancelled.

        Raises ``AuthenticationError`` when the server refuses the key (at once if it never took it),
        ``ConnectionFailedError`` when ``max_retry`` attempts in a row have failed, ``ConfigError``
        for a URL that is none.
        """
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    await self._register_and_serve(session)
                except HostError as exc:
                    await self._failed(exc)
                else:
                    # Not all hosts of a server that restarts at the same moment.
                    await asyncio.sleep(random.uniform(0.0, 1.0))

    async def _failed(self, exc: HostError) -> None:
        self._failures += 1
        refused = isinstance(exc, AuthenticationError) and not self._was_registered
        if refused or self._failures > self._options.max_retry:
            raise exc
        delay = retry_delay(self._failures)
        logger.warning("%s; attempt %d of %d, next in %.0f s", exc, self._failures, self._options.max_retry + 1, delay)
        await asyncio.sleep(delay)

    async def _register_and_serve(self, session: aiohttp.ClientSession) -> None:
        """Returns when a connection that was registered has ended. Raises ``HostError`` when it never was."""
        url = self._options.ws_url
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                ws = await session.ws_connect(
                    self._endpoint,
                    headers={"Authorization": f"Bearer {self._token()}"},
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=0,
                )
        except TimeoutError as exc:
            raise ConnectionFailedError(f"no answer from LiveKit at {url} in {_CONNECT_TIMEOUT_S:.0f} s") from exc
        except aiohttp.WSServerHandshakeError as exc:
            if exc.status in (401, 403):
                raise AuthenticationError(
                    f"LiveKit at {url} refused API key {self._options.api_key!r} (HTTP {exc.status}): "
                    "the key or its secret is wrong"
                ) from exc
            raise ConnectionFailedError(
                f"the server at {url} does not speak LiveKit's agent protocol (HTTP {exc.status})"
            ) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise ConnectionFailedError(f"cannot connect to LiveKit at {url}: {exc}") from exc
        async with ws:
            try:
                await self._register(ws)
                self._ws, self._told = ws, None
                await self._serve(ws)
            finally:
                self._ws = None
                self._forget_promises()
        logger.warning("the connection to LiveKit at %s ended (code %s); connecting again", url, ws.close_code)

    def _token(self) -> str:
        token = AccessToken(self._options.api_key, self._options.api_secret)
        return token.with_grants(VideoGrants(agent=True)).with_ttl(_TOKEN_TTL).to_jwt()

    async def _register(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        permissions = self._options.permissions
        request = agent.RegisterWorkerRequest(
            type=agent.JobType.JT_ROOM,
            agent_name=self._options.agent_name,
            version=self._options.version,
            allowed_permissions=models.ParticipantPermission(
                can_publish=permissions.can_publish,
                can_subscribe=permissions.can_subscribe,
                can_publish_data=permissions.can_publish_data,
                can_update_metadata=permissions.can_update_metadata,
                hidden=permissions.hidden,
                agent=True,
            ),
        )
        await self._send(ws, agent.WorkerMessage(register=request))
        url = self._options.ws_url
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                answer = await self._receive(ws)
        except TimeoutError as exc:
            raise ConnectionFailedError(f"LiveKit at {url} did not answer the registration") from exc
        if answer is None or not answer.HasField("register"):
            what = "closed the connection" if answer is None else f"answered {answer.WhichOneof('message')}"
            raise ConnectionFailedError(f"LiveKit at {url} refused the registration: {what}")
        self._failures = 0
        self._was_registered = True
        self._worker_id = answer.register.worker_id
        info = answer.register.server_info
        logger.info(
            "registered with LiveKit %s at %s",
            info.version,
            url,
            extra={"worker_id": self._worker_id, "agent_name": self._options.agent_name},
        )
        # The new registration knows nothing of what was assigned under the old one.
        if job_ids := self._handler.job_ids():
            await self._send(ws, agent.WorkerMessage(migrate_job=agent.MigrateJobRequest(job_ids=job_ids)))
        for update in list(self._unsent.values()):
            await self._send(ws, agent.WorkerMessage(update_job=update))
        self._unsent.clear()

    # --- serving ----------------------------------------------------------------------------------

    async def _serve(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        status = asyncio.create_task(self._keep_status(ws), name="worker-status")
        try:
            while (message := await self._receive(ws)) is not None:
                await self._handle(ws, message)
        finally:
            status.cancel()
            await asyncio.wait([status])

    async def _handle(self, ws: aiohttp.ClientWebSocketResponse, message: agent.ServerMessage) -> None:
        match message.WhichOneof("message"):
            case "availability":
                await self._answer(ws, message.availability.job)
            case "assignment":
                self._take(message.assignment)
            case "termination":
                self._handler.terminated(message.termination.job_id)
            case "pong":
                if (fence := self._fences.get(message.pong.last_timestamp)) and not fence.done():
                    fence.set_result(None)
            case other:
                logger.debug("ignored a server message: %s", other)

    async def _answer(self, ws: aiohttp.ClientWebSocketResponse, job: agent.Job) -> None:
        refusal = self._handler.offered(job)
        fields = {"job_id": job.id, "room": job.room.name}
        if refusal:
            logger.info("job refused: %s", refusal, extra=fields)
            answer = agent.AvailabilityResponse(job_id=job.id, available=False)
        else:
            logger.info("job accepted", extra=fields)
            self._promise(job.id)
            answer = agent.AvailabilityResponse(
                job_id=job.id,
                available=True,
                participant_identity=agent_identity(job.id),
                participant_attributes={_AGENT_NAME_ATTRIBUTE: self._options.agent_name},
            )
        await self._send(ws, agent.WorkerMessage(availability=answer))
        self.status_changed()

    def _promise(self, job_id: str) -> None:
        def expire() -> None:
            self._promised.pop(job_id, None)
            logger.warning("no assignment came in %.1f s", ASSIGNMENT_TIMEOUT_S, extra={"job_id": job_id})
            self._handler.withdrawn(job_id)

        if job_id not in self._promised:
            self._promised[job_id] = asyncio.get_running_loop().call_later(ASSIGNMENT_TIMEOUT_S, expire)

    def _take(self, assignment: agent.JobAssignment) -> None:
        job = assignment.job
        if timer := self._promised.pop(job.id, None):
            timer.cancel()
        elif refusal := self._handler.offered(job):
            # It came after its time, and its place is gone.
            logger.warning("a late assignment cannot be taken: %s", refusal, extra={"job_id": job.id})
            self._unsent[job.id] = _update(job.id, "failed", f"assigned too late: {refusal}")
            self.status_changed()
            return
        url = assignment.url if assignment.HasField("url") else ""
        self._handler.assigned(job, url or self._options.ws_url, assignment.token)

    def _forget_promises(self) -> None:
        """The server that we promised to is gone, and with it what it would have assigned."""
        promised, self._promised = self._promised, {}
        for job_id, timer in promised.items():
            timer.cancel()
            self._handler.withdrawn(job_id)

    async def _keep_status(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while not ws.closed:
            self._status_changed.clear()
            status = self._handler.status()
            update = agent.UpdateWorkerStatus(
                status=agent.WorkerStatus.WS_FULL if status.full else agent.WorkerStatus.WS_AVAILABLE,
                load=status.load,
                job_count=status.job_count,
            )
            if await self._send(ws, agent.WorkerMessage(update_worker=update)):
                self._told = status
            for job_update in list(self._unsent.values()):
                if await self._send(ws, agent.WorkerMessage(update_job=job_update)):
                    self._unsent.pop(job_update.job_id, None)
            try:
                async with asyncio.timeout(STATUS_INTERVAL_S):
                    await self._status_changed.wait()
            except TimeoutError:
                continue

    # --- jobs' statuses ---------------------------------------------------------------------------

    async def report_job(self, job_id: str, status: JobStatus, error: str = "") -> None:
        """Tell the server how a job does.

        A final status is sent behind a fence: this returns when the server has taken it, so that the
        agent may then leave its room without being recorded as lost. While there is no connection it
        is kept for the next registration.
        """
        update = _update(job_id, status, error)
        ws = self._ws
        delivered = ws is not None and await self._send(ws, agent.WorkerMessage(update_job=update))
        if ws is not None and delivered and status != "running":
            delivered = await self._fence(ws)
        if delivered:
            self._unsent.pop(job_id, None)
        else:
            self._unsent[job_id] = update

    async def _fence(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        """Wait until the server has handled all that was sent: it answers a ping in order."""
        number = next(self._fence_numbers)
        self._fences[number] = passed = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(FENCE_TIMEOUT_S):
                if not await self._send(ws, agent.WorkerMessage(ping=agent.WorkerPing(timestamp=number))):
                    return False
                await passed
        except TimeoutError:
            logger.warning("LiveKit did not confirm a job's status in %.0f s", FENCE_TIMEOUT_S)
            return False
        finally:
            del self._fences[number]
        return True

    # --- frames -----------------------------------------------------------------------------------

    async def _send(self, ws: aiohttp.ClientWebSocketResponse, message: agent.WorkerMessage) -> bool:
        """Whether the message was handed to the connection. A connection that is gone ends its reader itself."""
        try:
            await ws.send_bytes(message.SerializeToString())
        except ConnectionError as exc:
            logger.debug("cannot send %s: %s", message.WhichOneof("message"), exc)
            return False
        return True

    async def _receive(self, ws: aiohttp.ClientWebSocketResponse) -> agent.ServerMessage | None:
        """The next message; None when the connection has ended."""
        while True:
            frame = await ws.receive()
            if frame.type == aiohttp.WSMsgType.BINARY:
                message = agent.ServerMessage()
                try:
                    message.ParseFromString(frame.data)
                except DecodeError as exc:
                    raise ConnectionFailedError(f"LiveKit at {self._options.ws_url} sent garbage: {exc}") from exc
                return message
            if frame.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
                return None
            if frame.type == aiohttp.WSMsgType.ERROR:
                logger.warning("the connection to LiveKit failed: %s", frame.data)
                return None
            logger.debug("ignored a %s frame", frame.type.name)


def _update(job_id: str, status: JobStatus, error: str) -> agent.UpdateJobStatus:
    return agent.UpdateJobStatus(job_id=job_id, status=_JOB_STATUS[status], error=error)
