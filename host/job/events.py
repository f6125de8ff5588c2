"""What a session tells its listeners, and how they listen. Names and fields are LiveKit's."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar, overload

from host.job.chat_context import AgentHandoff, ChatMessage
from host.job.dialogue import Source, UserState
from host.job.room import AgentState
from host.job.speech_handle import SpeechHandle
from host.job.tool_text import FunctionCall, FunctionCallOutput
from inference.wire.supervision import TurnReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UserStateChangedEvent:
    """``user_state_changed``: the caller speaks, listens, or is away."""

    old_state: UserState
    new_state: UserState
    created_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class AgentStateChangedEvent:
    """``agent_state_changed``: as the participant attribute ``lk.agent.state`` says."""

    old_state: AgentState
    new_state: AgentState
    created_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class UserInputTranscribedEvent:
    """``user_input_transcribed``: what the caller said (``is_final``), or has said so far. ``language`` "": unknown."""

    transcript: str
    is_final: bool
    language: str = ""
    created_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class ConversationItemAddedEvent:
    """``conversation_item_added``: a message joined the history (the agent's when it was heard), or an agent."""

    item: ChatMessage | AgentHandoff
    created_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class FunctionToolsExecutedEvent:
    """``function_tools_executed``: the calls of one step have ended, each with its output."""

    function_calls: Sequence[FunctionCall]
    function_call_outputs: Sequence[FunctionCallOutput]
    created_at: float = field(default_factory=time.time)

    def zipped(self) -> list[tuple[FunctionCall, FunctionCallOutput]]:
        """Each call with its output."""
        return list(zip(self.function_calls, self.function_call_outputs, strict=True))


@dataclass(frozen=True, slots=True)
class SpeechCreatedEvent:
    """``speech_created``: the agent will say something. ``source``: what for."""

    source: Literal["say", "generate_reply", "user_turn"]
    speech_handle: SpeechHandle
    created_at: float = field(default_factory=time.time)

    @property
    def user_initiated(self) -> bool:
        """Whether it was the agent's author that asked for it, and not a turn of the caller."""
        return self.source != "user_turn"


@dataclass(frozen=True, slots=True)
class AgentFalseInterruptionEvent:
    """``agent_false_interruption``: nothing was said in what interrupted the agent; ``resumed``: it goes on."""

    resumed: bool
    created_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class MetricsCollectedEvent:
    """``metrics_collected``: what was measured of a turn that is over."""

    metrics: TurnReport
    created_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """``error``: something failed; the conversation goes on as it can. ``source`` "agent": its author's code."""

    error: BaseException
    source: Source | Literal["agent"]
    created_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class CloseEvent:
    """``close``: the session is over. ``error``: what ended it, None for an end like any other."""

    reason: str
    error: BaseException | None = None
    created_at: float = field(default_factory=time.time)


Event = (
    UserStateChangedEvent
    | AgentStateChangedEvent
    | UserInputTranscribedEvent
    | ConversationItemAddedEvent
    | FunctionToolsExecutedEvent
    | SpeechCreatedEvent
    | AgentFalseInterruptionEvent
    | MetricsCollectedEvent
    | ErrorEvent
    | CloseEvent
)

EVENTS: Final[dict[str, type[Event]]] = {
    "user_state_changed": UserStateChangedEvent,
    "agent_state_changed": AgentStateChangedEvent,
    "user_input_transcribed": UserInputTranscribedEvent,
    "conversation_item_added": ConversationItemAddedEvent,
    "function_tools_executed": FunctionToolsExecutedEvent,
    "speech_created": SpeechCreatedEvent,
    "agent_false_interruption": AgentFalseInterruptionEvent,
    "metrics_collected": MetricsCollectedEvent,
    "error": ErrorEvent,
    "close": CloseEvent,
}
"""What may be listened to, and what its callback is given."""

_NAMES = {event: name for name, event in EVENTS.items()}

Callback = TypeVar("Callback", bound=Callable[..., object])


class EventEmitter:
    """Callbacks for each event, called in the order in which they were given; one that fails keeps no other from it."""

    def __init__(self) -> None:
        self._callbacks: dict[str, list[Callable[..., object]]] = {name: [] for name in EVENTS}

    @overload
    def on(self, event: str, callback: Callback) -> Callback: ...

    @overload
    def on(self, event: str) -> Callable[[Callback], Callback]: ...

    def on(self, event: str, callback: Any = None) -> Any:
        """Have ``callback`` called with each ``event``; also as a decorator. It must not block.

        Raises ``ValueError`` for an event that there is not, or for a coroutine function: it makes a task itself.
        """
        if event not in self._callbacks:
            raise ValueError(f"there is no event {event!r}, allowed: {', '.join(EVENTS)}")
        if callback is None:
            return lambda function: self.on(event, function)
        if inspect.iscoroutinefunction(callback):
            raise ValueError(f"a callback of {event} is a plain function; make a task in it for what takes time")
        self._callbacks[event].append(callback)
        return callback

    def off(self, event: str, callback: Callable[..., object]) -> None:
        """Undo ``on``. Raises ``ValueError`` for a callback that is not there."""
        if callback not in self._callbacks.get(event, ()):
            raise ValueError(f"{callback!r} does not listen to {event!r}")
        self._callbacks[event].remove(callback)

    def emit(self, event: Event) -> None:
        """Tell everybody who listens."""
        name = _NAMES[type(event)]
        for callback in tuple(self._callbacks[name]):
            try:
                callback(event)
            except Exception:
                logger.exception("a callback of %s failed", name)
