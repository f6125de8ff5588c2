from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.engines.base import Audio, EngineError, EngineOptions, Transcription, Utterance
from inference.engines.stt import WhisperSpeechToText
from tests.word_errors import plain, word_errors

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def stt(whisper_folder: Path, options: EngineOptions) -> WhisperSpeechToText:
    engine = WhisperSpeechToText(max_batch=4)
    engine.load(whisper_folder, options)
    return engine


def heard(result: Transcription | EngineError) -> Transcription:
    if isinstance(result, EngineError):
        raise result
    return result


def test_words_are_as_right_as_the_stock_decoder_s(
    stt: WhisperSpeechToText,
    recordings: dict[str, Audio],
    transcripts: dict[str, str],
    whisper_folder: Path,
    options: EngineOptions,
) -> None:
    from faster_whisper import WhisperModel

    names = list(recordings)
    ours = {}
    for start in range(0, len(names), stt.max_batch):
        batch = names[start : start + stt.max_batch]
        for name, result in zip(
            batch, stt.transcribe([Utterance(recordings[name], "en") for name in batch]), strict=True
        ):
            ours[name] = heard(result).text
    stock = WhisperModel(str(whisper_folder), device="cpu", compute_type="int8", cpu_threads=options.threads)
    theirs = {}
    for name, audio in recordings.items():
        segments, _ = stock.transcribe(audio, language="en")
        theirs[name] = " ".join(segment.text.strip() for segment in segments)
    assert word_errors(transcripts, ours) <= word_errors(transcripts, theirs)


def test_the_language_is_found(stt: WhisperSpeechToText, recordings: dict[str, Audio]) -> None:
    result = heard(stt.transcribe([Utterance(recordings["jfk-ask-not.wav"])])[0])
    assert result.language == "en"
    assert plain(result.text).startswith("and so my fellow americans")
    assert result.avg_logprob > -0.5
    assert result.no_speech_prob < 0.5


def test_one_bad_utterance_fails_alone(stt: WhisperSpeechToText, recordings: dict[str, Audio]) -> None:
    good = recordings["set-a-timer.wav"]
    bad = good.copy()
    bad[100] = np.nan
    results = stt.transcribe(
        [
            Utterance(bad, "en"),
            Utterance(good, "en"),
            Utterance(good[:0], "en"),
            Utterance((good * 32_767).astype(np.int16), "en"),  # type: ignore[arg-type]
        ]
    )
    assert [isinstance(result, EngineError) for result in results] == [True, False, True, True]
    assert plain(heard(results[1]).text) == "set a timer for ten minutes"
    (unknown,) = stt.transcribe([Utterance(good, "klingon")])
    assert "klingon" in str(unknown)


def test_nobody_spoke(stt: WhisperSpeechToText) -> None:
    noise = np.random.default_rng(0).standard_normal(48_000).astype(np.float32)
    results = stt.transcribe(
        [
            Utterance(np.zeros(32_000, np.float32), "en"),
            Utterance(np.zeros(1, np.float32), "en"),
            Utterance(noise * 0.05, "en"),
            Utterance(np.ones(1, np.float32), "en"),
        ]
    )
    assert [heard(result).text for result in results] == ["", "", "", ""]


def test_speech_longer_than_the_window_is_joined(stt: WhisperSpeechToText, recordings: dict[str, Audio]) -> None:
    names = ["jfk-ask-not.wav", "lj001-0005.wav", "jfk-ask-not.wav", "set-a-timer.wav"]
    audio = np.concatenate([recordings[name] for name in names])
    assert len(audio) > 30 * 16_000
    text = plain(heard(stt.transcribe([Utterance(audio, "en")])[0]).text)
    assert text.startswith("and so my fellow americans")
    assert text.endswith("set a timer for ten minutes")
    assert text.count("ask what you can do for your country") == 2


def test_too_many_utterances_are_refused(stt: WhisperSpeechToText) -> None:
    with pytest.raises(EngineError, match="at most"):
        stt.transcribe([Utterance(np.zeros(10, np.float32))] * (stt.max_batch + 1))


def test_a_broken_model_file_is_an_engine_error(tmp_path: Path, whisper_folder: Path, options: EngineOptions) -> None:
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (tmp_path / name).write_bytes((whisper_folder / name).read_bytes())
    (tmp_path / "model.bin").write_bytes(b"not a model")
    with pytest.raises(EngineError, match="cannot load"):
        WhisperSpeechToText().load(tmp_path, options)
