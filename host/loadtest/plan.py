"""What a process of callers is told, and tells: lines of JSON over its control socket. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from host.loadtest.callers import Habits
from host.loadtest.timeline import Event, from_json, to_json

_COLOURS = (
    "amber", "azure", "coral", "crimson", "golden", "indigo", "ivory", "olive", "purple", "scarlet", "silver", "violet",
)  # fmt: skip
_ANIMALS = (
    "badger", "beaver", "dolphin", "eagle", "falcon", "hamster", "lobster", "otter", "panda", "parrot", "rabbit",
    "salmon", "spider", "tiger", "walrus", "zebra",
)  # fmt: skip


def agent_name(number: int) -> str:
    """A name for the agent of one room, unlike the others': "Amber Badger". 192 of them, then they come again.

    >>> agent_name(0), agent_name(1), agent_name(192)
    ('Amber Badger', 'Azure Beaver', 'Amber Badger')
    """
    count = len(_COLOURS) * len(_ANIMALS)
    number %= count
    # Neighbours share neither word, and no pair comes twice.
    animal = (number + number // math.lcm(len(_COLOURS), len(_ANIMALS))) % len(_ANIMALS)
    return f"{_COLOURS[number % len(_COLOURS)].title()} {_ANIMALS[animal].title()}"


@dataclass(frozen=True, slots=True)
class CallersPlan:
    """For all callers of one process. ``socket``: where the jobs call (local). ``folder``: for what is heard, of
    which ``keep`` (0 to 1) of the answers are kept.
    """

    transport: Literal["local", "livekit"]
    speech: str
    longest_s: float
    seed: int
    folder: str
    keep: float = 1.0
    socket: str = ""
    url: str = ""
    habits: Habits = field(default_factory=Habits)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CallersPlan:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        habits: dict[str, Any] = values.pop("habits")
        for key, value in habits.items():
            habits[key] = tuple(value) if isinstance(value, list) else value
        return cls(**values, habits=Habits(**habits))


@dataclass(frozen=True, slots=True)
class Call:
    """Begin a call. ``leave_s``: when to hang up (monotonic), None: when told to. ``token``: to join with (livekit)."""

    room: str
    seat: int
    number: int
    leave_s: float | None = None
    token: str = ""


@dataclass(frozen=True, slots=True)
class HangUp:
    """End the call in ``room`` now, or with "" all, and the process."""

    room: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """The process takes calls."""


@dataclass(frozen=True, slots=True)
class Happened:
    """Something happened in a call."""

    room: str
    event: Event


def encode(message: Call | HangUp | Ready | Happened) -> bytes:
    """One line."""
    if isinstance(message, Happened):
        data: Mapping[str, Any] = {"kind": "Happened", "room": message.room, **to_json(message.event)}
    else:
        data = {"kind": type(message).__name__, **asdict(message)}
    return json.dumps(data).encode() + b"\n"


def decode(line: bytes) -> Call | HangUp | Ready | Happened:
    """The inverse of ``encode``. Raises ``ValueError``."""
    try:
        data = json.loads(line)
        kind = data.pop("kind")
        if kind == "Happened":
            return Happened(data.pop("room"), from_json(data))
        kinds: dict[str, type[Call | HangUp | Ready]] = {"Call": Call, "HangUp": HangUp, "Ready": Ready}
        return kinds[kind](**data)
    except (KeyError, TypeError) as exc:
        raise ValueError(f"not a message: {line[:200]!r}") from exc
