"""Speech or silence of one room: hysteresis over the probabilities of its windows. Pure.

    SILENCE --voiced--> RISING --min_speech--> SPEECH --pause--> PAUSED --min_silence--> SILENCE
       ^------unvoiced----'                      ^----voiced-------'

A window is *voiced* at ``activation`` and above, *unvoiced* below ``activation - 0.15`` (Silero's own
hysteresis), and in between it goes on as the window before it. Positions are samples on the up clock.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from inference.wire.messages import Listen, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted

SpeechEvent = SpeechStarted | SpeechPaused | SpeechResumed | SpeechEnded

HYSTERESIS = 0.15
_SAMPLES_PER_MS = 16


class Phase(enum.Enum):
    """Where a room stands."""

    SILENCE = "silence"
    RISING = "rising"
    SPEECH = "speech"
    PAUSED = "paused"


@dataclass(slots=True)
class VoiceActivity:
    """The state of one room. Feed it every window in order with ``observe``."""

    settings: Listen
    phase: Phase = Phase.SILENCE
    start: int = 0
    silent_since: int | None = None

    def observe(self, probability: float, window_start: int, window_end: int) -> SpeechEvent | None:
        """What the window from ``window_start`` to ``window_end`` changes, if anything."""
        if probability >= self.settings.activation:
            return self._voiced(window_start, window_end)
        if probability < self.settings.activation - HYSTERESIS or self.silent_since is not None:
            return self._unvoiced(window_start, window_end)
        # Between the two thresholds speech goes on and silence stays silence.
        return self._voiced(window_start, window_end) if self.phase is not Phase.SILENCE else None

    def _voiced(self, window_start: int, window_end: int) -> SpeechEvent | None:
        self.silent_since = None
        if self.phase is Phase.SILENCE:
            self.phase, self.start = Phase.RISING, window_start
        if self.phase is Phase.RISING and self._reached(window_end - self.start, self.settings.min_speech_ms):
            self.phase = Phase.SPEECH
            return SpeechStarted(self.start)
        if self.phase is Phase.PAUSED:
            self.phase = Phase.SPEECH
            return SpeechResumed(window_start)
        return None

    def _unvoiced(self, window_start: int, window_end: int) -> SpeechEvent | None:
        if self.phase is Phase.SILENCE:
            return None
        if self.phase is Phase.RISING:
            self.phase = Phase.SILENCE
            return None
        if self.silent_since is None:
            self.silent_since = window_start
        silence = window_end - self.silent_since
        if self.phase is Phase.SPEECH and self._reached(silence, self.settings.pause_ms):
            self.phase = Phase.PAUSED
            return SpeechPaused(self.start, self.silent_since)
        if self.phase is Phase.PAUSED and self._reached(silence, self.settings.min_silence_ms):
            event = SpeechEnded(self.start, self.silent_since)
            self.phase, self.silent_since = Phase.SILENCE, None
            return event
        return None

    @staticmethod
    def _reached(samples: int, ms: int) -> bool:
        return samples >= ms * _SAMPLES_PER_MS
