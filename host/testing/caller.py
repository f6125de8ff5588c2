"""The caller of a test: what is said to the agent, as audio at 16 kHz."""

from __future__ import annotations

import asyncio
import math
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.job.resample import resample
from host.job.waves import read_wave
from host.testing.resident import Engines
from inference.client import InferenceRoom

CALLER_RATE = 16_000
WORD_S = 0.3
"""How long a word of made-up speech takes."""
_BLOCK = 320
_SOUND = 0.05
"""A block of 20 ms that is louder than this share of the loudest is sound."""

Audio = str | PathLike[str] | bytes | NDArray[np.int16]
"""The path of a PCM wave, or samples at 16 kHz: int16, mono."""


def pcm(audio: Audio) -> bytes:
    """``audio`` as int16 at 16 kHz. Raises ``ValueError`` for a file that cannot be played."""
    if isinstance(audio, bytes):
        if not audio or len(audio) % 2:
            raise ValueError(f"{len(audio)} bytes are no 16-bit samples")
        return audio
    if isinstance(audio, np.ndarray):
        if audio.dtype != np.int16 or audio.ndim != 1 or not audio.size:
            raise ValueError(f"samples are {audio.dtype} of shape {audio.shape}, expected int16 of shape (n,)")
        return audio.tobytes()
    samples, rate = read_wave(str(Path(audio)))
    return resample(samples.tobytes(), rate, CALLER_RATE)


def tone(seconds: float, *, loudness: float = 0.25) -> bytes:
    """What the fake engines take for speech: a hum of 200 Hz. ``loudness``: root mean square, 0 to 0.7."""
    count = round(seconds * CALLER_RATE)
    wave = np.sin(np.arange(count) * (2 * np.pi * 200 / CALLER_RATE)) * (loudness * math.sqrt(2) * 32_767)
    samples: NDArray[np.int16] = np.clip(wave, -32_767, 32_767).astype(np.int16)
    return samples.tobytes()


def silence(seconds: float) -> bytes:
    """Nothing."""
    return bytes(2 * round(seconds * CALLER_RATE))


def made_up(text: str) -> bytes:
    """A hum as long as it takes to say ``text``, for engines that hear no words."""
    return tone(WORD_S * max(1, len(text.split())))


def sounding(audio: bytes) -> tuple[int, int]:
    """From which sample to which there is sound in ``audio``; all of it where there is none."""
    samples = np.frombuffer(audio, np.int16)
    blocks = np.pad(samples, (0, -len(samples) % _BLOCK)).reshape(-1, _BLOCK).astype(np.float64)
    loudness = np.sqrt((blocks**2).mean(axis=1))
    loud = np.flatnonzero(loudness > _SOUND * loudness.max())
    return (int(loud[0]) * _BLOCK, (int(loud[-1]) + 1) * _BLOCK) if len(loud) else (0, len(samples))


async def spoken(engines: Engines, text: str) -> bytes:
    """``text`` said by the resident voice. It has a room of its own meanwhile.

    Raises ``RoomRefusedError`` when all are taken.
    """
    async with await engines.connect("caller") as client:
        return await _say(await client.open_room("caller"), text)


async def _say(room: InferenceRoom, text: str) -> bytes:
    phrase = room.speak(text)
    waiting = asyncio.create_task(phrase.wait(), name="caller-speech")
    samples = bytearray()
    try:
        while not (waiting.done() and room.read_position() >= (phrase.end or 0)):
            if block := room.read_speech(room.speech_rate):
                samples += block
            else:
                await asyncio.wait({waiting}, timeout=0.02)
            if waiting.done():
                # What failed is said here, and not waited for.
                waiting.result()
    finally:
        waiting.cancel()
    return resample(bytes(samples), room.speech_rate, CALLER_RATE)
