"""The audio of a LiveKit room: the caller's current track as blocks of samples, and the agent's published one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from livekit import rtc

CALLER_RATE = 16_000
CALLER_FRAME_MS = 20
QUEUE_MS = 200
"""How much of the agent's speech waits in the track's queue."""
_SLICE_MS = 20
_TAIL_MS = 1_000
"""Silence delivered after the microphone is muted or gone, so that a turn that was being spoken can end."""
_CLOSE_TIMEOUT_S = 5.0
_LISTENER_S = 5.0
"""How long the first words wait for somebody to take the track: what is said before that, nobody hears."""


def is_microphone(publication: rtc.TrackPublication) -> bool:
    """A microphone, or audio of unknown source, which is how some gateways publish a caller."""
    return publication.kind == rtc.TrackKind.KIND_AUDIO and publication.source in (
        rtc.TrackSource.SOURCE_MICROPHONE,
        rtc.TrackSource.SOURCE_UNKNOWN,
    )


class Microphone:
    """The caller's current track as blocks of 16 kHz PCM. Reads the track only once somebody listens."""

    def __init__(self) -> None:
        self._blocks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._sid = ""
        self._track: rtc.RemoteAudioTrack | None = None
        self._muted = False
        self._listening = False
        self._ended = False
        self._pump: asyncio.Task[None] | None = None

    async def blocks(self) -> AsyncIterator[bytes]:
        """20 ms each (int16 at 16 kHz), until ``end``."""
        self._listening = True
        self._start()
        while (block := await self._blocks.get()) is not None:
            yield block

    def attach(self, track: rtc.RemoteAudioTrack, sid: str, *, muted: bool) -> None:
        """``track`` takes the place of the one before."""
        self._stop()
        self._track, self._sid, self._muted = track, sid, muted
        self._start()

    def detach(self, sid: str) -> None:
        """The track is gone; of another one that took its place nothing changes."""
        if sid == self._sid:
            self._stop()
            self._track, self._sid = None, ""
            self._start()

    def set_muted(self, sid: str, *, muted: bool) -> None:
        """What a muted track carries is not heard."""
        if sid == self._sid:
            self._muted = muted

    def end(self) -> None:
        """No more blocks."""
        if not self._ended:
            self._ended = True
            self._stop()
            self._blocks.put_nowait(None)

    async def close(self) -> None:
        """Give the track back."""
        self.end()
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=_CLOSE_TIMEOUT_S)

    def _start(self) -> None:
        if not self._listening or self._ended:
            return
        previous = self._pump
        if self._track is not None:
            self._pump = asyncio.create_task(self._read(self._track, previous), name="caller-audio")
        elif previous is not None:
            self._pump = asyncio.create_task(self._tail(previous), name="caller-audio-tail")

    def _stop(self) -> None:
        if self._pump is not None:
            self._pump.cancel()

    async def _read(self, track: rtc.RemoteAudioTrack, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        stream = rtc.AudioStream(track, sample_rate=CALLER_RATE, num_channels=1, frame_size_ms=CALLER_FRAME_MS)
        tail = 0
        try:
            async for event in stream:
                block = bytes(event.frame.data)
                if not self._muted:
                    tail = _TAIL_MS // CALLER_FRAME_MS
                elif tail > 0:
                    tail -= 1
                    block = bytes(len(block))
                else:
                    continue
                self._blocks.put_nowait(block)
        finally:
            await stream.aclose()

    async def _tail(self, previous: asyncio.Task[None]) -> None:
        await asyncio.wait([previous])
        silence = bytes(2 * CALLER_RATE * CALLER_FRAME_MS // 1000)
        for _ in range(_TAIL_MS // CALLER_FRAME_MS):
            await asyncio.sleep(CALLER_FRAME_MS / 1000)
            self._blocks.put_nowait(silence)


class Speech:
    """The agent's track: a source with a short queue, fed at the pace of the listener.

    WebRTC takes blocks of 10 ms, so a rate that is no multiple of 100 Hz (Piper's 22,050) is
    resampled first. Counts are in samples of the speech's own rate.
    """

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._track_rate = sample_rate if sample_rate % 100 == 0 else 24_000
        self._source = rtc.AudioSource(self._track_rate, 1, queue_size_ms=QUEUE_MS)
        self._resampler: rtc.AudioResampler | None = None
        self._generation = 0
        self._pushed = 0
        self._dropped = 0
        # The native side reads a frame's memory until it has answered, also when the wait for the
        # answer is cancelled; so frames outlive the queue they go into.
        self._frames: deque[rtc.AudioFrame] = deque(maxlen=2 * QUEUE_MS // _SLICE_MS)
        self._listener: asyncio.Task[None] | None = None

    async def publish(self, participant: rtc.LocalParticipant) -> None:
        """Publish the track. Raises ``PublishTrackError``."""
        track = rtc.LocalAudioTrack.create_audio_track("agent-speech", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        publication = await participant.publish_track(track, options)
        self._listener = asyncio.create_task(_wait_for_listener(publication), name="listener")

    async def play(self, pcm: bytes) -> None:
        """See ``Room.play``."""
        generation = self._generation
        while self._listener is not None and not self._listener.done():
            await asyncio.sleep(_SLICE_MS / 1000)
            if generation != self._generation:
                return
        step = 2 * (self._rate * _SLICE_MS // 1000)
        for start in range(0, len(pcm), step):
            piece = pcm[start : start + step]
            # Waiting here and not in capture_frame leaves nothing in flight for clear() to miss.
            while (early := self._source.queued_duration + _SLICE_MS / 1000 - QUEUE_MS / 1000) > 0:
                await asyncio.sleep(early)
                if generation != self._generation:
                    return
            self._pushed += len(piece) // 2
            for frame in self._resample(piece):
                await self._capture(frame)
                if generation != self._generation:
                    return

    async def _capture(self, frame: rtc.AudioFrame) -> None:
        self._frames.append(frame)
        await self._source.capture_frame(frame)

    def _resample(self, piece: bytes) -> list[rtc.AudioFrame]:
        if self._track_rate == self._rate:
            return [rtc.AudioFrame(piece, self._rate, 1, len(piece) // 2)]
        if self._resampler is None:
            self._resampler = rtc.AudioResampler(self._rate, self._track_rate)
        return self._resampler.push(bytearray(piece))

    def clear(self) -> None:
        """Drop what is queued."""
        self._generation += 1
        self._dropped += self._queued_samples()
        self._resampler = None
        self._source.clear_queue()

    def heard_samples(self) -> int:
        """How many samples given to ``play`` have left the queue to be heard."""
        return self._pushed - self._dropped - self._queued_samples()

    def _queued_samples(self) -> int:
        return min(round(self._source.queued_duration * self._rate), self._pushed - self._dropped)

    async def wait_for_playout(self) -> None:
        """Return when everything queued has been heard."""
        if self._resampler is not None:
            # The filter holds back the last milliseconds of what was played.
            resampler, self._resampler = self._resampler, None
            for frame in resampler.flush():
                await self._capture(frame)
        await self._source.wait_for_playout()

    async def close(self) -> None:
        """Give the track's source back."""
        self._generation += 1
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        await self._source.aclose()


async def _wait_for_listener(publication: rtc.LocalTrackPublication) -> None:
    """Return when somebody has taken the track, or takes none: clients that only read are spoken to as well."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LISTENER_S):
            await publication.wait_for_subscription()
