"""Calls are executed: side by side, with a limit, and something to say meanwhile. Time is the event loop's own."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from host.job.agent import VoiceAgent
from host.job.speech import PhraseCutter
from host.job.tool_calls import MAX_OUTPUT, Execution, ToolResult
from host.job.tool_text import FunctionCall
from host.job.tools import RunContext, StopResponse, ToolError, check_wait, function_tool

DEADLINE_S = 20.0


@dataclass
class Order:
    dish: str
    size: Literal["small", "large"] = "small"


class Agent:
    """Tools, and what they wait for."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.called: list[str] = []

    @function_tool
    def quick(self, order: Order) -> Order:
        """At once."""
        self.called.append(order.dish)
        return order

    @function_tool(filler="One moment, please.", filler_after_ms=1)
    async def slow(self, context: RunContext[Any]) -> str:
        """When it may."""
        with pytest.raises(RuntimeError, match="the tool slow waits for speech that comes after the answer"):
            check_wait()
        self.called.append("slow")
        await self.go.wait()
        context.say(" It takes a while. ")
        try:
            check_wait()
        except RuntimeError:
            self.called.append("waited for to the end")
        return "slow is done"

    @function_tool(timeout_s=0.01)
    async def endless(self) -> None:
        """Never, and it does not obey."""
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.called.append("not obeyed")
                await self.go.wait()
                raise

    @function_tool
    async def refuse(self) -> None:
        raise ToolError("We have no table then.")

    @function_tool
    async def fail(self) -> None:
        raise KeyError("a secret")

    @function_tool
    def leave(self) -> None:
        raise SystemExit

    @function_tool
    async def cancel_itself(self) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    @function_tool
    async def stop(self) -> str:
        raise StopResponse

    @function_tool
    async def nothing(self) -> None: ...

    @function_tool
    async def much(self) -> str:
        return "x" * (2 * MAX_OUTPUT)

    @function_tool
    def block(self) -> str:
        time.sleep(0.06)
        return "blocked"

    @function_tool
    async def hand_over(self, say: str = "") -> Any:
        agent = VoiceAgent("You sell.")
        return (agent, say) if say else agent


def context_of(call: FunctionCall) -> RunContext[Any]:
    return RunContext(None, None, call)  # type: ignore[arg-type]


async def execute(*calls: tuple[str, dict[str, Any]], agent: Agent | None = None) -> tuple[list[str], list[ToolResult]]:
    """What is said, and the results."""
    agent = agent or Agent()
    agent.go.set()
    done: list[Sequence[ToolResult]] = []
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        execution = Execution(
            [FunctionCall(name, json.dumps(arguments)) for name, arguments in calls],
            tools_of(agent),
            context_of,
            tasks=tasks,
            done=done.append,
        )
        words = [words async for words in execution.words()]
    assert done == [execution.results]
    return words, list(execution.results)


def tools_of(agent: Agent) -> list[Any]:
    return [getattr(agent, name) for name in vars(Agent) if hasattr(getattr(Agent, name), "timeout_s")]


async def test_results_come_in_the_order_of_the_calls() -> None:
    agent = Agent()
    words, results = await execute(("slow", {}), ("quick", {"order": {"dish": "soup"}}), agent=agent)
    assert [result.output.output for result in results] == ["slow is done", '{"dish": "soup", "size": "small"}']
    assert [result.call.name for result in results] == ["slow", "quick"]
    assert results[1].value == Order("soup")
    assert all(result.reply_required and not result.output.is_error for result in results)
    assert sorted(agent.called) == ["slow", "soup", "waited for to the end"]
    check_wait()
    assert words[-1] == "It takes a while.\n"
    assert len({result.output.call_id for result in results}) == 2
    assert [result.output.call_id for result in results] == [result.call.call_id for result in results]


async def test_what_is_asked_twice_is_done_once() -> None:
    agent = Agent()
    soup = ("quick", {"order": {"dish": "soup"}})
    _, results = await execute(soup, soup, ("quick", {"order": {"dish": "bread"}}), agent=agent)
    assert len(results) == 2
    assert agent.called == ["soup", "bread"]


@pytest.mark.parametrize(
    ("name", "arguments", "output"),
    [
        ("refuse", {}, "Error: We have no table then."),
        ("fail", {}, "Error: an internal error occurred"),
        ("leave", {}, "Error: an internal error occurred"),
        ("cancel_itself", {}, "Error: an internal error occurred"),
        ("endless", {}, "Error: endless did not answer within 0.01 seconds"),
        ("fly", {}, "Error: there is no tool 'fly', allowed: quick, slow, endless,"),
        ("quick", {}, "Error: the argument 'order' is missing"),
        ("quick", {"order": {"dish": 3}}, "Error: order: dish: expected a string, got 3"),
    ],
)
async def test_what_goes_wrong_is_told_to_the_model(name: str, arguments: dict[str, Any], output: str) -> None:
    _, (result,) = await execute((name, arguments))
    assert result.output.output.startswith(output)
    assert result.output.is_error
    assert result.reply_required


async def test_what_the_model_is_not_told_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await execute(("fail", {}), ("endless", {}), ("block", {}), ("much", {}))
    assert "KeyError: 'a secret'" in caplog.text
    assert "the tool endless took more than 0.01 s" in caplog.text
    assert "the tool block silenced its room for" in caplog.text
    assert f"much returned {2 * MAX_OUTPUT} characters" in caplog.text


async def test_an_answer_is_not_always_due() -> None:
    _, (stopped, nothing, something) = await execute(("stop", {}), ("nothing", {}), ("block", {}))
    assert (stopped.stop, stopped.reply_required) == (True, False)
    assert (nothing.stop, nothing.reply_required, nothing.output.output) == (False, False, "done")
    assert (something.reply_required, something.output.output) == (True, "blocked")


async def test_a_long_result_is_cut() -> None:
    _, (result,) = await execute(("much", {}))
    assert len(result.output.output) == MAX_OUTPUT + 3


async def test_a_tool_hands_over() -> None:
    _, (alone, with_text) = await execute(("hand_over", {}), ("hand_over", {"say": "Sales is there."}))
    assert alone.new_agent is not None
    assert alone.output.output == "The call was handed over to VoiceAgent."
    assert not alone.reply_required
    assert with_text.new_agent is not None
    assert with_text.output.output == "Sales is there."
    assert with_text.reply_required


async def test_a_filler_is_said_while_a_slow_tool_runs() -> None:
    agent = Agent()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        calls = [FunctionCall("slow"), FunctionCall("slow", '{"x": 1}')]
        execution = Execution(calls, tools_of(agent), context_of, tasks=tasks)
        words = execution.words()
        assert await anext(words) == "One moment, please.\n"
        agent.go.set()
        # One for both calls, and nothing else is said for the one that was refused.
        assert [text async for text in words] == ["It takes a while.\n"]
    assert execution.results[1].output.is_error


def test_a_filler_is_spoken_at_once() -> None:
    cutter = PhraseCutter(60, 200, language="en")
    (phrase,) = cutter.push("One moment, please.\n")
    assert phrase.spoken == "One moment, please."
    assert [phrase.spoken for phrase in (*cutter.push("We open at nine."), *cutter.finish())] == ["We open at nine."]


async def test_a_call_that_has_begun_runs_to_its_end() -> None:
    """Also when nobody waits for it any more; only the end of the session cancels it."""
    agent = Agent()
    done: list[Sequence[ToolResult]] = []
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        execution = Execution([FunctionCall("slow")], tools_of(agent), context_of, tasks=tasks, done=done.append)
        words = execution.words()
        await anext(words)
        await words.aclose()
        assert not done
        agent.go.set()
    assert [result.output.output for (result,) in done] == ["slow is done"]
    # Nobody waited any more, so what it waits for will come.
    assert agent.called == ["slow"]

    agent = Agent()
    done.clear()
    with pytest.raises(ExceptionGroup, match="unhandled"):
        await end_while_it_runs(agent, done)
    assert not done


async def end_while_it_runs(agent: Agent, done: list[Sequence[ToolResult]]) -> None:
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        execution = Execution([FunctionCall("slow")], tools_of(agent), context_of, tasks=tasks, done=done.append)
        await anext(execution.words())
        raise RuntimeError("the session ends")


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "host.job.tool_calls")
