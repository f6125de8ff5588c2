"""The parts of the Piper engine that need no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.engines.base import EngineError, EngineOptions
from inference.engines.tts import (
    LONG_OPENING,
    SHORTEST_CLAUSE,
    PiperTextToSpeech,
    speakable,
    split_opening,
    split_sentence,
)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Hello, world!", "Hello, world!"),
        ("a\x00b\x1b[0m", "a b [0m"),
        ("Hi 😀 there 👍🏽!", "Hi there !"),
        ("20°C costs 5€ & 50%", "20°C costs 5€ & 50%"),
        ("[[h@lo]]", "[ [h@lo]]"),
        ("two\n\nlines\u2028here", "two lines here"),
        ("half a \ud800 pair", "half a pair"),
        ("... !? —", ""),
        ("😀👨‍👩‍👧❤️🇩🇪", ""),
        ("", ""),
    ],
)
def test_only_what_can_be_said_is_left(text: str, spoken: str) -> None:
    assert speakable(text) == spoken


def test_a_long_sentence_is_cut_at_a_comma_or_between_words() -> None:
    words = list("abcd efgh, ijkl mnop qrst")
    parts = split_sentence(words, longest=12)
    assert ["".join(part) for part in parts] == ["abcd efgh,", " ijkl mnop ", "qrst"]
    assert [phoneme for part in parts for phoneme in part] == words


def test_a_sentence_without_gaps_is_cut_anyway() -> None:
    assert [len(part) for part in split_sentence(["a"] * 25, longest=10)] == [10, 10, 5]


@pytest.mark.parametrize("pause", [30, SHORTEST_CLAUSE - 1, LONG_OPENING - 2])
def test_a_long_opening_is_its_first_clause_and_the_rest(pause: int) -> None:
    phonemes = ["a"] * (LONG_OPENING + 50)
    phonemes[pause] = phonemes[pause + 40] = ","
    assert [len(part) for part in split_opening(phonemes)] == [pause + 1, len(phonemes) - pause - 1]


@pytest.mark.parametrize("pause", [SHORTEST_CLAUSE - 2, LONG_OPENING - 1, LONG_OPENING + 10])
def test_a_pause_that_comes_too_soon_or_too_late_cuts_nothing(pause: int) -> None:
    phonemes = ["a"] * (LONG_OPENING + 50)
    phonemes[pause] = ";"
    assert split_opening(phonemes) == [phonemes]


def test_an_opening_that_is_not_long_is_not_cut() -> None:
    phonemes = ["a"] * LONG_OPENING
    phonemes[30] = ","
    assert split_opening(phonemes) == [phonemes]
    assert split_opening([]) == [[]]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    options = EngineOptions(device="cpu", threads=1, max_rooms=1)
    with pytest.raises(EngineError, match=r"no such file: .*voice\.onnx"):
        PiperTextToSpeech().load(tmp_path / "voice.onnx", options)
    (tmp_path / "voice.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match=r"no such file: .*voice\.onnx\.json"):
        PiperTextToSpeech().load(tmp_path / "voice.onnx", options)


def test_before_load_it_says_so() -> None:
    with pytest.raises(EngineError, match="not loaded"):
        PiperTextToSpeech().start(1, "hello")
