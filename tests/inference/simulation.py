"""Conversations on a virtual clock: the real planner, a device that costs what a small CPU does, made-up people."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from inference.costs import CostTable, Stage
from inference.planner import KIND_OF, Hold, Kind, Planner, Quantum, Task

PAUSE_S = 0.096
ENDPOINTING_S = 0.256
JOB_S = 0.002
"""From a message to a job to the request that it makes of it."""
WORD_S = 0.27
FIRST_BLOCK_S, BLOCK_S = 0.4, 1.0
FIRST_PHRASE, PHRASE = 8, 12
"""Tokens in them."""

ALONE = {
    Stage.TRANSCRIBE: 0.18,
    Stage.PREFILL: 0.06,
    Stage.DECODE: 0.0085,
    Stage.FIRST_SPEECH: 0.06,
    Stage.SPEECH: 0.045,
}
MORE = {
    Stage.TRANSCRIBE: 0.5,
    Stage.PREFILL: 0.8,
    Stage.DECODE: 0.5,
    Stage.FIRST_SPEECH: 0.8,
    Stage.SPEECH: 0.95,
}
"""Seconds of a quantum for one, and what each further one adds, as a share of it."""


def true_cost(stage: Stage, size: int) -> float:
    return ALONE[stage] * (1 + MORE[stage] * (size - 1))


@dataclass
class Asked:
    key: int
    room: int
    stage: Stage
    asked: float
    speculative: bool = False
    tokens: int = 0
    seconds: float = 0.0
    since: float = 0.0
    ended: bool = False
    on_end: Callable[[], None] = lambda: None
    on_token: Callable[[int], None] = lambda _: None


@dataclass
class Person:
    """A room with a caller who asks every ten seconds or so."""

    number: int
    spoken_until: float = 0.0
    """When the listener will have heard all that was made."""
    heard_any: bool = False
    turn_ended: float = 0.0
    responses: list[float] = field(default_factory=list)


class Simulation:
    """``people`` rooms for ``seconds``, and a flooding one (number -1) where wanted."""

    def __init__(self, people: int, seconds: float, *, flood: bool = False, seed: int = 1, cycle_s: float = 10.0):
        self.now = 0.0
        self.costs = CostTable()
        for stage in Stage:
            for size in (1, 2, 4, 8):
                self.costs.learn(stage, size, true_cost(stage, size))
        self.planner = Planner(self.costs, max_utterances=8)
        self.random = random.Random(seed)
        self.jitter = random.Random(seed)
        self.seconds, self.cycle_s = seconds, cycle_s
        self.asked: dict[int, Asked] = {}
        self.keys = itertools.count(1)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = itertools.count()
        self.busy_s: dict[int, float] = defaultdict(float)
        self.idle_with_work_s = 0.0
        self.whys: Counter[str] = Counter()
        self.flood_done: Counter[Kind] = Counter()
        self.people = [Person(number) for number in range(people)]
        for person in self.people:
            self.at(self.random.uniform(0, cycle_s), lambda person=person: self.speak(person))
        if flood:
            self.at(1.0, self.flood)

    # --- time ---------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.sequence), what))

    def run(self) -> Simulation:
        while self.now < self.seconds:
            self.happen()
            decision = self.planner.decide(self.now, self.tasks())
            if isinstance(decision, Quantum):
                self.whys[decision.why.value] += 1
                self.perform(decision)
                continue
            wait = self.events[0][0] if self.events else self.seconds
            if isinstance(decision, Hold):
                assert decision.until > self.now
                wait = min(wait, decision.until)
                self.whys[decision.why.value] += 1
                self.idle_with_work_s += wait - self.now
            self.now = max(self.now, wait)
        return self

    def happen(self) -> None:
        while self.events and self.events[0][0] <= self.now:
            heapq.heappop(self.events)[2]()

    def tasks(self) -> list[Task]:
        tasks, speaking = [], set()
        for ask in self.asked.values():
            buffered_s = 0.0
            if KIND_OF[ask.stage] is Kind.TTS:
                if ask.room in speaking:
                    continue
                speaking.add(ask.room)
            if ask.stage is not Stage.TRANSCRIBE and ask.room >= 0:
                buffered_s = max(0.0, self.people[ask.room].spoken_until - self.now)
            tasks.append(Task(ask.stage, ask.key, ask.room, ask.since, ask.speculative, buffered_s))
        return tasks

    def perform(self, quantum: Quantum) -> None:
        took = true_cost(quantum.stage, quantum.size) * self.jitter.uniform(0.9, 1.15)
        end = self.now + took
        # What is asked for meanwhile waits, but has its own time.
        while self.events and self.events[0][0] <= end:
            when, _, what = heapq.heappop(self.events)
            self.now = max(self.now, when)
            what()
        self.now = end
        self.planner.ran(quantum, took, self.now)
        for room, work in quantum.work:
            self.busy_s[room] += took * work / quantum.size
        for key in quantum.requests:
            self.advance(self.asked[key])

    # --- requests -----------------------------------------------------------------------------------

    def ask(self, room: int, stage: Stage, **changes: object) -> Asked:
        ask = Asked(next(self.keys), room, stage, self.now, since=self.now, **changes)  # type: ignore[arg-type]
        self.asked[ask.key] = ask
        self.planner.asked(room, self.now)
        return ask

    def advance(self, ask: Asked) -> None:
        ask.since = self.now
        if ask.room < 0 and ask.stage is not Stage.PREFILL:
            self.flood_done[KIND_OF[ask.stage]] += 1
        match ask.stage:
            case Stage.TRANSCRIBE:
                self.end(ask)
            case Stage.PREFILL | Stage.DECODE:
                ask.stage = Stage.DECODE
                ask.tokens -= 1
                ask.on_token(ask.tokens)
                if ask.tokens <= 0:
                    self.end(ask)
            case Stage.FIRST_SPEECH | Stage.SPEECH:
                block = min(ask.seconds, FIRST_BLOCK_S if ask.stage is Stage.FIRST_SPEECH else BLOCK_S)
                ask.stage = Stage.SPEECH
                ask.seconds -= block
                if ask.room >= 0:
                    self.hear(self.people[ask.room], block)
                if ask.seconds <= 0:
                    self.end(ask)

    def end(self, ask: Asked) -> None:
        del self.asked[ask.key]
        ask.ended = True
        ask.on_end()

    # --- people -------------------------------------------------------------------------------------

    def speak(self, person: Person) -> None:
        """The caller's sentence ends now."""
        self.at(self.now + self.cycle_s * self.random.uniform(0.9, 1.1), lambda: self.speak(person))
        if any(ask.room == person.number for ask in self.asked.values()) or person.spoken_until > self.now:
            return  # the answer is not over: whoever interrupts is not measured
        person.turn_ended, person.heard_any = self.now, False
        tokens = self.random.randint(16, 32)
        turn: dict[str, bool] = {"heard": False, "over": False}

        def proceed() -> None:
            if turn["heard"] and turn["over"]:
                self.planner.expect(person.number, Kind.LLM, self.now)
                self.at(self.now + JOB_S, lambda: self.answer(person, tokens))

        def heard() -> None:
            turn["heard"] = True
            proceed()

        def over() -> None:
            turn["over"] = True
            proceed()

        def guess() -> None:
            self.ask(person.number, Stage.TRANSCRIBE, speculative=True, on_end=heard)

        self.at(self.now + PAUSE_S, lambda: self.planner.expect(person.number, Kind.STT, self.now))
        self.at(self.now + PAUSE_S + JOB_S, guess)
        self.at(self.now + ENDPOINTING_S, over)

    def answer(self, person: Person, tokens: int) -> None:
        said = 0
        phrase = 0

        def on_token(left: int) -> None:
            nonlocal said, phrase
            said += 1
            phrase += 1
            if left == 0 or phrase == (FIRST_PHRASE if said == phrase else PHRASE):
                seconds, phrase = phrase * WORD_S, 0
                self.planner.expect(person.number, Kind.TTS, self.now)
                self.at(self.now + JOB_S, lambda: self.phrase(person, seconds))

        self.ask(person.number, Stage.PREFILL, tokens=tokens, on_token=on_token)

    def phrase(self, person: Person, seconds: float) -> None:
        self.ask(person.number, Stage.FIRST_SPEECH, seconds=seconds)

    def hear(self, person: Person, seconds: float) -> None:
        if not person.heard_any:
            person.heard_any = True
            person.responses.append(self.now - person.turn_ended)
        person.spoken_until = max(self.now, person.spoken_until) + seconds

    # --- the one who asks for everything at once -----------------------------------------------------

    def flood(self) -> None:
        for _ in range(8):
            self.flood_with(Stage.TRANSCRIBE)
        self.flood_with(Stage.PREFILL)
        for _ in range(4):
            self.flood_with(Stage.FIRST_SPEECH)

    def flood_with(self, stage: Stage) -> None:
        self.ask(-1, stage, tokens=200, seconds=5.0, on_end=lambda: self.at(self.now, lambda: self.flood_with(stage)))

    # --- results ------------------------------------------------------------------------------------

    def responses(self) -> list[float]:
        return sorted(response for person in self.people for response in person.responses)

    def p95(self) -> float:
        responses = self.responses()
        return responses[int(0.95 * (len(responses) - 1))]
