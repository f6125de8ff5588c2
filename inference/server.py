"""The inference process's unix socket: greets jobs, gives rooms their slots, hands requests to the lanes.

One connection is one room. When a connection ends, for whatever reason, its slot, rings and requests
are freed at once. A peer that breaks the protocol is cut off; nobody else notices.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from inference.rooms import Room
from inference.runner import DeviceLane
from inference.segments import Segment
from inference.vad_lane import VadLane
from inference.wire import messages as m
from inference.wire.connection import ROOM, Received, Role, State
from inference.wire.errors import LocalProtocolError, RemoteProtocolError, RingCorruptedError, WireError
from inference.wire.stream import MessageStream
from inference.wire.tlv import Message

logger = logging.getLogger(__name__)

_BACKLOG = 128
_GREETING_S = 10.0
"""A peer that connects and says nothing is dropped after this."""
_LOAD_S = 0.05
"""For so long what the device lane says of itself is passed on: a share of less time says nothing."""
_ACCEPT_AGAIN_S = 0.25
"""After a connection could not be accepted: descriptors come back when others end."""


class InferenceServer:
    """Accepts connections on ``path`` while ``serve`` runs. ``welcome`` is what every job is told."""

    def __init__(self, path: str, token: str, welcome: m.Welcome, device: DeviceLane, vad: VadLane) -> None:
        self._path = path
        self._token = token
        self._welcome = welcome
        self._device = device
        self._vad = vad
        self._free = list(range(welcome.max_rooms - 1, -1, -1))
        self._leaving = 0
        self._arriving: deque[_Arrival] = deque()
        self._load = device.load()
        self._load_at = time.monotonic()

    @property
    def rooms(self) -> int:
        """How many slots are taken."""
        return self._welcome.max_rooms - len(self._free)

    async def serve(self) -> None:
        """Listen and accept. Runs until it is cancelled; then every connection is told and closed."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.setblocking(False)
        listener.bind(self._path)
        # The token guards the socket; the mode keeps other users from even trying.
        Path(self._path).chmod(0o600)
        listener.listen(_BACKLOG)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        sock, _ = await loop.sock_accept(listener)
                    except OSError as exc:
                        logger.error("a connection cannot be accepted: %s", exc)  # noqa: TRY400
                        await asyncio.sleep(_ACCEPT_AGAIN_S)
                        continue
                    group.create_task(self._serve_connection(sock), name="connection")
        finally:
            listener.close()
            Path(self._path).unlink(missing_ok=True)

    async def _serve_connection(self, sock: socket.socket) -> None:
        stream = MessageStream(sock, Role.SERVER, ROOM)
        connection = _Connection(self, stream)
        try:
            if _peer_uid(sock) != os.getuid():
                self._say_goodbye(stream, "token", "another user's process")
                return
            async with asyncio.timeout(_GREETING_S):
                if not self._greet(stream, await stream.receive()):
                    return
            await stream.dispatch(connection.handle)
        except TimeoutError:
            self._say_goodbye(stream, "protocol", f"no greeting within {_GREETING_S:g} s")
        except (RemoteProtocolError, RingCorruptedError) as exc:
            logger.warning("a job broke the protocol and is cut off: %s", exc)
            self._say_goodbye(stream, "protocol", str(exc))
        except WireError as exc:
            logger.warning("a job's connection ended: %s", exc)
        except Exception:
            logger.exception("a connection failed")
            self._say_goodbye(stream, "internal", "an error inside the inference process")
        except asyncio.CancelledError:
            self._say_goodbye(stream, "draining", "the inference process is shutting down")
            raise
        finally:
            await self._close(connection)

    def _greet(self, stream: MessageStream, received: Received | None) -> bool:
        if received is None:
            return False
        hello = received.message
        assert isinstance(hello, m.Hello)
        if hello.version != m.PROTOCOL_VERSION:
            self._say_goodbye(
                stream, "version", f"protocol version {hello.version}; this process speaks {m.PROTOCOL_VERSION}"
            )
            return False
        if not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            self._say_goodbye(stream, "token", "wrong token")
            return False
        stream.send(self._welcome)
        return True

    @staticmethod
    def _say_goodbye(stream: MessageStream, code: m.CloseCode, reason: str) -> None:
        if stream.connection.state is not State.CLOSED:
            try:
                stream.send(m.Goodbye(code, reason))
            except LocalProtocolError:
                # Before the greeting there is nothing to say goodbye to.
                return

    async def _close(self, connection: _Connection) -> None:
        connection.stream.close()
        if connection.room is None:
            for arrival in [arrival for arrival in self._arriving if arrival.connection is connection]:
                self._arriving.remove(arrival)
                arrival.discard()
            return
        room = connection.room
        self._vad.remove(room)
        freed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_released() -> None:
            loop.call_soon_threadsafe(freed.set)

        self._leaving += 1
        self._device.release(room, on_released)
        room.close()
        # Only when no lane knows the slot any more may another room have it.
        await freed.wait()
        self._leaving -= 1
        self._free.append(room.slot)
        logger.debug("room %s left slot %d", room.name, room.slot)
        while self._arriving and self._free:
            arrival = self._arriving.popleft()
            if arrival.connection.stream.is_closed:
                arrival.discard()
            else:
                arrival.connection.stream.send(self._take_in(arrival))

    # --- for a connection -------------------------------------------------------------------------

    def open_room(self, connection: _Connection, ask: m.OpenRoom, descriptors: tuple[int, ...]) -> None:
        """Give a room a slot, or say why not.

        A slot whose room has just left is free when the quantum that runs has ended: who comes before that waits.
        """
        arrival = _Arrival(connection, ask, *descriptors)
        if self._free:
            connection.stream.send(self._take_in(arrival))
        elif len(self._arriving) < self._leaving:
            self._arriving.append(arrival)
        else:
            arrival.discard()
            connection.stream.send(m.RoomRefused(f"all {self._welcome.max_rooms} rooms are taken"))

    def _take_in(self, arrival: _Arrival) -> Message:
        try:
            segment = Segment.attach(arrival.memfd, arrival.doorbell)
        except RingCorruptedError as exc:
            return m.RoomRefused(str(exc))
        connection = arrival.connection
        room = Room(arrival.ask.room, self._free.pop(), segment, connection.deliver, connection.cut_off)
        connection.room = room
        self._vad.add(room)
        logger.debug("room %s has slot %d", room.name, room.slot)
        return m.RoomOpened(room.slot)

    def listen(self, room: Room, ask: m.Listen) -> None:
        """Start or stop a room's voice activity detection."""
        self._vad.reset(room)
        room.listen(ask)

    def submit(self, room: Room, ask: m.Transcribe | m.Generate | m.Speak) -> None:
        """Hand a request to the device lane."""
        self._device.submit(room, ask)

    def cancel(self, room: Room, target: int) -> None:
        """Drop a request of the room."""
        self._device.cancel(room, target)

    def promote(self, room: Room, target: int) -> None:
        """Somebody waits for a request of the room."""
        self._device.promote(room, target)

    def stats(self, ask: m.GetStats) -> m.Stats:
        """How busy the process is: it was at most ``_LOAD_S`` ago."""
        now = time.monotonic()
        if now - self._load_at >= _LOAD_S:
            self._load, self._load_at = self._device.load(), now
        load = self._load
        return m.Stats(
            ask.request,
            rooms=self.rooms,
            max_rooms=self._welcome.max_rooms,
            waiting_stt=load.waiting_stt,
            running_llm=load.running_llm,
            running_tts=load.running_tts,
            busy=load.busy,
        )


@dataclass(eq=False, slots=True)
class _Arrival:
    """A job that asks for a slot, with the descriptors of its room's memory."""

    connection: _Connection
    ask: m.OpenRoom
    memfd: int
    doorbell: int

    def discard(self) -> None:
        os.close(self.memfd)
        os.close(self.doorbell)


class _Connection:
    """One job: its stream, and its room once it has one."""

    def __init__(self, server: InferenceServer, stream: MessageStream) -> None:
        self.stream = stream
        self.room: Room | None = None
        self._server = server
        self._loop = asyncio.get_running_loop()

    def handle(self, received: Received) -> None:
        """One message from the job; the connection's table has already said that it is legal now."""
        match received.message:
            case m.GetStats() as ask:
                self.stream.send(self._server.stats(ask))
            case m.OpenRoom() as ask:
                self._server.open_room(self, ask, received.descriptors)
            case m.Listen() as ask:
                self._server.listen(self._open_room(), ask)
            case m.Transcribe() | m.Generate() | m.Speak() as ask:
                self._server.submit(self._open_room(), ask)
            case m.Cancel(target=target):
                self._server.cancel(self._open_room(), target)
            case m.Promote(target=target):
                self._server.promote(self._open_room(), target)
            case other:
                raise RemoteProtocolError(f"{type(other).__name__} is not handled")

    def deliver(self, message: Message) -> None:
        """Send from any thread; to a job that is gone it does nothing."""
        try:
            self._loop.call_soon_threadsafe(self._send, message)
        except RuntimeError:
            # The loop is closed: the process ends, and the job has been told.
            return

    def cut_off(self, reason: str) -> None:
        """End the connection of a job whose shared memory makes no sense. From any thread."""
        logger.warning("a job's rings are corrupt and it is cut off: %s", reason)
        self._loop.call_soon_threadsafe(self.stream.close)

    def _send(self, message: Message) -> None:
        if not self.stream.is_closed:
            self.stream.send(message)

    def _open_room(self) -> Room:
        if self.room is None:
            raise RemoteProtocolError("no room is open on this connection")
        return self.room


def _peer_uid(sock: socket.socket) -> int:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)
