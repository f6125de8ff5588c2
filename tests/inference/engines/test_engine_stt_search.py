"""What is tried next with an utterance, without a model: the answers are made up."""

from __future__ import annotations

import random

import numpy as np
import pytest

from inference.engines.base import SAMPLE_RATE, Audio, Utterance
from inference.engines.whisper_audio import FULL_WINDOW_S, split_at_pauses, stack_encoded, window_s
from inference.engines.whisper_search import (
    LOOP_NGRAM,
    MAX_TOKENS,
    RETRY_BEAM,
    UNSURE_LOGPROB,
    Search,
    Text,
    Transcribing,
)

ENCODED = np.zeros((1, 4, 2), np.float32)
SURE = Text([1, 2, 3, 4, 5, 6], "turn on the light please now", logprob=-0.2, no_speech=0.01, length=8, end_s=2.9)
UNSURE = Text([1, 2, 3, 4], "turn on the light", logprob=UNSURE_LOGPROB - 0.1, no_speech=0.01, length=6, end_s=2.9)
TWICE = Text([1, 2, 1, 2], "Go back. Go back.", logprob=-0.1, no_speech=0.01, length=6, end_s=2.9)
LOOP = Text([7] * 40, "no " * 40, logprob=-0.1, no_speech=0.01, length=42, end_s=2.9)
NOBODY = Text([1, 2], "Thank you.", logprob=-0.9, no_speech=0.9, length=4, end_s=2.9)
LOST = Text([1, 2, 3, 4, 5, 6], "turn on the light please now", logprob=-1.5, no_speech=0.1, length=8, end_s=2.9)


def tone(seconds: float) -> Audio:
    return np.full(round(seconds * SAMPLE_RATE), 0.3, np.float32)


def transcribe(transcribing: Transcribing, *answers: Text) -> list[str | Search]:
    """Give ``answers`` until nothing is asked any more; the steps that were asked for."""
    left = list(answers)
    steps: list[str | Search] = []
    while (piece := transcribing.piece()) is not None:
        if transcribing.next_step() == "encode":
            steps.append("encode")
            piece.encoded = ENCODED
        else:
            assert piece.search is not None
            steps.append(piece.search)
            piece.learn(left.pop(0))
    assert not left
    return steps


GREEDY = Search(7.5, budget=40)
FULL = Search(FULL_WINDOW_S, MAX_TOKENS, RETRY_BEAM)
BEAM = Search(7.5, budget=40, beam=RETRY_BEAM)


@pytest.mark.parametrize(
    ("answers", "steps", "text"),
    [
        pytest.param([SURE], ["encode", GREEDY], SURE.text, id="sure"),
        pytest.param([UNSURE, SURE], ["encode", GREEDY, BEAM], SURE.text, id="unsure: what is encoded is used again"),
        pytest.param([UNSURE, LOST], ["encode", GREEDY, BEAM], UNSURE.text, id="the beam finds nothing better"),
        pytest.param([LOST, LOST, SURE], ["encode", GREEDY, BEAM, "encode", FULL], SURE.text, id="lost"),
        pytest.param([TWICE, SURE], ["encode", GREEDY, "encode", FULL], SURE.text, id="said twice"),
        pytest.param(
            [LOOP, LOOP, SURE],
            ["encode", GREEDY, "encode", FULL, Search(FULL_WINDOW_S, MAX_TOKENS, RETRY_BEAM, LOOP_NGRAM)],
            SURE.text,
            id="a loop that survives",
        ),
        pytest.param([NOBODY], ["encode", GREEDY], "", id="nobody spoke"),
    ],
)
def test_what_is_tried_next(answers: list[Text], steps: list[str | Search], text: str) -> None:
    transcribing = Transcribing(1, Utterance(tone(3.0), "en"))
    assert transcribe(transcribing, *answers) == steps
    assert transcribing.result().text == text


@pytest.mark.parametrize("answer", [SURE, UNSURE, TWICE, LOOP, LOST])
def test_a_draft_is_searched_once(answer: Text) -> None:
    transcribing = Transcribing(1, Utterance(tone(3.0), "en", draft=True))
    assert transcribe(transcribing, answer) == ["encode", GREEDY]
    assert transcribing.result().text == answer.text


def test_what_was_left_out_is_one_more_piece() -> None:
    early = Text([1, 2, 3, 4, 5, 6, 7, 8], "first", logprob=-0.1, no_speech=0.0, length=10, end_s=1.2)
    rest = Text([9], "second", logprob=-0.1, no_speech=0.0, length=3, end_s=1.7)
    transcribing = Transcribing(1, Utterance(tone(3.0), "en"))
    assert transcribe(transcribing, early, rest) == ["encode", GREEDY, "encode", Search(7.5, budget=30)]
    assert transcribing.result().text == "first second"
    draft = Transcribing(1, Utterance(tone(3.0), "en", draft=True))
    assert transcribe(draft, early) == ["encode", GREEDY]


@pytest.mark.parametrize(
    "audio", [np.zeros(32_000, np.float32), np.ones(100, np.float32), np.full(9, 1e-4, np.float32)]
)
def test_what_cannot_be_heard_costs_nothing(audio: Audio) -> None:
    transcribing = Transcribing(1, Utterance(audio, "en"))
    assert transcribing.next_step() == "encode"
    assert transcribe(transcribing) == []
    assert transcribing.result().text == ""
    assert transcribing.result().no_speech_prob == 1.0


def test_long_audio_is_a_window_at_a_time() -> None:
    audio = tone(70.0)
    pieces = len(split_at_pauses(audio))
    assert pieces > 2
    transcribing = Transcribing(1, Utterance(audio, "en"))
    answer = Text(list(range(80)), "words", logprob=-0.1, no_speech=0.0, length=82, end_s=None)
    steps = transcribe(transcribing, *[answer] * pieces)
    assert steps.count("encode") == pieces
    assert transcribing.result().text.split() == ["words"] * pieces


def test_every_utterance_ends() -> None:
    """Whatever is answered: a bound on the steps, so that nobody's audio can keep the device busy for ever."""
    chance = random.Random(3)
    for _ in range(300):
        transcribing = Transcribing(1, Utterance(tone(chance.uniform(0.05, 40.0)), "en"))
        steps = 0
        while (piece := transcribing.piece()) is not None:
            steps += 1
            assert steps < 500
            if transcribing.next_step() == "encode":
                piece.encoded = ENCODED
                continue
            words = chance.choices(range(5), k=chance.randrange(60))
            text = " ".join(map(str, words))
            end_s = chance.choice([None, 0.0, 0.02, chance.uniform(0, 30)])
            piece.learn(Text(words, text, -2 * chance.random(), chance.random(), len(words) + 2, end_s))


@pytest.mark.parametrize(
    ("seconds", "window"), [(0.5, 7.5), (5.5, 7.5), (5.6, 10.0), (8.0, 10.0), (12.0, 15.0), (28.0, 30.0), (60.0, 30.0)]
)
def test_windows_leave_room_for_the_end(seconds: float, window: float) -> None:
    assert window_s(seconds) == window


def test_shorter_rows_go_on_with_their_silence() -> None:
    """The last second, back and forth, up to the longest row; what was encoded stays as it is."""
    short = np.arange(60, dtype=np.float32).reshape(1, 60, 1)
    long = np.full((1, 190, 1), 7, np.float32)
    stacked = stack_encoded([short, long])
    assert stacked.shape == (2, 190, 1)
    np.testing.assert_array_equal(stacked[1:], long)
    last = np.arange(10, 60)
    expected = np.concatenate([np.arange(60), last[::-1], last, last[::-1][:30]])
    np.testing.assert_array_equal(stacked[0, :, 0], expected)
    np.testing.assert_array_equal(stack_encoded([short]), short)
