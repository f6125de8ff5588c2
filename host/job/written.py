"""One conversation in writing: what the caller types is a turn, and what the agent says is read as it is written.

    room.text_input ─> WrittenConversation ─> Dialogue.answer ─> piece by piece ─> room.publish_transcript

The same agent, history, tools and hooks as in a call, without anybody's voice: for a terminal, and for tests. No
audio is moved, so nothing here waits for a listener: a piece is heard when it is written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Protocol

from host.job.dialogue import Dialogue
from host.job.reply import AnsweredTurn, Reply, join
from host.job.room import AgentState, Side
from host.job.settings import SessionSettings
from host.job.transcripts import MAX_ATTEMPTS
from inference.client import InferenceError, InferenceUnavailableError, RequestFailedError

logger = logging.getLogger(__name__)


class WrittenRoom(Protocol):
    """What a conversation in writing needs of a room."""

    @property
    def name(self) -> str:
        """The room's name."""

    def text_input(self) -> AsyncIterator[str]:
        """What the caller types, message by message, until the caller leaves."""

    async def set_agent_state(self, state: AgentState) -> None:
        """Show what the agent does."""

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        """Show the text so far of one thing that the agent says."""


class WrittenConversation:
    """The agent and one caller who type: an ``Outlet`` of ``dialogue``.

    ``run`` holds the conversation until ``aclose``. What the caller types while the agent writes interrupts it, where
    it may be interrupted. When the inference process goes away, ``attach_again`` is awaited, and what was not
    answered is asked for again; the ``InferenceUnavailableError`` that it raises when it gives up ends all.
    """

    def __init__(
        self,
        room: WrittenRoom,
        dialogue: Dialogue,
        *,
        settings: SessionSettings,
        job_id: str,
        attach_again: Callable[[], Awaitable[None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._dialogue = dialogue
        self._settings = settings
        self._job_id = job_id
        self._attach_again = attach_again
        self._now = now
        self._tasks: asyncio.TaskGroup | None = None
        self._reply: Reply | None = None
        self._waiting: deque[Reply | str] = deque()
        self._moved = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._turn_number = 0
        self._segments = 0
        self._state: AgentState = "initializing"
        self._notes: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue()
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<WrittenConversation {self._room.name!r} {self._state} turn={self._turn_number}>"

    # --- the caller -----------------------------------------------------------------------------------

    def hear(self, text: str) -> None:
        """The caller has typed ``text``: a turn, which is answered when what cannot be interrupted is over."""
        self.interrupt()
        self._put(text)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being said, and nothing waits to be said or answered."""
        return self._idle.is_set()

    async def wait_idle(self) -> None:
        """Return when it is idle."""
        await self._idle.wait()

    # --- for the dialogue -----------------------------------------------------------------------------

    def say(self, reply: Reply, *, interrupt: bool = False) -> None:
        """Queue ``reply``. ``interrupt``: at once, where what is being said may be interrupted."""
        if self._ended.is_set():
            reply.over.set()
            return
        if interrupt:
            self.interrupt()
        self._put(reply, first=interrupt)

    def interrupt(self, *, force: bool = False) -> bool:
        """What is being said, or thought about, is over. False where that may not be interrupted."""
        reply = self._reply
        if reply is None:
            return True
        allowed = self._settings.allow_interruptions if reply.allow_interruptions is None else reply.allow_interruptions
        if not (allowed or force):
            return False
        assert reply.task is not None
        reply.task.cancel()
        reply.interrupted_at = reply.silent_at = self._now()
        self._end(reply, interrupted=True)
        return True

    def withdraw(self, reply: Reply) -> bool:
        """``reply`` is over if it has not begun. False: it is being said."""
        if reply in self._waiting:
            self._waiting.remove(reply)
            reply.over.set()
        return reply.over.is_set()

    def keep(self, reply: Reply) -> None:
        """Nothing is taken back here."""

    def end_of_turn(self, ticket: int, probability: float) -> None:
        """Who presses the key has ended the turn."""

    def commit_user_turn(self) -> None:
        """Every message is committed as it comes."""

    def clear_user_turn(self) -> None:
        """Nothing of an unfinished message is known here."""

    def configure(self, settings: SessionSettings) -> None:
        """Hold the conversation so from here on."""
        self._settings = settings

    async def aclose(self) -> None:
        """End the conversation. Every reply is over when this returns."""
        self._ending.set()
        if self._tasks is None:
            self._wind_up()
        await self._ended.wait()

    # --- running ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold the conversation until ``aclose``. Raises the ``InferenceError`` that ended it."""
        failure: InferenceError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._show(), name="notes")
                tasks.create_task(self._read(), name="typed")
                tasks.create_task(self._serve(tasks), name="replies")
                await self._ending.wait()
                raise _EndedError
        except* _EndedError:
            pass
        except* InferenceError as failures:
            failure = _first(failures)
        finally:
            self._wind_up()
        if failure is not None:
            raise failure

    def _wind_up(self) -> None:
        """Report the turn that the end cut off."""
        if self._reply is not None:
            self._end(self._reply, interrupted=True)
        for waiting in self._waiting:
            if isinstance(waiting, Reply):
                waiting.over.set()
        self._waiting.clear()
        while not self._notes.empty():
            self._notes.get_nowait().close()
        self._ended.set()
        self._idle.set()

    async def _read(self) -> None:
        async for text in self._room.text_input():
            if text.strip():
                self.hear(text.strip())

    def _put(self, item: Reply | str, *, first: bool = False) -> None:
        if first:
            self._waiting.appendleft(item)
        else:
            self._waiting.append(item)
        self._idle.clear()
        self._moved.set()

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        """One thing after the other."""
        self._show_state("listening")
        while True:
            while not self._waiting:
                self._show_state("listening")
                self._idle.set()
                self._moved.clear()
                await self._moved.wait()
            item = self._waiting.popleft()
            reply = item if isinstance(item, Reply) else self._dialogue.answer(self._turn(item))
            if not reply.segment:
                self._segments += 1
                reply.segment = f"agent-{self._segments}"
            self._reply = reply
            self._show_state("thinking")
            reply.task = writing = tasks.create_task(self._write(reply), name=reply.segment)
            # A reply that was interrupted has let go of the model before the next begins.
            await asyncio.wait([writing])

    def _turn(self, text: str) -> AnsweredTurn:
        self._turn_number += 1
        now = self._now()
        return AnsweredTurn(self._turn_number, text, audio_s=0.0, last_voiced=now, decided=now, committed=now)

    async def _write(self, reply: Reply) -> None:
        while True:
            said = reply.said
            try:
                async with aclosing(reply.begin()) as pieces:
                    async for text in pieces:
                        self._heard(reply, said, text)
            except RequestFailedError as exc:
                logger.error("the answer failed: %s", exc)  # noqa: TRY400
                self._dialogue.failed("llm", exc)
                break
            except InferenceUnavailableError as exc:
                reply.attempts += 1
                logger.warning("%s; the conversation waits for it to be back", exc)
                if reply.attempts == MAX_ATTEMPTS:
                    logger.error("the answer failed: the inference process went away %d times", reply.attempts)  # noqa: TRY400
                    self._dialogue.failed("inference", exc)
                    break
                await self._attach_again()
                self._begin_again(reply)
            else:
                reply.complete = True
                break
        self._end(reply, interrupted=False)

    def _heard(self, reply: Reply, said: str, text: str) -> None:
        """``text`` was written, and read; ``said`` is what was before this attempt."""
        if not text:
            return
        now = self._now()
        if reply.turn is not None and reply.turn.first_text is None:
            reply.turn.first_text = now
        reply.text += text
        reply.shown = reply.text.rstrip()
        reply.said = join(said, reply.shown)
        if reply.first_heard is None:
            reply.first_heard = now
            self._dialogue.begun(reply)
            self._show_state("speaking")
        self._note(self._room.publish_transcript("agent", reply.segment, reply.said, final=False))

    def _begin_again(self, reply: Reply) -> None:
        task = reply.task
        if reply.first_heard is None:
            reply.begin_again()
        else:
            self._dialogue.heard(reply, over=False)
            reply.go_on()
        reply.task = task

    def _end(self, reply: Reply, *, interrupted: bool) -> None:
        self._reply = None
        reply.interrupted = interrupted
        self._note(self._room.publish_transcript("agent", reply.segment, reply.said, final=True))
        self._dialogue.heard(reply, over=True)
        report = reply.report(self._job_id, interrupted=interrupted)
        if report is not None:
            self._dialogue.measured(report)
        reply.over.set()

    # --- what the caller's client shows ---------------------------------------------------------------

    def _show_state(self, state: AgentState) -> None:
        if state == self._state:
            return
        self._state = state
        self._note(self._room.set_agent_state(state))
        self._dialogue.state_changed("listening", state)

    def _note(self, note: Coroutine[Any, Any, None]) -> None:
        self._notes.put_nowait(note)

    async def _show(self) -> None:
        """States and texts go out in order, without anybody waiting for them."""
        while True:
            await (await self._notes.get())


class _EndedError(Exception):
    """Ends the conversation's task group: not a failure."""


def _first(failure: BaseExceptionGroup[InferenceError]) -> InferenceError:
    found: BaseException = failure
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, InferenceError)
    return found
