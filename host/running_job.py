"""One room's job as the supervisor's callers see it: what it reports, and how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from host.child import Child
from host.observer import NoObserver, Observer
from inference.wire import supervision as s
from inference.wire.tlv import Message

logger = logging.getLogger(__name__)

OnUpdate = Callable[[s.JobUpdate], Awaitable[None]]
OnTurn = Callable[[s.TurnReport], None]


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended: what it reported last, and the exit code of its process (-N for signal N)."""

    status: Literal["success", "failed"]
    error: str
    exit_code: int


class RunningJob:
    """One room's job, from the moment it has a process."""

    def __init__(
        self,
        start: s.StartJob,
        child: Child,
        grace_s: float,
        on_update: OnUpdate,
        on_turn: OnTurn,
        observer: Observer | None = None,
    ) -> None:
        self.job_id = start.job_id
        self.room = start.room
        self.pid = child.pid
        self.heard = asyncio.Event()
        """Set when it has reported anything: it has taken the job."""
        self._child = child
        self._grace_s = grace_s
        self._on_update = on_update
        self._on_turn = on_turn
        self._observer = observer or NoObserver()
        self._updates: asyncio.Queue[s.JobUpdate | None] = asyncio.Queue()
        self._final: s.JobUpdate | None = None
        self._shutdown = False
        self._result: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<RunningJob {self.job_id} room={self.room} pid={self.pid} {self._child.state.value}>"

    async def wait(self) -> JobResult:
        """Return when the process has ended and its final status has been passed on."""
        return await asyncio.shield(self._result)

    def shutdown(self, reason: str) -> None:
        """Ask it to end: it finishes in order, or is killed after ``shutdown_process_timeout``."""
        self._shutdown = True
        self._child.stop(reason, self._grace_s)

    # --- for the supervisor -----------------------------------------------------------------------

    def was_taken(self) -> bool:
        """Whether its process has begun with it, or was told not to: another process must not have it then."""
        return self.heard.is_set() or self._shutdown

    def receive(self, message: Message) -> None:
        """Take what the job process says."""
        match message:
            case s.JobUpdate() as update if self._final is None:
                if update.status != "running":
                    self._final = update
                self._updates.put_nowait(update)
                self.heard.set()
            case s.JobUpdate() as update:
                logger.warning("the job reports %s after its end", update.status, extra=self._child.log_fields)
            case s.Ending():
                reason = f"it did not end within {self._grace_s:g} s of the end of its room"
                self._child.expect_end(self._grace_s, reason, "shutdown")
            case s.TurnReport() as report:
                self._observer.turn(report)
                try:
                    self._on_turn(report)
                except Exception:
                    logger.exception("on_turn failed", extra=self._child.log_fields)

    def ended(self) -> None:
        """The process is gone. A job that has not reported its end has failed."""
        how = self._child.describe_end()
        if self._final is None:
            self._final = s.JobUpdate(self.job_id, "failed", f"the job process ended without a result: {how}")
            self._updates.put_nowait(self._final)
        elif self._child.exit_code != 0:
            logger.warning(
                "the job had reported %s; then its process ended: %s",
                self._final.status,
                how,
                extra=self._child.log_fields,
            )
        self._updates.put_nowait(None)
        self._observer.job_ended("success" if self._final.status == "success" else "failed")

    def dropped(self) -> None:
        """The process is gone before it took the job: another has it."""
        self._updates.put_nowait(None)

    async def pass_on(self) -> None:
        """Give every status to ``on_update``, one after the other, until the process has ended."""
        while (update := await self._updates.get()) is not None:
            try:
                await self._on_update(update)
            except Exception:
                # Not acknowledged, because it was not passed on; the job leaves its room after a deadline of its own.
                logger.exception("on_update(%s) failed", update.status, extra=self._child.log_fields)
                continue
            if update is self._final:
                self._child.acknowledge(self.job_id)

    def resolve(self) -> None:
        """Wake those who ``wait``."""
        final = self._final or s.JobUpdate(self.job_id, "failed", f"given up: {self._child.describe_end()}")
        status: Literal["success", "failed"] = "success" if final.status == "success" else "failed"
        self._result.set_result(JobResult(status, final.error, self._child.exit_code))
