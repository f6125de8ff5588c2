"""Admit or refuse a job, and the load that the LiveKit server is told. No clock, no I/O.

Two things bound how many rooms a host holds: the inference process's slots (``max_jobs``, fixed at
start, when all memory is taken) and the CPU, which is measured and asked about only while rooms run:
what others do on an idle host says nothing about us, and a job refused by the only host is lost.

A job holds its place from the moment it is accepted, before it is launched, so that two offers that
arrive together cannot take the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SERVER_TARGET_LOAD = 0.7
"""``agents.target_load`` of the LiveKit server, its default. A host that reports this much or more is
never offered a job, even if it says that it is available: its node's affinity, the sum of
``max(0, target_load - load)`` over its available hosts, is then 0 and loses to no answer at all.
(livekit ``pkg/service/agentservice.go`` ``JobRequestAffinity``, psrpc ``pkg/client/rpc.go`` ``selectServer``.)
"""

_HIGHEST_AVAILABLE_LOAD = SERVER_TARGET_LOAD - 0.01


@dataclass(frozen=True, slots=True)
class LoadParts:
    """What the host's load is made of, each from 0 to 1."""

    cpu: float = 0.0
    memory: float = 0.0
    pressure: float = 0.0
    jobs: float = 0.0

    @property
    def value(self) -> float:
        """The load: the largest part."""
        return max(self.cpu, self.memory, self.pressure, self.jobs)

    @property
    def largest(self) -> str:
        """The name of the largest part."""
        return max(("cpu", "memory", "pressure", "jobs"), key=lambda name: float(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Status:
    """What the server is told: ``load`` from 0 to 1 on the server's scale, ``job_count`` running rooms."""

    full: bool
    load: float
    job_count: int


@dataclass(slots=True)
class Capacity:
    """The places of one host. ``load_threshold``: CPU load, 0 to 1, from which nothing more is admitted."""

    max_jobs: int
    load_threshold: float = 0.7
    ready: bool = False
    """The inference process serves."""
    draining: bool = False
    _reserved: set[str] = field(default_factory=set)
    _running: set[str] = field(default_factory=set)

    def refusal(self, cpu_load: float) -> str:
        """Why no further job is taken now, for a person; "" if one is."""
        taken = len(self._reserved) + len(self._running)
        if self.draining:
            return "draining"
        if not self.ready:
            return "the inference process is not running"
        if taken >= self.max_jobs:
            return f"all {self.max_jobs} rooms are taken"
        if taken and cpu_load >= self.load_threshold:
            return f"CPU load {cpu_load:.2f} is not below {self.load_threshold:.2f}"
        return ""

    def reserve(self, job_id: str, cpu_load: float) -> str:
        """Hold a place for ``job_id``; returns "" or the refusal. Asking again for a held place changes nothing."""
        if job_id in self._reserved or job_id in self._running:
            return ""
        if not (refusal := self.refusal(cpu_load)):
            self._reserved.add(job_id)
        return refusal

    def release(self, job_id: str) -> None:
        """The job was not launched after all, or has ended."""
        self._reserved.discard(job_id)
        self._running.discard(job_id)

    def launched(self, job_id: str) -> None:
        """The job runs: its reservation becomes a room."""
        self._reserved.discard(job_id)
        self._running.add(job_id)

    def is_empty(self) -> bool:
        """Nothing runs and nothing is promised."""
        return not self._reserved and not self._running

    @property
    def job_count(self) -> int:
        """Rooms that run, without those that are only promised."""
        return len(self._running)

    def status(self, cpu_load: float) -> Status:
        """For ``UpdateWorkerStatus``. Available hosts stay below the load from which the server ignores them."""
        full = bool(self.refusal(cpu_load))
        taken = len(self._reserved) + len(self._running)
        share = taken / self.max_jobs if self.max_jobs else 1.0
        if taken and self.load_threshold > 0:
            share = max(share, cpu_load / self.load_threshold)
        load = 1.0 if full else min(share * SERVER_TARGET_LOAD, _HIGHEST_AVAILABLE_LOAD)
        return Status(full, load, self.job_count)
