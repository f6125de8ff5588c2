"""The job process: one room, from the fork to the end. Started by ``host.forkserver``, already warm.

InitializeJob -> import the agent file, prewarm -> Ready ... StartJob -> the room -> Exiting
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import logging
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import uvloop
from livekit.protocol.agent import Job

from host.job import builtin_agent
from host.job.context import JobContext, JobInfo, JobProcess, run_job
from host.job.room import Room
from host.job.room_livekit import LiveKitRoom
from host.job.room_local import LocalRoom
from host.job.settings import SessionSettings
from inference.supervised import Supervisor, prepare_process
from inference.wire import supervision as s

logger = logging.getLogger(__name__)

ACKNOWLEDGE_TIMEOUT_S = 5.0
"""How long the room is held for the final status to be passed on."""

_EXIT_AGENT_FILE = 2
"""As in the host's table of exit codes: it travels in ``InitializeFailed``."""

_MODULE_NAME = "roomful_agent"

Entrypoint = Callable[[JobContext], Awaitable[None]]


class AgentFileError(Exception):
    """The user's agent file cannot be used; the message names the file and, where there is one, the line."""


@dataclass(frozen=True, slots=True)
class Agent:
    """What an agent file provides."""

    entrypoint: Entrypoint
    prewarm: Callable[[JobProcess], object] | None = None


def load_agent(agent_file: str) -> Agent:
    """Import the agent file; "" gives the built-in agent. Raises ``AgentFileError``."""
    if not agent_file:
        return Agent(builtin_agent.entrypoint)
    path = Path(agent_file).resolve()
    if not path.is_file():
        raise AgentFileError(f"agent file {agent_file}: there is no such file")
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise AgentFileError(f"agent file {agent_file}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module
    # As for a script: the modules beside the file can be imported.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as exc:
        raise AgentFileError(f"agent file {agent_file}{_line(exc, path)}: {type(exc).__name__}: {exc}") from exc
    return _agent_of(module, agent_file)


def _agent_of(module: ModuleType, agent_file: str) -> Agent:
    entrypoint = getattr(module, "entrypoint", None)
    if not inspect.iscoroutinefunction(entrypoint):
        raise AgentFileError(f"agent file {agent_file}: it must define `async def entrypoint(ctx: JobContext)`")
    prewarm = getattr(module, "prewarm", None)
    if prewarm is not None and not callable(prewarm):
        raise AgentFileError(f"agent file {agent_file}: `prewarm` must be a function of one JobProcess")
    return Agent(entrypoint, prewarm)


def _line(exc: BaseException, path: Path) -> str:
    """Where in the file it happened: ", line 7", or "" when that is not known."""
    if isinstance(exc, SyntaxError) and exc.filename == str(path):
        return f", line {exc.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


async def _prewarm(agent: Agent, process: JobProcess, agent_file: str) -> None:
    if agent.prewarm is None:
        return
    try:
        if inspect.isawaitable(result := agent.prewarm(process)):
            await result
    except (Exception, SystemExit) as exc:
        line = _line(exc, Path(agent_file).resolve())
        raise AgentFileError(f"agent file {agent_file}{line}: prewarm: {type(exc).__name__}: {exc}") from exc


def _room(start: s.StartJob, settings: SessionSettings) -> Room:
    if start.transport == "livekit":
        return LiveKitRoom(start.room, start.url, start.token)
    return LocalRoom(
        start.room,
        start.waves,
        start.out,
        start.record,
        interrupt_after_s=settings.interrupt_after_s,
        response_timeout_s=settings.response_timeout_s,
    )


def _info(start: s.StartJob) -> JobInfo:
    job = Job.FromString(start.job)
    return JobInfo(start.job_id, start.room, metadata=job.metadata, agent_identity=start.identity)


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
        _info(start),
        process,
        initialize.inference_socket,
        initialize.inference_token,
        settings,
        supervisor.send,
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


async def run(control: socket.socket) -> int:
    """The process's life on its event loop; returns the exit code."""
    async with Supervisor(control) as supervisor:
        initialize = await supervisor.receive(s.InitializeJob)
        if initialize is None:
            return 0
        supervisor.forward_logs(initialize.log_level)
        process = JobProcess()
        try:
            agent = load_agent(initialize.agent_file)
            await _prewarm(agent, process, initialize.agent_file)
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
    """Entry of the process. ``control``: this job's socket. ``parent_pid``: the fork server. Returns the exit code."""
    prepare_process(parent_pid)
    with control, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(control))
