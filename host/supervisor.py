"""The processes of the host: brings them up, shows them, stops them in order.

    supervisor (this event loop)
     ├── inference        one, resident; restarted with back-off when it dies    residents.py
     └── fork server      one; restarted with back-off when it dies              residents.py
          └── job × N     one room each: warm → assigned → ended                 job_pool.py

It never touches audio, tokens or model libraries, so its pings leave on time under any load.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence

from host.child import Watch
from host.errors import HostError
from host.job_pool import Executor, JobPool
from host.lifecycle import FairClock, RateLimit
from host.memory import MemoryMeter
from host.observer import Observer
from host.options import JobExecutorType
from host.process import ProcessInfo as ProcessInfo
from host.residents import ForkServer, Inference, Resident
from host.running_job import OnTurn, OnUpdate, RunningJob
from host.supervisor_options import SupervisorOptions as SupervisorOptions
from host.thread_executor import ThreadExecutor
from inference.wire import supervision as s

logger = logging.getLogger(__name__)

INFERENCE_COMMAND = (sys.executable, "-P", "-m", "inference.main")

_PULSE_S = 0.1
_GAP_S = 0.3
"""A longer gap between two pulses is this event loop's own fault."""
_BLOCKED_S = 1.0
"""A block of this event loop that is worth a word: pings and answers to the server were late by it."""
_BLOCKED_WARNING_INTERVAL_S = 10.0
_MEASURE_S = 5.0
_MEASURE_JOBS_S = 1.0
"""How often memory is measured; jobs that have a limit more often."""


def _ignore(_: object) -> None:
    """The default of callbacks."""


class Supervisor:
    """The processes of the host. ``async with`` it: inside, inference is warm and the pool has a warm process.

    Entering raises the ``HostError`` of what did not come up. Leaving stops everything in order
    (jobs, fork server, inference) and leaves no process and no descriptor. ``on_progress`` gets what
    the inference process does while it comes up, for a person to read. ``observer`` is told what happens.
    """

    def __init__(
        self,
        options: SupervisorOptions,
        *,
        on_progress: Callable[[str], None] = _ignore,
        observer: Observer | None = None,
        inference_command: Sequence[str] = INFERENCE_COMMAND,
    ) -> None:
        self._options = options
        self._on_progress = on_progress
        self._inference_command = inference_command
        self._clock = FairClock(_GAP_S, time.monotonic())
        self._watch = Watch(
            ping_interval=options.ping_interval,
            ping_timeout=options.ping_timeout,
            high_ping_threshold=options.high_ping_threshold,
            clock=lambda: self._clock.read(time.monotonic()),
            observer=observer or Observer(),
            runtime_dir=options.runtime_dir,
        )
        self._group = asyncio.TaskGroup()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failure: HostError | None = None
        self._failed = asyncio.Event()
        self._meter = MemoryMeter()
        self._inference = Inference(
            inference_command,
            options.inference_environment,
            options.inference,
            options.inference_initialize_timeout,
            watch=self._watch,
            on_progress=on_progress,
            on_failed=self._give_up,
        )
        executor: Executor = ThreadExecutor()
        self._fork_server: ForkServer | None = None
        if options.job_executor_type is JobExecutorType.PROCESS:
            executor = self._fork_server = ForkServer(
                options.job_environment,
                watch=self._watch,
                on_failed=self._give_up,
                spared=lambda: bool(self.jobs),
            )
        self._pool = JobPool(options, executor, watch=self._watch, group=self._group, on_failed=self._give_up)

    def __repr__(self) -> str:
        return f"<Supervisor inference={'ready' if self.inference_ready else 'not ready'} {self._pool!r}>"

    @property
    def jobs(self) -> tuple[RunningJob, ...]:
        """The jobs whose process has not ended, oldest first."""
        return self._pool.jobs

    @property
    def inference_ready(self) -> bool:
        """Whether the inference process is up and warm now."""
        return self._inference.ready.is_set()

    @property
    def inference_report(self) -> s.InferenceReport | None:
        """How the inference process said last that it does; None while it is away."""
        return self._inference.report

    @property
    def inference_restarts(self) -> int:
        """How often the inference process was started again."""
        return self._inference.restarts

    @property
    def idle_processes(self) -> int:
        """How many warm processes wait for a job."""
        return self._pool.idle_processes

    def processes(self) -> tuple[ProcessInfo, ...]:
        """Everything that runs now below this process: inference, the fork server, the jobs, oldest first."""
        inference = self._inference.child
        return (
            *((inference.describe(),) if inference is not None else ()),
            *(self._fork_server.processes() if self._fork_server is not None else ()),
            *(child.describe() for child in self._pool.children),
        )

    async def wait_failed(self) -> HostError:
        """Return why the host cannot go on, when it cannot: a resident process fails again and again."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    async def launch(self, start: s.StartJob, *, on_update: OnUpdate, on_turn: OnTurn = _ignore) -> RunningJob:
        """Give a job a process, a warm one or a new one, and return when it has begun with it.

        A process that dies before it has begun is replaced by another. ``on_update`` is awaited for
        "running", "success" and "failed", one after the other. The job leaves its room only after
        ``on_update`` has returned from the final status. A process that ends without a final status
        is reported as "failed", once, saying how it ended.

        Raises ``HostError`` when no process could be had within ``initialize_process_timeout``; then
        nothing was reported.
        """
        return await self._pool.launch(start, on_update, on_turn)

    # --- up and down ------------------------------------------------------------------------------

    async def __aenter__(self) -> Supervisor:
        await self._group.__aenter__()
        try:
            self._start(self._pulse(), "pulse")
            self._start(self._measure(), "measure")
            if self._fork_server is not None:
                self._start(self._fork_server.keep(), "forkserver")
            self._start(self._inference.keep(), "inference")
            await self._up(self._inference.ready)
            self._start(self._pool.keep(), "pool")
            if self._options.num_idle_processes:
                await self._up(self._pool.up)
            for part in (self._inference, self._fork_server, self._pool):
                if part is not None:
                    part.host_is_up()
            if self._fork_server is None:
                logger.warning(
                    "jobs run in threads of this process: they cannot be killed, and their memory is not limited"
                )
        except BaseException:
            await self.__aexit__()
            raise
        return self

    def _start(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        self._tasks[name] = self._group.create_task(coroutine, name=name)

    async def _up(self, up: asyncio.Event) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (up, self._failed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._failure is not None:
            raise self._failure

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._pool.stop()
            if self._fork_server is not None:
                await self._stop(self._fork_server, "forkserver")
            await self._stop(self._inference, "inference")
        finally:
            # In order there is nothing left but what watches. Interrupted, what is left is killed by its task's end.
            for task in (*self._pool.tasks, *self._tasks.values()):
                task.cancel()
            try:
                # The body's exception is not this group's: it would come out wrapped.
                await self._group.__aexit__(None, None, None)
            finally:
                if self._fork_server is not None:
                    self._fork_server.close()
                self._meter.close()

    async def _stop(self, resident: Resident, name: str) -> None:
        resident.stop()
        if name in self._tasks:
            await asyncio.wait([self._tasks[name]])

    def _give_up(self, error: HostError) -> None:
        if self._failure is None:
            self._failure = error
            self._failed.set()

    # --- what is watched --------------------------------------------------------------------------

    async def _pulse(self) -> None:
        warnings = RateLimit(_BLOCKED_WARNING_INTERVAL_S)
        before = time.monotonic()
        while True:
            await asyncio.sleep(_PULSE_S)
            now = time.monotonic()
            self._clock.pulse(now)
            blocked_s = now - before - _PULSE_S
            if blocked_s >= _BLOCKED_S and warnings.admit(now) is not None:
                logger.warning(
                    "the supervisor's event loop stood still for %.1f s; that is not held against its processes",
                    blocked_s,
                )
            before = now

    async def _measure(self) -> None:
        """Measure the memory of every process, and have that of jobs judged."""
        residents_at = 0.0
        while True:
            children = [child for child in self._pool.children if child.pid != os.getpid()]
            residents = []
            if (now := time.monotonic()) >= residents_at:
                residents_at = now + _MEASURE_S
                fork_server = self._fork_server.process if self._fork_server is not None else None
                residents = [process for process in (self._inference.child, fork_server) if process is not None]
            measured = [*children, *residents]
            values = await self._meter.measure([process.pid for process in measured])
            for process, memory_mb in zip(measured, values, strict=True):
                # 0 stands for a process that has ended meanwhile.
                process.memory_mb = memory_mb or process.memory_mb
            for child in children:
                self._pool.measured(child)
            await asyncio.sleep(_MEASURE_JOBS_S if self._options.job_memory_limit_mb else _MEASURE_S)
