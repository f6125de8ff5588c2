"""The device lane: the thread that runs the engines of speech to text, language model and voice.

It runs one quantum after the other as ``planner`` says; what a quantum does for its requests is in ``serving``. The
engines belong to the lane's thread alone. The event loop only puts commands into a queue; but a cancel ends its
request at once, whatever the lane is doing: nothing is said or written for it any more, and the lane hears of it
between two quanta. A request that poisons its batch fails alone, and the lane never dies of one.
"""

from __future__ import annotations

import itertools
import logging
import math
import queue
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from inference.costs import CostTable, Stage
from inference.engines.base import (
    EngineError,
    LanguageModelEngine,
    PromptTooLongError,
    SpeechToTextEngine,
    TextToSpeechEngine,
    VoiceActivityEngine,
)
from inference.planner import Hold, Kind, Planner, Quantum, Task
from inference.reports import BusyShare, Tally, is_late
from inference.request import Ask, Request
from inference.rooms import Room, RoomClosedError
from inference.serving import Generating, InvalidRequestError, Serving, Speaking, Transcribing
from inference.trace import DEVICE_LANE, Trace
from inference.wire import messages as m
from inference.wire.supervision import InferenceReport
from inference.wire.tlv import Message

logger = logging.getLogger(__name__)

_RING_FULL_POLL_S = 0.02
_SHORTEST_WAIT_S = 0.0005
_STUCK_S = 120.0
"""A quantum that takes so long does not end any more: the slowest take seconds."""


@dataclass(frozen=True, slots=True)
class Engines:
    """The four engines, loaded and warm."""

    vad: VoiceActivityEngine
    stt: SpeechToTextEngine
    llm: LanguageModelEngine
    tts: TextToSpeechEngine


@dataclass(frozen=True, slots=True)
class Load:
    """What the device lane is doing. ``busy``: share of the time since the last look, 0 to 1."""

    waiting_stt: int
    running_llm: int
    running_tts: int
    busy: float


class DeviceLane:
    """Runs quanta on one thread. All public methods but those of ``serving.Desk`` may be called from any thread.

    ``costs``: what was measured at warm-up. ``trace``: where decisions are written, if anywhere. ``context_tokens``:
    what a room's conversation may have.
    """

    def __init__(
        self,
        engines: Engines,
        costs: CostTable | None = None,
        trace: Trace | None = None,
        *,
        context_tokens: int = 2048,
    ) -> None:
        self._llm = engines.llm
        self._speech_rate = engines.tts.sample_rate
        self._speaking = Speaking(engines.tts, self)
        self._serving: dict[Kind, Serving] = {
            Kind.STT: Transcribing(engines.stt, self, time.monotonic),
            Kind.LLM: Generating(engines.llm, self, context_tokens),
            Kind.TTS: self._speaking,
        }
        limits = {Stage.ENCODE: engines.stt.max_encode, Stage.TRANSCRIBE: engines.stt.max_batch}
        self._planner = Planner(costs or CostTable(), limits)
        self._trace = trace
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._requests: dict[int, Request] = {}
        self._open: dict[tuple[Room, int], Request] = {}
        self._keys = itertools.count(1)
        self._tally = Tally()
        self._counting = threading.Lock()
        self._busy_of_load = BusyShare(time.monotonic())
        self._busy_of_report = BusyShare(time.monotonic())
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name="device-lane", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the quantum that is running and end the thread."""
        self._commands.put(None)
        self._thread.join()

    def submit(self, room: Room, ask: Ask) -> None:
        """Take a request; its replies go to the room's job."""
        request = Request(next(self._keys), room, ask, time.monotonic())
        self._open[room, request.number] = request
        self._commands.put(lambda: self._add(request))

    def cancel(self, room: Room, number: int) -> None:
        """End the room's request ``number`` if it has not ended. When this returns, nothing follows its end."""
        request = self._open.pop((room, number), None)
        if request is not None and request.fail("cancelled", "cancelled by the job"):
            self._commands.put(lambda: self._forget(request, "cancelled"))

    def promote(self, room: Room, number: int) -> None:
        """Somebody waits for the room's request ``number``, if it has not ended."""
        request = self._open.get((room, number))
        if request is not None:
            now = time.monotonic()
            self._commands.put(lambda: self._promote(request, now))

    def release(self, room: Room, then: Callable[[], None]) -> None:
        """Drop everything of a room that is gone, then call ``then`` (on the lane's thread)."""
        self._commands.put(lambda: self._release(room, then))

    def load(self) -> Load:
        """How busy the lane is."""
        waiting, now = self._waiting(), time.monotonic()
        with self._counting:
            busy = self._busy_of_load.look(self._tally.busy_s(now), now)
        return Load(waiting[Kind.STT], waiting[Kind.LLM], waiting[Kind.TTS], busy)

    def report(self, device: str, rooms: int, max_rooms: int) -> InferenceReport:
        """What was done since the start; ``busy`` is of the time since the last report."""
        waiting, now = self._waiting(), time.monotonic()
        with self._counting:
            busy = self._busy_of_report.look(self._tally.busy_s(now), now)
            pressure, stages = self._tally.pressure(now), self._tally.stages(waiting, now)
        return InferenceReport(device, rooms, max_rooms, busy, pressure, stages)

    def failure(self) -> str:
        """Why the lane serves nobody any more, with its stack; "" while it does."""
        with self._counting:
            running_s = self._tally.running_s(time.monotonic())
        if running_s < _STUCK_S:
            return self._failure
        frame = sys._current_frames().get(self._thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        return f"a quantum has not ended for {running_s:.0f} s:\n{stack}".rstrip()

    def _waiting(self) -> Counter[Kind]:
        return Counter(request.kind for request in list(self._requests.values()))

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except Exception:  # noqa: BLE001 (the thread's last frame: whoever looks after the process is told)
            self._failure = f"an error outside of any quantum:\n{traceback.format_exc()}".rstrip()

    def _work(self) -> None:
        timeout: float | None = 0.0
        while not self._handle_commands(timeout):
            match self._plan(time.monotonic()):
                case Quantum() as quantum:
                    self._perform(quantum)
                    timeout = 0.0
                case Hold(until=until):
                    timeout = max(_SHORTEST_WAIT_S, until - time.monotonic())
                case None:
                    # A reader of a full ring moves its cursor without telling anyone.
                    ring_is_full = any(request.outbox for request in self._requests.values())
                    timeout = _RING_FULL_POLL_S if ring_is_full else None

    def _handle_commands(self, timeout: float | None) -> bool:
        """Perform the commands that wait, for the first of them until ``timeout``. True when the lane must end."""
        try:
            command = self._commands.get(timeout=timeout) if timeout != 0.0 else self._commands.get_nowait()
            while True:
                if command is None:
                    return True
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            return False

    def _plan(self, now: float) -> Quantum | Hold | None:
        self._flush()
        speaking: dict[Room, Request] = {}
        for request in self._requests.values():
            if request.kind is Kind.TTS and not request.ended:
                # Only the oldest phrase of a room is made, so that phrases come in order.
                speaking.setdefault(request.room, request)
        speaks = {room for room, request in speaking.items() if request.wanted < math.inf}
        tasks = [
            self._task(request, request.room in speaks)
            for request in self._requests.values()
            if not request.ended
            and (request.kind is not Kind.TTS or (request is speaking[request.room] and not request.outbox))
        ]
        for task in tasks:
            request = self._requests[task.request]
            if not request.judged and is_late(now, request.asked, task.deadline(now)):
                self._judge(request, late=True, now=now)
        return self._planner.decide(now, tasks)

    def _flush(self) -> None:
        """Write what waits for space in a ring."""
        for request in [request for request in self._requests.values() if request.outbox]:
            self._speaking.flush(request)

    def _task(self, request: Request, speaks: bool) -> Task:
        buffered = 0 if request.kind is Kind.STT else request.room.buffered_samples()
        return Task(
            self._serving[request.kind].stage(request),
            request.key,
            request.room.slot,
            request.since,
            request.wanted,
            buffered / self._speech_rate,
            speaks,
        )

    def _perform(self, quantum: Quantum) -> None:
        began = time.monotonic()
        with self._counting:
            self._tally.quantum_begins(quantum.kind, began)
        requests = [self._requests[key] for key in quantum.requests]
        for request in requests:
            if not request.begun:
                self._begin(request, began)
        requests = [request for request in requests if request.key in self._requests]
        try:
            served = self._serving[quantum.kind].step(requests)
        except Exception as exc:
            logger.exception("a %s quantum failed", quantum.stage.value)
            served = requests
            for request in requests:
                self.failed(request, "engine", f"the {quantum.kind.value} engine failed: {exc}")
        ended = time.monotonic()
        for request in served:
            request.since = ended
            if not request.judged:
                self._judge(request, late=False, now=began)
        with self._counting:
            self._tally.quantum_ends(len(served), ended)
        guess = all(request.wanted == math.inf for request in served)
        self._planner.ran(quantum.stage, [request.room.slot for request in served], ended - began, ended, guess=guess)
        if self._trace is not None:
            self._trace.slice(
                DEVICE_LANE,
                quantum.stage.value if len(served) == 1 else f"{quantum.stage.value} x{len(served)}",
                began,
                ended,
                why=quantum.why.value,
                expected_ms=round(1000 * quantum.cost_s, 2),
                rooms=[request.room.name for request in served],
                requests=[request.key for request in served],
                waiting={kind.value: count for kind, count in self._waiting().items()},
            )

    # --- requests come and go -----------------------------------------------------------------------

    def _add(self, request: Request) -> None:
        if isinstance(request.ask, m.Generate):
            for other in list(self._requests.values()):
                # A room has one sequence: what was prefilled for it stays there.
                if other.room is request.room and isinstance(other.ask, m.Generate) and other.wanted == math.inf:
                    self.failed(other, "cancelled", "overtaken by the room's next generation")
        if isinstance(request.ask, m.Speak) and request.wanted < math.inf:
            for other in list(self._requests.values()):
                # It is heard after them, so whoever waits for it waits for them.
                if other.room is request.room and isinstance(other.ask, m.Speak):
                    self._promote(other, request.asked)
        self._requests[request.key] = request
        if self._trace is not None:
            guess = request.wanted > request.asked
            self._trace.request_asked(request.key, _title(request), request.asked, number=request.number, guess=guess)

    def _promote(self, request: Request, now: float) -> None:
        if request.ended or request.wanted <= now:
            return
        request.promoted = now
        if not request.answered:
            # What it took while nobody waited says nothing about how long somebody does.
            request.due = max(request.due, now)
        request.since = max(request.since, now)
        if self._trace is not None:
            self._trace.request_event(request.key, _title(request), "promoted", now)

    def _begin(self, request: Request, now: float) -> None:
        """Give a request to its engine; what is wrong with it is its own fault alone."""
        request.begun = True
        if self._trace is not None:
            self._trace.request_event(request.key, _title(request), "first quantum", now)
        try:
            self._serving[request.kind].begin(request)
        except InvalidRequestError as exc:
            self.failed(request, "invalid", str(exc))
        except PromptTooLongError as exc:
            self.failed(request, "too_long", str(exc))
        except EngineError as exc:
            self.failed(request, "engine", str(exc))
        except RoomClosedError:
            self.gone(request)
        except Exception as exc:
            logger.exception("a request of room %s cannot begin", request.room.name)
            self.failed(request, "engine", f"the {request.kind.value} engine failed: {exc}")

    def _release(self, room: Room, then: Callable[[], None]) -> None:
        for request in list(self._requests.values()):
            if request.room is room:
                self.gone(request)
        self._llm.release(room.slot)
        self._planner.left(room.slot)
        then()

    def _forget(self, request: Request, outcome: str) -> None:
        """Drop a request that has ended, whoever ended it."""
        if self._open.get((request.room, request.number)) is request:
            # The event loop may have taken it out meanwhile.
            self._open.pop((request.room, request.number), None)
        if self._requests.pop(request.key, None) is None:
            return
        if request.begun:
            self._serving[request.kind].drop(request)
        now = time.monotonic()
        if self._trace is not None:
            self._trace.request_ended(request.key, _title(request), outcome, now)
        if request.kind is Kind.TTS:
            for other in self._requests.values():
                if other.kind is Kind.TTS and other.room is request.room:
                    # It could not begin before this one had ended.
                    other.due = other.since = now
                    break

    # --- serving.Desk -------------------------------------------------------------------------------

    def answered(self, request: Request) -> None:
        """It has a result; the first one counts."""
        if request.answered:
            return
        request.answered = True
        now = time.monotonic()
        with self._counting:
            self._tally.answered(request.kind, now - request.due)
        if self._trace is not None:
            self._trace.request_event(request.key, _title(request), "first result", now)

    def done(self, request: Request, last: Message) -> None:
        """It ends with ``last``."""
        self._forget(request, "done")
        request.end(last)

    def failed(self, request: Request, code: m.FailureCode, reason: str) -> None:
        """It ends without a result."""
        self._forget(request, f"{code}: {reason}")
        request.fail(code, reason)

    def gone(self, request: Request) -> None:
        """Its room is closed."""
        self._forget(request, "the room is gone")
        request.end()

    def _judge(self, request: Request, *, late: bool, now: float) -> None:
        request.judged = True
        with self._counting:
            if request.wanted < math.inf:
                self._tally.judge(request.kind, late, now)
            elif request.is_answer:
                # Nobody waits for what may never be wanted, so it says nothing about how busy the device is.
                self._tally.begun_ahead(request.kind)


def _title(request: Request) -> str:
    return f"{type(request.ask).__name__} {request.room.name}"
