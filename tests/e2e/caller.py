"""A person on the line, made with livekit.rtc: speaks recordings, records what is heard, keeps what is shown."""

from __future__ import annotations

import asyncio
import time
import wave
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from livekit import rtc

RATE = 16_000
BLOCK_MS = 10
BLOCK = RATE * BLOCK_MS // 1000


def read_wave(path: Path) -> bytes:
    with wave.open(str(path), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2), path
        return file.readframes(file.getnframes())


def write_wave(path: Path, pcm: bytes, rate: int = RATE) -> None:
    with wave.open(str(path), "wb") as file:
        file.setframerate(rate)
        file.setnchannels(1)
        file.setsampwidth(2)
        file.writeframes(pcm)


@dataclass(frozen=True)
class Shown:
    """One state of one segment of transcript, as a client gets it: the text of its newest stream so far."""

    at: float
    identity: str
    segment: str
    track: str
    final: bool
    text: str


@dataclass
class Caller:
    """``heard``: 16 kHz int16, from the moment the agent's track was subscribed; ``heard_since``: when that was.

    ``streams``: how many streams of transcript came.
    ``packets``: transcription packets (identity, text, final), which older clients read. ``data``: data messages
    (identity, topic, text).
    """

    room: rtc.Room
    source: rtc.AudioSource
    publication: rtc.LocalTrackPublication
    heard: bytearray = field(default_factory=bytearray)
    heard_since: float = 0.0
    shown: list[Shown] = field(default_factory=list)
    streams: int = 0
    states: list[tuple[float, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    packets: list[tuple[str, str, bool]] = field(default_factory=list)
    data: list[tuple[str, str, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    speech_ended_at: float = 0.0
    _to_say: bytearray = field(default_factory=bytearray)
    _hearing: asyncio.Task[None] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def identity(self) -> str:
        return self.room.local_participant.identity

    # --- speaking ---------------------------------------------------------------------------------

    async def say(self, pcm: bytes, deadline_s: float = 30.0) -> None:
        """Speak; returns when the last sample has gone out. Between utterances the line carries silence."""
        self._to_say += pcm
        async with asyncio.timeout(len(pcm) / 2 / RATE + deadline_s):
            while self._to_say:
                await self._next_change()

    async def _speak(self) -> None:
        while True:
            block = bytes(self._to_say[: 2 * BLOCK])
            if block:
                del self._to_say[: 2 * BLOCK]
                if not self._to_say:
                    self.speech_ended_at = time.monotonic()
                    self._notify()
            block = block.ljust(2 * BLOCK, b"\0")
            await self.source.capture_frame(rtc.AudioFrame(block, RATE, 1, BLOCK))

    async def write(self, text: str) -> None:
        """Type ``text``, as LiveKit's chat does."""
        async with asyncio.timeout(10):
            await self.room.local_participant.send_text(text, topic="lk.chat")

    # --- hearing ----------------------------------------------------------------------------------

    async def _hear(self, track: rtc.RemoteAudioTrack) -> None:
        stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1, frame_size_ms=BLOCK_MS)
        try:
            async for event in stream:
                if not self.heard:
                    self.heard_since = time.monotonic()
                self.heard += bytes(event.frame.data)
                self._notify()
        finally:
            await stream.aclose()

    def loudness(self, last_ms: int) -> float:
        """RMS of the last ``last_ms`` heard, 0 to 1."""
        return rms(bytes(self.heard[-2 * RATE * last_ms // 1000 :]))

    async def wait_for_speech(self, deadline_s: float = 30.0) -> None:
        await self.wait(lambda: self.loudness(100) > 0.01, deadline_s, "the agent to speak")

    async def wait_for_silence(self, ms: int = 1_000, deadline_s: float = 60.0) -> None:
        await self.wait(
            lambda: len(self.heard) >= 2 * RATE * ms // 1000 and self.loudness(ms) < 0.002, deadline_s, "silence"
        )

    # --- waiting ----------------------------------------------------------------------------------

    async def wait(self, condition: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Wait until ``condition`` holds; what is heard or shown is when it is looked at."""
        try:
            async with asyncio.timeout(deadline_s):
                while not condition():
                    await self._next_change()
        except TimeoutError:
            raise AssertionError(
                f"waited {deadline_s} s for {what}; states {[s for _, s in self.states]}, shown {self.shown}, "
                f"heard {len(self.heard) / 2 / RATE:.1f} s"
            ) from None

    async def _next_change(self) -> None:
        await self.changed.wait()
        self.changed.clear()

    def _notify(self) -> None:
        self.changed.set()

    def texts(self, identity: str, *, final: bool = True) -> list[str]:
        """The last state of each segment of ``identity``, in the order in which they began."""
        segments: dict[str, Shown] = {}
        for shown in self.shown:
            if shown.identity == identity and (shown.final or not final):
                segments[shown.segment] = shown
        return [shown.text for shown in segments.values()]

    def _task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        return task

    async def _read(self, reader: rtc.TextStreamReader, identity: str) -> None:
        text = ""
        self.streams += 1
        try:
            async for piece in reader:
                text += piece
                self._show(reader, identity, text)
        except rtc.StreamError:
            # The call ended within it.
            return
        if text:
            # What a stream is closed with may say that it was the last.
            self._show(reader, identity, text)

    def _show(self, reader: rtc.TextStreamReader, identity: str, text: str) -> None:
        attributes = reader.info.attributes or {}
        shown = Shown(
            time.monotonic(),
            identity,
            attributes.get("lk.segment_id", ""),
            attributes.get("lk.transcribed_track_id", ""),
            attributes.get("lk.transcription_final") == "true",
            text,
        )
        before = next((known for known in reversed(self.shown) if known.segment == shown.segment), None)
        if before is None or replace(before, at=shown.at) != shown:
            self.shown.append(shown)
            self._notify()

    def follow(self) -> None:
        """Hear every agent's track and note what changes."""

        def subscribed(track: rtc.RemoteTrack, _: object, participant: rtc.RemoteParticipant) -> None:
            if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
                assert isinstance(track, rtc.RemoteAudioTrack)
                # A track that was published again: the old one's silence must not mix with it.
                if self._hearing is not None:
                    self._hearing.cancel()
                self._hearing = self._task(self._hear(track))

        def attributes_changed(changed: dict[str, str], participant: rtc.Participant) -> None:
            if (state := changed.get("lk.agent.state")) is not None and participant.identity != self.identity:
                self.states.append((time.monotonic(), state))
                self._notify()

        def joined(participant: rtc.RemoteParticipant) -> None:
            # What was set before we learned of the participant comes with it, not as a change.
            attributes_changed(participant.attributes, participant)
            self._notify()

        def left(participant: rtc.RemoteParticipant) -> None:
            self.left.append(participant.identity)
            self._notify()

        def transcribed(
            segments: list[rtc.TranscriptionSegment], participant: rtc.Participant | None, _: object
        ) -> None:
            identity = participant.identity if participant else ""
            self.packets += [(identity, segment.text, segment.final) for segment in segments]
            self._notify()

        def told(packet: rtc.DataPacket) -> None:
            identity = packet.participant.identity if packet.participant else ""
            self.data.append((identity, packet.topic or "", packet.data.decode()))
            self._notify()

        self.room.on("transcription_received", transcribed)
        self.room.on("data_received", told)
        self.room.on("track_subscribed", subscribed)
        self.room.on("participant_connected", joined)
        self.room.on("participant_attributes_changed", attributes_changed)
        self.room.on("participant_disconnected", left)
        # An agent that was there before: its track may have come while our own was being published.
        for agent in self.agents():
            attributes_changed(agent.attributes, agent)
            for publication in agent.track_publications.values():
                if publication.track is not None:
                    subscribed(publication.track, publication, agent)
        self._task(self._speak())

    def agents(self) -> list[rtc.RemoteParticipant]:
        participants = self.room.remote_participants.values()
        return [p for p in participants if p.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT]

    async def hang_up(self) -> None:
        await self._end_tasks()
        await self.room.disconnect()
        # A track, or a text, may have come meanwhile.
        await self._end_tasks()
        await self.source.aclose()

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Look every 20 ms, for what no event tells."""
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {deadline_s} s for {what}") from None


def rms(pcm: bytes) -> float:
    samples = np.frombuffer(pcm, dtype=np.int16).astype(np.float64) / 32_768
    return float(np.sqrt(np.mean(samples**2))) if samples.size else 0.0


@asynccontextmanager
async def call(url: str, token: str) -> AsyncIterator[Caller]:
    """Join a room with a live microphone; hangs up at the end (twice is fine)."""
    room = rtc.Room()
    source = rtc.AudioSource(RATE, 1, queue_size_ms=50)
    shown_before: list[tuple[rtc.TextStreamReader, str]] = []
    caller: Caller | None = None

    def on_text(reader: rtc.TextStreamReader, identity: str) -> None:
        if caller is None:
            shown_before.append((reader, identity))
        else:
            caller._task(caller._read(reader, identity))

    room.register_text_stream_handler("lk.transcription", on_text)
    await room.connect(url, token)
    track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
    options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    caller = Caller(room, source, await room.local_participant.publish_track(track, options))
    caller.follow()
    for reader, identity in shown_before:
        caller._task(caller._read(reader, identity))
    try:
        yield caller
    finally:
        await caller.hang_up()
