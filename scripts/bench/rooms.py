#!/usr/bin/env python3
"""What one room costs in CPU per minute, by process and by stage, on the real models.

    python scripts/bench/rooms.py [--speech DIR] [--rooms 1] [--turns 6] [--cycle 10]

The real inference process; callers of this process speak recordings in real time, every ``--cycle`` seconds one, and
are answered: transcribed speculatively and after the end, answered, spoken phrase by phrase, and the speech is taken
from the ring as fast as it would be heard. The job side of it is this bench's own process. Device seconds of a stage
are the device lane's time; on a CPU several threads work in each. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from report import ROOT, console, finish, hardware, percentile, table, warn_if_busy
from speech import DEFAULT_FOLDER, Recording, read_recordings

from inference.client import InferenceClient, InferenceRoom
from inference.wire import messages as m
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Role
from inference.wire.stream import MessageStream
from models.catalog import resolve

BLOCK_S = 0.02
DEADLINE_S = 120.0
SYSTEM = "You are a helpful voice assistant. Answer in one or two short sentences."
MAX_TOKENS = 48


class Inference:
    """The inference process: its pid, where it listens, its latest report."""

    def __init__(self, settings: s.InitializeInference, pid: int) -> None:
        self.settings = settings
        self.process = psutil.Process(pid)
        self.report: s.InferenceReport | None = None
        self.reported = asyncio.Condition()

    async def next_report(self) -> s.InferenceReport:
        async with self.reported:
            await self.reported.wait()
            assert self.report is not None
            return self.report

    async def read(self, control: MessageStream) -> None:
        async for received in control:
            if isinstance(received.message, s.InferenceReport):
                async with self.reported:
                    self.report = received.message
                    self.reported.notify_all()


@asynccontextmanager
async def inference(folder: Path, rooms: int, trace: str) -> AsyncIterator[Inference]:
    """The real process with the models of the default profile, warm."""
    profile, cores = resolve("cpu-small"), len(os.sched_getaffinity(0))
    settings = s.InitializeInference(
        socket_path=str(folder / "inference.sock"),
        token=secrets.token_urlsafe(8),
        device="cpu",
        threads=cores,
        llm_threads=max(1, cores - 1),
        max_rooms=rooms,
        context_tokens=2048,
        stt_name=profile.stt.model.name,
        stt_path=str(profile.stt.path),
        llm_name=profile.llm.model.name,
        llm_path=str(profile.llm.path),
        tts_name=profile.tts.model.name,
        tts_path=str(profile.tts.path),
        trace_file=trace,
    )
    ours, theirs = socket.socketpair()
    environment = {"GOMP_SPINCOUNT": "10000", "OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": str(ROOT)}
    with theirs:
        arguments = ("--control", str(theirs.fileno()), "--parent", str(os.getpid()))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "inference.main", *arguments),
            pass_fds=(theirs.fileno(),),
            cwd=ROOT,
            env=environment,
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
    """One room: a caller who speaks, and the job that has it answered."""

    def __init__(self, room: InferenceRoom, recordings: list[Recording], cycle_s: float) -> None:
        self.room = room
        self.responses: list[float] = []
        self._recordings = itertools.cycle(recordings)
        self._cycle_s = cycle_s
        self._chat = [m.ChatMessage("system", SYSTEM)]

    async def converse(self, turns: int) -> None:
        async with asyncio.TaskGroup() as group:
            hearing = group.create_task(self._hear())
            self.room.listen()
            for _ in range(turns):
                began = time.monotonic()
                speaking = group.create_task(self._speak(next(self._recordings), began + self._cycle_s))
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
            due += BLOCK_S
            await asyncio.sleep(due - time.monotonic())

    async def _answer(self) -> None:
        """From the caller's last sound to the last phrase; pauses inside an utterance are guessed at, and cost."""
        guesses: set[asyncio.Task[m.Transcript]] = set()
        async for event in self.room.events():
            if isinstance(event, m.SpeechPaused):
                guesses.add(asyncio.create_task(self._transcribe(event.start, event.end, speculative=True)))
            elif isinstance(event, m.SpeechEnded):
                break
        began = time.monotonic()
        await asyncio.gather(*guesses)
        transcript = await self._transcribe(event.start, event.end, speculative=False) if not guesses else None
        text = (transcript or list(guesses)[-1].result()).text
        self._chat.append(m.ChatMessage("user", text or "Hello?"))
        self._chat = [self._chat[0], *self._chat[-6:]]
        answer, phrase, phrases = "", "", []
        async for piece in self.room.generate(self._chat, max_tokens=MAX_TOKENS, temperature=0.0):
            answer, phrase = answer + piece, phrase + piece
            if phrase.rstrip().endswith((".", "!", "?", ",")) and len(phrase) > 20:
                phrases.append(self.room.speak(phrase))
                phrase = ""
        if phrase.strip():
            phrases.append(self.room.speak(phrase))
        self._chat.append(m.ChatMessage("assistant", answer))
        if phrases:
            await phrases[0].wait_started()
            self.responses.append(time.monotonic() - began)
        for spoken in phrases:
            await spoken.wait()

    async def _transcribe(self, start: int, end: int, *, speculative: bool) -> m.Transcript:
        return await self.room.transcribe(start, end, language="en", speculative=speculative)

    async def _hear(self) -> None:
        """Takes speech from the ring as fast as it is heard."""
        size, due = int(BLOCK_S * self.room.speech_rate), time.monotonic()
        while True:
            self.room.read_speech(size)
            due += BLOCK_S
            await asyncio.sleep(due - time.monotonic())


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def voice_activity_s(trace: Path) -> float:
    """Seconds of the voice activity lane's ticks."""
    events = json.loads(trace.read_text())
    return sum(event["dur"] for event in events if event["name"] == "voice activity") / 1e6


async def measure(arguments: argparse.Namespace) -> None:
    recordings = read_recordings(arguments.speech)
    own = psutil.Process()
    with tempfile.TemporaryDirectory(prefix="roomful-bench-") as name:
        trace = arguments.trace or Path(name) / "trace.json"
        async with inference(Path(name), arguments.rooms, str(trace)) as running:
            clients = [
                await InferenceClient.connect(running.settings.socket_path, running.settings.token, name=f"caller {n}")
                for n in range(arguments.rooms)
            ]
            callers = [
                Caller(
                    await client.open_room(f"room {n}"), recordings[n % len(recordings) :] + recordings, arguments.cycle
                )
                for n, client in enumerate(clients)
            ]
            first = await running.next_report()
            began, inference_s, own_s = time.monotonic(), cpu_s(running.process), cpu_s(own)
            await asyncio.gather(*(caller.converse(arguments.turns) for caller in callers))
            last = await running.next_report()
            minutes = (time.monotonic() - began) / 60 * arguments.rooms
            inference_s, own_s = cpu_s(running.process) - inference_s, cpu_s(own) - own_s
            for client in clients:
                await client.aclose()
        listening_s = voice_activity_s(trace)
    show(first, last, minutes, inference_s, own_s, listening_s, callers)


def show(
    first: s.InferenceReport,
    last: s.InferenceReport,
    minutes: float,
    inference_s: float,
    own_s: float,
    listening_s: float,
    callers: list[Caller],
) -> None:
    rows: list[tuple[str | int | float, ...]] = []
    for before, after in zip(first.stages, last.stages, strict=True):
        quanta, busy_s = after.quanta - before.quanta, after.busy_s - before.busy_s
        size = (after.batch_items - before.batch_items) / max(1, quanta)
        rows.append((f"device lane: {after.stage}", busy_s / minutes, quanta / minutes, size))
    rows.append(("voice activity lane", listening_s / minutes, "", ""))
    rows.append(("inference process, all CPU", inference_s / minutes, "", ""))
    rows.append(("the callers and their jobs (this process)", own_s / minutes, "", ""))
    table("One room, one minute of conversation", ("what", "seconds", "quanta", "batch"), rows, "per room and minute")
    responses = [response for caller in callers for response in caller.responses]
    if responses:
        p50, p95 = percentile(responses, 0.5), percentile(responses, 0.95)
        console.print(f"end of turn reported … first audio: p50 {p50:.3f} s, p95 {p95:.3f} s of {len(responses)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, default=DEFAULT_FOLDER, help="folder with a transcripts.tsv")
    parser.add_argument("--rooms", type=int, default=1)
    parser.add_argument("--turns", type=int, default=6, help="of each caller")
    parser.add_argument("--cycle", type=float, default=10.0, help="seconds from one turn to the next")
    parser.add_argument("--trace", type=Path, help="write the planner's trace here")
    arguments = parser.parse_args()
    console.print(hardware())
    warn_if_busy()
    asyncio.run(measure(arguments))
    return finish("rooms", [])


if __name__ == "__main__":
    sys.exit(main())
