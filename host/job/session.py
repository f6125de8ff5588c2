"""The agent in one conversation, as its author sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Sequence
from typing import Any

from host.job.agent import ModelSettings, VoiceAgent
from host.job.answering import Answering
from host.job.asking import LanguageModel
from host.job.chat_context import AgentHandoff, ChatContext
from host.job.dialogue import Dialogue, Outlet, UserState
from host.job.events import CloseEvent, ConversationItemAddedEvent, ErrorEvent, EventEmitter
from host.job.reply import Reply
from host.job.room import AgentState
from host.job.settings import SessionSettings
from host.job.speech_handle import SpeechHandle
from host.job.tool_text import FunctionCall, ToolChoice
from host.job.tools import FunctionTool, RunContext
from host.job.transcripts import UserTranscript
from host.job.writing import Writer
from inference.client import InferenceError, InferenceRoom
from inference.wire.supervision import TurnReport

logger = logging.getLogger(__name__)

_ON_EXIT_S = 5.0
"""How long an agent may take to leave a session that is over."""


class VoiceSession(EventEmitter):
    """The agent and one caller, from the greeting to the end.

    ``userdata`` is its author's. ``outlet`` makes the conversation for this session's ``Dialogue``, ``settings`` are
    the host's own. ``hold`` holds the conversation until ``aclose``. ``report`` is given each turn when it is over.
    """

    def __init__(
        self,
        agent: VoiceAgent,
        inference: InferenceRoom,
        outlet: Callable[[Dialogue], Outlet],
        *,
        settings: SessionSettings,
        context_tokens: int,
        report: Callable[[TurnReport], None],
        userdata: Any = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.userdata = userdata
        self.close_reason = ""
        self._settings = settings
        self._agent = agent
        model = LanguageModel(inference, agent.settings(settings))
        self._writer = Writer(
            model,
            self,
            context_tokens=context_tokens,
            run_context=lambda handle, call: RunContext(self, handle, call),
            hand_over=self.update_agent,
            now=now,
        )
        self._answering = Answering(agent, model, self._writer, self, report)
        self._outlet = outlet(self._answering)
        self._tasks: asyncio.TaskGroup | None = None
        self._early: list[Reply] = []
        self._hooks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._failure: InferenceError | None = None

    def __repr__(self) -> str:
        return f"<VoiceSession {self._outlet!r} {self._agent!r}>"

    # --- what it is -----------------------------------------------------------------------------------

    @property
    def current_agent(self) -> VoiceAgent:
        """Who answers."""
        return self._agent

    @property
    def history(self) -> ChatContext:
        """All that was said, called and handed over, whichever agent it was with."""
        return self._writer.history

    @property
    def chat_ctx(self) -> ChatContext:
        """What the current agent knows was said."""
        return self._agent.chat_ctx

    @property
    def user_state(self) -> UserState:
        """What the caller does: "speaking", "listening", "away"."""
        return self._answering.user_state

    @property
    def agent_state(self) -> AgentState:
        """What the agent does: "initializing", "listening", "thinking", "speaking"."""
        return self._answering.agent_state

    @property
    def current_speech(self) -> SpeechHandle | None:
        """What is being said, or is said next."""
        return next(self._answering.pending, None)

    # --- what the agent says --------------------------------------------------------------------------

    def say(
        self,
        text: str | AsyncIterable[str],
        *,
        allow_interruptions: bool | None = None,
        add_to_chat_ctx: bool = True,
    ) -> SpeechHandle:
        """Say ``text`` when everything before it was said and the caller does not speak.

        What was heard of it joins the conversation, unless ``add_to_chat_ctx`` is False.
        """
        speech = self._answering.speak(text, allow_interruptions=allow_interruptions, remembered=add_to_chat_ctx)
        self._queue(speech.reply)
        return speech.handle

    def generate_reply(
        self,
        *,
        user_input: str | None = None,
        instructions: str = "",
        tool_choice: ToolChoice = "auto",
        allow_interruptions: bool | None = None,
    ) -> SpeechHandle:
        """Have the model say something, when everything before it was said and the caller does not speak.

        ``user_input``: answer this, as if the caller had said it. ``instructions``: for this answer alone; the model
        reads them last. ``tool_choice``: "auto", "none", "required" or a tool's name; ``ValueError`` for another.
        """
        speech = self._answering.generate(
            user_input=user_input,
            instructions=instructions,
            tool_choice=tool_choice,
            allow_interruptions=allow_interruptions,
        )
        self._queue(speech.reply)
        return speech.handle

    def _queue(self, reply: Reply) -> None:
        if self._ended.is_set():
            reply.over.set()
        elif self._tasks is None:
            self._early.append(reply)
        else:
            self._outlet.say(reply)

    def interrupt(self, *, force: bool = False) -> asyncio.Future[None]:
        """Silence: what is being said ends now, and what waits to be said is not. The future is done.

        ``force``: also what does not allow it. Raises ``RuntimeError`` where something does not, which then goes on.
        """
        refused = False
        # The last first, so that none begins because the one before it ends.
        for handle in reversed([*self._answering.pending]):
            try:
                handle.interrupt(force=force)
            except RuntimeError:
                refused = True
        if refused:
            raise RuntimeError(
                "what is being said does not allow interruptions; interrupt(force=True) ends it all the same"
            )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def commit_user_turn(self) -> None:
        """The caller's turn is over: answer it. (For ``turn_detection`` "manual".)"""
        self._outlet.commit_user_turn()

    def clear_user_turn(self) -> None:
        """Forget what the caller has said since the last turn. (For ``turn_detection`` "manual".)"""
        self._outlet.clear_user_turn()

    async def update_chat_ctx(self, chat_ctx: ChatContext) -> None:
        """Have the current agent know that this was said."""
        await self._agent.update_chat_ctx(chat_ctx)

    def update_agent(self, agent: VoiceAgent) -> None:
        """Hand the session over: ``agent`` answers from here on. The hooks of both run meanwhile."""
        if agent is self._agent:
            return
        agent.enter(self)
        old, self._agent = self._agent, agent
        self._answering.agent = agent
        settings = agent.settings(self._settings)
        self._writer.configure(settings)
        if self._tasks is None:
            return
        self._outlet.configure(settings)
        handoff = AgentHandoff(type(old).__name__, type(agent).__name__)
        self.history.items.append(handoff)
        self.emit(ConversationItemAddedEvent(handoff))
        self._run_hook(self._change(old, agent), "agent-handoff")

    async def read(self, texts: AsyncIterable[str]) -> None:
        """Answer each of ``texts``, which the caller types beside a conversation in sound.

        It interrupts the agent, where that is allowed; else it is answered after what is being said.
        """
        async for text in texts:
            if text := text.strip():
                with contextlib.suppress(RuntimeError):
                    self.interrupt()
                self.generate_reply(user_input=text)

    def ask_model(
        self, chat_ctx: ChatContext, tools: Sequence[FunctionTool[..., Any]], model_settings: ModelSettings
    ) -> AsyncGenerator[str | FunctionCall, None]:
        """What the resident model writes after ``chat_ctx``: for ``VoiceAgent.llm_node``."""
        return self._writer.ask_model(chat_ctx, tools, model_settings)

    def prepare(self) -> None:
        """Have the model read, in spare time, what the next answer begins with."""
        if self._tasks is not None:
            self._answering.prepare(0, "")

    def add_transcript_callback(self, callback: Callable[[UserTranscript], None]) -> None:
        """Have ``callback`` called with each transcript of the caller, as it comes; it must not block."""
        self._answering.add_transcript_callback(callback)

    # --- its end --------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is said or waits to be, no hook runs and no tool is waited for; at the end it is."""
        return self._ended.is_set() or not (self._hooks or not self._answering.is_idle)

    async def wait_idle(self) -> None:
        """Return when it is idle."""
        while not self.is_idle:
            await self._answering.wait_moved()

    async def wait_closed(self) -> str:
        """Return the reason when the conversation is over. Raises the ``InferenceError`` that ended it."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        return self.close_reason

    async def aclose(self, reason: str = "") -> None:
        """End the conversation: silence, and every request is cancelled. Returns when that is done."""
        self.close_reason = self.close_reason or reason
        await self._outlet.aclose()
        await self._ended.wait()

    # --- running --------------------------------------------------------------------------------------

    async def hold(self) -> None:
        """Hold the conversation until ``aclose``. Raises the ``InferenceError`` that ended it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._agent.enter(self)
                self._writer.begin(tasks, self._outlet)
                self._answering.begin(tasks, self._outlet)
                early, self._early = self._early, []
                self._greet(self._agent)
                for reply in early:
                    if not reply.over.is_set():
                        self._outlet.say(reply)
                self._run_hook(self._hook(self._agent.on_enter()), "on-enter")
                try:
                    await self._outlet.run()
                finally:
                    await self._leave()
                raise _EndedError
        except* _EndedError:
            pass
        except* InferenceError as failures:
            self._failure = _first(failures)
            self.close_reason = str(self._failure)
        finally:
            self._ended.set()
            self._answering.end()
            self.emit(CloseEvent(self.close_reason, self._failure))
        if self._failure is not None:
            raise self._failure

    def _greet(self, agent: VoiceAgent) -> None:
        if agent.greeting:
            self._outlet.say(self._answering.speak(agent.greeting).reply)

    async def _change(self, old: VoiceAgent, agent: VoiceAgent) -> None:
        await self._hook(old.on_exit())
        self._greet(agent)
        self.prepare()
        await self._hook(agent.on_enter())

    async def _leave(self) -> None:
        for hook in self._hooks:
            hook.cancel()
        try:
            async with asyncio.timeout(_ON_EXIT_S):
                await self._hook(self._agent.on_exit())
        except TimeoutError:
            logger.warning("on_exit of %r took more than %g s", self._agent, _ON_EXIT_S)

    def _run_hook(self, hook: Coroutine[Any, Any, None], name: str) -> None:
        assert self._tasks is not None
        task = self._tasks.create_task(hook, name=name)
        self._hooks.add(task)
        task.add_done_callback(self._hook_ended)

    def _hook_ended(self, task: asyncio.Task[None]) -> None:
        self._hooks.discard(task)
        self._answering.moved()

    async def _hook(self, hook: Coroutine[Any, Any, None]) -> None:
        """What goes wrong in the agent's code ends its hook, and nothing else."""
        try:
            await hook
        except Exception as exc:
            logger.exception("a hook of %r failed", self._agent)
            self.emit(ErrorEvent(exc, "agent"))


class _EndedError(Exception):
    """Ends the session's task group: not a failure."""


def _first(failure: BaseExceptionGroup[InferenceError]) -> InferenceError:
    found: BaseException = failure
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, InferenceError)
    return found
