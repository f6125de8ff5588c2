"""What a reply says: the model is asked step by step, and the tools that it calls are called in between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from host.job.agent import ModelSettings, VoiceAgent
from host.job.asking import LanguageModel
from host.job.chat import PromptWindow, render
from host.job.chat_context import ChatContext, ChatItem, ChatMessage
from host.job.dialogue import Outlet
from host.job.events import ConversationItemAddedEvent, ErrorEvent, EventEmitter, FunctionToolsExecutedEvent
from host.job.reply import Reply
from host.job.settings import SessionSettings
from host.job.speech_handle import SpeechHandle
from host.job.tool_calls import Execution, ToolResult
from host.job.tool_text import CALL_TOKENS, CallParser, FunctionCall, ToolChoice, grammar_for, instructions_for
from host.job.tools import FunctionTool, RunContext, StopResponse
from inference.client import Generation, InferenceError, RequestFailedError
from inference.wire.messages import ChatMessage as PromptMessage

logger = logging.getLogger(__name__)

Tools = Sequence[FunctionTool[..., Any]]


@dataclass(eq=False, slots=True)
class Speech:
    """What is known of one reply until it is over.

    ``question``: what the caller said or typed; ``in_turn``: it was a turn, so the agent's hook is asked. ``settled``:
    it has joined the conversation, or will not. ``instructions``, ``tool_choice``: for this reply alone. ``known_to``:
    what its turn's hook made of the conversation before it. ``item``: what was heard of it, once something was.
    ``complete``: all of it is written; ``failed``: that cannot be. ``committed`` is set unless the reply is a guess,
    which was made from ``premises``.
    """

    reply: Reply
    handle: SpeechHandle
    agent: VoiceAgent
    question: ChatMessage | None = None
    in_turn: bool = False
    settled: bool = False
    announced: bool = False
    instructions: str = ""
    tool_choice: ToolChoice = "auto"
    remembered: bool = True
    known_to: ChatContext | None = None
    item: ChatMessage | None = None
    steps: int = 0
    execution: Execution | None = None
    complete: bool = False
    failed: bool = False
    premises: tuple[object, ...] = ()
    committed: asyncio.Event = field(default_factory=asyncio.Event)
    generation: Generation | None = None


class Writer:
    """Writes speeches, and keeps what was said.

    ``history`` is all that is said in the session; each agent knows what was said to it. ``hand_over`` is called
    with the agent that a tool hands the session to, ``run_context`` makes what a tool is told.
    """

    def __init__(
        self,
        model: LanguageModel,
        events: EventEmitter,
        *,
        context_tokens: int,
        run_context: Callable[[SpeechHandle, FunctionCall], RunContext[Any]],
        hand_over: Callable[[VoiceAgent], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.history = ChatContext()
        self._model = model
        self._events = events
        self._context_tokens = context_tokens
        self._window = PromptWindow(context_tokens=context_tokens, reply_tokens=self._reply_tokens)
        self._run_context = run_context
        self._hand_over = hand_over
        self._now = now
        self._tasks: asyncio.TaskGroup | None = None
        self._outlet: Outlet | None = None

    def __repr__(self) -> str:
        return f"<Writer {self._model!r} {self.history!r}>"

    def begin(self, tasks: asyncio.TaskGroup, outlet: Outlet) -> None:
        """Tools are called as ``tasks``; ``outlet`` is told of what cannot be undone."""
        self._tasks, self._outlet = tasks, outlet

    # --- the conversation -----------------------------------------------------------------------------

    def add(self, agent: VoiceAgent, *items: ChatItem) -> None:
        """``agent`` knows of ``items``, and the session does."""
        agent.chat_ctx.items.extend(items)
        self.history.items.extend(items)

    def remove(self, agent: VoiceAgent, item: ChatItem) -> None:
        """``item`` was not said after all."""
        agent.chat_ctx.remove(item)
        self.history.remove(item)

    def settle(self, speech: Speech) -> None:
        """The question joins the conversation."""
        speech.settled = True
        if speech.question is not None:
            self.add(speech.agent, speech.question)

    def announce(self, speech: Speech) -> None:
        """The question stays."""
        if speech.settled and not speech.announced and speech.question is not None:
            speech.announced = True
            self._events.emit(ConversationItemAddedEvent(speech.question))

    @property
    def _reply_tokens(self) -> int:
        return min(self._model.settings.max_reply_tokens, self._context_tokens // 2)

    def configure(self, settings: SessionSettings) -> None:
        """Ask the model so from here on."""
        self._model.settings = settings
        self._window = PromptWindow(context_tokens=self._context_tokens, reply_tokens=self._reply_tokens)

    def fitting(self, agent: VoiceAgent, coming: Iterable[ChatItem]) -> tuple[PromptMessage, ...]:
        """What the model reads of ``agent`` with ``coming``; nothing where turns would have to be left out for it."""
        about_tools = instructions_for(agent.tools)
        items = [*agent.chat_ctx.items, *coming]
        if not self._window.fits(agent.instructions + about_tools, items):
            return ()
        return render([*_told(agent), *self._window.seen(items)], about_tools)

    def _prompt(self, speech: Speech) -> ChatContext:
        """What the model is to know for the next step of ``speech``."""
        agent = speech.agent
        items = list(agent.chat_ctx.items)
        if speech.question is not None:
            at = agent.chat_ctx.index_of(speech.question)
            if at < 0 and not speech.settled:
                items.append(speech.question)
            elif at >= 0 and speech.known_to is not None:
                items = [*speech.known_to.items, *items[at:]]
        kept = self._window.items(agent.instructions + instructions_for(agent.tools), items)
        last = [ChatMessage("system", speech.instructions)] if speech.instructions else []
        return ChatContext([*_told(agent), *kept, *last])

    def agent_failed(self, error: Exception) -> None:
        """The author's code failed."""
        self._events.emit(ErrorEvent(error, "agent"))

    # --- writing --------------------------------------------------------------------------------------

    async def write(
        self, speech: Speech, asked: Callable[[Generation], None] = lambda _: None
    ) -> AsyncGenerator[str, None]:
        """All that the agent says to the question. What goes wrong in its author's code ends it, and nothing else."""
        try:
            if speech.committed.is_set() and not speech.settled:
                if speech.in_turn and not await self._complete_turn(speech):
                    speech.complete = speech.reply.silent = True
                    return
                self.settle(speech)
                if not speech.in_turn:
                    # Typed: nobody goes on with it.
                    self.announce(speech)
            if (turn := speech.reply.turn) is not None and speech.reply.first_heard is None:
                turn.asked, turn.first_text = self._now(), None
            async with aclosing(self._rest(speech, asked)) as pieces:
                async for text in pieces:
                    yield text
        except InferenceError:
            speech.failed = True
            raise
        except Exception as exc:
            speech.failed = speech.reply.silent = True
            logger.exception("the agent's code failed")
            self.agent_failed(exc)

    async def _complete_turn(self, speech: Speech) -> bool:
        """Ask the agent's hook. False: nothing is to be answered."""
        assert speech.question is not None
        known_to = speech.agent.chat_ctx.copy()
        before = list(known_to.items)
        try:
            await speech.agent.on_user_turn_completed(known_to, speech.question)
        except StopResponse:
            speech.settled, speech.question = True, None
            return False
        except Exception as exc:
            logger.exception("the agent's code failed")
            self.agent_failed(exc)
        else:
            if known_to.items != before:
                speech.known_to = known_to
        return True

    async def _steps(self, speech: Speech, asked: Callable[[Generation], None]) -> AsyncGenerator[str, None]:
        """Steps of the model until one calls no tools."""
        while True:
            calls: list[FunctionCall] = []
            async with aclosing(self._step(speech, asked)) as parts:
                async for part in parts:
                    if isinstance(part, FunctionCall):
                        calls.append(part)
                    else:
                        yield part
            if not calls:
                break
            await speech.committed.wait()
            self._execute(speech, calls)
            async with aclosing(self._executed(speech)) as words:
                async for text in words:
                    yield text
            if not self._goes_on(speech):
                speech.reply.silent = True
                break
        speech.complete = True

    async def _step(
        self, speech: Speech, asked: Callable[[Generation], None]
    ) -> AsyncGenerator[str | FunctionCall, None]:
        """One step; the conversation is shortened until it fits."""
        agent = speech.agent
        choice = speech.tool_choice if speech.steps < agent.max_tool_steps else "none"
        settings = ModelSettings(choice, speculative=not speech.committed.is_set(), asked=asked)
        while True:
            begun = False
            try:
                async with aclosing(agent.llm_node(self._prompt(speech), agent.tools, settings)) as parts:
                    async for part in parts:
                        begun = True
                        yield part
            except RequestFailedError as exc:
                if begun or exc.code != "too_long" or not self._window.drop_oldest_turn(agent.chat_ctx.items):
                    raise
                logger.info("the conversation outgrew the context; its oldest turn is left out")
            else:
                return

    async def ask_model(
        self, chat_ctx: ChatContext, tools: Tools, settings: ModelSettings
    ) -> AsyncGenerator[str | FunctionCall, None]:
        """What the resident model writes after ``chat_ctx``: text as it comes, then the calls of tools."""
        messages = render(chat_ctx.items, instructions_for(tools))
        reply_tokens = self._reply_tokens
        may_call = bool(tools) and settings.tool_choice != "none"
        # Beside the conversation, a call may take no more than a quarter of what the model can see.
        max_tokens = max(reply_tokens, min(CALL_TOKENS, self._context_tokens // 4)) if may_call else reply_tokens
        writing = self._model.write(
            messages,
            max_tokens=max_tokens,
            grammar=grammar_for(tools, settings.tool_choice),
            temperature=settings.temperature,
            speculative=settings.speculative,
            asked=settings.asked,
        )
        parser = CallParser()
        async with aclosing(writing) as pieces:
            async for text in pieces:
                if not tools:
                    yield text
                    continue
                if said := parser.push(text):
                    yield said
                if parser.pieces >= reply_tokens:
                    break
        if may_call:
            for call in parser.finish():
                yield call

    # --- tools ----------------------------------------------------------------------------------------

    def _execute(self, speech: Speech, calls: list[FunctionCall]) -> None:
        assert self._tasks is not None
        assert self._outlet is not None
        # What a tool does cannot be undone, so nothing of this turn is.
        self.announce(speech)
        self._outlet.keep(speech.reply)
        speech.steps += 1
        speech.execution = Execution(
            calls,
            speech.agent.tools,
            lambda call: self._run_context(speech.handle, call),
            tasks=self._tasks,
            done=lambda results: self._note_results(speech.agent, results),
        )

    def _note_results(self, agent: VoiceAgent, results: Sequence[ToolResult]) -> None:
        calls, outputs = [result.call for result in results], [result.output for result in results]
        self.add(agent, *calls, *outputs)
        self._events.emit(FunctionToolsExecutedEvent(calls, outputs))
        new_agent = next((result.new_agent for result in results if result.new_agent is not None), None)
        if new_agent is not None:
            self._hand_over(new_agent)

    async def _executed(self, speech: Speech) -> AsyncGenerator[str, None]:
        """What is said until all calls have ended."""
        assert speech.execution is not None
        if not speech.execution.results:
            async with aclosing(speech.execution.words()) as words:
                async for text in words:
                    yield text

    def _goes_on(self, speech: Speech) -> bool:
        """Whether the model is to answer with what came of the calls."""
        assert speech.execution is not None
        results, speech.execution = speech.execution.results, None
        handed_over = any(result.new_agent is not None for result in results)
        speech.tool_choice = "none" if handed_over or speech.tool_choice == "none" else "auto"
        return any(result.reply_required for result in results) and not any(result.stop for result in results)

    async def go_on(self, speech: Speech, left: str) -> AsyncGenerator[str, None]:
        """Say what is ``left`` of what was written, and then go on writing."""
        if left or speech.reply.before:
            # What follows is a sentence of its own.
            yield f"{left}\n"
        async with aclosing(self.write(speech)) as pieces:
            async for text in pieces:
                yield text

    async def _rest(self, speech: Speech, asked: Callable[[Generation], None]) -> AsyncGenerator[str, None]:
        """What is written after the tools that were called before, if any were."""
        if speech.execution is not None:
            async with aclosing(self._executed(speech)) as words:
                async for text in words:
                    yield text
            if not self._goes_on(speech):
                speech.complete = speech.reply.silent = True
                return
        async with aclosing(self._steps(speech, asked)) as pieces:
            async for text in pieces:
                yield text


def _told(agent: VoiceAgent) -> list[ChatMessage]:
    return [ChatMessage("system", agent.instructions)] if agent.instructions else []
