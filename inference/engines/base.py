"""What an engine is: one model library behind a batch interface that the runner drives.

An engine owns its model library: it imports the library inside ``load`` and nothing else in the
package imports it. Every method is called from one device lane (one thread at a time), so engines
hold no locks. Every call is one *quantum*: short work that is never interrupted; what is longer
(a generation, a phrase of speech) is cut into steps.

Errors: ``load`` and ``start`` raise ``EngineError``; a bad request inside a batch is returned in
its place as an ``EngineError``, so one poisoned request never fails its neighbours.

``close`` frees native memory; it may be called twice, and an engine that was closed can be loaded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
"""Mono PCM, float32 in [-1, 1], shape (samples,)."""

Device = Literal["cpu", "cuda"]

SAMPLE_RATE = 16_000
"""Sample rate of everything that is heard, in Hz: what Whisper and Silero are trained on."""

VAD_WINDOW = 512
"""Samples in one voice-activity window at 16 kHz (32 ms): fixed by the Silero model."""


class EngineError(Exception):
    """An engine could not load its model or could not serve one request."""


class PromptTooLongError(EngineError):
    """The prompt and its reply do not fit a room's context; the message has both numbers. The caller trims."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every engine is loaded with.

    ``threads``: size of the library's own thread team on a CPU (ignored on a GPU). ``batch_threads``: of the language
    model's when it computes several tokens at once, 0: ``threads``.
    ``max_rooms``: how many slots (rooms) the engine must be able to hold at once.
    ``context_tokens``: language-model context of one room, in tokens.
    ``resident_rooms``: contexts for which the device has memory, 0: ``max_rooms``. When they are full, the KV
    cache of the room that has been idle longest lies in host memory.
    """

    device: Device
    threads: int
    max_rooms: int
    context_tokens: int = 2048
    resident_rooms: int = 0
    batch_threads: int = 0


# --- voice activity ---------------------------------------------------------------------------


class VoiceActivityEngine(Protocol):
    """Speech probability of one window of every listening room, in one batched forward.

    State (LSTM memory and the audio context in front of the window) is kept per slot, so a room
    that joins or leaves never disturbs another.
    """

    def load(self, options: EngineOptions) -> None:
        """Load the model; the state of ``options.max_rooms`` slots is taken here."""

    def reset(self, slot: int) -> None:
        """Forget what ``slot`` has heard (a new room, or a gap in its audio)."""

    def probabilities(self, slots: Sequence[int], windows: Audio) -> Audio:
        """Speech probability per row: ``windows`` is (rows, 512) at 16 kHz, the result (rows,).

        A slot may appear once. Raises ``EngineError`` for a wrong shape or an unknown slot.
        """

    def close(self) -> None:
        """Free the model and all state; no other method but ``load`` may follow."""


# --- speech to text ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Utterance:
    """One stretch of speech to transcribe.

    ``audio``: float32 at 16 kHz; ``language``: ISO 639-1 or "" to detect; ``draft``: the first guess is
    good enough (the caller still speaks): one search, never tried again.
    """

    audio: Audio
    language: str = ""
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Transcription:
    """``text``: what was said, stripped, "" when nothing was; ``avg_logprob``: mean log probability of a token."""

    text: str
    language: str
    avg_logprob: float
    no_speech_prob: float


@dataclass(frozen=True, slots=True)
class TranscriptOut:
    """An utterance is transcribed."""

    request: int
    transcription: Transcription


@dataclass(frozen=True, slots=True)
class TranscriptFailed:
    """One utterance could not be transcribed; the others go on."""

    request: int
    error: EngineError


SttStep = Literal["encode", "decode"]
"""What a quantum of speech to text is: audio to features to the encoder's output, or that to text.

An utterance needs each at least once. Long audio, and text that has to be searched again, need further ones.
"""


class SpeechToTextEngine(Protocol):
    """Transcribes the utterances of several rooms at once, in steps.

    ``max_encode``, ``max_batch``: utterances that one encode step and one decode step serve.
    """

    max_encode: int
    max_batch: int

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the model in folder ``model`` (CTranslate2 format)."""

    def start(self, request: int, utterance: Utterance) -> None:
        """Take an utterance; nothing is computed yet. Raises ``EngineError`` for audio or a language that cannot be
        transcribed, and for an id in use."""

    def next_step(self, request: int) -> SttStep:
        """What the next quantum of ``request`` is. Raises ``EngineError`` for an unknown id."""

    def step(self, requests: Sequence[int]) -> list[TranscriptOut | TranscriptFailed]:
        """One quantum for as many of ``requests`` as fit into it, at least for the first; those that ended by it.

        ``requests``: the most urgent first, all with the same next step; unknown ids are ignored.
        """

    def cancel(self, request: int) -> None:
        """Drop an utterance between two steps. Unknown ids are ignored."""

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcription | EngineError]:
        """Every step of at most ``max_batch`` utterances: one result each, in order."""

    def close(self) -> None:
        """Free the model and all state; no other method but ``load`` may follow."""


def transcribe_in_steps(
    engine: SpeechToTextEngine, utterances: Sequence[Utterance]
) -> list[Transcription | EngineError]:
    """``SpeechToTextEngine.transcribe`` made of its steps. Its requests have negative ids."""
    if len(utterances) > engine.max_batch:
        raise EngineError(f"speech to text: {len(utterances)} utterances, at most {engine.max_batch} in one call")
    lowest = min((0, *engine.running()))
    ids = [lowest - 1 - index for index in range(len(utterances))]
    results: dict[int, Transcription | EngineError] = {}
    for request, utterance in zip(ids, utterances, strict=True):
        try:
            engine.start(request, utterance)
        except EngineError as exc:
            results[request] = exc
    while waiting := [request for request in ids if request not in results]:
        encode = [request for request in waiting if engine.next_step(request) == "encode"]
        for out in engine.step(encode or waiting):
            results[out.request] = out.transcription if isinstance(out, TranscriptOut) else out.error
    return [results[request] for request in ids]


# --- language model ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. ``role``: "system", "user", "assistant" or "tool"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 is greedy; ``seed`` -1 draws one.

    ``max_tokens`` 0: the prompt is decoded into the slot's KV cache and nothing is generated.
    ``grammar`` (GBNF) or ``json_schema`` (its text), not both: only tokens that it allows are chosen.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    repeat_penalty: float = 1.0
    seed: int = -1
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: str = ""


def check_sampling(sampling: Sampling) -> None:
    """Raises ``EngineError`` for settings that no engine can obey."""
    if sampling.max_tokens < 0:
        raise EngineError(f"language model: max_tokens is {sampling.max_tokens}, allowed: 0 or more")
    if sampling.grammar and sampling.json_schema:
        raise EngineError("language model: grammar and json_schema are both given, allowed: one of them")


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokensOut:
    """Text that one step added to one generation.

    ``text`` never ends inside a UTF-8 character or inside a possible stop string. ``finish`` is
    None while the generation goes on; the counts are valid when it is set. ``cached_tokens``: the
    part of the prompt that was still in the slot's KV cache and was not decoded again. ``end_of_turn``: in the
    first entry of a generation that was asked for it, the probability that the user's message is complete; -1
    where it is not known.
    """

    request: int
    text: str
    finish: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    end_of_turn: float = -1.0


@dataclass(frozen=True, slots=True)
class GenerationFailed:
    """One generation ended in an error; the others go on."""

    request: int
    error: EngineError


class LanguageModelEngine(Protocol):
    """Continuous batching over slots: each slot (room) keeps its KV cache between turns.

    ``request`` ids are chosen by the caller and unique among running generations.
    """

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the GGUF file ``model``; all KV memory for ``options.max_rooms`` slots is taken here."""

    def start(
        self, request: int, slot: int, messages: Sequence[Message], sampling: Sampling, *, end_of_turn: bool = False
    ) -> None:
        """Queue a generation that answers ``messages``. Raises ``EngineError`` for a prompt that cannot fit.

        Only the tokens after the longest prefix shared with the slot's KV cache are decoded. A slot
        runs one generation at a time. ``end_of_turn``: say how likely the last message is complete, as soon as
        the prompt is decoded.
        """

    def step(self, urgent: frozenset[int] | None = None) -> list[TokensOut | GenerationFailed]:
        """One ``llama_decode``: a prefill chunk and/or one token of every running generation.

        ``urgent``: when given, only these requests take part (the others wait for a later step).
        """

    def cancel(self, request: int) -> None:
        """Stop a generation. Its KV stays, so a later prompt reuses what it shares. Unknown ids are ignored."""

    def release(self, slot: int) -> None:
        """The room is gone: cancel its generation and forget its KV cache."""

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""

    def close(self) -> None:
        """Free the model and all state; no other method but ``load`` may follow."""


# --- text to speech ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpeechOut:
    """A block of synthesised audio of one request. ``last`` ends the request; ``audio`` may be empty then.

    ``audio``: int16 PCM at the engine's ``sample_rate``, shape (samples,).
    """

    request: int
    audio: NDArray[np.int16] = field(repr=False)
    last: bool


@dataclass(frozen=True, slots=True)
class SpeechFailed:
    """One phrase could not be spoken; the others go on."""

    request: int
    error: EngineError


class TextToSpeechEngine(Protocol):
    """Turns phrases into audio, in blocks, for several rooms at once."""

    sample_rate: int

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the voice: ``model`` is the .onnx file, its settings lie beside it as .onnx.json."""

    def start(self, request: int, text: str, speed: float = 1.0, volume: float = 1.0, speaker: int = -1) -> None:
        """Queue a phrase. ``speed`` 1.0 is the voice's own; text with nothing to say yields one empty last block.

        ``speaker``: of a voice with several, from 0; -1 is its own choice. Raises ``EngineError`` for one it lacks.
        """

    def step(self, requests: Sequence[int]) -> list[SpeechOut | SpeechFailed]:
        """The next block of as many of ``requests`` as fit into one quantum, at least of one.

        ``requests``: the most urgent first; the others wait for a later step. A block is a part of a phrase.
        """

    def cancel(self, request: int) -> None:
        """Drop a phrase between two blocks. Unknown ids are ignored."""

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""

    def close(self) -> None:
        """Free the model and all state; no other method but ``load`` may follow."""
