"""The text of a LiveKit room: what the clients show, and what is typed there.

Transcripts go out as LiveKit's own agents send them (https://docs.livekit.io/agents/build/text/):

* what the agent says, as one text stream of topic ``lk.transcription`` a segment, to which the words are added
  as they are heard; the stream's end says that the segment is final;
* what the caller says, as one text stream for each state of a segment, whole text each time;
* both as transcription packets, too, which clients from before text streams read.

Clients replace the text of a segment that they know by that of a newer stream, so a segment whose text is cut
back, or goes on after its end, is sent whole in a stream of its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from livekit import rtc

from host.job.room import AgentState, Side
from host.job.room_livekit_audio import is_microphone

logger = logging.getLogger(__name__)

TOPIC_CHAT = "lk.chat"
TOPIC_TRANSCRIPTION = "lk.transcription"
ATTRIBUTE_SEGMENT = "lk.segment_id"
ATTRIBUTE_TRACK = "lk.transcribed_track_id"
ATTRIBUTE_FINAL = "lk.transcription_final"
ATTRIBUTE_AGENT_STATE = "lk.agent.state"

MAX_TEXT_CHARS = 16_384
"""A longer message of the caller is not read: it would not fit into a conversation."""
_LAST_WORDS_S = 0.2
"""What was sent in the last moment before the agent leaves may not be on its way yet, and nothing tells."""
_MAX_WAITING = 64
"""Messages that may wait to be read by the session."""
_MAX_READING = 16
"""Messages that may be on their way at once."""


@dataclass(frozen=True, slots=True)
class StateNote:
    """What the agent does."""

    state: AgentState


@dataclass(frozen=True, slots=True)
class TranscriptNote:
    """The text so far of one segment of speech."""

    side: Side
    segment: str
    text: str
    final: bool


@dataclass(frozen=True, slots=True)
class DataNote:
    """A data message to everybody in the room."""

    topic: str
    payload: str


Note = StateNote | TranscriptNote | DataNote


@dataclass(slots=True)
class _OpenSegment:
    """A stream of what the agent says that is not at its end, and what was written to it."""

    writer: rtc.TextStreamWriter
    text: str = ""


@dataclass(slots=True)
class _Speaker:
    """Whose words a transcript has. ``track`` is "" where the microphone is not published."""

    identity: str
    track: str
    attributes: dict[str, str] = field(default_factory=dict)


class Publisher:
    """Sends, in order, what the clients show, so that a slow network never delays the conversation.

    States of a segment that were overtaken by a newer one before they were sent are left out. ``caller``: the
    identity of the linked participant, once there is one.
    """

    def __init__(self, room_name: str) -> None:
        self.caller = ""
        self._room_name = room_name
        # Clients keep segments by their name, also those of an agent that was in the room before.
        self._prefix = f"SG_{secrets.token_hex(4)}"
        self._notes: deque[Note] = deque()
        self._added = asyncio.Event()
        self._ending = False
        self._open: dict[str, _OpenSegment] = {}
        self._shown_of_caller = ""
        self._sent_at = -_LAST_WORDS_S

    def add(self, note: Note) -> None:
        """Send ``note`` when what came before it is sent."""
        if isinstance(note, TranscriptNote):
            overtaken = [n for n in self._notes if isinstance(n, TranscriptNote) and n.segment == note.segment]
            for old in overtaken:
                self._notes.remove(old)
        self._notes.append(note)
        self._added.set()

    def end(self) -> None:
        """``run`` returns when all is sent."""
        self._ending = True
        self._added.set()

    async def run(self, room: rtc.Room) -> None:
        """Send notes into ``room`` until ``end``."""
        while True:
            while self._notes:
                await self._send(room, self._notes.popleft())
            if self._ending:
                break
            self._added.clear()
            await self._added.wait()
        for segment, open_segment in list(self._open.items()):
            # What was heard of it stays.
            await self._send(room, TranscriptNote("agent", segment, open_segment.text, final=True))
        if room.isconnected():
            await asyncio.sleep(max(0.0, self._sent_at + _LAST_WORDS_S - time.monotonic()))

    async def _send(self, room: rtc.Room, note: Note) -> None:
        agent = room.local_participant
        try:
            match note:
                case StateNote(state):
                    await agent.set_attributes({ATTRIBUTE_AGENT_STATE: state})
                case DataNote(topic, payload):
                    await agent.publish_data(payload, topic=topic)
                case TranscriptNote(side="agent"):
                    await self._send_words(room, note)
                case TranscriptNote():
                    await self._send_state(room, note)
            self._sent_at = time.monotonic()
        except (
            rtc.StreamError,
            rtc.participant.PublishTranscriptionError,
            rtc.participant.PublishDataError,
            RuntimeError,
        ) as exc:
            logger.warning("room %r: cannot send %s: %s", self._room_name, note, exc)
            if isinstance(note, TranscriptNote):
                # The next state of the segment begins a new stream.
                self._open.pop(note.segment, None)

    async def _send_words(self, room: rtc.Room, note: TranscriptNote) -> None:
        """What the agent says: what is new of the segment goes into its stream."""
        speaker = _speaker(room.local_participant, room.local_participant.identity)
        begun = self._open.get(note.segment)
        if begun is None and not note.text:
            # Nothing was shown, and nothing is.
            return
        if begun is not None and not note.text.startswith(begun.text):
            del self._open[note.segment]
            await begun.writer.aclose()
            begun = None
        if begun is None:
            begun = self._open[note.segment] = _OpenSegment(await self._stream(room, speaker, note, final=False))
        if more := _visible(note.text)[len(begun.text) :]:
            await begun.writer.write(more)
            begun.text = note.text
        if note.final:
            del self._open[note.segment]
            await begun.writer.aclose(attributes={ATTRIBUTE_FINAL: "true", **speaker.attributes})
        await self._send_packet(room, speaker, note)

    async def _send_state(self, room: rtc.Room, note: TranscriptNote) -> None:
        """What the caller says: the whole text, which may have become another one."""
        if not note.text and self._shown_of_caller != note.segment:
            return
        self._shown_of_caller = note.segment
        speaker = _speaker(room.remote_participants.get(self.caller), self.caller)
        writer = await self._stream(room, speaker, note, final=note.final)
        await writer.write(_visible(note.text))
        await writer.aclose()
        await self._send_packet(room, speaker, note)

    async def _stream(
        self, room: rtc.Room, speaker: _Speaker, note: TranscriptNote, *, final: bool
    ) -> rtc.TextStreamWriter:
        return await room.local_participant.stream_text(
            topic=TOPIC_TRANSCRIPTION,
            sender_identity=speaker.identity,
            attributes={
                ATTRIBUTE_SEGMENT: self._name(note),
                ATTRIBUTE_FINAL: "true" if final else "false",
                **speaker.attributes,
            },
        )

    async def _send_packet(self, room: rtc.Room, speaker: _Speaker, note: TranscriptNote) -> None:
        if not speaker.track:
            return
        segment = rtc.TranscriptionSegment(
            id=self._name(note), text=note.text, start_time=0, end_time=0, language="", final=note.final
        )
        transcription = rtc.Transcription(speaker.identity, speaker.track, [segment])
        await room.local_participant.publish_transcription(transcription)

    def _name(self, note: TranscriptNote) -> str:
        return f"{self._prefix}-{note.segment}"


def _speaker(participant: rtc.Participant | None, identity: str) -> _Speaker:
    publications = participant.track_publications.values() if participant else ()
    track = next((publication.sid for publication in publications if is_microphone(publication)), "")
    return _Speaker(identity, track, {ATTRIBUTE_TRACK: track} if track else {})


def _visible(text: str) -> str:
    """Clients replace a text when some comes: one that is withdrawn is replaced by a space."""
    return text or " "


class Chat:
    """What is typed in the room (text streams of topic ``lk.chat``), message by message."""

    def __init__(self, room_name: str) -> None:
        self._room_name = room_name
        self._messages: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
        self._reading: set[asyncio.Task[None]] = set()
        self._ended = False

    def take(self, reader: rtc.TextStreamReader, identity: str, caller: str) -> None:
        """A message comes in. Of others than ``caller``, where that is known, nothing is read."""
        if self._ended or (caller and identity != caller):
            reader.close()
        elif len(self._reading) >= _MAX_READING or self._messages.qsize() >= _MAX_WAITING:
            logger.warning("room %r: a message of %r is not read: too many wait", self._room_name, identity)
            reader.close()
        else:
            task = asyncio.create_task(self._read(reader, identity), name="chat-message")
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def messages(self, caller: str) -> AsyncIterator[str]:
        """What ``caller`` typed, until ``end``."""
        while (message := await self._messages.get()) is not None:
            identity, text = message
            if identity == caller:
                yield text

    def end(self) -> None:
        """No more messages."""
        if not self._ended:
            self._ended = True
            for task in self._reading:
                task.cancel()
            self._messages.put_nowait(None)

    async def close(self) -> None:
        """Give everything back."""
        self.end()
        if self._reading:
            await asyncio.wait(self._reading)

    async def _read(self, reader: rtc.TextStreamReader, identity: str) -> None:
        text = ""
        try:
            async for piece in reader:
                text += piece
                if len(text) > MAX_TEXT_CHARS:
                    logger.warning(
                        "room %r: a message of %r is longer than %d characters, and not read",
                        self._room_name,
                        identity,
                        MAX_TEXT_CHARS,
                    )
                    return
        except rtc.StreamError as exc:
            logger.info("room %r: a message of %r did not come whole: %s", self._room_name, identity, exc)
            return
        finally:
            reader.close()
        if text := text.strip():
            self._messages.put_nowait((identity, text))
