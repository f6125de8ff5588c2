"""Whisper as the judge of what was really heard."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import jiwer
import numpy as np
from faster_whisper import WhisperModel

WEIGHTS = Path(__file__).parents[2] / "models" / "weights" / "whisper-base"


@lru_cache(maxsize=1)
def _model() -> WhisperModel:
    return WhisperModel(str(WEIGHTS), device="cpu", compute_type="int8", cpu_threads=2)


def words_in(pcm: bytes) -> str:
    """What Whisper understands of 16 kHz int16 PCM."""
    audio = np.frombuffer(pcm, dtype=np.int16).astype(np.float32) / 32_768
    segments, _ = _model().transcribe(audio, language="en", beam_size=5, condition_on_previous_text=False)
    return " ".join(segment.text.strip() for segment in segments)


def normal(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower()).split())


def word_error_rate(reference: str, heard: str) -> float:
    return float(jiwer.wer(normal(reference), normal(heard)))
