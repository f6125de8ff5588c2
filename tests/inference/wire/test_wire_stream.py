"""The asyncio shell over real socket pairs: descriptors, back-pressure, peers that vanish or never read."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager

import pytest

from inference.wire import messages as m
from inference.wire import supervision as s
from inference.wire.connection import FORKSERVER, ROOM, SUPERVISION, Protocol, Received, Role, State
from inference.wire.errors import LocalProtocolError, RemoteProtocolError, SlowPeerError
from inference.wire.stream import MessageStream
from inference.wire.tlv import encode

DEADLINE_S = 10.0
Watch = Callable[[], AbstractContextManager[None]]


@asynccontextmanager
async def pair(protocol: Protocol = SUPERVISION) -> AsyncIterator[tuple[MessageStream, MessageStream]]:
    first, second = socket.socketpair()
    client, server = MessageStream(first, Role.CLIENT, protocol), MessageStream(second, Role.SERVER, protocol)
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield client, server
    finally:
        client.close()
        server.close()


@asynccontextmanager
async def raw_peer(role: Role, protocol: Protocol = SUPERVISION) -> AsyncIterator[tuple[MessageStream, socket.socket]]:
    """One stream, and the bare socket at its other end."""
    first, peer = socket.socketpair()
    stream = MessageStream(first, role, protocol)
    peer.settimeout(DEADLINE_S)
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield stream, peer
    finally:
        stream.close()
        peer.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition``; the caller's timeout bounds it."""
    while not condition():  # noqa: ASYNC110 (what the code under test becomes sets no event)
        await asyncio.sleep(0.001)


def received_count(stream: MessageStream) -> int:
    (count,) = re.findall(r"received=(\d+)", repr(stream))
    return int(count)


def memfd_with(content: bytes) -> int:
    number = os.memfd_create("test")
    os.write(number, content)
    return number


# --- messages -------------------------------------------------------------------------------------


async def test_messages_in_order_both_ways() -> None:
    async with pair() as (client, server):
        for number in range(100):
            client.send(s.Ping(number))
            server.send(s.Pong(number))
        for number in range(100):
            assert await server.receive() == Received(s.Ping(number))
            assert await client.receive() == Received(s.Pong(number))


async def test_iteration_ends_when_the_peer_closes() -> None:
    async with pair() as (client, server):
        client.send(s.Ping(1))
        client.close()
        assert [received.message async for received in server] == [s.Ping(1)]
        assert server.is_closed
        assert await server.receive() is None


async def test_one_byte_at_a_time() -> None:
    async with raw_peer(Role.SERVER) as (server, peer):
        for byte in encode(s.Ping(5)) + encode(s.Shutdown("x")):
            peer.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert await server.receive() == Received(s.Ping(5))
        assert await server.receive() == Received(s.Shutdown("x"))


async def test_an_illegal_message_is_not_sent() -> None:
    async with pair() as (client, server):
        with pytest.raises(LocalProtocolError, match="StartJob is not legal from the client in state new"):
            client.send(s.StartJob("j", "r", "local"))
        client.send(s.Ping(1))
        assert await server.receive() == Received(s.Ping(1))


# --- descriptors ----------------------------------------------------------------------------------


async def test_descriptors_arrive_with_their_message(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with pair(FORKSERVER) as (client, server):
            # A frame without descriptors would be in front of it in the same read, if there were one.
            sent = [memfd_with(f"{number}".encode()) for number in range(20)]
            for number, descriptor in enumerate(sent):
                client.send(s.Spawn(f"{number}"), (descriptor,))
            await client.drain()
            for descriptor in sent:
                os.close(descriptor)
            for number in range(20):
                received = await server.receive()
                assert received is not None
                assert received.message == s.Spawn(f"{number}")
                (descriptor,) = received.descriptors
                assert not os.get_inheritable(descriptor)
                assert os.pread(descriptor, 10, 0) == f"{number}".encode()
                os.close(descriptor)


async def test_descriptors_behind_a_long_queue() -> None:
    """Partial writes never tear a message from its descriptors, nor give them to another."""
    async with pair(ROOM) as (client, server):
        client.send(m.Hello("t", "n"))
        assert await server.receive() is not None
        server.send(m.Welcome(1, "cpu", 22_050, 1, 1, "", "", ""))
        assert await client.receive() is not None
        descriptors = memfd_with(b"memory"), os.eventfd(7)
        for number in range(1, 50_000):
            client.send(m.GetStats(number))
        client.send(m.OpenRoom("r"), descriptors)
        assert "outgoing=0B" not in repr(client)
        draining = asyncio.create_task(client.drain())
        async for received in server:
            if isinstance(received.message, m.OpenRoom):
                memfd, doorbell = received.descriptors
                assert os.pread(memfd, 10, 0) == b"memory"
                assert os.eventfd_read(doorbell) == 7
                os.close(memfd)
                os.close(doorbell)
                break
            assert received.descriptors == ()
        await draining
        for descriptor in descriptors:
            os.close(descriptor)


async def test_descriptors_nobody_took_are_closed(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with pair(FORKSERVER) as (client, server):
            descriptor = memfd_with(b"")
            for number in range(5):
                client.send(s.Spawn(f"{number}"), (descriptor,))
            await client.drain()
            os.close(descriptor)
            taken = await server.receive()
            assert taken is not None
            os.close(taken.descriptors[0])


async def test_descriptors_of_a_frame_that_never_ends_are_closed(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with raw_peer(Role.SERVER, FORKSERVER) as (server, peer):
            descriptor = memfd_with(b"")
            socket.send_fds(peer, [encode(s.Spawn("x"))[:12]], [descriptor])
            os.close(descriptor)
            peer.close()
            with pytest.raises(RemoteProtocolError, match="closed inside a frame"):
                await server.receive()


@pytest.mark.parametrize("count", [1, 8, 9, 50])
async def test_descriptors_nobody_asked_for_cut_the_peer_off(nothing_left_open: Watch, count: int) -> None:
    with nothing_left_open():
        async with raw_peer(Role.SERVER) as (server, peer):
            descriptor = memfd_with(b"")
            socket.send_fds(peer, [encode(s.Ping(1))], [descriptor] * count)
            os.close(descriptor)
            assert await server.receive() == Received(s.Ping(1))
            with pytest.raises(RemoteProtocolError, match="belong to no message"):
                await server.receive()


async def test_too_few_descriptors_cut_the_peer_off(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with raw_peer(Role.SERVER, FORKSERVER) as (server, peer):
            peer.send(encode(s.Spawn("x")))
            with pytest.raises(RemoteProtocolError, match="Spawn came with 0 descriptors; it needs 1"):
                await server.receive()


async def test_a_descriptor_that_is_none_is_my_mistake() -> None:
    """The peer is there and would wait for ever for a message that was dropped without a word."""
    async with pair(FORKSERVER) as (client, _):
        descriptor = memfd_with(b"")
        os.close(descriptor)
        client.send(s.Spawn("x"), (descriptor,))
        with pytest.raises(LocalProtocolError, match=r"cannot send: .*Bad file descriptor"):
            await client.receive()


# --- back-pressure --------------------------------------------------------------------------------


async def test_a_receiver_that_does_not_handle_is_felt_by_the_sender() -> None:
    """The socket is not read any more, so the sender's queue grows; what was said arrives all the same."""
    async with pair() as (client, server):
        count = 0
        while "outgoing=0B" in repr(client):
            for _ in range(500):
                client.send(s.Ping(count))
                count += 1
            await asyncio.sleep(0)
            assert count < 1_000_000
        await until(lambda: received_count(server) > 256)
        # Not read any further: what the server has stays what it is.
        before = repr(server)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert repr(server) == before
        draining = asyncio.create_task(client.drain())
        for number in range(count):
            assert await server.receive() == Received(s.Ping(number))
        await draining
        assert "outgoing=0B" in repr(client)


async def test_a_peer_that_says_much_at_once_leaves_the_loop_to_others() -> None:
    async with pair() as (client, server):
        for number in range(256):
            client.send(s.Ping(number))
        await until(lambda: received_count(server) == 256)
        turns_of_others = 0

        async def other() -> None:
            nonlocal turns_of_others
            while True:
                turns_of_others += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        async for received in server:
            if received.message == s.Ping(255):
                break
        task.cancel()
        assert turns_of_others >= 7


async def test_drain_waits_for_the_peer_to_read() -> None:
    async with raw_peer(Role.CLIENT) as (client, peer):
        client.send(s.Shutdown("x" * 900_000))
        draining = asyncio.create_task(client.drain())
        await asyncio.sleep(0.02)
        assert not draining.done()
        data = b""
        while len(data) < len(encode(s.Shutdown("x" * 900_000))):
            data += await asyncio.to_thread(peer.recv, 1 << 16)
        await draining
        assert data == encode(s.Shutdown("x" * 900_000))


async def test_a_peer_that_never_reads_is_cut_off() -> None:
    async with raw_peer(Role.CLIENT) as (client, _):
        for _ in range(20):
            client.send(s.Shutdown("x" * 900_000))
        with pytest.raises(SlowPeerError, match=r"\d+ bytes wait for the peer"):
            await client.receive()
        assert client.is_closed
        # Nobody waits for what will never be sent, and nothing more is queued.
        await client.drain()
        before = repr(client)
        client.send(s.Ping(1))
        assert repr(client) == before


# --- dispatch -------------------------------------------------------------------------------------


async def test_dispatch_hands_over_in_order_what_came_before_it_and_after() -> None:
    async with pair() as (client, server):
        for number in range(100):
            client.send(s.Ping(number))
        await until(lambda: received_count(server) == 100)
        got: list[Received] = []
        dispatching = asyncio.create_task(server.dispatch(got.append))
        await until(lambda: len(got) == 100)
        for number in range(100, 200):
            client.send(s.Ping(number))
        client.close()
        await dispatching
        assert got == [Received(s.Ping(number)) for number in range(200)]


async def test_an_answer_from_the_handler_is_on_its_way_when_the_reader_returns() -> None:
    async with pair() as (client, server):

        def answer(received: Received) -> None:
            assert isinstance(received.message, s.Ping)
            server.send(s.Pong(received.message.sent_ns))

        dispatching = asyncio.create_task(server.dispatch(answer))
        for number in range(1000):
            client.send(s.Ping(number))
        for number in range(1000):
            assert await client.receive() == Received(s.Pong(number))
        client.close()
        await dispatching


async def test_dispatch_raises_garbage_after_what_came_before_it() -> None:
    async with raw_peer(Role.SERVER) as (server, peer):
        got: list[Received] = []
        peer.send(encode(s.Ping(1)) + encode(s.Ping(2)) + b"x" * 20)
        with pytest.raises(RemoteProtocolError, match="not a frame"):
            await server.dispatch(got.append)
        assert got == [Received(s.Ping(1)), Received(s.Ping(2))]


async def test_dispatch_raises_what_the_handler_raises_and_hands_over_nothing_after_it() -> None:
    async with pair() as (client, server):
        got = []

        def handle(received: Received) -> None:
            got.append(received.message)
            if received.message == s.Ping(3):
                raise LocalProtocolError("three")

        for number in range(6):
            client.send(s.Ping(number))
        with pytest.raises(LocalProtocolError, match="three"):
            await server.dispatch(handle)
        assert got == [s.Ping(0), s.Ping(1), s.Ping(2), s.Ping(3)]
        # The rest is still there for whoever wants it.
        assert await server.receive() == Received(s.Ping(4))


async def test_dispatch_raises_that_the_peer_never_reads() -> None:
    async with raw_peer(Role.CLIENT) as (client, _):
        dispatching = asyncio.create_task(client.dispatch(lambda received: None))
        await asyncio.sleep(0)
        for _ in range(20):
            client.send(s.Shutdown("x" * 900_000))
        with pytest.raises(SlowPeerError):
            await dispatching


async def test_dispatch_ends_when_its_handler_closes_the_stream(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        async with pair(FORKSERVER) as (client, server):
            descriptor = memfd_with(b"")
            for number in range(5):
                client.send(s.Spawn(f"{number}"), (descriptor,))
            await client.drain()
            os.close(descriptor)
            got = []

            def handle(received: Received) -> None:
                got.append(received.message)
                for taken in received.descriptors:
                    os.close(taken)
                server.close()

            await server.dispatch(handle)
            assert got == [s.Spawn("0")]


async def test_dispatch_that_is_cancelled_leaves_the_rest_to_iteration() -> None:
    async with pair() as (client, server):
        got: list[Received] = []
        dispatching = asyncio.create_task(server.dispatch(got.append))
        client.send(s.Ping(1))
        await until(lambda: len(got) == 1)
        dispatching.cancel()
        await asyncio.wait([dispatching])
        client.send(s.Ping(2))
        assert await server.receive() == Received(s.Ping(2))
        assert len(got) == 1


async def test_dispatch_of_much_at_once_leaves_the_loop_to_others_and_is_felt_by_the_sender() -> None:
    async with pair() as (client, server):
        count = 0
        while "outgoing=0B" in repr(client):
            for _ in range(500):
                client.send(s.Ping(count))
                count += 1
            assert count < 1_000_000
        turns_of_others = 0

        async def other() -> None:
            nonlocal turns_of_others
            while True:
                turns_of_others += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        got: list[Received] = []
        dispatching = asyncio.create_task(server.dispatch(got.append))
        await until(lambda: len(got) == count)
        task.cancel()
        assert turns_of_others >= count / 32 / 2
        assert got == [Received(s.Ping(number)) for number in range(count)]
        client.close()
        await dispatching


# --- ends -----------------------------------------------------------------------------------------


async def test_a_reset_peer_is_a_closed_peer() -> None:
    async with raw_peer(Role.CLIENT) as (client, peer):
        client.send(s.Ping(1))
        await client.drain()
        peer.send(encode(s.Pong(1)))
        # Closing with the ping unread resets the connection; what was said before is still heard.
        peer.close()
        assert await client.receive() == Received(s.Pong(1))
        assert await client.receive() is None


async def test_sending_to_a_peer_that_is_gone_does_nothing() -> None:
    async with raw_peer(Role.CLIENT) as (client, peer):
        peer.close()
        # Before this side has noticed, and after it has.
        client.send(s.Ping(1))
        await client.drain()
        await until(lambda: client.is_closed)
        client.send(s.Ping(2))
        await client.drain()
        assert await client.receive() is None


async def test_sending_after_the_peers_last_word_does_nothing() -> None:
    """The word may have arrived while this side was about to speak: that is nobody's mistake."""
    async with raw_peer(Role.CLIENT, ROOM) as (client, peer):
        client.send(m.Hello("t", "n"))
        peer.send(encode(m.Goodbye("draining", "bye")))
        await until(lambda: client.connection.state is State.CLOSED)
        client.send(m.GetStats(1))
        assert await client.receive() == Received(m.Goodbye("draining", "bye"))
        peer.close()
        assert await client.receive() is None


@pytest.mark.parametrize(
    ("garbage", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a frame"),
        (b"RF\x01\x00" + struct.pack("<HI", 220, 0xFFFFFFFF), "4294967295 bytes"),
        (encode(s.Pong(1)), "Pong is not legal from the client"),
        (encode(s.Shutdown("x"))[:-1] + b"\xff", r"Shutdown\.reason: not UTF-8"),
    ],
)
async def test_garbage_is_reported_after_what_came_before_it(garbage: bytes, says: str) -> None:
    async with raw_peer(Role.SERVER) as (server, peer):
        peer.send(encode(s.Ping(1)) + garbage)
        assert await server.receive() == Received(s.Ping(1))
        for _ in range(2):
            with pytest.raises(RemoteProtocolError, match=says):
                await server.receive()


async def test_after_garbage_there_is_still_a_goodbye() -> None:
    async with raw_peer(Role.SERVER, ROOM) as (server, peer):
        peer.send(encode(m.Hello("t", "n")) + b"x" * 20)
        assert await server.receive() == Received(m.Hello("t", "n"))
        with pytest.raises(RemoteProtocolError):
            await server.receive()
        server.send(m.Goodbye("protocol", "not a frame"))
        await server.drain()
        server.close()
        assert peer.recv(1000) == encode(m.Goodbye("protocol", "not a frame"))


async def test_a_goodbye_that_did_not_fit_leaves_nothing_behind() -> None:
    first, peer = socket.socketpair()
    number = first.fileno()
    server = MessageStream(first, Role.SERVER, ROOM)
    peer.send(b"x" * 20)
    with pytest.raises(RemoteProtocolError):
        await server.receive()
    server.send(m.Goodbye("protocol", "x" * 900_000))
    assert "outgoing=0B" not in repr(server)
    server.close()
    peer.close()
    # The loop must not look after a number that something else may get.
    loop = asyncio.get_running_loop()
    assert not loop.remove_writer(number)
    assert not loop.remove_reader(number)


async def test_close_during_receive() -> None:
    async with pair() as (client, _):
        waiting = asyncio.create_task(client.receive())
        await asyncio.sleep(0)
        client.close()
        assert await waiting is None
        client.close()
        assert client.is_closed
        client.send(s.Ping(1))


async def test_close_during_drain() -> None:
    async with raw_peer(Role.CLIENT) as (client, _):
        client.send(s.Shutdown("x" * 900_000))
        draining = asyncio.create_task(client.drain())
        await asyncio.sleep(0)
        client.close()
        await draining


async def test_nothing_is_left_in_the_loop_or_open(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        for _ in range(50):
            async with pair() as (client, server):
                client.send(s.Ping(1))
                assert await server.receive() is not None
