"""Jobs that the server offers, from the offer to the assignment or to the refusal.

offer ──▶ a place? ──no──────────────────────────────▶ not available
            │ yes
            ▼
      request_fnc ──rejects, raises, returns, hangs──▶ not available
            │ accepts
            ▼
      a place still? ──no────────────────────────────▶ not available, NoCapacityError
            │ yes: it is reserved
            ▼
        available ──no assignment in 7.5 s──────────▶ the place is free, AssignmentTimeoutError
            │
            ▼
         assigned
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from livekit.protocol import agent

from host.capacity import Status
from host.options import RequestFnc
from host.request import (
    AssignmentTimeoutError,
    JobAcceptArguments,
    JobRejection,
    JobRequest,
    NoCapacityError,
    RequestError,
    agent_identity,
)

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 2.5
"""How long ``request_fnc`` has. The server's own request (psrpc's default timeout) ends 3 s after the dispatch, of
which some 0.2 s are gone when the offer comes; it asks nobody else after that, so the job would be lost.
"""
ASSIGNMENT_TIMEOUT_S = 7.5
_AGENT_NAME_ATTRIBUTE = "lk.agent.name"
_CLOSE_TIMEOUT_S = 2.0
_REMEMBERED = 64
"""Jobs whose assignment did not come in time and may still come."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A job that is ours: join its room at ``url`` with ``token`` as ``accept`` says."""

    job: agent.Job
    url: str
    token: str
    accept: JobAcceptArguments
    worker_id: str


class JobHandler(Protocol):
    """Who owns the rooms. Every method is called from the event loop and returns at once."""

    def refusal(self) -> str:
        """Why no further job can be taken now; "" if one can."""

    def reserve(self, job_id: str) -> str:
        """Hold a place for the job. Returns "" or the reason why there is none."""

    def withdrawn(self, job_id: str) -> None:
        """A job that a place was reserved for is not coming."""

    def assigned(self, assigned: Assigned) -> None:
        """Run the job."""

    def terminated(self, job_id: str) -> None:
        """The server wants the job to end."""

    def job_ids(self) -> Sequence[str]:
        """The jobs that run now."""

    def status(self) -> Status:
        """What to tell the server about this host."""


Send = Callable[[agent.AvailabilityResponse], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class _Promise:
    """A job that was accepted and is not assigned yet."""

    request: JobRequest
    accept: JobAcceptArguments
    timer: asyncio.TimerHandle


async def accept_all(request: JobRequest) -> None:
    """What a worker without a ``request_fnc`` does."""
    await request.accept()


class Offers:
    """The offers of one worker. Each is answered in a task of its own: nobody waits for a ``request_fnc``.

    ``failed`` is called with a job that the server assigned and that cannot be taken any more, and why.
    """

    def __init__(
        self, agent_name: str, request_fnc: RequestFnc, handler: JobHandler, failed: Callable[[str, str], None]
    ) -> None:
        self._agent_name = agent_name
        self._request_fnc = request_fnc
        self._handler = handler
        self._failed = failed
        self._open: dict[str, asyncio.Task[None]] = {}
        self._promises: dict[str, _Promise] = {}
        self._expired: OrderedDict[str, JobAcceptArguments] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def offered(self, job: agent.Job, send: Send) -> None:
        """Answer an offer, with ``send``, in its own time."""
        if promise := self._promises.get(job.id):
            # It has not heard us.
            self._start(send(self._available(job.id, promise.accept)), f"offer {job.id} again")
        elif job.id not in self._open:
            task = self._start(self._negotiate(job, send), f"offer {job.id}")
            self._open[job.id] = task
            task.add_done_callback(lambda _: self._close(job.id, task))

    def assigned(self, assignment: agent.JobAssignment, default_url: str, worker_id: str) -> None:
        """Take an assigned job."""
        job = assignment.job
        if promise := self._promises.pop(job.id, None):
            promise.timer.cancel()
            accept = promise.accept
        elif job.id in self._handler.job_ids():
            logger.warning("a job that runs was assigned once more", extra=_fields(job))
            return
        else:
            accept = self._expired.pop(job.id, JobAcceptArguments(identity=agent_identity(job.id)))
            if refusal := self._handler.reserve(job.id):
                # It came after its time, and its place is gone.
                logger.warning("a late assignment cannot be taken: %s", refusal, extra=_fields(job))
                self._failed(job.id, f"assigned too late: {refusal}")
                return
        url = assignment.url if assignment.HasField("url") else ""
        self._handler.assigned(Assigned(job, url or default_url, assignment.token, accept, worker_id))
        if promise:
            promise.request.settle()

    def connection_lost(self) -> None:
        """The server that asked is gone, and with it what it would have assigned."""
        for task in self._open.values():
            task.cancel()
        self._open.clear()
        for job_id in list(self._promises):
            self._break_promise(job_id, "the connection was lost before the assignment")

    async def aclose(self) -> None:
        """End the tasks. The connection is lost already."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, stubborn = await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT_S)
            for task in stubborn:
                logger.warning("%s does not end", task.get_name())

    # --- one offer --------------------------------------------------------------------------------

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()):
            logger.error("%s failed", task.get_name(), exc_info=exc)

    def _close(self, job_id: str, task: asyncio.Task[None]) -> None:
        if self._open.get(job_id) is task:
            del self._open[job_id]

    async def _negotiate(self, job: agent.Job, send: Send) -> None:
        if refusal := self._handler.refusal():
            logger.info("job refused: %s", refusal, extra=_fields(job))
            await send(agent.AvailabilityResponse(job_id=job.id, available=False))
            return
        request = JobRequest(job, self._agent_name)
        asking = self._start(self._ask(request), f"request {job.id}")
        either: list[asyncio.Future[Any]] = [asking, request.answer]
        try:
            await asyncio.wait(either, timeout=REQUEST_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        answer = request.answer.result() if request.answer.done() else self._unanswered(request, asking)
        # From here on the request is answered or promised; a connection that is lost is dealt with there.
        self._open.pop(job.id, None)
        if isinstance(answer, JobAcceptArguments):
            await self._accept(request, answer, send)
        else:
            logger.info("job refused: %s", answer.reason, extra=_fields(job))
            await send(agent.AvailabilityResponse(job_id=job.id, available=False, terminate=answer.terminate))
            request.settle()

    async def _ask(self, request: JobRequest) -> None:
        """Call the user's function and say what became of it."""
        try:
            await self._request_fnc(request)
        except RequestError as exc:
            # Said where it happened.
            logger.debug("request_fnc ended with %r", exc, extra=_fields(request.job))
        except (Exception, SystemExit):
            # Whatever it calls may call sys.exit(); other rooms must not end by it.
            logger.exception("request_fnc failed", extra=_fields(request.job))

    def _unanswered(self, request: JobRequest, asking: asyncio.Task[None]) -> JobRejection:
        if asking.done():
            rejection = request.reject_unanswered("request_fnc did not answer")
        else:
            rejection = request.reject_unanswered(f"request_fnc did not answer within {REQUEST_TIMEOUT_S:g} s")
            asking.cancel()
        logger.warning("%s", rejection.reason, extra=_fields(request.job))
        return rejection

    async def _accept(self, request: JobRequest, accept: JobAcceptArguments, send: Send) -> None:
        if refusal := self._handler.reserve(request.id):
            logger.info("job accepted, but refused: %s", refusal, extra=_fields(request.job))
            await send(agent.AvailabilityResponse(job_id=request.id, available=False))
            request.settle(NoCapacityError(refusal))
            return
        logger.info("job accepted", extra=_fields(request.job))
        timer = asyncio.get_running_loop().call_later(ASSIGNMENT_TIMEOUT_S, self._expire, request.id)
        self._promises[request.id] = _Promise(request, accept, timer)
        await send(self._available(request.id, accept))

    def _available(self, job_id: str, accept: JobAcceptArguments) -> agent.AvailabilityResponse:
        return agent.AvailabilityResponse(
            job_id=job_id,
            available=True,
            participant_name=accept.name,
            participant_identity=accept.identity,
            participant_metadata=accept.metadata,
            participant_attributes={**accept.attributes, _AGENT_NAME_ATTRIBUTE: self._agent_name},
        )

    # --- promises ---------------------------------------------------------------------------------

    def _expire(self, job_id: str) -> None:
        self._expired[job_id] = self._promises[job_id].accept
        if len(self._expired) > _REMEMBERED:
            self._expired.popitem(last=False)
        reason = f"no assignment came in {ASSIGNMENT_TIMEOUT_S:g} s"
        logger.warning("%s", reason, extra=_fields(self._promises[job_id].request.job))
        self._break_promise(job_id, reason)

    def _break_promise(self, job_id: str, reason: str) -> None:
        promise = self._promises.pop(job_id)
        promise.timer.cancel()
        self._handler.withdrawn(job_id)
        promise.request.settle(AssignmentTimeoutError(reason))


def _fields(job: agent.Job) -> dict[str, str]:
    return {"job_id": job.id, "room": job.room.name}
