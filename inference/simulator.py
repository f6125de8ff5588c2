"""Conversations on a virtual clock: how soon rooms are answered on a device with given costs. Pure.

The planner is the one that runs live; the device takes as long as a table of costs says; the callers are made up.
The same seed gives the same conversations whatever the device and the planner do with them.

One turn of a room: the caller's last sound → a pause is noticed → a guess is transcribed → the endpointing delay is
over and the transcript is there → prefill → one token a step → a phrase of tokens is spoken, block by block → the
listener hears it all, thinks, speaks: the next turn ends. *Response* is from the caller's last sound to the first
audio, endpointing included.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from inference.costs import CostTable, Stage
from inference.planner import GUESS_S, KIND_OF, Kind, Planner, Quantum, Task

Uniform = Callable[[float, float], float]
"""Draws between two numbers; ``random.Random(seed).uniform``. All chance comes from it."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What callers, jobs and answers are like. Seconds, unless the name says otherwise; pairs are from … to."""

    pause_s: float = 0.1
    """From the last sound until voice activity detection tells of a pause."""
    endpointing_s: float = 0.5
    """From the last sound until the turn is over."""
    false_pauses: float = 0.3
    """Pauses in an utterance at which a guess is made for nothing, per turn (0 to 1)."""
    job_s: float = 0.002
    """From a message to a job to what it asks for next."""
    tokens: tuple[float, float] = (16, 40)
    """Of an answer."""
    first_phrase: int = 8
    """Tokens of the first phrase."""
    phrase: int = 12
    """Tokens of the others."""
    token_speech_s: float = 0.27
    """Speech that one token makes."""
    first_block_s: float = 0.19
    """Speech of a phrase's first block."""
    block_s: float = 0.37
    """Speech of each of its others."""
    voice_step_s: float = 0.04
    """Blocks are made together as long as they take no longer than this."""
    thinks_s: tuple[float, float] = (1.0, 6.0)
    """From the last audio heard to the end of the next utterance."""
    device_varies: tuple[float, float] = (0.9, 1.15)
    """Times what the table says."""


class Policy(Protocol):
    """What a planner is to a lane."""

    def ran(self, stage: Stage, rooms: Sequence[int], seconds: float, now: float) -> None:
        """A quantum for ``rooms`` has taken ``seconds``."""

    def decide(self, now: float, tasks: Sequence[Task]) -> Quantum | None:
        """The next quantum."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. ``responses``: in seconds, shortest first; ``busy``: share of the time the device worked.

    ``dry_s``: seconds in which a listener waited in the middle of an answer, all together; ``stage_s``: device seconds
    by stage; ``used_s``: by room; ``quanta``: how many for each reason.
    """

    seconds: float
    responses: tuple[float, ...]
    dry_s: float
    busy: float
    stage_s: dict[Stage, float]
    used_s: dict[int, float]
    quanta: Counter[str]

    def response_s(self, share: float) -> float:
        """The response that ``share`` of all do not exceed; infinite without any."""
        if not self.responses:
            return math.inf
        return self.responses[max(0, math.ceil(share * len(self.responses)) - 1)]


@dataclass(slots=True, eq=False)
class _Ask:
    key: int
    room: int
    stage: Stage
    since: float
    wanted: float = -math.inf
    tokens: int = 0
    speech_s: float = 0.0
    on_token: Callable[[int], None] = lambda _: None
    on_end: Callable[[], None] = lambda: None


@dataclass(slots=True, eq=False)
class _Room:
    number: int
    heard_until: float = 0.0
    """When the listener will have heard all that was made."""
    last_sound: float = 0.0
    answered: bool = False
    speaking: int = 0
    """Phrases that are not made to their end."""
    generating: bool = False
    waits: list[_Ask] = field(default_factory=list)
    """Phrases behind the one that is being made."""


class Simulation:
    """``rooms`` conversations, numbered from 0, from time 0 on."""

    def __init__(
        self,
        costs: CostTable,
        rooms: int,
        uniform: Uniform,
        *,
        habits: Habits | None = None,
        policy: Policy | None = None,
        limits: Mapping[Stage, int] | None = None,
    ) -> None:
        self.now = 0.0
        self._costs = costs
        self._habits = habits or Habits()
        self._uniform = uniform
        self._policy = policy or Planner(costs.copy(), limits)
        self._asked: dict[int, _Ask] = {}
        self._keys = itertools.count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._responses: list[float] = []
        self._dry_s = 0.0
        self._stage_s: Counter[Stage] = Counter()
        self._used_s: Counter[int] = Counter()
        self._quanta: Counter[str] = Counter()
        self._rooms = [_Room(number) for number in range(rooms)]
        for room in self._rooms:
            self._at(uniform(0.0, 10.0), lambda room=room: self._last_sound(room))  # type: ignore[misc]

    def run(self, seconds: float) -> Outcome:
        """Go on until ``seconds``; what happened from time 0 on."""
        while self.now < seconds:
            self._happen(self.now)
            quantum = self._policy.decide(self.now, self._tasks())
            if quantum is not None:
                self._perform(quantum)
            else:
                self.now = self._events[0][0] if self._events else seconds
        return Outcome(
            seconds=self.now,
            responses=tuple(sorted(self._responses)),
            dry_s=self._dry_s,
            busy=sum(self._stage_s.values()) / self.now,
            stage_s=dict(self._stage_s),
            used_s=dict(self._used_s),
            quanta=self._quanta,
        )

    def flood(self, room: int, at: float, *, utterances: int = 8) -> None:
        """From ``at`` on ``room``, none of the others, asks for everything at once, without end."""

        def again(stage: Stage) -> None:
            self._ask(
                room,
                stage,
                tokens=200,
                speech_s=5.0,
                on_end=lambda: self._at(self.now + self._habits.job_s, lambda: again(stage)),
            )

        def begin() -> None:
            for stage in (*[Stage.ENCODE] * utterances, Stage.PREFILL, Stage.FIRST_SPEECH):
                again(stage)

        self._at(at, begin)

    # --- time ---------------------------------------------------------------------------------------

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._sequence), what))

    def _happen(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            when, _, what = heapq.heappop(self._events)
            self.now = max(self.now, when)
            what()

    def _tasks(self) -> list[Task]:
        speaking = {ask.room for ask in self._asked.values() if KIND_OF[ask.stage] is Kind.TTS}
        return [
            Task(
                ask.stage,
                ask.key,
                ask.room,
                ask.since,
                ask.wanted,
                # Who floods hears nobody out.
                max(0.0, self._rooms[ask.room].heard_until - self.now) if ask.room < len(self._rooms) else 0.0,
                ask.room in speaking,
            )
            for ask in self._asked.values()
        ]

    def _perform(self, quantum: Quantum) -> None:
        served = len(quantum.requests)
        if quantum.kind is Kind.TTS:
            while served > 1 and self._costs.predict(quantum.stage, served) > self._habits.voice_step_s:
                served -= 1
        took = self._costs.predict(quantum.stage, served) * self._uniform(*self._habits.device_varies)
        ends = self.now + took
        # What is asked for meanwhile waits, but has its own time.
        self._happen(ends)
        self.now = ends
        rooms = quantum.rooms[:served]
        self._policy.ran(quantum.stage, rooms, took, ends)
        self._quanta[quantum.why.value] += 1
        self._stage_s[quantum.stage] += took
        for room in rooms:
            self._used_s[room] += took / served
        for key in quantum.requests[:served]:
            if key in self._asked:
                self._advance(self._asked[key])

    # --- requests -----------------------------------------------------------------------------------

    def _ask(
        self,
        room: int,
        stage: Stage,
        *,
        wanted: float = -math.inf,
        tokens: int = 0,
        speech_s: float = 0.0,
        on_token: Callable[[int], None] = lambda _: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> _Ask:
        ask = _Ask(next(self._keys), room, stage, self.now, wanted, tokens, speech_s, on_token, on_end)
        self._asked[ask.key] = ask
        return ask

    def _advance(self, ask: _Ask) -> None:
        ask.since = self.now
        match ask.stage:
            case Stage.ENCODE:
                ask.stage = Stage.TRANSCRIBE
                return
            case Stage.PREFILL | Stage.DECODE:
                ask.stage = Stage.DECODE
                ask.tokens -= 1
                ask.on_token(ask.tokens)
                if ask.tokens > 0:
                    return
            case Stage.FIRST_SPEECH | Stage.SPEECH:
                habits = self._habits
                block_s = habits.first_block_s if ask.stage is Stage.FIRST_SPEECH else habits.block_s
                block_s = min(ask.speech_s, block_s)
                ask.stage = Stage.SPEECH
                ask.speech_s -= block_s
                if ask.room < len(self._rooms):
                    self._hear(self._rooms[ask.room], block_s)
                if ask.speech_s > 1e-9:
                    return
        del self._asked[ask.key]
        ask.on_end()

    # --- a room ---------------------------------------------------------------------------------------

    def _last_sound(self, room: _Room) -> None:
        """The caller's utterance ends now."""
        habits = self._habits
        room.last_sound, room.answered = self.now, False
        tokens = round(self._uniform(*habits.tokens))
        missing = 2

        def one_more() -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                self._at(self.now + habits.job_s, lambda: self._answer(room, tokens))

        def guess() -> None:
            self._ask(room.number, Stage.ENCODE, wanted=self.now + GUESS_S, on_end=one_more)

        self._at(self.now + habits.pause_s + habits.job_s, guess)
        self._at(self.now + habits.endpointing_s, one_more)

    def _false_pause(self, room: _Room) -> None:
        """The caller goes on: what was asked for is cancelled, unless it is done."""
        ask = self._ask(room.number, Stage.ENCODE, wanted=self.now + GUESS_S)
        self._at(self.now + self._habits.endpointing_s, lambda: self._asked.pop(ask.key, None))

    def _answer(self, room: _Room, tokens: int) -> None:
        habits = self._habits
        phrase, wanted = 0, habits.first_phrase
        room.generating = True

        def on_token(left: int) -> None:
            nonlocal phrase, wanted
            phrase += 1
            if phrase == wanted or left == 0:
                speech_s = phrase * habits.token_speech_s
                phrase, wanted = 0, habits.phrase
                room.speaking += 1
                self._at(self.now + habits.job_s, lambda: self._speak(room, speech_s))
            room.generating = left > 0

        self._ask(room.number, Stage.PREFILL, tokens=tokens, on_token=on_token)

    def _speak(self, room: _Room, speech_s: float) -> None:
        def on_end() -> None:
            room.speaking -= 1
            if room.waits:
                # It could not begin before: only a room's oldest phrase is made.
                ask = room.waits.pop(0)
                ask.since = self.now
                self._asked[ask.key] = ask
            elif not room.generating and not room.speaking:
                self._listens(room)

        ask = self._ask(room.number, Stage.FIRST_SPEECH, speech_s=speech_s, on_end=on_end)
        if any(other is not ask and other.room == room.number and KIND_OF[other.stage] is Kind.TTS for other in self._asked.values()):
            del self._asked[ask.key]
            room.waits.append(ask)

    def _hear(self, room: _Room, seconds: float) -> None:
        if not room.answered:
            room.answered = True
            self._responses.append(self.now - room.last_sound)
        else:
            self._dry_s += max(0.0, self.now - room.heard_until)
        room.heard_until = max(self.now, room.heard_until) + seconds

    def _listens(self, room: _Room) -> None:
        """All of the answer is made; the listener hears it to its end and says something else."""
        habits = self._habits
        ends = room.heard_until + self._uniform(*habits.thinks_s)
        if self._uniform(0.0, 1.0) < habits.false_pauses:
            self._at(max(room.heard_until, ends - 1.0), lambda: self._false_pause(room))
        self._at(ends, lambda: self._last_sound(room))
