"""Which quantum of work the device lane runs next. Pure: takes ``now``, returns a decision.

Earliest deadline first. A task's deadline is what its listener would notice:

========================================  =====================================================
task                                      deadline
========================================  =====================================================
speech for a room that is silent          asked + 20 ms
a token for a room that is silent         asked + 50 ms
transcription of a finished turn          asked + 100 ms
speculative transcription                 asked + 400 ms
speech for a room with speech buffered    when half a second is left
a token for a room with speech buffered   when one second is left
========================================  =====================================================

A room more than ``AHEAD_S`` ahead of its listener gives way to everything that waits. The task with
the earliest deadline brings along every other task of its kind that may run now, as one batch.
Voice activity has a lane of its own (its forward takes a thousandth of a window's time), so it is
never behind a transcription.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

AHEAD_S = 4.0
"""Speech buffered, in seconds, beyond which a room can wait."""

_ENOUGH_SPEECH_S = 0.5
_ENOUGH_TEXT_S = 1.0


class Kind(enum.Enum):
    """Which engine a quantum belongs to."""

    STT = "stt"
    LLM = "llm"
    TTS = "tts"


@dataclass(frozen=True, slots=True)
class Task:
    """One request that could take part in a quantum now.

    ``asked``: when it was asked for, in seconds of the clock that ``now`` comes from. ``buffered_s``:
    speech that the room has ahead of its listener.
    """

    kind: Kind
    request: int
    asked: float
    speculative: bool = False
    buffered_s: float = 0.0

    def deadline(self, now: float) -> float:
        """When the listener would notice the wait."""
        match self.kind:
            case Kind.STT:
                return self.asked + (0.4 if self.speculative else 0.1)
            case Kind.LLM:
                return self.asked + 0.05 if self.buffered_s <= 0 else now + self.buffered_s - _ENOUGH_TEXT_S
            case Kind.TTS:
                return self.asked + 0.02 if self.buffered_s <= 0 else now + self.buffered_s - _ENOUGH_SPEECH_S

    def can_wait(self) -> bool:
        """Whether the room is so far ahead of its listener that anything else goes first."""
        return self.kind is not Kind.STT and self.buffered_s > AHEAD_S


@dataclass(frozen=True, slots=True)
class Quantum:
    """One batch for one engine: the requests that take part, most urgent first."""

    kind: Kind
    requests: tuple[int, ...]


def choose(now: float, tasks: Sequence[Task], *, max_utterances: int) -> Quantum | None:
    """The next quantum, or None when there is nothing to do. ``max_utterances``: the largest STT batch."""
    if not tasks:
        return None
    hurried = [task for task in tasks if not task.can_wait()] or list(tasks)
    hurried.sort(key=lambda task: task.deadline(now))
    first = hurried[0]
    batch = [task for task in hurried if task.kind is first.kind and task.speculative == first.speculative]
    if first.kind is Kind.STT:
        batch = batch[:max_utterances]
    return Quantum(first.kind, tuple(task.request for task in batch))
