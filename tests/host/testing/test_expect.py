"""Assertions on the events of a turn: what passes, and what a failure says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from host.job.chat_context import ChatMessage
from host.job.tool_text import FunctionCall, FunctionCallOutput
from host.testing.expect import (
    AgentHandoffEvent,
    ChatMessageEvent,
    FunctionCallEvent,
    FunctionCallOutputEvent,
    RunAssert,
    RunEvent,
)


class Manager:
    pass


def events() -> list[RunEvent]:
    return [
        FunctionCallEvent(FunctionCall("book", '{"day": "monday", "people": 2}', "call_1")),
        FunctionCallOutputEvent(FunctionCallOutput("call_1", "book", "the booking was made")),
        ChatMessageEvent(ChatMessage("assistant", "You have a table on Monday.")),
        AgentHandoffEvent("Host", Manager()),
        FunctionCallOutputEvent(FunctionCallOutput("call_2", "bill", "no such table", is_error=True)),
    ]


def test_one_after_the_other() -> None:
    expect = RunAssert(events())
    call = expect.next_event().is_function_call(name="book", arguments={"day": "monday"})
    assert call.item.call_id == "call_1"
    expect.next_event().is_function_call_output(output="the booking was made", is_error=False)
    message = expect.next_event().is_message(role="assistant", contains="MONDAY", matches=r"table .* Monday")
    assert message.item.content == "You have a table on Monday."
    expect.next_event().is_agent_handoff(new_agent_type=Manager)
    expect.skip_next().no_more_events()


def test_the_next_of_a_type() -> None:
    expect = RunAssert(events())
    expect.next_event(type="message").is_message(text="You have a table on Monday.")
    expect.next_event(type="function_call_output").is_function_call_output(is_error=True)
    with pytest.raises(AssertionError, match="expected another message, there is none"):
        expect.next_event(type="message")
    expect.no_more_events()


def test_passing_over_what_may_be_there() -> None:
    expect = RunAssert(events())
    assert expect.skip_next_event_if(type="message") is None
    assert expect.skip_next_event_if(type="function_call", name="cancel") is None
    skipped = expect.skip_next_event_if(type="function_call", name="book")
    assert skipped is not None
    assert skipped.event().type == "function_call"
    expect.skip_next(4)
    assert expect.skip_next_event_if(type="message") is None


def test_any_of_them() -> None:
    expect = RunAssert(events())
    expect.contains_message(contains="table")
    expect.contains_function_call(name="book", arguments={"people": 2})
    expect.contains_function_call_output(is_error=True, contains="no such")
    expect.contains_agent_handoff(new_agent_type=Manager)
    expect[2:].contains_message()
    expect[0].is_function_call()
    expect[-1].is_function_call_output(is_error=True)
    # None of these passed over anything.
    expect.next_event().is_function_call()


def test_an_agent_that_is_known_by_name() -> None:
    expect = RunAssert([AgentHandoffEvent("Host", "Manager")])
    expect.next_event().is_agent_handoff(new_agent_type=Manager)


FAILURES: list[tuple[Callable[[RunAssert], Any], str]] = [
    (lambda expect: expect.next_event().is_message(), "expected a message, it is a function call"),
    (lambda expect: expect[2].is_function_call(), "expected a function call, it is a message"),
    (lambda expect: expect[0].is_function_call(name="cancel"), "expected name 'cancel', it is 'book'"),
    (
        lambda expect: expect[0].is_function_call(arguments={"day": "friday"}),
        "expected argument 'day' 'friday', it is 'monda",
    ),
    (
        lambda expect: expect[0].is_function_call(arguments={"name": "Ann"}),
        "argument 'name', the call has 'day', 'people'",
    ),
    (lambda expect: expect[1].is_function_call_output(is_error=True), "expected is_error True, it is False"),
    (lambda expect: expect[1].is_function_call_output(output="ok"), "expected output 'ok'"),
    (lambda expect: expect[1].is_function_call_output(contains="paid"), "expected an output with 'paid' in it"),
    (lambda expect: expect[2].is_message(role="user"), "expected role 'user', it is 'assistant'"),
    (lambda expect: expect[2].is_message(text="Yes."), "expected text 'Yes.'"),
    (lambda expect: expect[2].is_message(contains="Friday"), "expected a message with 'Friday' in it"),
    (lambda expect: expect[2].is_message(matches="^Sorry"), "expected a message that matches '^Sorry'"),
    (lambda expect: expect[3].is_agent_handoff(new_agent_type=str), "expected a hand-off to str, it is to Manager"),
    (lambda expect: expect[5], "there is no event 5"),
    (lambda expect: expect[-6], "there is no event -6"),
    (lambda expect: expect.skip_next(6), "expected another event, there is none"),
    (lambda expect: expect.no_more_events(), "expected no more events"),
    (lambda expect: expect.contains_message(role="user"), "expected a message with role='user', there is none"),
    (lambda expect: expect[:2].contains_message(), "expected a message, there is none"),
    (lambda expect: expect[:2].contains_agent_handoff(), "expected a hand-off, there is none"),
]


@pytest.mark.parametrize(("claim", "says"), FAILURES, ids=[says for _, says in FAILURES])
def test_what_a_failure_says(claim: Callable[[RunAssert], Any], says: str) -> None:
    with pytest.raises(AssertionError) as raised:
        claim(RunAssert(events()))
    assert says in str(raised.value)
    for n, event in enumerate(events()):
        assert f"[{n}] {event}" in str(raised.value)


def test_the_event_in_question_is_marked() -> None:
    with pytest.raises(AssertionError) as raised:
        RunAssert(events())[2].is_message(text="Yes.")
    (marked,) = (line for line in str(raised.value).splitlines() if line.startswith(">>>"))
    assert marked == ">>> [2] assistant: 'You have a table on Monday.'"


def test_nothing_happened() -> None:
    RunAssert([]).no_more_events()
    with pytest.raises(AssertionError, match=r">>> \(no further event\)"):
        RunAssert([]).next_event()
