"""Interruptions in real time: a real inference process, rooms without a server, callers who cut in at random points.

Every room has one caller, who asks a short question, and, at a random point of each answer, the next. Each 20 ms of
both sides are kept with the moment at which they were handed over, and of every block that the agent plays it is
known which samples of the voice it is: so the room's own recording says what was heard, sample for sample, whatever
the session believes.

*Barge-in to silence* begins when the room has handed over the last of the caller's samples that the decision needs:
where detection says that speech began, and as much more as must be heard to interrupt (where words decided: when
their transcript came). It ends with the last 20 ms in which the agent is heard. So it holds the ring, the
detection, the decision, the messages and the room, and not the time for which a person must have spoken; that is
counted apart, from the first loud sample.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from callers import Inference, inference
from livekit.protocol.agent import Job
from livekit.protocol.models import Room as RoomInfo
from numpy.typing import NDArray
from turns_models import Models, words
from turns_sounds import RATE, Voice

from host.job.agent import VoiceAgent
from host.job.audio import Player
from host.job.chat import PhraseHeard, truncate_to_heard
from host.job.context import JobContext, JobProcess, run_job
from host.job.resample import resample
from host.job.room import AgentState, LocalParticipant, Side
from host.job.settings import SessionSettings
from host.job.turn import TurnTaking
from host.job.turn_events import Interrupt, Tick
from host.loadtest.words import errors, plain
from inference.client import InferenceRoom
from inference.engines.base import VAD_WINDOW
from inference.wire.messages import SpeechResumed, SpeechStarted
from inference.wire.supervision import JobStatus, TurnReport

TICK_S = 0.02
_BLOCK = round(RATE * TICK_S)
QUEUE_S = 0.2
THINK_S = 0.5
GIVE_UP_S = 15.0
INTO_S = (0.1, 3.0)
ROOMS = 2
LONGEST_QUESTION_S = 3.7
INSTRUCTIONS = (
    "You are the voice of a small museum by the sea, and love to tell stories. Answer in five or six long, plain "
    "sentences, without lists or symbols."
)


@dataclass(frozen=True)
class _Identity:
    identity: str


@dataclass(frozen=True)
class Block:
    """What the agent handed to the room at once: ``position`` on the voice's clock, -1 unknown."""

    position: int
    samples: NDArray[np.int16]


@dataclass
class Asked:
    """A question of the caller: where its voice begins in the caller's audio; whether over an answer."""

    name: str
    begin: int
    end: int
    interrupts: bool


@dataclass
class Recording:
    """Both sides, tick by tick. ``heard``: of the voice's clock, [start, end) of each piece that was heard."""

    caller: list[bytes] = field(default_factory=list)
    agent: list[bytes] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    heard: list[list[tuple[int, int]]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


class BenchRoom:
    """``Room`` with a scripted caller, keeping all that was said and heard."""

    def __init__(self, name: str, questions: Sequence[Voice], seed: int) -> None:
        self.local_participant: LocalParticipant = _Identity("agent")
        self.recording = Recording()
        self.spoken: dict[int, Spoken] = {}
        self.interruptions: list[Interruption] = []
        self.position = -1
        self._name = name
        self._draw = np.random.default_rng(seed)
        self._questions = deque(questions)
        self._speech: NDArray[np.int16] = np.zeros(0, np.int16)
        self._spoken = 0
        self._due = int(self._draw.integers(20, 60))
        self._tick = 0
        self._state: AgentState = "initializing"
        self._answer_tick = -1
        self._quiet_ticks = 0
        self._last_end = 0
        self._rate = 0
        self._queue: deque[Block] = deque()
        self._queued = 0
        self._in_flight = 0
        self._heard = 0
        self._moved = asyncio.Event()
        self._caller: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._closed: asyncio.Future[str] | None = None
        self._ticking: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._name

    async def connect(self) -> None:
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
            self._ticking = asyncio.create_task(self._run(), name="bench-room")

    async def wait_for_participant(self, identity: str = "") -> str:
        return identity or "caller"

    async def wait_closed(self) -> str:
        assert self._closed is not None
        return await asyncio.shield(self._closed)

    async def leave(self) -> None:
        ticking, self._ticking = self._ticking, None
        if ticking is not None:
            self._close("the agent left")
            ticking.cancel()
            await asyncio.wait([ticking])

    def _close(self, reason: str) -> None:
        assert self._closed is not None
        if not self._closed.done():
            self._closed.set_result(reason)
            self._caller.put_nowait(None)

    # --- the caller -------------------------------------------------------------------------------------------

    async def caller_audio(self) -> AsyncIterator[bytes]:
        while (block := await self._caller.get()) is not None:
            yield block

    async def text_input(self) -> AsyncIterator[str]:
        """Nothing is typed."""
        await self.wait_closed()
        return
        yield ""

    async def _run(self) -> None:
        start = time.monotonic()
        while True:
            self._hear()
            block = self._speak()
            self.recording.caller.append(block)
            self.recording.at.append(time.monotonic())
            self._caller.put_nowait(block)
            self._tick += 1
            await asyncio.sleep(max(0.0, start + self._tick * TICK_S - time.monotonic()))

    def _speak(self) -> bytes:
        sounding = self._in_flight > 0
        if self._spoken >= len(self._speech):
            self._decide(sounding=sounding)
        piece = self._speech[self._spoken : self._spoken + _BLOCK]
        self._spoken += len(piece)
        noise = self._draw.integers(-3, 4, _BLOCK - len(piece), dtype=np.int16)
        return np.concatenate([piece, noise]).tobytes()

    def _decide(self, *, sounding: bool) -> None:
        """Whether the next question begins with this tick."""
        if sounding and self._answer_tick < 0:
            self._answer_tick = self._tick
            self._due = self._tick + round(float(self._draw.uniform(*INTO_S)) / TICK_S)
        self._quiet_ticks = self._quiet_ticks + 1 if self._state == "listening" and not sounding else 0
        waited = self._tick - self._last_end
        asks = self._tick >= self._due if self._answer_tick >= 0 or not self.recording.asked else False
        asks = asks or (self._answer_tick >= 0 and self._quiet_ticks * TICK_S > THINK_S) or waited * TICK_S > GIVE_UP_S
        if not asks:
            return
        if not self._questions:
            if self._answer_tick >= 0 or waited * TICK_S > GIVE_UP_S:
                self._close("the caller has left")
            return
        voice = self._questions.popleft()
        said = voice.audio[voice.begin : voice.end]
        self._speech = (np.clip(said * 2, -1, 1) * 32_767).astype(np.int16)
        self._spoken = 0
        begin = self._tick * _BLOCK
        self.recording.asked.append(Asked(voice.name, begin, begin + len(said), sounding))
        self._last_end = self._tick + len(said) // _BLOCK
        self._answer_tick = -1

    # --- the agent --------------------------------------------------------------------------------------------

    @property
    def speech_rate(self) -> int:
        return self._rate

    async def open_speech(self, sample_rate: int) -> None:
        self._rate = sample_rate

    async def play(self, pcm: bytes) -> None:
        block = Block(self.position, np.frombuffer(pcm, np.int16))
        self._queue.append(block)
        self._queued += len(block.samples)
        while self._queued > self._rate * QUEUE_S:
            self._moved.clear()
            await self._moved.wait()

    def clear(self) -> None:
        self._queue.clear()
        self._queued = 0
        self._heard += self._in_flight
        self._in_flight = 0
        self._moved.set()

    def heard_samples(self) -> int:
        return self._heard

    async def wait_for_playout(self) -> None:
        while self._queued or self._in_flight:
            self._moved.clear()
            await self._moved.wait()

    def _hear(self) -> None:
        self._heard += self._in_flight
        wanted = self._rate * (self._tick + 1) // 50 - self._rate * self._tick // 50
        pieces: list[NDArray[np.int16]] = []
        places: list[tuple[int, int]] = []
        missing = wanted
        while missing and self._queue:
            block = self._queue.popleft()
            taken = block.samples[:missing]
            pieces.append(taken)
            places.append((block.position, block.position + len(taken)))
            missing -= len(taken)
            if len(taken) < len(block.samples):
                self._queue.appendleft(Block(block.position + len(taken), block.samples[len(taken) :]))
        self._in_flight = wanted - missing
        self._queued -= self._in_flight
        self.recording.agent.append(b"".join(piece.tobytes() for piece in pieces) + bytes(2 * missing))
        self.recording.heard.append(places)
        self._moved.set()

    async def set_agent_state(self, state: AgentState) -> None:
        self._state = state

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        """Not looked at."""

    async def publish_metrics(self, report: TurnReport) -> None:
        """Not looked at."""


# --- what the agent says, sample for sample -------------------------------------------------------------------


@dataclass
class Spoken:
    """The phrases of one utterance, as the player asked for them. ``known``: where they ended, as far as that was
    known when it was interrupted (None: it was not)."""

    utterance: object
    phrases: list[Any] = field(default_factory=list)
    known: list[int | None] | None = None

    @property
    def starts(self) -> list[int | None]:
        """Where each phrase begins on the voice's clock; None for one that was never spoken."""
        return [None if one.phrase is None else one.phrase.start for one in self.phrases]

    @property
    def ends(self) -> list[int | None]:
        """Where each phrase ends, as far as is known."""
        return self.known or [None if one.phrase is None else one.phrase.end for one in self.phrases]


@dataclass(frozen=True)
class Interruption:
    """The table interrupted at ``at`` (monotonic) because of ``event``; the caller's stretch began at ``stretch``."""

    at: float
    event: object
    stretch: int


current_room: ContextVar[BenchRoom] = ContextVar("current_room")


@contextmanager
def watched() -> Iterator[None]:
    """Seen from outside: which samples a block is, the phrases of each utterance, and when it was interrupted."""
    read, speak, feed = InferenceRoom.read_speech, Player.speak, TurnTaking.feed
    interrupt = Player.interrupt

    def read_speech(self: InferenceRoom, limit: int) -> bytes:
        current_room.get().position = self.read_position()
        return read(self, limit)

    def speak_phrase(self: Player, utterance: Any, *arguments: Any, **more: Any) -> None:
        spoken = current_room.get().spoken
        if id(utterance) not in spoken:
            spoken[id(utterance)] = Spoken(utterance)
        before = len(utterance.phrases)
        speak(self, utterance, *arguments, **more)
        spoken[id(utterance)].phrases += utterance.phrases[before:]

    def feed_table(self: TurnTaking, event: Any) -> list[Any]:
        actions = feed(self, event)
        if any(isinstance(action, Interrupt) for action in actions) and self.turn is not None:
            current_room.get().interruptions.append(Interruption(time.monotonic(), event, self.turn.stretch))
        return actions

    def interrupt_speech(self: Player, utterance: Any) -> Any:
        result = interrupt(self, utterance)
        if (spoken := current_room.get().spoken.get(id(utterance))) is not None:
            spoken.known = spoken.ends
        return result

    parts: Any = ((InferenceRoom, "read_speech", read_speech, read), (Player, "speak", speak_phrase, speak))
    parts += ((TurnTaking, "feed", feed_table, feed), (Player, "interrupt", interrupt_speech, interrupt))
    for owner, part, ours, _ in parts:
        setattr(owner, part, ours)
    try:
        yield
    finally:
        for owner, part, _, theirs in parts:
            setattr(owner, part, theirs)


def heard_text(spoken: Spoken, held: Held) -> str:
    """The words of ``spoken`` that lie in the room's recording."""
    phrases = []
    for one, start, end in zip(spoken.phrases, spoken.starts, spoken.ends, strict=True):
        if start is None:
            # Without anything to say it is over with the phrase before it.
            over = one.phrase is None and (not phrases or phrases[-1].samples is not None)
            phrases.append(PhraseHeard(one.text, 0 if over else None, 0))
        else:
            samples = None if end is None else end - start
            phrases.append(PhraseHeard(one.text, samples, held.heard_between(start, held.until(start, end))))
    return truncate_to_heard(phrases, held.room.speech_rate)


# --- the calls ------------------------------------------------------------------------------------------------


@dataclass
class Held:
    """A call that is over. ``history``: (role, text). ``reported_ms``: barge-ins as the session measured them."""

    room: BenchRoom
    history: list[tuple[str, str]] = field(default_factory=list)
    reported_ms: list[float] = field(default_factory=list)

    @property
    def recording(self) -> Recording:
        return self.room.recording

    @property
    def spoken(self) -> list[Spoken]:
        return list(self.room.spoken.values())

    def until(self, start: int, end: int | None) -> int:
        """Where a phrase that began at ``start`` ends at the latest: where it did, or the next one begins."""
        later = [at for one in self.spoken for at in one.starts if at is not None and at > start]
        return min([*later, *([end] if end is not None else []), 1 << 62])

    def heard_between(self, start: int, end: int) -> int:
        """How many samples of the voice from ``start`` to ``end`` lie in the room's recording."""
        places = (place for tick in self.recording.heard for place in tick)
        return sum(max(0, min(end, last) - max(start, first)) for first, last in places)


async def hold(
    running: Inference, questions: Sequence[Sequence[Voice]], settings: SessionSettings, seed: int
) -> list[Held]:
    """One room for each row of ``questions``, all at the same time."""
    rooms = [BenchRoom(f"room {n}", row, seed + n) for n, row in enumerate(questions)]
    with watched():
        return list(await asyncio.gather(*(_hold(running, room, settings) for room in rooms)))


async def _hold(running: Inference, room: BenchRoom, settings: SessionSettings) -> Held:
    held = Held(room)
    current_room.set(room)

    def report(turn: TurnReport) -> None:
        if turn.barge_in_ms >= 0:
            held.reported_ms.append(turn.barge_in_ms)

    async def entrypoint(ctx: JobContext) -> None:
        session = await ctx.start_session(VoiceAgent(INSTRUCTIONS))
        await session.wait_closed()
        held.history += [(message.role, message.content) for message in session.history.messages()]

    async def update(_: JobStatus, error: str) -> None:
        if error:
            raise SystemExit(f"{room.name}: {error}")

    job = Job(id=room.name, room=RoomInfo(name=room.name))
    made = running.settings
    ctx = JobContext(room, job, JobProcess(), made.socket_path, made.token, settings, report)
    outcome = await run_job(entrypoint, ctx, update)
    if outcome.status != "success":
        raise SystemExit(f"{room.name}: {outcome.error}")
    return held


# --- what is judged -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BargeIn:
    """``by``: what decided. Milliseconds to silence, from the decision's last sample, and from the first loud one."""

    by: str
    decision_ms: float
    voice_ms: float


def barge_ins(room: BenchRoom, settings: SessionSettings) -> tuple[list[BargeIn], int]:
    """Those that silenced the agent, and how many did not within three seconds."""
    recording = room.recording
    found, missed = [], 0
    sounding = np.array([bool(places) for places in recording.heard])
    for asked in recording.asked:
        if not asked.interrupts:
            continue
        first = asked.begin // _BLOCK
        silent = first + int(np.argmin(sounding[first:]))
        begun, latest = recording.at[first], recording.at[min(silent + 1, len(sounding) - 1)]
        decided = next((one for one in room.interruptions if begun < one.at <= latest), None)
        if sounding[first:].all() or silent - first > 3 / TICK_S:
            missed += 1
        elif decided is not None:
            by, since = _decision(decided, recording, settings)
            over = recording.at[silent - 1] + TICK_S
            found.append(BargeIn(by, 1000 * (over - since), 1000 * (over - begun)))
    return found, missed


def _decision(decided: Interruption, recording: Recording, settings: SessionSettings) -> tuple[str, float]:
    """What decided, and when the last of what it needed was there."""
    match decided.event:
        case SpeechStarted() | SpeechResumed():
            # The agent had only just begun.
            needed, by = -(-settings.min_speech_ms * RATE // 1000 // VAD_WINDOW) * VAD_WINDOW, "at once"
        case Tick():
            needed, by = settings.min_interruption_ms * RATE // 1000, "length"
        case _:
            return "words", decided.at
    return by, recording.at[min((decided.stretch + needed) // _BLOCK, len(recording.at) - 1)]


def differences(held: Held) -> list[tuple[str, str]]:
    """(played, in the history) of every answer where they are not the same words."""
    played = [text for one in held.spoken if (text := heard_text(one, held).strip())]
    kept = " ".join(text for role, text in held.history if role == "assistant").split()
    different = []
    for text in played:
        words = text.split()
        if kept[: len(words)] != words:
            different.append((text, " ".join(kept[: len(words)])))
        kept = kept[len(words) :]
    return [*different, *([("", " ".join(kept))] if kept else [])]


def answers_heard(held: Held) -> list[tuple[str, NDArray[np.int16]]]:
    """What was played of each utterance of which anything was heard: its words, and the audio as recorded."""
    found = []
    pcm = np.frombuffer(b"".join(held.recording.agent), np.int16)
    ticks = np.cumsum([0, *(len(piece) // 2 for piece in held.recording.agent)])
    for one in held.spoken:
        text = heard_text(one, held).strip()
        spans = [
            (start, held.until(start, end))
            for start, end in zip(one.starts, one.ends, strict=True)
            if start is not None
        ]
        inside = [
            n
            for n, places in enumerate(held.recording.heard)
            if any(start <= at < end for at, _ in places for start, end in spans)
        ]
        if text and inside:
            found.append((text, pcm[ticks[inside[0]] : ticks[inside[-1] + 1]]))
    return found


# --- the part as a whole --------------------------------------------------------------------------------------


def real(voices: Sequence[Voice], models: Models, interruptions: int, seed: int) -> dict[str, Any]:
    """Hold the calls and judge them. ``interruptions``: so many at least are tried, over all rooms."""
    short = [voice for voice in voices if (voice.end - voice.begin) / RATE <= LONGEST_QUESTION_S]
    draw = np.random.default_rng(seed)
    count = 1 + -(-interruptions // ROOMS)
    questions = [[short[int(n)] for n in draw.integers(len(short), size=count)] for _ in range(ROOMS)]
    settings = SessionSettings(seed=seed)

    async def run() -> list[Held]:
        with tempfile.TemporaryDirectory(prefix="roomful-bench-") as name:
            async with inference(Path(name), ROOMS) as running:
                return await hold(running, questions, settings, seed)

    calls = asyncio.run(run())
    found: list[BargeIn] = []
    missed = 0
    for call in calls:
        ones, without = barge_ins(call.room, settings)
        found += ones
        missed += without
    different = [list(pair) for call in calls for pair in differences(call)]
    heard = [pair for call in calls for pair in answers_heard(call)]
    return {
        "barge-ins": [(one.by, one.decision_ms, one.voice_ms) for one in found],
        "reported ms": [value for call in calls for value in call.reported_ms],
        "missed": missed,
        "answers": len(heard),
        "different": different,
        "opinions": [second_opinion(text, pcm, calls[0].room.speech_rate, models) for text, pcm in heard],
    }


def second_opinion(text: str, pcm: NDArray[np.int16], rate: int, models: Models) -> dict[str, Any]:
    """What Whisper hears in what was played, beside ``text``: word errors, and words that one has more at the end."""
    audio = np.frombuffer(resample(pcm.tobytes(), rate, RATE), np.int16).astype(np.float32) / 32_768
    said, heard = plain(text), plain(words(models.transcribe(audio).value))
    return {"said": " ".join(said), "heard": " ".join(heard), "errors": errors(said, heard), "words": len(said)}
