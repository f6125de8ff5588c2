"""The lanes: the threads that run the engines.

*device-lane* runs one quantum after the other as ``planner`` says; *vad-lane* ticks every 32 ms for
all rooms. Engines belong to their lane's thread alone. The event loop only puts commands into a
queue. A request that poisons its batch fails alone, and a lane never dies of one.
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

import numpy as np

from inference.engines.base import (
    EngineError,
    GenerationFailed,
    LanguageModelEngine,
    Message,
    PromptTooLongError,
    Sampling,
    SpeechFailed,
    SpeechToTextEngine,
    TextToSpeechEngine,
    TokensOut,
    Transcription,
    Utterance,
    VoiceActivityEngine,
)
from inference.planner import Kind, Quantum, Task, choose
from inference.reports import BusyShare, Tally, is_late
from inference.request import Ask, Request
from inference.rooms import Room, RoomClosedError
from inference.wire import messages as m
from inference.wire.errors import OverrunError
from inference.wire.supervision import InferenceReport

logger = logging.getLogger(__name__)

VAD_TICK_S = 0.032
_RING_FULL_POLL_S = 0.02
_MAX_WINDOWS_PER_TICK = 32
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
    """Runs STT, LLM and TTS quanta on one thread. All public methods may be called from any thread."""

    def __init__(self, engines: Engines) -> None:
        self._stt = engines.stt
        self._llm = engines.llm
        self._tts = engines.tts
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._requests: dict[int, Request] = {}
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
        self._commands.put(lambda: self._add(request))

    def cancel(self, room: Room, number: int) -> None:
        """Drop the room's request ``number`` if it has not ended."""
        self._commands.put(lambda: self._cancel(room, number))

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
        while True:
            quantum = self._plan()
            # With a quantum at hand only look for commands; without one wait for them, and where a
            # ring is full look again soon: a reader moves its cursor without telling anyone.
            timeout = 0.0 if quantum else _RING_FULL_POLL_S if self._waiting_for_ring() else None
            if self._handle_commands(timeout):
                return
            if quantum is None:
                continue
            # A command may have cancelled some of them.
            requests = [self._requests[key] for key in quantum.requests if key in self._requests]
            if not requests:
                continue
            self._count_begin(quantum.kind, requests)
            try:
                self._perform(quantum.kind, requests)
            except Exception as exc:
                logger.exception("a %s quantum failed", quantum.kind.value)
                for key in quantum.requests:
                    self._end_failed(key, "engine", f"the {quantum.kind.value} engine failed: {exc}")
            with self._counting:
                self._tally.quantum_ends(time.monotonic())

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

    def _plan(self) -> Quantum | None:
        now = time.monotonic()
        tasks: list[Task] = []
        speaking: set[int] = set()
        for request in list(self._requests.values()):
            room = request.room
            buffered_s = room.buffered_samples() / self._tts.sample_rate
            match request.ask:
                case m.Transcribe(speculative=speculative):
                    tasks.append(Task(Kind.STT, request.key, request.asked, speculative))
                case m.Generate():
                    tasks.append(Task(Kind.LLM, request.key, request.asked, buffered_s=buffered_s))
                case m.Speak():
                    # Only the oldest phrase of a room may write, so that phrases come in order.
                    if room.slot in speaking:
                        continue
                    self._flush(request)
                    if request.key not in self._requests:
                        continue
                    speaking.add(room.slot)
                    if not request.outbox:
                        tasks.append(Task(Kind.TTS, request.key, request.asked, buffered_s=buffered_s))
        for task in tasks:
            request = self._requests[task.request]
            if not request.judged and is_late(now, request.asked, task.deadline(now)):
                self._judge(request, late=True, now=now)
        return choose(now, tasks, max_utterances=self._stt.max_batch)

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

    def _count_begin(self, kind: Kind, requests: Sequence[Request]) -> None:
        now = time.monotonic()
        for request in requests:
            if not request.judged:
                self._judge(request, late=False, now=now)
        with self._counting:
            self._tally.quantum_begins(kind, len(requests), now)

    def _count_answer(self, request: Request) -> None:
        if not request.answered:
            request.answered = True
            with self._counting:
                self._tally.answered(request.kind, time.monotonic() - request.due)

    # --- requests come and go -----------------------------------------------------------------------

    def _add(self, request: Request) -> None:
        self._requests[request.key] = request

    def _cancel(self, room: Room, number: int) -> None:
        for request in list(self._requests.values()):
            if request.room is room and request.number == number:
                self._end_failed(request.key, "cancelled", "cancelled by the job")

    def _release(self, room: Room, then: Callable[[], None]) -> None:
        for request in list(self._requests.values()):
            if request.room is room:
                self._forget(request)
        self._llm.release(room.slot)
        then()

    def _forget(self, request: Request) -> None:
        self._remove(request)
        if request.begun:
            match request.ask:
                case m.Generate():
                    self._llm.cancel(request.key)
                case m.Speak():
                    self._tts.cancel(request.key)

    def _remove(self, request: Request) -> None:
        self._requests.pop(request.key, None)
        if request.kind is Kind.TTS:
            for other in list(self._requests.values()):
                if other.kind is Kind.TTS and other.room is request.room:
                    # It could not begin before this one had ended.
                    other.due = time.monotonic()
                    return

    def _end_failed(self, key: int, code: m.FailureCode, reason: str) -> None:
        request = self._requests.get(key)
        if request is not None:
            self._forget(request)
            request.fail(code, reason)

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
        results = self._transcribe_batch([utterance for _, utterance in batch])
        stt_ms = (time.monotonic() - began) * 1000
        for (request, _), result in zip(batch, results, strict=True):
            if isinstance(result, EngineError):
                self._end_failed(request.key, "engine", str(result))
                continue
            self._remove(request)
            self._count_answer(request)
            request.room.deliver(
                m.Transcript(
                    request.number, result.text, result.language, result.avg_logprob, result.no_speech_prob, stt_ms
                )
            )

    def _transcribe_batch(self, utterances: list[Utterance]) -> list[Transcription | EngineError]:
        try:
            return self._stt.transcribe(utterances)
        except Exception as exc:
            logger.exception("a batch of %d utterances failed", len(utterances))
            if len(utterances) == 1:
                return [EngineError(f"transcription failed: {exc}")]
        # One of them poisoned the batch: each alone, so that only that one fails.
        return [result for one in utterances for result in self._transcribe_batch([one])]

    # --- language model -----------------------------------------------------------------------------

    def _generate(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if not request.begun:
                self._begin_generation(request)
        for out in self._llm.step(frozenset(request.key for request in requests if request.key in self._requests)):
            request_or_none = self._requests.get(out.request)
            if request_or_none is None:
                continue
            if isinstance(out, GenerationFailed):
                self._end_failed(out.request, "engine", str(out.error))
            else:
                self._deliver_tokens(request_or_none, out)

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
        request.begun = True
        try:
            self._llm.start(request.key, request.room.slot, messages, sampling)
        except PromptTooLongError as exc:
            self._end_failed(request.key, "too_long", str(exc))
        except EngineError as exc:
            self._end_failed(request.key, "engine", str(exc))

    def _deliver_tokens(self, request: Request, out: TokensOut) -> None:
        if out.text:
            self._count_answer(request)
            request.room.deliver(m.TextDelta(request.number, out.text))
        if out.finish is not None:
            self._count_answer(request)
            self._remove(request)
            request.room.deliver(
                m.GenerateDone(request.number, out.finish, out.prompt_tokens, out.cached_tokens, out.completion_tokens)
            )

    # --- text to speech -----------------------------------------------------------------------------

    def _speak(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.begun:
                continue
            ask = request.ask
            assert isinstance(ask, m.Speak)
            request.begun = True
            try:
                self._tts.start(request.key, ask.text, ask.speed, ask.volume)
            except EngineError as exc:
                self._end_failed(request.key, "engine", str(exc))
        for out in self._tts.step([request.key for request in requests if request.key in self._requests]):
            request_or_none = self._requests.get(out.request)
            if request_or_none is None:
                continue
            if isinstance(out, SpeechFailed):
                self._end_failed(out.request, "engine", str(out.error))
                continue
            if len(out.audio):
                request_or_none.outbox.append(out.audio)
            request_or_none.complete = out.last
            self._flush(request_or_none)

    def _flush(self, request: Request) -> None:
        """Write what fits of a phrase into its room's ring, and end the phrase with its last sample."""
        try:
            if request.start is None and (request.outbox or request.complete):
                request.start = request.room.speech_written()
                self._count_answer(request)
                request.room.deliver(m.SpeakStarted(request.number, request.start))
            while request.outbox:
                block = request.outbox[0]
                taken = request.room.write_speech(block)
                if taken < len(block):
                    request.outbox[0] = block[taken:]
                    return
                request.outbox.popleft()
            if request.complete:
                self._remove(request)
                assert request.start is not None
                request.room.deliver(m.SpeakDone(request.number, request.start, request.room.speech_written()))
        except RoomClosedError:
            self._forget(request)

    def _waiting_for_ring(self) -> bool:
        return any(request.outbox for request in self._requests.values())


class VadLane:
    """Every 32 ms: one window of every listening room, one batched forward, events to the jobs."""

    def __init__(self, engine: VoiceActivityEngine) -> None:
        self._engine = engine
        self._rooms: dict[int, Room] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vad-lane", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def add(self, room: Room) -> None:
        """Watch a room (its ``listen`` says when)."""
        with self._lock:
            self._engine.reset(room.slot)
            self._rooms[room.slot] = room

    def remove(self, room: Room) -> None:
        """Watch it no more."""
        with self._lock:
            self._rooms.pop(room.slot, None)

    def reset(self, room: Room) -> None:
        """Forget what the room's detector has heard (it starts to listen anew)."""
        with self._lock:
            self._engine.reset(room.slot)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = max(due + VAD_TICK_S, time.monotonic())
            try:
                self._tick()
            except Exception:
                logger.exception("a voice activity tick failed")

    def _tick(self) -> None:
        # A room that pushes its audio in bursts, or a late tick, has several windows waiting.
        for _ in range(_MAX_WINDOWS_PER_TICK):
            with self._lock:
                ready = [(room, window) for room in self._rooms.values() if (window := room.next_window()) is not None]
                if not ready:
                    return
                windows = np.stack([window for _, window in ready]).astype(np.float32) / 32768.0
                probabilities = self._engine.probabilities([room.slot for room, _ in ready], windows)
            for (room, _), probability in zip(ready, probabilities, strict=True):
                room.observe(float(probability))
