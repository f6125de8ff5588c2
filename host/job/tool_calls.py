"""The calls of one step of the model, executed: side by side, with a limit, and something to say meanwhile.

A call that has begun runs to its end, also when the caller interrupts the answer that waits for it: half a
booking is worse than one that nobody asked for in the end. Only the end of the session cancels it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import inspect
import itertools
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from host.job.agent import VoiceAgent
from host.job.tool_schema import ArgumentError
from host.job.tool_text import FunctionCall, FunctionCallOutput, distinct
from host.job.tools import FunctionTool, RunContext, RunningTool, StopResponse, ToolError, running_tool

logger = logging.getLogger(__name__)

MAX_OUTPUT: Final = 4_000
"""Characters of a result; the conversation has to fit beside it."""

HELD_UP_S: Final = 0.05
"""A function that is no coroutine function and takes longer has silenced the room."""

_NUMBERS: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """``value``: what the function returned; a ``VoiceAgent``, alone or before a text, takes over.

    ``reply_required``: the model is to answer with what came of it. ``stop``: nothing is to be answered.
    """

    call: FunctionCall
    output: FunctionCallOutput
    value: Any = None
    stop: bool = False
    reply_required: bool = True

    @property
    def new_agent(self) -> VoiceAgent | None:
        """Who takes over, if somebody does."""
        return _split(self.value)[0]


class Execution:
    """``calls`` of the same step, on their way when this returns; what is asked twice is done once.

    ``tasks`` is the session's group: they are its tasks. ``context_of`` makes what a tool is told of the conversation.
    ``done`` is called with the results, in the order of the calls, when all have ended.
    """

    def __init__(
        self,
        calls: Iterable[FunctionCall],
        tools: Iterable[FunctionTool[..., Any]],
        context_of: Callable[[FunctionCall], RunContext[Any]],
        *,
        tasks: asyncio.TaskGroup,
        done: Callable[[Sequence[ToolResult]], None] = lambda _: None,
    ) -> None:
        self.calls = distinct(calls, _NUMBERS)
        self.results: tuple[ToolResult, ...] = ()
        self._tools = {tool.name: tool for tool in tools}
        self._context_of = context_of
        self._tasks = tasks
        self._done = done
        self._words: asyncio.Queue[str | None] = asyncio.Queue()
        self._running: list[RunningTool] = []
        self._filled = False
        tasks.create_task(self._run(), name="tools")

    def __repr__(self) -> str:
        return f"<Execution {', '.join(call.name for call in self.calls)} {len(self.results)} ended>"

    async def words(self) -> AsyncGenerator[str, None]:
        """What is to be said until all calls have ended: each piece is a sentence of its own."""
        try:
            self._wait(True)
            while (text := await self._words.get()) is not None:
                yield text
        finally:
            self._wait(False)

    async def _run(self) -> None:
        try:
            self.results = tuple(await asyncio.gather(*map(self._result, self.calls)))
            self._done(self.results)
        finally:
            self._words.put_nowait(None)

    def _wait(self, waits: bool) -> None:
        for running in self._running:
            running.is_waited_for = waits

    def _say(self, text: str) -> None:
        if text := text.strip():
            # The line's end makes the sentence whole, whatever follows.
            self._words.put_nowait(f"{text}\n")

    def _fill(self, filler: str) -> None:
        if not self._filled:
            self._filled = True
            self._say(filler)

    async def _result(self, call: FunctionCall) -> ToolResult:
        tool = self._tools.get(call.name)
        if tool is None:
            return _failed(call, f"there is no tool {call.name!r}, allowed: {', '.join(self._tools) or 'none'}")
        began = time.monotonic()
        context = self._context_of(call).spoken_by(self._say)
        running = RunningTool(tool.name)
        self._running.append(running)
        task = self._tasks.create_task(_invoke(tool, call, context, running), name=f"tool-{call.name}")
        loop = asyncio.get_running_loop()
        filler = loop.call_later(tool.filler_after_ms / 1000, self._fill, tool.filler) if tool.filler else None
        try:
            await asyncio.wait([task], timeout=tool.timeout_s)
        finally:
            if filler is not None:
                filler.cancel()
        if not task.done():
            # It is not waited for: it might not obey.
            task.cancel()
            logger.warning("the tool %s took more than %g s", call.name, tool.timeout_s)
            return _failed(call, f"{call.name} did not answer within {tool.timeout_s:g} seconds")
        if task.cancelled():
            logger.error("the tool %s was cancelled from inside", call.name)
            return _failed(call, _INTERNAL)
        result = task.result()
        logger.debug("%s(%s): %s after %.3f s", call.name, call.arguments, result.output, time.monotonic() - began)
        return result


_INTERNAL: Final = "an internal error occurred"
"""What the model is told of an exception: its text is for the log, not for the caller."""


async def _invoke(
    tool: FunctionTool[..., Any], call: FunctionCall, context: RunContext[Any], running: RunningTool
) -> ToolResult:
    """Whatever happens in it, the session goes on."""
    running_tool.set(running)
    began = time.monotonic()
    try:
        value = tool.call(call.arguments, context)
        if inspect.isawaitable(value):
            value = await value
        elif (held_up := time.monotonic() - began) > HELD_UP_S:
            logger.warning("the tool %s silenced its room for %.2f s; make it a coroutine function", tool.name, held_up)
    except StopResponse:
        return ToolResult(call, _output(call, "done"), stop=True, reply_required=False)
    except (ArgumentError, ToolError) as exc:
        return _failed(call, str(exc))
    except (Exception, SystemExit):
        logger.exception("the tool %s failed", tool.name)
        return _failed(call, _INTERNAL)
    agent, said = _split(value)
    if agent is not None and said is None:
        said = f"The call was handed over to {type(agent).__name__}."
        return ToolResult(call, _output(call, said), value, reply_required=False)
    return ToolResult(call, _output(call, _text(said)), value, reply_required=said is not None)


def _split(value: Any) -> tuple[VoiceAgent | None, Any]:
    """Who takes over, and the rest of what a tool returned."""
    if isinstance(value, VoiceAgent):
        return value, None
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], VoiceAgent):
        return value
    return None, value


def _failed(call: FunctionCall, reason: str) -> ToolResult:
    return ToolResult(call, _output(call, f"Error: {reason}", is_error=True))


def _output(call: FunctionCall, text: str, *, is_error: bool = False) -> FunctionCallOutput:
    if len(text) > MAX_OUTPUT:
        logger.warning("%s returned %d characters, the model is given %d", call.name, len(text), MAX_OUTPUT)
        text = f"{text[:MAX_OUTPUT]}..."
    return FunctionCallOutput(call.call_id, call.name, text, is_error)


def _text(value: Any) -> str:
    """What a tool returned, for the model to read."""
    if value is None:
        return "done"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return str(value)
