"""Calls through a real LiveKit server: each caller is a participant with a microphone, in WebRTC."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, cast

from livekit import rtc

from host.job.line import CALLER_RATE, TICK_MS
from host.job.room import AgentState
from host.loadtest.call import RunningCall
from host.loadtest.ear import TrackEar
from host.loadtest.timeline import Event, Shown

logger = logging.getLogger(__name__)

_AGENT_COMES_S = 30.0
_FRAME_MS = 10
_QUEUE_MS = 60
_LAST_FRAMES_S = 0.5


class LiveKitLine:
    """One call: one participant in one room. ``answer`` joins it and waits for the agent."""

    rate = CALLER_RATE

    def __init__(self, call: RunningCall, url: str, token: str) -> None:
        self._call = call
        self._url = url
        self._token = token
        self._room = rtc.Room()
        self._source = rtc.AudioSource(CALLER_RATE, 1, queue_size_ms=_QUEUE_MS)
        self._blocks: asyncio.Queue[bytes] = asyncio.Queue()
        self._ear = TrackEar(CALLER_RATE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard = asyncio.Event()
        self._over = ""
        self._speaking: asyncio.Task[None] | None = None
        self._room.on("track_subscribed", self._on_track)
        self._room.on("participant_attributes_changed", self._on_attributes)
        self._room.on("participant_connected", self._on_joined)
        self._room.on("participant_disconnected", self._on_left)
        self._room.on("disconnected", self._on_disconnected)
        self._room.register_text_stream_handler("lk.transcription", self._on_text)

    @property
    def hears(self) -> bool:
        """Whether there was voice in the last tick."""
        return self._ear.hears

    async def answer(self) -> None:
        """Join, and wait for the agent to be heard. Raises ``ConnectionError``."""
        try:
            await self._room.connect(self._url, self._token)
        except rtc.ConnectError as exc:
            raise ConnectionError(f"cannot join {self._call.room}: {exc}") from exc
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self._room.local_participant.publish_track(track, options)
        self._speaking = self._start(self._speak(), "microphone")
        try:
            async with asyncio.timeout(_AGENT_COMES_S):
                await self._heard.wait()
        except TimeoutError as exc:
            raise ConnectionError(f"no agent came within {_AGENT_COMES_S:.0f} s") from exc

    # --- what the call does ---------------------------------------------------------------------------

    def tick(self, at_s: float, block: bytes) -> list[Event]:
        """Say 20 ms at 16 kHz and hear what came; returns what was noticed."""
        self._blocks.put_nowait(block)
        return self._ear.tick(at_s)

    def take_answer(self) -> bytes:
        """What was heard since the last time (int16)."""
        return self._ear.take_answer()

    def finish(self) -> list[Event]:
        """The last things that were noticed."""
        return self._ear.finish()

    def is_over(self) -> str:
        """Why the agent has gone; "" while it is there."""
        return self._over

    async def hang_up(self) -> None:
        """Leave the room."""
        # The microphone ends by itself: a frame that is being taken is not to be abandoned.
        self._blocks.put_nowait(b"")
        if self._speaking is not None:
            await asyncio.wait([self._speaking], timeout=_LAST_FRAMES_S)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._room.disconnect()
        await self._source.aclose()

    # --- audio ----------------------------------------------------------------------------------------

    async def _speak(self) -> None:
        while block := await self._blocks.get():
            await self._source.capture_frame(rtc.AudioFrame(block, CALLER_RATE, 1, CALLER_RATE * TICK_MS // 1000))

    async def _hear(self, track: rtc.RemoteAudioTrack) -> None:
        stream = rtc.AudioStream(track, sample_rate=CALLER_RATE, num_channels=1, frame_size_ms=_FRAME_MS)
        try:
            async for event in stream:
                self._heard.set()
                self._ear.push(bytes(event.frame.data))
        finally:
            await stream.aclose()

    # --- what the room says -----------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_track(self, track: rtc.Track, _: object, participant: rtc.RemoteParticipant) -> None:
        if _is_agent(participant) and isinstance(track, rtc.RemoteAudioTrack):
            self._start(self._hear(track), "agent-audio")

    def _on_joined(self, participant: rtc.RemoteParticipant) -> None:
        # What was set before we learned of the participant comes with it, not as a change.
        self._on_attributes(participant.attributes, participant)

    def _on_attributes(self, changed: dict[str, str], participant: rtc.Participant) -> None:
        state = changed.get("lk.agent.state")
        if state is not None and participant.identity != self._room.local_participant.identity:
            self._ear.agent_does(cast(AgentState, state))
            self._call.agent_does(cast(AgentState, state))

    def _on_left(self, participant: rtc.RemoteParticipant) -> None:
        if _is_agent(participant):
            self._over = "the agent has left"

    def _on_disconnected(self, reason: object) -> None:
        self._over = self._over or f"disconnected: {reason}"

    def _on_text(self, reader: rtc.TextStreamReader, identity: str) -> None:
        self._start(self._read(reader, identity), "transcript")

    async def _read(self, reader: rtc.TextStreamReader, identity: str) -> None:
        try:
            text = await reader.read_all()
        except rtc.StreamError:
            # The room ended within it.
            return
        attributes = reader.info.attributes or {}
        own = identity == self._room.local_participant.identity
        self._call.shown(
            Shown(
                time.monotonic(),
                "user" if own else "agent",
                attributes.get("lk.segment_id", ""),
                text,
                attributes.get("lk.transcription_final") == "true",
            )
        )


def _is_agent(participant: rtc.RemoteParticipant) -> bool:
    return participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT


class LiveKitLines:
    """Joins the rooms of the server at ``url``."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def start(self) -> None:
        """Nothing to wait for."""

    async def answer(self, call: RunningCall, token: str) -> LiveKitLine:
        """The line of ``call``, as soon as the agent is there. Raises ``ConnectionError``."""
        line = LiveKitLine(call, self._url, token)
        try:
            await line.answer()
        except BaseException:
            await line.hang_up()
            raise
        return line

    async def aclose(self) -> None:
        """Nothing is left."""
