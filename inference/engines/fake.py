"""Deterministic engines without models: for tests, for load tests of everything else, for a first try.

Each obeys its Protocol in ``base.py`` to the letter (slots, ids, errors, steps); only the answers are
made up. ``cost_s`` is the time one quantum takes, in seconds; it is slept, as a device call blocks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import (
    SAMPLE_RATE,
    VAD_WINDOW,
    Audio,
    EngineError,
    EngineOptions,
    FinishReason,
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

SPEECH_RMS: Final = 0.02
"""Root mean square at which a window is as likely speech as not."""

WORD_S: Final = 0.3
"""Seconds of tone for one word."""

TONE_HZ: Final = 440.0


def _spend(cost_s: float) -> None:
    if cost_s > 0:
        time.sleep(cost_s)


class FakeVoiceActivity:
    """Loud is speech: the probability grows with the window's root mean square and is 0.5 at ``SPEECH_RMS``."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.cost_s = cost_s
        self.heard: list[int] = []
        """Windows each slot has heard since its last reset."""

    def load(self, options: EngineOptions) -> None:
        """Take ``options.max_rooms`` slots."""
        self.heard = [0] * options.max_rooms

    def reset(self, slot: int) -> None:
        """Start counting the windows of ``slot`` anew."""
        _check_slot(slot, len(self.heard))
        self.heard[slot] = 0

    def probabilities(self, slots: Sequence[int], windows: Audio) -> Audio:
        """``rms / (rms + SPEECH_RMS)`` of each row of ``windows`` (rows, 512); raises as the real one does."""
        if windows.shape != (len(slots), VAD_WINDOW):
            raise EngineError(f"fake: windows are {windows.shape}, expected ({len(slots)}, {VAD_WINDOW})")
        if len(set(slots)) != len(slots):
            raise EngineError(f"fake: a slot appears twice in {list(slots)}")
        for slot in slots:
            _check_slot(slot, len(self.heard))
        for slot in slots:
            self.heard[slot] += 1
        _spend(self.cost_s)
        rms = np.sqrt(np.square(windows).mean(axis=1))
        result: Audio = (rms / (rms + SPEECH_RMS)).astype(np.float32)
        return result

    def close(self) -> None:
        """Forget all slots."""
        self.heard = []


class FakeSpeechToText:
    """Says how long it heard someone, or what the table has for that length.

    ``texts``: text for an utterance of so many samples. ``cost_s`` is the time of a decode step,
    ``encode_cost_s`` of an encode step.
    """

    def __init__(
        self,
        texts: Mapping[int, str] | None = None,
        cost_s: float = 0.0,
        max_batch: int = 8,
        encode_cost_s: float = 0.0,
        max_encode: int = 1,
    ) -> None:
        self.texts = dict(texts or {})
        self.cost_s = cost_s
        self.encode_cost_s = encode_cost_s
        self.max_batch = max_batch
        self.max_encode = max_encode
        self._utterances: dict[int, Utterance] = {}
        self._encoded: set[int] = set()

    def load(self, model: Path, options: EngineOptions) -> None:  # noqa: ARG002 (the Protocol's)
        """Nothing to load; ``model`` need not exist."""
        self.close()

    def start(self, request: int, utterance: Utterance) -> None:
        """Take an utterance. Raises ``EngineError`` for an id in use and for audio that is empty or not finite."""
        if request in self._utterances:
            raise EngineError(f"fake: request {request} is already running")
        audio = utterance.audio
        if audio.dtype != np.float32 or audio.ndim != 1 or not audio.size or not np.isfinite(audio).all():
            raise EngineError(f"fake: bad audio: {audio.dtype} of shape {audio.shape}")
        self._utterances[request] = utterance

    def next_step(self, request: int) -> SttStep:
        """First encode, then decode."""
        if request not in self._utterances:
            raise EngineError(f"fake: no request {request}")
        return "decode" if request in self._encoded else "encode"

    def step(self, requests: Sequence[int]) -> list[TranscriptOut | TranscriptFailed]:
        """Encode the first ``max_encode`` of ``requests``, or answer the first ``max_batch``."""
        known = [request for request in requests if request in self._utterances]
        if not known:
            return []
        kind = self.next_step(known[0])
        if any(self.next_step(request) != kind for request in known):
            raise EngineError("fake: requests of one step must have the same next step")
        if kind == "encode":
            _spend(self.encode_cost_s)
            self._encoded |= set(known[: self.max_encode])
            return []
        _spend(self.cost_s)
        out: list[TranscriptOut | TranscriptFailed] = []
        for request in known[: self.max_batch]:
            out.append(TranscriptOut(request, self._answer(self._utterances[request])))
            self.cancel(request)
        return out

    def cancel(self, request: int) -> None:
        """Drop an utterance. Unknown ids are ignored."""
        self._utterances.pop(request, None)
        self._encoded.discard(request)

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""
        return frozenset(self._utterances)

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcription | EngineError]:
        """ "heard N ms", or the table's text; "" for silence, an error for audio that is empty or not finite."""
        return transcribe_in_steps(self, utterances)

    def _answer(self, utterance: Utterance) -> Transcription:
        language = utterance.language or "en"
        if not utterance.audio.any():
            return Transcription("", language, -2.0, 1.0)
        samples = len(utterance.audio)
        text = self.texts.get(samples, f"heard {round(1000 * samples / SAMPLE_RATE)} ms")
        return Transcription(text, language, -0.1, 0.0)

    def close(self) -> None:
        """Drop all utterances."""
        self._utterances.clear()
        self._encoded.clear()


def echo(messages: Sequence[Message]) -> str:
    """The fake's usual answer: "You said: " and the last message."""
    return f"You said: {messages[-1].content}"


UNFINISHED: Final = frozenset(
    {"a", "an", "and", "at", "but", "for", "my", "of", "or", "so", "the", "to", "uh", "um", "with"}
)
"""After these words the fake believes that the caller goes on."""


def turn_is_over(messages: Sequence[Message]) -> float:
    """The fake's usual guess: 0.05 after one of the ``UNFINISHED`` words and after a comma, else 0.95."""
    text = messages[-1].content.rstrip(" .?!").lower()
    unfinished = text.endswith(",") or text.rpartition(" ")[2] in UNFINISHED
    return 0.05 if unfinished else 0.95


class FakeLanguageModel:
    """Answers with ``answer(messages)``, one word a step; a token is a word.

    Prompt tokens are decoded in chunks of ``prefill_chunk`` words, and those a slot shares with its
    former prompt and reply count as cached, as in a KV cache. ``answer`` may raise ``EngineError``
    to poison one request. A grammar or schema is not obeyed. ``end_of_turn(messages)`` is said as soon as a prompt
    that ends with a user's message is decoded, where it is asked for; -1 is not known.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Message]], str] = echo,
        cost_s: float = 0.0,
        prefill_chunk: int = 128,
        end_of_turn: Callable[[Sequence[Message]], float] = turn_is_over,
    ) -> None:
        self.answer = answer
        self.cost_s = cost_s
        self.prefill_chunk = prefill_chunk
        self.end_of_turn = end_of_turn
        self._context_tokens = 0
        self._cached: list[list[str]] = []
        self._generations: dict[int, _FakeGeneration] = {}

    def load(self, model: Path, options: EngineOptions) -> None:  # noqa: ARG002 (the Protocol's)
        """Take ``options.max_rooms`` slots; ``model`` need not exist."""
        self._context_tokens = options.context_tokens
        self._cached = [[] for _ in range(options.max_rooms)]
        self._generations.clear()

    def start(
        self, request: int, slot: int, messages: Sequence[Message], sampling: Sampling, *, end_of_turn: bool = False
    ) -> None:
        """Queue an answer. Raises ``EngineError`` for a slot or id in use and for a prompt that cannot fit."""
        _check_slot(slot, len(self._cached))
        check_sampling(sampling)
        if request in self._generations:
            raise EngineError(f"fake: request {request} is already running")
        if any(running.slot == slot for running in self._generations.values()):
            raise EngineError(f"fake: slot {slot} is already answering")
        if not messages:
            raise EngineError("fake: no messages to answer")
        prompt = [word for m in messages for word in (f"<{m.role}>", *m.content.split())]
        room = self._context_tokens - sampling.max_tokens
        if len(prompt) > room:
            raise PromptTooLongError(f"fake: the prompt has {len(prompt)} tokens, only {max(room, 0)} fit")
        cached = self._cached[slot]
        shared = 0
        while shared < min(len(cached), len(prompt) - 1) and cached[shared] == prompt[shared]:
            shared += 1
        del cached[shared:]
        self._generations[request] = _FakeGeneration(
            request, slot, tuple(messages), prompt, shared, sampling.max_tokens, end_of_turn
        )

    def step(self, urgent: frozenset[int] | None = None) -> list[TokensOut | GenerationFailed]:
        """One prefill chunk or one word of each generation that takes part."""
        chosen = [g for g in self._generations.values() if urgent is None or g.request in urgent]
        if not chosen:
            return []
        _spend(self.cost_s)
        out: list[TokensOut | GenerationFailed] = []
        budget = self.prefill_chunk
        for generation in chosen:
            cached = self._cached[generation.slot]
            missing = generation.prompt[len(cached) :]
            if generation.words is None:
                chunk = missing[:budget]
                budget -= len(chunk)
                cached += chunk
                if len(chunk) < len(missing):
                    continue
                known = -1.0
                if generation.end_of_turn and generation.messages[-1].role == "user":
                    known = self.end_of_turn(generation.messages)
                if not generation.max_tokens:
                    self.cancel(generation.request)
                    counts = len(generation.prompt), generation.shared, 0
                    out.append(TokensOut(generation.request, "", "length", *counts, end_of_turn=known))
                    continue
                if known >= 0:
                    out.append(TokensOut(generation.request, "", end_of_turn=known))
                try:
                    generation.words = deque(self.answer(generation.messages).split())
                except EngineError as exc:
                    self.cancel(generation.request)
                    out.append(GenerationFailed(generation.request, exc))
                    continue
            out.append(self._say(generation, generation.words))
        return out

    def _say(self, generation: _FakeGeneration, words: deque[str]) -> TokensOut:
        text = ""
        if words:
            word = words.popleft()
            text = word if not generation.said else f" {word}"
            if not generation.said:
                self._cached[generation.slot].append("<assistant>")
            self._cached[generation.slot].append(word)
            generation.said += 1
        finish: FinishReason | None = None
        if not words:
            finish = "stop"
        elif generation.said >= generation.max_tokens:
            finish = "length"
        if finish is None:
            return TokensOut(generation.request, text)
        self.cancel(generation.request)
        return TokensOut(generation.request, text, finish, len(generation.prompt), generation.shared, generation.said)

    def cancel(self, request: int) -> None:
        """Stop an answer; what is cached stays. Unknown ids are ignored."""
        self._generations.pop(request, None)

    def release(self, slot: int) -> None:
        """Cancel the slot's answer and forget what is cached."""
        _check_slot(slot, len(self._cached))
        for request in [g.request for g in self._generations.values() if g.slot == slot]:
            self.cancel(request)
        self._cached[slot] = []

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""
        return frozenset(self._generations)

    def close(self) -> None:
        """Forget all slots."""
        self._generations.clear()
        self._cached = []


@dataclass(slots=True)
class _FakeGeneration:
    request: int
    slot: int
    messages: tuple[Message, ...]
    prompt: list[str]
    shared: int
    max_tokens: int
    end_of_turn: bool
    words: deque[str] | None = None
    said: int = 0


class FakeTextToSpeech:
    """A sine tone of ``WORD_S`` a word, in blocks of ``block_s``; silence costs nothing to say.

    ``speakers``: how many it has; each is a semitone above the one before.
    """

    def __init__(self, cost_s: float = 0.0, sample_rate: int = 22_050, block_s: float = 1.0, speakers: int = 1) -> None:
        self.cost_s = cost_s
        self.sample_rate = sample_rate
        self.block_s = block_s
        self.speakers = speakers
        self._left: dict[int, NDArray[np.int16]] = {}

    def load(self, model: Path, options: EngineOptions) -> None:  # noqa: ARG002 (the Protocol's)
        """Nothing to load; ``model`` need not exist."""
        self._left.clear()

    def start(self, request: int, text: str, speed: float = 1.0, volume: float = 1.0, speaker: int = -1) -> None:
        """Queue a tone. Raises ``EngineError`` for an id in use, a speed that is not positive, a negative volume and
        a speaker that it has not."""
        if request in self._left:
            raise EngineError(f"fake: request {request} is already running")
        if not speed > 0 or not volume >= 0:
            raise EngineError(f"fake: speed is {speed}, volume is {volume}")
        if not -1 <= speaker < self.speakers:
            raise EngineError(f"fake: speaker is {speaker}, allowed: -1 to {self.speakers - 1}")
        words = sum(any(char.isalnum() for char in word) for word in text.split())
        samples = round(words * WORD_S / speed * self.sample_rate)
        tone_hz = TONE_HZ * 2 ** (max(speaker, 0) / 12)
        wave = np.sin(np.arange(samples) * (2 * np.pi * tone_hz / self.sample_rate))
        self._left[request] = np.clip(wave * (16_000 * volume), -32_767, 32_767).astype(np.int16)

    def step(self, requests: Sequence[int]) -> list[SpeechOut | SpeechFailed]:
        """The next block of each of ``requests``; unknown ids give nothing."""
        known = [request for request in requests if request in self._left]
        if known:
            _spend(self.cost_s)
        out: list[SpeechOut | SpeechFailed] = []
        size = max(1, round(self.block_s * self.sample_rate))
        for request in known:
            block, rest = np.split(self._left[request], [size])
            if rest.size:
                self._left[request] = rest
            else:
                del self._left[request]
            out.append(SpeechOut(request, block, last=not rest.size))
        return out

    def cancel(self, request: int) -> None:
        """Drop a tone between two blocks. Unknown ids are ignored."""
        self._left.pop(request, None)

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""
        return frozenset(self._left)

    def close(self) -> None:
        """Drop all tones."""
        self._left.clear()


def _check_slot(slot: int, slots: int) -> None:
    if not 0 <= slot < slots:
        raise EngineError(f"fake: slot {slot} is not in 0..{slots - 1}")
