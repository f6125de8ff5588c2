"""Piper voices: phrases in, blocks of int16 audio out.

A phrase is turned into phonemes when it arrives and cut into sentences as Piper does (and very long ones at
their words). A step works on as many phrases, the most urgent first, as fit into ``STEP_S``: it encodes a
sentence where none has begun, and decodes the next window of it. Between two steps a phrase can be cancelled,
and other engines have the device.
"""

from __future__ import annotations

import json
import unicodedata
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import Audio, EngineError, EngineOptions, SpeechFailed, SpeechOut
from inference.engines.piper_load import load_voice
from inference.engines.piper_voice import STEP_S, Order, Scales, Sentence, Voice

LONGEST_SENTENCE: Final = 240
"""Phonemes in one sentence: about 16 s of speech. Longer ones are cut between words.

The encoder sees a sentence at once; what it takes grows with the square of the length.
"""

LONG_OPENING: Final = 100
"""Phonemes, some 5 s of speech: a phrase whose first sentence is longer begins with its first clause.

The encoder sees a sentence at once, and for 10 s of speech it alone takes a fifth of what stock takes for all
of it. Where the speaker pauses anyway, the clause spoken as a sentence of its own sounds like it.
"""

SHORTEST_CLAUSE: Final = 20
"""Phonemes: about a second of speech, enough to encode what follows meanwhile."""

TARGET_PEAK: Final = 0.8
"""Peak of the calibration sentence after the voice's gain; the rest is headroom for louder ones."""

SPEED_RANGE: Final = (0.25, 4.0)
VOLUME_RANGE: Final = (0.0, 4.0)

_PAUSES: Final = (",", ";", ":")

_CALIBRATION: Final = "Hello there, this is how loud I speak."


class PiperTextToSpeech:
    """``TextToSpeechEngine`` on a Piper voice."""

    def __init__(self) -> None:
        self.sample_rate = 0
        self._piper: Any = None
        self._voice: Voice | None = None
        self._gain = 1.0
        self._speakers = 1
        self._phrases: dict[int, _Phrase] = {}

    def __repr__(self) -> str:
        return f"PiperTextToSpeech(sample_rate={self.sample_rate}, running={len(self._phrases)}, voice={self._voice!r})"

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the voice ``model`` (.onnx) with its settings beside it (.onnx.json), and measure its loudness.

        Raises ``EngineError`` when packages or files are missing or unusable.
        """
        settings = model.with_name(model.name + ".json")
        for path in (model, settings):
            if not path.is_file():
                raise EngineError(f"text to speech: no such file: {path}")
        try:
            import piper
        except (ImportError, OSError) as exc:
            raise EngineError(f"text to speech: cannot load piper: {exc}") from exc
        try:
            config = piper.PiperConfig.from_dict(json.loads(settings.read_text(encoding="utf-8")))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
            raise EngineError(f"text to speech: cannot use {settings}: {exc!r}") from exc
        if config.phoneme_type not in (piper.PhonemeType.ESPEAK, piper.PhonemeType.TEXT):
            raise EngineError(
                f"text to speech: {model} needs {config.phoneme_type.value} phonemes, allowed: espeak, text"
            )
        # The package's own class makes the phonemes; it needs no session for that.
        self._piper = piper.PiperVoice(session=None, config=config)
        self.sample_rate = int(config.sample_rate)
        self._phrases.clear()
        self._speakers = max(1, config.num_speakers)
        speaker = config.default_speaker_id if self._speakers > 1 else None
        scales = Scales(config.noise_scale, config.noise_w_scale, speaker)
        example = self._sentences(_CALIBRATION)[0]
        try:
            self._voice, spoken = load_voice(model, scales, options, example)
        except Exception as exc:  # onnxruntime's errors have no base class of their own
            raise EngineError(f"text to speech: cannot load {model}: {exc}") from exc
        # One gain for the whole voice. Piper scales every sentence to full level instead, which needs
        # the whole sentence first and makes a whispered "yes" as loud as a shout.
        self._gain = TARGET_PEAK / max(float(np.abs(spoken).max()), 0.05)

    def start(self, request: int, text: str, speed: float = 1.0, volume: float = 1.0, speaker: int = -1) -> None:
        """Queue a phrase; its phonemes are made here. ``volume`` is a factor on the samples.

        Text with nothing to say (punctuation, emoji, control characters) yields one empty last block.
        Raises ``EngineError`` for an id in use, for a speed or volume outside ``SPEED_RANGE`` and
        ``VOLUME_RANGE``, and for a speaker that the voice has not.
        """
        if self._voice is None:
            raise EngineError("text to speech: not loaded")
        if request in self._phrases:
            raise EngineError(f"text to speech: request {request} is already running")
        for name, value, (low, high) in (("speed", speed, SPEED_RANGE), ("volume", volume, VOLUME_RANGE)):
            if not low <= value <= high:
                raise EngineError(f"text to speech: {name} is {value}, allowed: {low} to {high}")
        if not -1 <= speaker < self._speakers:
            raise EngineError(
                f"text to speech: speaker is {speaker}, allowed: -1 (the voice's own) to {self._speakers - 1}"
            )
        length_scale = self._piper.config.length_scale / speed
        chosen = None if speaker == -1 else speaker
        orders = (Order(ids, length_scale, speaker=chosen) for ids in self._sentences(text))
        self._phrases[request] = _Phrase(deque(orders), volume)

    def step(self, requests: Sequence[int]) -> list[SpeechOut | SpeechFailed]:
        """The next block of as many of ``requests``, in their order, as fit into ``STEP_S``; at least of one.

        Unknown ids (cancelled meanwhile) give nothing.
        """
        voice = self._voice
        if voice is None:
            return []
        out: list[SpeechOut | SpeechFailed] = []
        batch: dict[int, _Phrase] = {}
        spent_s = 0.0
        for request in requests:
            phrase = self._phrases.get(request)
            if phrase is None or request in batch:
                continue
            if phrase.is_over():
                out.append(self._spoken(request, np.zeros(0, np.float32)))
                continue
            cost_s = voice.decode_s(phrase.sentence)
            if phrase.sentence is None:
                cost_s += voice.encode_s(phrase.waiting[0])
            if batch and spent_s + cost_s > STEP_S:
                break
            spent_s += cost_s
            batch[request] = phrase
        out += self._begin(voice, batch)
        sentences = {request: phrase.sentence for request, phrase in batch.items() if phrase.sentence is not None}
        for request, block in zip(sentences, voice.decode(list(sentences.values())), strict=True):
            out.append(self._failed(request, block) if isinstance(block, EngineError) else self._spoken(request, block))
        return out

    def cancel(self, request: int) -> None:
        """Drop a phrase between two blocks. Unknown ids are ignored."""
        self._phrases.pop(request, None)

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""
        return frozenset(self._phrases)

    def close(self) -> None:
        """Free the voice."""
        if self._voice is not None:
            self._voice.close()
        self._piper = None
        self._voice = None
        self._phrases.clear()

    # --- one phrase ---------------------------------------------------------------------------

    def _sentences(self, text: str) -> list[list[int]]:
        """The phoneme ids of each sentence of ``text``."""
        plain = speakable(text)
        if not plain:
            return []
        try:
            opening, *others = self._piper.phonemize(plain) or [[]]
            return [
                self._piper.phonemes_to_ids(part)
                for phonemes in (*split_opening(opening), *others)
                for part in split_sentence(phonemes)
                if any(char.isalnum() for char in "".join(part))
            ]
        except (RuntimeError, ValueError, LookupError) as exc:
            raise EngineError(f"text to speech: no phonemes for {text!r}: {exc}") from exc

    def _begin(self, voice: Voice, batch: Mapping[int, _Phrase]) -> list[SpeechFailed]:
        """Encode the next sentence of every phrase that has none."""
        resting = {request: phrase for request, phrase in batch.items() if phrase.sentence is None}
        orders = [phrase.waiting.popleft() for phrase in resting.values()]
        failed = []
        for (request, phrase), sentence in zip(resting.items(), voice.encode(orders), strict=True):
            if isinstance(sentence, EngineError):
                failed.append(self._failed(request, sentence))
            else:
                phrase.sentence = sentence
        return failed

    def _spoken(self, request: int, audio: Audio) -> SpeechOut:
        phrase = self._phrases[request]
        if phrase.sentence is not None and phrase.sentence.finished:
            phrase.sentence = None
        last = phrase.is_over()
        if last:
            del self._phrases[request]
        level = self._gain * phrase.volume * 32767.0
        block: NDArray[np.int16] = np.clip(audio * level, -32767.0, 32767.0).astype(np.int16)
        return SpeechOut(request, block, last)

    def _failed(self, request: int, error: EngineError) -> SpeechFailed:
        del self._phrases[request]
        return SpeechFailed(request, EngineError(f"text to speech: {error}"))


@dataclass(slots=True)
class _Phrase:
    """``waiting``: the sentences that have not begun; ``sentence``: the one that has."""

    waiting: deque[Order]
    volume: float
    sentence: Sentence | None = None

    def is_over(self) -> bool:
        return self.sentence is None and not self.waiting


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


def split_opening(phonemes: Sequence[str]) -> list[list[str]]:
    """A long first sentence as its first clause and the rest, if it has one that ends soon; else as it is."""
    if len(phonemes) > LONG_OPENING:
        for at in range(SHORTEST_CLAUSE, LONG_OPENING):
            if phonemes[at - 1] in _PAUSES:
                return [list(phonemes[:at]), list(phonemes[at:])]
    return [list(phonemes)]


def split_sentence(phonemes: Sequence[str], longest: int = LONGEST_SENTENCE) -> list[list[str]]:
    """Cut ``phonemes`` into parts of at most ``longest``, after a comma where there is one, else between words."""
    parts = []
    rest = list(phonemes)
    while len(rest) > longest:
        window = rest[:longest]
        cut = 0
        for marks in (_PAUSES, (" ",)):
            cut = max((at + 1 for at, phoneme in enumerate(window) if phoneme in marks), default=0)
            if cut > longest // 3:
                break
        cut = cut or longest
        parts.append(rest[:cut])
        rest = rest[cut:]
    return [*parts, rest]
