"""A caller's words, spoken by the default voice: for questions of which there is no recording."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from caller import RATE

from host.job.resample import resample
from inference.engines.base import EngineOptions, SpeechFailed
from inference.engines.tts import PiperTextToSpeech

VOICE = Path(__file__).parents[2] / "models" / "weights" / "en_US-joe-medium" / "en_US-joe-medium.onnx"


def spoken(*texts: str) -> list[bytes]:
    """Each of ``texts`` as 16 kHz int16 PCM."""
    return [_spoken(text) for text in texts]


@lru_cache
def _spoken(text: str) -> bytes:
    voice = PiperTextToSpeech()
    voice.load(VOICE, EngineOptions(device="cpu", threads=2, max_rooms=1))
    blocks = []
    voice.start(1, text)
    while voice.running():
        for out in voice.step([1]):
            assert not isinstance(out, SpeechFailed), out.error
            blocks.append(out.audio)
    voice.close()
    return resample(np.concatenate(blocks).tobytes(), voice.sample_rate, RATE)
