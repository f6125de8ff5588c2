"""The host as a LiveKit worker: takes jobs while there is room, gives each a process, says how it ended.

Importing this loads none of what only the supervisor needs: an agent file that names ``Worker`` is loaded by
every job process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from host.capacity import Capacity, LoadParts
from host.errors import ConfigError, HostError
from host.options import RequestFnc, WorkerOptions
from inference.wire.supervision import JobUpdate, TurnReport

if TYPE_CHECKING:
    from host.config import Config
    from host.dispatch import Dispatch
    from host.running_job import JobResult
    from host.supervisor import Supervisor

logger = logging.getLogger(__name__)


def _ignore(_: object) -> None:
    """The default of callbacks."""


def _log_progress(text: str) -> None:
    logger.info("inference: %s", text)


async def _ignore_update(_: JobUpdate) -> None:
    """The default of callbacks that are awaited."""


class Worker:
    """``run`` brings the host up and serves; ``drain`` or ``aclose``, from another task, end it.

    ``config`` says what models there are and how inference is done; None reads file and environment.
    ``on_turn`` is told of every turn of every conversation, ``on_progress`` what the inference process does
    while it comes up. Raises ``ConfigError``.
    """

    def __init__(
        self,
        options: WorkerOptions,
        config: Config | None = None,
        *,
        on_turn: Callable[[TurnReport], None] = _ignore,
        on_progress: Callable[[str], None] = _log_progress,
    ) -> None:
        from host.config import check_options, load_config
        from host.health import HealthServer
        from host.load import LoadMeter
        from host.metrics import Metrics
        from host.places import with_places
        from host.worker_jobs import WorkerJobs
        from host.worker_load import LoadWatch

        config, self._sustained = with_places(config or load_config())
        self._config = config
        self._options = options = _completed(options, config)
        check_options(options)
        assert options.load_threshold is not None
        assert options.port is not None
        self._capacity = Capacity(config.inference.max_rooms, options.load_threshold, options.max_jobs)
        meter = LoadMeter(
            num_cpus=config.num_cpus,
            memory_budget_mb=config.inference.memory_budget_mb,
            device=config.inference.device,
        )
        self._load = LoadWatch(meter, self._capacity, self._status_changed)
        self._metrics = Metrics(self.describe)
        self._jobs = WorkerJobs(self._capacity, self._load.current, options.session, on_turn, self._metrics)
        self._health = HealthServer(
            options.host, options.port, problem=self._problem, describe=self.describe, metrics=self._metrics.render
        )
        self._on_progress = on_progress
        self._supervisor: Supervisor | None = None
        self._dispatch: Dispatch | None = None
        self._gave_up = False
        self._began = time.monotonic()
        self._main: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()
        self._over = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stop_reason = ""

    def __repr__(self) -> str:
        return f"<Worker {self.worker_id or 'unregistered'} jobs={self.active_jobs}/{self.max_jobs}>"

    # --- what it is -------------------------------------------------------------------------------

    @property
    def options(self) -> WorkerOptions:
        """The options with the defaults of their mode, and what the environment says of the server."""
        return self._options

    @property
    def port(self) -> int:
        """Where health, status and metrics are served, once ``run`` has bound it."""
        return self._health.port

    @property
    def worker_id(self) -> str:
        """The server's name for the present registration, "" while there is none."""
        return self._dispatch.worker_id if self._dispatch is not None else ""

    @property
    def active_jobs(self) -> int:
        """Jobs that run."""
        return self._capacity.job_count

    @property
    def max_jobs(self) -> int:
        """Jobs that may run at once: the smaller of ``WorkerOptions.max_jobs`` and the inference process's slots."""
        return self._capacity.places

    @property
    def draining(self) -> bool:
        """Whether running jobs finish and no other is taken."""
        return self._capacity.draining

    @property
    def load(self) -> float:
        """The load from 0 to 1: what ``load_fnc`` said last, or the largest of ``load_parts``."""
        return self._load.current().value

    @property
    def load_parts(self) -> LoadParts:
        """What the host itself measures: CPU, device memory, inference pressure and jobs, each from 0 to 1."""
        return self._load.current().parts

    def describe(self) -> dict[str, Any]:
        """What ``/worker`` shows."""
        from host.description import Snapshot, describe

        supervisor, dispatch = self._supervisor, self._dispatch
        return describe(
            Snapshot(
                options=self._options,
                worker_id=self.worker_id,
                status=self._jobs.status(),
                told=dispatch.told if dispatch is not None else None,
                uptime_s=time.monotonic() - self._began,
                draining=self._capacity.draining,
                places=self._capacity.places,
                refusal=self._jobs.refusal(),
                load=self._load.current(),
                inference_ready=supervisor is not None and supervisor.inference_ready,
                inference_restarts=supervisor.inference_restarts if supervisor is not None else 0,
                report=supervisor.inference_report if supervisor is not None else None,
                max_rooms=self._capacity.slots,
                sustained=self._sustained,
                device=self._config.inference.device,
                processes=supervisor.processes() if supervisor is not None else (),
            )
        )

    def _problem(self) -> str:
        if self._supervisor is None or not self._supervisor.inference_ready:
            return "inference process not running"
        if self._gave_up or (self._dispatch is not None and self._dispatch.unreachable):
            return "failed to connect to livekit"
        return ""

    # --- life -------------------------------------------------------------------------------------

    async def run(self, *, unregistered: bool = False) -> None:
        """Bind the HTTP port, start the processes, register, and serve until drained or closed. Once a worker.

        ``unregistered``: no server is told, and there are no jobs but those of ``simulate_job``.
        Raises a ``HostError``: ``ConfigError`` and ``PortInUseError`` before anything is started,
        ``ModelsError``, what the supervisor raises, ``ConnectionFailedError``, ``AuthenticationError``.
        """
        if self._main is not None:
            raise RuntimeError("a worker runs once")
        if self._stopping.is_set():
            self._over.set()
            return
        self._main = asyncio.create_task(self._run(unregistered), name="worker")
        try:
            await self._main
        except asyncio.CancelledError:
            # Told to end while the processes were still coming up; or else somebody cancelled us.
            if not self._stopping.is_set() or not self._main.cancelled():
                raise
        finally:
            self._over.set()

    async def drain(self) -> None:
        """Take no more jobs, let the running ones finish for up to ``drain_timeout``, then end as ``aclose``."""
        self._capacity.draining = True
        self._status_changed()
        if self._jobs:
            logger.info("draining: %d jobs go on, no new ones are taken", len(self._jobs))
        try:
            async with asyncio.timeout(self._options.drain_timeout):
                await self._jobs.wait_idle()
        except TimeoutError:
            logger.warning("%d jobs have not ended in %.0f s", len(self._jobs), self._options.drain_timeout)
        await self.aclose("the host has drained")

    async def aclose(self, reason: str = "the host is stopping") -> None:
        """End now: jobs are told to finish, everything is stopped in order. Returns when ``run`` is about to."""
        self._capacity.draining = True
        self._stop_reason = self._stop_reason or reason
        self._stopping.set()
        if self._main is not None:
            if not self._serving.is_set():
                self._main.cancel()
            await asyncio.wait([self._main])

    async def _run(self, unregistered: bool) -> None:
        from host.background import entered_in_thread, in_thread
        from host.prepare import prepared
        from host.supervisor import Supervisor
        from host.user_functions import load_function, request_function
        from host.worker_load import CustomLoad

        request_fnc = await in_thread("request-fnc", lambda: request_function(self._options.request_fnc))
        load_fnc = await in_thread("load-fnc", lambda: load_function(self._options.load_fnc))
        if not unregistered:
            self._jobs.told = self._dispatch = self._make_dispatch(request_fnc)
        await self._health.start()
        logger.info("health, status and metrics are at port %d", self._health.port)
        try:
            async with entered_in_thread("prepare", prepared(self._config, self._options)) as supervisor_options:
                self._jobs.supervisor = self._supervisor = Supervisor(
                    supervisor_options,
                    on_progress=self._on_progress,
                    observer=self._metrics,
                )
                async with self._supervisor:
                    if load_fnc is not None:
                        await self._load.use(CustomLoad(load_fnc, self))
                    self._serving.set()
                    await self._serve(self._supervisor)
        finally:
            self._load.close()
            await self._health.aclose()

    def _make_dispatch(self, request_fnc: RequestFnc) -> Dispatch:
        from host.description import version
        from host.dispatch import Dispatch, DispatchOptions

        options = self._options
        for value, variable, flag in (
            (options.ws_url, "LIVEKIT_URL", "--url"),
            (options.api_key, "LIVEKIT_API_KEY", "--api-key"),
            (options.api_secret, "LIVEKIT_API_SECRET", "--api-secret"),
        ):
            if not value:
                raise ConfigError(f"{variable} is not set, nor is {flag}: it says which LiveKit server to serve")
        dispatch_options = DispatchOptions(
            ws_url=options.ws_url,
            api_key=options.api_key,
            api_secret=options.api_secret,
            agent_name=options.agent_name,
            worker_type=options.worker_type,
            version=version(),
            max_retry=options.max_retry,
            permissions=options.permissions,
            request_fnc=request_fnc,
        )
        return Dispatch(dispatch_options, self._jobs)

    async def _serve(self, supervisor: Supervisor) -> None:
        watch = asyncio.create_task(self._load.run(supervisor), name="worker-load")
        failed = asyncio.create_task(supervisor.wait_failed(), name="worker-failed")
        stopping = asyncio.create_task(self._stopping.wait(), name="worker-stopping")
        tasks: list[asyncio.Task[Any]] = [watch, failed, stopping]
        if self._dispatch is not None:
            dispatch = asyncio.create_task(self._dispatch.run(), name="worker-dispatch")
            tasks.append(dispatch)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._jobs and not (watch.done() or failed.done() or stopping.done()):
                await self._outlive_dispatch(watch, failed, stopping)
            # While there is a connection, so that the server hears how each job ended.
            await self._jobs.end(self._stop_reason or "the host is stopping")
            if failed.done():
                raise failed.result()
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _outlive_dispatch(self, *until: asyncio.Task[Any]) -> None:
        """The server stays away for good. Callers may still be connected: let their rooms finish."""
        self._gave_up = True
        self._capacity.draining = True
        logger.error("LiveKit is not coming back; %d rooms may finish", len(self._jobs))
        idle = asyncio.create_task(self._jobs.wait_idle(), name="worker-idle")
        try:
            await asyncio.wait((idle, *until), timeout=self._options.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()

    def _status_changed(self) -> None:
        self._jobs.told.status_changed()

    # --- jobs without dispatch --------------------------------------------------------------------

    async def simulate_job(
        self,
        room: str,
        participant_identity: str = "",
        *,
        metadata: str = "",
        local: bool | None = None,
        waves: Sequence[str] = (),
        out: str = "",
        record: str = "",
        line: str = "",
        on_update: Callable[[JobUpdate], Awaitable[None]] = _ignore_update,
    ) -> JobResult:
        """Run a job in ``room`` that no server has assigned, as soon as the host serves; returns how it ended.

        ``participant_identity``: whom the job is for. ``metadata``: the job's. ``local``: a room
        without a server, in which the ``waves`` are the caller's turns and the agent's speech goes to ``out`` (both
        sides to ``record``); with ``line`` another program is the caller (``host.job.room_line``). None is local
        when no server is configured. Else the room is joined with a token of our own. ``on_update`` is awaited
        for each status.

        Raises ``HostError`` when there is no place or no process for it, or the host ends before.
        """
        from host.simulated_job import joining, locally, simulated_job

        start = simulated_job(self._options, room, participant_identity, metadata)
        local = not self._options.ws_url if local is None else local
        start = locally(start, waves, out, record, line) if local else joining(start, self._options)
        await self.wait_serving()
        return await self._jobs.simulate(start, on_update)

    async def wait_serving(self) -> None:
        """Return when ``run`` has brought the host up. Raises ``HostError`` when it has ended before."""
        waits = [asyncio.create_task(event.wait()) for event in (self._serving, self._over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._over.is_set():
            raise HostError("the host has ended")


def _completed(options: WorkerOptions, config: Config) -> WorkerOptions:
    """The options with the defaults of their mode, and with the server that the configuration names."""
    return replace(
        options.resolved(config.cores()),
        ws_url=options.ws_url or config.worker.ws_url,
        api_key=options.api_key or config.worker.api_key,
        api_secret=options.api_secret or config.worker.api_secret,
    )
