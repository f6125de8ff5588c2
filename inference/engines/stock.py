"""The stock way behind the same interfaces: each library as its README shows it, one request at a time.

faster-whisper's ``transcribe``, llama-cpp-python's ``create_chat_completion`` and Piper's ``synthesize``. This is what
``host loadtest --baseline`` compares with: the pipeline, the processes and the voice activity detection are ours,
nothing is batched, trimmed, shared, or kept from one request to the next. A request that has begun is served to its
end before another of its kind begins; what the stock libraries cannot do (drafts, decoding a prompt ahead of time) is
not asked of them.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import (
    EngineError,
    EngineOptions,
    GenerationFailed,
    Message,
    PromptTooLongError,
    Sampling,
    SpeechFailed,
    SpeechOut,
    SttStep,
    TokensOut,
    TranscriptFailed,
    Transcription,
    TranscriptOut,
    Utterance,
    check_sampling,
    transcribe_in_steps,
)

_MESSAGE_TOKENS = 8
"""What a chat template puts around a message, at most."""


class StockSpeechToText:
    """``SpeechToTextEngine``: ``WhisperModel.transcribe`` with its defaults (beam of five, windows of 30 s)."""

    max_encode = 1
    max_batch = 1

    def __init__(self) -> None:
        self._model: Any = None
        self._waiting: dict[int, Utterance] = {}

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the model in folder ``model``: int8 on a CPU, float16 on a GPU. Raises ``EngineError``."""
        try:
            from faster_whisper import WhisperModel

            self._model = WhisperModel(
                str(model),
                device=options.device,
                compute_type="float16" if options.device == "cuda" else "int8",
                cpu_threads=options.threads,
                local_files_only=True,
            )
        except (ImportError, OSError, RuntimeError, ValueError) as exc:
            raise EngineError(f"stock speech to text: cannot load {model}: {exc}") from exc

    def start(self, request: int, utterance: Utterance) -> None:
        """Take an utterance. Raises ``EngineError`` for an id in use, audio that is none, and drafts."""
        if request in self._waiting:
            raise EngineError(f"stock speech to text: request {request} is already running")
        if utterance.draft:
            raise EngineError("stock speech to text: no drafts")
        audio = utterance.audio
        if audio.ndim != 1 or audio.dtype != np.float32 or not audio.size or not np.isfinite(audio).all():
            raise EngineError(f"stock speech to text: bad audio: {audio.dtype} of shape {audio.shape}")
        self._waiting[request] = utterance

    def next_step(self, request: int) -> SttStep:
        """All of it in one."""
        if request not in self._waiting:
            raise EngineError(f"stock speech to text: no request {request}")
        return "decode"

    def step(self, requests: Sequence[int]) -> list[TranscriptOut | TranscriptFailed]:
        """Transcribe the first of ``requests``."""
        request = next((request for request in requests if request in self._waiting), None)
        if request is None:
            return []
        utterance = self._waiting.pop(request)
        try:
            segments, info = self._model.transcribe(utterance.audio, language=utterance.language or None)
            found = list(segments)
        except (RuntimeError, ValueError) as exc:
            return [TranscriptFailed(request, EngineError(f"stock speech to text: {exc}"))]
        text = " ".join(segment.text.strip() for segment in found)
        logprob = float(np.mean([segment.avg_logprob for segment in found])) if found else -1.0
        no_speech = float(max((segment.no_speech_prob for segment in found), default=1.0))
        return [TranscriptOut(request, Transcription(text, info.language, logprob, no_speech))]

    def cancel(self, request: int) -> None:
        """Drop an utterance that has not begun. Unknown ids are ignored."""
        self._waiting.pop(request, None)

    def running(self) -> frozenset[int]:
        """Request ids that still need a step."""
        return frozenset(self._waiting)

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcription | EngineError]:
        """At most one utterance."""
        return transcribe_in_steps(self, utterances)

    def close(self) -> None:
        """Free the model."""
        self._model = None
        self._waiting.clear()


@dataclass(slots=True)
class _Generation:
    """``made``: what was generated and nobody has asked for yet."""

    slot: int
    messages: Sequence[Message]
    sampling: Sampling
    stream: Iterator[Any] | None = None
    tokens: int = 0
    ended: bool = False
    made: deque[TokensOut | GenerationFailed] = field(default_factory=deque)


class StockLanguageModel:
    """``LanguageModelEngine``: one ``Llama`` for all rooms, ``create_chat_completion``, streaming."""

    def __init__(self) -> None:
        self._llama: Any = None
        self._context_tokens = 0
        self._generations: dict[int, _Generation] = {}

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the GGUF file ``model`` with one context of ``context_tokens``. Raises ``EngineError``."""
        try:
            from llama_cpp import Llama

            self._llama = Llama(
                str(model),
                n_ctx=options.context_tokens,
                n_threads=options.threads,
                n_threads_batch=options.threads,
                n_gpu_layers=-1 if options.device == "cuda" else 0,
                verbose=False,
            )
        except (ImportError, OSError, RuntimeError, ValueError) as exc:
            raise EngineError(f"stock language model: cannot load {model}: {exc}") from exc
        self._context_tokens = options.context_tokens

    def start(
        self,
        request: int,
        slot: int,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        end_of_turn: bool = False,  # noqa: ARG002 (never known)
    ) -> None:
        """Queue a generation. Raises ``EngineError`` for an id in use and for a prompt that cannot fit."""
        check_sampling(sampling)
        if request in self._generations:
            raise EngineError(f"stock language model: request {request} is already running")
        # Eight bytes a token and more are no text; what is longer in any case need not be counted.
        size = sum(len(message.content.encode()) for message in messages)
        if size <= 8 * self._context_tokens:
            size = sum(
                _MESSAGE_TOKENS + len(self._llama.tokenize(message.content.encode(), add_bos=False))
                for message in messages
            )
        if size + sampling.max_tokens > self._context_tokens:
            raise PromptTooLongError(
                f"stock language model: {size} tokens, and {sampling.max_tokens} to come; {self._context_tokens} fit"
            )
        self._generations[request] = _Generation(slot, messages, sampling)

    def step(self, urgent: frozenset[int] | None = None) -> list[TokensOut | GenerationFailed]:
        """One token of the generation that has begun, or the first of the next; none is begun before one has ended.

        It goes on also while others are asked for, who wait for it then; what it makes meanwhile is given when it is
        asked for.
        """
        wanted = [request for request in self._generations if urgent is None or request in urgent]
        if given := [out for request in wanted for out in self._take(request)]:
            return given
        began = (r for r, one in self._generations.items() if one.stream is not None and not one.ended)
        request = next(began, next(iter(wanted), None))
        if request is None:
            return []
        self._advance(request, self._generations[request])
        return list(self._take(request)) if request in wanted else []

    def _take(self, request: int) -> Iterator[TokensOut | GenerationFailed]:
        """What is at hand of one generation, one step of it."""
        generation = self._generations[request]
        if generation.made:
            yield generation.made.popleft()
            if generation.ended and not generation.made:
                del self._generations[request]

    def _advance(self, request: int, generation: _Generation) -> None:
        if generation.sampling.max_tokens == 0:
            generation.ended = True
            generation.made.append(TokensOut(request, "", "length"))
            return
        try:
            if generation.stream is None:
                generation.stream = self._begin(generation)
            choice = next(generation.stream)["choices"][0]
        except (RuntimeError, ValueError, StopIteration) as exc:
            generation.ended = True
            generation.made.append(GenerationFailed(request, EngineError(f"stock language model: {exc!r}")))
            return
        generation.tokens += 1
        finish = choice.get("finish_reason")
        generation.ended = finish is not None
        generation.made.append(
            TokensOut(
                request,
                choice["delta"].get("content") or "",
                None if finish is None else "length" if finish == "length" else "stop",
                completion_tokens=generation.tokens,
            )
        )

    def _begin(self, generation: _Generation) -> Iterator[Any]:
        from llama_cpp import LlamaGrammar

        sampling = generation.sampling
        grammar = None
        if sampling.grammar:
            grammar = LlamaGrammar.from_string(sampling.grammar, verbose=False)
        elif sampling.json_schema:
            grammar = LlamaGrammar.from_json_schema(json.dumps(json.loads(sampling.json_schema)), verbose=False)
        stream: Iterator[Any] = self._llama.create_chat_completion(
            [{"role": message.role, "content": message.content} for message in generation.messages],
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repeat_penalty=sampling.repeat_penalty,
            seed=sampling.seed if sampling.seed >= 0 else None,
            stop=list(sampling.stop),
            grammar=grammar,
            stream=True,
        )
        return stream

    def cancel(self, request: int) -> None:
        """Stop a generation. Unknown ids are ignored."""
        self._generations.pop(request, None)

    def release(self, slot: int) -> None:
        """The room is gone."""
        for request in [request for request, one in self._generations.items() if one.slot == slot]:
            self.cancel(request)

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""
        return frozenset(self._generations)

    def close(self) -> None:
        """Free model and context."""
        self._generations.clear()
        if self._llama is not None:
            self._llama.close()
            self._llama = None


@dataclass(slots=True)
class _Phrase:
    """``made``: what was spoken and nobody has asked for yet."""

    text: str
    speed: float
    volume: float
    chunks: Iterator[Any] | None = None
    ended: bool = False
    made: deque[SpeechOut | SpeechFailed] = field(default_factory=deque)


class StockTextToSpeech:
    """``TextToSpeechEngine``: ``PiperVoice.synthesize``, a block of audio a sentence."""

    sample_rate = 0

    def __init__(self) -> None:
        self._voice: Any = None
        self._phrases: dict[int, _Phrase] = {}

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the voice. Raises ``EngineError``."""
        try:
            from piper import PiperVoice

            self._voice = PiperVoice.load(str(model), use_cuda=options.device == "cuda")
        except (ImportError, OSError, RuntimeError, ValueError) as exc:
            raise EngineError(f"stock voice: cannot load {model}: {exc}") from exc
        self.sample_rate = int(self._voice.config.sample_rate)

    def start(self, request: int, text: str, speed: float = 1.0, volume: float = 1.0, speaker: int = -1) -> None:
        """Queue a phrase. Raises ``EngineError`` for an id in use, and for a speaker."""
        if request in self._phrases:
            raise EngineError(f"stock voice: request {request} is already running")
        if speaker != -1:
            raise EngineError(f"stock voice: speaker is {speaker}, allowed: -1, the voice's own")
        self._phrases[request] = _Phrase(text, speed, volume)

    def step(self, requests: Sequence[int]) -> list[SpeechOut | SpeechFailed]:
        """The next sentence of the phrase that has begun, or of the first of ``requests``.

        It goes on also while others are asked for, as a generation does.
        """
        wanted = [request for request in requests if request in self._phrases]
        if given := [out for request in wanted for out in self._take(request)]:
            return given
        began = (r for r, one in self._phrases.items() if one.chunks is not None and not one.ended)
        request = next(began, next(iter(wanted), None))
        if request is None:
            return []
        self._advance(request, self._phrases[request])
        return list(self._take(request)) if request in wanted else []

    def _take(self, request: int) -> Iterator[SpeechOut | SpeechFailed]:
        """What is at hand of one phrase, one step of it."""
        phrase = self._phrases[request]
        if phrase.made:
            yield phrase.made.popleft()
            if phrase.ended and not phrase.made:
                del self._phrases[request]

    def _advance(self, request: int, phrase: _Phrase) -> None:
        try:
            if phrase.chunks is None:
                phrase.chunks = self._synthesize(phrase)
            chunk = next(phrase.chunks, None)
        except (RuntimeError, ValueError) as exc:
            phrase.ended = True
            phrase.made.append(SpeechFailed(request, EngineError(f"stock voice: {exc}")))
            return
        phrase.ended = chunk is None
        audio: NDArray[np.int16] = np.zeros(0, np.int16) if chunk is None else chunk.audio_int16_array
        phrase.made.append(SpeechOut(request, audio, last=chunk is None))

    def _synthesize(self, phrase: _Phrase) -> Iterator[Any]:
        from piper import SynthesisConfig

        config = SynthesisConfig(length_scale=1 / phrase.speed, volume=phrase.volume)
        chunks: Iterator[Any] = iter(self._voice.synthesize(phrase.text, config))
        return chunks

    def cancel(self, request: int) -> None:
        """Drop a phrase. Unknown ids are ignored."""
        self._phrases.pop(request, None)

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""
        return frozenset(self._phrases)

    def close(self) -> None:
        """Free the voice."""
        self._voice = None
        self._phrases.clear()
