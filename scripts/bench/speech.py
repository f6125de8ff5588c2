"""Recordings with transcripts, and word errors between what was said and what was heard.

A folder of recordings holds 16 kHz mono 16-bit wave files and ``transcripts.tsv``: tab-separated, with a header
line and at least the columns ``file`` and ``transcript``.
"""

from __future__ import annotations

import csv
import re
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import ROOT

DEFAULT_FOLDER = ROOT / "tests" / "data" / "speech"
SAMPLE_RATE = 16_000

_SPELLINGS = {
    "metres": "meters", "metre": "meter", "colour": "color", "favour": "favor", "mr": "mister", "mrs": "missus",
    "dr": "doctor", "ok": "okay",
    "what's": "what is", "that's": "that is", "it's": "it is", "there's": "there is", "he's": "he is",
    "she's": "she is", "let's": "let us", "i'm": "i am", "i've": "i have", "i'll": "i will", "i'd": "i would",
    "we're": "we are", "we'll": "we will", "we've": "we have", "you're": "you are", "you'll": "you will",
    "they're": "they are", "can't": "can not", "cannot": "can not", "won't": "will not", "don't": "do not",
    "doesn't": "does not", "didn't": "did not", "isn't": "is not", "aren't": "are not", "wasn't": "was not",
}  # fmt: skip
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


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
    errors = words = 0
    for name, text in heard.items():
        reference = plain(said[name])
        errors += _distance(reference, plain(text))
        words += len(reference)
    return errors, words


def plain(text: str) -> list[str]:
    """The words of ``text``: lower case, no punctuation, contractions and numbers written out.

    >>> plain("What's 10th, Mr. Brown?")
    ['what', 'is', 'tenth', 'mister', 'brown']
    """
    words = re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("’", "'").replace(",", "")).split()
    written = (_SPELLINGS.get(word) or _number(word) for word in (word.strip("'") for word in words) if word)
    return " ".join(written).split()


def _number(word: str) -> str:
    match = re.fullmatch(r"(\d{1,6})(st|nd|rd|th)?", word)
    if match is None:
        return word
    name = _cardinal(int(match[1]))
    if match[2] is None:
        return name
    *front, last = name.split()
    last = _ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return " ".join([*front, last])


def _cardinal(number: int) -> str:
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            return f"{_cardinal(number // size)} {name}" + (f" {_cardinal(rest)}" if rest else "")
    if number < len(_ONES):
        return _ONES[number]
    return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")


def _distance(said: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein's distance in words."""
    row = list(range(len(heard) + 1))
    for index, word in enumerate(said, 1):
        diagonal, row[0] = row[0], index
        for at, other in enumerate(heard, 1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (word != other))
    return row[-1]
