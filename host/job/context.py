"""What an agent's entrypoint is given, and the life of the job around it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from livekit.protocol.agent import Job

from host.job.agent import VoiceAgent
from host.job.dialogue import Dialogue, Outlet
from host.job.link import InferenceLink
from host.job.pipeline import Conversation
from host.job.room import LocalParticipant, Room, RoomEndedError
from host.job.room_line import LineRoom
from host.job.session import VoiceSession
from host.job.settings import SessionSettings
from host.job.written import WrittenConversation
from host.request import JobAcceptArguments
from inference.client import InferenceClient, InferenceError
from inference.wire.supervision import JobStatus, TurnReport

logger = logging.getLogger(__name__)

ENTRYPOINT_GRACE_S = 5.0
"""How long an entrypoint may go on after its session was closed, to finish what it does."""
_MAX_ERROR_CHARS = 2000

T = TypeVar("T")
ShutdownCallback = Callable[[str], Awaitable[None] | None]


@dataclass(slots=True)
class JobProcess:
    """The process a job runs in. ``userdata`` is filled by the user's ``prewarm``."""

    userdata: dict[str, Any] = field(default_factory=dict)


class JobContext:
    """One job: its room, its session, its end. Made by the job process, handed to the entrypoint.

    ``job``: as the server dispatched it (in a local room one is made). ``worker_id``: the registration it
    came by. ``accept``: who the agent is in the room. ``log_context_fields``: what every log record of
    this job carries; add to it. ``proc``: the process, with what ``prewarm`` left in its ``userdata``.
    ``on_shutdown`` is told, once, that the job ends and why.
    """

    def __init__(
        self,
        room: Room,
        job: Job,
        process: JobProcess,
        inference_socket: str,
        inference_token: str,
        settings: SessionSettings,
        report: Callable[[TurnReport], None],
        *,
        worker_id: str = "",
        accept: JobAcceptArguments | None = None,
        log_context_fields: dict[str, Any] | None = None,
        on_shutdown: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.room = room
        self.job = job
        self.proc = process
        self.worker_id = worker_id
        self.accept = accept or JobAcceptArguments()
        self.log_context_fields: dict[str, Any] = {} if log_context_fields is None else log_context_fields
        self.log_context_fields.update(job_id=job.id, room=room.name)
        self._link = InferenceLink(inference_socket, inference_token, job.id)
        self._settings = settings
        self._report = report
        self._on_shutdown = on_shutdown
        self._stopping = asyncio.Event()
        self._reason = ""
        self._session: VoiceSession | None = None
        self._callbacks: list[ShutdownCallback] = []
        self._client: InferenceClient | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._connected = False

    @property
    def local_participant_identity(self) -> str:
        """The agent's identity in the room."""
        return self.accept.identity

    @property
    def agent(self) -> LocalParticipant:
        """The agent as a participant of the room (``livekit.rtc.LocalParticipant`` in a LiveKit room).

        Raises ``ConnectionError`` before the room was joined.
        """
        return self.room.local_participant

    async def connect(self) -> None:
        """Join the room. Raises ``ConnectionError`` naming the room and the reason. Safe to call twice."""
        if self._connected:
            return
        await self.room.connect()
        self._connected = True
        self._task_group().create_task(self._watch_room(), name="room-end")

    async def wait_for_participant(self, identity: str = "") -> str:
        """Wait for the caller and return the identity.

        The caller is ``identity``, else the participant whom the job is for, else the first who is no agent.
        """
        return await self.room.wait_for_participant(identity or self.job.participant.identity)

    async def start_session(self, agent: VoiceAgent, *, userdata: Any = None) -> VoiceSession:
        """Begin the conversation as soon as the inference process and the caller are there; one a job.

        ``userdata``: whatever the agent and its tools are to find in ``session.userdata``.

        Raises ``InferenceUnavailableError`` when there is no inference process for minutes, and
        ``RoomRefusedError`` when it has no slot for another room.
        """
        if self._session is not None:
            raise RuntimeError("this job has its session already")
        await self.connect()
        await self.room.set_agent_state("initializing")
        # The slot first: a caller should not be greeted by an agent that cannot hear.
        inference = await self._while_running(self._link.open_room(self.room.name))
        written = isinstance(self.room, LineRoom) and self.room.written
        if not written:
            await self.room.open_speech(inference.speech_rate)
        await self.wait_for_participant()
        settings = agent.settings(self._settings)

        async def attach_again() -> None:
            await self._link.attach(inference)

        def outlet(dialogue: Dialogue) -> Outlet:
            room, job_id = self.room, self.job.id
            if written:
                return WrittenConversation(room, dialogue, settings=settings, job_id=job_id, attach_again=attach_again)
            return Conversation(room, inference, dialogue, settings=settings, job_id=job_id, attach_again=attach_again)

        self._session = VoiceSession(
            agent,
            inference,
            outlet,
            settings=self._settings,
            context_tokens=self._link.context_tokens,
            report=self._report,
            userdata=userdata,
        )
        self._task_group().create_task(self._hold(self._session), name="session")
        if not written:
            self._task_group().create_task(self._session.read(self.room.text_input()), name="typed")
        return self._session

    async def connect_inference(self) -> InferenceClient:
        """A connection of its own to the inference process, as soon as that is there; it ends with the job.

        For what a session does not do. When the process was started again, call it again. Raises
        ``InferenceUnavailableError`` when there is no inference process for minutes.
        """
        if self._client is None or self._client.is_gone:
            self._client = await self._while_running(self._link.connect())
        return self._client

    @property
    def inference(self) -> InferenceClient:
        """The connection that ``connect_inference`` made."""
        if self._client is None:
            raise RuntimeError("there is no connection; await connect_inference() first")
        return self._client

    def add_shutdown_callback(self, callback: ShutdownCallback) -> None:
        """Have ``callback`` (a function or a coroutine function) called with the reason when the job ends.

        Callbacks run side by side, so one that hangs keeps no other from running.
        """
        self._callbacks.append(callback)

    def shutdown(self, reason: str = "") -> None:
        """End the job. Returns at once; the first reason counts."""
        if not self._stopping.is_set():
            self._reason = reason
            self._stopping.set()
            self._on_shutdown(reason)

    async def _while_running(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is given up when the job ends."""
        working = asyncio.create_task(work, name="inference-link")
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise RoomEndedError(f"the job ends: {self._reason}")
            return working.result()
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.wait({working, stopping})

    # --- for run_job ------------------------------------------------------------------------------

    def _task_group(self) -> asyncio.TaskGroup:
        if self._tasks is None:
            raise RuntimeError("the job is not running")
        return self._tasks

    async def _watch_room(self) -> None:
        self.shutdown(await self.room.wait_closed())

    async def _hold(self, session: VoiceSession) -> None:
        await session.hold()
        self.shutdown(session.close_reason)

    async def _run_entrypoint(self, entrypoint: Callable[[JobContext], Awaitable[None]]) -> None:
        try:
            await entrypoint(self)
        except RoomEndedError as exc:
            self.shutdown(str(exc))
        except Exception:
            raise
        except BaseException as exc:
            if _is_own_cancellation(exc):
                raise
            # By itself it would end the event loop, with nobody told, or (a cancellation) nothing at all.
            raise EntrypointError(f"the entrypoint raised {exc!r}") from exc
        if self._session is None:
            self.shutdown("the entrypoint returned")

    async def _run(self, entrypoint: Callable[[JobContext], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            entry = tasks.create_task(self._run_entrypoint(entrypoint), name="entrypoint")
            await self._stopping.wait()
            if self._session is not None:
                await self._session.aclose(self._reason)
            await asyncio.wait([entry], timeout=ENTRYPOINT_GRACE_S)
            raise _EndedError

    async def _end(self) -> None:
        await asyncio.gather(*(self._call(callback) for callback in self._callbacks))

    async def _call(self, callback: ShutdownCallback) -> None:
        try:
            if inspect.isawaitable(result := callback(self._reason)):
                await result
        except BaseException as exc:
            if _is_own_cancellation(exc):
                raise
            logger.exception("a shutdown callback failed")

    async def _release(self) -> None:
        await self.room.leave()
        await self._link.aclose()


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job ended. ``error``: "" or what went wrong, for a person to read."""

    status: Literal["success", "failed"]
    error: str
    reason: str


async def run_job(
    entrypoint: Callable[[JobContext], Awaitable[None]],
    ctx: JobContext,
    update: Callable[[JobStatus, str], Awaitable[None]],
) -> JobOutcome:
    """Run one job to its end and give everything back.

    The job ends when ``ctx.shutdown`` is called, the caller leaves, the room ends, the entrypoint
    raises (the job has failed then), or returns without a session. ``update`` is awaited with
    "running" at once, and with the final status while the agent is still in the room; the room is
    left and the inference process's slot given back after it returned.
    """
    status: Literal["success", "failed"] = "success"
    error = ""
    await update("running", "")
    try:
        await ctx._run(entrypoint)
    except* _EndedError:
        logger.info("the job ends: %s", ctx._reason)
    except* Exception as failures:
        status, error = "failed", _describe(failures)
        ctx.shutdown(error)
        if isinstance(_first(failures), InferenceError | ConnectionError):
            # What that means is said in one line; anything else needs its traceback.
            logger.error("the job failed: %s", error)  # noqa: TRY400
        else:
            logger.exception("the job failed: %s", error)
    try:
        await ctx._end()
        await update(status, error)
    finally:
        await ctx._release()
    return JobOutcome(status, error, ctx._reason)


class EntrypointError(Exception):
    """An entrypoint raised what is no ``Exception``: ``sys.exit``, or the cancellation of something it awaited."""


class _EndedError(Exception):
    """Ends the job's task group: not a failure."""


def _is_own_cancellation(exc: BaseException) -> bool:
    """Whether the task that runs was cancelled, and not something that the user's code awaited."""
    task = asyncio.current_task()
    return isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _first(failure: BaseException) -> BaseException:
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


def _describe(failure: BaseException) -> str:
    """For the job's status, which the server keeps: short, and what can be sent at all. The log has all of it."""
    first = _first(failure)
    return f"{type(first).__name__}: {first}"[:_MAX_ERROR_CHARS].encode("utf-8", "backslashreplace").decode()
