"""How a conversation is held: the settings of a session, with their defaults. Standard library only."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

TurnDetection = Literal["model", "vad", "manual"]
"""What ends the caller's turn."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Every value may be set in the configuration file under ``[session]``.

    Turn taking: ``activation`` (speech probability, 0 to 1), ``min_speech_ms`` (shorter speech is not
    speech), ``pause_ms`` (silence before a speculative transcription starts),
    ``turn_detection`` (what ends the caller's turn: "model", what was said and what the language model makes
    of it; "vad", a fixed silence; "manual", ``commit_user_turn`` alone), ``min_endpointing_delay_ms`` and
    ``max_endpointing_delay_ms`` (bounds of the silence after the last voiced sample that ends it, with
    "model"), ``vad_endpointing_delay_ms`` (that silence, with "vad"), ``preemptive`` (whether answers are begun
    on speculation within it), ``allow_interruptions``, ``min_interruption_ms`` (speech over the agent of that
    length interrupts it; shorter speech does when its words are no back-channel), ``min_interruption_words``
    (so many it must have in any case), ``backchannels`` (whether "mhm" and "yeah" are no interruption),
    ``false_interruption_timeout_ms`` (silence after an interruption without words until the agent goes on),
    ``user_away_timeout_s`` (silence of both until the caller counts as away; 0: never),
    ``partial_transcripts`` (whether the caller is transcribed while speaking,
    about once a second). Clients: ``publish_metrics`` (whether what was measured of each turn is sent into the
    room as a data message). Model: ``max_reply_tokens``, ``temperature``, ``top_p``,
    ``repeat_penalty``, ``seed`` (-1 draws one), ``language`` (ISO 639-1, "" detects). Voice:
    ``speed``, ``volume``, ``speaker`` (of a voice that has several, -1 is its first). Phrases:
    ``first_phrase_chars`` and ``phrase_chars`` are how long a phrase
    may grow, in characters, before it is cut between words. Local room only:
    ``interrupt_after_s`` (seconds into an answer at which the caller's next turn begins, None waits
    for its end) and ``response_timeout_s`` (how long the caller waits for an answer).
    """

    activation: float = 0.5
    min_speech_ms: int = 64
    pause_ms: int = 96
    turn_detection: TurnDetection = "model"
    min_endpointing_delay_ms: int = 300
    max_endpointing_delay_ms: int = 2_500
    vad_endpointing_delay_ms: int = 500
    preemptive: bool = True
    allow_interruptions: bool = True
    min_interruption_ms: int = 500
    min_interruption_words: int = 0
    backchannels: bool = True
    false_interruption_timeout_ms: int = 1_000
    user_away_timeout_s: float = 15.0
    partial_transcripts: bool = False
    publish_metrics: bool = False
    max_reply_tokens: int = 160
    temperature: float = 0.7
    top_p: float = 0.95
    repeat_penalty: float = 1.1
    seed: int = -1
    language: str = "en"
    speed: float = 1.0
    volume: float = 1.0
    speaker: int = -1
    first_phrase_chars: int = 60
    phrase_chars: int = 200
    interrupt_after_s: float | None = None
    response_timeout_s: float = 30.0

    def to_json(self) -> str:
        """For ``StartJob.settings``."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SessionSettings:
        """The inverse of ``to_json``. Keys that are missing keep their defaults."""
        return cls(**json.loads(text))
