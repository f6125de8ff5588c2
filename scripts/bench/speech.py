"""Recordings with transcripts, and word errors between what was said and what was heard.

A folder of recordings holds 16 kHz mono 16-bit wave files and ``transcripts.tsv``: tab-separated, with a header
line and at least the columns ``file`` and ``transcript``.
"""

from __future__ import annotations

import csv
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import ROOT

from host.loadtest.words import errors, plain

DEFAULT_FOLDER = ROOT / "tests" / "data" / "speech"
SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Recording:
    """One file: float32 samples at 16 kHz and what is said in them."""

    name: str
    audio: NDArray[np.float32]
    transcript: str

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


def read_recordings(folder: Path) -> list[Recording]:
    """All recordings of ``folder``, in the table's order. Exits with a sentence when there are none to be had."""
    table = folder / "transcripts.tsv"
    if not table.is_file():
        raise SystemExit(f"no {table}: --speech takes a folder of wave files with a transcripts.tsv")
    with table.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened, delimiter="\t"))
    return [Recording(row["file"], read_wave(folder / row["file"]), row["transcript"]) for row in rows]


def read_wave(path: Path) -> NDArray[np.float32]:
    """Samples of a 16 kHz mono 16-bit wave file in [-1, 1]."""
    with wave.open(str(path)) as opened:
        kind = (opened.getframerate(), opened.getnchannels(), opened.getsampwidth())
        if kind != (SAMPLE_RATE, 1, 2):
            raise SystemExit(f"{path}: rate, channels and bytes are {kind}, expected (16000, 1, 2)")
        samples = np.frombuffer(opened.readframes(opened.getnframes()), np.int16)
    return samples.astype(np.float32) / 32_768


def word_errors(said: Mapping[str, str], heard: Mapping[str, str]) -> tuple[int, int]:
    """Substitutions, deletions and insertions over all files of ``heard``, and the words said in them."""
    wrong = words = 0
    for name, text in heard.items():
        reference = plain(said[name])
        wrong += errors(reference, plain(text))
        words += len(reference)
    return wrong, words
