"""Admit or refuse a job, and the load that the LiveKit server is told. No clock, no I/O.

What bounds the rooms of a host, in the order in which it is asked about:

    draining                     nothing more is taken
    the inference process away   nothing can be served
    places                       the smaller of ``max_jobs`` and the inference process's slots
    slots                        slots that jobs hold besides one each
    load                         below ``load_threshold``, with the rooms that it does not show yet
    CPU                          what one room costs must still be there

A place is held from the moment a job is accepted until it has ended, so that two offers that arrive
together cannot take the same one. Load and CPU are asked about only while rooms run: what others do on an
idle host says nothing about us, and a job refused by the only host is lost. Only a load function of the
user's own may refuse then, too.

All loads are shares from 0 to 1, times are seconds on any steady clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SERVER_TARGET_LOAD = 0.7
"""``agents.target_load`` of the LiveKit server, its default. A host that reports this much or more is
never offered a job, even if it says that it is available: its node's affinity, the sum of
``max(0, target_load - load)`` over its available hosts, is then 0 and loses to no answer at all.
(livekit ``pkg/service/agentservice.go`` ``JobRequestAffinity``, psrpc ``pkg/client/rpc.go`` ``selectServer``.)
"""

_HIGHEST_AVAILABLE_LOAD = SERVER_TARGET_LOAD - 0.01

LOAD_WINDOW_S = 2.5
"""How far back a measured load looks: a room that began more recently is not all in it."""


@dataclass(frozen=True, slots=True)
class LoadParts:
    """What the load of a host is made of.

    ``memory``: device memory that others took after ours was taken. ``pressure``: requests to the
    inference process that began late. ``jobs``: places that are taken.
    """

    cpu: float = 0.0
    memory: float = 0.0
    pressure: float = 0.0
    jobs: float = 0.0

    @property
    def largest(self) -> str:
        """The name of the part that decides."""
        return max(("cpu", "memory", "pressure", "jobs"), key=lambda name: getattr(self, name))

    @property
    def value(self) -> float:
        """The load: the largest part."""
        return max(self.cpu, self.memory, self.pressure, self.jobs)


@dataclass(frozen=True, slots=True)
class Load:
    """The load when a decision is made. ``room_cpu``: share of the CPU that one room costs, 0 while unknown.

    ``custom``: what the user's own load function says in place of the parts, None without one.
    """

    parts: LoadParts = field(default_factory=LoadParts)
    room_cpu: float = 0.0
    custom: float | None = None

    @property
    def value(self) -> float:
        """The load of the host, as it is shown."""
        return self.parts.value if self.custom is None else self.custom


@dataclass(frozen=True, slots=True)
class Status:
    """What the server is told: ``load`` from 0 to 1 on the server's scale, ``job_count`` running rooms."""

    full: bool
    load: float
    job_count: int


@dataclass(slots=True)
class Capacity:
    """The places of one host.

    ``slots``: rooms that the inference process holds at once. ``load_threshold``: load from which nothing
    more is admitted; above 1 it is never reached, which also switches the question about the CPU off.
    ``max_jobs``: rooms at once, None for as many as there are slots. The places bound the jobs exactly, so
    the jobs' part of the load does not count against the threshold.
    """

    slots: int
    load_threshold: float = 0.7
    max_jobs: int | None = None
    ready: bool = False
    """The inference process serves."""
    draining: bool = False
    extra_slots: int = 0
    """Slots of the inference process that are taken besides one for each job."""
    _reserved: set[str] = field(default_factory=set)
    _running: dict[str, float] = field(default_factory=dict)
    """When each job was launched."""

    # --- what is taken ----------------------------------------------------------------------------

    @property
    def places(self) -> int:
        """Rooms at once."""
        return self.slots if self.max_jobs is None else min(self.max_jobs, self.slots)

    @property
    def taken(self) -> int:
        """Places that are held: by rooms that run and by jobs that are promised."""
        return len(self._reserved) + len(self._running)

    @property
    def reserved(self) -> int:
        """Places that are promised and not used yet."""
        return len(self._reserved)

    @property
    def job_count(self) -> int:
        """Rooms that run, without those that are only promised."""
        return len(self._running)

    @property
    def share(self) -> float:
        """How much of the places is taken."""
        return min(self.taken / self.places, 1.0) if self.places > 0 else 1.0

    def is_empty(self) -> bool:
        """Nothing runs and nothing is promised."""
        return not self.taken

    def reserve(self, job_id: str, now: float, load: Load) -> str:
        """Hold a place for ``job_id``; returns "" or the refusal. Asking again for a promised place changes nothing."""
        if job_id in self._reserved:
            return ""
        if job_id in self._running:
            return "the job runs already"
        if not (refusal := self.refusal(now, load)):
            self._reserved.add(job_id)
        return refusal

    def launched(self, job_id: str, now: float) -> None:
        """The job runs: its reservation becomes a room."""
        self._reserved.discard(job_id)
        self._running[job_id] = now

    def release(self, job_id: str) -> None:
        """The job was not launched after all, or has ended."""
        self._reserved.discard(job_id)
        self._running.pop(job_id, None)

    # --- what is decided --------------------------------------------------------------------------

    def refusal(self, now: float, load: Load) -> str:
        """Why no further job is taken now, for a person; "" if one is."""
        if self.draining:
            return "draining"
        if not self.ready:
            return "the inference process is not running"
        if self.taken >= self.places:
            return f"all {self.places} rooms are taken"
        if self.taken + self.extra_slots >= self.slots:
            return f"no inference slot is free: jobs hold {self.extra_slots} besides one each"
        if self.taken or load.custom is not None:
            return self._overloaded(now, load)
        return ""

    def _overloaded(self, now: float, load: Load) -> str:
        if (effective := self.effective(now, load)) >= self.load_threshold:
            what = "load" if load.custom is not None else f"{self._projected(now, load).largest} load"
            return f"{what} {effective:.2f} is not below {self.load_threshold:.2f}"
        if load.custom is None and self.load_threshold <= 1:
            wanted = self._projected(now, load).cpu + load.room_cpu
            if wanted > 1:
                return f"a room takes {load.room_cpu:.0%} of the CPU, and {wanted - load.room_cpu:.0%} of it is in use"
        return ""

    def effective(self, now: float, load: Load) -> float:
        """The load that admission compares: with the rooms that the measured one does not show yet, 0 to 1."""
        if load.custom is not None:
            return min(max(load.custom + self._unseen_share(now) * load.custom, 0.0), 1.0)
        return min(self._projected(now, load).value, 1.0)

    def _projected(self, now: float, load: Load) -> LoadParts:
        """The measured parts with the rooms that they do not show yet. Memory is taken at start, not by rooms."""
        parts = load.parts
        return LoadParts(
            cpu=parts.cpu + self._unseen(now) * load.room_cpu,
            memory=parts.memory,
            pressure=parts.pressure * (1 + self._unseen_share(now)),
        )

    def _unseen(self, now: float) -> int:
        """Rooms that a measured load does not show: promised, or just begun."""
        return len(self._reserved) + sum(now - began < LOAD_WINDOW_S for began in self._running.values())

    def _unseen_share(self, now: float) -> float:
        """Unseen rooms for each that is seen: the load grows by so much of itself. 0 while there is none to judge by.

        LiveKit's own workers reckon so: ``load + reserved * load / running`` (livekit-agents ``worker.py``).
        """
        unseen = self._unseen(now)
        seen = self.taken - unseen
        return unseen / seen if seen else 0.0

    def status(self, now: float, load: Load) -> Status:
        """For ``UpdateWorkerStatus``. Available hosts stay below the load from which the server ignores them."""
        if self.refusal(now, load):
            return Status(True, 1.0, self.job_count)
        share = self.effective(now, load) / _limit(self.load_threshold)
        if load.custom is None:
            share = max(share, self.share)
        return Status(False, min(share * SERVER_TARGET_LOAD, _HIGHEST_AVAILABLE_LOAD), self.job_count)


def _limit(threshold: float) -> float:
    """What a load is a share of: the threshold, or the whole host where there is none to reach."""
    return threshold if 0 < threshold <= 1 and math.isfinite(threshold) else 1.0
