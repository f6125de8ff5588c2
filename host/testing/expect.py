"""What a turn consisted of, and assertions on it, as LiveKit's test helpers have them. Pure.

    result.expect.next_event().is_function_call(name="book", arguments={"day": "Monday"})
    result.expect.next_event().is_function_call_output(is_error=False)
    result.expect.next_event().is_message(role="assistant", contains="Monday")
    result.expect.no_more_events()

An assertion that fails shows all events, and marks the one that it is about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol, TypeVar, overload

EventType = Literal["message", "function_call", "function_call_output", "agent_handoff"]


class Message(Protocol):
    """An item of the history that somebody said."""

    @property
    def role(self) -> str:
        """Who said it: "user", "assistant"."""

    @property
    def content(self) -> str:
        """What was said; of the agent, what was heard."""


class Call(Protocol):
    """An item of the history: the model called a tool."""

    @property
    def name(self) -> str:
        """The tool's name."""

    @property
    def arguments(self) -> str:
        """A JSON object."""


class CallOutput(Protocol):
    """An item of the history: what a tool answered the model."""

    @property
    def name(self) -> str:
        """The tool's name."""

    @property
    def output(self) -> str:
        """As the model is told it."""

    @property
    def is_error(self) -> bool:
        """Whether the tool failed."""


@dataclass(frozen=True, slots=True)
class ChatMessageEvent:
    """Something was said, and heard."""

    item: Message
    type: ClassVar[EventType] = "message"

    def __str__(self) -> str:
        return f"{self.item.role}: {self.item.content!r}"


@dataclass(frozen=True, slots=True)
class FunctionCallEvent:
    """The model called a tool."""

    item: Call
    type: ClassVar[EventType] = "function_call"

    def __str__(self) -> str:
        return f"function call {self.item.name}({self.item.arguments})"


@dataclass(frozen=True, slots=True)
class FunctionCallOutputEvent:
    """A tool has answered."""

    item: CallOutput
    type: ClassVar[EventType] = "function_call_output"

    def __str__(self) -> str:
        return f"{'error' if self.item.is_error else 'output'} of {self.item.name}: {self.item.output!r}"


@dataclass(frozen=True, slots=True)
class AgentHandoffEvent:
    """Another agent took over. ``old_agent``: its class's name; ``new_agent``: the agent, or its class's name."""

    old_agent: str
    new_agent: object
    type: ClassVar[EventType] = "agent_handoff"

    @property
    def new_agent_name(self) -> str:
        """The name of the class of who took over."""
        return self.new_agent if isinstance(self.new_agent, str) else type(self.new_agent).__name__

    def __str__(self) -> str:
        return f"hand-off from {self.old_agent} to {self.new_agent_name}"


RunEvent = ChatMessageEvent | FunctionCallEvent | FunctionCallOutputEvent | AgentHandoffEvent

E = TypeVar("E", ChatMessageEvent, FunctionCallEvent, FunctionCallOutputEvent, AgentHandoffEvent)


class RunAssert:
    """Goes through the events of a turn, one after the other; an index or a slice looks at any of them."""

    def __init__(self, events: Sequence[RunEvent]) -> None:
        self._events = events
        self._next = 0

    @overload
    def __getitem__(self, key: int) -> EventAssert: ...
    @overload
    def __getitem__(self, key: slice) -> EventRangeAssert: ...

    def __getitem__(self, key: int | slice) -> EventAssert | EventRangeAssert:
        __tracebackhide__ = True
        if isinstance(key, slice):
            return EventRangeAssert(self, range(len(self._events))[key])
        index = key + len(self._events) if key < 0 else key
        if not 0 <= index < len(self._events):
            self.fail(f"there is no event {key}", len(self._events))
        return EventAssert(self, index)

    def next_event(self, *, type: EventType | None = None) -> EventAssert:  # noqa: A002 (LiveKit's name)
        """The next event, or the next of a ``type``; those before it are passed over."""
        __tracebackhide__ = True
        index = self._next
        while index < len(self._events) and type not in (None, self._events[index].type):
            index += 1
        if index == len(self._events):
            self.fail(f"expected another {_NAMES[type] if type else 'event'}, there is none", index)
        self._next = index + 1
        return EventAssert(self, index)

    def skip_next(self, count: int = 1) -> RunAssert:
        """Pass over ``count`` events, which must be there."""
        __tracebackhide__ = True
        for _ in range(count):
            self.next_event()
        return self

    def skip_next_event_if(
        self,
        *,
        type: EventType,  # noqa: A002 (LiveKit's name)
        **criteria: Any,
    ) -> EventAssert | None:
        """Pass over the next event if it is of ``type`` and fits the ``criteria`` of its ``is_...``; else stay."""
        if self._next == len(self._events):
            return None
        event = EventAssert(self, self._next)
        if not event.fits(type, criteria):
            return None
        self._next += 1
        return event

    def no_more_events(self) -> None:
        """Nothing else happened."""
        __tracebackhide__ = True
        if self._next < len(self._events):
            self.fail("expected no more events", self._next)

    def contains_message(self, **criteria: Any) -> EventAssert:
        """A message is among the events: criteria of ``is_message``."""
        __tracebackhide__ = True
        return self[:].contains_message(**criteria)

    def contains_function_call(self, **criteria: Any) -> EventAssert:
        """A call is among the events: criteria of ``is_function_call``."""
        __tracebackhide__ = True
        return self[:].contains_function_call(**criteria)

    def contains_function_call_output(self, **criteria: Any) -> EventAssert:
        """A tool's answer is among the events: criteria of ``is_function_call_output``."""
        __tracebackhide__ = True
        return self[:].contains_function_call_output(**criteria)

    def contains_agent_handoff(self, **criteria: Any) -> EventAssert:
        """A hand-off is among the events: criteria of ``is_agent_handoff``."""
        __tracebackhide__ = True
        return self[:].contains_agent_handoff(**criteria)

    def event(self, index: int) -> RunEvent:
        """The event at ``index``."""
        return self._events[index]

    def fail(self, message: str, index: int) -> NoReturn:
        """Raise ``AssertionError`` that shows all events and marks the one at ``index``."""
        __tracebackhide__ = True
        lines = [f"{'>>>' if n == index else '   '} [{n}] {event}" for n, event in enumerate(self._events)]
        if index >= len(self._events):
            lines.append(">>> (no further event)")
        raise AssertionError("\n".join([message, "the events of the turn:", *lines]))


class EventAssert:
    """One event."""

    def __init__(self, run: RunAssert, index: int) -> None:
        self._run = run
        self._index = index

    def event(self) -> RunEvent:
        """The event itself, for assertions of your own."""
        return self._run.event(self._index)

    def is_message(
        self,
        *,
        role: str | None = None,
        text: str | None = None,
        contains: str | None = None,
        matches: str | None = None,
    ) -> ChatMessageEvent:
        """It is a message. ``text``: all of it; ``contains``: a part, case aside; ``matches``: a regular expression."""
        __tracebackhide__ = True
        event = self._of(ChatMessageEvent)
        said = event.item.content
        self._equal("role", role, event.item.role)
        self._equal("text", text, said)
        if contains is not None and contains.casefold() not in said.casefold():
            self._fail(f"expected a message with {contains!r} in it, it is {said!r}")
        if matches is not None and re.search(matches, said) is None:
            self._fail(f"expected a message that matches {matches!r}, it is {said!r}")
        return event

    def is_function_call(
        self, *, name: str | None = None, arguments: Mapping[str, object] | None = None
    ) -> FunctionCallEvent:
        """It is a call of the tool ``name``; those of its arguments that are in ``arguments`` are as they say."""
        __tracebackhide__ = True
        event = self._of(FunctionCallEvent)
        self._equal("name", name, event.item.name)
        given = json.loads(event.item.arguments or "{}")
        for key, value in (arguments or {}).items():
            if key not in given:
                self._fail(f"expected the argument {key!r}, the call has {', '.join(map(repr, given)) or 'none'}")
            self._equal(f"argument {key!r}", value, given[key])
        return event

    def is_function_call_output(
        self, *, output: str | None = None, contains: str | None = None, is_error: bool | None = None
    ) -> FunctionCallOutputEvent:
        """It is what a tool answered. ``output``: all of it; ``contains``: a part."""
        __tracebackhide__ = True
        event = self._of(FunctionCallOutputEvent)
        self._equal("is_error", is_error, event.item.is_error)
        self._equal("output", output, event.item.output)
        if contains is not None and contains not in event.item.output:
            self._fail(f"expected an output with {contains!r} in it, it is {event.item.output!r}")
        return event

    def is_agent_handoff(self, *, new_agent_type: type | None = None) -> AgentHandoffEvent:
        """It is a hand-off, to an agent of ``new_agent_type``."""
        __tracebackhide__ = True
        event = self._of(AgentHandoffEvent)
        if new_agent_type is not None and not (
            isinstance(event.new_agent, new_agent_type) or event.new_agent_name == new_agent_type.__name__
        ):
            self._fail(f"expected a hand-off to {new_agent_type.__name__}, it is to {event.new_agent_name}")
        return event

    def fits(self, kind: EventType, criteria: Mapping[str, Any]) -> bool:
        """Whether it is of ``kind`` and as the ``criteria`` of the ``is_...`` of that kind say."""
        checks: dict[EventType, Callable[..., object]] = {
            "message": self.is_message,
            "function_call": self.is_function_call,
            "function_call_output": self.is_function_call_output,
            "agent_handoff": self.is_agent_handoff,
        }
        try:
            checks[kind](**criteria)
        except AssertionError:
            return False
        return True

    def _of(self, kind: type[E]) -> E:
        __tracebackhide__ = True
        event = self.event()
        if not isinstance(event, kind):
            self._fail(f"expected a {_NAMES[kind.type]}, it is a {_NAMES[event.type]}")
        return event

    def _equal(self, what: str, expected: object, found: object) -> None:
        __tracebackhide__ = True
        if expected is not None and expected != found:
            self._fail(f"expected {what} {expected!r}, it is {found!r}")

    def _fail(self, message: str) -> NoReturn:
        __tracebackhide__ = True
        self._run.fail(message, self._index)


class EventRangeAssert:
    """Some of the events, in order."""

    def __init__(self, run: RunAssert, indices: range) -> None:
        self._run = run
        self._indices = indices

    def contains_message(self, **criteria: Any) -> EventAssert:
        """A message is among them: criteria of ``is_message``."""
        __tracebackhide__ = True
        return self._contains("message", criteria)

    def contains_function_call(self, **criteria: Any) -> EventAssert:
        """A call is among them: criteria of ``is_function_call``."""
        __tracebackhide__ = True
        return self._contains("function_call", criteria)

    def contains_function_call_output(self, **criteria: Any) -> EventAssert:
        """A tool's answer is among them: criteria of ``is_function_call_output``."""
        __tracebackhide__ = True
        return self._contains("function_call_output", criteria)

    def contains_agent_handoff(self, **criteria: Any) -> EventAssert:
        """A hand-off is among them: criteria of ``is_agent_handoff``."""
        __tracebackhide__ = True
        return self._contains("agent_handoff", criteria)

    def _contains(self, kind: EventType, criteria: Mapping[str, Any]) -> EventAssert:
        __tracebackhide__ = True
        events = [EventAssert(self._run, index) for index in self._indices]
        found = next((event for event in events if event.fits(kind, criteria)), None)
        if found is None:
            wanted = ", ".join(f"{key}={value!r}" for key, value in criteria.items())
            self._run.fail(f"expected a {_NAMES[kind]}{' with ' if wanted else ''}{wanted}, there is none", -1)
        return found


_NAMES: dict[EventType, str] = {
    "message": "message",
    "function_call": "function call",
    "function_call_output": "function call's output",
    "agent_handoff": "hand-off",
}
