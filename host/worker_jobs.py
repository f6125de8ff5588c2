"""The jobs of a worker: a place for each, a process for each, and how each ended."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from host.capacity import Capacity, Load, Status
from host.errors import HostError
from host.job.settings import SessionSettings
from host.observer import Observer
from host.offers import Assigned
from host.running_job import JobResult, OnTurn, OnUpdate, RunningJob
from inference.wire.supervision import JobStatus, JobUpdate, StartJob

if TYPE_CHECKING:
    from host.supervisor import Supervisor

logger = logging.getLogger(__name__)


class Told(Protocol):
    """Who is told about the jobs: the LiveKit server's end, or nobody."""

    def status_changed(self) -> None:
        """There is something to tell about the host."""

    async def report_job(self, job_id: str, status: JobStatus, error: str = "") -> None:
        """Tell how a job does; returns from a final status when it has been taken."""


class Nobody:
    """A host without a registration tells nobody."""

    def status_changed(self) -> None:
        """Nothing."""

    async def report_job(self, job_id: str, status: JobStatus, error: str = "") -> None:
        """Nothing."""


@dataclass(slots=True)
class _Job:
    """One job that has a place. ``running`` is None until it has a process; ``shutdown`` waits for that."""

    room: str
    task: asyncio.Task[JobResult] | None = None
    running: RunningJob | None = None
    shutdown: str = ""

    def end(self, reason: str) -> None:
        self.shutdown = self.shutdown or reason
        if self.running is not None:
            self.running.shutdown(reason)


class WorkerJobs:
    """Answers what dispatch asks (``host.offers.JobHandler``), and runs the jobs.

    ``supervisor`` and ``told`` are set when they are there, before the first job.
    """

    def __init__(
        self,
        capacity: Capacity,
        load: Callable[[], Load],
        session: SessionSettings,
        on_turn: OnTurn,
        observer: Observer,
    ) -> None:
        self.supervisor: Supervisor | None = None
        self.told: Told = Nobody()
        self._capacity = capacity
        self._load = load
        self._session = session.to_json()
        self._on_turn = on_turn
        self._observer = observer
        self._jobs: dict[str, _Job] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._ending = False

    def __len__(self) -> int:
        return len(self._jobs)

    # --- what dispatch asks -----------------------------------------------------------------------

    def refusal(self) -> str:
        """Why no further job can be taken now; "" if one can."""
        self._ask_inference()
        return self._capacity.refusal(time.monotonic(), self._load())

    def reserve(self, job_id: str) -> str:
        """Hold a place for the job. Returns "" or the reason why there is none."""
        self._ask_inference()
        refusal = self._capacity.reserve(job_id, time.monotonic(), self._load())
        self._update_idle()
        return refusal

    def withdrawn(self, job_id: str) -> None:
        """Free the place of a job that does not come."""
        self._release(job_id)

    def assigned(self, assigned: Assigned) -> None:
        """Start the job in a process of its own, and report it to the server."""
        accept = assigned.accept
        start = StartJob(
            job_id=assigned.job.id,
            room=assigned.job.room.name,
            transport="livekit",
            job=assigned.job.SerializeToString(),
            url=assigned.url,
            token=assigned.token,
            identity=accept.identity,
            name=accept.name,
            metadata=accept.metadata,
            attributes=json.dumps(dict(accept.attributes)),
            worker_id=assigned.worker_id,
            settings=self._session,
        )

        async def on_update(update: JobUpdate) -> None:
            await self.told.report_job(start.job_id, update.status, update.error)

        async def run() -> JobResult:
            try:
                return await self._run(start, on_update)
            except HostError as exc:
                logger.error("job not started: %s", exc, extra=_fields(start))  # noqa: TRY400 (it says all)
                await self.told.report_job(start.job_id, "failed", str(exc))
                return JobResult("failed", str(exc), 0)

        self._begin(start, run())

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
        self._ask_inference()
        return self._capacity.status(time.monotonic(), self._load())

    # --- jobs without a server --------------------------------------------------------------------

    async def simulate(self, start: StartJob, on_update: OnUpdate) -> JobResult:
        """Run a job that no server has assigned. Raises ``HostError`` when there is no place or no process."""
        if refusal := self.reserve(start.job_id):
            raise HostError(f"the job is not started: {refusal}")
        job = self._begin(start, self._run(start, on_update))
        assert job.task is not None
        return await asyncio.shield(job.task)

    # --- the jobs' lives --------------------------------------------------------------------------

    async def wait_idle(self) -> None:
        """Return when nothing runs and nothing is promised."""
        await self._idle.wait()

    async def end(self, reason: str) -> None:
        """Tell every job to finish; returns when all have. One that is assigned from here on fails, and is told so."""
        self._ending = True
        for job in self._jobs.values():
            job.end(reason)
        while tasks := [job.task for job in self._jobs.values() if job.task is not None]:
            await asyncio.wait(tasks)

    def _begin(self, start: StartJob, run: Awaitable[JobResult]) -> _Job:
        self._capacity.launched(start.job_id, time.monotonic())
        self._jobs[start.job_id] = job = _Job(start.room)
        self._update_idle()

        async def live() -> JobResult:
            try:
                return await run
            finally:
                del self._jobs[start.job_id]
                self._release(start.job_id)

        job.task = asyncio.create_task(live(), name=f"job {start.job_id}")
        job.task.add_done_callback(_look_at_failure)
        self.told.status_changed()
        return job

    async def _run(self, start: StartJob, on_update: OnUpdate) -> JobResult:
        assert self.supervisor is not None
        job = self._jobs[start.job_id]
        try:
            if self._ending:
                raise HostError("the job is not started: the host is stopping")
            running = await self.supervisor.launch(start, on_update=on_update, on_turn=self._on_turn)
        except HostError:
            self._observer.job_ended("failed")
            raise
        job.running = running
        logger.info("job started", extra={**_fields(start), "pid": running.pid})
        if job.shutdown:
            running.shutdown(job.shutdown)
        result = await running.wait()
        level = logging.INFO if result.status == "success" else logging.ERROR
        logger.log(level, "job ended: %s", f"{result.status} {result.error}".rstrip(), extra=_fields(start))
        return result

    def _release(self, job_id: str) -> None:
        self._capacity.release(job_id)
        self._update_idle()
        self.told.status_changed()

    def _ask_inference(self) -> None:
        self._capacity.ready = self.supervisor is not None and self.supervisor.inference_ready

    def _update_idle(self) -> None:
        if self._capacity.is_empty():
            self._idle.set()
        else:
            self._idle.clear()


def _look_at_failure(task: asyncio.Task[JobResult]) -> None:
    """Who waited for a simulated job may have gone; what is foreseen was meant for them, anything else is said here."""
    if not task.cancelled() and (exc := task.exception()) and not isinstance(exc, HostError):
        logger.error("%s failed", task.get_name(), exc_info=exc)


def _fields(start: StartJob) -> dict[str, str]:
    return {"job_id": start.job_id, "room": start.room}
