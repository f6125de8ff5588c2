"""A call on a virtual audio clock: the table of ``host/job/turn.py`` as it is, and models as fast as they were.

Time is samples at 16 kHz. A tick brings 20 ms of the caller; every 32 ms are a window of voice activity, whose
probability was computed from the sound itself. What the table asks for takes the device as long as the model took
when it did just that; the device does one thing at a time, in the order in which it is asked. An answer begins to be
heard as soon as its first block of speech is there and the turn is over, and lasts as long as the caller's script
says. Messages take no time, and the agent is not heard in the caller's line (no echo).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from turns_callers import Call, Step
from turns_models import Models, words
from turns_sounds import LOOP, RATE, Audio, Sound, rounded_up

from host.job import turn_events as t
from host.job.turn import TurnTaking
from inference.activity import VoiceActivity
from inference.engines.base import VAD_WINDOW
from inference.wire import messages as m

TICK = RATE // 50
PATIENCE = 8 * RATE
"""The caller waits so long for an answer, and then says what comes next."""
_AHEAD = RATE * 2 // 5
"""A sound's own background is on the line for so long before its voice, at least."""
_APART = RATE * 3 // 20
_MAX_CALL = 600 * RATE


@dataclass(frozen=True)
class Said:
    """``sound`` lies at ``at`` on the call's clock."""

    step: Step
    at: int

    @property
    def sound(self) -> Sound:
        return self.step.sound

    @property
    def begin(self) -> int:
        return self.at + self.sound.begin

    @property
    def end(self) -> int:
        return self.at + self.sound.end


@dataclass(eq=False)
class Answer:
    """To one commit. ``length``: samples still to be spoken. ``work``: samples of device time from the transcript of
    the turn to the first audio of its answer."""

    text: str
    committed: int
    decided: int
    last_voiced: int
    length: int
    work: int = 0
    heard: int | None = None
    first_heard: int | None = None
    over: int | None = None
    taken_back: bool = False


@dataclass
class Log:
    """What happened in a call, in samples."""

    call: Call
    said: list[Said] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    interrupts: list[int] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)
    worked: int = 0
    used: int = 0


@dataclass(eq=False)
class _Work:
    """Something that the device does, from ``begin`` to ``end``."""

    begin: int
    end: int
    done: Callable[[], None]
    over: bool = False
    dropped: bool = False


@dataclass(eq=False)
class _Preparation:
    """Of an answer to ``text``: read, its first phrase written, and spoken: three stages of so many ``seconds``.

    ``begun``: it is to be written and spoken.
    """

    text: str
    ticket: int
    seconds: tuple[float, float, float]
    stage: int = 0
    begun: bool = False
    work: _Work | None = None


class Device:
    """One thing at a time, in the order in which it is asked."""

    def __init__(self) -> None:
        self.worked = 0
        self._works: list[_Work] = []

    def ask(self, now: int, seconds: float, done: Callable[[], None]) -> _Work:
        begin = max([now, *(work.end for work in self._works)])
        work = _Work(begin, begin + round(seconds * RATE), done)
        self._works.append(work)
        return work

    def drop(self, now: int, work: _Work) -> None:
        """Not needed any more: what runs stops, what waits moves up."""
        if work.over or work.dropped:
            return
        work.dropped = True
        saved = work.end - max(now, work.begin)
        behind = self._works[self._works.index(work) + 1 :]
        self.worked += max(0, now - work.begin)
        self._works.remove(work)
        for later in behind:
            later.begin -= saved
            later.end -= saved

    def next_before(self, now: int) -> _Work | None:
        """The next thing that is done by ``now``."""
        if not self._works or self._works[0].end > now:
            return None
        work = self._works.pop(0)
        work.over = True
        self.worked += work.end - work.begin
        return work


class VirtualCall:
    """``call``, held with ``table``."""

    def __init__(self, call: Call, models: Models, table: TurnTaking, listen: m.Listen) -> None:
        self._call = call
        self._models = models
        self._table = table
        self._voice = VoiceActivity(listen)
        self._device = Device()
        self._log = Log(call)
        self._now = 0
        self._clock = 0
        self._windows = 0
        self._line: list[tuple[int, Said]] = []
        self._steps = deque(call.steps)
        self._turns = 0
        self._asked: dict[int, _Work] = {}
        self._transcribing = 0
        self._preparation: _Preparation | None = None
        self._answer: Answer | None = None
        self._interrupted: Answer | None = None
        self._heard: int | None = 0
        self._quiet: int | None = 0

    def run(self) -> Log:
        while not self._is_over():
            self._speak()
            self._clock += TICK
            self._finish_works(self._clock)
            self._now = self._clock
            self._feed(t.Tick(self._clock))
            self._listen()
            self._hear()
            if self._clock > _MAX_CALL:
                raise SystemExit(f"{self._call.name} does not end: {self._table.state}, {len(self._steps)} steps left")
        self._log.worked = self._device.worked
        return self._log

    # --- the caller -------------------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        if self._steps or not self._log.said:
            return False
        waited = self._clock - self._log.said[-1].end
        return waited > PATIENCE or (waited > RATE and self._quiet is not None)

    def _speak(self) -> None:
        """Put the next sound on the line, some time before its voice is due."""
        if not self._steps:
            return
        step = self._steps[0]
        due = self._due(step)
        if due is None:
            return
        if self._log.said:
            due = max(due, self._log.said[-1].end + _APART)
        if self._clock and self._clock < due - _AHEAD:
            return
        due = max(due, self._clock + _AHEAD)
        said = Said(step, max(0, rounded_up(due - step.sound.begin)))
        self._line.append((self._clock, said))
        self._log.said.append(said)
        self._steps.popleft()
        if step.sound.kind == "turn":
            self._turns += 1
            self._heard = self._quiet = None

    def _due(self, step: Step) -> int | None:
        """When its voice begins, as far as that is known."""
        if not self._log.said:
            return step.sound.begin
        if step.into_s is not None and self._heard is not None:
            return self._heard + round(step.into_s * RATE)
        if step.into_s is None and self._quiet is not None:
            return self._quiet + round(step.think_s * RATE)
        gives_up = self._log.said[-1].end + PATIENCE
        # Whoever is not answered says the next thing, but not while the agent speaks at last.
        return gives_up if self._clock >= gives_up - _AHEAD and self._answer is None else None

    def _line_at(self, position: int) -> Said:
        return next(said for since, said in reversed(self._line) if since <= position)

    def _audio(self, start: int, end: int) -> Audio:
        """What was on the line."""
        pieces = []
        for number, (since, said) in enumerate(self._line):
            until = self._line[number + 1][0] if number + 1 < len(self._line) else end
            first, last = max(start, since), min(end, until)
            if first < last:
                pieces.append(said.sound.window(first - said.at, last - first))
        return np.concatenate(pieces)

    def _listen(self) -> None:
        """Voice activity detection of what came since."""
        while (self._windows + 1) * VAD_WINDOW <= self._clock:
            start = self._windows * VAD_WINDOW
            self._windows += 1
            said = self._line_at(start + VAD_WINDOW - 1)
            probabilities = self._models.voice_probabilities(said.sound)
            place = (start - said.at) // VAD_WINDOW
            if place >= len(probabilities):
                place = len(probabilities) - LOOP // VAD_WINDOW + (place - len(probabilities)) % (LOOP // VAD_WINDOW)
            event = self._voice.observe(float(probabilities[max(0, place)]), start, start + VAD_WINDOW)
            if event is not None:
                self._feed(event)

    # --- the table --------------------------------------------------------------------------------------------

    def _feed(self, event: t.Input) -> None:
        for action in self._table.feed(event):
            self._perform(action)
        quiet = self._table.state is t.State.LISTENING and self._answer is None and self._heard is not None
        self._quiet = (self._now if self._quiet is None else self._quiet) if quiet else None

    def _perform(self, action: t.Action) -> None:
        match action:
            case t.Transcribe():
                self._transcribe(action)
            case t.DropTranscript(ticket=ticket):
                if (work := self._asked.pop(ticket, None)) is not None:
                    self._device.drop(self._now, work)
            case t.PromoteTranscript():
                # Nothing else is asked of the device meanwhile.
                pass
            case t.PrepareAnswer(ticket=ticket, text=text):
                self._prepare(text, ticket)
            case t.AnswerAhead():
                assert self._preparation is not None
                self._begin(self._preparation)
            case t.DropPreparation():
                self._drop_preparation()
            case t.CommitTurn():
                self._commit(action)
            case t.CancelAnswer():
                self._take_back()
            case t.Interrupt():
                self._interrupt()
            case t.ResumeAnswer():
                self._resume()
            case t.DropTurn():
                self._interrupted = None
            case _:
                raise SystemExit(f"the bench does not know {action}")

    def _transcribe(self, ask: t.Transcribe) -> None:
        taken = self._models.transcribe(self._audio(ask.start, ask.end))

        def arrived() -> None:
            del self._asked[ask.ticket]
            self._transcribing = round(taken.seconds * RATE)
            self._feed(t.TranscriptArrived(ask.ticket, words(taken.value)))

        self._asked[ask.ticket] = self._device.ask(self._now, taken.seconds, arrived)

    def _finish_works(self, until: int) -> None:
        while (work := self._device.next_before(until)) is not None:
            self._now = max(self._now, work.end)
            work.done()

    def _prepare(self, text: str, ticket: int = 0) -> _Preparation:
        self._drop_preparation()
        phrase = self._models.first_phrase(text)
        seconds = (self._models.end_of_turn(text).seconds, phrase.seconds, self._models.first_audio(phrase.value))
        self._preparation = _Preparation(text, ticket, seconds)
        self._go_on(self._preparation)
        return self._preparation

    def _go_on(self, preparation: _Preparation) -> None:
        """Its next stage, if it is wanted already."""
        stage = preparation.stage
        if preparation.work is not None or stage == len(preparation.seconds):
            return
        if stage and not preparation.begun:
            return

        def done() -> None:
            preparation.work = None
            preparation.stage += 1
            if stage == 0:
                self._tell_end_of_turn(preparation)
            if self._preparation is preparation:
                self._go_on(preparation)

        preparation.work = self._device.ask(self._now, preparation.seconds[stage], done)

    def _begin(self, preparation: _Preparation) -> None:
        preparation.begun = True
        self._go_on(preparation)

    def _tell_end_of_turn(self, preparation: _Preparation) -> None:
        if self._table.state in (t.State.ENDPOINTING, t.State.TRANSCRIBING) and preparation.ticket:
            probability = self._models.end_of_turn(preparation.text).value
            self._feed(t.EndOfTurn(preparation.ticket, probability))

    def _drop_preparation(self) -> None:
        preparation, self._preparation = self._preparation, None
        if preparation is not None and preparation.work is not None:
            self._device.drop(self._now, preparation.work)

    # --- the agent --------------------------------------------------------------------------------------------

    def _commit(self, turn: t.CommitTurn) -> None:
        self._interrupted = None
        length = round(self._call.answers_s[self._turns - 1] * RATE)
        preparation = self._preparation
        if preparation is None or preparation.text != turn.text:
            preparation = self._prepare(turn.text)
        self._answer = Answer(turn.text, self._now, turn.decided, turn.last_voiced, length)
        self._answer.work = self._transcribing + round(sum(preparation.seconds) * RATE)
        self._log.answers.append(self._answer)
        self._begin(preparation)

    def _take_back(self) -> None:
        answer, self._answer = self._answer, None
        assert answer is not None
        answer.taken_back = True
        self._drop_preparation()

    def _interrupt(self) -> None:
        answer, self._answer = self._answer, None
        assert answer is not None
        assert answer.heard is not None
        self._drop_preparation()
        self._log.interrupts.append(self._now)
        answer.over = self._now
        answer.length -= self._now - answer.heard
        self._interrupted = answer

    def _resume(self) -> None:
        answer, self._interrupted = self._interrupted, None
        assert answer is not None
        self._log.resumes.append(self._now)
        answer.heard, answer.over = self._now, None
        self._answer = answer

    def _hear(self) -> None:
        """The agent, as far as it is to be heard by now."""
        answer, preparation = self._answer, self._preparation
        if answer is None:
            return
        if answer.heard is None:
            if preparation is None or preparation.stage < len(preparation.seconds):
                return
            self._preparation = None
            answer.heard = answer.first_heard = self._clock
            self._log.used += answer.work
            if all(self._clock > said.end for said in self._log.said if said.sound.kind == "turn"):
                self._heard = self._clock
            self._feed(t.AnswerHeard())
        elif self._clock >= answer.heard + answer.length:
            answer.over = self._clock
            self._answer = None
            self._feed(t.AnswerFinished())
