"""A room and an inference room that do only what a test tells them, for policy that real ones show too rarely."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from host.job.room import AgentState, Side
from host.job.settings import SessionSettings
from inference.client import InferenceError, InferenceUnavailableError, RequestFailedError, VoiceEvent
from inference.wire.messages import ChatMessage, Transcript
from inference.wire.supervision import TurnReport

RATE = 16_000
PLAIN = SessionSettings(
    turn_detection="vad",
    preemptive=False,
    min_interruption_ms=0,
    backchannels=False,
    false_interruption_timeout_ms=0,
    user_away_timeout_s=0,
)
"""Turns end after a fixed silence, any sound interrupts, and nothing is begun on speculation."""
SAMPLES_PER_CHAR = 1_000
DEADLINE_S = 10.0


async def until(condition: Callable[[], object]) -> None:
    """Return when ``condition`` holds; fails after ten seconds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (many conditions, one deadline)
            await asyncio.sleep(0.001)


@dataclass(frozen=True)
class FakeAgent:
    identity: str = "agent"


class FakeRoom:
    """Plays nothing by itself: ``hear`` lets time pass for the listener."""

    name = "fake"
    local_participant = FakeAgent()

    def __init__(self) -> None:
        self.caller: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.typed: asyncio.Queue[str | None] = asyncio.Queue()
        self.queue = bytearray()
        self.heard = b""
        self.log: list[str] = []
        self.states: list[AgentState] = []
        self.transcripts: list[tuple[Side, str, str, bool]] = []
        self.metrics: list[TurnReport] = []
        self.closed = asyncio.Event()
        self.takes_speech = asyncio.Event()
        self.takes_speech.set()
        self._moved = asyncio.Event()

    async def connect(self) -> None:
        self.log.append("connect")

    async def wait_for_participant(self, identity: str = "") -> str:
        self.log.append(f"wait_for_participant {identity}".strip())
        return identity or "caller"

    async def open_speech(self, sample_rate: int) -> None:
        self.log.append(f"open_speech {sample_rate}")

    async def wait_closed(self) -> str:
        await self.closed.wait()
        return "the caller has left"

    async def leave(self) -> None:
        self.log.append("leave")

    async def caller_audio(self) -> AsyncIterator[bytes]:
        while (block := await self.caller.get()) is not None:
            yield block

    async def text_input(self) -> AsyncIterator[str]:
        while (text := await self.typed.get()) is not None:
            yield text

    async def play(self, pcm: bytes) -> None:
        await self.takes_speech.wait()
        self.queue += pcm
        self.log.append("play")
        while len(self.queue) > 2 * RATE:
            self._moved.clear()
            await self._moved.wait()

    def clear(self) -> None:
        self.log.append("clear")
        self.queue.clear()
        self._moved.set()

    def hear(self, samples: int) -> None:
        self.heard += bytes(self.queue[: 2 * samples])
        del self.queue[: 2 * samples]
        self._moved.set()

    def heard_samples(self) -> int:
        return len(self.heard) // 2

    async def wait_for_playout(self) -> None:
        while self.queue:
            self._moved.clear()
            await self._moved.wait()

    async def set_agent_state(self, state: AgentState) -> None:
        self.states.append(state)

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        self.transcripts.append((side, segment, text, final))

    async def publish_metrics(self, report: TurnReport) -> None:
        self.metrics.append(report)

    def voices(self) -> list[int]:
        """Which phrases were heard, in order: every phrase has a sample value of its own."""
        values = np.frombuffer(self.heard, np.int16).tolist()
        return [value for n, value in enumerate(values) if n == 0 or values[n - 1] != value]


class FakePhrase:
    """Lies in the ring at once, whole, unless the inference room ``holds`` phrases back."""

    def __init__(self, inference: FakeInference, text: str, voice: int, speed: float, volume: float) -> None:
        self.text = text
        self.speed = speed
        self.volume = volume
        self.voice = voice
        self.start: int | None = None
        self.end: int | None = None
        self.cancelled = False
        self.promoted = False
        self.speculative, self.speaker = False, -1
        self._inference = inference
        self._result: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self, samples: int) -> None:
        if self.start is None:
            self.start = self._inference.written
        self._inference.write(np.full(samples, self.voice, np.int16).tobytes())

    def complete(self) -> None:
        self.end = self._inference.written
        self._result.set_result(None)

    def fail(self, error: InferenceError) -> None:
        if not self._result.done():
            self._result.set_exception(error)

    def promote(self) -> None:
        self.promoted = True

    def cancel(self) -> None:
        self.cancelled = True
        if not self._inference.hold:
            self.fail(RequestFailedError("cancelled", "cancelled by the job"))

    async def wait(self) -> None:
        await self._result


class FakeListening:
    """An utterance whose text comes as the test sets ``result``."""

    def __init__(self) -> None:
        self.result: asyncio.Future[Transcript] = asyncio.get_running_loop().create_future()
        self.promoted = False

    async def wait(self) -> Transcript:
        return await self.result

    def promote(self) -> None:
        self.promoted = True


class FakeGeneration:
    """Text comes as the test ``write``s it."""

    def __init__(
        self,
        messages: Sequence[ChatMessage],
        max_tokens: int,
        log: list[tuple[str, FakeGeneration]],
        settings: dict[str, object],
    ) -> None:
        self.messages = tuple(messages)
        self.max_tokens = max_tokens
        self.settings = settings
        self._log = log
        self.cancelled = False
        self.promoted = False
        self.done: object = None
        self.end_of_turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._pieces: asyncio.Queue[str | InferenceError | None] = asyncio.Queue()

    def write(self, text: str) -> None:
        self._pieces.put_nowait(text)

    def finish(self) -> None:
        self._pieces.put_nowait(None)

    def fail(self, error: InferenceError) -> None:
        self._pieces.put_nowait(error)

    def promote(self) -> None:
        self.promoted = True
        self._log.append(("promote", self))

    def cancel(self) -> None:
        self.cancelled = True
        self._log.append(("cancel", self))
        self.fail(RequestFailedError("cancelled", "cancelled by the job"))

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            while (piece := await self._pieces.get()) is not None:
                if isinstance(piece, InferenceError):
                    raise piece
                yield piece
            self.done = True
        except BaseException:
            self.cancelled = True
            raise


class FakeInference:
    """The part of ``InferenceRoom`` that a session uses."""

    speech_rate = RATE

    def __init__(self) -> None:
        self.position = 0
        self.listening: dict[str, float] = {}
        self.oldest = 0
        self.attached = asyncio.Event()
        self.attached.set()
        self.deaf_from: int | None = None
        self.voice: asyncio.Queue[VoiceEvent | InferenceError] = asyncio.Queue()
        self.transcriptions: list[tuple[int, int, bool, asyncio.Future[Transcript]]] = []
        self.listenings: list[FakeListening] = []
        self.partials: list[tuple[int, int, asyncio.Future[Transcript]]] = []
        self.generations: list[FakeGeneration] = []
        self.prefills: list[FakeGeneration] = []
        self.log: list[tuple[str, FakeGeneration]] = []
        self.phrases: list[FakePhrase] = []
        self.hold = False
        self.written = 0
        self._consumed = 0
        self._ring = bytearray()
        self._rung = asyncio.Event()

    @property
    def is_attached(self) -> bool:
        return self.attached.is_set()

    async def wait_attached(self) -> None:
        await self.attached.wait()

    @property
    def heard(self) -> int:
        return self.position if self.deaf_from is None else self.deaf_from

    def go_away(self) -> None:
        """The inference process dies: everything that waits for it fails, detection stands still."""
        error = InferenceUnavailableError("the inference process went away")
        self.attached.clear()
        self.deaf_from = self.position
        for *_, result in self.transcriptions:
            if not result.done():
                result.set_exception(error)
        for *_, result in self.partials:
            if not result.done():
                result.set_exception(error)
        for generation in (*self.generations, *self.prefills):
            generation.fail(error)
        for phrase in self.phrases:
            phrase.fail(error)
        self._rung.set()
        self.voice.put_nowait(error)

    def come_back(self) -> None:
        """Another process has the room. Detection has caught up as soon as it begins."""
        self.voice = asyncio.Queue()
        self.attached.set()

    def push(self, pcm: bytes) -> None:
        self.position += len(pcm) // 2

    def _check(self) -> None:
        if not self.is_attached:
            raise InferenceUnavailableError("the inference process went away")

    def listen(self, **settings: float) -> None:
        self._check()
        self.listening = settings
        self.deaf_from = None

    async def events(self) -> AsyncIterator[VoiceEvent]:
        voice = self.voice
        while True:
            event = await voice.get()
            if isinstance(event, InferenceError):
                raise event
            yield event

    def listen_to(self, start: int, end: int, *, language: str = "", speculative: bool = False) -> FakeListening:
        self._check()
        listening = FakeListening()
        self.transcriptions.append((start, end, speculative, listening.result))
        self.listenings.append(listening)
        return listening

    async def transcribe(
        self, start: int, end: int, *, language: str = "", speculative: bool = False, partial: bool = False
    ) -> Transcript:
        self._check()
        assert partial
        assert not speculative
        result: asyncio.Future[Transcript] = asyncio.get_running_loop().create_future()
        self.partials.append((start, end, result))
        return await result

    def generate(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, speculative: bool = False, **settings: object
    ) -> FakeGeneration:
        self._check()
        generation = FakeGeneration(messages, max_tokens, self.log, {"speculative": speculative, **settings})
        assert speculative or max_tokens, "a prefill is for spare time"
        self.log.append(("generate" if max_tokens else "prefill", generation))
        (self.generations if max_tokens else self.prefills).append(generation)
        return generation

    def speak(
        self,
        text: str,
        *,
        speed: float = 1.0,
        volume: float = 1.0,
        speaker: int = -1,
        speculative: bool = False,
    ) -> FakePhrase:
        self._check()
        phrase = FakePhrase(self, text, len(self.phrases) + 1, speed, volume)
        phrase.speculative, phrase.speaker = speculative, speaker
        self.phrases.append(phrase)
        if not self.hold:
            phrase.write(SAMPLES_PER_CHAR * len(text))
            phrase.complete()
        return phrase

    def write(self, pcm: bytes) -> None:
        self._ring += pcm
        self.written += len(pcm) // 2
        self._rung.set()

    def read_speech(self, limit: int) -> bytes:
        pcm = bytes(self._ring[: 2 * limit])
        del self._ring[: len(pcm)]
        self._consumed += len(pcm) // 2
        return pcm

    @property
    def ring_samples(self) -> int:
        """How much speech waits in the ring."""
        return len(self._ring) // 2

    def read_position(self) -> int:
        return self._consumed

    def skip_speech(self) -> int:
        self._consumed += len(self._ring) // 2
        self._ring.clear()
        return self._consumed

    async def wait_speech(self) -> None:
        while not self._ring:
            self._check()
            self._rung.clear()
            await self._rung.wait()
