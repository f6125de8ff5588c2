"""Requests inside the inference process: what the device lane keeps of each until it ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.planner import Kind
from inference.rooms import Room
from inference.wire import messages as m

Ask = m.Transcribe | m.Generate | m.Speak


@dataclass(slots=True)
class Request:
    """One request of one room. ``key`` is unique in the process (a job's own numbers are not).

    ``asked``: seconds of the monotonic clock; ``due``: as much, or when it could have begun at the
    earliest, for a phrase behind another of its room. ``judged`` and ``answered``: it was counted
    (``inference/reports.py``). The rest belongs to speech: ``start`` on the down clock once the first block
    is written, ``outbox`` what did not fit the ring yet, ``complete`` when the engine has nothing more to
    give.
    """

    key: int
    room: Room
    ask: Ask
    asked: float
    begun: bool = False
    due: float = 0.0
    judged: bool = False
    answered: bool = False
    start: int | None = None
    outbox: deque[NDArray[np.int16]] = field(default_factory=deque)
    complete: bool = False

    def __post_init__(self) -> None:
        self.due = max(self.due, self.asked)

    @property
    def kind(self) -> Kind:
        """The engine it is for."""
        match self.ask:
            case m.Transcribe():
                return Kind.STT
            case m.Generate():
                return Kind.LLM
            case m.Speak():
                return Kind.TTS

    @property
    def number(self) -> int:
        """The job's own number of the request."""
        return self.ask.request

    def fail(self, code: m.FailureCode, reason: str) -> None:
        """Tell the job that the request ended without a result."""
        self.room.deliver(m.RequestFailed(self.number, code, reason))
