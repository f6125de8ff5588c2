"""A room without any server: recorded waves are the caller, a wave file is the caller's ear.

Everything lies on one timeline of 20 ms ticks against a monotonic deadline, so nothing drifts: in
each tick the room hands over 20 ms of the caller (a wave, or silence) and hears 20 ms of the agent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from host.job.resample import resample
from host.job.room import AgentState, LocalParticipant, Side
from host.job.waves import check_waves, read_wave, write_wave
from inference.wire.supervision import TurnReport

__all__ = ["Clock", "LocalRoom", "TranscriptNote", "check_waves"]

logger = logging.getLogger(__name__)

CALLER_RATE = 16_000
TICK_MS = 20
_BLOCK = CALLER_RATE * TICK_MS // 1000
QUEUE_MS = 200
"""``play`` waits while more than this is queued, as a WebRTC track's queue would."""
BETWEEN_TURNS_S = 0.5
"""The caller thinks this long before the next wave."""
BETWEEN_ANSWERS_S = 0.3
"""Silence between two answers in the ``out`` file."""
_SOUND = 0.05
"""A tick of a wave louder than this share of the wave's loudest is sound, not its trailing silence."""


class Clock(Protocol):
    """Where the room's time comes from."""

    def now(self) -> float:
        """Monotonic seconds."""

    async def sleep_until(self, deadline: float) -> None:
        """Return at ``deadline``, or at once if it has passed."""


class MonotonicClock:
    """Real time."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    async def sleep_until(self, deadline: float) -> None:
        """Return at ``deadline``, or at once if it has passed."""
        await asyncio.sleep(max(0.0, deadline - time.monotonic()))


@dataclass(frozen=True, slots=True)
class TranscriptNote:
    """One call of ``publish_transcript``."""

    side: Side
    segment: str
    text: str
    final: bool


@dataclass(slots=True)
class _CallerTurn:
    """One wave: 16 kHz, and where its last sound ends."""

    path: str
    samples: NDArray[np.int16]
    last_sound: int
    played: int = 0
    waited_ticks: int = 0
    answered_ticks: int = 0

    def block(self) -> bytes:
        """The next 20 ms; silence after the end."""
        samples = self.samples[self.played : self.played + _BLOCK]
        self.played += _BLOCK
        return samples.tobytes() + bytes(2 * (_BLOCK - len(samples)))

    def is_said(self) -> bool:
        """Whether its last sound has been played."""
        return self.played >= self.last_sound


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """The agent in a local room."""

    identity: str


class LocalRoom:
    """``Room`` with recorded waves as the caller.

    ``waves`` are played one after the other, each as soon as the answer to the one before has been
    heard and half a second of silence has passed, or ``interrupt_after_s`` after that answer began
    to be heard, or when no answer came for ``response_timeout_s`` (``unanswered`` then names the
    wave). After the last answer the caller leaves.

    ``leave`` writes ``out``, the answers one after the other (int16 at the rate of ``open_speech``),
    and ``record``, both sides on one timeline (caller left, agent right). Both may be "" for none.
    Raises ``ValueError`` for a wave that cannot be played.
    """

    def __init__(
        self,
        name: str,
        waves: Sequence[str],
        out: str = "",
        record: str = "",
        *,
        interrupt_after_s: float | None = None,
        response_timeout_s: float = 30.0,
        identity: str = "agent",
        clock: Clock | None = None,
    ) -> None:
        self.local_participant: LocalParticipant = LocalAgent(identity)
        self._name = name
        self._turns = [_load(path) for path in waves]
        self._out = out
        self._record = record
        self._interrupt_ticks = None if interrupt_after_s is None else _ticks(interrupt_after_s)
        self._timeout_ticks = _ticks(response_timeout_s)
        self._clock = clock or MonotonicClock()
        self._turn = -1
        self._ticks = 0
        self._quiet_ticks = 0
        self._state: AgentState = "initializing"
        self._caller: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._typed: asyncio.Queue[str | None] = asyncio.Queue()
        self._closed: asyncio.Future[str] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._rate = 0
        self._queue = bytearray()
        self._queue_moved = asyncio.Event()
        self._in_flight = 0
        self._sounding = False
        self._heard = 0
        self._answers: list[bytes] = []
        self._answer = bytearray()
        self._caller_side: list[bytes] = []
        self._agent_side: list[bytes] = []
        self.transcripts: list[TranscriptNote] = []
        self.metrics: list[TurnReport] = []
        self.unanswered: list[str] = []

    @property
    def name(self) -> str:
        """The room's name."""
        return self._name

    # --- joining and leaving ------------------------------------------------------------------------

    async def connect(self) -> None:
        """Start the timeline. Nothing is played before the agent listens."""
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
            self._ticking = asyncio.create_task(self._run(), name="local-room")

    async def wait_for_participant(self, identity: str = "") -> str:
        """The caller is there at once."""
        return identity or "caller"

    async def wait_closed(self) -> str:
        """Return the reason when the caller has left or the room has ended."""
        assert self._closed is not None, "the room is not connected"
        return await asyncio.shield(self._closed)

    async def leave(self) -> None:
        """Stop the timeline and write the files. Safe to call twice and before ``connect``."""
        ticking, self._ticking = self._ticking, None
        if ticking is None:
            return
        self._close("the agent left")
        ticking.cancel()
        await asyncio.wait([ticking])
        self.end_answer()
        await asyncio.to_thread(self._write)

    # --- the caller's side ----------------------------------------------------------------------------

    async def caller_audio(self) -> AsyncIterator[bytes]:
        """The caller's audio at 16 kHz, 20 ms at a time in real time, until the caller leaves."""
        while (block := await self._caller.get()) is not None:
            yield block

    async def text_input(self) -> AsyncIterator[str]:
        """What was given to ``type_text``, until the caller leaves."""
        while (text := await self._typed.get()) is not None:
            yield text

    def type_text(self, text: str) -> None:
        """The caller types ``text``."""
        self._typed.put_nowait(text)

    # --- the agent's side -----------------------------------------------------------------------------

    async def open_speech(self, sample_rate: int) -> None:
        """``play`` takes PCM at ``sample_rate`` from now on."""
        self._rate = sample_rate

    async def play(self, pcm: bytes) -> None:
        """Queue the agent's speech. Returns when at most 200 ms wait to be heard."""
        self._queue += pcm
        while len(self._queue) > 2 * self._rate * QUEUE_MS // 1000:
            self._queue_moved.clear()
            await self._queue_moved.wait()

    def clear(self) -> None:
        """Silence now: drop what is queued. The tick that is being heard (20 ms at most) counts as heard."""
        self._queue.clear()
        self._heard += self._in_flight
        self._in_flight = 0
        self._queue_moved.set()

    def heard_samples(self) -> int:
        """How many samples given to ``play`` have been heard so far (dropped ones do not count)."""
        return self._heard

    async def wait_for_playout(self) -> None:
        """Return when everything queued has been heard and the room is silent."""
        while self._queue or self._sounding:
            self._queue_moved.clear()
            await self._queue_moved.wait()

    def end_answer(self) -> tuple[float, float]:
        """An answer is over. Returns where it lies in the ``out`` file, in seconds."""
        rate = self._rate or 1
        start = sum(len(answer) // 2 / rate + BETWEEN_ANSWERS_S for answer in self._answers)
        length = len(self._answer) // 2 / rate
        if self._answer:
            self._answers.append(bytes(self._answer))
            self._answer.clear()
        return start, start + length

    async def set_agent_state(self, state: AgentState) -> None:
        """What the agent does decides when the caller goes on."""
        self._state = state

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        """Kept in ``transcripts``."""
        self.transcripts.append(TranscriptNote(side, segment, text, final))

    async def publish_metrics(self, report: TurnReport) -> None:
        """Kept in ``metrics``."""
        self.metrics.append(report)

    # --- the timeline ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        start = self._clock.now()
        try:
            while True:
                self._tick()
                await self._clock.sleep_until(start + self._ticks * TICK_MS / 1000)
        except Exception as exc:
            logger.exception("the local room failed")
            self._close("the local room failed", exc)

    def _tick(self) -> None:
        self._hear()
        block = self._speak()
        self._caller.put_nowait(block)
        if self._record:
            self._caller_side.append(block)
        self._ticks += 1

    def _hear(self) -> None:
        """Hear 20 ms of the agent; what was heard in the tick before is counted now."""
        self._heard += self._in_flight
        size = 2 * (self._rate * TICK_MS * (self._ticks + 1) // 1000 - self._rate * TICK_MS * self._ticks // 1000)
        pcm = bytes(self._queue[:size])
        del self._queue[: len(pcm)]
        self._in_flight = len(pcm) // 2
        self._sounding = bool(pcm)
        self._answer += pcm
        if self._record:
            self._agent_side.append(pcm + bytes(size - len(pcm)))
        self._queue_moved.set()

    def _speak(self) -> bytes:
        """The caller's next 20 ms."""
        quiet = self._state == "listening" and not self._sounding and not self._queue
        self._quiet_ticks = self._quiet_ticks + 1 if quiet else 0
        if self._turn >= len(self._turns):
            return bytes(2 * _BLOCK)
        if self._may_go_on():
            self._turn += 1
            self._quiet_ticks = 0
            if self._turn == len(self._turns):
                self._close("the caller has left")
                return bytes(2 * _BLOCK)
        if self._turn < 0:
            return bytes(2 * _BLOCK)
        turn = self._turns[self._turn]
        if turn.is_said():
            turn.waited_ticks += 1
            if self._sounding or turn.answered_ticks:
                turn.answered_ticks += 1
        return turn.block()

    def _may_go_on(self) -> bool:
        thought = self._quiet_ticks >= _ticks(BETWEEN_TURNS_S)
        if self._turn < 0:
            return thought
        turn = self._turns[self._turn]
        if turn.answered_ticks:
            interrupts = self._interrupt_ticks is not None and self._turn + 1 < len(self._turns)
            return thought or (interrupts and turn.answered_ticks > (self._interrupt_ticks or 0))
        if turn.waited_ticks >= self._timeout_ticks:
            logger.warning("no answer to %s within %.1f s", turn.path, self._timeout_ticks * TICK_MS / 1000)
            self.unanswered.append(turn.path)
            return True
        return False

    def _close(self, reason: str, failure: Exception | None = None) -> None:
        assert self._closed is not None
        if self._closed.done():
            return
        if failure is None:
            self._closed.set_result(reason)
        else:
            self._closed.set_exception(failure)
        self._caller.put_nowait(None)
        self._typed.put_nowait(None)

    # --- the files ------------------------------------------------------------------------------------

    def _write(self) -> None:
        rate = self._rate or CALLER_RATE
        if self._out:
            silence = bytes(2 * round(BETWEEN_ANSWERS_S * rate))
            write_wave(self._out, np.frombuffer(silence.join(self._answers), np.int16), rate)
        if self._record:
            caller = np.frombuffer(resample(b"".join(self._caller_side), CALLER_RATE, rate), np.int16)
            agent = np.frombuffer(b"".join(self._agent_side), np.int16)
            both = np.zeros((max(len(caller), len(agent)), 2), np.int16)
            both[: len(caller), 0] = caller
            # Before the voice's rate was known nothing was heard of it: the sides end together.
            both[len(both) - len(agent) :, 1] = agent
            write_wave(self._record, both, rate)


def _load(path: str) -> _CallerTurn:
    samples, rate = read_wave(path)
    pcm = np.frombuffer(resample(samples.tobytes(), rate, CALLER_RATE), np.int16)
    blocks = np.pad(pcm, (0, -len(pcm) % _BLOCK)).reshape(-1, _BLOCK).astype(np.float64)
    loudness = np.sqrt((blocks**2).mean(axis=1))
    loud = np.flatnonzero(loudness >= _SOUND * loudness.max())
    return _CallerTurn(path, pcm, (int(loud[-1]) + 1) * _BLOCK)


def _ticks(seconds: float) -> int:
    return round(seconds * 1000 / TICK_MS)
