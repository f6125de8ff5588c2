"""How a caller behaves: what is said and when, from a seed, on a virtual clock. Pure.

    THINKING --due--> SPEAKING --said--> WAITING --agent heard--> LISTENING --answer over--> THINKING
    WAITING --patience out--> THINKING                            LISTENING --interrupts--> SPEAKING

A call is an endless row of ``Turn`` drawn from (seed, seat, call). One begins every ``cycle_s`` on average, but
not before the answer to the one before is over and the caller has thought.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from host.loadtest.draws import Draws

if TYPE_CHECKING:
    from host.job.room import AgentState

QUIET_S = 0.4
"""An answer is over when the agent says it listens and has not been heard for so long."""
SILENT_S = 4.0
"""And in any case when it has not been heard for so long."""
LONGEST_OF_CYCLE = 0.6
"""A recording is no longer than this share of a cycle: the rest of it is the agent's."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, voiced from ``begin_s`` to ``end_s``. ``pauses_s``: quiet places, where a speaker may hesitate."""

    name: str
    seconds: float
    begin_s: float
    end_s: float
    pauses_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Habits:
    """How people talk. Shares are from 0 to 1 of the turns; ranges are in seconds.

    ``cycle_s``: from one utterance to the next, on average. ``think_s``: between an answer and the next
    utterance, at least. ``hesitates``, ``hesitation_s``: a pause in the middle of an utterance.
    ``interrupts``, ``interrupt_after_s``: into an answer. ``stays_silent``: nothing is said for a cycle
    more. ``patience_s``: how long an answer is waited for. ``call_s``: mean length of a call; 0 stays to the end.
    """

    cycle_s: float = 10.0
    think_s: tuple[float, float] = (0.4, 1.2)
    hesitates: float = 0.2
    hesitation_s: tuple[float, float] = (0.1, 0.25)
    interrupts: float = 0.1
    interrupt_after_s: tuple[float, float] = (0.8, 2.5)
    stays_silent: float = 0.05
    patience_s: float = 20.0
    call_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance to come.

    ``after_s``: since the one before began. ``think_s``: since the answer was over. ``hesitation_s`` of
    silence at ``pause_s`` of the recording. ``interrupt_after_s``: into its answer the next one begins; None
    lets the agent speak.
    """

    number: int
    clip: Clip
    after_s: float
    think_s: float
    hesitation_s: float = 0.0
    pause_s: float = 0.0
    interrupt_after_s: float | None = None

    @property
    def begin_s(self) -> float:
        """First voiced sample, since the utterance began."""
        return self.clip.begin_s

    @property
    def end_s(self) -> float:
        """Last voiced sample, since the utterance began."""
        return self.clip.end_s + self.hesitation_s


def turns(seed: int, seat: int, call: int, clips: Sequence[Clip], habits: Habits) -> Iterator[Turn]:
    """The utterances of one call, without an end. Every recording is used before one is used again."""
    draws = Draws(seed, seat, call)
    deck: list[Clip] = []
    number = 0
    while True:
        deck = deck or draws.shuffled(clips)
        clip = deck.pop()
        number += 1
        hesitates = draws.chance(habits.hesitates) and bool(clip.pauses_s)
        silent = draws.chance(habits.stays_silent)
        interrupts = draws.chance(habits.interrupts)
        yield Turn(
            number,
            clip,
            after_s=habits.cycle_s * (draws.uniform(0.8, 1.2) + silent),
            think_s=draws.uniform(*habits.think_s),
            hesitation_s=draws.uniform(*habits.hesitation_s) if hesitates else 0.0,
            pause_s=draws.choice(clip.pauses_s) if hesitates else 0.0,
            interrupt_after_s=draws.uniform(*habits.interrupt_after_s) if interrupts else None,
        )


def joins_after_s(seed: int, seat: int, seats: int, habits: Habits) -> float:
    """When the caller of ``seat`` comes, so that all come within one cycle and no two together."""
    return habits.cycle_s * (seat + Draws(seed, seat).uniform(0.0, 0.5)) / max(1, seats)


def call_length_s(seed: int, seat: int, call: int, habits: Habits) -> float | None:
    """How long a call lasts; None: to the end of the test. Nobody hangs up within a cycle and a half."""
    if habits.call_s <= 0:
        return None
    return max(1.5 * habits.cycle_s, Draws(seed, seat, call, 1).exponential(habits.call_s))


def away_s(seed: int, seat: int, call: int) -> float:
    """How long the seat is empty before its next caller comes."""
    return Draws(seed, seat, call, 2).uniform(0.5, 3.0)


class State(enum.Enum):
    """What a caller does."""

    THINKING = "thinking"
    SPEAKING = "speaking"
    WAITING = "waiting"
    LISTENING = "listening"


class Cue(enum.Enum):
    """What moves a caller on."""

    DUE = "due"
    SAID = "said"
    HEARD = "heard"
    OVER = "over"
    OUT_OF_PATIENCE = "out of patience"
    INTERRUPTS = "interrupts"


TABLE: Mapping[State, Mapping[Cue, State]] = {
    State.THINKING: {Cue.DUE: State.SPEAKING},
    State.SPEAKING: {Cue.SAID: State.WAITING},
    State.WAITING: {Cue.HEARD: State.LISTENING, Cue.OUT_OF_PATIENCE: State.THINKING},
    State.LISTENING: {Cue.OVER: State.THINKING, Cue.INTERRUPTS: State.SPEAKING},
}


@dataclass(frozen=True, slots=True)
class Speak:
    """Begin ``turn`` now. ``interrupts``: the agent is speaking."""

    turn: Turn
    interrupts: bool


class Caller:
    """One caller in one call. ``tick`` is called with every tick of the caller's audio clock, in seconds.

    ``hears``: the agent's voice is heard in this tick. ``agent``: what the agent says it does, None while
    that is not known. Says when the next utterance begins; who plays it is the shell.
    """

    def __init__(self, script: Iterator[Turn], habits: Habits, now: float) -> None:
        self.state = State.THINKING
        self._script = script
        self._habits = habits
        self._next = next(script)
        self._turn: Turn | None = None
        self._began = now - habits.cycle_s
        self._since = now
        self._heard_at = now
        self._was_quiet = True
        # After the greeting, as soon as one can: the first utterance does not wait for a cycle.
        self._first = True

    def tick(self, now: float, *, hears: bool, agent: AgentState | None) -> Speak | None:
        """What happens at ``now``."""
        onset = hears and self._was_quiet
        if hears:
            self._heard_at = now
        self._was_quiet = not hears and (self._was_quiet or now - self._heard_at >= QUIET_S / 2)
        quiet_s = now - self._heard_at
        match self.state:
            case State.THINKING:
                return self._think(now, hears=hears, agent=agent)
            case State.SPEAKING:
                assert self._turn is not None
                if now - self._began >= self._turn.end_s:
                    self._go(Cue.SAID, now)
                    # An answer that begins in the middle of the caller's words is heard already.
                    self._was_quiet = not hears
            case State.WAITING:
                if onset:
                    self._go(Cue.HEARD, now)
                elif now - self._since >= self._habits.patience_s:
                    self._go(Cue.OUT_OF_PATIENCE, now)
            case State.LISTENING:
                assert self._turn is not None
                after_s = self._turn.interrupt_after_s
                if after_s is not None and now - self._since >= after_s and hears:
                    self._go(Cue.INTERRUPTS, now)
                    return self._speak(now, interrupts=True)
                if (agent == "listening" and quiet_s >= QUIET_S) or quiet_s >= SILENT_S:
                    self._go(Cue.OVER, now)
        return None

    def _think(self, now: float, *, hears: bool, agent: AgentState | None) -> Speak | None:
        if hears:
            # A greeting, or an answer that came when nobody waited for it any more.
            self._since = now
            return None
        ready = agent == "listening" or (agent is not None and now - self._since >= SILENT_S)
        due = now - self._began >= self._next.after_s or self._first
        if not (ready and due and now - self._since >= self._next.think_s):
            return None
        self._first = False
        self._go(Cue.DUE, now)
        return self._speak(now, interrupts=False)

    def _speak(self, now: float, *, interrupts: bool) -> Speak:
        self._turn, self._next = self._next, next(self._script)
        self._began = now
        return Speak(self._turn, interrupts)

    def _go(self, cue: Cue, now: float) -> None:
        self.state = TABLE[self.state][cue]
        self._since = now
