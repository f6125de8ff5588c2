from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import piper
import pytest
from numpy.typing import NDArray

from inference.engines.base import (
    SAMPLE_RATE,
    VAD_WINDOW,
    EngineError,
    EngineOptions,
    SpeechFailed,
    SpeechOut,
    Transcription,
    Utterance,
)
from inference.engines.piper_voice import Order
from inference.engines.piper_windows import EXACT
from inference.engines.stt import WhisperSpeechToText
from inference.engines.tts import PiperTextToSpeech
from inference.engines.vad import SileroVoiceActivity
from tests.word_errors import word_errors

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def loaded(voice_file: Path, options: EngineOptions) -> Iterator[PiperTextToSpeech]:
    engine = PiperTextToSpeech()
    engine.load(voice_file, options)
    yield engine
    engine.close()


@pytest.fixture
def tts(loaded: PiperTextToSpeech) -> Iterator[PiperTextToSpeech]:
    """With nothing to say, whatever the test before it left."""
    yield loaded
    for request in loaded.running():
        loaded.cancel(request)


def speak(tts: PiperTextToSpeech) -> dict[int, list[NDArray[np.int16]]]:
    """Step all phrases to their end: the blocks of each."""
    blocks: dict[int, list[NDArray[np.int16]]] = {}
    ended = set()
    for _ in range(100):
        if not tts.running():
            assert ended == set(blocks)
            return blocks
        for out in tts.step(sorted(tts.running())):
            assert isinstance(out, SpeechOut)
            assert out.audio.dtype == np.int16
            assert out.audio.ndim == 1
            assert out.request not in ended
            blocks.setdefault(out.request, []).append(out.audio)
            if out.last:
                ended.add(out.request)
    raise AssertionError(f"still speaking: {tts.running()}")


def seconds(tts: PiperTextToSpeech, blocks: list[NDArray[np.int16]]) -> float:
    return sum(block.size for block in blocks) / tts.sample_rate


def test_phrases_of_several_rooms_come_sentence_by_sentence(tts: PiperTextToSpeech) -> None:
    tts.start(1, "Hello there. How are you today? I am fine.")
    tts.start(2, "Set a timer for ten minutes.")
    blocks = speak(tts)
    assert seconds(tts, blocks[1]) > 1.5 > seconds(tts, blocks[2][:1])
    for room in blocks.values():
        assert 2_000 < np.abs(np.concatenate(room).astype(int)).max() <= 32_767


@pytest.mark.parametrize("text", ["", "   ", "...", "?!", "😀👍🏽", "\x00\x01", "—", "«»"])
def test_nothing_to_say_is_one_empty_last_block(tts: PiperTextToSpeech, text: str) -> None:
    tts.start(1, text)
    (out,) = tts.step([1])
    assert isinstance(out, SpeechOut)
    assert (out.request, out.audio.size, out.last) == (1, 0, True)
    assert tts.running() == frozenset()


@pytest.mark.parametrize(
    "text", ["a\x00b", "\ud800 hello", "[[", "hello [[", "1" * 60, "<speak>hi</speak>", "你好 hello"]
)
def test_odd_text_does_not_crash(tts: PiperTextToSpeech, text: str) -> None:
    tts.start(1, text)
    speak(tts)


def test_speed_and_volume(tts: PiperTextToSpeech) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    tts.start(1, text)
    tts.start(2, text, speed=2.0)
    tts.start(3, text, volume=0.25)
    blocks = speak(tts)
    assert seconds(tts, blocks[2]) < 0.7 * seconds(tts, blocks[1])
    loud, quiet = (np.abs(np.concatenate(blocks[request]).astype(int)).max() for request in (1, 3))
    assert quiet < 0.5 * loud


@pytest.mark.parametrize(("speed", "volume"), [(0.0, 1.0), (math.nan, 1.0), (9.0, 1.0), (1.0, -1.0), (1.0, math.inf)])
def test_impossible_speed_and_volume_are_refused(tts: PiperTextToSpeech, speed: float, volume: float) -> None:
    with pytest.raises(EngineError, match="allowed"):
        tts.start(1, "hello", speed=speed, volume=volume)
    assert tts.running() == frozenset()


def test_cancel_and_strangers(tts: PiperTextToSpeech) -> None:
    tts.start(1, "Hello there. How are you?")
    tts.step([1])
    tts.cancel(1)
    tts.cancel(99)
    assert tts.step([1, 99]) == []
    tts.start(1, "Again.")
    with pytest.raises(EngineError, match="request 1 is already running"):
        tts.start(1, "Again.")
    tts.cancel(1)


def test_a_phrase_is_cancelled_between_two_windows(tts: PiperTextToSpeech) -> None:
    sentence = "She sells sea shells by the sea shore and the shells she sells are surely sea shells."
    tts.start(1, sentence)
    tts.start(2, sentence)
    (first,) = tts.step([1])
    (other,) = tts.step([2])
    assert isinstance(first, SpeechOut)
    assert isinstance(other, SpeechOut)
    assert not first.last
    assert not other.last
    tts.cancel(1)
    assert tts.running() == {2}
    rest = speak(tts)
    assert set(rest) == {2}
    assert tts.step([1]) == []
    assert first.audio.size / tts.sample_rate < 1.0 < seconds(tts, rest[2])


def test_the_most_urgent_phrases_of_many_get_the_step(tts: PiperTextToSpeech) -> None:
    text = "Here is a sentence of a certain length, which is spoken to many rooms."
    urgency = [7 * request % 31 for request in range(1, 31)]
    for request in urgency:
        tts.start(request, text)
    first = [out.request for out in tts.step(urgency)]
    assert first == urgency[: len(first)]
    for request in urgency:
        tts.cancel(request)
    assert 1 <= len(first) < len(urgency)


def test_windows_of_many_rooms_are_what_piper_makes_of_each(tts: PiperTextToSpeech, voice_file: Path) -> None:
    """Rooms side by side, noise off, against ``PiperVoice`` with its whole graph."""
    voice = piper.PiperVoice.load(voice_file)
    texts = ["Yes.", "How are you today?", "The sun is warm and the sky is blue, and I would like to go out."]
    ids = [voice.phonemes_to_ids(voice.phonemize(text)[0]) for text in texts]
    quiet = piper.SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)
    ours = tts._voice
    assert ours is not None
    sentences = []
    for sentence in ours.encode([Order(each, noise=0.0) for each in ids]):
        assert not isinstance(sentence, EngineError)
        sentences.append(sentence)
    spoken: list[list[NDArray[np.float32]]] = [[] for _ in sentences]
    while going_on := [row for row, sentence in enumerate(sentences) if not sentence.finished]:
        for row, block in zip(going_on, ours.decode([sentences[row] for row in going_on]), strict=True):
            assert not isinstance(block, EngineError)
            spoken[row].append(block)
    for each, blocks in zip(ids, spoken, strict=True):
        assert len(blocks) > 1
        assert np.abs(np.concatenate(blocks) - voice.phoneme_ids_to_audio(each, quiet)).max() <= EXACT


def test_a_very_long_sentence_is_several_blocks(tts: PiperTextToSpeech) -> None:
    tts.start(1, "and then another word " * 25)
    blocks = speak(tts)[1]
    assert len(blocks) > 1


def test_a_voice_of_one_speaker_has_no_second(tts: PiperTextToSpeech) -> None:
    for speaker in (1, -2):
        with pytest.raises(EngineError, match=rf"speaker is {speaker}, allowed: -1 \(the voice's own\) to 0"):
            tts.start(1, "Hello.", speaker=speaker)
    tts.start(1, "Hello.", speaker=0)
    assert set(speak(tts)) == {1}


def test_one_poisoned_phrase_fails_alone(tts: PiperTextToSpeech) -> None:
    tts.start(1, "Hello.")
    tts._phrases[1].waiting[0] = Order([99_999])  # no such phoneme
    tts.start(2, "Hello there.")
    (bad,) = (out for out in [*tts.step([1, 2]), *tts.step([1])] if out.request == 1)
    assert isinstance(bad, SpeechFailed)
    assert "text to speech: encoding 1 phonemes failed" in str(bad.error)
    assert tts.running() == {2}
    assert set(speak(tts)) == {2}


def test_a_broken_voice_is_an_engine_error(tmp_path: Path, voice_file: Path, options: EngineOptions) -> None:
    broken = tmp_path / "voice.onnx"
    broken.write_bytes(b"not a model")
    (tmp_path / "voice.onnx.json").write_bytes(voice_file.with_name(voice_file.name + ".json").read_bytes())
    with pytest.raises(EngineError, match="cannot load"):
        PiperTextToSpeech().load(broken, options)


def test_what_is_spoken_is_heard(tts: PiperTextToSpeech, whisper_folder: Path, options: EngineOptions) -> None:
    """The engines' warm-up, in small: speak, find the speech, understand it."""
    sentence = "The sun is warm and the sky is blue."
    tts.start(1, sentence)
    spoken = np.concatenate(speak(tts)[1]).astype(np.float32) / 32_768
    ticks = np.arange(0, len(spoken) - 1, tts.sample_rate / SAMPLE_RATE)
    heard = np.interp(ticks, np.arange(len(spoken)), spoken).astype(np.float32)

    vad = SileroVoiceActivity()
    vad.load(options)
    windows = heard[: len(heard) // VAD_WINDOW * VAD_WINDOW].reshape(-1, VAD_WINDOW)
    speech = [vad.probabilities([0], window[None])[0] > 0.5 for window in windows]
    assert np.mean(speech) > 0.5

    stt = WhisperSpeechToText()
    stt.load(whisper_folder, options)
    (result,) = stt.transcribe([Utterance(heard, "en")])
    assert isinstance(result, Transcription)
    # The voice never says a sentence in the same way twice, and some ways are misheard by a word or two.
    assert word_errors({"it": sentence}, {"it": result.text}) <= 2
