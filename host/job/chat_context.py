"""The items of a conversation: what was said, which tools were called, who took over. Pure.

An assistant's message holds what was *heard* of it, so the model never believes that the caller knows what was
cut off.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from host.job.tool_text import FunctionCall, FunctionCallOutput

ChatRole = Literal["system", "user", "assistant"]

_NUMBERS = itertools.count(1)


def _name() -> str:
    return f"item_{next(_NUMBERS)}"


@dataclass(eq=False, slots=True)
class ChatMessage:
    """``role`` said ``content``. ``interrupted``: an assistant's message that the caller did not hear to its end."""

    role: ChatRole
    content: str
    interrupted: bool = False
    id: str = field(default_factory=_name)

    @property
    def type(self) -> Literal["message"]:
        """Which item of a conversation this is."""
        return "message"

    @property
    def text_content(self) -> str:
        """``content``."""
        return self.content


@dataclass(frozen=True, eq=False, slots=True)
class AgentHandoff:
    """Another agent took over. Both are named by their class."""

    old_agent: str
    new_agent: str
    id: str = field(default_factory=_name)

    @property
    def type(self) -> Literal["agent_handoff"]:
        """Which item of a conversation this is."""
        return "agent_handoff"


ChatItem = ChatMessage | FunctionCall | FunctionCallOutput | AgentHandoff

_KINDS: dict[str, type[ChatItem]] = {
    "message": ChatMessage,
    "function_call": FunctionCall,
    "function_call_output": FunctionCallOutput,
    "agent_handoff": AgentHandoff,
}


class ChatContext:
    """``items``, oldest first, without the agent's instructions.

    An agent's own and a session's history belong to who holds them: read them, and edit a ``copy``, which
    ``update_chat_ctx`` puts in its place.
    """

    def __init__(self, items: Iterable[ChatItem] = ()) -> None:
        self.items: list[ChatItem] = list(items)

    def __repr__(self) -> str:
        return f"<ChatContext {len(self.items)} items>"

    @classmethod
    def empty(cls) -> ChatContext:
        """Nothing was said yet."""
        return cls()

    def add_message(self, *, role: ChatRole, content: str, interrupted: bool = False) -> ChatMessage:
        """Append a message and return it."""
        message = ChatMessage(role, content, interrupted)
        self.items.append(message)
        return message

    def messages(self) -> list[ChatMessage]:
        """What was said, without the calls of tools."""
        return [item for item in self.items if isinstance(item, ChatMessage)]

    def index_of(self, item: ChatItem) -> int:
        """Where exactly this item is; -1 if it is not."""
        return next((n for n, other in enumerate(self.items) if other is item), -1)

    def remove(self, item: ChatItem) -> None:
        """Remove exactly this item, if it is there."""
        if (at := self.index_of(item)) >= 0:
            del self.items[at]

    def copy(self, *, exclude_function_call: bool = False, exclude_instructions: bool = False) -> ChatContext:
        """The same items in a list of their own; without the calls of tools, or without messages of the system."""
        return ChatContext(
            item
            for item in self.items
            if not (exclude_function_call and isinstance(item, FunctionCall | FunctionCallOutput))
            and not (exclude_instructions and isinstance(item, ChatMessage) and item.role == "system")
        )

    def truncate(self, *, max_items: int) -> ChatContext:
        """Keep the newest ``max_items``, which begin with no result of a call that is left out. Returns itself."""
        items = self.items[max(0, len(self.items) - max_items) :]
        while items and isinstance(items[0], FunctionCall | FunctionCallOutput):
            del items[0]
        self.items[:] = items
        return self

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``from_dict`` is the inverse."""
        return {"items": [{"type": item.type, **asdict(item)} for item in self.items]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChatContext:
        """What ``to_dict`` made. Raises ``ValueError`` for an item that it does not know."""
        items = []
        for given in data["items"]:
            fields = dict(given)
            kind = fields.pop("type", "message")
            if kind not in _KINDS:
                raise ValueError(f"an item's type is {kind!r}, allowed: {', '.join(_KINDS)}")
            items.append(_KINDS[kind](**fields))
        return cls(items)
