"""Which job processes to start, hand out and give up: decisions of the idle pool. Pure.

A process serves one job and ends, so the pool is a queue of warm processes in front of the jobs. The
shell (``job_pool.py``) takes a ``View`` of what is there, performs the decisions in order, and
plans again when anything in the view has changed or ``wait_s`` has passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from host.lifecycle import Backoff

MAX_CONCURRENT_STARTS = 4
"""How many processes may come up at once: a start takes a core for a moment, and running jobs need theirs."""


@dataclass(frozen=True, slots=True)
class IdleProcess:
    """A process that is READY and has no job. ``is_alive``: asked of the kernel just now."""

    name: str
    is_alive: bool


@dataclass(frozen=True, slots=True)
class View:
    """What is there: ``idle`` oldest first, ``starting`` on their way to READY, ``waiting`` jobs without a process."""

    num_idle_processes: int
    idle: Sequence[IdleProcess]
    starting: int
    waiting: Sequence[str]
    backoff: Backoff


@dataclass(frozen=True, slots=True)
class Assign:
    """Hand the idle process ``process`` to the waiting job ``job_id``."""

    process: str
    job_id: str


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start one more process."""


@dataclass(frozen=True, slots=True)
class Retire:
    """End an idle process that nobody needs, in order."""

    process: str


@dataclass(frozen=True, slots=True)
class Discard:
    """Forget an idle process that has died; it must not be handed out."""

    process: str


Decision = Assign | Spawn | Retire | Discard


@dataclass(frozen=True, slots=True)
class Plan:
    """``decisions`` in the order to perform them, and when to plan again although nothing has changed.

    ``wait_s``: seconds from ``now``; None: only when something changes.
    """

    decisions: tuple[Decision, ...]
    wait_s: float | None = None


def plan(now: float, view: View) -> Plan:
    """What to do at ``now`` (seconds, the clock of ``view.backoff``)."""
    decisions: list[Decision] = [Discard(process.name) for process in view.idle if not process.is_alive]
    idle = [process.name for process in view.idle if process.is_alive]
    waiting = list(view.waiting)
    while idle and waiting:
        decisions.append(Assign(idle.pop(0), waiting.pop(0)))

    wanted = view.num_idle_processes + len(waiting)
    # Only what is idle can be retired; what is starting may still be wanted when it is ready.
    surplus = len(idle) - wanted
    decisions.extend(Retire(name) for name in idle[: max(0, surplus)])

    missing = wanted - len(idle) - view.starting
    if missing <= 0:
        return Plan(tuple(decisions))
    wait_s = view.backoff.wait_s(now)
    if wait_s > 0:
        return Plan(tuple(decisions), wait_s)
    free_starts = MAX_CONCURRENT_STARTS - view.starting
    if view.backoff.failures:
        # After a failure one process at a time is tried, so that a broken agent costs one start a try.
        free_starts = 1 - view.starting
    decisions.extend(Spawn() for _ in range(min(missing, max(0, free_starts))))
    return Plan(tuple(decisions))
