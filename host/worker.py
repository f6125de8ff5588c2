"""The host as a LiveKit worker: takes jobs while there is room, gives each a process, says how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import psutil
from livekit.protocol import agent

from host.capacity import Capacity, Status
from host.dispatch import PROTOCOL_VERSION, Dispatch, DispatchOptions, Permissions, agent_identity
from host.errors import HostError
from host.health import HealthServer
from host.job.settings import SessionSettings
from host.running_job import RunningJob
from host.supervisor import Supervisor, SupervisorOptions
from inference.wire.supervision import JobUpdate, StartJob, TurnReport

logger = logging.getLogger(__name__)

_LOAD_INTERVAL_S = 0.5
_LOAD_SAMPLES = 5
"""CPU load is the mean of the last 2.5 s, as LiveKit's own workers measure it."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What ``host serve`` may be told; names and meanings as LiveKit's worker options.

    ``agent_name``: "" takes the job of every room; a name takes only jobs dispatched to it.
    ``load_threshold``: CPU load, 0 to 1, from which no further room is taken while rooms run.
    ``max_retry``: attempts to reach the server again before giving up. ``drain_timeout``: seconds that
    running rooms get to finish. ``host`` and ``port``: where the health check listens ("" is every
    address, 0 picks a port). ``max_jobs``: rooms at once, 0 for as many as the inference process has
    slots. ``session``: how conversations are held.
    """

    ws_url: str
    api_key: str
    api_secret: str
    agent_name: str = ""
    load_threshold: float = 0.7
    max_retry: int = 16
    drain_timeout: float = 1800.0
    host: str = ""
    port: int = 8081
    permissions: Permissions = field(default_factory=Permissions)
    max_jobs: int = 0
    session: SessionSettings = field(default_factory=SessionSettings)


@dataclass(slots=True)
class _Job:
    """One assigned job. ``running`` is None until it has a process; ``shutdown`` waits for that."""

    room: str
    task: asyncio.Task[None] | None = None
    running: RunningJob | None = None
    shutdown: str = ""

    def end(self, reason: str) -> None:
        self.shutdown = self.shutdown or reason
        if self.running is not None:
            self.running.shutdown(reason)


class Worker:
    """``run`` brings the host up and serves; ``drain`` or ``aclose``, from another task, end it.

    ``on_turn`` is told of every turn of every conversation.
    """

    def __init__(
        self,
        options: WorkerOptions,
        supervisor_options: SupervisorOptions,
        *,
        on_turn: Callable[[TurnReport], None] = lambda _: None,
    ) -> None:
        self._options = options
        self._on_turn = on_turn
        self._supervisor = Supervisor(supervisor_options, on_progress=lambda text: logger.info("inference: %s", text))
        self._capacity = Capacity(options.max_jobs or supervisor_options.inference.max_rooms, options.load_threshold)
        self._dispatch = Dispatch(
            DispatchOptions(
                ws_url=options.ws_url,
                api_key=options.api_key,
                api_secret=options.api_secret,
                agent_name=options.agent_name,
                version=_version(),
                max_retry=options.max_retry,
                permissions=options.permissions,
            ),
            self,
        )
        self._health = HealthServer(options.host, options.port, problem=self._problem, describe=self._describe)
        self._jobs: dict[str, _Job] = {}
        self._cpu_loads: deque[float] = deque(maxlen=_LOAD_SAMPLES)
        self._gave_up = False
        self._main: asyncio.Task[None] | None = None
        self._serving = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = asyncio.Event()
        self._stop_reason = ""

    @property
    def port(self) -> int:
        """Where the health check listens, once ``run`` has bound it."""
        return self._health.port

    # --- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Bind the health port, start the processes, register, and serve until drained or closed.

        Raises a ``HostError``: ``PortInUseError`` before anything is started, what the supervisor
        raises, ``ConnectionFailedError``, ``AuthenticationError``.
        """
        await self._health.start()
        try:
            self._main = asyncio.create_task(self._run(), name="worker")
            try:
                await self._main
            except asyncio.CancelledError:
                # Told to end while the processes were still coming up; or else somebody cancelled us.
                if not self._stopping.is_set() or not self._main.cancelled():
                    raise
        finally:
            await self._health.aclose()

    async def drain(self) -> None:
        """Take no more jobs, let the running ones finish for up to ``drain_timeout``, then end as ``aclose``."""
        self._capacity.draining = True
        self._dispatch.status_changed()
        if self._jobs:
            logger.info("draining: %d rooms go on, no new ones are taken", len(self._jobs))
        try:
            async with asyncio.timeout(self._options.drain_timeout):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d rooms have not ended in %.0f s", len(self._jobs), self._options.drain_timeout)
        await self.aclose("the host has drained")

    async def aclose(self, reason: str = "the host is stopping") -> None:
        """End now: rooms are told to finish, everything is stopped in order. Returns when ``run`` is about to."""
        self._capacity.draining = True
        self._stop_reason = self._stop_reason or reason
        self._stopping.set()
        if self._main is not None:
            if not self._serving:
                self._main.cancel()
            await asyncio.wait([self._main])

    async def _run(self) -> None:
        async with self._supervisor:
            self._serving = True
            await self._serve()

    async def _serve(self) -> None:
        watch = asyncio.create_task(self._watch(), name="worker-watch")
        dispatch = asyncio.create_task(self._dispatch.run(), name="worker-dispatch")
        failed = asyncio.create_task(self._supervisor.wait_failed(), name="worker-failed")
        stopping = asyncio.create_task(self._stopping.wait(), name="worker-stopping")
        tasks = (watch, dispatch, failed, stopping)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if dispatch.done() and self._jobs and not failed.done() and not stopping.done():
                await self._outlive_dispatch(failed, stopping)
            # While there is a connection, so that the server hears how each job ended.
            await self._end_jobs(self._stop_reason or "the host is stopping")
            if failed.done():
                raise failed.result()
            for ended in (watch, dispatch):
                if ended.done():
                    ended.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _outlive_dispatch(self, *until: asyncio.Task[Any]) -> None:
        """The server stays away for good. Callers may still be connected: let their rooms finish."""
        self._gave_up = True
        self._capacity.draining = True
        logger.error("LiveKit is not coming back; %d rooms may finish", len(self._jobs))
        idle = asyncio.create_task(self._idle.wait())
        try:
            await asyncio.wait((idle, *until), timeout=self._options.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()

    async def _end_jobs(self, reason: str) -> None:
        for job in self._jobs.values():
            job.end(reason)
        if tasks := [job.task for job in self._jobs.values() if job.task is not None]:
            await asyncio.wait(tasks)

    async def _watch(self) -> None:
        """Measure the CPU's load, and tell the server at once when the host becomes full or free."""
        psutil.cpu_percent(None)
        told = self.status().full
        while True:
            await asyncio.sleep(_LOAD_INTERVAL_S)
            self._cpu_loads.append(psutil.cpu_percent(None) / 100)
            if (full := self.status().full) != told:
                told = full
                self._dispatch.status_changed()

    # --- what dispatch asks -----------------------------------------------------------------------

    def offered(self, job: agent.Job) -> str:
        """Hold a place for the job. Returns "" or why there is none."""
        self._capacity.ready = self._supervisor.inference_ready
        refusal = self._capacity.reserve(job.id, self._cpu_load())
        self._update_idle()
        return refusal

    def withdrawn(self, job_id: str) -> None:
        """Free the place of a job that does not come."""
        self._capacity.release(job_id)
        self._update_idle()
        self._dispatch.status_changed()

    def assigned(self, job: agent.Job, url: str, token: str) -> None:
        """Start the job in a process of its own."""
        start = StartJob(
            job_id=job.id,
            room=job.room.name,
            transport="livekit",
            job=job.SerializeToString(),
            url=url,
            token=token,
            identity=agent_identity(job.id),
            settings=self._options.session.to_json(),
        )
        self._capacity.launched(job.id)
        self._jobs[job.id] = record = _Job(start.room)
        self._update_idle()
        record.task = asyncio.create_task(self._run_job(start, record), name=f"job {job.id}")
        self._dispatch.status_changed()

    def terminated(self, job_id: str) -> None:
        """End a job because the server says so."""
        if (job := self._jobs.get(job_id)) is not None:
            logger.info("the server ends the job", extra={"job_id": job_id, "room": job.room})
            job.end("terminated by the server")

    def job_ids(self) -> Sequence[str]:
        """The jobs that run now."""
        return tuple(self._jobs)

    def status(self) -> Status:
        """What to tell the server about this host."""
        self._capacity.ready = self._supervisor.inference_ready
        return self._capacity.status(self._cpu_load())

    def _cpu_load(self) -> float:
        return sum(self._cpu_loads) / len(self._cpu_loads) if self._cpu_loads else 0.0

    # --- one job ----------------------------------------------------------------------------------

    async def _run_job(self, start: StartJob, record: _Job) -> None:
        fields = {"job_id": start.job_id, "room": start.room}

        async def on_update(update: JobUpdate) -> None:
            await self._dispatch.report_job(start.job_id, update.status, update.error)

        try:
            running = await self._supervisor.launch(start, on_update=on_update, on_turn=self._on_turn)
            record.running = running
            logger.info("job started", extra={**fields, "pid": running.pid})
            if record.shutdown:
                running.shutdown(record.shutdown)
            result = await running.wait()
            level = logging.INFO if result.status == "success" else logging.ERROR
            logger.log(level, "job ended: %s %s", result.status, result.error, extra=fields)
        except HostError as exc:
            logger.exception("job not started", extra=fields)
            await self._dispatch.report_job(start.job_id, "failed", str(exc))
        finally:
            del self._jobs[start.job_id]
            self._capacity.release(start.job_id)
            self._update_idle()
            self._dispatch.status_changed()

    def _update_idle(self) -> None:
        if self._capacity.is_empty():
            self._idle.set()
        else:
            self._idle.clear()

    # --- what the health port tells ---------------------------------------------------------------

    def _problem(self) -> str:
        if not self._supervisor.inference_ready:
            return "inference process not running"
        if self._gave_up or self._dispatch.unreachable:
            return "failed to connect to livekit"
        return ""

    def _describe(self) -> dict[str, Any]:
        status, told = self.status(), self._dispatch.told
        return {
            "agent_name": self._options.agent_name,
            "worker_type": agent.JobType.Name(agent.JobType.JT_ROOM),
            "worker_id": self._dispatch.worker_id,
            "active_jobs": status.job_count,
            "worker_load": round(status.load, 3),
            # What the server believes; "" while it knows nothing of us.
            "worker_status": "" if told is None else "WS_FULL" if told.full else "WS_AVAILABLE",
            "sdk_version": _version(),
            "protocol_version": PROTOCOL_VERSION,
        }


def _version() -> str:
    try:
        return metadata.version("roomful")
    except metadata.PackageNotFoundError:
        return "0"
