"""Requests inside the inference process: what the device lane keeps of each until it ends."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.planner import GUESS_S, Kind
from inference.rooms import Room
from inference.wire import messages as m
from inference.wire.tlv import Message

Ask = m.Transcribe | m.Generate | m.Speak


@dataclass(slots=True, eq=False)
class Request:
    """One request of one room. ``key`` is unique in the process (a job's own numbers are not).

    ``asked``: seconds of the monotonic clock; ``due``: as much, or when it could have begun at the
    earliest, for a phrase behind another of its room; ``since``: as much, or the end of its last quantum.
    ``judged`` and ``answered``: it was counted (``inference/reports.py``). The rest belongs to speech: ``start``
    on the down clock once the first block is written, ``outbox`` what did not fit the ring yet, ``complete``
    when the engine has nothing more to give.

    It ends once, whoever is first: the lane with its result, or the event loop with a cancel. What is said or
    written for it goes through ``lock``, so that nothing follows its end.
    """

    key: int
    room: Room
    ask: Ask
    asked: float
    promoted: float = math.inf
    """When the job said that somebody waits for it after all."""
    begun: bool = False
    due: float = 0.0
    since: float = 0.0
    judged: bool = False
    answered: bool = False
    advanced: bool = False
    """It has had a result of its engine: the prompt is decoded, the first block is made."""
    spent_s: float = 0.0
    """Seconds of the quanta that it took part in (transcriptions only)."""
    start: int | None = None
    outbox: deque[NDArray[np.int16]] = field(default_factory=deque)
    complete: bool = False
    ended: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self) -> None:
        self.due = max(self.due, self.asked)
        self.since = max(self.since, self.due)

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
    def is_answer(self) -> bool:
        """Whether it is a part of an answer: words or speech, not what is only read or heard beforehand."""
        return isinstance(self.ask, m.Speak) or (isinstance(self.ask, m.Generate) and self.ask.max_tokens > 0)

    @property
    def wanted(self) -> float:
        """From when on somebody waits for it; infinite for what may never be wanted."""
        match self.ask:
            case m.Transcribe(partial=True) | m.Generate(speculative=True) | m.Speak(speculative=True):
                return self.promoted
            case m.Transcribe(speculative=True):
                return min(self.asked + GUESS_S, self.promoted)
        return self.asked

    @property
    def number(self) -> int:
        """The job's own number of the request."""
        return self.ask.request

    def say(self, message: Message) -> None:
        """Tell the job something, unless the request has ended."""
        with self.lock:
            if not self.ended:
                self.room.deliver(message)

    def end(self, message: Message | None = None) -> bool:
        """Tell the job the last thing. False when it had ended before."""
        with self.lock:
            if self.ended:
                return False
            self.ended = True
            if message is not None:
                self.room.deliver(message)
            return True

    def fail(self, code: m.FailureCode, reason: str) -> bool:
        """End it without a result. False when it had ended before."""
        return self.end(m.RequestFailed(self.number, code, reason))
