"""What the device lane does for a request: gives it to its engine, and its results to the job.

One class an engine; all methods are called on the lane's thread. What a request does wrong is an error in ``begin``;
what goes wrong in a step fails the requests to blame, never their neighbours: a batch that fails as a whole is tried
again one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from inference.costs import Stage
from inference.engines.base import (
    EngineError,
    GenerationFailed,
    LanguageModelEngine,
    Message,
    PromptTooLongError,
    Sampling,
    SpeechFailed,
    SpeechOut,
    SpeechToTextEngine,
    TextToSpeechEngine,
    TokensOut,
    TranscriptFailed,
    TranscriptOut,
    Utterance,
)
from inference.request import Request
from inference.rooms import RoomClosedError
from inference.wire import messages as m
from inference.wire.errors import OverrunError
from inference.wire.tlv import Message as WireMessage

logger = logging.getLogger(__name__)

MOST_CHARS_PER_TOKEN = 16
"""A prompt with more characters than this for each token of the context does not fit, whatever it says (text has 3 to
5): it is refused before anybody counts its tokens, which takes the lane's time."""

Result = TypeVar("Result")


class InvalidRequestError(Exception):
    """The job asked for what cannot be."""


class Desk(Protocol):
    """Where a request's results go: the lane."""

    def answered(self, request: Request) -> None:
        """It has a result."""

    def done(self, request: Request, last: WireMessage) -> None:
        """It ends with ``last``."""

    def failed(self, request: Request, code: m.FailureCode, reason: str) -> None:
        """It ends without a result."""

    def gone(self, request: Request) -> None:
        """Its room is closed."""


class Serving(Protocol):
    """One engine's part of the lane."""

    def stage(self, request: Request) -> Stage:
        """What its next quantum is."""

    def begin(self, request: Request) -> None:
        """Give it to the engine. Raises ``EngineError``, ``InvalidRequestError``, ``RoomClosedError``."""

    def step(self, requests: Sequence[Request]) -> Sequence[Request]:
        """One quantum for ``requests`` of one stage, the most urgent first; those that it served."""

    def drop(self, request: Request) -> None:
        """Nobody waits for it any more."""


class Transcribing:
    """``Transcribe`` → ``Transcript``."""

    def __init__(self, engine: SpeechToTextEngine, desk: Desk, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._desk = desk
        self._clock = clock

    def stage(self, request: Request) -> Stage:
        """The audio, then the words; and again, where the engine wants a second look."""
        if request.begun and self._engine.next_step(request.key) == "decode":
            return Stage.TRANSCRIBE
        return Stage.ENCODE

    def begin(self, request: Request) -> None:
        """Take the utterance out of the up ring."""
        ask = request.ask
        assert isinstance(ask, m.Transcribe)
        if ask.end <= ask.start:
            raise InvalidRequestError(f"an utterance from {ask.start} to {ask.end} has no length")
        try:
            audio = request.room.utterance(ask.start, ask.end)
        except OverrunError as exc:
            raise InvalidRequestError(str(exc)) from exc
        self._engine.start(request.key, Utterance(audio, ask.language, draft=ask.partial))

    def step(self, requests: Sequence[Request]) -> Sequence[Request]:
        """One step of all of them."""
        by_key = {request.key: request for request in requests}
        began = self._clock()
        ended = each_alone(
            "speech to text", self._engine.step, list(by_key), lambda key, error: TranscriptFailed(key, error)
        )
        for request in requests:
            request.spent_s += self._clock() - began
        for out in ended:
            request = by_key[out.request]
            match out:
                case TranscriptFailed(error=error):
                    self._desk.failed(request, "engine", str(error))
                case TranscriptOut(transcription=heard):
                    self._desk.answered(request)
                    self._desk.done(
                        request,
                        m.Transcript(
                            request.number,
                            heard.text,
                            heard.language,
                            heard.avg_logprob,
                            heard.no_speech_prob,
                            1000 * request.spent_s,
                        ),
                    )
        return requests

    def drop(self, request: Request) -> None:
        """Between two steps."""
        self._engine.cancel(request.key)


class Generating:
    """``Generate`` → ``TextDelta`` …, ``GenerateDone``."""

    def __init__(self, engine: LanguageModelEngine, desk: Desk, context_tokens: int) -> None:
        self._engine = engine
        self._desk = desk
        self._most_chars = context_tokens * MOST_CHARS_PER_TOKEN

    def stage(self, request: Request) -> Stage:
        """Until its first token it is prefill."""
        return Stage.DECODE if request.advanced else Stage.PREFILL

    def begin(self, request: Request) -> None:
        """Hand the conversation to the engine, which finds what is new in it."""
        ask = request.ask
        assert isinstance(ask, m.Generate)
        chars = sum(len(message.content) for message in ask.messages)
        if chars > self._most_chars:
            raise PromptTooLongError(f"the prompt has {chars} characters, no more than {self._most_chars} can fit")
        sampling = Sampling(
            temperature=ask.temperature,
            top_p=ask.top_p,
            repeat_penalty=ask.repeat_penalty,
            seed=ask.seed,
            max_tokens=ask.max_tokens,
            stop=ask.stop,
            grammar=ask.grammar,
            json_schema=ask.json_schema,
        )
        messages = [Message(message.role, message.content) for message in ask.messages]
        self._engine.start(request.key, request.room.slot, messages, sampling, end_of_turn=ask.end_of_turn)

    def step(self, requests: Sequence[Request]) -> Sequence[Request]:
        """A chunk of prompts, or one token of each."""
        by_key = {request.key: request for request in requests}
        for out in each_alone(
            "the language model", self._step, list(by_key), lambda key, error: GenerationFailed(key, error)
        ):
            request = by_key[out.request]
            match out:
                case GenerationFailed(error=error):
                    self._desk.failed(request, "engine", str(error))
                case TokensOut():
                    self._deliver(request, out)
        return requests

    def drop(self, request: Request) -> None:
        """Its KV stays."""
        self._engine.cancel(request.key)

    def _step(self, keys: Sequence[int]) -> list[TokensOut | GenerationFailed]:
        return self._engine.step(frozenset(keys))

    def _deliver(self, request: Request, out: TokensOut) -> None:
        request.advanced = True
        if out.end_of_turn >= 0 and out.finish is None:
            request.say(m.EndOfTurn(request.number, out.end_of_turn))
        if out.text:
            self._desk.answered(request)
            request.say(m.TextDelta(request.number, out.text))
        if out.finish is not None:
            self._desk.answered(request)
            self._desk.done(
                request,
                m.GenerateDone(
                    request.number,
                    out.finish,
                    out.prompt_tokens,
                    out.cached_tokens,
                    out.completion_tokens,
                    out.end_of_turn,
                ),
            )


class Speaking:
    """``Speak`` → ``SpeakStarted``, samples in the down ring, ``SpeakDone``."""

    def __init__(self, engine: TextToSpeechEngine, desk: Desk) -> None:
        self._engine = engine
        self._desk = desk

    def stage(self, request: Request) -> Stage:
        """Its first block takes longer than the others."""
        return Stage.SPEECH if request.advanced else Stage.FIRST_SPEECH

    def begin(self, request: Request) -> None:
        """Its text becomes phonemes."""
        ask = request.ask
        assert isinstance(ask, m.Speak)
        self._engine.start(request.key, ask.text, ask.speed, ask.volume, ask.speaker)

    def step(self, requests: Sequence[Request]) -> Sequence[Request]:
        """The next block of as many as fit into the engine's step."""
        by_key = {request.key: request for request in requests}
        served = []
        for out in each_alone(
            "the voice", self._engine.step, list(by_key), lambda key, error: SpeechFailed(key, error)
        ):
            request = by_key[out.request]
            served.append(request)
            match out:
                case SpeechFailed(error=error):
                    self._desk.failed(request, "engine", str(error))
                case SpeechOut(audio=audio, last=last):
                    request.advanced = True
                    if len(audio):
                        request.outbox.append(audio)
                    request.complete = last
                    self.flush(request)
        return served

    def drop(self, request: Request) -> None:
        """Between two blocks."""
        self._engine.cancel(request.key)

    def flush(self, request: Request) -> None:
        """Write what fits of a phrase into its room's ring, and end the phrase with its last sample."""
        # A cancel takes this lock, too: after its end nothing is written.
        with request.lock:
            if request.ended:
                return
            try:
                if self._write(request):
                    assert request.start is not None
                    self._desk.done(request, m.SpeakDone(request.number, request.start, request.room.speech_written()))
            except RoomClosedError:
                self._desk.gone(request)

    def _write(self, request: Request) -> bool:
        """True when all of the phrase lies in the ring."""
        if request.start is None and (request.outbox or request.complete):
            request.start = request.room.speech_written()
            self._desk.answered(request)
            request.say(m.SpeakStarted(request.number, request.start))
        while request.outbox:
            block = request.outbox[0]
            taken = request.room.write_speech(block)
            if taken < len(block):
                request.outbox[0] = block[taken:]
                return False
            request.outbox.popleft()
        return request.complete


def each_alone(
    what: str,
    work: Callable[[Sequence[int]], list[Result]],
    batch: Sequence[int],
    failed: Callable[[int, EngineError], Result],
) -> list[Result]:
    """What ``work`` makes of the batch; where that fails, of each of it alone, so that only the culprit fails."""
    if not batch:
        return []
    try:
        return work(batch)
    except Exception as exc:
        logger.exception("%s: a step for %d failed", what, len(batch))
        if len(batch) == 1:
            return [failed(batch[0], EngineError(f"{what} failed: {exc}"))]
    return [result for one in batch for result in each_alone(what, work, [one], failed)]
