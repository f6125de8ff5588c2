"""The device lane: the thread that runs the engines of speech to text, language model and voice.

*device-lane* runs one quantum after the other as ``planner`` says; the voice activity lane is in
``vad_lane.py``. Engines belong to their lane's thread alone. The event loop only puts commands into a
queue; but a cancel ends its request at once, whatever the lane is doing: nothing is said or written for it
any more, and the lane hears of it between two quanta. A request that poisons its batch fails alone, and a lane
never dies of one.
"""

from __future__ import annotations

import itertools
import logging
import queue
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from inference.costs import CostTable, Stage
from inference.engines.base import (
    EngineError,
    GenerationFailed,
    LanguageModelEngine,
    Message,
    PromptTooLongError,
    Sampling,
    SpeechFailed,
    SpeechOut,
    SpeechToTextEngine,
    TextToSpeechEngine,
    TokensOut,
    Transcription,
    Utterance,
    VoiceActivityEngine,
)
from inference.planner import Decision, Hold, Kind, Planner, Quantum, Task, Why
from inference.reports import BusyShare, Tally, is_late
from inference.request import Ask, Request
from inference.rooms import Room, RoomClosedError
from inference.trace import DEVICE_LANE, Trace
from inference.wire import messages as m
from inference.wire.errors import OverrunError
from inference.wire.supervision import InferenceReport

logger = logging.getLogger(__name__)

_RING_FULL_POLL_S = 0.02
_STUCK_S = 120.0
"""A quantum that takes so long does not end any more: the slowest take seconds."""

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    """Runs STT, LLM and TTS quanta on one thread. All public methods may be called from any thread.

    ``costs``: what was measured at warm-up. ``trace``: where decisions are written, if anywhere.
    """

    def __init__(self, engines: Engines, costs: CostTable | None = None, trace: Trace | None = None) -> None:
        self._stt = engines.stt
        self._llm = engines.llm
        self._tts = engines.tts
        self._planner = Planner(costs or CostTable(), max_utterances=engines.stt.max_batch)
        self._trace = trace
        self._held: tuple[float, Why] | None = None
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

    def release(self, room: Room, then: Callable[[], None]) -> None:
        """Drop everything of a room that is gone, then call ``then`` (on the lane's thread)."""
        self._commands.put(lambda: self._release(room, then))

    def paused(self, room: Room) -> None:
        """The caller of a room may have finished: a transcription is about to be asked for."""
        now = time.monotonic()
        self._commands.put(lambda: self._planner.expect(room.slot, Kind.STT, now))

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
            now = time.monotonic()
            self._trace_hold(now)
            match self._plan(now):
                case Quantum() as quantum:
                    self._run_quantum(quantum)
                    timeout = 0.0
                case Hold(until=until, why=why):
                    self._held = now, why
                    timeout = self._patience(max(0.0005, until - time.monotonic()))
                case None:
                    timeout = self._patience(None)

    def _trace_hold(self, now: float) -> None:
        if self._held is not None and self._trace is not None:
            since, why = self._held
            self._trace.slice(DEVICE_LANE, "hold", since, now, why=why.value)
        self._held = None

    def _patience(self, seconds: float | None) -> float | None:
        """How long to wait for commands. A reader of a full ring moves its cursor without telling anyone."""
        if not self._waiting_for_ring():
            return seconds
        return _RING_FULL_POLL_S if seconds is None else min(_RING_FULL_POLL_S, seconds)

    def _run_quantum(self, quantum: Quantum) -> None:
        requests = [self._requests[key] for key in quantum.requests]
        began = time.monotonic()
        self._count_begin(quantum.kind, requests, began)
        try:
            self._perform(quantum.kind, requests)
        except Exception as exc:
            logger.exception("a %s quantum failed", quantum.kind.value)
            for key in quantum.requests:
                self._end_failed(key, "engine", f"the {quantum.kind.value} engine failed: {exc}")
        ended = time.monotonic()
        for request in requests:
            request.since = ended
        self._planner.ran(quantum, ended - began, ended)
        with self._counting:
            self._tally.quantum_ends(ended)
        if self._trace is not None:
            self._trace.slice(
                DEVICE_LANE,
                quantum.stage.value if quantum.size == 1 else f"{quantum.stage.value} x{quantum.size}",
                began,
                ended,
                why=quantum.why.value,
                expected_ms=round(1000 * quantum.cost_s, 2),
                rooms=[request.room.name for request in requests],
                requests=list(quantum.requests),
                waiting={kind.value: count for kind, count in self._waiting().items()},
            )

    def _handle_commands(self, timeout: float | None) -> bool:
        """Perform the commands that wait. True when the lane must end."""
        try:
            command = self._commands.get(timeout=timeout) if timeout != 0.0 else self._commands.get_nowait()
            while True:
                if command is None:
                    return True
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            return False

    def _plan(self, now: float) -> Decision:
        tasks: list[Task] = []
        speaking: set[int] = set()
        for request in list(self._requests.values()):
            if request.kind is Kind.TTS:
                # Only the oldest phrase of a room may write, so that phrases come in order.
                if request.room.slot in speaking:
                    continue
                self._flush(request)
                if request.key in self._requests:
                    speaking.add(request.room.slot)
                if request.outbox:
                    continue
            if request.key in self._requests and not request.ended:
                tasks.append(self._task(request))
        for task in tasks:
            request = self._requests[task.request]
            if not request.judged and is_late(now, request.asked, task.deadline(now)):
                self._judge(request, late=True, now=now)
        return self._planner.decide(now, tasks)

    def _task(self, request: Request) -> Task:
        stage = request.stage
        buffered = 0 if stage is Stage.TRANSCRIBE else request.room.buffered_samples()
        speculative = isinstance(request.ask, m.Transcribe) and request.ask.speculative
        return Task(
            stage,
            request.key,
            request.room.slot,
            request.since,
            speculative,
            buffered / self._tts.sample_rate,
            request.work,
        )

    def _perform(self, kind: Kind, requests: Sequence[Request]) -> None:
        match kind:
            case Kind.STT:
                self._transcribe(requests)
            case Kind.LLM:
                self._generate(requests)
            case Kind.TTS:
                self._speak(requests)

    # --- what is counted ----------------------------------------------------------------------------

    def _judge(self, request: Request, *, late: bool, now: float) -> None:
        request.judged = True
        with self._counting:
            self._tally.judge(request.kind, late, now)

    def _count_begin(self, kind: Kind, requests: Sequence[Request], now: float) -> None:
        for request in requests:
            if not request.judged:
                self._judge(request, late=False, now=now)
        with self._counting:
            self._tally.quantum_begins(kind, len(requests), now)

    def _count_answer(self, request: Request) -> None:
        if not request.answered:
            request.answered = True
            now = time.monotonic()
            with self._counting:
                self._tally.answered(request.kind, now - request.due)
            if self._trace is not None:
                self._trace.request_event(request.key, _title(request), "first result", now)

    # --- requests come and go -----------------------------------------------------------------------

    def _add(self, request: Request) -> None:
        self._requests[request.key] = request
        self._planner.asked(request.room.slot, request.asked)
        if self._trace is not None:
            speculative = isinstance(request.ask, m.Transcribe) and request.ask.speculative
            self._trace.request_asked(
                request.key, _title(request), request.asked, number=request.number, speculative=speculative
            )

    def _release(self, room: Room, then: Callable[[], None]) -> None:
        for request in list(self._requests.values()):
            if request.room is room:
                request.end()
                self._forget(request, "the room is gone")
        self._llm.release(room.slot)
        self._planner.left(room.slot)
        then()

    def _forget(self, request: Request, outcome: str) -> None:
        self._remove(request, outcome)
        if request.begun:
            match request.ask:
                case m.Generate():
                    self._llm.cancel(request.key)
                case m.Speak():
                    self._tts.cancel(request.key)

    def _remove(self, request: Request, outcome: str = "done") -> None:
        if self._requests.pop(request.key, None) is None:
            return
        if self._open.get((request.room, request.number)) is request:
            # The event loop may have taken it out meanwhile.
            self._open.pop((request.room, request.number), None)
        if self._trace is not None:
            self._trace.request_ended(request.key, _title(request), outcome, time.monotonic())
        if request.kind is Kind.TTS:
            for other in list(self._requests.values()):
                if other.kind is Kind.TTS and other.room is request.room:
                    # It could not begin before this one had ended.
                    other.due = other.since = time.monotonic()
                    return

    def _end_failed(self, key: int, code: m.FailureCode, reason: str) -> None:
        request = self._requests.get(key)
        if request is not None:
            self._forget(request, f"{code}: {reason}")
            request.fail(code, reason)

    def _tell_next(self, request: Request, kind: Kind) -> None:
        """The job was told something that makes it ask for the next stage of its turn."""
        self._planner.expect(request.room.slot, kind, time.monotonic())

    # --- speech to text -----------------------------------------------------------------------------

    def _transcribe(self, requests: Sequence[Request]) -> None:
        began = time.monotonic()
        batch: list[tuple[Request, Utterance]] = []
        for request in requests:
            ask = request.ask
            assert isinstance(ask, m.Transcribe)
            if ask.end <= ask.start:
                self._end_failed(request.key, "invalid", f"an utterance from {ask.start} to {ask.end} has no length")
                continue
            try:
                batch.append((request, Utterance(request.room.utterance(ask.start, ask.end), ask.language)))
            except (OverrunError, RoomClosedError) as exc:
                self._end_failed(request.key, "invalid", str(exc))
        if not batch:
            return
        results = _each_alone("transcription", self._transcribe_batch, batch, lambda _, error: error)
        stt_ms = (time.monotonic() - began) * 1000
        for (request, _), result in zip(batch, results, strict=True):
            if isinstance(result, EngineError):
                self._end_failed(request.key, "engine", str(result))
                continue
            self._remove(request)
            self._count_answer(request)
            self._tell_next(request, Kind.LLM)
            request.end(
                m.Transcript(
                    request.number, result.text, result.language, result.avg_logprob, result.no_speech_prob, stt_ms
                )
            )

    def _transcribe_batch(self, batch: Sequence[tuple[Request, Utterance]]) -> list[Transcription | EngineError]:
        return self._stt.transcribe([utterance for _, utterance in batch])

    # --- language model -----------------------------------------------------------------------------

    def _generate(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not request.begun:
                self._begin(request, self._begin_generation)
        begun = [request for request in requests if request.key in self._requests]
        for out in _each_alone(
            "a step of the language model",
            self._step_llm,
            begun,
            lambda request, error: GenerationFailed(request.key, error),
        ):
            request_or_none = self._requests.get(out.request)
            if request_or_none is None:
                continue
            if isinstance(out, GenerationFailed):
                self._end_failed(out.request, "engine", str(out.error))
            else:
                self._deliver_tokens(request_or_none, out)

    def _step_llm(self, requests: Sequence[Request]) -> list[TokensOut | GenerationFailed]:
        return self._llm.step(frozenset(request.key for request in requests))

    def _begin(self, request: Request, begin: Callable[[Request], None]) -> None:
        """Give a request to its engine; what is wrong with it is its own fault alone."""
        request.begun = True
        if self._trace is not None:
            self._trace.request_event(request.key, _title(request), "first quantum", time.monotonic())
        try:
            begin(request)
        except PromptTooLongError as exc:
            self._end_failed(request.key, "too_long", str(exc))
        except EngineError as exc:
            self._end_failed(request.key, "engine", str(exc))
        except Exception as exc:
            logger.exception("a request of room %s cannot begin", request.room.name)
            self._end_failed(request.key, "engine", f"the {request.kind.value} engine failed: {exc}")

    def _begin_generation(self, request: Request) -> None:
        ask = request.ask
        assert isinstance(ask, m.Generate)
        sampling = Sampling(
            temperature=ask.temperature,
            top_p=ask.top_p,
            repeat_penalty=ask.repeat_penalty,
            seed=ask.seed,
            max_tokens=ask.max_tokens,
            stop=ask.stop,
            grammar=ask.grammar,
            json_schema=ask.json_schema,
        )
        messages = [Message(message.role, message.content) for message in ask.messages]
        self._llm.start(request.key, request.room.slot, messages, sampling)

    def _deliver_tokens(self, request: Request, out: TokensOut) -> None:
        request.advanced = True
        if out.text:
            self._count_answer(request)
            request.say(m.TextDelta(request.number, out.text))
        if out.text or out.finish is not None:
            self._tell_next(request, Kind.TTS)
        if out.finish is not None:
            self._count_answer(request)
            self._remove(request)
            request.end(
                m.GenerateDone(request.number, out.finish, out.prompt_tokens, out.cached_tokens, out.completion_tokens)
            )

    # --- text to speech -----------------------------------------------------------------------------

    def _speak(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not request.begun:
                self._begin(request, self._begin_speech)
        begun = [request for request in requests if request.key in self._requests]
        for out in _each_alone(
            "a step of the voice", self._step_tts, begun, lambda request, error: SpeechFailed(request.key, error)
        ):
            request_or_none = self._requests.get(out.request)
            if request_or_none is None:
                continue
            if isinstance(out, SpeechFailed):
                self._end_failed(out.request, "engine", str(out.error))
                continue
            request_or_none.advanced = True
            if len(out.audio):
                request_or_none.outbox.append(out.audio)
            request_or_none.complete = out.last
            self._flush(request_or_none)

    def _step_tts(self, requests: Sequence[Request]) -> list[SpeechOut | SpeechFailed]:
        return self._tts.step([request.key for request in requests])

    def _begin_speech(self, request: Request) -> None:
        ask = request.ask
        assert isinstance(ask, m.Speak)
        self._tts.start(request.key, ask.text, ask.speed, ask.volume)

    def _flush(self, request: Request) -> None:
        """Write what fits of a phrase into its room's ring, and end the phrase with its last sample."""
        with request.lock:
            if request.ended:
                return
            try:
                if self._write(request):
                    assert request.start is not None
                    done = m.SpeakDone(request.number, request.start, request.room.speech_written())
                    self._remove(request)
                    request.end(done)
            except RoomClosedError:
                request.end()
                self._forget(request, "the room is gone")

    def _write(self, request: Request) -> bool:
        """True when all of the phrase lies in the ring."""
        if request.start is None and (request.outbox or request.complete):
            request.start = request.room.speech_written()
            self._count_answer(request)
            request.say(m.SpeakStarted(request.number, request.start))
        while request.outbox:
            block = request.outbox[0]
            taken = request.room.write_speech(block)
            if taken < len(block):
                request.outbox[0] = block[taken:]
                return False
            request.outbox.popleft()
        return request.complete

    def _waiting_for_ring(self) -> bool:
        return any(request.outbox for request in self._requests.values())


def _title(request: Request) -> str:
    return f"{type(request.ask).__name__} {request.room.name}"


def _each_alone(
    what: str,
    work: Callable[[Sequence[Item]], list[Result]],
    batch: Sequence[Item],
    failed: Callable[[Item, EngineError], Result],
) -> list[Result]:
    """What ``work`` makes of the batch; where that fails, of each of it alone, so that only the culprit fails."""
    if not batch:
        return []
    try:
        return work(batch)
    except Exception as exc:
        logger.exception("%s for %d failed", what, len(batch))
        if len(batch) == 1:
            return [failed(batch[0], EngineError(f"{what} failed: {exc}"))]
    return [result for one in batch for result in _each_alone(what, work, [one], failed)]
