"""A job that the server offers, for the user's ``request_fnc`` to accept or reject.

Loaded by job processes, too (an agent file names ``JobRequest`` in its types), so it stays light.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from livekit.protocol import agent, models


class RequestError(Exception):
    """A request that was accepted does not become a job."""


class NoCapacityError(RequestError):
    """There was no place left when the request was accepted; the server was told that we are not available."""


class AssignmentTimeoutError(RequestError):
    """The request was accepted and the server did not assign the job in time."""


@dataclass(frozen=True, slots=True)
class JobAcceptArguments:
    """Who the agent is in the room."""

    name: str = ""
    identity: str = ""
    metadata: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobRejection:
    """``terminate``: the server is to ask nobody else. ``reason``: for the log."""

    terminate: bool
    reason: str = "rejected"


class JobRequest:
    """One offered job. Answer it once, with ``accept`` or ``reject``, within ``REQUEST_TIMEOUT_S``."""

    def __init__(self, job: agent.Job, agent_name: str) -> None:
        loop = asyncio.get_running_loop()
        self._job = job
        self._agent_name = agent_name
        self._answer: asyncio.Future[JobAcceptArguments | JobRejection] = loop.create_future()
        self._outcome: asyncio.Future[RequestError | None] = loop.create_future()

    def __repr__(self) -> str:
        return f"<JobRequest {self.id} room={self.room.name} {'answered' if self._answer.done() else 'open'}>"

    @property
    def id(self) -> str:
        """The job's id, given by the server."""
        return self._job.id

    @property
    def job(self) -> agent.Job:
        """The job as the server describes it."""
        return self._job

    @property
    def room(self) -> models.Room:
        """The room that the job is for."""
        return self._job.room

    @property
    def publisher(self) -> models.ParticipantInfo | None:
        """Whom the job is for, where it is for one participant."""
        return self._job.participant if self._job.HasField("participant") else None

    @property
    def agent_name(self) -> str:
        """The name that the job was dispatched to."""
        return self._agent_name

    async def accept(
        self,
        *,
        name: str = "",
        identity: str = "",
        metadata: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Take the job; returns when the server has assigned it. ``identity``: "" is ``agent-JOB_ID``.

        Raises ``NoCapacityError`` when another job has taken the last place, ``AssignmentTimeoutError``
        when the server does not assign the job, ``RuntimeError`` when there is an answer already.
        """
        identity = identity or agent_identity(self.id)
        self._give(JobAcceptArguments(name, identity, metadata, dict(attributes or {})))
        await self._settled()

    async def reject(self, *, terminate: bool = True) -> None:
        """Do not take the job. ``terminate``: nobody is to take it; else the server asks another worker.

        Raises ``RuntimeError`` when there is an answer already.
        """
        self._give(JobRejection(terminate))
        await self._settled()

    def _give(self, answer: JobAcceptArguments | JobRejection) -> None:
        if self._answer.done():
            raise RuntimeError(f"the request for job {self.id} has been answered, or its time is over")
        self._answer.set_result(answer)

    async def _settled(self) -> None:
        # Whoever gives up waiting does not take the answer back.
        if (error := await asyncio.shield(self._outcome)) is not None:
            raise error

    # --- for whoever asks -------------------------------------------------------------------------

    @property
    def answer(self) -> asyncio.Future[JobAcceptArguments | JobRejection]:
        """Done when the request has been answered."""
        return self._answer

    def reject_unanswered(self, reason: str) -> JobRejection:
        """Answer for one who does not. Returns the answer."""
        rejection = JobRejection(terminate=False, reason=reason)
        self._give(rejection)
        return rejection

    def settle(self, error: RequestError | None = None) -> None:
        """Say what came of the answer."""
        if not self._outcome.done():
            self._outcome.set_result(error)


def agent_identity(job_id: str) -> str:
    """The identity that an agent joins with unless it is given another."""
    return f"agent-{job_id}"
