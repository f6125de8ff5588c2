"""A LiveKit room as ``host.job.room.Room``.

The job is linked to one participant, the caller: only that microphone is subscribed to, only what is typed
there is read, and the room is over when that participant has left. Others may be in the room and hear.

``host.job.room_livekit_audio`` has the tracks, ``host.job.room_livekit_text`` what clients show and send as text.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator

from livekit import rtc

from host.job.room import TOPIC_METRICS, AgentState, RoomEndedError, Side, metrics_message
from host.job.room_livekit_audio import Microphone, Speech, is_microphone
from host.job.room_livekit_text import TOPIC_CHAT, Chat, DataNote, Publisher, StateNote, TranscriptNote
from inference.wire.supervision import TurnReport

logger = logging.getLogger(__name__)

REJOIN_GRACE_S = 20.0
"""How long a caller whose connection broke may take to come back before the conversation is over.

LiveKit's agents stay until the server ends the room: by default 20 s (``departure_timeout``) after everybody left.
"""
_LEAVE_TIMEOUT_S = 5.0
_END_HEARD_S = 1.0
"""How long after an operation failed the end of the room may be heard, if that is the reason."""

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


_JSON_WEB_TOKEN = re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+")


def _without_tokens(text: str) -> str:
    """A token opens a room to whoever reads it, so none is shown: the server quotes the one that it refuses."""
    return _JSON_WEB_TOKEN.sub("(token)", text)


def _is_worth_a_word(record: logging.LogRecord) -> bool:
    """Takes tokens out of livekit's records, and one record away.

    livekit gives a remote track's handle back itself, and again with its Python object: harmless, and a warning.
    """
    text = record.getMessage()
    if "eyJ" in text:
        record.msg, record.args = _without_tokens(text), ()
    return "Attempted to drop unknown FFI handle" not in text


# Adding it twice would be adding it once.
logging.getLogger("livekit").addFilter(_is_worth_a_word)


class LiveKitRoom:
    """One room on a LiveKit server, joined with the token of a job assignment. See ``Room``."""

    def __init__(self, name: str, url: str, token: str) -> None:
        self._name = name
        self._url = url
        self._token = token
        self._room: rtc.Room | None = None
        self._closed: asyncio.Future[str] | None = None
        self._caller = ""
        self._participants_changed = asyncio.Event()
        self._grace: asyncio.TimerHandle | None = None
        self._microphone = Microphone()
        self._speech: Speech | None = None
        self._chat = Chat(name)
        self._publisher = Publisher(name)
        self._publishing: asyncio.Task[None] | None = None

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
        room.register_text_stream_handler(TOPIC_CHAT, self._on_typed)
        try:
            await room.connect(self._url, self._token, rtc.RoomOptions(auto_subscribe=False))
        except rtc.ConnectError as exc:
            raise ConnectionError(
                f"cannot join room {self._name!r} at {self._url}: {_without_tokens(exc.message)}"
            ) from None
        self._room = room
        self._closed = asyncio.get_running_loop().create_future()
        self._publishing = asyncio.create_task(self._publisher.run(room), name="room-notes")

    async def leave(self) -> None:
        """Leave and give everything back. Safe to call twice and before ``connect``."""
        room, self._room = self._room, None
        if room is None:
            return
        self._end("the agent left")
        self._cancel_grace()
        if self._publishing is not None:
            # What was said last, the final transcript above all, still goes out.
            self._publisher.end()
            await asyncio.wait([self._publishing], timeout=_LEAVE_TIMEOUT_S)
            self._publishing.cancel()
        await self._chat.close()
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
            self._chat.end()
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
                    self._caller = self._publisher.caller = participant.identity
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

    async def text_input(self) -> AsyncIterator[str]:
        """What the caller types (text streams of topic ``lk.chat``), message by message, until the caller leaves.

        To be asked for when the caller is there; what came before is kept.
        """
        async for text in self._chat.messages(self._caller):
            yield text

    def _on_typed(self, reader: rtc.TextStreamReader, identity: str) -> None:
        self._chat.take(reader, identity, self._caller)

    def _subscribe_microphone(self, participant: rtc.RemoteParticipant) -> None:
        for publication in participant.track_publications.values():
            if is_microphone(publication) and not publication.subscribed:
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
        logger.info("%s; waiting %.0f s for the caller to come back", why, REJOIN_GRACE_S)
        self._cancel_grace()
        self._grace = asyncio.get_running_loop().call_later(REJOIN_GRACE_S, self._end, why)

    def _cancel_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _on_track_published(self, publication: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant) -> None:
        if participant.identity == self._caller and is_microphone(publication):
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
        speech = Speech(sample_rate)
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

    def _open_speech(self) -> Speech:
        if self._speech is None:
            raise ConnectionError(f"room {self._name!r}: the agent has no audio track")
        return self._speech

    # --- what clients show ------------------------------------------------------------------------

    async def set_agent_state(self, state: AgentState) -> None:
        """Show the caller's client what the agent does (participant attribute ``lk.agent.state``)."""
        self._publisher.add(StateNote(state))

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        """Publish the text so far of one segment of speech, of either side (topic ``lk.transcription``)."""
        self._publisher.add(TranscriptNote(side, segment, text, final))

    async def publish_metrics(self, report: TurnReport) -> None:
        """Send what was measured of a turn to everybody in the room, as a data message of topic ``roomful.metrics``."""
        self._publisher.add(DataNote(TOPIC_METRICS, metrics_message(report)))

    def _joined(self) -> tuple[rtc.Room, asyncio.Future[str]]:
        if self._room is None or self._closed is None:
            raise ConnectionError(f"room {self._name!r} was not joined")
        return self._room, self._closed
