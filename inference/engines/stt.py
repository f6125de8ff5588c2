"""Whisper through CTranslate2: utterances of several rooms in one batch, in a window that fits them.

Whisper was trained on windows of 30 s and is usually run in them, however short the speech. The
encoder accepts shorter ones, which saves most of its work. Asked for text alone (``<|notimestamps|>``)
it then does not find the end: below about 15 s a sentence comes out twice or loops. Asked for
timestamps it does, down to windows of 5 s, because it must say when each sentence was spoken. The
timestamps also show what is wrong: a sentence that begins after the audio has ended was made up, and
loud audio after the last one was left out and is transcribed on its own.

A quantum is one encoder window or one search. What has to be looked at again takes further ones: which,
is decided in ``whisper_search``. On a CPU utterances are encoded one by one, because the encoder gains
nothing from a batch there, and decoded together, because every step of the decoder reads all of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import (
    SAMPLE_RATE,
    EngineError,
    EngineOptions,
    SttStep,
    TranscriptFailed,
    Transcription,
    TranscriptOut,
    Utterance,
    transcribe_in_steps,
)
from inference.engines.whisper_audio import stack_encoded
from inference.engines.whisper_features import FRAMES_PER_S, LogMel, log_mel
from inference.engines.whisper_search import TIMESTAMP_S, Piece, Search, Text, Transcribing, spoken

LONGEST_UTTERANCE_S: Final = 120.0
"""Longer audio is refused. (The host's rings hold 65 s.)"""

LATEST_START_S: Final = 1.0
"""Whisper's first timestamp is at most this; also OpenAI's ``max_initial_timestamp``."""


class WhisperSpeechToText:
    """``SpeechToTextEngine`` on a CTranslate2 Whisper model.

    ``max_batch``: utterances that are decoded together. Unless given, 16 on a GPU and 4 on a CPU: together
    they take half of the time that they would take one by one, and eight would hold up everything else
    for long. ``max_encode``: as many on a GPU, 1 on a CPU.
    """

    def __init__(self, max_batch: int | None = None) -> None:
        self.max_batch = max_batch or 1
        self.max_encode = 1
        self._chosen_batch = max_batch
        self._ct2: Any = None
        self._whisper: Any = None  # ctranslate2.models.Whisper
        self._log_mel: LogMel | None = None
        self._tokenizers: dict[str, Any] = {}
        self._make_tokenizer: Any = None
        self._suppressed: list[int] = []
        self._languages: frozenset[str] = frozenset()
        self._multilingual = False
        self._running: dict[int, Transcribing] = {}

    def __repr__(self) -> str:
        loaded = self._whisper is not None
        return f"WhisperSpeechToText(loaded={loaded}, max_batch={self.max_batch}, running={len(self._running)})"

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
            # Whatever a preprocessor_config.json says: these are the features that the model was trained on.
            features = log_mel(FeatureExtractor(feature_size=whisper.model.n_mels).mel_filters, options.device)
        except (ImportError, OSError, RuntimeError, ValueError) as exc:
            raise EngineError(f"speech to text: cannot load {model} on {options.device}: {exc}") from exc
        self._ct2 = ctranslate2
        self._whisper = whisper.model
        self._log_mel = features
        self._multilingual = bool(whisper.model.is_multilingual)
        self._languages = frozenset(whisper.supported_languages)
        self._tokenizers = {}
        self._make_tokenizer = lambda language: Tokenizer(
            whisper.hf_tokenizer, self._multilingual, task="transcribe", language=language
        )
        self._suppressed = list(get_suppressed_tokens(self._tokenizer("en"), [-1]))
        self._running.clear()
        self.max_batch = self._chosen_batch or (16 if on_gpu else 4)
        self.max_encode = self.max_batch if on_gpu else 1

    # --- requests come and go -----------------------------------------------------------------------

    def start(self, request: int, utterance: Utterance) -> None:
        """Take an utterance. Raises ``EngineError`` for an id in use, an unknown language, and audio that is not
        one-dimensional float32, finite, and at most ``LONGEST_UTTERANCE_S`` long. Samples beyond [-1, 1] are clipped.
        """
        if self._whisper is None:
            raise EngineError("speech to text: not loaded")
        if request in self._running:
            raise EngineError(f"speech to text: request {request} is already running")
        problem = self._problem(utterance)
        if problem is not None:
            raise EngineError(f"speech to text: {problem}")
        transcribing = Transcribing(request, utterance)
        if not self._multilingual:
            transcribing.language = "en"
        self._running[request] = transcribing

    def next_step(self, request: int) -> SttStep:
        """What the next quantum of ``request`` is. Raises ``EngineError`` for an unknown id."""
        if request not in self._running:
            raise EngineError(f"speech to text: no request {request}")
        return self._running[request].next_step()

    def cancel(self, request: int) -> None:
        """Drop an utterance between two steps. Unknown ids are ignored."""
        self._running.pop(request, None)

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""
        return frozenset(self._running)

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcription | EngineError]:
        """One result per utterance, in order: a ``Transcription``, or the ``EngineError`` of that utterance alone.

        Raises ``EngineError`` for more than ``max_batch`` utterances.
        """
        if self._whisper is None:
            raise EngineError("speech to text: not loaded")
        return transcribe_in_steps(self, utterances)

    def close(self) -> None:
        """Free the model."""
        self._whisper = self._log_mel = self._make_tokenizer = None
        self._tokenizers = {}
        self._running.clear()

    # --- one quantum --------------------------------------------------------------------------------

    def step(self, requests: Sequence[int]) -> list[TranscriptOut | TranscriptFailed]:
        """One quantum for as many of ``requests`` as fit into it, at least for the first; those that ended by it."""
        known = [self._running[request] for request in requests if request in self._running]
        if not known:
            return []
        kind = known[0].next_step()
        if any(one.next_step() != kind for one in known):
            raise EngineError("speech to text: requests of one step must have the same next step")
        out: list[TranscriptOut | TranscriptFailed] = []
        out += self._finished(known)  # nothing to be heard in them
        waiting = [one for one in known if one.request in self._running]
        if waiting:
            batch = self._encode_batch(waiting) if kind == "encode" else self._decode_batch(waiting)
            out += self._attempt(kind, batch)
            out += self._finished(batch)
        return out

    def _finished(self, batch: Sequence[Transcribing]) -> list[TranscriptOut]:
        ended = [one for one in batch if one.request in self._running and one.piece() is None]
        for one in ended:
            del self._running[one.request]
        return [TranscriptOut(one.request, one.result()) for one in ended]

    def _attempt(self, kind: SttStep, batch: Sequence[Transcribing]) -> list[TranscriptFailed]:
        """Encode or decode ``batch``; should that fail, each alone, so that only that one fails that cannot."""
        try:
            (self._encode if kind == "encode" else self._decode)(batch)
        except (RuntimeError, ValueError) as exc:
            if len(batch) > 1:
                return [failed for one in batch for failed in self._attempt(kind, [one])]
            error = EngineError(f"speech to text: cannot {kind}: {exc}")
            error.__cause__ = exc
            del self._running[batch[0].request]
            return [TranscriptFailed(batch[0].request, error)]
        return []

    def _encode_batch(self, waiting: Sequence[Transcribing]) -> list[Transcribing]:
        """Those that are encoded together: in windows like the first one's."""
        longest = 2 * _search(waiting[0]).window_s
        return [one for one in waiting if _search(one).window_s <= longest][: self.max_encode]

    def _decode_batch(self, waiting: Sequence[Transcribing]) -> list[Transcribing]:
        """Those that are searched together: in the same way as the first, in windows like the first one's.

        A beam takes as many rows of the batch as it is wide.
        """
        first, frames = _search(waiting[0]), _encoded(waiting[0]).shape[1]
        alike = [
            one
            for one in waiting
            if (_search(one).beam, _search(one).no_repeat) == (first.beam, first.no_repeat)
            and frames / 2 <= _encoded(one).shape[1] <= frames * 2
        ]
        return alike[: max(1, self.max_batch // first.beam)]

    def _encode(self, batch: Sequence[Transcribing]) -> None:
        pieces = [_piece(one) for one in batch]
        window_s = max(_search(one).window_s for one in batch)
        assert self._log_mel is not None
        rows = self._log_mel([piece.audio for piece in pieces], round(window_s * FRAMES_PER_S))
        encoded = np.asarray(self._whisper.encode(self._view(rows), to_cpu=True))
        for index, piece in enumerate(pieces):
            piece.encoded = encoded[index : index + 1]

    def _decode(self, batch: Sequence[Transcribing]) -> None:
        encoded = self._view(stack_encoded([_encoded(one) for one in batch]))
        if any(not one.language for one in batch):
            for one, scores in zip(batch, self._whisper.detect_language(encoded), strict=True):
                one.language = one.language or scores[0][0].strip("<|>")
        tokenizers = [self._tokenizer(one.language) for one in batch]
        prompts = [list(tokenizer.sot_sequence) for tokenizer in tokenizers]
        search = _search(batch[0])
        budget = max(_search(one).budget for one in batch)
        # CTranslate2 gives the text at most half of max_length, whatever the prompt takes.
        results = self._whisper.generate(
            encoded,
            prompts,
            beam_size=search.beam,
            max_length=max(2 * budget, budget + len(prompts[0])),
            no_repeat_ngram_size=search.no_repeat,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=self._suppressed,
            max_initial_timestamp_index=round(LATEST_START_S / TIMESTAMP_S),
        )
        texts = [
            _text(result, tokenizer, _piece(one).seconds)
            for one, tokenizer, result in zip(batch, tokenizers, results, strict=True)
        ]
        for one, text in zip(batch, texts, strict=True):
            _piece(one).learn(text)

    def _view(self, array: NDArray[np.generic]) -> Any:
        return self._ct2.StorageView.from_array(np.ascontiguousarray(array))

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
        if audio.size > LONGEST_UTTERANCE_S * SAMPLE_RATE:
            return f"audio is {audio.size / SAMPLE_RATE:.0f} s long, at most {LONGEST_UTTERANCE_S:.0f} s can be"
        if not np.isfinite(audio).all():
            return "audio has samples that are not finite numbers"
        if utterance.language and utterance.language not in self._languages:
            return f"language is {utterance.language!r}, which this model does not know"
        return None


def _piece(one: Transcribing) -> Piece:
    piece = one.piece()
    assert piece is not None
    return piece


def _search(one: Transcribing) -> Search:
    search = _piece(one).search
    assert search is not None
    return search


def _encoded(one: Transcribing) -> NDArray[np.generic]:
    encoded = _piece(one).encoded
    assert encoded is not None
    return encoded


def _text(result: Any, tokenizer: Any, seconds: float) -> Text:
    """What one of CTranslate2's results says about ``seconds`` of audio."""
    tokens = list(result.sequences_ids[0])
    words, end_s = spoken(tokens, tokenizer.timestamp_begin, seconds)
    return Text(
        words,
        tokenizer.decode(words).strip(),
        # The score is a mean over the tokens; the end token counts as one more.
        logprob=float(result.scores[0]) * len(tokens) / (len(tokens) + 1),
        no_speech=float(result.no_speech_prob),
        length=len(tokens),
        end_s=end_s,
    )
