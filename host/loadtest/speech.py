"""What the callers say: recordings of real people, with what is said in them.

A folder of recordings holds PCM wave files and ``transcripts.tsv``: tab-separated, with a header line and at least
the columns ``file`` and ``transcript``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.errors import ConfigError
from host.job.line import CALLER_RATE
from host.job.resample import resample
from host.job.waves import read_wave
from host.loadtest.callers import Clip, Turn

DEFAULT_FOLDER = Path(__file__).parents[2] / "tests" / "data" / "speech"

_BLOCK_MS = 10
_BLOCK = CALLER_RATE * _BLOCK_MS // 1000
_VOICED = 0.05
"""Of the loudest 10 ms of a recording: what is louder is voice."""
_SPEECH_PEAK, _SPEECH_MS = 0.1, 80
"""A stretch that is never louder than this share of the loudest, or voiced for less, is a breath or a click."""
_MERGE_MS = 150
_PAUSE_MS = (60, 150)
"""A speaker may hesitate where it is quiet for so long: less is within a word, more is a pause already."""
_MARGIN_MS = 150
"""Kept of a recording before and after the speech."""


@dataclass(frozen=True, slots=True)
class Recording:
    """``samples``: int16 at 16 kHz."""

    clip: Clip
    samples: NDArray[np.int16]
    transcript: str

    def said(self, turn: Turn) -> NDArray[np.int16]:
        """The recording as ``turn`` says it, with its hesitation."""
        if not turn.hesitation_s:
            return self.samples
        place = round(turn.pause_s * CALLER_RATE)
        silence = np.zeros(round(turn.hesitation_s * CALLER_RATE), np.int16)
        return np.concatenate([self.samples[:place], silence, self.samples[place:]])


def default_folder() -> Path:
    """The recordings that come with the source tree. Raises ``ConfigError`` where it is not there."""
    if not DEFAULT_FOLDER.is_dir():
        raise ConfigError("--speech: which recordings shall the callers speak? A folder with a transcripts.tsv")
    return DEFAULT_FOLDER


def read_recordings(folder: Path, *, longest_s: float) -> dict[str, Recording]:
    """The recordings of ``folder`` that are no longer than ``longest_s``, by name. Raises ``ConfigError``."""
    table = folder / "transcripts.tsv"
    try:
        with table.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened, delimiter="\t"))
    except OSError as exc:
        raise ConfigError(f"--speech: {table}: {exc.strerror}: a folder of wave files with a transcripts.tsv") from exc
    if rows and not {"file", "transcript"} <= rows[0].keys():
        raise ConfigError(f"--speech: {table}: it needs the columns file and transcript")
    try:
        recordings = [_recording(folder / row["file"], row["transcript"]) for row in rows]
    except ValueError as exc:
        raise ConfigError(f"--speech: {exc}") from exc
    short = {recording.clip.name: recording for recording in recordings if recording.clip.seconds <= longest_s}
    if not short:
        raise ConfigError(f"--speech: {table}: no recording of {longest_s:g} s or less")
    return short


def _recording(path: Path, transcript: str) -> Recording:
    pcm, rate = read_wave(str(path))
    samples = np.frombuffer(resample(pcm.tobytes(), rate, CALLER_RATE), np.int16)
    blocks = np.pad(samples, (0, -len(samples) % _BLOCK)).reshape(-1, _BLOCK).astype(np.float64)
    loudness = np.sqrt((blocks**2).mean(axis=1))
    if not loudness.any():
        raise ValueError(f"{path}: it is silent")
    stretches = voiced_stretches(loudness)
    first, last = stretches[0][0], stretches[-1][1]
    margin = _MARGIN_MS // _BLOCK_MS
    begin = max(0, first - margin)
    samples = samples[begin * _BLOCK : (last + margin) * _BLOCK]
    clip = Clip(
        path.name,
        len(samples) / CALLER_RATE,
        (first - begin) * _BLOCK_MS / 1000,
        (last - begin) * _BLOCK_MS / 1000,
        tuple((pause - begin) * _BLOCK_MS / 1000 for pause in _pauses(loudness, first, last)),
    )
    return Recording(clip, samples, transcript)


def voiced_stretches(loudness: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Where there is speech: from block to block, without breaths and clicks. ``loudness``: of each 10 ms."""
    loudest = loudness.max()
    found: list[tuple[int, int, int]] = []
    for block in np.flatnonzero(loudness >= _VOICED * loudest).tolist():
        if found and (block - found[-1][1]) * _BLOCK_MS <= _MERGE_MS:
            begin, _, voiced = found.pop()
            found.append((begin, block + 1, voiced + 1))
        else:
            found.append((block, block + 1, 1))
    speech = [
        (begin, end)
        for begin, end, voiced in found
        if loudness[begin:end].max() >= _SPEECH_PEAK * loudest and voiced * _BLOCK_MS >= _SPEECH_MS
    ]
    return speech or [(begin, end) for begin, end, _ in found]


def _pauses(loudness: NDArray[np.float64], first: int, last: int) -> list[float]:
    """The middles of the short quiet places between ``first`` and ``last``, in blocks."""
    voiced = np.flatnonzero(loudness[first:last] >= _VOICED * loudness.max()) + first
    return [
        (before + 1 + after) / 2
        for before, after in zip(voiced[:-1].tolist(), voiced[1:].tolist(), strict=True)
        if _PAUSE_MS[0] <= (after - before - 1) * _BLOCK_MS <= _PAUSE_MS[1]
    ]
