"""Rooms for tests: one in writing, and one with sound, whose time is the test's.

In the room with sound time passes only in a turn of the test, in ticks of 20 ms: in each the caller is heard for
20 ms (what is played, or silence), and the agent, too. With the *fast* clock the next tick comes as soon as everything
that is due has happened: while the engines work it stands still, while nothing is to be done it runs several times as
fast as real time. What is counted on it is the same on every machine, however busy. With the *real* clock it is real
time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from host.job.room import AgentState, LocalParticipant, Side
from inference.wire.supervision import TurnReport

ClockKind = Literal["fast", "real"]

CALLER_RATE = 16_000
TICK_MS = 20
BLOCK = CALLER_RATE * TICK_MS // 1000
"""Samples of the caller in a tick."""
QUEUE_MS = 200
"""``play`` waits while more than this is queued, as a WebRTC track's queue would."""

_LEAD_MS = 96
"""How far voice activity detection may be behind while the caller may be speaking."""
_QUIET_LEAD_MS = 480
"""How far it may be behind while the caller has nothing to say: there is nothing to detect."""
_POLL_S = 0.002
_SIGN_OF_LIFE_S = 0.1
"""A caller from whom nothing came for longer would be taken to be silent, which would be time that passes."""
_WORK_IN_SILENCE_S = 0.02
"""While the agent thinks and no engine works, some code of its does (a tool): that takes real time."""


@dataclass(frozen=True, slots=True)
class TranscriptNote:
    """One call of ``publish_transcript``."""

    side: Side
    segment: str
    text: str
    final: bool


class Progress(Protocol):
    """How far the inference process has got with the room."""

    @property
    def position(self) -> int:
        """Samples of the caller so far."""

    @property
    def heard(self) -> int:
        """How far voice activity detection has got."""

    @property
    def is_at_work(self) -> bool:
        """Whether something that was asked for has not come yet."""

    async def settle(self) -> None:
        """Return when what detection has reported so far has come."""


@dataclass(frozen=True, slots=True)
class RehearsedParticipant:
    """The agent in a room for tests."""

    identity: str = "agent"


class _Notes:
    """What both rooms are told, and keep."""

    name = "rehearsal"

    def __init__(self) -> None:
        self.local_participant: LocalParticipant = RehearsedParticipant()
        self.transcripts: list[TranscriptNote] = []
        self.states: list[AgentState] = []
        self.metrics: list[TurnReport] = []

    @property
    def state(self) -> AgentState:
        """What the agent does."""
        return self.states[-1] if self.states else "initializing"

    async def set_agent_state(self, state: AgentState) -> None:
        """Kept in ``states``."""
        self.states.append(state)

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        """Kept in ``transcripts``."""
        self.transcripts.append(TranscriptNote(side, segment, text, final))

    async def publish_metrics(self, report: TurnReport) -> None:
        """Kept in ``metrics``."""
        self.metrics.append(report)

    async def text_input(self) -> AsyncIterator[str]:
        """Nobody types here: turns are given to the conversation directly."""
        await asyncio.Event().wait()
        yield ""


class RoomInWriting(_Notes):
    """``WrittenRoom`` of a test."""


class RoomWithSound(_Notes):
    """``Room`` of a test. ``run`` lets time pass; outside of it the clock stands still.

    ``progress`` is asked whether time may pass, with the fast clock.
    """

    def __init__(self, clock: ClockKind, progress: Progress) -> None:
        super().__init__()
        self._clock = clock
        self._progress = progress
        self._caller: asyncio.Queue[bytes] = asyncio.Queue()
        self._to_play = bytearray()
        self._ticks = 0
        self._handed_over = 0
        self._settled = -1
        self._rate = 0
        self._queue = bytearray()
        self._queue_moved = asyncio.Event()
        self._in_flight = 0
        self._sounding = False
        self._heard = 0
        self.answer = bytearray()
        """The agent's side since it was cleared last: what was heard, int16 at ``rate``."""

    @property
    def rate(self) -> int:
        """Of the agent's speech, in Hz."""
        return self._rate

    def now(self) -> float:
        """Seconds on the room's clock."""
        return self._ticks * TICK_MS / 1000

    # --- the test's side ------------------------------------------------------------------------------

    def play_caller(self, pcm: bytes) -> None:
        """The caller says this (int16 at 16 kHz) from the next tick on, after what is still to be said."""
        self._to_play += pcm

    @property
    def caller_is_speaking(self) -> bool:
        """Whether something is left of what the caller was to say."""
        return bool(self._to_play)

    @property
    def is_silent(self) -> bool:
        """Whether nothing of the agent is heard, or waits to be."""
        return not self._queue and not self._sounding

    async def run(self, until: Callable[[], bool]) -> None:
        """Let time pass until ``until()``, which is asked after each tick."""
        due = time.monotonic()
        while not until():
            if self._clock == "fast":
                await self._until_due()
            else:
                due = max(due + TICK_MS / 1000, time.monotonic() - 1.0)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._tick()
            # Everybody who waited for this tick goes first.
            for _ in range(5):
                await asyncio.sleep(0)

    async def _until_due(self) -> None:
        alive = began = time.monotonic()
        while True:
            if not self._is_due(time.monotonic() - began):
                await asyncio.sleep(_POLL_S)
            elif (heard := self._progress.heard) == self._settled:
                return
            else:
                # What was heard is counted before it is judged, and reported after that.
                await self._progress.settle()
                self._settled = heard
            if time.monotonic() - alive > _SIGN_OF_LIFE_S:
                alive = time.monotonic()
                self._caller.put_nowait(b"")

    def _is_due(self, waited_s: float) -> bool:
        progress = self._progress
        if progress.position < self._handed_over:
            return False
        quiet = not self._to_play and self.state in ("thinking", "speaking")
        if progress.position - progress.heard > (_QUIET_LEAD_MS if quiet else _LEAD_MS) * CALLER_RATE // 1000:
            return False
        if self._queue:
            return True
        if progress.is_at_work:
            return False
        return self.state != "thinking" or waited_s >= _WORK_IN_SILENCE_S

    def _tick(self) -> None:
        self._heard += self._in_flight
        size = 2 * (self._rate * TICK_MS * (self._ticks + 1) // 1000 - self._rate * TICK_MS * self._ticks // 1000)
        pcm = bytes(self._queue[:size])
        del self._queue[: len(pcm)]
        self._in_flight = len(pcm) // 2
        self._sounding = bool(pcm)
        self.answer += pcm
        self._queue_moved.set()
        block = bytes(self._to_play[: 2 * BLOCK])
        del self._to_play[: 2 * BLOCK]
        self._ticks += 1
        self._handed_over = self._progress.position + BLOCK
        self._caller.put_nowait(block + bytes(2 * BLOCK - len(block)))

    # --- the agent's side -----------------------------------------------------------------------------

    async def connect(self) -> None:
        """There is nowhere to connect to."""

    async def wait_for_participant(self, identity: str = "") -> str:
        """The caller is there at once."""
        return identity or "caller"

    async def wait_closed(self) -> str:
        """The test ends the session."""
        await asyncio.Event().wait()
        return ""

    async def leave(self) -> None:
        """There is nothing to leave."""

    async def caller_audio(self) -> AsyncIterator[bytes]:
        """The caller's audio at 16 kHz, 20 ms at a time."""
        while True:
            yield await self._caller.get()

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
        """Silence now. The tick that is being heard counts as heard."""
        self._queue.clear()
        self._heard += self._in_flight
        self._in_flight = 0
        # What sounds is cut off: nobody need wait for the next tick to hear that.
        self._sounding = False
        self._queue_moved.set()

    def heard_samples(self) -> int:
        """How many samples given to ``play`` have been heard so far."""
        return self._heard

    async def wait_for_playout(self) -> None:
        """Return when everything queued has been heard."""
        while self._queue or self._sounding:
            self._queue_moved.clear()
            await self._queue_moved.wait()
