"""The LiveKit server as a worker sees it: registration, jobs offered and assigned, statuses, one websocket.

https://github.com/livekit/protocol ``protobufs/livekit_agent.proto`` is the protocol::

    host                                        LiveKit server
     | -- GET /agent, upgrade, JWT (agent) ----------> |
     | -- RegisterWorkerRequest ---------------------> |
     | <---------------------- RegisterWorkerResponse  |
     | -- MigrateJobRequest(jobs that run) ----------> |
     | -- UpdateWorkerStatus (every 2.5 s, on change)> |
     | <----------------- AvailabilityRequest(job)     |   ``host/offers.py``
     | -- AvailabilityResponse ----------------------> |
     | <------------ JobAssignment(job, token)         |
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
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from google.protobuf.message import DecodeError
from livekit.protocol import agent, models

from host.capacity import Status
from host.errors import AuthenticationError, ConfigError, ConnectionFailedError, HostError
from host.offers import JobHandler, Offers, accept_all
from host.options import RequestFnc, WorkerPermissions, WorkerType
from host.tokens import registration_token

logger = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
STATUS_INTERVAL_S = 2.5
HEARTBEAT_S = 30.0
_CONNECT_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 2.0
FENCE_TIMEOUT_S = 2.0
REPEAT_STATUS_S = 1.0
"""When a final status is told a second time. The server writes an assignment before it takes note of it, and drops
what it hears of the job in between (livekit ``pkg/agent/worker.go`` ``AssignJob``): a job that ends in
milliseconds would run on in its books. It ignores the second one of a job that it has ended.
"""

JobStatus = Literal["running", "success", "failed"]

_JOB_STATUS = {
    "running": agent.JobStatus.JS_RUNNING,
    "success": agent.JobStatus.JS_SUCCESS,
    "failed": agent.JobStatus.JS_FAILED,
}


JOB_TYPES = {
    WorkerType.ROOM: agent.JobType.JT_ROOM,
    WorkerType.PUBLISHER: agent.JobType.JT_PUBLISHER,
    WorkerType.PARTICIPANT: agent.JobType.JT_PARTICIPANT,
}


@dataclass(frozen=True, slots=True)
class DispatchOptions:
    """``max_retry``: how many times a connection that failed is tried again before giving up."""

    ws_url: str
    api_key: str
    api_secret: str
    agent_name: str = ""
    worker_type: WorkerType = WorkerType.ROOM
    version: str = ""
    max_retry: int = 16
    permissions: WorkerPermissions = field(default_factory=WorkerPermissions)
    request_fnc: RequestFnc = accept_all


def agent_endpoint(url: str) -> str:
    """The websocket address of the agent protocol at a LiveKit server. Raises ``ConfigError``."""
    expected = f"LiveKit URL {url!r}: expected ws://HOST[:PORT] or wss://HOST[:PORT]"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (it is checked when it is asked for)
    except ValueError as exc:
        raise ConfigError(f"{expected}: {exc}") from exc
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigError(expected)
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/agent", "", ""))


def retry_delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0, 2, 4, 6, 8, 10, 10, ..."""
    return min(2.0 * (failures - 1), 10.0)


class Dispatch:
    """One registration after the other with a LiveKit server, for as long as ``run`` runs."""

    def __init__(self, options: DispatchOptions, handler: JobHandler) -> None:
        self._options = options
        self._endpoint = agent_endpoint(options.ws_url)
        self._handler = handler
        self._offers = Offers(options.agent_name, options.request_fnc, handler, self._fail_unassigned)
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._failures = 0
        self._was_registered = False
        self._worker_id = ""
        self._told: Status | None = None
        self._unsent: dict[str, agent.UpdateJobStatus] = {}
        self._fences: dict[int, asyncio.Future[bool]] = {}
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
        try:
            async with aiohttp.ClientSession() as session:
                while True:
                    try:
                        await self._register_and_serve(session)
                    except HostError as exc:
                        await self._failed(exc)
                    else:
                        # Not all hosts of a server that restarts at the same moment.
                        await asyncio.sleep(random.uniform(0.0, 1.0))
        finally:
            await self._offers.aclose()

    async def _failed(self, exc: HostError) -> None:
        self._failures += 1
        if isinstance(exc, AuthenticationError) and not self._was_registered:
            raise exc
        if self._failures > self._options.max_retry:
            attempts = "attempt" if self._failures == 1 else "attempts"
            raise type(exc)(f"{exc} ({self._failures} {attempts})") from exc
        delay = retry_delay(self._failures)
        logger.warning("%s; attempt %d of %d, next in %.0f s", exc, self._failures, self._options.max_retry + 1, delay)
        await asyncio.sleep(delay)

    async def _register_and_serve(self, session: aiohttp.ClientSession) -> None:
        """Returns when a connection that was registered has ended. Raises ``HostError`` when it never was."""
        url = self._options.ws_url
        token = registration_token(self._options.api_key, self._options.api_secret)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                ws = await session.ws_connect(
                    self._endpoint,
                    headers={"Authorization": f"Bearer {token}"},
                    heartbeat=HEARTBEAT_S,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT_S),
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
                self._offers.connection_lost()
                for number in self._fences:
                    self._pass(number, passed=False)
        logger.warning("the connection to LiveKit at %s ended (code %s); connecting again", url, ws.close_code)

    async def _register(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        permissions = self._options.permissions
        request = agent.RegisterWorkerRequest(
            type=JOB_TYPES[self._options.worker_type],
            agent_name=self._options.agent_name,
            version=self._options.version,
            allowed_permissions=models.ParticipantPermission(
                can_publish=permissions.can_publish,
                can_subscribe=permissions.can_subscribe,
                can_publish_data=permissions.can_publish_data,
                can_update_metadata=permissions.can_update_metadata,
                can_publish_sources=permissions.can_publish_sources,
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
        await self._send_unsent(ws)

    # --- serving ----------------------------------------------------------------------------------

    async def _serve(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Returns when the connection has ended."""
        reading = asyncio.create_task(self._keep_reading(ws), name="worker-read")
        telling = asyncio.create_task(self._keep_status(ws), name="worker-status")
        tasks = (reading, telling)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _keep_reading(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while (message := await self._receive(ws)) is not None:
            self._handle(ws, message)

    def _handle(self, ws: aiohttp.ClientWebSocketResponse, message: agent.ServerMessage) -> None:
        match message.WhichOneof("message"):
            case "availability":
                self._offers.offered(message.availability.job, lambda answer: self._answer(ws, answer))
            case "assignment":
                self._offers.assigned(message.assignment, self._options.ws_url, self._worker_id)
            case "termination":
                self._handler.terminated(message.termination.job_id)
            case "pong":
                self._pass(message.pong.last_timestamp, passed=True)
            case other:
                logger.debug("ignored a server message: %s", other)

    async def _answer(self, ws: aiohttp.ClientWebSocketResponse, answer: agent.AvailabilityResponse) -> None:
        await self._send(ws, agent.WorkerMessage(availability=answer))
        self.status_changed()

    def _fail_unassigned(self, job_id: str, error: str) -> None:
        self._report_soon(update := _update(job_id, "failed", error))
        self._report_again(update)

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
            await self._send_unsent(ws)
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
        if not delivered:
            self._unsent[job_id] = update
            return
        self._unsent.pop(job_id, None)
        if status != "running":
            self._report_again(update)

    def _report_soon(self, update: agent.UpdateJobStatus) -> None:
        self._unsent.setdefault(update.job_id, update)
        self.status_changed()

    def _report_again(self, final: agent.UpdateJobStatus) -> None:
        asyncio.get_running_loop().call_later(REPEAT_STATUS_S, self._report_soon, final)

    async def _send_unsent(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        for job_id, update in list(self._unsent.items()):
            sent = await self._send(ws, agent.WorkerMessage(update_job=update))
            # Meanwhile there may be a later one.
            if sent and self._unsent.get(job_id) is update:
                del self._unsent[job_id]

    async def _fence(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        """Wait until the server has handled all that was sent: it answers a ping in order. False if it did not."""
        number = next(self._fence_numbers)
        self._fences[number] = passed = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(FENCE_TIMEOUT_S):
                sent = await self._send(ws, agent.WorkerMessage(ping=agent.WorkerPing(timestamp=number)))
                return sent and await passed
        except TimeoutError:
            logger.warning("LiveKit did not confirm a job's status in %.0f s", FENCE_TIMEOUT_S)
            return False
        finally:
            del self._fences[number]

    def _pass(self, number: int, *, passed: bool) -> None:
        if (fence := self._fences.get(number)) and not fence.done():
            fence.set_result(passed)

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
