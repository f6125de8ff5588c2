"""The asyncio client of the inference process: what a job, a load tester or another framework imports.

    client = await InferenceClient.connect(socket_path, token, name="job")
    room = await client.open_room("support-42")
    room.listen()
    room.push(pcm)                                  # 16 kHz int16, straight into shared memory
    async for event in room.events(): ...           # SpeechStarted, SpeechPaused, ...
    transcript = await room.transcribe(start, end)
    async for text in room.generate(chat): ...
    phrase = room.speak("Hello.")                   # lands in the down ring; see ``read_speech``

A room outlives its connection: when the inference process goes away, every request fails at once with
``InferenceUnavailableError``, while ``push`` goes on; ``attach_room`` of another client, connected to the
process that took its place, opens the room again in the same memory, so that both clocks go on.

Needs the standard library only.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from inference.asked import (
    Asked,
    Generation,
    InferenceError,
    InferenceUnavailableError,
    Listening,
    Phrase,
    RequestFailedError,
    RoomRefusedError,
)
from inference.segments import Segment
from inference.wire import messages as m
from inference.wire.connection import ROOM, Received, Role
from inference.wire.errors import WireError
from inference.wire.stream import MessageStream
from inference.wire.tlv import Message

__all__ = [
    "Generation",
    "InferenceClient",
    "InferenceError",
    "InferenceRoom",
    "InferenceUnavailableError",
    "Listening",
    "Phrase",
    "RequestFailedError",
    "RoomRefusedError",
    "VoiceEvent",
]

VoiceEvent = m.SpeechStarted | m.SpeechPaused | m.SpeechResumed | m.SpeechEnded | m.AudioLost


class InferenceClient:
    """One connection to the inference process, for one room."""

    def __init__(self, stream: MessageStream, welcome: m.Welcome) -> None:
        self.welcome = welcome
        self._stream = stream
        self._numbers = itertools.count(1)
        self._asked: dict[int, Asked] = {}
        self._events: asyncio.Queue[VoiceEvent | InferenceError] = asyncio.Queue()
        self._room_answer: asyncio.Queue[Message | InferenceError] = asyncio.Queue()
        self._room: InferenceRoom | None = None
        self._gone: InferenceError | None = None
        self._woken = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name="inference-client")

    @classmethod
    async def connect(cls, socket_path: str, token: str, *, name: str) -> InferenceClient:
        """Connect and greet. Raises ``InferenceUnavailableError`` saying why not."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, socket_path)
        except OSError as exc:
            sock.close()
            raise InferenceUnavailableError(f"no inference process at {socket_path}: {exc}") from exc
        except BaseException:
            sock.close()
            raise
        stream = MessageStream(sock, Role.CLIENT, ROOM)
        try:
            stream.send(m.Hello(token, name))
            received = await stream.receive()
        except WireError as exc:
            stream.close()
            raise InferenceUnavailableError(f"the inference process at {socket_path}: {exc}") from exc
        except BaseException:
            stream.close()
            raise
        match received.message if received else None:
            case m.Welcome() as welcome:
                return cls(stream, welcome)
            case m.Goodbye(reason=reason):
                stream.close()
                raise InferenceUnavailableError(f"the inference process refused: {reason}")
            case _:
                stream.close()
                raise InferenceUnavailableError(f"the inference process at {socket_path} closed the connection")

    async def __aenter__(self) -> InferenceClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def open_room(self, name: str) -> InferenceRoom:
        """Take a slot. Raises ``RoomRefusedError``; then this client may try again."""
        segment = Segment.create(name)
        try:
            await self._open(name, segment)
        except BaseException:
            segment.close()
            raise
        return InferenceRoom(self, name, segment)

    async def attach_room(self, room: InferenceRoom) -> None:
        """Take a slot for a room whose connection has ended. Raises ``RoomRefusedError``; then try again.

        The room belongs to this client then: it is closed with it.
        """
        assert not room.is_attached, "the room has its connection"
        await self._open(room.name, room._segment)
        room._attach(self)

    async def _open(self, name: str, segment: Segment) -> None:
        # An earlier attempt that was cancelled may have left its answer behind.
        self._room_answer = asyncio.Queue()
        self._send(m.OpenRoom(name), (segment.memfd, segment.doorbell))
        await self._stream.drain()
        answer = await self._room_answer.get()
        if isinstance(answer, InferenceError):
            raise answer
        if isinstance(answer, m.RoomRefused):
            raise RoomRefusedError(answer.reason)
        if self._gone is not None:
            raise self._gone

    async def stats(self) -> m.Stats:
        """How busy the inference process is. Raises ``InferenceError``."""
        number = self._next()
        asked = self._ask(m.GetStats(number))
        try:
            reply = await asked.next()
        finally:
            asked.close()
        assert isinstance(reply, m.Stats)
        return reply

    @property
    def open_requests(self) -> int:
        """How many requests have not ended yet."""
        return len(self._asked)

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended."""
        return self._gone is not None

    async def wait_gone(self) -> InferenceError:
        """Return the reason when the connection has ended."""
        await asyncio.wait([self._reader])
        return self._gone or InferenceUnavailableError("the connection was closed")

    async def aclose(self) -> None:
        """Close the connection: the room's slot, rings and requests are freed at once on the other side."""
        self._reader.cancel()
        await asyncio.wait([self._reader])
        self._fail(InferenceUnavailableError("the connection was closed"))
        self._stream.close()
        if self._room is not None:
            self._room._close()
            self._room = None

    # --- for InferenceRoom and requests -------------------------------------------------------------

    async def _voice_events(self) -> AsyncIterator[VoiceEvent]:
        while True:
            event = await self._events.get()
            if isinstance(event, InferenceError):
                self._events.put_nowait(event)
                raise event
            yield event

    def _next(self) -> int:
        return next(self._numbers)

    def _send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        if self._gone is not None:
            raise self._gone
        self._stream.send(message, descriptors)

    def _ask(self, message: m.Transcribe | m.Generate | m.Speak | m.GetStats) -> Asked:
        asked = Asked(message.request, self._say, self._forget)
        self._send(message)
        self._asked[message.request] = asked
        return asked

    def _say(self, message: Message) -> None:
        if self._gone is None:
            self._send(message)

    def _forget(self, number: int) -> None:
        self._asked.pop(number, None)

    async def _read(self) -> None:
        reason: InferenceError = InferenceUnavailableError("the inference process went away")
        try:
            await self._stream.dispatch(self._handle)
        except InferenceError as goodbye:
            reason = goodbye
        except WireError as exc:
            reason = InferenceUnavailableError(f"the connection to the inference process failed: {exc}")
        self._fail(reason)
        self._stream.close()

    def _handle(self, received: Received) -> None:
        """One message from the inference process. A goodbye is raised, so that nothing after it is read."""
        message = received.message
        number: int | None = getattr(message, "request", None)
        if number is not None:
            if (asked := self._asked.get(number)) is not None:
                asked.put(message)
            return
        match message:
            case m.SpeechStarted() | m.SpeechPaused() | m.SpeechResumed() | m.SpeechEnded() | m.AudioLost() as event:
                self._events.put_nowait(event)
            case m.RoomOpened() | m.RoomRefused() as answer:
                self._room_answer.put_nowait(answer)
            case m.Goodbye(reason=why):
                raise InferenceUnavailableError(f"the inference process closed the connection: {why}")

    def _fail(self, reason: InferenceError) -> None:
        if self._gone is not None:
            return
        self._gone = reason
        for asked in self._asked.values():
            asked.put(reason)
        self._events.put_nowait(reason)
        self._room_answer.put_nowait(reason)
        if self._room is not None:
            self._room._detached()
        self._woken.set()


class InferenceRoom:
    """The room's side of the client: audio up, events, requests, speech down."""

    def __init__(self, client: InferenceClient, name: str, segment: Segment) -> None:
        self.name = name
        self._segment = segment
        self._client = client
        self._attached = asyncio.Event()
        self._listens_from = -1
        self._heard_before = 0
        self._attach(client)

    def _attach(self, client: InferenceClient) -> None:
        self._client._room = None
        self._client = client
        client._room = self
        self._attached.set()

    def _detached(self) -> None:
        self._attached.clear()

    def _close(self) -> None:
        if self._segment.doorbell >= 0:
            # Someone may wait on it, and learns of the end only after this.
            asyncio.get_running_loop().remove_reader(self._segment.doorbell)
        self._segment.close()
        # Nobody is to wait for another connection.
        self._attached.set()

    @property
    def is_attached(self) -> bool:
        """Whether there is an inference process that takes requests."""
        return self._client._gone is None

    async def wait_attached(self) -> None:
        """Return when there is an inference process that takes requests.

        Raises ``InferenceUnavailableError`` when the room was closed on this side.
        """
        await self._attached.wait()
        if self._client._gone is not None:
            raise self._client._gone

    @property
    def open_requests(self) -> int:
        """How many of its requests have not ended yet."""
        return self._client.open_requests

    @property
    def speech_rate(self) -> int:
        """Sample rate of the agent's speech, in Hz."""
        return self._client.welcome.speech_rate

    @property
    def position(self) -> int:
        """Samples of the caller pushed so far: the up clock."""
        return self._segment.up.produced

    @property
    def oldest(self) -> int:
        """The oldest sample of the caller that is still kept (up clock); about a minute's worth is."""
        return self._segment.up.oldest()

    @property
    def heard(self) -> int:
        """How far voice activity detection has got (up clock): what it has to report up to there is on its way."""
        cursor = self._segment.up.consumed_by_peer()
        if self._listens_from >= 0:
            if cursor == self._heard_before:
                # ``Listen`` has not been taken up yet: this is where an earlier detection ended.
                return min(self._listens_from, cursor)
            self._listens_from = -1
        return cursor

    def push(self, pcm: bytes | memoryview) -> None:
        """Append the caller's audio (16 kHz mono int16). Never waits."""
        self._segment.up.write(pcm)

    def listen(self, *, start: int = -1, **settings: float) -> None:
        """Start voice activity detection, with the settings of ``Listen``, at ``start`` or with what comes now."""
        self._client._send(m.Listen(True, start=start, **settings))  # type: ignore[arg-type]
        self._listens_from, self._heard_before = start, self._segment.up.consumed_by_peer()

    def events(self) -> AsyncIterator[VoiceEvent]:
        """Voice activity as it is detected. Raises ``InferenceUnavailableError`` when the process goes away."""
        return self._client._voice_events()

    async def transcribe(
        self, start: int, end: int, *, language: str = "", speculative: bool = False, partial: bool = False
    ) -> m.Transcript:
        """What was said from ``start`` to ``end`` (up clock). Cancelling the await cancels the request.

        ``speculative``: the caller may go on; ``partial``: the caller is still speaking.
        """
        return await self.listen_to(start, end, language=language, speculative=speculative, partial=partial).wait()

    def listen_to(
        self, start: int, end: int, *, language: str = "", speculative: bool = False, partial: bool = False
    ) -> Listening:
        """As ``transcribe``; the request is on its way when this returns, and can be promoted."""
        number = self._client._next()
        ask = m.Transcribe(number, start, end, language, speculative, partial)
        return Listening(self._client._ask(ask))

    def generate(
        self,
        messages: Sequence[m.ChatMessage],
        *,
        max_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.95,
        repeat_penalty: float = 1.0,
        seed: int = -1,
        stop: tuple[str, ...] = (),
        speculative: bool = False,
        grammar: str = "",
        json_schema: str = "",
        end_of_turn: bool = False,
    ) -> Generation:
        """Answer the conversation. The request is on its way when this returns; iterate for the text.

        The settings are those of ``Generate``; ``max_tokens`` 0 only brings the conversation into the KV cache.
        """
        number = self._client._next()
        ask = m.Generate(
            number,
            tuple(messages),
            max_tokens,
            temperature,
            top_p,
            repeat_penalty,
            seed,
            stop,
            speculative,
            grammar,
            json_schema,
            end_of_turn,
        )
        return Generation(self._client._ask(ask))

    def speak(
        self, text: str, *, speed: float = 1.0, volume: float = 1.0, speculative: bool = False, speaker: int = -1
    ) -> Phrase:
        """Speak one phrase, after those asked for before it. The request is on its way when this returns.

        The settings are those of ``Speak``.
        """
        number = self._client._next()
        ask = m.Speak(number, text, speed, volume, speculative, speaker)
        return Phrase(self._client._ask(ask), text)

    # --- speech down ------------------------------------------------------------------------------

    def read_speech(self, limit: int) -> bytes:
        """Take up to ``limit`` samples of speech that are there now (int16 at ``speech_rate``)."""
        return self._segment.down.read(limit)

    def read_position(self) -> int:
        """Samples of speech taken or skipped so far: where the next one read lies on the down clock."""
        return self._segment.down.consumed

    def skip_speech(self) -> int:
        """Drop all speech that is in the ring now; returns the new read position."""
        self._segment.down.skip_to(self._segment.down.written())
        return self._segment.down.consumed

    async def wait_speech(self) -> None:
        """Return when there is speech to read. One waiter at a time.

        Raises ``InferenceUnavailableError`` when none can come any more.
        """
        loop = asyncio.get_running_loop()
        client = self._client
        # Closed here, or gone with nothing left in the ring.
        while self._segment.doorbell < 0 or self._segment.down.sleep():
            if client._gone is not None:
                raise client._gone
            client._woken.clear()
            loop.add_reader(self._segment.doorbell, client._woken.set)
            try:
                await client._woken.wait()
            finally:
                if self._segment.doorbell >= 0:
                    loop.remove_reader(self._segment.doorbell)
            if self._segment.doorbell >= 0:
                self._segment.answer_doorbell()
