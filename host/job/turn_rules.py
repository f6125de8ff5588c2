"""How turns are taken in one conversation. Pure. Lengths are samples at 16 kHz."""

from __future__ import annotations

from dataclasses import dataclass

from host.job.settings import SessionSettings, TurnDetection

SAMPLE_RATE = 16_000
SAMPLES_PER_MS = SAMPLE_RATE // 1000


@dataclass(frozen=True, slots=True)
class Rules:
    """``detection``: what ends the caller's turn. "model": what was said, and what the language model makes of it,
    between ``min_delay`` and ``max_delay`` of silence. "vad": ``vad_delay`` of silence. "manual": nobody but who asks.

    ``min_interruption``: speech over the agent of this length interrupts it; shorter speech does when it has words that
    are no back-channel. ``min_interruption_words``: so many words it must have in any case. ``false_interruption``:
    silence after an interruption without words until the agent goes on. ``away``: silence of both after which the
    caller is taken to be away; 0: never. ``preemptive``: whether answers are begun on speculation.
    """

    detection: TurnDetection = "model"
    min_delay: int = 300 * SAMPLES_PER_MS
    max_delay: int = 2_500 * SAMPLES_PER_MS
    vad_delay: int = 500 * SAMPLES_PER_MS
    allow_interruptions: bool = True
    min_interruption: int = 500 * SAMPLES_PER_MS
    min_interruption_words: int = 0
    false_interruption: int = 1_000 * SAMPLES_PER_MS
    backchannels: bool = True
    away: int = 15 * SAMPLE_RATE
    preemptive: bool = True
    language: str = "en"

    @classmethod
    def of(cls, settings: SessionSettings) -> Rules:
        """The rules that ``settings`` ask for."""
        return cls(
            detection=settings.turn_detection,
            min_delay=settings.min_endpointing_delay_ms * SAMPLES_PER_MS,
            max_delay=settings.max_endpointing_delay_ms * SAMPLES_PER_MS,
            vad_delay=settings.vad_endpointing_delay_ms * SAMPLES_PER_MS,
            allow_interruptions=settings.allow_interruptions,
            min_interruption=settings.min_interruption_ms * SAMPLES_PER_MS,
            min_interruption_words=settings.min_interruption_words,
            false_interruption=settings.false_interruption_timeout_ms * SAMPLES_PER_MS,
            backchannels=settings.backchannels,
            away=round(settings.user_away_timeout_s * SAMPLE_RATE),
            preemptive=settings.preemptive,
            language=settings.language,
        )

    @property
    def shortest(self) -> int:
        """No turn ends after less silence."""
        return self.vad_delay if self.detection == "vad" else self.min_delay
