"""Conversations on a virtual clock: how soon rooms are answered on a device with given costs. Pure.

The planner is the one that runs live; the device takes as long as a table of costs says; the callers are made up.

One turn of a room: the caller's last sound → a pause is noticed → a guess is transcribed → the endpointing delay is
over and the transcript is there → prefill → one token a step → a phrase of tokens is spoken, block by block → the
listener hears it all, thinks, speaks: the next turn ends. *Response* is from the caller's last sound to the first
audio, endpointing included.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from inference.costs import CostTable, Stage
from inference.planner import GUESS_S, KIND_OF, Hold, Kind, Planner, Quantum, Task, Why

_QUIET_S = 0.4
"""A listener takes an answer to be over when it has been quiet for so long."""

Uniform = Callable[[float, float], float]
"""Draws between two numbers; ``random.Random(seed).uniform``. All chance comes from it."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What callers, jobs and answers are like. Seconds, unless the name says otherwise; pairs are from … to."""

    pause_s: float = 0.1
    """From the last sound until voice activity detection tells of a pause."""
    endpointing_s: float = 0.5
    """From the last sound until the turn is over: the default of a session."""
    false_pauses: float = 0.3
    """Pauses in an utterance at which a guess is made for nothing, per turn (0 to 1)."""
    prepares: bool = False
    """The prompt is prefilled on the transcript of a pause, before the turn is over."""
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
    begin_s: float = 10.0
    """In which the first utterances of all rooms end."""
    false_pause_s: float = 1.0
    """From a pause in an utterance to its last sound."""
    answers: Sequence[Sequence[tuple[int, float]]] = ()
    """Answers to draw from, of each phrase its tokens and its seconds of speech; none: by the numbers above."""
    thinks_s: tuple[float, float] = (1.0, 6.0)
    """From the last audio heard to the end of the next utterance."""
    cycle_s: float = 0.0
    """From one last sound to the next, give or take a fifth, unless the answer takes longer; 0: no cycle."""
    interrupts: float = 0.0
    """Answers that are interrupted (0 to 1)."""
    interrupts_after_s: tuple[float, float] = (0.8, 2.5)
    """Into an answer."""
    interruption_s: tuple[float, float] = (2.0, 5.0)
    """How long is spoken then."""
    device_varies: tuple[float, float] = (0.9, 1.15)
    """Times what the table says."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What a caller says next. Seconds.

    ``after_s``: since the one before began, and ``thinks_s``: since its answer was heard, at least. ``last_sound_s``,
    ``pauses`` (from … to): since it began. ``interrupts_after_s``: so far into its answer the next one begins; None
    hears it out.
    """

    after_s: float
    thinks_s: float
    last_sound_s: float
    pauses: Sequence[tuple[float, float]] = ()
    interrupts_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """A caller who comes at ``joins_s``, hears a greeting of ``greeting_s``, and then speaks ``utterances``."""

    joins_s: float
    greeting_s: float
    utterances: Iterator[Utterance]


class Policy(Protocol):
    """What a planner is to a lane."""

    def ran(self, stage: Stage, rooms: Sequence[int], seconds: float, now: float, *, guess: bool = False) -> None:
        """A quantum for ``rooms`` has taken ``seconds``; ``guess``: for what nobody may ever want."""

    def decide(self, now: float, tasks: Sequence[Task]) -> Quantum | Hold | None:
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
    quanta: Counter[Why]

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
    waits_for: int = 0
    """Of its transcript and the end of the turn."""
    answered: bool = False
    turn: int = 0
    began: float = -math.inf
    """When the caller's utterance began; ``utterance``: which one it is."""
    utterance: Utterance | None = None
    prepares: int = 0
    """The request that prefills on the transcript of a pause, 0 for none; and whether it is done."""
    is_prepared: bool = False
    generating: bool = False
    answer: Sequence[tuple[int, float]] = ()
    """Phrases of the answer that are not written yet."""
    phrase: int = 0
    """Tokens of the phrase that is being written, and how many end it."""
    phrase_ends: int = 0
    phrases_s: list[float] = field(default_factory=list)
    """Speech of the phrases that are not made; the first one is being made."""


class Simulation:
    """``rooms`` conversations, numbered from 0, from time 0 on.

    ``limits``: how many requests a quantum of a stage serves at most, as for the planner. ``scripts``: what the caller
    of each room says and when; without them callers are made up from ``habits``. Turns whose last sound is before
    ``counts_from_s`` are not counted.
    """

    def __init__(
        self,
        costs: CostTable,
        rooms: int,
        uniform: Uniform,
        *,
        habits: Habits | None = None,
        policy: Policy | None = None,
        limits: Mapping[Stage, int] | None = None,
        scripts: Sequence[Script] = (),
        counts_from_s: float = 0.0,
    ) -> None:
        self.now = 0.0
        self._costs = costs
        self._habits = habits or Habits()
        self._uniform = uniform
        self._policy = policy or Planner(costs.copy(), limits)
        self._asked: dict[int, _Ask] = {}
        self._running: frozenset[int] = frozenset()
        self._keys = itertools.count(1)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count()
        self._responses: list[float] = []
        self._dry_s = 0.0
        self._stage_s: defaultdict[Stage, float] = defaultdict(float)
        self._used_s: defaultdict[int, float] = defaultdict(float)
        self._quanta: Counter[Why] = Counter()
        self._rooms = [_Room(number) for number in range(rooms)]
        self._scripts = scripts
        self._counts_from_s = counts_from_s
        for room, script in zip(self._rooms, scripts, strict=False):
            self._at(script.joins_s, partial(self._join, room, script))
        for room in self._rooms[len(scripts) :]:
            self._at(uniform(0.0, self._habits.begin_s), partial(self._last_sound, room))

    def run(self, seconds: float) -> Outcome:
        """Go on until ``seconds``; what happened from time 0 on."""
        while self.now < seconds:
            self._happen(self.now)
            match self._policy.decide(self.now, self._tasks()):
                case Quantum() as quantum:
                    self._perform(quantum)
                case Hold(until=until):
                    self.now = min(until, self._events[0][0] if self._events else seconds)
                case None:
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
        """From ``at`` on ``room``, none of the others, asks for everything at once, without end.

        It transcribes so many utterances at a time, generates and speaks, and listens to nothing.
        """

        def ask(stage: Stage) -> None:
            again = partial(self._at_in, self._habits.job_s, partial(ask, stage))
            self._ask(room, stage, tokens=200, speech_s=5.0, on_end=again)

        for stage in (*[Stage.ENCODE] * utterances, Stage.PREFILL, Stage.FIRST_SPEECH):
            self._at(at, partial(ask, stage))

    # --- time ---------------------------------------------------------------------------------------

    def _at(self, when: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._sequence), what))

    def _at_in(self, seconds: float, what: Callable[[], object]) -> None:
        self._at(self.now + seconds, what)

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
        served = self._fits(quantum)
        took = self._costs.predict(quantum.stage, served) * self._uniform(*self._habits.device_varies)
        ends = self.now + took
        self._running = frozenset(quantum.requests[:served])
        # What is asked for meanwhile waits, but has its own time.
        self._happen(ends)
        self._running = frozenset()
        self.now = ends
        rooms = quantum.rooms[:served]
        wanted = (self._asked[key].wanted for key in quantum.requests[:served] if key in self._asked)
        self._policy.ran(quantum.stage, rooms, took, ends, guess=all(when == math.inf for when in wanted))
        self._quanta[quantum.why] += 1
        self._stage_s[quantum.stage] += took
        for room in rooms:
            self._used_s[room] += took / served
        for key in quantum.requests[:served]:
            if key in self._asked:
                self._advance(self._asked[key])

    def _fits(self, quantum: Quantum) -> int:
        """How many of a quantum the engine serves: a voice makes no more than fits into its step."""
        served = len(quantum.requests)
        if quantum.kind is Kind.TTS:
            while served > 1 and self._costs.predict(quantum.stage, served) > self._habits.voice_step_s:
                served -= 1
        return served

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
                ask.stage = Stage.SPEECH
                if ask.room < len(self._rooms):
                    self._hear(self._rooms[ask.room], min(ask.speech_s, block_s))
                ask.speech_s -= block_s
                if ask.speech_s > 0:
                    return
        del self._asked[ask.key]
        ask.on_end()

    # --- a room -------------------------------------------------------------------------------------

    def _last_sound(self, room: _Room, turn: int = 0) -> None:
        """The caller's utterance ends now; unless the answer of ``turn`` that it follows was interrupted."""
        if turn and turn != room.turn:
            return
        habits = self._habits
        room.last_sound, room.answered, room.waits_for = self.now, False, 2
        room.turn += 1
        room.prepares, room.is_prepared = 0, False
        guess = partial(self._transcribe, room, on_end=partial(self._transcript_is_there, room))
        self._at_in(habits.pause_s + habits.job_s, guess)
        self._at_in(habits.endpointing_s, partial(self._turn_goes_on, room))

    def _transcribe(self, room: _Room, on_end: Callable[[], None] = lambda: None) -> _Ask:
        return self._ask(room.number, Stage.ENCODE, wanted=self.now + GUESS_S, on_end=on_end)

    def _transcript_is_there(self, room: _Room) -> None:
        """While the turn may still go on, what would be answered is prefilled already."""
        if self._habits.prepares and room.waits_for == 2:

            def prepared() -> None:
                room.is_prepared = True

            room.prepares = self._ask(room.number, Stage.PREFILL, wanted=math.inf, on_end=prepared).key
        self._turn_goes_on(room)

    def _turn_goes_on(self, room: _Room) -> None:
        """The transcript is there, or the endpointing delay is over: with both the turn is answered."""
        room.waits_for -= 1
        if not room.waits_for:
            self._at_in(self._habits.job_s, partial(self._answer, room))

    def _false_pause(self, room: _Room, lasts_s: float) -> None:
        """The caller goes on: what was asked for is cancelled, unless it is done."""
        ask = self._transcribe(room)
        self._at_in(lasts_s, lambda: self._asked.pop(ask.key, None))

    # --- a room whose caller has a script -----------------------------------------------------------

    def _join(self, room: _Room, script: Script) -> None:
        room.answered = True
        room.phrases_s.append(script.greeting_s)
        self._speak(room)

    def _begin(self, room: _Room, turn: int) -> None:
        """The caller begins to speak, at once or after ``turn`` was answered; unless that was interrupted."""
        if turn != room.turn:
            return
        utterance = room.utterance
        assert utterance is not None
        room.began = self.now
        for start_s, end_s in utterance.pauses:
            if end_s - start_s > self._habits.pause_s:
                lasts_s = min(end_s - start_s - self._habits.pause_s, self._habits.endpointing_s)
                self._at_in(start_s + self._habits.pause_s, partial(self._false_pause, room, lasts_s))
        self._at_in(utterance.last_sound_s, partial(self._last_sound, room, room.turn))

    def _think(self, room: _Room) -> None:
        """The answer of the turn is made: the next utterance is due after a cycle, when it was heard and thought."""
        first = room.utterance is None
        before_s = 0.0 if first else room.began
        room.utterance = next(self._scripts[room.number].utterances)
        due = 0.0 if first else before_s + room.utterance.after_s
        over = room.heard_until + _QUIET_S + room.utterance.thinks_s
        self._at(max(due, over), partial(self._begin, room, room.turn))

    def _break_in(self, room: _Room, turn: int) -> None:
        """The caller speaks into the answer, if it is still heard."""
        if room.turn != turn or self.now >= room.heard_until:
            return
        self._silence(room)
        room.utterance = next(self._scripts[room.number].utterances)
        self._begin(room, room.turn)

    def _answer(self, room: _Room) -> None:
        habits = self._habits
        room.generating, room.phrase, room.phrase_ends = True, 0, habits.first_phrase
        tokens = round(self._uniform(*habits.tokens))
        if habits.answers:
            room.answer = habits.answers[min(len(habits.answers) - 1, int(self._uniform(0.0, len(habits.answers))))]
            tokens, room.phrase_ends = sum(count for count, _ in room.answer), room.answer[0][0]
        # What the device is prefilling stays in its cache.
        is_prepared = room.is_prepared or room.prepares in self._running
        self._asked.pop(room.prepares, None)
        stage = Stage.DECODE if is_prepared else Stage.PREFILL
        self._ask(room.number, stage, tokens=tokens, on_token=partial(self._token, room))

    def _token(self, room: _Room, left: int) -> None:
        room.generating = left > 0
        room.phrase += 1
        if room.phrase == room.phrase_ends or not left:
            speech_s = room.phrase * self._habits.token_speech_s
            room.phrase, room.phrase_ends = 0, self._habits.phrase
            if room.answer:
                speech_s, room.answer = room.answer[0][1], room.answer[1:]
                room.phrase_ends = room.answer[0][0] if room.answer else 0
            room.phrases_s.append(speech_s)
            if len(room.phrases_s) == 1:
                self._at_in(self._habits.job_s, partial(self._speak, room))

    def _speak(self, room: _Room) -> None:
        """A room's phrases are made one after the other."""
        if not room.phrases_s:
            return
        self._ask(
            room.number, Stage.FIRST_SPEECH, speech_s=room.phrases_s[0], on_end=partial(self._phrase_is_made, room)
        )

    def _phrase_is_made(self, room: _Room) -> None:
        del room.phrases_s[0]
        if room.phrases_s:
            self._speak(room)
        elif not room.generating:
            self._listen(room)

    def _hear(self, room: _Room, seconds: float) -> None:
        if not room.answered:
            room.answered = True
            if room.last_sound >= self._counts_from_s:
                self._responses.append(self.now - room.last_sound)
            if room.utterance is not None:
                if room.utterance.interrupts_after_s is not None:
                    self._at_in(room.utterance.interrupts_after_s, partial(self._break_in, room, room.turn))
            elif self._habits.interrupts and self._uniform(0.0, 1.0) < self._habits.interrupts:
                after_s = self._uniform(*self._habits.interrupts_after_s)
                self._at_in(after_s, partial(self._interrupt, room, room.turn))
        elif room.turn:
            # Before a greeting nobody has been heard.
            self._dry_s += max(0.0, self.now - room.heard_until)
        room.heard_until = max(self.now, room.heard_until) + seconds

    def _interrupt(self, room: _Room, turn: int) -> None:
        """The caller speaks into the answer: what is left of it is dropped."""
        if room.turn != turn:
            return
        self._silence(room)
        self._at_in(self._uniform(*self._habits.interruption_s), partial(self._last_sound, room))

    def _silence(self, room: _Room) -> None:
        for key in [key for key, ask in self._asked.items() if ask.room == room.number]:
            del self._asked[key]
        room.phrases_s.clear()
        room.generating, room.answer, room.heard_until = False, (), self.now
        room.turn += 1

    def _listen(self, room: _Room) -> None:
        """All of the answer is made; the listener hears it to its end, thinks, and says something else."""
        if self._scripts:
            self._think(room)
            return
        habits = self._habits
        ends = room.heard_until + self._uniform(*habits.thinks_s)
        if habits.cycle_s:
            ends = max(ends, room.last_sound + habits.cycle_s * self._uniform(0.8, 1.2))
        if self._uniform(0.0, 1.0) < habits.false_pauses:
            false_pause = partial(self._false_pause, room, habits.endpointing_s)
            self._at(max(room.heard_until, ends - habits.false_pause_s), false_pause)
        self._at(ends, partial(self._last_sound, room, room.turn))
