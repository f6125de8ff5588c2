"""What a caller hears: the agent's audio as it comes, taken 20 ms at a time. Pure, and without numpy.

A tick in which there is not enough to hear, in the middle of an answer, is an underrun: the agent's end had
200 ms to send ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from host.loadtest.timeline import Event, Gap, Heard

if TYPE_CHECKING:
    from host.job.room import AgentState

TICK_S = 0.02
VOICED = 330
"""A sample is voiced from 1 % of full scale on."""
MERGE_S = 0.3
"""Shorter silence is a part of speech."""
DIGITAL_SILENCE = 1
STARVED_S = 0.06


class Voice:
    """Finds stretches of voice in ticks of audio. ``hears``: whether the last tick had any."""

    def __init__(self) -> None:
        self.hears = False
        self._begin_s: float | None = None
        self._end_s = 0.0

    def tick(self, at_s: float, samples: Sequence[int], rate: int) -> list[Event]:
        """The tick that begins at ``at_s``: a stretch that began in it, or one that has ended before."""
        events: list[Event] = []
        self.hears = bool(len(samples)) and (max(samples) >= VOICED or min(samples) <= -VOICED)
        if self.hears:
            if self._begin_s is None:
                self._begin_s = at_s + _first(samples) / rate
                events.append(Heard(self._begin_s))
            self._end_s = at_s + (_last(samples) + 1) / rate
        elif self._begin_s is not None and at_s + TICK_S - self._end_s >= MERGE_S:
            events += self.finish()
        return events

    def finish(self) -> list[Event]:
        """End the stretch that goes on, if any."""
        begin_s, self._begin_s = self._begin_s, None
        return [Heard(begin_s, self._end_s)] if begin_s is not None else []


class Ear:
    """The caller's end of the agent's audio at ``rate`` Hz.

    ``heard``, ``dropped``: samples so far; ``cleared``: the last silence that was obeyed. ``answer``: what was heard
    since it was taken.
    """

    def __init__(self, rate: int) -> None:
        self.heard = 0
        self.dropped = 0
        self.cleared = 0
        self.answer = bytearray()
        self.rate = rate
        self._queue = bytearray()
        self._voice = Voice()
        self._answering = False
        self._gap_s: float | None = None
        self._ticks = 0

    @property
    def hears(self) -> bool:
        """Whether there was voice in the last tick."""
        return self._voice.hears

    def push(self, pcm: bytes) -> None:
        """Audio of the agent, int16."""
        self._queue += pcm

    def clear(self, number: int) -> None:
        """The agent falls silent: what was not heard is dropped."""
        self.dropped += len(self._queue) // 2
        self._queue.clear()
        self.cleared = number
        self._over()

    def agent_does(self, state: AgentState) -> None:
        """The agent's state has changed."""
        if state == "listening":
            self._over()

    def take_answer(self) -> bytes:
        """What was heard since the last time."""
        answer = bytes(self.answer)
        self.answer.clear()
        return answer

    def tick(self, at_s: float) -> list[Event]:
        """Hear the 20 ms that begin at ``at_s``."""
        events: list[Event] = []
        wanted = self.rate * (self._ticks + 1) // 50 - self.rate * self._ticks // 50
        self._ticks += 1
        pcm = bytes(self._queue[: 2 * wanted])
        del self._queue[: len(pcm)]
        count = len(pcm) // 2
        if count:
            self.heard += count
            self.answer += pcm
            if self._gap_s is not None:
                events.append(Gap(self._gap_s, (at_s - self._gap_s) * 1000))
                self._gap_s = None
            self._answering = True
        if count < wanted and self._answering and self._gap_s is None:
            self._gap_s = at_s + count / self.rate
        return events + self._voice.tick(at_s, memoryview(pcm).cast("h"), self.rate)

    def finish(self) -> list[Event]:
        """The call is over."""
        return self._voice.finish()

    def _over(self) -> None:
        self._answering = False
        self._gap_s = None


class TrackEar:
    """The caller's end of a WebRTC track at ``rate`` Hz, which plays all the time, silence included.

    What comes is taken as it comes: the network's jitter was dealt with before. In the middle of an answer that the
    agent says it is speaking, ``STARVED_S`` of digital silence are an underrun: a voice that pauses is never so quiet.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.answer = bytearray()
        self._queue = bytearray()
        self._voice = Voice()
        self._speaking = False
        self._silent_s = 0.0
        self._voiced = False

    @property
    def hears(self) -> bool:
        """Whether there was voice in the last tick."""
        return self._voice.hears

    def push(self, pcm: bytes) -> None:
        """Audio of the track, int16."""
        self._queue += pcm

    def agent_does(self, state: AgentState) -> None:
        """The agent's state has changed."""
        self._speaking = state == "speaking"
        if not self._speaking:
            self._silent_s, self._voiced = 0.0, False

    def take_answer(self) -> bytes:
        """What was heard since the last time."""
        answer = bytes(self.answer)
        self.answer.clear()
        return answer

    def tick(self, at_s: float) -> list[Event]:
        """Hear what has come up to ``at_s``."""
        pcm = bytes(self._queue)
        self._queue.clear()
        samples = memoryview(pcm).cast("h")
        seconds = len(samples) / self.rate
        events = self._starved(at_s - seconds, samples, seconds)
        events += self._voice.tick(at_s - seconds, samples, self.rate)
        # Silence between answers is nobody's.
        if self.answer or self._voice.hears:
            self.answer += pcm
        return events

    def _starved(self, at_s: float, samples: Sequence[int], seconds: float) -> list[Event]:
        events: list[Event] = []
        if not len(samples) or not self._speaking:
            return events
        if max(samples) <= DIGITAL_SILENCE and min(samples) >= -DIGITAL_SILENCE:
            self._silent_s += seconds
            return events
        if self._voiced and self._silent_s >= STARVED_S:
            events.append(Gap(at_s - self._silent_s, self._silent_s * 1000))
        self._silent_s = 0.0
        self._voiced = self._voiced or max(samples) >= VOICED
        return events

    def finish(self) -> list[Event]:
        """The call is over."""
        return self._voice.finish()


def _first(samples: Sequence[int]) -> int:
    return next(index for index, sample in enumerate(samples) if abs(sample) >= VOICED)


def _last(samples: Sequence[int]) -> int:
    return next(index for index in range(len(samples) - 1, -1, -1) if abs(samples[index]) >= VOICED)
