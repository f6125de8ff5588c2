"""Whisper through CTranslate2: utterances of several rooms in one batch, in a window that fits them.

Whisper was trained on windows of 30 s and is usually run in them, however short the speech. The
encoder accepts shorter ones, which saves most of its work. Asked for text alone (``<|notimestamps|>``)
it then does not find the end: below about 15 s a sentence comes out twice or loops. Asked for
timestamps it does, down to windows of 5 s, because it must say when each sentence was spoken. The
timestamps also show what is wrong: a sentence that begins after the audio has ended was made up, and
loud audio after the last one was left out and is transcribed on its own.

The search is greedy; a text Whisper is unsure of is searched again with a beam, and one that looks
wrong is made again in the full window (where faster-whisper would draw at random, with rising
temperature).

On a CPU utterances are encoded one by one, because the encoder gains nothing from a batch there, and
decoded together, because every step of the decoder reads all of its weights.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import (
    SAMPLE_RATE,
    Audio,
    EngineError,
    EngineOptions,
    Transcription,
    Utterance,
)

WINDOW_FLOOR_S: Final = 7.5
"""Shortest window. On 220 clips, clean, noisy, fast, quiet and of a telephone's bandwidth, windows from 5 s to 10 s
made as many errors as 30 s did (base: 3.7 % against 3.8 %, greedy)."""

WINDOW_STEP_S: Final = 2.5
"""Windows are rounded up to a multiple of this, so that utterances of similar length share a batch."""

FULL_WINDOW_S: Final = 30.0
"""The window Whisper was trained on, and the longest its positions allow."""

SLACK_S: Final = 2.0
"""Silence after the speech. Without it the model does not find the end."""

LONGEST_PIECE_S: Final = FULL_WINDOW_S - SLACK_S
"""Longer utterances are cut at their quietest places."""

RETRY_BEAM: Final = 5
"""Width of the search after a greedy one whose text is unsure or looks wrong."""

UNSURE_LOGPROB: Final = -0.6
"""Greedy texts below this are searched again. Searching every text with a beam would save hardly one error more."""

LEFT_OUT_S: Final = 1.2
"""Loud audio after the last timestamp that is more than a timestamp set too early (up to 1 s in noise)."""

LATEST_START_S: Final = 1.0
"""Whisper's first timestamp is at most this; also OpenAI's ``max_initial_timestamp``."""

SLOWEST_TOKENS_PER_S: Final = 2.0
"""Fewer tokens than this in a second of loud audio (people: 3 to 5) mean that a sentence may have been skipped."""

TOKENS_PER_SECOND: Final = 8.0
"""About twice what people speak: a text that wants more is looping, or in a script that is spelled in bytes."""

SPARE_TOKENS: Final = 16

MAX_TOKENS: Final = 224
"""Half of Whisper's text context: its own limit for one window."""

SILENCE_LOGPROB: Final = -0.6
"""Texts below this, if Whisper doubts that anyone spoke, were made up of noise. (OpenAI's -1.0 is for text without
timestamps, which are easy to guess and raise the mean. 8 of 60 clips of noise came out as "Thank you." with it.)"""

# The thresholds below are those of OpenAI's transcribe() and of faster-whisper.
NO_SPEECH_THRESHOLD: Final = 0.6
LOGPROB_THRESHOLD: Final = -1.0
COMPRESSION_THRESHOLD: Final = 2.4

SHORTEST_SPEECH_S: Final = 0.1
"""Shorter audio holds no word; Whisper would still answer with one of its favourite sentences."""

SILENCE_PEAK: Final = 1e-3
"""Audio that never exceeds this (-60 dB) is silence; Whisper would still answer "you"."""

_HOP: Final = 160  # samples in one mel frame: 10 ms
_MEL_FRAMES_PER_S: Final = SAMPLE_RATE // _HOP
_TIMESTAMP_S: Final = 0.02  # between two of Whisper's timestamp tokens


class WhisperSpeechToText:
    """``SpeechToTextEngine`` on a CTranslate2 Whisper model.

    ``max_batch``: utterances in one call. Unless given, 16 on a GPU and 4 on a CPU: together they take
    half of the time that they would take one by one, and eight would hold up everything else for long.
    """

    def __init__(self, max_batch: int | None = None) -> None:
        self.max_batch = max_batch or 1
        self._chosen_batch = max_batch
        self._ct2: Any = None
        self._whisper: Any = None  # ctranslate2.models.Whisper
        self._mel: Any = None  # log-mel of float32 audio
        self._on_gpu = False
        self._tokenizers: dict[str, Any] = {}
        self._make_tokenizer: Any = None
        self._suppressed: list[int] = []
        self._languages: frozenset[str] = frozenset()
        self._multilingual = False

    def __repr__(self) -> str:
        return f"WhisperSpeechToText(loaded={self._whisper is not None}, max_batch={self.max_batch})"

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the model in folder ``model`` (CTranslate2 format): int8 on a CPU, float16 on a GPU.

        Raises ``EngineError`` when packages, files or device are missing or unusable.
        """
        for name in ("model.bin", "config.json", "tokenizer.json"):
            # faster-whisper would go and ask a hub for what is missing.
            if not (model / name).is_file():
                raise EngineError(f"speech to text: no such file: {model / name}")
        on_gpu = options.device == "cuda"
        try:
            import ctranslate2
            import faster_whisper
            from faster_whisper.feature_extractor import FeatureExtractor
            from faster_whisper.tokenizer import Tokenizer
            from faster_whisper.transcribe import get_suppressed_tokens

            whisper = faster_whisper.WhisperModel(
                str(model),
                device=options.device,
                compute_type="float16" if on_gpu else "int8",
                cpu_threads=options.threads,
                num_workers=1,
                local_files_only=True,
            )
            mel = whisper.feature_extractor
            if len(mel.mel_filters) != whisper.model.n_mels:  # a folder without preprocessor_config.json
                mel = FeatureExtractor(feature_size=whisper.model.n_mels)
        except (ImportError, OSError, RuntimeError, ValueError) as exc:
            raise EngineError(f"speech to text: cannot load {model} on {options.device}: {exc}") from exc
        self._on_gpu = on_gpu
        self._ct2 = ctranslate2
        self._whisper = whisper.model
        self._mel = mel
        self._multilingual = bool(whisper.model.is_multilingual)
        self._languages = frozenset(whisper.supported_languages)
        self._tokenizers = {}
        self._make_tokenizer = lambda language: Tokenizer(
            whisper.hf_tokenizer, self._multilingual, task="transcribe", language=language
        )
        self._suppressed = list(get_suppressed_tokens(self._tokenizer("en"), [-1]))
        self.max_batch = self._chosen_batch or (16 if on_gpu else 4)

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcription | EngineError]:
        """One result per utterance, in order: a ``Transcription``, or the ``EngineError`` of that utterance alone.

        Audio must be one-dimensional float32 at 16 kHz, finite and not empty; samples beyond [-1, 1]
        are clipped. Raises ``EngineError`` for more than ``max_batch`` utterances.
        """
        if self._whisper is None:
            raise EngineError("speech to text: not loaded")
        if len(utterances) > self.max_batch:
            raise EngineError(f"speech to text: {len(utterances)} utterances, at most {self.max_batch} in one call")
        results: list[Transcription | EngineError | None] = [None] * len(utterances)
        pieces: list[_Piece] = []
        for index, utterance in enumerate(utterances):
            problem = self._problem(utterance)
            if problem is not None:
                results[index] = EngineError(f"speech to text: {problem}")
            else:
                language = utterance.language if self._multilingual else "en"
                audio = np.clip(utterance.audio, -1.0, 1.0)
                pieces += [_Piece(index, part, language) for part in split_at_pauses(audio)]
        try:
            self._run(pieces)
        except (RuntimeError, ValueError) as exc:
            # The audio was checked, so this is the device or the model, not one of the utterances.
            failed = EngineError(f"speech to text: a batch of {len(pieces)} failed: {exc}")
            failed.__cause__ = exc
            return [failed if result is None else result for result in results]
        return [
            result if result is not None else _join([piece for piece in pieces if piece.utterance == index])
            for index, result in enumerate(results)
        ]

    def close(self) -> None:
        """Free the model."""
        self._whisper = self._mel = self._make_tokenizer = None
        self._tokenizers = {}

    # --- one batch ----------------------------------------------------------------------------

    def _run(self, pieces: list[_Piece]) -> None:
        audible = [piece for piece in pieces if piece.peak > SILENCE_PEAK and piece.seconds >= SHORTEST_SPEECH_S]
        for window, batch in self._batches(audible):
            encoded = self._encode(batch, window)
            self._detect_languages(batch, encoded)
            for piece, found in zip(batch, self._search(batch, encoded, beam=1), strict=True):
                piece.found = found
            unsure = [piece for piece in batch if piece.unsure()]
            if unsure:
                if len(unsure) < len(batch):
                    encoded = self._encode(unsure, window)
                for piece, found in zip(unsure, self._search(unsure, encoded, beam=RETRY_BEAM), strict=True):
                    if found.logprob > piece.found.logprob:
                        piece.found = found
        doubtful = [piece for piece in audible if piece.doubtful()]
        for start in range(0, len(doubtful), self.max_batch):
            self._second_look(doubtful[start : start + self.max_batch], FULL_WINDOW_S)
        rests = [rest for piece in audible if (rest := piece.left_out()) is not None]
        if rests:
            self._run(rests)

    def _second_look(self, batch: list[_Piece], window: float) -> None:
        """What looked wrong, made again in the window Whisper was trained on."""
        encoded = self._encode(batch, window)
        for piece in batch:
            piece.budget = MAX_TOKENS
        for piece, found in zip(batch, self._search(batch, encoded, beam=RETRY_BEAM), strict=True):
            if piece.skips() and len(found.tokens) < len(piece.found.tokens):
                continue
            piece.found = found
            if found.loops():
                # A loop that survives the full window is broken by force; whoever really said the
                # same four tokens again and again loses some of them.
                (piece.found,) = self._search(
                    [piece], self._encode([piece], window), beam=RETRY_BEAM, no_repeat_ngram_size=4
                )

    def _batches(self, pieces: list[_Piece]) -> Iterator[tuple[float, list[_Piece]]]:
        """Groups of at most ``max_batch`` pieces of similar length; all rows of a batch have one window."""
        ordered = sorted(pieces, key=lambda piece: piece.window_s)
        for start in range(0, len(ordered), self.max_batch):
            group = ordered[start : start + self.max_batch]
            yield group[-1].window_s, group

    def _encode(self, batch: list[_Piece], window_s: float) -> Any:
        frames = round(window_s * _MEL_FRAMES_PER_S)
        view = self._ct2.StorageView.from_array
        rows = np.stack([self._features(piece.audio, frames) for piece in batch])
        if self._on_gpu or len(batch) == 1:
            return self._whisper.encode(view(rows))
        return view(np.concatenate([np.asarray(self._whisper.encode(view(row[None]))) for row in rows]))

    def _features(self, audio: Audio, frames: int) -> NDArray[np.float32]:
        """Log-mel (mels, ``frames``) of ``audio`` followed by silence, as if it had been padded with zeros.

        Whisper's features end 8 decades (2.0 after its scaling) below their maximum, so that is what
        silence looks like; computing it costs nothing. 400 samples let the last window of the
        transform fall off the end of the speech.
        """
        mel = self._mel(audio, padding=400).astype(np.float32)[:, :frames]
        out = np.full((mel.shape[0], frames), mel.max() - 2.0, np.float32)
        out[:, : mel.shape[1]] = mel
        return out

    def _detect_languages(self, batch: list[_Piece], encoded: Any) -> None:
        if not self._multilingual or all(piece.language for piece in batch):
            return
        for piece, scores in zip(batch, self._whisper.detect_language(encoded), strict=True):
            if not piece.language:
                piece.language = scores[0][0].strip("<|>")

    def _search(self, batch: list[_Piece], encoded: Any, beam: int, no_repeat_ngram_size: int = 0) -> list[_Text]:
        tokenizers = [self._tokenizer(piece.language) for piece in batch]
        prompts = [list(tokenizer.sot_sequence) for tokenizer in tokenizers]
        budget = max(piece.budget for piece in batch)
        # CTranslate2 gives the text at most half of max_length, whatever the prompt takes.
        results = self._whisper.generate(
            encoded,
            prompts,
            beam_size=beam,
            max_length=max(2 * budget, budget + len(prompts[0])),
            no_repeat_ngram_size=no_repeat_ngram_size,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=self._suppressed,
            max_initial_timestamp_index=round(LATEST_START_S / _TIMESTAMP_S),
        )
        return [
            _text(result, tokenizer, piece.seconds)
            for piece, tokenizer, result in zip(batch, tokenizers, results, strict=True)
        ]

    def _tokenizer(self, language: str) -> Any:
        tokenizer = self._tokenizers.get(language)
        if tokenizer is None:
            tokenizer = self._tokenizers[language] = self._make_tokenizer(language)
        return tokenizer

    def _problem(self, utterance: Utterance) -> str | None:
        audio = utterance.audio
        if audio.dtype != np.float32 or audio.ndim != 1:
            return f"audio is {audio.dtype} of shape {audio.shape}, expected float32 of shape (samples,)"
        if audio.size == 0:
            return "audio is empty"
        if not np.isfinite(audio).all():
            return "audio has samples that are not finite numbers"
        if utterance.language and utterance.language not in self._languages:
            return f"language is {utterance.language!r}, which this model does not know"
        return None


@dataclass(frozen=True, slots=True)
class _Text:
    """What one search found. ``logprob``: mean over the tokens; ``no_speech``: probability that nobody spoke.

    ``tokens``: of the words, without timestamps; ``length``: with them. ``end_s``: where the last sentence
    ends, in seconds of the piece, or None if Whisper did not say.
    """

    tokens: list[int]
    text: str
    logprob: float
    no_speech: float
    length: int = 0
    end_s: float | None = None

    def is_silence(self) -> bool:
        """Whisper itself doubts that anyone spoke, and is unsure of the words."""
        return self.no_speech > NO_SPEECH_THRESHOLD and self.logprob < SILENCE_LOGPROB

    def loops(self) -> bool:
        """The text repeats itself far beyond what people say."""
        data = self.text.encode()
        return bool(data) and (
            len(data) / len(zlib.compress(data)) > COMPRESSION_THRESHOLD or ends_in_loop(self.tokens)
        )


_NOTHING: Final = _Text([], "", logprob=0.0, no_speech=1.0)


@dataclass(slots=True)
class _Piece:
    """A stretch of an utterance that fits a window, and the best that was found in it."""

    utterance: int
    audio: Audio
    language: str
    peak: float = field(init=False)
    budget: int = field(init=False)
    found: _Text = _NOTHING
    rest: _Piece | None = None
    """What follows in the audio and was transcribed on its own."""

    def __post_init__(self) -> None:
        self.peak = float(np.abs(self.audio).max())
        self.budget = min(MAX_TOKENS, round(self.seconds * TOKENS_PER_SECOND) + SPARE_TOKENS)

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE

    @property
    def window_s(self) -> float:
        steps = -(-(self.seconds + SLACK_S) // WINDOW_STEP_S)
        return min(FULL_WINDOW_S, max(WINDOW_FLOOR_S, steps * WINDOW_STEP_S))

    def left_out(self) -> _Piece | None:
        """The end of the audio, if something was said there that is not in the text."""
        if not self.found.text or self.found.end_s is None:
            return None
        rest = self.audio[round(self.found.end_s * SAMPLE_RATE) :]
        if len(rest) == len(self.audio) or loud_seconds(rest, loudness(self.audio)) < LEFT_OUT_S:
            return None
        self.rest = _Piece(self.utterance, rest, self.language)
        return self.rest

    def parts(self) -> Iterator[_Piece]:
        """The piece and what was transcribed after it."""
        part: _Piece | None = self
        while part is not None:
            yield part
            part = part.rest

    def unsure(self) -> bool:
        """Whether a wider search may find something better."""
        return self.found.logprob < UNSURE_LOGPROB and not self.found.is_silence()

    def skips(self) -> bool:
        """Whether the text is too short for so much loud audio."""
        loud = loud_seconds(self.audio, loudness(self.audio))
        return loud > 4.0 and len(self.found.tokens) < SLOWEST_TOKENS_PER_S * loud

    def doubtful(self) -> bool:
        """Whether the text is worth a second, slower look."""
        found = self.found
        if found.is_silence():
            return False
        return (
            found.length >= self.budget
            or found.logprob < LOGPROB_THRESHOLD
            or (not found.text and found.no_speech < NO_SPEECH_THRESHOLD)
            or is_repetition(found.text)
            or found.loops()
            or self.skips()
        )


def _join(pieces: list[_Piece]) -> Transcription:
    pieces = [part for piece in pieces for part in piece.parts()]
    heard = [piece for piece in pieces if piece.found.text and not piece.found.is_silence()]
    best = heard or pieces
    tokens = sum(len(piece.found.tokens) for piece in heard)
    total = sum(piece.found.logprob * len(piece.found.tokens) for piece in heard)
    return Transcription(
        text=" ".join(piece.found.text for piece in heard),
        language=best[0].language,
        avg_logprob=total / tokens if tokens else best[0].found.logprob,
        no_speech_prob=min(piece.found.no_speech for piece in best),
    )


def _text(result: Any, tokenizer: Any, seconds: float) -> _Text:
    """What one of CTranslate2's results says about ``seconds`` of audio."""
    tokens = list(result.sequences_ids[0])
    words, end_s = spoken(tokens, tokenizer.timestamp_begin, seconds)
    return _Text(
        words,
        tokenizer.decode(words).strip(),
        # The score is a mean over the tokens; the end token counts as one more.
        logprob=float(result.scores[0]) * len(tokens) / (len(tokens) + 1),
        no_speech=float(result.no_speech_prob),
        length=len(tokens),
        end_s=end_s,
    )


def spoken(tokens: Sequence[int], timestamp_begin: int, seconds: float) -> tuple[list[int], float | None]:
    """The words of the sentences that begin within ``seconds``, and when the last of them ends (None: not said).

    ``tokens`` is Whisper's ``<|0.00|> words <|2.40|><|2.40|> words <|3.10|>``, with ids from ``timestamp_begin``.
    """
    words: list[int] = []
    sentence: list[int] = []
    start_s, end_s = 0.0, None
    for token in tokens:
        if token < timestamp_begin:
            sentence.append(token)
            continue
        at_s = (token - timestamp_begin) * _TIMESTAMP_S
        if sentence:
            if start_s < seconds:
                words += sentence
                end_s = at_s
            sentence = []
        start_s = at_s
    if sentence and start_s < seconds:
        words += sentence
        end_s = None
    return words, end_s


def loudness(audio: Audio) -> float:
    """Root mean square of the loud parts of ``audio`` (16 kHz), looked at in steps of 0.1 s."""
    rms = _block_rms(audio)
    return float(np.quantile(rms, 0.95)) if len(rms) else 0.0


def loud_seconds(audio: Audio, reference: float) -> float:
    """Seconds of ``audio`` (16 kHz) within 20 dB of ``reference``, in steps of 0.1 s."""
    return float(np.count_nonzero(_block_rms(audio) > 0.1 * reference)) / 10


def _block_rms(audio: Audio) -> Audio:
    block = SAMPLE_RATE // 10
    blocks = audio[: len(audio) // block * block].reshape(-1, block)
    result: Audio = np.sqrt(np.square(blocks).mean(axis=1))
    return result


def is_repetition(text: str) -> bool:
    """Whether ``text`` is one passage said two or more times, whatever its case and punctuation."""
    letters = "".join(char for char in text.casefold() if char.isalnum())
    return re.fullmatch(r"(.{2,}?)\1+", letters) is not None


def ends_in_loop(tokens: Sequence[int], longest: int = 8, times: int = 4) -> bool:
    """Whether ``tokens`` end in at most ``longest`` tokens said ``times`` times in a row."""
    for period in range(1, longest + 1):
        tail = list(tokens[-period * times :])
        if len(tail) == period * times and tail == tail[:period] * times:
            return True
    return False


def split_at_pauses(audio: Audio, longest_s: float = LONGEST_PIECE_S) -> list[Audio]:
    """Cut ``audio`` (16 kHz) into pieces of at most ``longest_s``, at the quietest 0.1 s of each one's second half."""
    block = SAMPLE_RATE // 10
    longest = int(longest_s * SAMPLE_RATE)
    pieces = []
    while len(audio) > longest:
        second_half = audio[longest // 2 : longest]
        blocks = second_half[: len(second_half) // block * block].reshape(-1, block)
        quietest = int(np.square(blocks).mean(axis=1).argmin())
        cut = longest // 2 + quietest * block + block // 2
        pieces.append(audio[:cut])
        audio = audio[cut:]
    pieces.append(audio)
    return pieces
