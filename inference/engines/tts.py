"""Piper voices on onnxruntime: phrases in, blocks of int16 audio out.

A phrase is turned into phonemes when it arrives and cut into sentences as Piper does (and very long
sentences at their words), because one synthesis is one quantum that nothing can interrupt. A step
speaks the next sentence of every phrase it is given.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import Audio, EngineError, EngineOptions, SpeechFailed, SpeechOut

LONGEST_SENTENCE: Final = 240
"""Phonemes in one synthesis: about 16 s of speech. Longer sentences are cut between words."""

TARGET_PEAK: Final = 0.8
"""Peak of the calibration sentence after the voice's gain; the rest is headroom for louder ones."""

SPEED_RANGE: Final = (0.25, 4.0)
VOLUME_RANGE: Final = (0.0, 4.0)

_CALIBRATION: Final = "Hello there, this is how loud I speak."

_log = logging.getLogger("inference.tts")


class PiperTextToSpeech:
    """``TextToSpeechEngine`` on a Piper voice."""

    def __init__(self) -> None:
        self.sample_rate = 0
        self._voice: Any = None
        self._synthesis_config: Any = None
        self._gain = 1.0
        self._phrases: dict[int, _Phrase] = {}

    def __repr__(self) -> str:
        return f"PiperTextToSpeech(sample_rate={self.sample_rate}, running={len(self._phrases)})"

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the voice ``model`` (.onnx) with its settings beside it (.onnx.json), and measure its loudness.

        Raises ``EngineError`` when packages or files are missing or unusable.
        """
        settings = model.with_name(model.name + ".json")
        for path in (model, settings):
            if not path.is_file():
                raise EngineError(f"text to speech: no such file: {path}")
        try:
            import onnxruntime
            import piper
        except (ImportError, OSError) as exc:
            raise EngineError(f"text to speech: cannot load piper: {exc}") from exc
        onnxruntime.disable_telemetry_events()
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        session_options.inter_op_num_threads = 1
        # Idle worker threads that spin take the cores from the other engines.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if options.device == "cuda":
            if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                # An exhaustive search for the best convolution takes seconds for every new length.
                providers.insert(0, ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}))
            else:
                _log.warning("this onnxruntime has no CUDA provider; speech is made on the CPU")
        try:
            voice = piper.PiperVoice.load(model)
            voice.session = onnxruntime.InferenceSession(str(model), session_options, providers=providers)
        except Exception as exc:  # onnxruntime's errors have no base class of their own
            raise EngineError(f"text to speech: cannot load {model}: {exc}") from exc
        if voice.config.phoneme_type not in (piper.PhonemeType.ESPEAK, piper.PhonemeType.TEXT):
            raise EngineError(
                f"text to speech: {model} needs {voice.config.phoneme_type.value} phonemes, allowed: espeak, text"
            )
        self._voice = voice
        self._synthesis_config = piper.SynthesisConfig
        self.sample_rate = int(voice.config.sample_rate)
        self._phrases.clear()
        self._gain = 1.0
        sentence = self._sentences(_CALIBRATION)[0]
        # One gain for the whole voice. Piper scales every sentence to full level instead, which needs
        # the whole sentence first and makes a whispered "yes" as loud as a shout.
        peak = float(np.abs(self._synthesize(sentence, speed=1.0, noise=0.0)).max())
        self._gain = TARGET_PEAK / max(peak, 0.05)

    def start(self, request: int, text: str, speed: float = 1.0, volume: float = 1.0) -> None:
        """Queue a phrase; its phonemes are made here. ``volume`` is a factor on the samples.

        Text with nothing to say (punctuation, emoji, control characters) yields one empty last block.
        Raises ``EngineError`` for an id in use and for a speed or volume outside ``SPEED_RANGE`` and
        ``VOLUME_RANGE``.
        """
        if self._voice is None:
            raise EngineError("text to speech: not loaded")
        if request in self._phrases:
            raise EngineError(f"text to speech: request {request} is already running")
        for name, value, (low, high) in (("speed", speed, SPEED_RANGE), ("volume", volume, VOLUME_RANGE)):
            if not low <= value <= high:
                raise EngineError(f"text to speech: {name} is {value}, allowed: {low} to {high}")
        self._phrases[request] = _Phrase(deque(self._sentences(text)), speed, volume)

    def step(self, requests: Sequence[int]) -> list[SpeechOut | SpeechFailed]:
        """Speak the next sentence of each of ``requests``; unknown ids (cancelled meanwhile) give nothing."""
        out: list[SpeechOut | SpeechFailed] = []
        for request in requests:
            phrase = self._phrases.get(request)
            if phrase is None:
                continue
            try:
                audio = self._next_block(phrase)
            except EngineError as exc:
                del self._phrases[request]
                out.append(SpeechFailed(request, exc))
                continue
            last = not phrase.sentences
            if last:
                del self._phrases[request]
            out.append(SpeechOut(request, audio, last))
        return out

    def cancel(self, request: int) -> None:
        """Drop a phrase between two blocks. Unknown ids are ignored."""
        self._phrases.pop(request, None)

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""
        return frozenset(self._phrases)

    def close(self) -> None:
        """Free the voice."""
        self._voice = None
        self._phrases.clear()

    # --- one phrase ---------------------------------------------------------------------------

    def _sentences(self, text: str) -> list[list[int]]:
        """The phoneme ids of each sentence of ``text``."""
        plain = speakable(text)
        if not plain:
            return []
        try:
            sentences = self._voice.phonemize(plain)
            return [
                self._voice.phonemes_to_ids(part)
                for phonemes in sentences
                for part in split_sentence(phonemes)
                if any(char.isalnum() for char in "".join(part))
            ]
        except (RuntimeError, ValueError, LookupError) as exc:
            raise EngineError(f"text to speech: no phonemes for {text!r}: {exc}") from exc

    def _next_block(self, phrase: _Phrase) -> NDArray[np.int16]:
        if not phrase.sentences:
            return np.zeros(0, np.int16)
        audio = self._synthesize(phrase.sentences.popleft(), phrase.speed)
        level = self._gain * phrase.volume * 32767.0
        block: NDArray[np.int16] = np.clip(audio * level, -32767.0, 32767.0).astype(np.int16)
        return block

    def _synthesize(self, ids: list[int], speed: float, noise: float | None = None) -> Audio:
        """Float32 samples of one sentence, at the voice's own level. ``noise`` 0 makes it repeatable."""
        config = self._synthesis_config(
            length_scale=self._voice.config.length_scale / speed, noise_scale=noise, noise_w_scale=noise
        )
        try:
            audio: Audio = np.asarray(self._voice.phoneme_ids_to_audio(ids, config), np.float32).reshape(-1)
        except Exception as exc:  # onnxruntime's errors have no base class of their own
            raise EngineError(f"text to speech: synthesis of {len(ids)} phonemes failed: {exc}") from exc
        return audio


@dataclass(slots=True)
class _Phrase:
    sentences: deque[list[int]]
    speed: float
    volume: float


def speakable(text: str) -> str:
    """``text`` without what a voice cannot or should not say; "" when no letter or digit is left.

    Control characters and unpaired surrogates would make espeak fail, emoji would be read out by
    name, and ``[[`` would switch Piper to raw phonemes.
    """
    kept = []
    for char in text:
        category = unicodedata.category(char)
        if category in ("Cc", "Zl", "Zp"):
            kept.append(" ")
        elif category in ("Cs", "Co", "Cn", "Me") or (category == "Cf" and char != "\u200c"):
            continue  # U+200C (zero width non-joiner) is spelling in Persian
        elif (category == "So" and char >= "\u2190") or char == "\ufe0f" or "\U0001f3fb" <= char <= "\U0001f3ff":
            kept.append(" ")  # pictures; signs such as the degree sign come earlier in Unicode
        else:
            kept.append(char)
    plain = " ".join("".join(kept).replace("[[", "[ [").split())
    return plain if any(char.isalnum() for char in plain) else ""


def split_sentence(phonemes: Sequence[str], longest: int = LONGEST_SENTENCE) -> list[list[str]]:
    """Cut ``phonemes`` into parts of at most ``longest``, after a comma where there is one, else between words."""
    parts = []
    rest = list(phonemes)
    while len(rest) > longest:
        window = rest[:longest]
        cut = 0
        for marks in ((",", ";", ":"), (" ",)):
            cut = max((at + 1 for at, phoneme in enumerate(window) if phoneme in marks), default=0)
            if cut > longest // 3:
                break
        cut = cut or longest
        parts.append(rest[:cut])
        rest = rest[cut:]
    return [*parts, rest]
