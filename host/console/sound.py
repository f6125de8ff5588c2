"""A microphone and a loudspeaker as the call sees them: what is queued to be heard, what was heard, how loud it is.

The devices themselves are behind ``SoundDevice``; ``host.console.portaudio`` is the one that makes sound.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from host.job.line import CALLER_RATE, TICK_BYTES

SILENCE_DB = -60.0
"""What is below it is shown as nothing."""
_FULL_SCALE = 32_768
_TAIL_S = 0.3
"""How long a room still answers after the loudspeaker fell silent."""
_PLAYED_S = 1.0
"""No more than that of what was played is kept for an echo canceller that does not ask for it."""


class SoundDevice(Protocol):
    """A microphone and a loudspeaker. ``hear`` and ``pull`` are called in threads of the device."""

    @property
    def name(self) -> str:
        """Both, for a person."""

    @property
    def starved(self) -> int:
        """How often the loudspeaker was not given in time what it should play: that crackles."""

    def open_microphone(self, hear: Callable[[bytes], None]) -> None:
        """From now on ``hear`` gets what is recorded, int16 mono at 16 kHz. Raises ``DeviceError``."""

    def open_loudspeaker(self, rate: int, pull: Callable[[int], bytes]) -> float:
        """From now on ``pull`` is asked for so many samples at ``rate`` Hz, int16 mono, and gives all of them.

        Returns how long they take to be heard, in seconds. Raises ``DeviceError``.
        """

    def close(self) -> None:
        """Silence; safe to call twice."""


class EchoCanceller(Protocol):
    """Takes out of the microphone what the loudspeaker plays."""

    def clean(self, block: bytes, played: bytes) -> bytes:
        """``block``: 20 ms recorded, at 16 kHz. ``played``: what was played since the last time, at its own rate."""


@dataclass(frozen=True, slots=True)
class Heard:
    """In samples at the loudspeaker's rate, as a ``Tick`` tells them."""

    heard: int
    dropped: int
    cleared: int


class Loudspeaker:
    """The agent's speech on its way to the ear. ``pull`` belongs to the device's thread, the rest to the event loop."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._queue = bytearray()
        self._played = bytearray()
        self._pulled = 0
        self._heard = 0
        self._dropped = 0
        self._cleared = 0
        self._latency = 0
        self._passed = 0
        self._coming: deque[tuple[int, int]] = deque()
        self._level = SILENCE_DB
        self._silent_from = -rate * 10

    def set_latency(self, latency_s: float) -> None:
        """How long a sample takes from ``pull`` to the ear."""
        with self._lock:
            self._latency = round(latency_s * self.rate)

    def push(self, pcm: bytes) -> None:
        """Speech, int16."""
        with self._lock:
            self._queue += pcm

    def clear(self, number: int) -> None:
        """Silence: what the device has not taken yet is dropped."""
        with self._lock:
            self._dropped += len(self._queue) // 2
            self._queue.clear()
            self._cleared = number

    def pull(self, samples: int) -> bytes:
        """The next ``samples`` to play, silence where there is no speech."""
        with self._lock:
            pcm = bytes(self._queue[: 2 * samples])
            del self._queue[: len(pcm)]
            self._pulled += len(pcm) // 2
            self._passed += samples
            if pcm:
                self._coming.append((self._passed + self._latency, self._pulled))
                self._silent_from = self._passed + self._latency
            while self._coming and self._coming[0][0] <= self._passed:
                self._heard = self._coming.popleft()[1]
            pcm += bytes(2 * samples - len(pcm))
            self._played += pcm
            del self._played[: max(0, len(self._played) - 2 * round(_PLAYED_S * self.rate))]
            self._level = level_db(pcm)
        return pcm

    def heard(self) -> Heard:
        """How far the listener is."""
        with self._lock:
            return Heard(self._heard, self._dropped, self._cleared)

    def take_played(self) -> bytes:
        """What was played since the last time, silence included."""
        with self._lock:
            played = bytes(self._played)
            self._played.clear()
        return played

    @property
    def level(self) -> float:
        """Of the last block, in dB of full scale."""
        return self._level

    def is_sounding(self) -> bool:
        """Whether the room may still hear the agent."""
        with self._lock:
            return bool(self._queue) or self._passed < self._silent_from + round(_TAIL_S * self.rate)


class Microphone:
    """Makes ticks of 20 ms of what is recorded. ``level``: of the last one, in dB of full scale."""

    def __init__(self) -> None:
        self.level = SILENCE_DB
        self._pcm = bytearray()

    def push(self, pcm: bytes) -> list[bytes]:
        """What was recorded, any length; returns the blocks that are whole."""
        self._pcm += pcm
        whole = len(self._pcm) - len(self._pcm) % TICK_BYTES
        blocks = [bytes(self._pcm[at : at + TICK_BYTES]) for at in range(0, whole, TICK_BYTES)]
        del self._pcm[:whole]
        if blocks:
            self.level = level_db(blocks[-1])
        return blocks


def level_db(pcm: bytes) -> float:
    """The level of int16 samples, in dB of full scale, at least ``SILENCE_DB``."""
    samples = memoryview(pcm).cast("h")
    if not len(samples):
        return SILENCE_DB
    power = sum(sample * sample for sample in samples) / len(samples)
    return max(SILENCE_DB, 10 * math.log10(max(power, 1e-9) / _FULL_SCALE**2))


__all__ = [
    "CALLER_RATE",
    "SILENCE_DB",
    "EchoCanceller",
    "Heard",
    "Loudspeaker",
    "Microphone",
    "SoundDevice",
    "level_db",
]
