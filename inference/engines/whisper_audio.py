"""Audio on its way into Whisper: how loud it is, where it may be cut, which window it needs. Needs no model."""

from __future__ import annotations

from typing import Final

import numpy as np

from inference.engines.base import SAMPLE_RATE, Audio

WINDOW_FLOOR_S: Final = 7.5
"""Shortest window. On 220 clips, clean, noisy, fast, quiet and of a telephone's bandwidth, windows from 5 s to 10 s
made as many errors as 30 s did (base: 3.7 % against 3.8 %, greedy)."""

WINDOW_STEP_S: Final = 2.5
"""Windows are rounded up to a multiple of this, so that utterances of similar length share a batch."""

FULL_WINDOW_S: Final = 30.0
"""The window Whisper was trained on, and the longest its positions allow."""

SLACK_S: Final = 2.0
"""Silence after the speech. Without it the model does not find the end."""

LONGEST_PIECE_S: Final = FULL_WINDOW_S - SLACK_S
"""Longer utterances are cut at their quietest places."""

SHORTEST_SPEECH_S: Final = 0.1
"""Shorter audio holds no word; Whisper would still answer with one of its favourite sentences."""

SILENCE_PEAK: Final = 1e-3
"""Audio that never exceeds this (-60 dB) is silence; Whisper would still answer "you"."""

_BLOCK: Final = SAMPLE_RATE // 10


def window_s(seconds: float) -> float:
    """The window for so much audio, in seconds."""
    steps = -(-(seconds + SLACK_S) // WINDOW_STEP_S)
    return min(FULL_WINDOW_S, max(WINDOW_FLOOR_S, steps * WINDOW_STEP_S))


def is_audible(audio: Audio) -> bool:
    """Whether ``audio`` (16 kHz) is long and loud enough to hold a word."""
    return len(audio) >= SHORTEST_SPEECH_S * SAMPLE_RATE and float(np.abs(audio).max()) > SILENCE_PEAK


def loudness(audio: Audio) -> float:
    """Root mean square of the loud parts of ``audio`` (16 kHz), looked at in steps of 0.1 s."""
    rms = _block_rms(audio)
    return float(np.quantile(rms, 0.95)) if len(rms) else 0.0


def loud_seconds(audio: Audio, reference: float) -> float:
    """Seconds of ``audio`` (16 kHz) within 20 dB of ``reference``, in steps of 0.1 s."""
    return float(np.count_nonzero(_block_rms(audio) > 0.1 * reference)) / 10


def _block_rms(audio: Audio) -> Audio:
    blocks = audio[: len(audio) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    result: Audio = np.sqrt(np.square(blocks).mean(axis=1))
    return result


def split_at_pauses(audio: Audio, longest_s: float = LONGEST_PIECE_S) -> list[Audio]:
    """Cut ``audio`` (16 kHz) into pieces of at most ``longest_s``, at the quietest 0.1 s of each one's second half."""
    longest = int(longest_s * SAMPLE_RATE)
    pieces = []
    while len(audio) > longest:
        second_half = audio[longest // 2 : longest]
        blocks = second_half[: len(second_half) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
        quietest = int(np.square(blocks).mean(axis=1).argmin())
        cut = longest // 2 + quietest * _BLOCK + _BLOCK // 2
        pieces.append(audio[:cut])
        audio = audio[cut:]
    pieces.append(audio)
    return pieces
