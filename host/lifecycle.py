"""The life of a child process as data: its states, its heartbeat, its memory, and when to try again. Pure.

    STARTING --STARTED--> INITIALIZING --READY--> READY --ASSIGNED--> RUNNING
        |                      |                    |                    |
        |                      '------- STOP -------+-------- STOP ------'
        |                                           v
        '---- EXITED (from every state) --> ENDED   STOPPING

A row that is missing from ``TRANSITIONS`` *is* the error. Times are seconds on the caller's clock.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass


class ChildState(enum.Enum):
    """Where a child process stands."""

    STARTING = "starting"
    """Asked for; there is no process yet."""
    INITIALIZING = "initializing"
    """The process is there and loads, warms up or imports the agent."""
    READY = "ready"
    """It has done its work once and can serve."""
    RUNNING = "running"
    """It serves a job."""
    STOPPING = "stopping"
    """It was told to end, or is being killed."""
    ENDED = "ended"
    """The process is gone and its exit code is known."""


class ChildEvent(enum.Enum):
    """What happens to a child process."""

    STARTED = "started"
    READY = "ready"
    ASSIGNED = "assigned"
    STOP = "stop"
    EXITED = "exited"


class IllegalTransitionError(Exception):
    """The event cannot happen in this state: a mistake of this program, not of the child."""


TRANSITIONS: Mapping[ChildState, Mapping[ChildEvent, ChildState]] = {
    ChildState.STARTING: {
        ChildEvent.STARTED: ChildState.INITIALIZING,
        ChildEvent.EXITED: ChildState.ENDED,
    },
    ChildState.INITIALIZING: {
        ChildEvent.READY: ChildState.READY,
        ChildEvent.STOP: ChildState.STOPPING,
        ChildEvent.EXITED: ChildState.ENDED,
    },
    ChildState.READY: {
        ChildEvent.ASSIGNED: ChildState.RUNNING,
        ChildEvent.STOP: ChildState.STOPPING,
        ChildEvent.EXITED: ChildState.ENDED,
    },
    ChildState.RUNNING: {
        ChildEvent.STOP: ChildState.STOPPING,
        ChildEvent.EXITED: ChildState.ENDED,
    },
    ChildState.STOPPING: {
        # Its "ready" may cross our "shut down"; a second request to stop changes nothing.
        ChildEvent.READY: ChildState.STOPPING,
        ChildEvent.STOP: ChildState.STOPPING,
        ChildEvent.EXITED: ChildState.ENDED,
    },
    ChildState.ENDED: {},
}


def follow(state: ChildState, event: ChildEvent) -> ChildState:
    """The state after ``event``. Raises ``IllegalTransitionError``."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransitionError(f"{event.value} cannot happen to a child that is {state.value}") from None


@dataclass(frozen=True, slots=True)
class Backoff:
    """When to try again after failures in a row: ``initial_s``, doubled each time, at most ``maximum_s``.

    A failure that comes more than ``forget_s`` after a try was due begins another row.
    """

    initial_s: float = 0.5
    maximum_s: float = 30.0
    failures: int = 0
    not_before: float = 0.0
    forget_s: float = math.inf

    def after_failure(self, now: float) -> Backoff:
        """One more failure in a row, at ``now``."""
        failures = self.failures if now <= self.not_before + self.forget_s else 0
        # The exponent is capped before it is used: 2 ** 2000 is no float.
        delay_s = min(self.initial_s * 2.0 ** min(failures, 32), self.maximum_s)
        return Backoff(self.initial_s, self.maximum_s, failures + 1, now + delay_s, self.forget_s)

    def after_success(self) -> Backoff:
        """The row of failures is over."""
        return Backoff(self.initial_s, self.maximum_s, forget_s=self.forget_s)

    def wait_s(self, now: float) -> float:
        """How long to wait still, in seconds; 0 when the next try is due."""
        return max(0.0, self.not_before - now)


class FairClock:
    """A clock that stands still while this process does, so that its own blocks are not held against its children.

    ``pulse`` is called again and again by the event loop, more often than every ``gap_s``. Between two pulses
    the clock advances by at most ``gap_s``: of a loop that was blocked for a minute it sees that much, and a
    loop that is only slow, on a busy machine, loses nothing.
    """

    def __init__(self, gap_s: float, now: float) -> None:
        self._gap_s = gap_s
        self._pulsed_at = now
        self._fair = now

    def pulse(self, now: float) -> None:
        """The event loop runs."""
        self._fair = self.read(now)
        self._pulsed_at = now

    def read(self, now: float) -> float:
        """The time, in seconds, not counting the time lost."""
        return self._fair + min(now - self._pulsed_at, self._gap_s)


class Beat(enum.Enum):
    """What a heartbeat asks for now."""

    WAIT = "wait"
    PING = "ping"
    DEAD = "dead"


class Heartbeat:
    """Whether a child answers its pings: one at a time, every ``interval_s``, each within ``timeout_s``."""

    def __init__(self, interval_s: float, timeout_s: float, now: float) -> None:
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._next_at = now + interval_s
        self._pinged_at: float | None = None

    def beat(self, now: float) -> Beat:
        """What to do now. After ``PING`` a ping must be sent."""
        if self._pinged_at is not None:
            return Beat.DEAD if now - self._pinged_at >= self._timeout_s else Beat.WAIT
        if now < self._next_at:
            return Beat.WAIT
        self._pinged_at = now
        return Beat.PING

    def answered(self, now: float) -> float:
        """The child answered; returns the round trip in seconds (0 for an answer to nothing)."""
        if self._pinged_at is None:
            return 0.0
        round_trip_s = now - self._pinged_at
        self._next_at = self._pinged_at + self._interval_s
        self._pinged_at = None
        return round_trip_s

    def wait_s(self, now: float) -> float:
        """How long until ``beat`` may say something new, in seconds."""
        due = self._next_at if self._pinged_at is None else self._pinged_at + self._timeout_s
        return max(0.0, due - now)


class RateLimit:
    """Lets one through at once, then at most one every ``interval_s``, and counts those that it held back."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._not_before = -math.inf
        self._held_back = 0

    def admit(self, now: float) -> int | None:
        """None: not this one. Else how many were held back since the last that was let through."""
        if now < self._not_before:
            self._held_back += 1
            return None
        held_back, self._held_back = self._held_back, 0
        self._not_before = now + self._interval_s
        return held_back


class MemoryVerdict(enum.Enum):
    """What a process's memory asks for."""

    FINE = "fine"
    WARN = "warn"
    LIMIT = "limit"
    """It must end."""


class MemoryWatch:
    """What is thought of a process's memory, in MB: more than ``warn_mb``, more than ``limit_mb``; 0 is off.

    A warning is repeated when ``warn_again_mb`` more are used, or after ``warn_again_s``.
    """

    def __init__(
        self, warn_mb: float, limit_mb: float, *, warn_again_mb: float = 50.0, warn_again_s: float = 120.0
    ) -> None:
        self._warn_mb = warn_mb
        self._limit_mb = limit_mb
        self._warn_again_mb = warn_again_mb
        self._warn_again_s = warn_again_s
        self._warned_at = -math.inf
        self._warned_mb = -math.inf

    def sample(self, now: float, used_mb: float) -> MemoryVerdict:
        """The process used ``used_mb`` at ``now``."""
        if 0 < self._limit_mb < used_mb:
            return MemoryVerdict.LIMIT
        if not 0 < self._warn_mb < used_mb:
            return MemoryVerdict.FINE
        if used_mb < self._warned_mb + self._warn_again_mb and now < self._warned_at + self._warn_again_s:
            return MemoryVerdict.FINE
        self._warned_at, self._warned_mb = now, used_mb
        return MemoryVerdict.WARN
