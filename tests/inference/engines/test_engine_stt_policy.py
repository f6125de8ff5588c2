"""The parts of the Whisper engine that need no model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.engines.base import EngineError, EngineOptions
from inference.engines.stt import WhisperSpeechToText
from inference.engines.whisper_audio import loud_seconds, loudness, split_at_pauses
from inference.engines.whisper_search import ends_in_loop, is_repetition, spoken


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("Go forward ten meters. Go forward, ten meters.", True),
        ("Yes. Yes. Yes.", True),
        ("Go forward ten meters.", False),
        ("", False),
        ("No", False),
        ("He had had enough", False),
    ],
)
def test_a_sentence_that_comes_out_twice_is_seen(text: str, repeated: bool) -> None:
    assert is_repetition(text) is repeated


@pytest.mark.parametrize(
    ("tokens", "loop"),
    [([1, 2, 3, 3, 3, 3], True), ([9, 1, 2, 1, 2, 1, 2, 1, 2], True), ([1, 2, 3, 1, 2, 3], False), ([], False)],
)
def test_loops_are_seen(tokens: list[int], loop: bool) -> None:
    assert ends_in_loop(tokens) is loop


def test_long_audio_is_cut_where_it_is_quiet() -> None:
    audio = np.full(70 * 16_000, 0.5, np.float32)
    audio[20 * 16_000 : 20 * 16_000 + 3_200] = 0.0
    pieces = split_at_pauses(audio, longest_s=28.0)
    assert sum(len(piece) for piece in pieces) == len(audio)
    assert max(len(piece) for piece in pieces) <= 28 * 16_000
    assert abs(len(pieces[0]) - (20 * 16_000 + 1_600)) <= 1_600
    np.testing.assert_array_equal(np.concatenate(pieces), audio)


def test_short_audio_is_not_cut() -> None:
    audio = np.ones(16_000, np.float32)
    assert [len(piece) for piece in split_at_pauses(audio)] == [16_000]


def test_a_missing_file_is_named_and_no_hub_is_asked(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no such file: .*model\.bin"):
        WhisperSpeechToText().load(tmp_path, EngineOptions(device="cpu", threads=1, max_rooms=1))


def test_before_load_it_says_so() -> None:
    with pytest.raises(EngineError, match="not loaded"):
        WhisperSpeechToText().transcribe([])


def test_pauses_are_not_loud() -> None:
    audio = np.zeros(10 * 16_000, np.float32)
    audio[32_000:80_000] = 0.3
    assert loud_seconds(audio, loudness(audio)) == 3.0
    assert loud_seconds(audio[:100], loudness(audio[:100])) == 0.0
    assert loud_seconds(audio[80_000:], loudness(audio)) == 0.0


ZERO = 1000
"""The first timestamp token of a made-up vocabulary."""


def at(seconds: float) -> int:
    return ZERO + round(seconds / 0.02)


@pytest.mark.parametrize(
    ("tokens", "words", "end_s"),
    [
        ([], [], None),
        ([at(0), 1, 2, at(2.4)], [1, 2], 2.4),
        ([at(0), 1, at(1), at(1.5), 2, at(2.4), at(2.4)], [1, 2], 2.4),
        ([at(0), 1, at(1), at(1), 2], [1, 2], None),
        ([1, 2], [1, 2], None),
        # The audio has 3 s: what is said to begin after it was made up.
        ([at(0), 1, 2, at(2.4), at(3.2), 1, 2, at(5)], [1, 2], 2.4),
        ([at(0), 1, at(3.4), at(3.4), 2], [1], 3.4),
    ],
)
def test_sentences_have_a_beginning_and_an_end(tokens: list[int], words: list[int], end_s: float | None) -> None:
    heard, end = spoken(tokens, ZERO, seconds=3.0)
    assert heard == words
    assert end == (None if end_s is None else pytest.approx(end_s))
