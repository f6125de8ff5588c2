"""Starts, watches, restarts and stops the processes of the host; performs what ``pool.py`` decides.

    supervisor (this event loop)
     ├── inference        one, resident; restarted with back-off when it dies
     └── fork server      one; restarted with back-off when it dies
          └── job × N     one room each: warm → assigned → ended

It never touches audio, tokens or model libraries, so its pings leave on time under any load.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from host import errors
from host.child import (
    EXIT_GRACE_S,
    Child,
    ForkServerProcess,
    InitializationError,
    Process,
    SpawnError,
    Watch,
    describe_exit,
    execute,
)
from host.errors import HostError
from host.lifecycle import Backoff, ChildState, FairClock
from host.pool import Assign, Decision, Discard, IdleProcess, Retire, Spawn, View, plan
from host.running_job import OnTurn, OnUpdate, RunningJob
from inference.wire import supervision as s
from inference.wire.tlv import Message

logger = logging.getLogger(__name__)


INFERENCE_COMMAND = (sys.executable, "-P", "-m", "inference.main")

_PULSE_S = 0.1
_MAX_FAILED_STARTS = 5
"""Starts in a row that may fail before the host gives up: what fails five times needs a person."""
_HEALTHY_AFTER_S = 60.0
"""How long a process must have served before its death counts as the first of a row again."""
_SPAWN_TIMEOUT_S = 60.0
"""How long the fork server may take to answer; the first time it has to import everything before."""
_LAST_REPORTS_S = 10.0
"""How long ``stop`` waits for the ``on_update`` of a job whose process has ended."""


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """What to run and how closely to watch it. Times are in seconds.

    ``inference``: the whole first message of the inference process. Both environments are complete:
    nothing of this process's own is added. ``agent_file``: "" for the built-in agent.
    ``ping_timeout``: a child that does not answer for that long is killed. ``high_ping_threshold``: a
    round trip longer than that is warned of.
    """

    inference: s.InitializeInference
    inference_environment: Mapping[str, str]
    job_environment: Mapping[str, str]
    agent_file: str = ""
    num_idle_processes: int = 1
    initialize_process_timeout: float = 10.0
    inference_initialize_timeout: float = 300.0
    shutdown_process_timeout: float = 60.0
    ping_interval: float = 2.5
    ping_timeout: float = 60.0
    high_ping_threshold: float = 0.5
    log_level: str = "INFO"


@dataclass(slots=True)
class _Slot:
    """One job process of the pool, from the decision to start it. ``child`` is None until it is forked."""

    name: str
    child: Child | None = None
    group: asyncio.TaskGroup | None = None
    job: RunningJob | None = None
    retired: bool = False

    def is_starting(self) -> bool:
        return self.child is None or self.child.state is ChildState.INITIALIZING

    def is_idle(self) -> bool:
        return self.child is not None and self.child.is_idle()

    def assign(self, launch: _Launch, grace_s: float) -> RunningJob:
        assert self.child is not None
        assert self.group is not None
        self.job = RunningJob(launch.start, self.child, grace_s, launch.on_update, launch.on_turn)
        self.child.start_job(launch.start)
        self.group.create_task(self.job.pass_on(), name=f"{self.name}-updates")
        return self.job

    def receive(self, message: Message) -> None:
        if self.job is not None:
            self.job.receive(message)

    def stop(self, reason: str) -> None:
        if self.job is not None:
            self.job.shutdown(reason)
        elif self.child is not None:
            self.retired = True
            self.child.stop(reason, EXIT_GRACE_S)

    def discard(self) -> None:
        if self.child is not None:
            self.child.kill("it was dead when it was to be used")


@dataclass(slots=True)
class _Launch:
    """A job that waits for a process."""

    start: s.StartJob
    on_update: OnUpdate
    on_turn: OnTurn
    job: asyncio.Future[RunningJob]


@dataclass(frozen=True, slots=True)
class _End:
    """How a resident process ended, and for how long it had served."""

    error: HostError
    served_s: float


def _ignore(_: object) -> None:
    """The default of callbacks."""


class Supervisor:
    """The processes of the host. ``async with`` it: inside, inference is warm and the pool has a warm process.

    Entering raises the ``HostError`` of what did not come up. Leaving stops everything in order
    (jobs, fork server, inference) and leaves no process and no descriptor. ``on_progress`` gets what
    the inference process does while it comes up, for a person to read.
    """

    def __init__(
        self,
        options: SupervisorOptions,
        *,
        on_progress: Callable[[str], None] = _ignore,
        inference_command: Sequence[str] = INFERENCE_COMMAND,
    ) -> None:
        self._options = options
        self._on_progress = on_progress
        self._inference_command = inference_command
        self._watch = Watch(options.ping_interval, options.ping_timeout, options.high_ping_threshold)
        self._clock = FairClock(_PULSE_S, time.monotonic())
        self._group = asyncio.TaskGroup()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started = False
        self._failure: HostError | None = None
        self._failed = asyncio.Event()

        self._inference: Child | None = None
        self._inference_up = asyncio.Event()
        self._inference_stopping = asyncio.Event()
        self._fork_server: ForkServerProcess | None = None
        self._fork_server_stopping = asyncio.Event()

        self._names = (f"job-{number}" for number in itertools.count(1))
        self._slots: dict[str, _Slot] = {}
        self._slot_tasks: set[asyncio.Task[None]] = set()
        self._launches: dict[str, _Launch] = {}
        self._pool_backoff = Backoff()
        self._pool_changed = asyncio.Event()
        self._pool_up = asyncio.Event()
        self._pool_stopping = False
        self._start_failure = ""

    def __repr__(self) -> str:
        return (
            f"<Supervisor inference={'ready' if self.inference_ready else 'not ready'} jobs={len(self.jobs)}"
            f" idle={self.idle_processes} waiting={len(self._launches)}>"
        )

    @property
    def jobs(self) -> tuple[RunningJob, ...]:
        """The jobs whose process has not ended, oldest first."""
        return tuple(slot.job for slot in self._slots.values() if slot.job is not None)

    @property
    def inference_ready(self) -> bool:
        """Whether the inference process is up and warm now."""
        return self._inference_up.is_set()

    @property
    def idle_processes(self) -> int:
        """How many warm processes wait for a job."""
        return sum(slot.is_idle() for slot in self._slots.values())

    async def wait_failed(self) -> HostError:
        """Return why the host cannot go on, when it cannot: a resident process fails again and again."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    async def launch(self, start: s.StartJob, *, on_update: OnUpdate, on_turn: OnTurn = _ignore) -> RunningJob:
        """Give a job a process: a warm one, or a new one.

        ``on_update`` is awaited for "running", "success" and "failed", one after the other. The job
        leaves its room only after ``on_update`` has returned from the final status. A process that
        ends without a final status is reported as "failed", once, saying how it ended.

        Raises ``HostError`` when no process could be had; then nothing was reported.
        """
        if self._pool_stopping:
            raise HostError(f"job {start.job_id} is not started: the host is stopping")
        if start.job_id in self._launches or any(job.job_id == start.job_id for job in self.jobs):
            raise HostError(f"job {start.job_id} is running already")
        launch = _Launch(start, on_update, on_turn, asyncio.get_running_loop().create_future())
        self._launches[start.job_id] = launch
        self._pool_changed.set()
        timeout_s = self._options.initialize_process_timeout
        try:
            await asyncio.wait([launch.job], timeout=timeout_s)
        except asyncio.CancelledError:
            if launch.job.done() and launch.job.exception() is None:
                launch.job.result().shutdown("its launch was given up")
            raise
        finally:
            self._launches.pop(start.job_id, None)
            self._pool_changed.set()
        if not launch.job.done():
            raise HostError(f"no job process was ready within {timeout_s:g} s. {self._start_failure}".strip())
        return launch.job.result()

    # --- up and down ------------------------------------------------------------------------------

    async def __aenter__(self) -> Supervisor:
        await self._group.__aenter__()
        try:
            self._start(self._pulse(), "pulse")
            self._start(self._keep(self._serve_fork_server, self._fork_server_stopping), "forkserver")
            self._start(self._keep(self._serve_inference, self._inference_stopping), "inference")
            await self._up(self._inference_up)
            self._start(self._keep_pool(), "pool")
            if self._options.num_idle_processes:
                await self._up(self._pool_up)
            self._started = True
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
            await self._stop_pool()
            await self._stop_fork_server()
            await self._stop_inference()
        finally:
            # In order there is nothing left but the pulse. Interrupted, what is left is killed by its task's end.
            for task in (*self._slot_tasks, *self._tasks.values()):
                task.cancel()
            # The body's exception is not this group's: it would come out wrapped.
            await self._group.__aexit__(None, None, None)

    async def _stop_pool(self) -> None:
        self._pool_stopping = True
        for launch in self._launches.values():
            if not launch.job.done():
                launch.job.set_exception(HostError(f"job {launch.start.job_id} is not started: the host is stopping"))
        for slot in self._slots.values():
            slot.stop("the host is stopping")
        if self._slot_tasks:
            timeout_s = self._options.shutdown_process_timeout + EXIT_GRACE_S + _LAST_REPORTS_S
            _, late = await asyncio.wait(self._slot_tasks, timeout=timeout_s)
            for task in late:
                logger.error("%s is given up: its last report was not taken", task.get_name())
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _stop_fork_server(self) -> None:
        self._fork_server_stopping.set()
        if self._fork_server is not None:
            self._fork_server.stop()
        await asyncio.wait([self._tasks["forkserver"]])

    async def _stop_inference(self) -> None:
        self._inference_stopping.set()
        if self._inference is not None:
            self._inference.stop("the host is stopping", EXIT_GRACE_S)
        await asyncio.wait([self._tasks["inference"]])

    def _give_up(self, error: HostError) -> None:
        if self._failure is None:
            self._failure = error
            self._failed.set()

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(_PULSE_S)
            self._clock.pulse(time.monotonic())

    def _child(self, name: str, process: Process, control: socket.socket, receive: Callable[[Message], None]) -> Child:
        def clock() -> float:
            return self._clock.read(time.monotonic())

        return Child(name, process, control, watch=self._watch, clock=clock, receive=receive)

    # --- the resident processes -------------------------------------------------------------------

    async def _keep(self, serve: Callable[[], Awaitable[_End]], stopping: asyncio.Event) -> None:
        """Run ``serve`` again whenever it ends, with back-off, until ``stopping`` or giving up."""
        backoff = Backoff()
        while not stopping.is_set():
            end = await serve()
            if stopping.is_set():
                return
            now = time.monotonic()
            if end.served_s >= _HEALTHY_AFTER_S:
                backoff = backoff.after_success()
            backoff = backoff.after_failure(now)
            if not self._started:
                # What fails before it has ever served is not tried again blindly.
                self._give_up(end.error)
                return
            if backoff.failures >= _MAX_FAILED_STARTS:
                self._give_up(type(end.error)(f"{end.error} ({backoff.failures} times in a row)"))
                return
            logger.error("%s; it is started again in %.1f s", end.error, backoff.wait_s(now))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.wait_s(now)):
                    await stopping.wait()

    async def _serve_inference(self) -> _End:
        options = self._options
        # One that was killed has left its socket behind.
        Path(options.inference.socket_path).unlink(missing_ok=True)
        try:
            process, control = execute(self._inference_command, options.inference_environment)
        except HostError as exc:
            return _End(exc, 0.0)
        child = self._inference = self._child("inference", process, control, self._inference_says)
        error: HostError | None = None
        ready_at = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(child.run(), name="inference-run")
                try:
                    await child.initialize(options.inference, options.inference_initialize_timeout)
                except InitializationError as exc:
                    error = _inference_error(exc)
                else:
                    ready_at = time.monotonic()
                    if child.is_idle():
                        self._inference_up.set()
                await running
        finally:
            self._inference_up.clear()
            self._inference = None
            Path(options.inference.socket_path).unlink(missing_ok=True)
        return _End(
            error or errors.InferenceError(f"the inference process ended: {child.describe_end()}"),
            0.0 if error else time.monotonic() - ready_at,
        )

    def _inference_says(self, message: Message) -> None:
        match message:
            case s.Progress(text=text):
                self._on_progress(text)
            case _:
                logger.warning("the inference process says %s, which means nothing here", type(message).__name__)

    async def _serve_fork_server(self) -> _End:
        began = time.monotonic()
        try:
            fork_server = self._fork_server = ForkServerProcess(self._options.job_environment)
        except HostError as exc:
            return _End(exc, 0.0)
        try:
            code = await fork_server.run()
        finally:
            self._fork_server = None
        return _End(HostError(f"the fork server ended: {describe_exit(code)}"), time.monotonic() - began)

    # --- the pool ---------------------------------------------------------------------------------

    async def _keep_pool(self) -> None:
        while not self._pool_stopping:
            self._pool_changed.clear()
            now = time.monotonic()
            decided = plan(now, self._view())
            for decision in decided.decisions:
                self._perform(decision)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(decided.wait_s):
                    await self._pool_changed.wait()

    def _view(self) -> View:
        idle = [
            IdleProcess(slot.name, slot.child.is_alive())
            for slot in self._slots.values()
            if slot.child is not None and slot.child.is_idle()
        ]
        return View(
            num_idle_processes=self._options.num_idle_processes,
            idle=idle,
            starting=sum(slot.is_starting() for slot in self._slots.values()),
            waiting=[job_id for job_id, launch in self._launches.items() if not launch.job.done()],
            backoff=self._pool_backoff,
        )

    def _perform(self, decision: Decision) -> None:
        match decision:
            case Spawn():
                slot = _Slot(next(self._names))
                self._slots[slot.name] = slot
                task = self._group.create_task(self._run_slot(slot), name=slot.name)
                self._slot_tasks.add(task)
                task.add_done_callback(self._slot_tasks.discard)
            case Assign(process=name, job_id=job_id):
                self._assign(self._slots[name], self._launches[job_id])
            case Retire(process=name):
                self._slots[name].stop("it is not needed")
            case Discard(process=name):
                self._slots[name].discard()

    def _assign(self, slot: _Slot, launch: _Launch) -> None:
        self._pool_backoff = self._pool_backoff.after_success()
        job = slot.assign(launch, self._options.shutdown_process_timeout)
        logger.info("job %s (room %s) has process %d", job.job_id, job.room, job.pid, extra={"job": job.job_id})
        launch.job.set_result(job)

    async def _run_slot(self, slot: _Slot) -> None:
        try:
            error = await self._serve_slot(slot)
        finally:
            del self._slots[slot.name]
            self._pool_changed.set()
        if error is not None and not self._pool_stopping:
            self._job_process_failed(error)

    def _job_process_failed(self, error: HostError) -> None:
        now = time.monotonic()
        self._pool_backoff = self._pool_backoff.after_failure(now)
        self._start_failure = str(error)
        if not self._started:
            self._give_up(error)
        logger.error("%s; the next is started in %.1f s", error, self._pool_backoff.wait_s(now))

    async def _serve_slot(self, slot: _Slot) -> HostError | None:
        """One job process from its fork to its end; returns what kept it from serving, if anything did."""
        options = self._options
        try:
            if self._fork_server is None:
                raise SpawnError("the fork server is not there")
            async with asyncio.timeout(_SPAWN_TIMEOUT_S):
                process, control = await self._fork_server.spawn(slot.name)
        except (SpawnError, TimeoutError) as exc:
            reason = str(exc) or f"the fork server did not answer within {_SPAWN_TIMEOUT_S:g} s"
            return HostError(f"no job process could be started: {reason}")
        child = slot.child = self._child(slot.name, process, control, slot.receive)
        if self._pool_stopping:
            slot.stop("the host is stopping")
        initialize = s.InitializeJob(
            options.agent_file, options.inference.socket_path, options.inference.token, options.log_level
        )
        error: HostError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                slot.group = group
                running = group.create_task(child.run(), name=f"{slot.name}-run")
                try:
                    await child.initialize(initialize, options.initialize_process_timeout)
                except InitializationError as exc:
                    error = _job_error(exc)
                    if exc.refused:
                        # An agent file that is wrong stays wrong: whoever waits is told at once.
                        self._refuse_launches(error)
                else:
                    self._pool_up.set()
                    self._pool_changed.set()
                await running
                if slot.job is not None:
                    slot.job.ended()
        finally:
            if slot.job is not None:
                slot.job.resolve()
        if error is None and slot.job is None and not slot.retired:
            error = HostError(f"an idle job process ended: {child.describe_end()}")
        return error

    def _refuse_launches(self, error: HostError) -> None:
        for launch in self._launches.values():
            if not launch.job.done():
                launch.job.set_exception(error)


_ERROR_BY_EXIT_CODE = {kind.exit_code: kind for kind in HostError.__subclasses__()}


def _inference_error(exc: InitializationError) -> HostError:
    if not exc.refused:
        return errors.InferenceError(f"the inference process did not come up: {exc}")
    return _ERROR_BY_EXIT_CODE.get(exc.exit_code, errors.InferenceError)(str(exc))


def _job_error(exc: InitializationError) -> HostError:
    if not exc.refused:
        return HostError(f"a job process did not come up: {exc}")
    return _ERROR_BY_EXIT_CODE.get(exc.exit_code, HostError)(str(exc))
