from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.engines.base import (
    Audio,
    EngineError,
    EngineOptions,
    SpeechToTextEngine,
    TranscriptFailed,
    Transcription,
    TranscriptOut,
    Utterance,
)
from inference.engines.stt import LONGEST_UTTERANCE_S, WhisperSpeechToText
from tests.word_errors import plain, word_errors

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def stt(whisper_folder: Path, options: EngineOptions) -> WhisperSpeechToText:
    engine = WhisperSpeechToText(max_batch=4)
    engine.load(whisper_folder, options)
    return engine


def step_to_the_end(
    stt: SpeechToTextEngine, requests: Sequence[int], limit: int = 200
) -> dict[int, Transcription | EngineError]:
    """Step until none of ``requests`` runs, encoding first; what each became."""
    results: dict[int, Transcription | EngineError] = {}
    for _ in range(limit):
        running = [request for request in requests if request in stt.running()]
        if not running:
            return results
        encode = [request for request in running if stt.next_step(request) == "encode"]
        for out in stt.step(encode or running):
            assert out.request not in results
            results[out.request] = out.transcription if isinstance(out, TranscriptOut) else out.error
    raise AssertionError(f"still running after {limit} steps: {stt.running()}")


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


def test_each_of_a_batch_has_its_language(
    stt: WhisperSpeechToText, recordings: dict[str, Audio], languages: dict[str, Audio]
) -> None:
    """Found where it is not given, kept where it is: in one decode step."""
    french = languages["french.wav"]
    utterances = [
        Utterance(french),
        Utterance(recordings["set-a-timer.wav"]),
        Utterance(languages["chinese.wav"]),
        Utterance(french, "en"),
    ]
    for request, utterance in enumerate(utterances):
        stt.start(request, utterance)
        assert stt.step([request]) == []
    results = {out.request: out.transcription for out in stt.step(range(4)) if isinstance(out, TranscriptOut)}
    results |= {request: heard(one) for request, one in step_to_the_end(stt, range(4)).items()}
    assert [results[request].language for request in range(4)] == ["fr", "en", "zh", "en"]
    assert results[0].text.casefold().startswith("et c'est la dictée numéro")
    assert plain(results[1].text) == "set a timer for ten minutes"
    assert "自己" in results[2].text
    assert "dictée" not in results[3].text


def test_a_model_of_one_language_speaks_it(
    english_whisper_folder: Path, recordings: dict[str, Audio], options: EngineOptions
) -> None:
    stt = WhisperSpeechToText()
    stt.load(english_whisper_folder, options)
    for language in ("", "en"):
        (result,) = stt.transcribe([Utterance(recordings["set-a-timer.wav"], language)])
        assert heard(result).language == "en"
        assert plain(heard(result).text) == "set a timer for ten minutes"
    (refused,) = stt.transcribe([Utterance(recordings["set-a-timer.wav"], "fr")])
    assert "'fr'" in str(refused)
    stt.close()


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


def test_an_utterance_is_encoded_and_decoded(stt: WhisperSpeechToText, recordings: dict[str, Audio]) -> None:
    stt.start(7, Utterance(recordings["set-a-timer.wav"], "en"))
    assert stt.running() == {7}
    assert stt.next_step(7) == "encode"
    assert stt.step([7]) == []
    assert stt.next_step(7) == "decode"
    (out,) = stt.step([7])
    assert isinstance(out, TranscriptOut)
    assert out.request == 7
    assert plain(out.transcription.text) == "set a timer for ten minutes"
    assert not stt.running()
    assert stt.step([7, 8]) == []
    with pytest.raises(EngineError, match="no request 7"):
        stt.next_step(7)


def test_a_step_is_of_one_kind_and_serves_what_fits(stt: WhisperSpeechToText, recordings: dict[str, Audio]) -> None:
    audio = recordings["set-a-timer.wav"]
    for request in (1, 2, 3):
        stt.start(request, Utterance(audio, "en"))
    with pytest.raises(EngineError, match="request 2 is already running"):
        stt.start(2, Utterance(audio, "en"))
    assert stt.step([2, 1]) == []
    assert [stt.next_step(request) for request in (1, 2, 3)] == ["encode", "decode", "encode"], "a CPU encodes one"
    with pytest.raises(EngineError, match="same next step"):
        stt.step([1, 2])
    stt.step([1])
    stt.cancel(2)
    stt.cancel(99)
    assert stt.running() == {1, 3}
    results = step_to_the_end(stt, [1, 2, 3])
    assert {request: plain(heard(result).text) for request, result in results.items()} == {
        1: "set a timer for ten minutes",
        3: "set a timer for ten minutes",
    }


def test_together_they_are_what_they_are_alone(stt: WhisperSpeechToText, recordings: dict[str, Audio]) -> None:
    names = ["set-a-timer.wav", "go-forward-ten-meters.wav", "whats-the-date-today.wav", "arctic-aew-a0003.wav"]
    alone = [heard(stt.transcribe([Utterance(recordings[name], "en")])[0]) for name in names]
    together = [heard(result) for result in stt.transcribe([Utterance(recordings[name], "en") for name in names])]
    assert [one.text for one in together] == [one.text for one in alone]
    for one, other in zip(alone, together, strict=True):
        assert other.avg_logprob == pytest.approx(one.avg_logprob, abs=0.02)


def test_windows_of_different_length_are_decoded_together(
    stt: WhisperSpeechToText, recordings: dict[str, Audio]
) -> None:
    stt.start(1, Utterance(recordings["set-a-timer.wav"], "en"))
    stt.start(2, Utterance(recordings["jfk-ask-not.wav"], "en"))
    assert stt.step([1]) == []
    assert stt.step([2]) == []
    results = {out.request: out.transcription for out in stt.step([1, 2]) if isinstance(out, TranscriptOut)}
    assert plain(results[1].text) == "set a timer for ten minutes"
    assert plain(results[2].text).startswith("and so my fellow americans")


def test_a_draft_is_one_search_and_says_the_same_when_it_is_easy(
    stt: WhisperSpeechToText, recordings: dict[str, Audio]
) -> None:
    audio = recordings["sense-and-sensibility-0930.wav"]
    noise = np.random.default_rng(1).standard_normal(len(audio)).astype(np.float32)
    for utterance in (Utterance(audio, "en", draft=True), Utterance(audio * 0.1 + noise * 0.05, "en", draft=True)):
        stt.start(1, utterance)
        assert stt.step([1]) == []
        (out,) = stt.step([1])
        assert isinstance(out, TranscriptOut)
    (final,) = stt.transcribe([Utterance(audio, "en")])
    (draft,) = stt.transcribe([Utterance(audio, "en", draft=True)])
    assert heard(draft) == heard(final)


class Fragile:
    """A model that cannot take a batch in which ``poison`` is a row; counts the rows that it was given."""

    def __init__(self, model: Any, poison: int) -> None:
        self._model = model
        self._poison = poison
        self.rows: list[int] = []

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return self._model.encode(*args, **kwargs)

    def generate(self, encoded: Any, *args: Any, **kwargs: Any) -> Any:
        rows = np.array(encoded)
        self.rows.append(len(rows))
        if (rows == self._poison).all(axis=(1, 2)).any():
            raise RuntimeError("cannot")
        return self._model.generate(encoded, *args, **kwargs)


def test_what_the_model_cannot_take_fails_alone(
    stt: WhisperSpeechToText, recordings: dict[str, Audio], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = recordings["set-a-timer.wav"]
    model = Fragile(stt._whisper, poison=7)
    monkeypatch.setattr(stt, "_whisper", model)
    for request in (1, 2, 3):
        stt.start(request, Utterance(audio, "en"))
        stt.step([request])
    piece = stt._running[2].piece()
    assert piece is not None
    assert piece.encoded is not None
    piece.encoded = np.full_like(piece.encoded, 7)
    out = stt.step([1, 2, 3])
    assert model.rows == [3, 1, 1, 1]
    assert not stt.running()
    failed = [one for one in out if isinstance(one, TranscriptFailed)]
    assert [one.request for one in failed] == [2]
    assert "cannot decode: cannot" in str(failed[0].error)
    good = [one.transcription for one in out if isinstance(one, TranscriptOut)]
    assert [plain(one.text) for one in good] == ["set a timer for ten minutes"] * 2


@pytest.mark.parametrize(
    ("poison", "says"),
    [
        (np.full(16_000, np.nan, np.float32), "not finite"),
        (np.full(16_000, np.inf, np.float32), "not finite"),
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(16_000, np.float64), "float64"),
        (np.zeros(16_000, np.int16), "int16"),
        (np.zeros((1, 16_000), np.float32), r"\(1, 16000\)"),
        (np.zeros((), np.float32), r"shape \(\)"),
        (np.zeros(600 * 16_000, np.float32), "600 s long"),
    ],
    ids=["NaN", "infinite", "empty", "float64", "int16", "two dimensions", "no dimension", "ten minutes"],
)
def test_poison_is_refused_at_the_start(
    stt: WhisperSpeechToText, recordings: dict[str, Audio], poison: Any, says: str
) -> None:
    good = recordings["set-a-timer.wav"]
    stt.start(1, Utterance(good, "en"))
    with pytest.raises(EngineError, match=says):
        stt.start(2, Utterance(poison, "en"))
    assert stt.running() == {1}
    assert plain(heard(step_to_the_end(stt, [1, 2])[1]).text) == "set a timer for ten minutes"


def test_huge_samples_are_clipped(stt: WhisperSpeechToText) -> None:
    audio = np.full(16_000, 3e38, np.float32)
    audio[::2] = -3e38
    assert isinstance(stt.transcribe([Utterance(audio, "en")])[0], Transcription)


def test_the_longest_audio_ends_a_window_at_a_time(stt: WhisperSpeechToText, recordings: dict[str, Audio]) -> None:
    """Noise, which Whisper likes to make up endless text for, as long as may be; and a neighbour who asks meanwhile."""
    noise = np.random.default_rng(2).standard_normal(int(LONGEST_UTTERANCE_S) * 16_000).astype(np.float32) * 0.1
    stt.start(1, Utterance(noise, "en", draft=True))
    stt.start(2, Utterance(recordings["set-a-timer.wav"], "en"))
    stt.step([1])
    stt.step([2])
    results = step_to_the_end(stt, [2])
    assert plain(heard(results[2]).text) == "set a timer for ten minutes"
    assert stt.running() == {1}
    assert len(heard(step_to_the_end(stt, [1], limit=30)[1]).text.split()) < 600


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
