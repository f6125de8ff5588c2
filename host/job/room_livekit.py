"""A LiveKit room as ``host.job.room.Room``. The only file that imports ``livekit.rtc``.

Only the caller's microphone is subscribed to. The agent's speech goes through one published track
whose queue holds at most ``QUEUE_MS``: what is queued and not heard can be dropped at once.

The text that clients show goes over text streams of topic ``lk.transcription``: one stream for each
state of a segment, whole text each time, as LiveKit's own agents publish what the caller says;
clients replace the text of a segment they know. https://docs.livekit.io/agents/build/text/
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from livekit import rtc

from host.job.room import AgentState, RoomEndedError, Side

logger = logging.getLogger(__name__)

CALLER_RATE = 16_000
CALLER_FRAME_MS = 20
QUEUE_MS = 200
"""How much of the agent's speech waits in the track's queue."""
_SLICE_MS = 20
_REJOIN_GRACE_S = 10.0
"""How long a caller whose connection broke may take to come back before the conversation is over."""
_TAIL_MS = 1_000
"""Silence delivered after the microphone is muted or gone, so that a turn that was being spoken can end."""
_LEAVE_TIMEOUT_S = 5.0
_END_HEARD_S = 1.0
"""How long after an operation failed the end of the room may be heard, if that is the reason."""

_TOPIC_TRANSCRIPTION = "lk.transcription"
_ATTRIBUTE_SEGMENT = "lk.segment_id"
_ATTRIBUTE_TRACK = "lk.transcribed_track_id"
_ATTRIBUTE_FINAL = "lk.transcription_final"
_ATTRIBUTE_AGENT_STATE = "lk.agent.state"

_CALLER_KINDS = frozenset(
    {
        rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD,
        rtc.ParticipantKind.PARTICIPANT_KIND_SIP,
        rtc.ParticipantKind.PARTICIPANT_KIND_CONNECTOR,
    }
)

_LEFT_FOR_GOOD = frozenset(
    {
        rtc.DisconnectReason.CLIENT_INITIATED,
        rtc.DisconnectReason.PARTICIPANT_REMOVED,
        rtc.DisconnectReason.ROOM_DELETED,
        rtc.DisconnectReason.ROOM_CLOSED,
        rtc.DisconnectReason.USER_UNAVAILABLE,
        rtc.DisconnectReason.USER_REJECTED,
    }
)
"""Other reasons (a broken connection, the same identity joining again) leave time to come back."""


def _is_worth_a_word(record: logging.LogRecord) -> bool:
    """livekit gives a remote track's handle back itself, and again with its Python object: harmless, and a warning."""
    return "Attempted to drop unknown FFI handle" not in record.getMessage()


# Adding it twice would be adding it once.
logging.getLogger("livekit").addFilter(_is_worth_a_word)


@dataclass(frozen=True, slots=True)
class _StateNote:
    state: AgentState


@dataclass(frozen=True, slots=True)
class _TranscriptNote:
    side: Side
    segment: str
    text: str
    final: bool


class LiveKitRoom:
    """One room on a LiveKit server, joined with the token of a job assignment. See ``Room``.

    What the caller's client shows (states, transcripts) is sent in order by a task of its own, so
    that a slow network never delays the conversation; states of a segment that were overtaken by a
    newer one before they were sent are left out.
    """

    def __init__(self, name: str, url: str, token: str) -> None:
        self._name = name
        self._url = url
        self._token = token
        self._room: rtc.Room | None = None
        self._closed: asyncio.Future[str] | None = None
        self._caller = ""
        self._participants_changed = asyncio.Event()
        self._grace: asyncio.TimerHandle | None = None
        self._microphone = _Microphone()
        self._speech: _Speech | None = None
        self._notes: deque[_StateNote | _TranscriptNote] = deque()
        self._notes_added = asyncio.Event()
        self._publisher: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The room's name."""
        return self._name

    @property
    def local_participant(self) -> rtc.LocalParticipant:
        """The agent. Raises ``ConnectionError`` before the room was joined."""
        return self._joined()[0].local_participant

    # --- joining and leaving ----------------------------------------------------------------------

    async def connect(self) -> None:
        """Join. Raises ``ConnectionError`` naming the room and the reason."""
        if self._room is not None:
            return
        room = rtc.Room()
        room.on("participant_connected", self._on_participant_connected)
        room.on("participant_disconnected", self._on_participant_disconnected)
        room.on("track_published", self._on_track_published)
        room.on("track_subscribed", self._on_track_subscribed)
        room.on("track_unsubscribed", self._on_track_unsubscribed)
        room.on("track_muted", self._on_muted_changed)
        room.on("track_unmuted", self._on_muted_changed)
        room.on("reconnecting", self._on_reconnecting)
        room.on("reconnected", self._on_reconnected)
        room.on("disconnected", self._on_disconnected)
        try:
            await room.connect(self._url, self._token, rtc.RoomOptions(auto_subscribe=False))
        except rtc.ConnectError as exc:
            raise ConnectionError(f"cannot join room {self._name!r} at {self._url}: {exc.message}") from exc
        self._room = room
        self._closed = asyncio.get_running_loop().create_future()
        self._publisher = asyncio.create_task(self._publish_notes(), name="room-notes")

    async def leave(self) -> None:
        """Leave and give everything back. Safe to call twice and before ``connect``."""
        room, self._room = self._room, None
        if room is None:
            return
        self._end("the agent left")
        self._cancel_grace()
        if self._publisher is not None:
            # What was said last, the final transcript above all, still goes out.
            self._publisher_may_end()
            await asyncio.wait([self._publisher], timeout=_LEAVE_TIMEOUT_S)
            self._publisher.cancel()
        await self._microphone.close()
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                await room.disconnect()
        except TimeoutError:
            logger.warning("leaving room %r took longer than %.0f s", self._name, _LEAVE_TIMEOUT_S)
        if self._speech is not None:
            await self._speech.close()
            self._speech = None

    async def wait_closed(self) -> str:
        """Return the reason when the caller has left or the room has ended."""
        if self._closed is None:
            raise ConnectionError(f"room {self._name!r} was not joined")
        return await asyncio.shield(self._closed)

    def _end(self, reason: str) -> None:
        if self._closed is not None and not self._closed.done():
            logger.debug("room %r: %s", self._name, reason)
            self._closed.set_result(reason)
            self._microphone.end()
            self._participants_changed.set()

    # --- the caller -------------------------------------------------------------------------------

    async def wait_for_participant(self, identity: str = "") -> str:
        """Wait for the caller (the first non-agent participant, or ``identity``) and return the identity.

        Raises ``RoomEndedError`` when the room ends first.
        """
        room, closed = self._joined()
        while True:
            for participant in room.remote_participants.values():
                if participant.identity == identity or (not identity and participant.kind in _CALLER_KINDS):
                    self._caller = participant.identity
                    self._subscribe_microphone(participant)
                    return participant.identity
            if closed.done():
                raise RoomEndedError(f"room {self._name!r} ended before the caller came: {closed.result()}")
            self._participants_changed.clear()
            await self._participants_changed.wait()

    async def caller_audio(self) -> AsyncIterator[bytes]:
        """The caller's audio at 16 kHz in blocks of 20 ms, in real time, until the caller leaves.

        Follows the caller to a new track. While the caller has no track or is muted nothing comes,
        but for the silence that ends what was being said.
        """
        async for block in self._microphone.blocks():
            yield block

    def _subscribe_microphone(self, participant: rtc.RemoteParticipant) -> None:
        for publication in participant.track_publications.values():
            if _is_microphone(publication) and not publication.subscribed:
                publication.set_subscribed(True)

    def _on_participant_connected(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity == self._caller:
            logger.info("the caller %r is back", self._caller)
            self._cancel_grace()
            self._subscribe_microphone(participant)
        self._participants_changed.set()

    def _on_participant_disconnected(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity != self._caller:
            return
        reason = participant.disconnect_reason or rtc.DisconnectReason.UNKNOWN_REASON
        why = f"the caller left ({rtc.DisconnectReason.Name(reason)})"
        if reason in _LEFT_FOR_GOOD:
            self._end(why)
            return
        logger.info("%s; waiting %.0f s for the caller to come back", why, _REJOIN_GRACE_S)
        self._cancel_grace()
        self._grace = asyncio.get_running_loop().call_later(_REJOIN_GRACE_S, self._end, why)

    def _cancel_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _on_track_published(self, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant) -> None:
        if participant.identity == self._caller and _is_microphone(publication):
            publication.set_subscribed(True)

    def _on_track_subscribed(
        self, track: rtc.RemoteTrack, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        if participant.identity == self._caller and isinstance(track, rtc.RemoteAudioTrack):
            self._microphone.attach(track, publication.sid, muted=publication.muted)

    def _on_track_unsubscribed(
        self, _track: rtc.RemoteTrack, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        if participant.identity == self._caller:
            self._microphone.detach(publication.sid)

    def _on_muted_changed(self, participant: rtc.Participant, publication: rtc.TrackPublication) -> None:
        if participant.identity == self._caller:
            self._microphone.set_muted(publication.sid, muted=publication.muted)

    # --- the connection ---------------------------------------------------------------------------

    def _on_reconnecting(self) -> None:
        logger.warning("the connection to room %r broke; reconnecting", self._name)

    def _on_reconnected(self) -> None:
        # The native side has published our track again, or kept it; the caller may have a new one.
        logger.info("connected to room %r again", self._name)
        if self._room is not None and (caller := self._room.remote_participants.get(self._caller)):
            self._subscribe_microphone(caller)

    def _on_disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        self._end(f"the room ended ({rtc.DisconnectReason.Name(reason)})")

    # --- the agent's speech -----------------------------------------------------------------------

    async def open_speech(self, sample_rate: int) -> None:
        """Publish the agent's audio track; ``play`` takes PCM at ``sample_rate`` from now on.

        Raises ``RoomEndedError`` when the room ends, ``ConnectionError`` when the server does not take the track.
        """
        room, closed = self._joined()
        speech = _Speech(sample_rate)
        publishing = asyncio.create_task(speech.publish(room.local_participant), name="publish")
        try:
            # The native side may never answer for a room that has ended.
            await asyncio.wait((publishing, closed), return_when=asyncio.FIRST_COMPLETED)
            if publishing.done() and publishing.exception():
                # Of a room that ends, this may be heard before the end.
                await asyncio.wait((closed,), timeout=_END_HEARD_S)
            if closed.done():
                raise RoomEndedError(f"room {self._name!r} ended before the agent spoke: {closed.result()}")
            publishing.result()
        except rtc.participant.PublishTrackError as exc:
            raise ConnectionError(f"cannot publish the agent's voice in room {self._name!r}: {exc.message}") from exc
        else:
            self._speech = speech
        finally:
            if self._speech is not speech:
                publishing.cancel()
                await asyncio.wait((publishing,))
                await speech.close()

    async def play(self, pcm: bytes) -> None:
        """Queue the agent's speech. Returns when at most ~200 ms wait to be heard: this paces the player."""
        await self._open_speech().play(pcm)

    def clear(self) -> None:
        """Silence now: drop what is queued and not heard yet."""
        if self._speech is not None:
            self._speech.clear()

    def heard_samples(self) -> int:
        """How many samples given to ``play`` have been heard so far (dropped ones do not count)."""
        return 0 if self._speech is None else self._speech.heard_samples()

    async def wait_for_playout(self) -> None:
        """Return when everything queued has been heard."""
        await self._open_speech().wait_for_playout()

    def _open_speech(self) -> _Speech:
        if self._speech is None:
            raise ConnectionError(f"room {self._name!r}: the agent has no audio track")
        return self._speech

    # --- what clients show ------------------------------------------------------------------------

    async def set_agent_state(self, state: AgentState) -> None:
        """Show the caller's client what the agent does (participant attribute ``lk.agent.state``)."""
        self._add_note(_StateNote(state))

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        """Publish the text so far of one segment of speech, of either side (topic ``lk.transcription``)."""
        self._add_note(_TranscriptNote(side, segment, text, final))

    def _add_note(self, note: _StateNote | _TranscriptNote) -> None:
        if isinstance(note, _TranscriptNote):
            overtaken = [n for n in self._notes if isinstance(n, _TranscriptNote) and n.segment == note.segment]
            for old in overtaken:
                self._notes.remove(old)
        self._notes.append(note)
        self._notes_added.set()

    def _publisher_may_end(self) -> None:
        self._notes_added.set()

    async def _publish_notes(self) -> None:
        room, _ = self._joined()
        while True:
            while self._notes:
                note = self._notes.popleft()
                try:
                    if isinstance(note, _StateNote):
                        await room.local_participant.set_attributes({_ATTRIBUTE_AGENT_STATE: note.state})
                    else:
                        await self._send_transcript(room, note)
                except (rtc.StreamError, RuntimeError) as exc:
                    logger.warning("room %r: cannot send %s: %s", self._name, note, exc)
            if self._room is None:
                return
            self._notes_added.clear()
            await self._notes_added.wait()

    async def _send_transcript(self, room: rtc.Room, note: _TranscriptNote) -> None:
        speaker: rtc.Participant = room.local_participant
        if note.side == "user" and (caller := room.remote_participants.get(self._caller)):
            speaker = caller
        identity = self._caller if note.side == "user" else room.local_participant.identity
        attributes = {_ATTRIBUTE_SEGMENT: note.segment, _ATTRIBUTE_FINAL: "true" if note.final else "false"}
        track = next((p.sid for p in speaker.track_publications.values() if _is_microphone(p)), "")
        if track:
            attributes[_ATTRIBUTE_TRACK] = track
        writer = await room.local_participant.stream_text(
            topic=_TOPIC_TRANSCRIPTION, sender_identity=identity, attributes=attributes
        )
        if note.text:
            await writer.write(note.text)
        await writer.aclose()

    def _joined(self) -> tuple[rtc.Room, asyncio.Future[str]]:
        if self._room is None or self._closed is None:
            raise ConnectionError(f"room {self._name!r} was not joined")
        return self._room, self._closed


def _is_microphone(publication: rtc.TrackPublication) -> bool:
    """A microphone, or audio of unknown source, which is how some gateways publish a caller."""
    return publication.kind == rtc.TrackKind.KIND_AUDIO and publication.source in (
        rtc.TrackSource.SOURCE_MICROPHONE,
        rtc.TrackSource.SOURCE_UNKNOWN,
    )


class _Microphone:
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
        self._listening = True
        self._start()
        while (block := await self._blocks.get()) is not None:
            yield block

    def attach(self, track: rtc.RemoteAudioTrack, sid: str, *, muted: bool) -> None:
        self._stop()
        self._track, self._sid, self._muted = track, sid, muted
        self._start()

    def detach(self, sid: str) -> None:
        if sid == self._sid:
            self._stop()
            self._track, self._sid = None, ""
            self._start()

    def set_muted(self, sid: str, *, muted: bool) -> None:
        if sid == self._sid:
            self._muted = muted

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._stop()
            self._blocks.put_nowait(None)

    async def close(self) -> None:
        self.end()
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=_LEAVE_TIMEOUT_S)

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


class _Speech:
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

    async def publish(self, participant: rtc.LocalParticipant) -> None:
        track = rtc.LocalAudioTrack.create_audio_track("agent-speech", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await participant.publish_track(track, options)

    async def play(self, pcm: bytes) -> None:
        generation = self._generation
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
        self._generation += 1
        self._dropped += self._queued_samples()
        self._resampler = None
        self._source.clear_queue()

    def heard_samples(self) -> int:
        return self._pushed - self._dropped - self._queued_samples()

    def _queued_samples(self) -> int:
        return min(round(self._source.queued_duration * self._rate), self._pushed - self._dropped)

    async def wait_for_playout(self) -> None:
        if self._resampler is not None:
            # The filter holds back the last milliseconds of what was played.
            resampler, self._resampler = self._resampler, None
            for frame in resampler.flush():
                await self._capture(frame)
        await self._source.wait_for_playout()

    async def close(self) -> None:
        self._generation += 1
        await self._source.aclose()
