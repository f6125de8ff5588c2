"""Tools as their authors make them: the decorator, methods, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import pytest

from host.job.tool_schema import ArgumentError, SchemaError
from host.job.tool_text import FunctionCall
from host.job.tools import FunctionTool, RunContext, find_tools, function_tool, mocked


class Session:
    def __init__(self) -> None:
        self.userdata = {"guests": 3}


class Handle:
    allow_interruptions: bool | None = None


def context() -> RunContext[Any]:
    return RunContext(Session(), Handle(), FunctionCall("opening_hours"))  # type: ignore[arg-type]


@function_tool
async def opening_hours(context: RunContext[dict[str, int]], day: Literal["friday", "sunday"]) -> str:
    """When it is open.

    Args:
        day: The day of the week.
    """
    return f"{day} {context.userdata['guests']}"


class Desk:
    def __init__(self, name: str) -> None:
        self.name = name

    @function_tool(name="book", description="Books.", timeout_s=3.0, filler="One moment.", filler_after_ms=100)
    def book_table(self, people: int = 2, *, later: Later | None = None) -> str:
        return f"{self.name} {people} {later}"

    @function_tool
    def cancel(self) -> None: ...


Later = Literal["later"]


class NightDesk(Desk):
    @function_tool
    async def wake(self, at: str) -> None: ...

    cancel = None  # type: ignore[assignment]


async def test_a_function_is_a_tool_and_still_a_function() -> None:
    assert isinstance(opening_hours, FunctionTool)
    assert (opening_hours.name, opening_hours.description) == ("opening_hours", "When it is open.")
    assert opening_hours.parameters == {
        "type": "object",
        "properties": {"day": {"enum": ["friday", "sunday"], "description": "The day of the week."}},
        "required": ["day"],
    }
    assert await opening_hours(context(), "friday") == "friday 3"
    called = opening_hours.call('{"day": "sunday"}', context())
    assert inspect.isawaitable(called)
    assert await called == "sunday 3"
    with pytest.raises(ArgumentError, match="day: expected one of"):
        opening_hours.call('{"day": "monday"}', context())


def test_methods_are_tools_of_their_object() -> None:
    book, cancel = find_tools(Desk("Ada"))
    assert (book.name, book.description, cancel.name) == ("book", "Books.", "cancel")
    assert (book.timeout_s, book.filler, book.filler_after_ms) == (3.0, "One moment.", 100)
    # What was not defined yet when the class was is understood afterwards.
    assert book.parameters["properties"]["later"] == {"anyOf": [{"enum": ["later"]}, {"type": "null"}]}
    assert book.call('{"people": 4, "later": "later"}', context()) == "Ada 4 later"
    assert book.call("{}", context()) == "Ada 2 None"
    assert Desk("Bob").book_table(3) == "Bob 3 None"
    assert [tool.name for tool in find_tools(NightDesk("Cleo"), opening_hours)] == ["book", "wake", "opening_hours"]


def test_a_tool_may_bring_its_schema() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}

    @function_tool(raw_schema={"name": "odd", "description": "Odd.", "parameters": schema})
    def raw(raw_arguments: dict[str, Any]) -> Any:
        return raw_arguments["x"]

    assert (raw.name, raw.description, raw.parameters) == ("odd", "Odd.", schema)
    assert raw.call('{"x": 4}', context()) == 4
    with pytest.raises(SchemaError, match="takes raw_arguments"):

        @function_tool(raw_schema={"parameters": schema})
        def other(x: int) -> None: ...


def test_what_cannot_be_a_tool_is_refused_when_it_is_made() -> None:
    with pytest.raises(SchemaError, match="book: people: it has no annotation"):

        @function_tool
        def book(people) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001, RUF100

    with pytest.raises(SchemaError, match="every: words: a tool is called with arguments by name"):

        @function_tool
        def every(*words: str) -> None: ...

    with pytest.raises(SchemaError, match="send: body: bytes cannot be said in JSON"):

        @function_tool
        def send(body: bytes) -> None: ...

    with pytest.raises(SchemaError, match="'auto' is no name for a tool"):

        @function_tool
        def auto() -> None: ...

    with pytest.raises(ValueError, match="timeout_s is 0"):

        @function_tool(timeout_s=0)
        def never() -> None: ...


def test_what_is_no_tool_is_found_when_the_agent_gets_it() -> None:
    def plain() -> None: ...

    with pytest.raises(TypeError, match="plain is no tool; decorate it with @function_tool"):
        find_tools(plain)
    with pytest.raises(TypeError, match="book is a method"):
        find_tools(Desk.book_table)
    with pytest.raises(ValueError, match="two tools are called 'book'"):
        find_tools(Desk("Ada"), Desk("Bob").book_table)

    @function_tool
    def unknown(x: Unknown) -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(SchemaError, match=r"unknown: an annotation is not defined where the tool is: .*Unknown"):
        find_tools(unknown)


def test_a_tool_may_be_narrowed() -> None:
    (book, _) = find_tools(Desk("Ada"))
    narrowed = book.narrowed(people=[4, 5]).narrowed(later=["later"])
    assert narrowed.parameters == book.parameters == book.allowed
    assert narrowed.allowed["properties"] == {"people": {"enum": [4, 5]}, "later": {"enum": ["later"]}}
    assert narrowed.allowed["required"] == ["people", "later"]
    assert narrowed.call('{"people": 5, "later": "later"}', context()) == "Ada 5 later"
    with pytest.raises(ValueError, match=r"book: when is narrowed to \[1\], allowed: some of people, later"):
        book.narrowed(when=[1])
    with pytest.raises(ValueError, match=r"book: people is narrowed to \[\]"):
        book.narrowed(people=[])


def test_a_test_may_put_something_in_its_place() -> None:
    token = mocked.set({"opening_hours": lambda day: f"never on {day}"})
    try:
        assert opening_hours.call('{"day": "friday"}', context()) == "never on friday"
        # The schema stays.
        with pytest.raises(ArgumentError):
            opening_hours.call("{}", context())
    finally:
        mocked.reset(token)


def test_a_tool_may_keep_the_caller_from_interrupting() -> None:
    given = context()
    given.disallow_interruptions()
    assert given.speech_handle.allow_interruptions is False
    assert given.userdata == {"guests": 3}
