"""What came of a turn in a test: what happened in it, in order, and what was measured of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from host.job.chat_context import AgentHandoff
from host.job.events import (
    ConversationItemAddedEvent,
    ErrorEvent,
    FunctionToolsExecutedEvent,
    MetricsCollectedEvent,
    UserInputTranscribedEvent,
)
from host.testing.expect import (
    AgentHandoffEvent,
    ChatMessageEvent,
    FunctionCallEvent,
    FunctionCallOutputEvent,
    RunAssert,
    RunEvent,
)
from inference.wire.supervision import TurnReport

if TYPE_CHECKING:
    from host.job.session import VoiceSession


class RunResult:
    """``events``: what the agent said (as it was heard), the tools that it called, and hand-offs, in order.

    ``user_input``: what was typed, or heard of the caller. ``turns``: what was measured of the turns that ended.
    ``errors``: what failed. ``seconds``: how long it took on the room's clock; 0 in writing.
    """

    def __init__(self, user_input: str = "") -> None:
        self.user_input = user_input
        self.events: list[RunEvent] = []
        self.turns: list[TurnReport] = []
        self.errors: list[BaseException] = []
        self.seconds = 0.0
        self.transcribed = False
        """Whether the caller's words became a turn."""

    def __repr__(self) -> str:
        return f"<RunResult {self.user_input!r}: {'; '.join(map(str, self.events)) or 'nothing happened'}>"

    @functools.cached_property
    def expect(self) -> RunAssert:
        """Assertions on the events; it remembers which was looked at last."""
        return RunAssert(self.events)

    @property
    def reply(self) -> str:
        """All that the agent said, as it was heard."""
        said = [event.item.content for event in self.events if isinstance(event, ChatMessageEvent)]
        return " ".join(said)

    @property
    def turn(self) -> TurnReport:
        """What was measured of the one turn that ended. Raises ``AssertionError`` if there is not exactly one.

        Times are milliseconds on the room's clock; -1 is what did not happen.
        """
        __tracebackhide__ = True
        if len(self.turns) != 1:
            raise AssertionError(f"expected one turn to end, {len(self.turns)} did: {self!r}")
        return self.turns[0]

    @contextmanager
    def recorded(self, session: VoiceSession) -> Iterator[RunResult]:
        """Inside, what happens in ``session`` is added to this."""
        listeners: dict[str, Callable[..., object]] = {
            "conversation_item_added": functools.partial(self._added, session),
            "function_tools_executed": self._executed,
            "user_input_transcribed": self._transcribed,
            "metrics_collected": self._measured,
            "error": self._failed,
        }
        for name, listener in listeners.items():
            session.on(name, listener)
        try:
            yield self
        finally:
            for name, listener in listeners.items():
                session.off(name, listener)

    def _added(self, session: VoiceSession, event: ConversationItemAddedEvent) -> None:
        item = event.item
        if isinstance(item, AgentHandoff):
            agent = session.current_agent
            new = agent if type(agent).__name__ == item.new_agent else item.new_agent
            self.events.append(AgentHandoffEvent(item.old_agent, new))
        elif item.role == "assistant":
            self.events.append(ChatMessageEvent(item))

    def _executed(self, event: FunctionToolsExecutedEvent) -> None:
        self.events += [FunctionCallEvent(call) for call in event.function_calls]
        self.events += [FunctionCallOutputEvent(output) for output in event.function_call_outputs]

    def _transcribed(self, event: UserInputTranscribedEvent) -> None:
        if event.is_final and event.transcript:
            self.transcribed = True
            self.user_input = f"{self.user_input} {event.transcript}".strip()

    def _measured(self, event: MetricsCollectedEvent) -> None:
        self.turns.append(event.metrics)

    def _failed(self, event: ErrorEvent) -> None:
        self.errors.append(event.error)
