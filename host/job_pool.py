"""The job processes: keeps warm ones, hands them to jobs, replaces them. Performs what ``pool.py`` decides."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from host.child import EXIT_GRACE_S, Child, InitializationError, Watch
from host.errors import HostError
from host.lifecycle import Backoff, ChildState, MemoryVerdict, MemoryWatch
from host.pool import Assign, Decision, Discard, IdleProcess, Retire, Spawn, View, plan
from host.process import Handle, SpawnError
from host.residents import job_error
from host.running_job import OnTurn, OnUpdate, RunningJob
from host.supervisor_options import SupervisorOptions
from inference.wire import supervision as s
from inference.wire.errors import LocalProtocolError
from inference.wire.tlv import Message, encode

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3
"""How many processes a job is given, one after the other, when they die before they have taken it."""
_FORGET_FAILURES_S = 60.0
_LAST_REPORTS_S = 10.0
"""How long ``stop`` waits for the ``on_update`` of a job whose process has ended."""


class Executor(Protocol):
    """Makes what a job runs in."""

    async def spawn(self, name: str) -> tuple[Handle, socket.socket]:
        """A process that waits for ``InitializeJob``, and our end of its socket. Raises ``SpawnError``."""
        ...


@dataclass(slots=True)
class _Launch:
    """A job that waits for a process. ``running``: the process that it was given and that has not taken it yet."""

    start: s.StartJob
    on_update: OnUpdate
    on_turn: OnTurn
    job: asyncio.Future[RunningJob]
    asked_at: float
    attempts: int = 0
    running: RunningJob | None = None

    def refuse(self, error: HostError) -> None:
        if not self.job.done():
            self.job.set_exception(error)


@dataclass(slots=True)
class _Slot:
    """One job process of the pool, from the decision to start it. ``child`` is None until it is forked."""

    name: str
    memory: MemoryWatch
    task: asyncio.Task[None] | None = None
    child: Child | None = None
    group: asyncio.TaskGroup | None = None
    job: RunningJob | None = None
    launch: _Launch | None = None
    retired: bool = False

    def is_starting(self) -> bool:
        return self.child is None or self.child.state is ChildState.INITIALIZING

    def is_idle(self) -> bool:
        return self.child is not None and self.child.is_idle()

    def stop(self, reason: str) -> None:
        if self.job is not None:
            self.job.shutdown(reason)
        elif self.child is not None:
            self.retired = True
            self.child.stop(reason, EXIT_GRACE_S)
        elif self.task is not None:
            # Its fork is asked for; should it come, there is nobody to talk to it, and it ends.
            self.task.cancel()

    def discard(self) -> None:
        if self.child is not None:
            self.child.found_dead()


@dataclass(slots=True)
class _State:
    """What the pool knows besides its slots."""

    backoff: Backoff = field(default_factory=lambda: Backoff(forget_s=_FORGET_FAILURES_S))
    start_failure: str = ""
    stopping: bool = False


class JobPool:
    """``keep`` must be running for anything to happen. ``group`` owns the tasks of the processes.

    ``on_failed`` is told of a process that did not come up while the host was coming up.
    """

    def __init__(
        self,
        options: SupervisorOptions,
        executor: Executor,
        *,
        watch: Watch,
        group: asyncio.TaskGroup,
        on_failed: Callable[[HostError], None],
    ) -> None:
        self.up = asyncio.Event()
        """Set when a process was warm for the first time."""
        self.tasks: set[asyncio.Task[None]] = set()
        """One for each process, until it has ended and its job has been reported."""
        self._options = options
        self._executor = executor
        self._watch = watch
        self._group = group
        self._on_failed = on_failed
        self._names = (f"job-{number}" for number in itertools.count(1))
        self._slots: dict[str, _Slot] = {}
        self._launches: dict[str, _Launch] = {}
        self._changed = asyncio.Event()
        self._state = _State()
        self._host_is_up = False

    def __repr__(self) -> str:
        return f"<JobPool jobs={len(self.jobs)} idle={self.idle_processes} waiting={len(self._launches)}>"

    @property
    def jobs(self) -> tuple[RunningJob, ...]:
        """The jobs whose process has not ended, oldest first."""
        return tuple(slot.job for slot in self._slots.values() if slot.job is not None)

    @property
    def idle_processes(self) -> int:
        """How many warm processes wait for a job."""
        return sum(slot.is_idle() for slot in self._slots.values())

    @property
    def children(self) -> tuple[Child, ...]:
        """What runs, oldest first."""
        children = (slot.child for slot in self._slots.values() if slot.child is not None)
        return tuple(child for child in children if child.state is not ChildState.ENDED)

    def host_is_up(self) -> None:
        """The host serves: from here on a process that does not come up is tried again."""
        self._host_is_up = True

    async def launch(self, start: s.StartJob, on_update: OnUpdate, on_turn: OnTurn) -> RunningJob:
        """Give a job a process, and return when that has taken it: see ``Supervisor.launch``."""
        if self._state.stopping:
            raise HostError(f"job {start.job_id} is not started: the host is stopping")
        if start.job_id in self._launches or any(job.job_id == start.job_id for job in self.jobs):
            raise HostError(f"job {start.job_id} is running already")
        try:
            encode(start)
        except LocalProtocolError as exc:
            # Metadata is written by strangers: what does not fit fails its own job and nobody else's.
            raise HostError(f"job {start.job_id} cannot be handed to a process: {exc}") from exc
        answer: asyncio.Future[RunningJob] = asyncio.get_running_loop().create_future()
        launch = _Launch(start, on_update, on_turn, answer, time.monotonic())
        self._launches[start.job_id] = launch
        self._changed.set()
        timeout_s = self._options.initialize_process_timeout
        try:
            in_time = await self._watch.wait(launch.job, timeout_s)
        except asyncio.CancelledError:
            if launch.running is not None:
                launch.running.shutdown("its launch was given up")
            raise
        finally:
            self._launches.pop(start.job_id, None)
            self._changed.set()
        if in_time:
            return launch.job.result()
        if launch.running is not None:
            # It has its process; if that is stuck, its heartbeat says so.
            return launch.running
        raise HostError(f"no job process was ready within {timeout_s:g} s. {self._state.start_failure}".strip())

    # --- life -------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Keep the pool as it should be, until ``stop``."""
        while not self._state.stopping:
            self._changed.clear()
            decided = plan(time.monotonic(), self._view())
            for decision in decided.decisions:
                self._perform(decision)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(decided.wait_s):
                    await self._changed.wait()

    async def stop(self) -> None:
        """End every process in order: jobs get ``shutdown_process_timeout``."""
        self._state.stopping = True
        self._changed.set()
        for launch in self._launches.values():
            if launch.running is None:
                launch.refuse(HostError(f"job {launch.start.job_id} is not started: the host is stopping"))
        for slot in self._slots.values():
            slot.stop("the host is stopping")
        if self.tasks:
            timeout_s = self._options.shutdown_process_timeout + EXIT_GRACE_S + _LAST_REPORTS_S
            _, late = await asyncio.wait(self.tasks, timeout=timeout_s)
            for task in late:
                logger.error("%s is given up: its last report was not taken", task.get_name())
                task.cancel()
            if late:
                await asyncio.wait(late)

    def measured(self, child: Child) -> None:
        """Judge the memory of a job process that was just measured."""
        slot = self._slots.get(child.name)
        if slot is None or slot.child is not child:
            return
        match slot.memory.sample(time.monotonic(), child.memory_mb):
            case MemoryVerdict.WARN:
                logger.warning(
                    "%s (pid %d) uses %.0f MB; job_memory_warn_mb is %.0f",
                    child.name,
                    child.pid,
                    child.memory_mb,
                    self._options.job_memory_warn_mb,
                    extra={**child.log_fields, "memory_mb": round(child.memory_mb, 1)},
                )
            case MemoryVerdict.LIMIT:
                limit_mb = self._options.job_memory_limit_mb
                child.condemn(f"it used {child.memory_mb:.0f} MB, job_memory_limit_mb is {limit_mb:.0f}", "memory")

    # --- decisions --------------------------------------------------------------------------------

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
            waiting=[
                job_id for job_id, launch in self._launches.items() if launch.running is None and not launch.job.done()
            ],
            backoff=self._state.backoff,
        )

    def _perform(self, decision: Decision) -> None:
        match decision:
            case Spawn():
                memory = MemoryWatch(self._options.job_memory_warn_mb, self._options.job_memory_limit_mb)
                slot = _Slot(next(self._names), memory)
                self._slots[slot.name] = slot
                task = slot.task = self._group.create_task(self._run_slot(slot), name=slot.name)
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            case Assign(process=name, job_id=job_id):
                self._assign(self._slots[name], self._launches[job_id])
            case Retire(process=name):
                self._slots[name].stop("it is not needed")
            case Discard(process=name):
                self._slots[name].discard()

    def _assign(self, slot: _Slot, launch: _Launch) -> None:
        assert slot.child is not None
        assert slot.group is not None
        grace_s = self._options.shutdown_process_timeout
        job = RunningJob(launch.start, slot.child, grace_s, launch.on_update, launch.on_turn, self._watch.observer)
        slot.job, slot.launch = job, launch
        launch.running = job
        launch.attempts += 1
        slot.child.start_job(launch.start)
        slot.group.create_task(job.pass_on(), name=f"{slot.name}-updates")

    def _receive(self, slot: _Slot, message: Message) -> None:
        if slot.job is None:
            return
        slot.job.receive(message)
        if slot.launch is not None and slot.job.heard.is_set():
            self._taken(slot.job, slot.launch)
            slot.launch = None

    def _taken(self, job: RunningJob, launch: _Launch) -> None:
        seconds = time.monotonic() - launch.asked_at
        self._state.backoff = self._state.backoff.after_success()
        self._watch.observer.job_launched(seconds)
        logger.info(
            "job %s (room %s) has process %d",
            job.job_id,
            job.room,
            job.pid,
            extra={"job_id": job.job_id, "room": job.room, "pid": job.pid, "launch_ms": round(seconds * 1000, 1)},
        )
        if not launch.job.done():
            launch.job.set_result(job)

    # --- one process ------------------------------------------------------------------------------

    async def _run_slot(self, slot: _Slot) -> None:
        try:
            error = await self._serve_slot(slot)
        finally:
            del self._slots[slot.name]
            self._changed.set()
        if error is not None and not self._state.stopping:
            self._failed(error)

    def _failed(self, error: HostError) -> None:
        self._watch.observer.process_failed("job")
        now = time.monotonic()
        self._state.backoff = self._state.backoff.after_failure(now)
        self._state.start_failure = str(error)
        if not self._host_is_up:
            self._on_failed(error)
        logger.error("%s; the next is started in %.1f s", error, self._state.backoff.wait_s(now))

    async def _serve_slot(self, slot: _Slot) -> HostError | None:
        """One job process from its fork to its end; returns what kept it from serving, if anything did."""
        try:
            process, control = await self._executor.spawn(slot.name)
        except SpawnError as exc:
            return HostError(f"no job process could be started: {exc}")
        child = slot.child = Child(
            slot.name,
            "job",
            process,
            control,
            watch=self._watch,
            receive=lambda message: self._receive(slot, message),
        )
        if self._state.stopping:
            slot.stop("the host is stopping")
        error: HostError | None = None
        try:
            async with asyncio.TaskGroup() as slot.group:
                running = slot.group.create_task(child.run(), name=f"{slot.name}-run")
                try:
                    await child.initialize(self._initialize(child), self._options.initialize_process_timeout)
                except InitializationError as exc:
                    error = job_error(exc)
                    if exc.refused:
                        # A function that cannot be imported cannot be imported: whoever waits is told at once.
                        self._refuse_launches(error)
                else:
                    self.up.set()
                    self._changed.set()
                await running
                self._job_ended(slot)
        finally:
            if slot.job is not None:
                slot.job.resolve()
        if error is None and slot.job is None and not slot.retired:
            error = HostError(f"an idle job process ended: {child.describe_end()}")
        return error

    def _job_ended(self, slot: _Slot) -> None:
        """The process is gone: its job has ended, or another process must have it."""
        job, launch, child = slot.job, slot.launch, slot.child
        if job is None:
            return
        assert child is not None
        if child.exit_code != 0 and not child.was_told_to_end:
            self._watch.observer.process_failed("job")
        if launch is not None and self._may_have_another(job, launch):
            logger.warning(
                "%s (pid %d) ended before it had taken its job: %s; another gets the job",
                slot.name,
                child.pid,
                child.describe_end(),
                extra=child.log_fields,
            )
            job.dropped()
            launch.running = None
            return
        job.ended()
        if launch is not None and not launch.job.done():
            launch.job.set_result(job)

    def _may_have_another(self, job: RunningJob, launch: _Launch) -> bool:
        is_waited_for = self._launches.get(job.job_id) is launch
        return is_waited_for and not job.was_taken() and launch.attempts < _MAX_ATTEMPTS and not self._state.stopping

    def _initialize(self, child: Child) -> s.InitializeJob:
        options = self._options
        return s.InitializeJob(
            entrypoint=options.entrypoint,
            inference_socket=options.inference.socket_path,
            inference_token=options.inference.token,
            log_level=options.log_level,
            prewarm=options.prewarm,
            import_path=options.import_path,
            stacks_file=child.stacks_file,
        )

    def _refuse_launches(self, error: HostError) -> None:
        for launch in self._launches.values():
            if launch.running is None:
                launch.refuse(error)
