"""A supervisor without processes, for what a worker decides about jobs that it does not run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from host.errors import HostError
from host.observer import Observer
from host.process import ProcessInfo
from host.running_job import JobResult, OnTurn, OnUpdate
from host.supervisor_options import SupervisorOptions
from inference.wire.supervision import InferenceReport, JobStatus, JobUpdate, StartJob


class FakeJob:
    """One "running" job. It ends when the test says so, or, unless it is stubborn, when it is told to."""

    def __init__(self, start: StartJob, on_update: OnUpdate, *, stubborn: bool) -> None:
        self.start = start
        self.pid = 0
        self.shutdowns: list[str] = []
        self._on_update = on_update
        self._stubborn = stubborn
        self._over = asyncio.Event()
        self._result: tuple[JobStatus, str] = ("success", "")

    def shutdown(self, reason: str) -> None:
        self.shutdowns.append(reason)
        if not self._stubborn:
            self._over.set()

    def finish(self, status: JobStatus = "success", error: str = "") -> None:
        self._result = status, error
        self._over.set()

    async def wait(self) -> JobResult:
        await self._over.wait()
        status, error = self._result
        await self._on_update(JobUpdate(self.start.job_id, status, error))
        return JobResult("success" if status == "success" else "failed", error, 0)


class FakeSupervisor:
    """``started`` is set when it has come up; ``launched`` has the jobs by id."""

    def __init__(self, options: SupervisorOptions, *, on_progress: object, observer: Observer) -> None:
        self.options = options
        self.observer = observer
        self.inference_ready = True
        self.inference_report: InferenceReport | None = report(max_rooms=options.inference.max_rooms)
        self.inference_restarts = 0
        self.jobs: dict[str, FakeJob] = {}
        self.stubborn = False
        self.refuses = ""
        self.failure: asyncio.Future[HostError] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()

    async def __aenter__(self) -> FakeSupervisor:
        return self

    async def __aexit__(self, *_: object) -> None:
        assert all(job._over.is_set() for job in self.jobs.values())

    async def wait_failed(self) -> HostError:
        return await asyncio.shield(self.failure)

    def processes(self) -> tuple[ProcessInfo, ...]:
        return ()

    async def launch(self, start: StartJob, *, on_update: OnUpdate, on_turn: OnTurn) -> FakeJob:
        if self.refuses:
            raise HostError(self.refuses)
        self.jobs[start.job_id] = job = FakeJob(start, on_update, stubborn=self.stubborn)
        await on_update(JobUpdate(start.job_id, "running"))
        self.changed.set()
        return job

    async def job(self, job_id: str) -> FakeJob:
        """The job, once it runs."""
        async with asyncio.timeout(5):
            while job_id not in self.jobs:
                self.changed.clear()
                await self.changed.wait()
        return self.jobs[job_id]


def report(**changes: Any) -> InferenceReport:
    return InferenceReport(**({"device": "cpu", "rooms": 0, "max_rooms": 4, "busy": 0.0, "pressure": 0.0} | changes))


@pytest.fixture
def supervisors(monkeypatch: pytest.MonkeyPatch) -> list[FakeSupervisor]:
    """From here on workers have fake supervisors; the list has them."""
    made: list[FakeSupervisor] = []

    def make(options: SupervisorOptions, **more: Any) -> FakeSupervisor:
        made.append(FakeSupervisor(options, **more))
        return made[-1]

    monkeypatch.setattr("host.supervisor.Supervisor", make)
    return made
