"""The asyncio client against a peer that follows a script: refusals, ends at every moment, cancellation."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from open_descriptors import open_descriptors

from inference.client import (
    InferenceClient,
    InferenceRoom,
    InferenceUnavailableError,
    RequestFailedError,
    RoomRefusedError,
)
from inference.segments import Segment
from inference.wire import messages as m
from inference.wire.connection import ROOM, Role
from inference.wire.stream import MessageStream
from inference.wire.tlv import Message, encode

DEADLINE_S = 10.0
WELCOME = m.Welcome(m.PROTOCOL_VERSION, "cpu", 22_050, 2048, 4, "whisper", "llm", "voice")
CHAT = (m.ChatMessage("user", "Hi"),)
M = TypeVar("M", bound=Message)
Watch = Callable[[], AbstractContextManager[None]]


class Peer:
    """The inference process's end of one connection, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.stream = MessageStream(sock, Role.SERVER, ROOM)
        self.segment: Segment | None = None

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.stream.send(message)

    async def expect(self, kind: type[M]) -> M:
        received = await self.stream.receive()
        assert received is not None, f"the client closed instead of sending {kind.__name__}"
        if isinstance(received.message, m.OpenRoom):
            self.segment = Segment.attach(*received.descriptors)
        assert isinstance(received.message, kind)
        return received.message

    async def expect_end(self) -> None:
        assert await self.stream.receive() is None

    def close(self) -> None:
        self.stream.close()
        if self.segment is not None:
            self.segment.close()
            self.segment = None


@asynccontextmanager
async def listener(path: Path) -> AsyncIterator[asyncio.Queue[Peer]]:
    """A socket at ``path``; what connects arrives in the queue."""
    listening = socket.socket(socket.AF_UNIX)
    listening.setblocking(False)
    listening.bind(str(path))
    listening.listen()
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Peer] = asyncio.Queue()
    peers = []

    def accept() -> None:
        peer = Peer(listening.accept()[0])
        peers.append(peer)
        arrived.put_nowait(peer)

    loop.add_reader(listening, accept)
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield arrived
    finally:
        loop.remove_reader(listening)
        listening.close()
        for peer in peers:
            peer.close()


@asynccontextmanager
async def greeted(tmp_path: Path) -> AsyncIterator[tuple[InferenceClient, Peer]]:
    """A client that was welcomed, and its peer."""
    async with listener(tmp_path / "s") as arrived:
        connecting = asyncio.create_task(InferenceClient.connect(str(tmp_path / "s"), "secret", name="job"))
        peer = await arrived.get()
        assert await peer.expect(m.Hello) == m.Hello("secret", "job", m.PROTOCOL_VERSION)
        peer.send(WELCOME)
        async with await connecting as client:
            yield client, peer


@asynccontextmanager
async def second(tmp_path: Path) -> AsyncIterator[tuple[InferenceClient, Peer]]:
    """Another client, of the process that took the place of one that is gone."""
    (tmp_path / "second").mkdir()
    async with greeted(tmp_path / "second") as (client, peer):
        yield client, peer


@asynccontextmanager
async def room_open(tmp_path: Path) -> AsyncIterator[tuple[InferenceRoom, InferenceClient, Peer]]:
    """A client with an open room, and its peer."""
    async with greeted(tmp_path) as (client, peer):
        opening = asyncio.create_task(client.open_room("support-42"))
        assert await peer.expect(m.OpenRoom) == m.OpenRoom("support-42")
        peer.send(m.RoomOpened(3))
        yield await opening, client, peer


async def started(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """``work`` as a task that has run to its first wait."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


# --- connecting -----------------------------------------------------------------------------------


async def test_nobody_there(tmp_path: Path, nothing_left_open: Watch) -> None:
    path = str(tmp_path / "missing")
    with (
        nothing_left_open(),
        pytest.raises(InferenceUnavailableError, match=f"no inference process at {path}: .*No such"),
    ):
        await InferenceClient.connect(path, "secret", name="job")


async def test_a_socket_that_nobody_serves_any_more(tmp_path: Path, nothing_left_open: Watch) -> None:
    path = str(tmp_path / "stale")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with nothing_left_open(), pytest.raises(InferenceUnavailableError, match="refused"):
        await InferenceClient.connect(path, "secret", name="job")


async def test_a_path_that_is_too_long(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open(), pytest.raises(InferenceUnavailableError, match="too long"):
        await InferenceClient.connect(str(tmp_path / ("x" * 200)), "secret", name="job")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (encode(m.Goodbye("token", "wrong token")), "the inference process refused: wrong token"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 400 Bad Request", "not a frame"),
        (encode(WELCOME)[:20], "closed inside a frame"),
        (encode(m.RoomOpened(1)), "RoomOpened is not legal"),
    ],
)
async def test_no_welcome(tmp_path: Path, nothing_left_open: Watch, answer: bytes, says: str) -> None:
    with nothing_left_open(), socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        connecting = await started(InferenceClient.connect(str(tmp_path / "s"), "secret", name="job"))
        accepted = listening.accept()[0]
        accepted.send(answer)
        accepted.close()
        with pytest.raises(InferenceUnavailableError, match=says):
            await asyncio.wait_for(connecting, DEADLINE_S)


async def test_a_token_that_cannot_travel(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with listener(tmp_path / "s"):
            with pytest.raises(InferenceUnavailableError, match=r"Hello\.token: length 129 is above 128"):
                await InferenceClient.connect(str(tmp_path / "s"), "x" * 129, name="job")


async def test_giving_up_on_a_peer_that_never_answers(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with listener(tmp_path / "s") as arrived:
            connecting = asyncio.create_task(InferenceClient.connect(str(tmp_path / "s"), "secret", name="job"))
            peer = await arrived.get()
            await peer.expect(m.Hello)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await peer.expect_end()


async def test_a_whole_conversation_leaves_nothing_open(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with room_open(tmp_path) as (_, client, peer):
            assert client.welcome == WELCOME
            asking = await started(client.stats())
            ask = await peer.expect(m.GetStats)
            peer.send(m.Stats(ask.request, 1, 4, 0, 0, 0, 0.5))
            assert (await asking).busy == 0.5
            await client.aclose()
            await client.aclose()
            await peer.expect_end()


# --- rooms ----------------------------------------------------------------------------------------


async def test_a_refused_room_may_be_tried_again(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with greeted(tmp_path) as (client, peer):
            for reason in ("all 4 rooms are taken", "still"):
                opening = asyncio.create_task(client.open_room("a"))
                await peer.expect(m.OpenRoom)
                assert peer.segment is not None
                peer.segment.close()
                peer.send(m.RoomRefused(reason))
                with pytest.raises(RoomRefusedError, match=reason):
                    await opening
            opening = asyncio.create_task(client.open_room("a"))
            await peer.expect(m.OpenRoom)
            peer.send(m.RoomOpened(0))
            await opening


async def test_the_peer_vanishing_while_a_room_is_being_opened(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with greeted(tmp_path) as (client, peer):
            opening = asyncio.create_task(client.open_room("a"))
            await peer.expect(m.OpenRoom)
            peer.close()
            with pytest.raises(InferenceUnavailableError, match="went away"):
                await opening


async def test_an_answer_that_nobody_waits_for_any_more_is_not_taken_for_another(tmp_path: Path) -> None:
    async with greeted(tmp_path) as (client, peer):
        opening = asyncio.create_task(client.open_room("a"))
        await peer.expect(m.OpenRoom)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert peer.segment is not None
        peer.segment.close()
        peer.send(m.RoomRefused("the first one"))
        asking = await started(client.stats())
        peer.send(m.Stats((await peer.expect(m.GetStats)).request, 0, 4, 0, 0, 0, 0.0))
        # The refusal came before these statistics, so it has been read by now.
        await asking
        opening = asyncio.create_task(client.open_room("b"))
        assert await peer.expect(m.OpenRoom) == m.OpenRoom("b")
        peer.send(m.RoomOpened(0))
        await opening


async def test_audio_and_events(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        assert peer.segment is not None
        assert room.speech_rate == 22_050
        room.push(b"\1\0\2\0")
        assert room.position == 2
        assert peer.segment.up.peek(0, 2) == b"\1\0\2\0"
        room.listen(pause_ms=200, activation=0.6)
        assert await peer.expect(m.Listen) == m.Listen(True, pause_ms=200, activation=0.6)
        said = [m.SpeechStarted(1), m.SpeechPaused(1, 5), m.SpeechResumed(6), m.SpeechEnded(1, 9), m.AudioLost(3, 12)]
        peer.send(*said)
        events = room.events()
        assert [await anext(events) for _ in said] == said


# --- requests -------------------------------------------------------------------------------------


async def test_transcribe(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        first = await started(room.transcribe(0, 5, language="en"))
        second = await started(room.transcribe(5, 9, speculative=True))
        assert await peer.expect(m.Transcribe) == m.Transcribe(1, 0, 5, "en", False)
        assert await peer.expect(m.Transcribe) == m.Transcribe(2, 5, 9, "", True)
        third = await started(room.transcribe(9, 12, partial=True))
        assert await peer.expect(m.Transcribe) == m.Transcribe(3, 9, 12, partial=True)
        # In any order: each gets its own.
        peer.send(m.RequestFailed(2, "engine", "broken"), m.Transcript(1, "hello", "en", -0.1, 0.0, 3.0))
        assert (await first).text == "hello"
        with pytest.raises(RequestFailedError, match=r"broken \(engine\)") as caught:
            await second
        assert caught.value.code == "engine"
        peer.send(m.Transcript(3, "so far", "en", -0.1, 0.0, 3.0))
        assert (await third).text == "so far"


async def test_cancelling_the_await_cancels_the_request(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        waiting = await started(room.transcribe(0, 5))
        await peer.expect(m.Transcribe)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await peer.expect(m.Cancel) == m.Cancel(1)
        # Its result may come all the same, and is nobody's.
        peer.send(m.Transcript(1, "late", "en", -0.1, 0.0, 3.0))
        again = await started(room.transcribe(5, 9))
        assert (await peer.expect(m.Transcribe)).request == 2
        peer.send(m.Transcript(2, "next", "en", -0.1, 0.0, 3.0))
        assert (await again).text == "next"


async def test_generate(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        generation = room.generate(CHAT, max_tokens=7, stop=("\n",), speculative=True, grammar="g", json_schema="{}")
        assert await peer.expect(m.Generate) == m.Generate(
            1, CHAT, 7, stop=("\n",), speculative=True, grammar="g", json_schema="{}"
        )
        peer.send(m.TextDelta(1, "Hel"), m.TextDelta(1, "lo"), m.GenerateDone(1, "stop", 9, 3, 2))
        assert [text async for text in generation] == ["Hel", "lo"]
        assert generation.done == m.GenerateDone(1, "stop", 9, 3, 2)
        # Nothing to stop any more, so nothing is said about it.
        generation.cancel()
        room.listen()
        await peer.expect(m.Listen)


async def test_the_end_of_turn_is_known_before_anybody_reads(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        generation = room.generate(CHAT, end_of_turn=True)
        assert (await peer.expect(m.Generate)).end_of_turn
        peer.send(m.EndOfTurn(1, 0.75))
        assert await generation.end_of_turn == 0.75
        peer.send(m.TextDelta(1, "Hi"), m.GenerateDone(1, "stop", 9, 3, 2))
        assert [text async for text in generation] == ["Hi"]
        assert await generation.end_of_turn == 0.75


async def test_the_end_of_turn_of_a_prefill_comes_with_its_end(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        generation = room.generate(CHAT, max_tokens=0, end_of_turn=True)
        await peer.expect(m.Generate)
        peer.send(m.GenerateDone(1, "length", 9, 3, 0, 0.25))
        assert await generation.end_of_turn == 0.25
        assert [text async for text in generation] == []
        assert generation.done is not None


async def test_an_end_of_turn_that_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, client, peer):
        done, failed, lost = (room.generate(CHAT) for _ in range(3))
        for _ in range(3):
            await peer.expect(m.Generate)
        peer.send(m.GenerateDone(1, "stop", 9, 3, 2), m.RequestFailed(2, "cancelled", ""))
        assert [await one.end_of_turn for one in (done, failed)] == [-1.0, -1.0]
        assert not lost.end_of_turn.done()
        await client.aclose()
        assert await lost.end_of_turn == -1.0


async def test_what_was_speculative_is_promoted_while_it_is_open(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        listening = room.listen_to(0, 5, speculative=True)
        generation = room.generate(CHAT, speculative=True)
        phrase = room.speak("Hello.", speculative=True, speaker=3)
        assert await peer.expect(m.Transcribe) == m.Transcribe(1, 0, 5, speculative=True)
        await peer.expect(m.Generate)
        assert await peer.expect(m.Speak) == m.Speak(3, "Hello.", speculative=True, speaker=3)
        for number, one in enumerate((listening, generation, phrase), 1):
            one.promote()
            assert await peer.expect(m.Promote) == m.Promote(number)
        peer.send(m.Transcript(1, "so", "en", -0.1, 0.0, 3.0), m.GenerateDone(2, "stop", 9, 3, 2), m.SpeakDone(3, 0, 3))
        assert (await listening.wait()).text == "so"
        assert [text async for text in generation] == []
        await phrase.wait()
        for one in (listening, generation, phrase):
            one.promote()
        room.listen()
        await peer.expect(m.Listen)


async def test_a_cancelled_generation(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        generation = room.generate(CHAT)
        await peer.expect(m.Generate)
        generation.cancel()
        assert await peer.expect(m.Cancel) == m.Cancel(1)
        peer.send(m.RequestFailed(1, "cancelled", "as asked"))
        with pytest.raises(RequestFailedError) as caught:
            _ = [text async for text in generation]
        assert caught.value.code == "cancelled"


async def test_leaving_the_iteration_cancels_the_generation(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):

        async def read() -> list[str]:
            return [text async for text in room.generate(CHAT)]

        reading = await started(read())
        await peer.expect(m.Generate)
        peer.send(m.TextDelta(1, "Hel"))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await peer.expect(m.Cancel) == m.Cancel(1)


async def test_a_phrase(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        assert peer.segment is not None
        phrase = room.speak("Hello.", speed=1.5)
        assert await peer.expect(m.Speak) == m.Speak(1, "Hello.", 1.5, 1.0)
        waiting = await started(room.wait_speech())
        peer.segment.down.write(b"\1\0\2\0\3\0")
        assert peer.segment.down.consumer_sleeps()
        peer.segment.ring_doorbell()
        await waiting
        # There is something already: no wait.
        await room.wait_speech()
        assert room.read_speech(2) == b"\1\0\2\0"
        assert room.read_position() == 2
        assert room.skip_speech() == 3
        peer.send(m.SpeakStarted(1, 0), m.SpeakDone(1, 0, 3))
        assert await phrase.wait_started() == 0
        await phrase.wait()
        assert (phrase.start, phrase.end) == (0, 3)
        phrase.cancel()
        room.listen()
        await peer.expect(m.Listen)


async def test_cancelling_the_wait_for_a_phrase_stops_the_synthesis(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        phrase = room.speak("Hello.")
        waiting = await started(phrase.wait())
        await peer.expect(m.Speak)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await peer.expect(m.Cancel) == m.Cancel(1)


async def test_a_failed_phrase_fails_whoever_asks_and_as_often_as_they_ask(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        phrase = room.speak("Hello.")
        await peer.expect(m.Speak)
        peer.send(m.RequestFailed(1, "engine", "broken"))
        for wait in (phrase.wait_started, phrase.wait_started, phrase.wait):
            with pytest.raises(RequestFailedError, match="broken"):
                await wait()


async def test_a_message_that_is_not_encodable_is_told_to_the_caller_and_harms_nothing(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        with pytest.raises(Exception, match=r"Speak\.text: length 2001 is above 2000"):
            room.speak("x" * 2001)
        room.speak("short")
        # A number that was never sent may be left out.
        assert (await peer.expect(m.Speak)).text == "short"


# --- the end --------------------------------------------------------------------------------------


async def everything_open(room: InferenceRoom, client: InferenceClient) -> list[asyncio.Task[Any]]:
    """One of every wait there is."""
    generation, phrase, other = room.generate(CHAT), room.speak("a"), room.speak("b")

    async def read() -> list[str]:
        return [text async for text in generation]

    async def listen() -> list[object]:
        return [event async for event in room.events()]

    return [
        await started(work)
        for work in (
            room.transcribe(0, 5),
            read(),
            phrase.wait(),
            other.wait_started(),
            client.stats(),
            listen(),
            room.wait_speech(),
        )
    ]


async def all_unavailable(waits: list[asyncio.Task[Any]], says: str) -> None:
    done, pending = await asyncio.wait(waits, timeout=5.0)
    assert not pending
    for wait in done:
        with pytest.raises(InferenceUnavailableError, match=says):
            wait.result()


async def afterwards(room: InferenceRoom, client: InferenceClient, says: str) -> None:
    """Whoever comes later learns the same, at once."""
    with pytest.raises(InferenceUnavailableError, match=says):
        await room.transcribe(0, 5)
    with pytest.raises(InferenceUnavailableError, match=says):
        room.speak("a")
    with pytest.raises(InferenceUnavailableError, match=says):
        room.generate(CHAT)
    with pytest.raises(InferenceUnavailableError, match=says):
        room.listen()
    with pytest.raises(InferenceUnavailableError, match=says):
        await client.stats()
    with pytest.raises(InferenceUnavailableError, match=says):
        await client.open_room("b")
    for _ in range(2):
        with pytest.raises(InferenceUnavailableError, match=says):
            await anext(room.events())
        with pytest.raises(InferenceUnavailableError, match=says):
            await room.wait_speech()
    assert says.partition(":")[0] in str(await client.wait_gone())


async def test_the_peer_vanishing_fails_every_open_request_at_once(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with room_open(tmp_path) as (room, client, peer):
            waits = await everything_open(room, client)
            peer.close()
            await all_unavailable(waits, "went away")
            await afterwards(room, client, "went away")


async def test_a_room_is_opened_again_in_the_same_memory(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with room_open(tmp_path) as (room, client, peer):
            assert peer.segment is not None
            room.push(bytes(2 * 5))
            peer.segment.down.write(bytes(2 * 7))
            room.skip_speech()
            old_phrase = room.speak("lost")
            old_events = room.events()
            peer.close()
            await client.wait_gone()
            assert not room.is_attached
            # The caller goes on speaking.
            room.push(b"\1\0" * 3)
            waiting = await started(room.wait_attached())
            async with second(tmp_path) as (other, new_peer):
                opening = await started(other.attach_room(room))
                assert await new_peer.expect(m.OpenRoom) == m.OpenRoom("support-42")
                assert not waiting.done()
                new_peer.send(m.RoomOpened(1))
                await opening
                await waiting
                assert room.is_attached
                assert new_peer.segment is not None
                # Both clocks go on.
                assert new_peer.segment.up.peek(5, 3) == b"\1\0" * 3
                assert room.position == 8
                assert new_peer.segment.down.produced == room.read_position() == 7
                # What was asked of the process that is gone is of no concern to this one.
                old_phrase.cancel()
                with pytest.raises(InferenceUnavailableError):
                    await old_phrase.wait()
                with pytest.raises(InferenceUnavailableError):
                    await anext(old_events)
                new_peer.send(m.SpeechStarted(6))
                assert await anext(room.events()) == m.SpeechStarted(6)
                phrase = room.speak("again")
                assert await new_peer.expect(m.Speak) == m.Speak(1, "again")
                new_peer.segment.down.write(bytes(2))
                new_peer.segment.ring_doorbell()
                await room.wait_speech()
                assert len(room.read_speech(9)) == 2
                new_peer.send(m.SpeakStarted(1, 7), m.SpeakDone(1, 7, 8))
                await phrase.wait()
                # The old client has nothing to do with the room any more.
                await client.aclose()
                room.push(bytes(2))
            with pytest.raises(InferenceUnavailableError, match="was closed"):
                await room.wait_attached()


async def test_a_room_that_is_refused_may_be_attached_later(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with room_open(tmp_path) as (room, client, peer):
            peer.close()
            await client.wait_gone()
            async with second(tmp_path) as (other, new_peer):
                opening = await started(other.attach_room(room))
                await new_peer.expect(m.OpenRoom)
                assert new_peer.segment is not None
                new_peer.segment.close()
                new_peer.send(m.RoomRefused("all 4 rooms are taken"))
                with pytest.raises(RoomRefusedError, match="all 4"):
                    await opening
                assert not room.is_attached
                opening = await started(other.attach_room(room))
                await new_peer.expect(m.OpenRoom)
                new_peer.send(m.RoomOpened(0))
                await opening
                assert room.is_attached


async def test_how_far_detection_has_got_is_seen_in_the_ring(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, client, peer):
        assert peer.segment is not None
        room.push(bytes(2 * 1000))
        peer.segment.up.seek(900)
        assert room.heard == 900
        peer.close()
        await client.wait_gone()
        assert room.heard == 900
        async with second(tmp_path) as (other, new_peer):
            opening = await started(other.attach_room(room))
            await new_peer.expect(m.OpenRoom)
            new_peer.send(m.RoomOpened(1))
            await opening
            room.listen(start=300)
            assert (await new_peer.expect(m.Listen)).start == 300
            # Not taken up yet.
            assert room.heard == 300
            assert new_peer.segment is not None
            for position in (300, 812, 900, 1000):
                new_peer.segment.up.seek(position)
                assert room.heard == position


async def test_goodbye_fails_every_open_request_at_once(tmp_path: Path) -> None:
    """Also from a peer that says it and then does not get to closing."""
    async with room_open(tmp_path) as (room, client, peer):
        waits = await everything_open(room, client)
        peer.send(m.Goodbye("draining", "the host is shutting down"))
        await all_unavailable(waits, "closed the connection: the host is shutting down")
        await afterwards(room, client, "closed the connection: the host is shutting down")


async def test_garbage_fails_every_open_request_at_once(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        connecting = await started(InferenceClient.connect(str(tmp_path / "s"), "secret", name="job"))
        accepted = listening.accept()[0]
        accepted.send(encode(WELCOME))
        async with await asyncio.wait_for(connecting, DEADLINE_S) as client:
            waiting = await started(client.stats())
            # A reply to a request that was never made.
            accepted.send(encode(m.Stats(99, 0, 0, 0, 0, 0, 0.0)))
            await all_unavailable([waiting], "failed: Stats for request 99, which is not open")
            with pytest.raises(InferenceUnavailableError, match="request 99"):
                await client.stats()
        accepted.close()


async def test_a_request_made_when_the_peer_has_gone_and_nobody_has_noticed(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, _, peer):
        peer.send(m.Goodbye("draining", "bye"))
        peer.close()
        # Not one turn of the loop since: this side cannot know yet.
        phrase = room.speak("a")
        with pytest.raises(InferenceUnavailableError, match="bye"):
            await phrase.wait()


async def test_closing_ends_every_wait(tmp_path: Path, nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with room_open(tmp_path) as (room, client, peer):
            doorbells = {number for number, link in open_descriptors().items() if link == "anon_inode:[eventfd]"}
            waits = await everything_open(room, client)
            assert peer.segment is not None
            await client.aclose()
            await all_unavailable(waits, "the connection was closed")
            await afterwards(room, client, "the connection was closed")
            # Nothing of the closed doorbell is left in the loop: its number may be another's by now.
            for number in doorbells:
                assert not asyncio.get_running_loop().remove_reader(number)


async def test_what_is_in_the_ring_may_be_read_after_the_end(tmp_path: Path) -> None:
    async with room_open(tmp_path) as (room, client, peer):
        assert peer.segment is not None
        peer.segment.down.write(b"\1\0\2\0")
        peer.close()
        await client.wait_gone()
        await room.wait_speech()
        assert room.read_speech(10) == b"\1\0\2\0"
        with pytest.raises(InferenceUnavailableError):
            await room.wait_speech()
