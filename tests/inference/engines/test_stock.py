"""The stock engines: they serve, one request of a kind at a time, and refuse what stock libraries cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.engines.base import (
    Audio,
    EngineError,
    EngineOptions,
    Message,
    PromptTooLongError,
    Sampling,
    SpeechOut,
    TokensOut,
    TranscriptOut,
    Utterance,
)
from inference.engines.stock import StockLanguageModel, StockSpeechToText, StockTextToSpeech

pytestmark = pytest.mark.models

OPTIONS = EngineOptions("cpu", 1, 2, 512)


@pytest.fixture(scope="module")
def llm(language_model_file: Path) -> Iterator[StockLanguageModel]:
    engine = StockLanguageModel()
    engine.load(language_model_file, OPTIONS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tts(voice_file: Path) -> Iterator[StockTextToSpeech]:
    engine = StockTextToSpeech()
    engine.load(voice_file, OPTIONS)
    yield engine
    engine.close()


def ask(text: str) -> list[Message]:
    return [Message("system", "Answer shortly."), Message("user", text)]


def test_a_generation_is_served_to_its_end_before_the_next_begins(llm: StockLanguageModel) -> None:
    for request in (1, 2):
        llm.start(request, request - 1, ask("Say hello."), Sampling(temperature=0.0, max_tokens=8))
    (first,) = llm.step(frozenset({1}))
    texts = {1: first.text if isinstance(first, TokensOut) else "", 2: ""}
    empty = 0
    # Now only the second is asked for: it waits until the first is done, which nobody hears of meanwhile.
    while 2 in llm.running():
        found = llm.step(frozenset({2}))
        empty += not found
        for out in found:
            assert isinstance(out, TokensOut)
            assert out.request == 2
            texts[2] += out.text
    assert empty >= 3
    while llm.running():
        for out in llm.step(frozenset({1})):
            assert isinstance(out, TokensOut)
            texts[1] += out.text
    assert texts[1].strip()
    assert texts[1] == texts[2]


def test_a_prompt_is_not_decoded_ahead_of_time(llm: StockLanguageModel) -> None:
    llm.start(3, 0, ask("Hello."), Sampling(max_tokens=0))
    assert llm.step() == [TokensOut(3, "", "length")]
    assert llm.running() == frozenset()


def test_a_prompt_that_does_not_fit_is_refused(llm: StockLanguageModel) -> None:
    for text in ("word " * 600, "x" * 1_000_000):
        with pytest.raises(PromptTooLongError):
            llm.start(4, 0, ask(text), Sampling(max_tokens=8))


def test_a_room_that_is_gone_takes_its_generation_along(llm: StockLanguageModel) -> None:
    llm.start(5, 1, ask("Hello."), Sampling(max_tokens=8))
    llm.step()
    llm.release(1)
    assert llm.running() == frozenset()


def test_a_phrase_comes_sentence_by_sentence_one_phrase_after_the_other(tts: StockTextToSpeech) -> None:
    tts.start(1, "The first sentence. The second one.")
    tts.start(2, "Another phrase.")
    found = [tts.step([1])]
    while 2 in tts.running():
        found.append(tts.step([2]))
    while tts.running():
        found.append(tts.step([1]))
    blocks = [out for step in found for out in step if isinstance(out, SpeechOut)]
    # The second phrase waited for the rest of the first, which was given when it was asked for.
    assert [len(step) for step in found] == [1, 0, 0, 1, 1, 1, 1]
    assert [(block.request, block.last) for block in blocks] == [
        (1, False),
        (2, False),
        (2, True),
        (1, False),
        (1, True),
    ]
    assert all(len(block.audio) > 10_000 for block in blocks if not block.last)


def test_speech_is_transcribed_in_one_step(whisper_folder: Path, recordings: dict[str, Audio]) -> None:
    engine = StockSpeechToText()
    engine.load(whisper_folder, OPTIONS)
    speech = recordings["go-forward-ten-meters.wav"]
    engine.start(1, Utterance(speech, "en"))
    engine.start(2, Utterance(speech, "en"))
    (found,) = engine.step([2, 1])
    assert isinstance(found, TranscriptOut)
    assert (found.request, engine.running()) == (2, {1})
    assert "forward" in found.transcription.text.lower()
    engine.cancel(1)
    assert engine.step([1]) == []
    with pytest.raises(EngineError, match="no drafts"):
        engine.start(3, Utterance(speech, "en", draft=True))
    with pytest.raises(EngineError, match="bad audio"):
        engine.start(3, Utterance(np.full(16_000, np.nan, np.float32), "en"))
    engine.close()
