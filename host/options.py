"""What a worker may be told. Names, meanings and defaults as LiveKit's worker options, where the thing is the same."""

from __future__ import annotations

import enum
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from host.job.settings import SessionSettings

if TYPE_CHECKING:
    from host.job.context import JobContext, JobProcess
    from host.request import JobRequest

BUILT_IN_AGENT = "host.job.builtin_agent:entrypoint"

EntrypointFnc = Callable[["JobContext"], Awaitable[None]]
PrewarmFnc = Callable[["JobProcess"], Any]
RequestFnc = Callable[["JobRequest"], Awaitable[None]]
LoadFnc = Callable[..., float]
"""``load_fnc()`` or ``load_fnc(worker)``."""

DEFAULT_LOAD_THRESHOLD, DEV_LOAD_THRESHOLD = 0.7, math.inf
DEFAULT_PORT, DEV_PORT = 8081, 0
DEFAULT_LOG_LEVEL, DEV_LOG_LEVEL = "INFO", "DEBUG"
MAX_IDLE_PROCESSES = 4


class WorkerType(enum.Enum):
    """What a job is for."""

    ROOM = "room"
    """One job a room."""
    PUBLISHER = "publisher"
    """One job for each participant who publishes a track."""
    PARTICIPANT = "participant"
    """One job for each participant who joins."""


class JobExecutorType(enum.Enum):
    """Where a job runs."""

    PROCESS = "process"
    """In a process of its own."""
    THREAD = "thread"
    """In a thread of the supervisor, for a debugger: it can neither be killed nor limited."""


@dataclass(frozen=True, slots=True)
class WorkerPermissions:
    """What the server lets the agent do in its rooms. ``can_publish_sources``: names of ``TrackSource``, () for all."""

    can_publish: bool = True
    can_subscribe: bool = True
    can_publish_data: bool = True
    can_update_metadata: bool = True
    can_publish_sources: tuple[str, ...] = ()
    hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Everything a worker may be told. Times are in seconds, memory in MB (10^6 bytes).

    Functions are given as functions of a module, or by name (``agent.py:entrypoint``,
    ``package.module:entrypoint``), which imports nothing here: a job process imports them itself.

    ``entrypoint_fnc``: ``async def entrypoint(ctx: JobContext)``. ``prewarm_fnc``: run in each job
    process before it is given a room. ``request_fnc``: ``async def request(req: JobRequest)``, accepts or
    rejects a job; None accepts all. ``load_fnc``: the load from 0 to 1; None is the largest of CPU,
    device memory, inference pressure and jobs. ``load_threshold``: load from which no further room is
    taken. ``job_memory_warn_mb``, ``job_memory_limit_mb``: memory (PSS) of a job process that is warned
    of, and that it is ended for; 0 is off. ``drain_timeout``: what running rooms get to finish.
    ``num_idle_processes``: job processes kept warm. ``shutdown_process_timeout``: what a job gets to end in
    order. ``ping_timeout``: a child that does not answer for so long is killed; ``high_ping_threshold``: a
    longer round trip is warned of. ``max_retry``: attempts to reach the server again. ``max_jobs``: rooms at
    once; None for as many as the inference process has slots. ``ws_url``, ``api_key``, ``api_secret``:
    "" takes LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET. ``host``, ``port``: where health, status
    and metrics are served ("" is every address, port 0 picks one). ``session``: how conversations are held.

    ``dev``: development. What is None takes the default of its mode: ``load_threshold`` 0.7 (dev: none),
    ``num_idle_processes`` one a core and at most 4 (dev: 0), ``port`` 8081 (dev: 0), ``log_level`` INFO
    (dev: DEBUG); and in development a signal does not wait for the rooms.
    """

    entrypoint_fnc: EntrypointFnc | str
    request_fnc: RequestFnc | str | None = None
    prewarm_fnc: PrewarmFnc | str | None = None
    load_fnc: LoadFnc | str | None = None
    job_executor_type: JobExecutorType = JobExecutorType.PROCESS
    load_threshold: float | None = None
    job_memory_warn_mb: float = 500.0
    job_memory_limit_mb: float = 0.0
    drain_timeout: float = 1800.0
    num_idle_processes: int | None = None
    shutdown_process_timeout: float = 60.0
    initialize_process_timeout: float = 10.0
    ping_interval: float = 2.5
    ping_timeout: float = 60.0
    high_ping_threshold: float = 0.5
    permissions: WorkerPermissions = field(default_factory=WorkerPermissions)
    agent_name: str = ""
    worker_type: WorkerType = WorkerType.ROOM
    max_retry: int = 16
    max_jobs: int | None = None
    ws_url: str = ""
    api_key: str = ""
    api_secret: str = ""
    host: str = ""
    port: int | None = None
    log_level: str | None = None
    session: SessionSettings = field(default_factory=SessionSettings)
    dev: bool = False

    def resolved(self, cores: int) -> WorkerOptions:
        """These options with the defaults of their mode in place of None (``max_jobs`` stays: it is no default)."""

        def chosen(given: Any, production: Any, development: Any) -> Any:
            return given if given is not None else development if self.dev else production

        return replace(
            self,
            load_threshold=chosen(self.load_threshold, DEFAULT_LOAD_THRESHOLD, DEV_LOAD_THRESHOLD),
            num_idle_processes=chosen(self.num_idle_processes, min(cores, MAX_IDLE_PROCESSES), 0),
            port=chosen(self.port, DEFAULT_PORT, DEV_PORT),
            log_level=chosen(self.log_level, DEFAULT_LOG_LEVEL, DEV_LOG_LEVEL),
        )
