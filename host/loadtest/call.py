"""One call: a caller who speaks and hears, 20 ms at a time, in real time; whatever carries the audio."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from host.job.line import TICK_BYTES, TICK_MS
from host.job.room import AgentState
from host.loadtest.callers import Caller, Habits, Speak, turns
from host.loadtest.draws import Draws
from host.loadtest.measure import percentile
from host.loadtest.speech import Recording
from host.loadtest.timeline import AgentDoes, Answer, Event, Joined, Left, Said, Shown

logger = logging.getLogger(__name__)

_SILENCE = bytes(TICK_BYTES)
_TICK_S = TICK_MS / 1000
_LATENESSES = 3000
"""Of the last minute."""


class Line(Protocol):
    """What carries a call's audio."""

    rate: int
    """Of what is heard, in Hz."""

    @property
    def hears(self) -> bool:
        """Whether there was voice in the last tick."""

    def tick(self, at_s: float, block: bytes) -> list[Event]:
        """Say 20 ms at 16 kHz and hear what came; returns what was noticed."""

    def take_answer(self) -> bytes:
        """What was heard since the last time (int16)."""

    def finish(self) -> list[Event]:
        """The last things that were noticed."""

    def is_over(self) -> str:
        """Why the other end has gone; "" while it is there."""

    async def hang_up(self) -> None:
        """Leave."""


class Lines(Protocol):
    """Where the calls of a process come from."""

    async def start(self) -> None:
        """Be ready."""

    async def answer(self, call: RunningCall, token: str) -> Line:
        """The line of ``call``, as soon as the agent is there. Raises ``ConnectionError``."""

    async def aclose(self) -> None:
        """Be ready no more."""


class RunningCall:
    """A call from the moment the agent is there. ``report`` is told of everything that happens."""

    def __init__(
        self,
        room: str,
        seat: int,
        number: int,
        *,
        recordings: Mapping[str, Recording],
        habits: Habits,
        seed: int,
        folder: Path,
        keep: float,
        report: Callable[[Event], None],
        leave_s: float | None,
    ) -> None:
        self.room = room
        self.line: Line | None = None
        self._recordings = recordings
        self._habits = habits
        self._script = turns(seed, seat, number, [recording.clip for recording in recordings.values()], habits)
        self._folder = folder
        self._keep_share = keep
        self._draws = Draws(seed, seat, number, 3)
        self._report = report
        self._leave_s = leave_s
        self._agent: AgentState | None = None
        self._asked_s = time.monotonic()
        self._answers = 0
        self._hung_up = asyncio.Event()
        self._late: deque[float] = deque(maxlen=_LATENESSES)

    def hang_up(self) -> None:
        """Leave at the next tick."""
        self._hung_up.set()

    def agent_does(self, state: AgentState) -> None:
        """The agent's state has changed."""
        self._agent = state
        self._report(AgentDoes(time.monotonic(), state))

    def shown(self, shown: Shown) -> None:
        """A transcript came."""
        self._report(shown)
        if shown.final and shown.side == "agent" and self.line is not None:
            self._keep(shown, self.line.take_answer(), self.line.rate)

    def _keep(self, shown: Shown, pcm: bytes, rate: int) -> None:
        if not pcm:
            return
        self._answers += 1
        file = ""
        if self._draws.chance(self._keep_share):
            file = str(self._folder / f"{self.room}-{self._answers}.pcm")
            Path(file).write_bytes(pcm)
        self._report(Answer(shown.at_s, shown.segment, shown.text, file, rate, len(pcm) / 2 / rate))

    async def run(self, line: Line) -> None:
        """Hold the call until its time, until told to hang up, or until the agent has gone."""
        self.line = line
        start = time.monotonic()
        self._report(Joined(start, self._asked_s))
        caller = Caller(self._script, self._habits, start)
        speech = bytearray()
        ticks = 0
        error = ""
        try:
            while not self._hung_up.is_set():
                at_s = start + ticks * _TICK_S
                late_s = time.monotonic() - at_s
                self._late.append(late_s)
                if late_s > _TICK_S / 2:
                    # What came while this process stood still was there in time: it is taken first.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                if error := line.is_over():
                    break
                if self._leave_s is not None and at_s >= self._leave_s:
                    break
                action = caller.tick(at_s, hears=line.hears, agent=self._agent)
                if action is not None:
                    speech += self._said(action, at_s)
                block = bytes(speech[:TICK_BYTES]).ljust(TICK_BYTES, b"\0") if speech else _SILENCE
                del speech[:TICK_BYTES]
                for event in line.tick(at_s, block):
                    self._report(event)
                ticks += 1
                await asyncio.sleep(max(0.0, start + ticks * _TICK_S - time.monotonic()))
        finally:
            for event in line.finish():
                self._report(event)
            late = sorted(self._late) or [0.0]
            self._report(Left(time.monotonic(), error, percentile(late, 99) * 1000, late[-1] * 1000))
            await line.hang_up()

    def _said(self, action: Speak, at_s: float) -> bytes:
        turn = action.turn
        self._report(
            Said(
                turn.number,
                turn.clip.name,
                at_s + turn.begin_s,
                at_s + turn.end_s,
                action.interrupts,
                turn.hesitation_s,
            )
        )
        return self._recordings[turn.clip.name].said(turn).tobytes()
