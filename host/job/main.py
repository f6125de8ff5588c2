"""The job: one room, from the fork to the end. Started by ``host.forkserver``, already warm, or in a thread.

InitializeJob -> import the user's functions, prewarm -> Ready ... StartJob -> the room -> Exiting
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import uvloop
from livekit.protocol.agent import Job, JobType

from host.job.context import JobContext, JobProcess, run_job
from host.job.functions import AgentFileError, describe, extend_import_path, load_function, user_error
from host.job.room import Room
from host.job.room_line import SCHEME, WRITTEN_SCHEME, LineRoom
from host.job.room_livekit import LiveKitRoom
from host.job.room_local import LocalRoom
from host.job.settings import SessionSettings
from host.request import JobAcceptArguments
from inference.supervised import Supervisor, prepare_process, write_stacks_to
from inference.wire import supervision as s

logger = logging.getLogger(__name__)

ACKNOWLEDGE_TIMEOUT_S = 5.0
"""How long the room is held for the final status to be passed on."""

_EXIT_AGENT_FILE = 2
"""As in the host's table of exit codes: it travels in ``InitializeFailed``."""
_OOM_SCORE = 500
"""Of 1000: when the system runs out of memory it ends a job, one room, before the inference process."""

_thread_log_fields: contextvars.ContextVar[Mapping[str, object]] = contextvars.ContextVar("log_fields")

Entrypoint = Callable[[JobContext], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Agent:
    """The user's functions."""

    entrypoint: Entrypoint
    prewarm: Callable[[JobProcess], object] | None = None


def load_agent(initialize: s.InitializeJob) -> Agent:
    """Import the user's functions. Raises ``AgentFileError``."""
    extend_import_path(initialize.import_path)
    entrypoint = load_function(initialize.entrypoint)
    if not inspect.iscoroutinefunction(entrypoint):
        place, _, name = initialize.entrypoint.rpartition(":")
        raise AgentFileError(f"{describe(place)}: it must define `async def {name}(ctx: JobContext)`")
    return Agent(entrypoint, load_function(initialize.prewarm) if initialize.prewarm else None)


async def _prewarm(agent: Agent, process: JobProcess, reference: str) -> None:
    if agent.prewarm is None:
        return
    try:
        if inspect.isawaitable(result := agent.prewarm(process)):
            await result
    except (Exception, SystemExit) as exc:
        raise user_error(reference, exc) from exc


def _room(start: s.StartJob, settings: SessionSettings) -> Room:
    if start.transport == "livekit":
        return LiveKitRoom(start.room, start.url, start.token)
    if start.url.startswith((SCHEME, WRITTEN_SCHEME)):
        return LineRoom(start.room, start.url, identity=start.identity or "agent")
    return LocalRoom(
        start.room,
        start.waves,
        start.out,
        start.record,
        interrupt_after_s=settings.interrupt_after_s,
        response_timeout_s=settings.response_timeout_s,
        identity=start.identity or "agent",
    )


def _job(start: s.StartJob) -> Job:
    """The job as the server describes it, or one for a local room."""
    if start.job:
        return Job.FromString(start.job)
    job = Job(id=start.job_id, type=JobType.JT_ROOM)
    job.room.name = start.room
    return job


class _Reporter:
    """Tells the supervisor how the job goes."""

    def __init__(self, supervisor: Supervisor, job_id: str) -> None:
        self._supervisor = supervisor
        self._job_id = job_id

    async def update(self, status: s.JobStatus, error: str) -> None:
        """Report; returns from a final status when it has been passed on, so that the room may be left."""
        self._supervisor.send(s.JobUpdate(self._job_id, status, error))
        if status == "running":
            return
        try:
            async with asyncio.timeout(ACKNOWLEDGE_TIMEOUT_S):
                await self._supervisor.wait_acknowledged()
        except TimeoutError:
            logger.warning("nobody took the status %r of job %s; leaving the room", status, self._job_id)


async def _run_job(
    supervisor: Supervisor, start: s.StartJob, initialize: s.InitializeJob, agent: Agent, process: JobProcess
) -> str:
    """One job on this event loop; returns why it ended."""
    settings = SessionSettings.from_json(start.settings)
    ctx = JobContext(
        _room(start, settings),
        _job(start),
        process,
        initialize.inference_socket,
        initialize.inference_token,
        settings,
        supervisor.send,
        worker_id=start.worker_id,
        accept=JobAcceptArguments(start.name, start.identity, start.metadata, json.loads(start.attributes)),
        log_context_fields=supervisor.log_fields,
        on_shutdown=lambda reason: supervisor.send(s.Ending(reason)),
    )

    async def obey() -> None:
        await supervisor.stopping.wait()
        ctx.shutdown(supervisor.reason)

    obeying = asyncio.create_task(obey(), name="obey")
    try:
        outcome = await run_job(agent.entrypoint, ctx, _Reporter(supervisor, start.job_id).update)
    finally:
        obeying.cancel()
    return outcome.error or outcome.reason


def _log_as_thread(fields: Mapping[str, object]) -> None:
    """Add ``fields`` to what this task, and what it starts, logs in a process that others log in, too."""
    _thread_log_fields.set(fields)
    for handler in logging.getLogger().handlers:
        # Adding it twice is adding it once.
        handler.addFilter(_add_thread_fields)


def _add_thread_fields(record: logging.LogRecord) -> bool:
    for key, value in _thread_log_fields.get({}).items():
        vars(record).setdefault(key, value)
    return True


async def run(control: socket.socket, *, in_thread: bool = False) -> int:
    """The job's life on its event loop; returns the exit code.

    ``in_thread``: the process is not the job's own. Its log records go where the process's go, with the
    job's fields; its stacks are the process's.
    """
    async with Supervisor(control) as supervisor:
        initialize = await supervisor.receive(s.InitializeJob)
        if initialize is None:
            return 0
        if in_thread:
            _log_as_thread(supervisor.log_fields)
        else:
            supervisor.forward_logs(initialize.log_level)
            write_stacks_to(initialize.stacks_file)
        process = JobProcess()
        try:
            agent = load_agent(initialize)
            await _prewarm(agent, process, initialize.prewarm)
        except AgentFileError as exc:
            logger.debug("the agent file's error", exc_info=exc)
            supervisor.send(s.InitializeFailed(str(exc), _EXIT_AGENT_FILE))
            return _EXIT_AGENT_FILE
        supervisor.send(s.Ready())
        start = await supervisor.receive(s.StartJob)
        reason = supervisor.reason
        if start is not None:
            reason = await _run_job(supervisor, start, initialize, agent, process)
        supervisor.send(s.Exiting(reason))
        return 0


def main(control: socket.socket, parent_pid: int) -> int:
    """Entry of the process. ``control``: this job's socket. ``parent_pid``: as for ``prepare_process``.

    Returns the exit code.
    """
    prepare_process(parent_pid)
    try:
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    except OSError as exc:
        # Only the order in which the kernel would choose is lost.
        logger.debug("cannot set oom_score_adj: %s", exc)
    with control, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(control))
