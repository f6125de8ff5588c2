"""The real inference process, and callers who hold conversations with it in real time.

A caller speaks recordings into its ring and hears what is spoken at the pace of speech. Its job does what
``host/job`` does: a guess at each pause, its text into the KV cache, then the answer, spoken phrase by phrase.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
from report import ROOT
from speech import Recording

from host.config import inference_environment
from host.threads import thread_teams
from inference.client import InferenceClient, InferenceRoom, Phrase, RequestFailedError
from inference.wire import messages as m
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Role
from inference.wire.stream import MessageStream
from models.catalog import resolve

BLOCK_S = 0.02
DEADLINE_S = 120.0
ENDPOINTING_MS = 500
SYSTEM = "You are a helpful voice assistant. Answer in one or two short sentences."
MAX_TOKENS = 48


class Inference:
    """The inference process: its pid, where it listens, its latest report."""

    def __init__(self, settings: s.InitializeInference, pid: int) -> None:
        self.settings = settings
        self.process = psutil.Process(pid)
        self._report: s.InferenceReport | None = None
        self._reported = asyncio.Condition()

    async def next_report(self) -> s.InferenceReport:
        async with self._reported:
            await self._reported.wait()
            assert self._report is not None
            return self._report

    async def read(self, control: MessageStream) -> None:
        async for received in control:
            if isinstance(received.message, s.InferenceReport):
                async with self._reported:
                    self._report = received.message
                    self._reported.notify_all()

    @asynccontextmanager
    async def rooms(self, count: int) -> AsyncIterator[list[InferenceRoom]]:
        """So many rooms, each with a connection of its own, as jobs have."""
        path, token = self.settings.socket_path, self.settings.token
        while (await self.next_report()).rooms:
            # A place is free when the lane has ended what it did for a room that was closed.
            continue
        async with AsyncExitStack() as stack:
            rooms = []
            for number in range(count):
                client = await InferenceClient.connect(path, token, name=f"caller {number}")
                stack.push_async_callback(client.aclose)
                rooms.append(await client.open_room(f"room {number}"))
            yield rooms


@asynccontextmanager
async def inference(folder: Path, rooms: int, trace: Path | None = None) -> AsyncIterator[Inference]:
    """The real process with the models of the default profile, warm."""
    profile, teams = resolve("cpu-small"), thread_teams(len(os.sched_getaffinity(0)))
    settings = s.InitializeInference(
        socket_path=str(folder / "inference.sock"),
        token=secrets.token_urlsafe(8),
        device="cpu",
        threads=teams.speech,
        llm_threads=teams.language,
        max_rooms=rooms,
        context_tokens=2048,
        stt_name=profile.stt.model.name,
        stt_path=str(profile.stt.path),
        llm_name=profile.llm.model.name,
        llm_path=str(profile.llm.path),
        tts_name=profile.tts.model.name,
        tts_path=str(profile.tts.path),
        trace_file=str(trace or ""),
    )
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = ("--control", str(theirs.fileno()), "--parent", str(os.getpid()))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "inference.main", *arguments),
            pass_fds=(theirs.fileno(),),
            cwd=ROOT,
            env={**inference_environment(), "PYTHONPATH": str(ROOT)},
        )
    control = MessageStream(ours, Role.CLIENT, SUPERVISION)
    control.send(settings)
    async with asyncio.timeout(DEADLINE_S):
        async for received in control:
            if isinstance(received.message, s.InitializeFailed):
                raise SystemExit(received.message.reason)
            if isinstance(received.message, s.Ready):
                break
    running = Inference(settings, process.pid)
    reader = asyncio.create_task(running.read(control))
    try:
        yield running
    finally:
        control.send(s.Shutdown("the bench is over"))
        await asyncio.wait([reader], timeout=DEADLINE_S)
        control.close()
        await process.wait()


class Caller:
    """One room. ``responses_s``: from the last sound of each turn to the first audio, endpointing included."""

    def __init__(self, room: InferenceRoom, recordings: Sequence[Recording], cycle_s: float) -> None:
        self.room = room
        self.responses_s: list[float] = []
        self._recordings = itertools.cycle(recordings)
        self._cycle_s = cycle_s
        self._chat = [m.ChatMessage("system", SYSTEM)]
        self._pushed = 0
        self._pushed_at = 0.0

    async def converse(self, turns: int, begin_s: float = 0.0) -> None:
        """So many turns of ``cycle_s`` each, the first of them in ``begin_s``."""
        await asyncio.sleep(begin_s)
        async with asyncio.TaskGroup() as group:
            hearing = group.create_task(self._hear())
            self.room.listen(min_silence_ms=ENDPOINTING_MS)
            for _ in range(turns):
                recording = next(self._recordings)
                # What follows the last sound must be long enough to end the turn.
                seconds = max(self._cycle_s, recording.seconds + 2 * ENDPOINTING_MS / 1000)
                speaking = group.create_task(self._speak(recording, time.monotonic() + seconds))
                await self._answer()
                await speaking
            hearing.cancel()

    async def _speak(self, recording: Recording, until: float) -> None:
        """The recording and then silence, in real time."""
        samples = (recording.audio * 32_767).astype("int16").tobytes()
        size = 2 * int(BLOCK_S * 16_000)
        due = time.monotonic()
        for start in itertools.count(0, size):
            if due >= until:
                return
            block = samples[start : start + size]
            self.room.push(block + bytes(size - len(block)))
            self._pushed += size // 2
            self._pushed_at = time.monotonic()
            due += BLOCK_S
            await asyncio.sleep(due - time.monotonic())

    async def _answer(self) -> None:
        """From the first pause to the last phrase."""
        guess: asyncio.Task[str] | None = None
        async for event in self.room.events():
            match event:
                case m.SpeechPaused(start=start, end=end):
                    guess = asyncio.create_task(self._guess(start, end))
                case m.SpeechResumed() if guess is not None:
                    guess.cancel()
                case m.SpeechEnded(end=end):
                    break
        last_sound = self._pushed_at - (self._pushed - end) / 16_000
        assert guess is not None, "no speech ends without a pause"
        self._chat.append(m.ChatMessage("user", await guess or "Hello?"))
        self._chat = [self._chat[0], *self._chat[-6:]]
        answer, phrase, phrases = "", "", list[Phrase]()
        first: asyncio.Task[float] | None = None
        async for piece in self.room.generate(self._chat, max_tokens=MAX_TOKENS, temperature=0.0):
            answer, phrase = answer + piece, phrase + piece
            if phrase.rstrip().endswith((".", "!", "?", ",")) and len(phrase) > 20:
                phrases.append(self.room.speak(phrase))
                phrase = ""
                first = first or asyncio.create_task(_started_at(phrases[0]))
        if phrase.strip():
            phrases.append(self.room.speak(phrase))
            first = first or asyncio.create_task(_started_at(phrases[0]))
        self._chat.append(m.ChatMessage("assistant", answer))
        if first is not None:
            self.responses_s.append(await first - last_sound)
        for spoken in phrases:
            await spoken.wait()

    async def _guess(self, start: int, end: int) -> str:
        text = (await self.room.transcribe(start, end, language="en", speculative=True)).text
        if text:
            prefill = self.room.generate([*self._chat, m.ChatMessage("user", text)], max_tokens=0, speculative=True)
            reading = asyncio.create_task(_to_its_end(prefill))
            reading.add_done_callback(lambda task: task.exception())
        return text

    async def _hear(self) -> None:
        """Takes speech from the ring as fast as it is heard."""
        size, due = int(BLOCK_S * self.room.speech_rate), time.monotonic()
        while True:
            self.room.read_speech(size)
            due += BLOCK_S
            await asyncio.sleep(due - time.monotonic())


async def _started_at(phrase: Phrase) -> float:
    await phrase.wait_started()
    return time.monotonic()


async def _to_its_end(generation: AsyncIterator[str]) -> None:
    # The turn's own generation ends it, if it comes first.
    with contextlib.suppress(RequestFailedError):
        async for _ in generation:
            pass
