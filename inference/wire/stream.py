"""The asyncio shell around a ``Connection``: a unix socket, its bytes and its file descriptors."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable

from inference.wire.connection import Connection, Protocol, Received, Role, Signal, State
from inference.wire.errors import LocalProtocolError, RemoteProtocolError, SlowPeerError
from inference.wire.tlv import Message

_READ_BYTES = 64 * 1024
_READS_AT_ONCE = 8
"""Then the rest of the loop has its turn: a peer that sends without a pause keeps nobody waiting."""
_MESSAGES_AT_ONCE = 32
"""As many are received without a wait; then the rest of the loop has its turn, too."""
_MAX_DESCRIPTORS = 8
_DESCRIPTORS_SPACE = socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4)
_MAX_WAITING_BYTES = 8 << 20
"""A peer that leaves more than this unread is cut off, so that it cannot eat this process's memory."""
_MAX_WAITING_MESSAGES = 256
"""Above this many unhandled messages the socket is not read, and the peer feels it."""


class MessageStream:
    """Messages over one connected unix socket. Iterate to receive, or ``dispatch``; ``send`` never blocks.

    Use only from the event loop that made it. Iteration ends when the peer closes; it raises
    ``RemoteProtocolError`` for garbage and ``SlowPeerError`` when this side's sends are not read.
    """

    def __init__(self, sock: socket.socket, role: Role, protocol: Protocol) -> None:
        self.connection = Connection(role, protocol)
        self._sock = sock
        self._sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._received: deque[Received] = deque()
        self._handle: Callable[[Received], None] | None = None
        self._dispatched: asyncio.Future[None] | None = None
        self._handing_over = False
        self._error: Exception | None = None
        self._ended = False
        self._closed = False
        self._paused = False
        self._in_a_row = 0
        self._wake = asyncio.Event()
        self._outgoing: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._outgoing_bytes = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self._loop.add_reader(sock, self._on_readable)

    def __repr__(self) -> str:
        return f"<MessageStream {self.connection!r} received={len(self._received)} outgoing={self._outgoing_bytes}B>"

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        if self._closed or self.connection.state is State.CLOSED:
            return True
        # After the peer's mistake there is still a goodbye to be said.
        return self._ended and not isinstance(self._error, RemoteProtocolError)

    @property
    def waiting_bytes(self) -> int:
        """What was sent and the socket has not taken yet."""
        return self._outgoing_bytes

    # --- receiving ------------------------------------------------------------------------------

    async def receive(self) -> Received | None:
        """The next message, or None when the peer has closed."""
        self._in_a_row += 1
        if self._in_a_row > _MESSAGES_AT_ONCE:
            self._in_a_row = 0
            await asyncio.sleep(0)
        while not self._received:
            self._in_a_row = 0
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._take()

    async def __aiter__(self) -> AsyncIterator[Received]:
        while (received := await self.receive()) is not None:
            yield received

    async def dispatch(self, handle: Callable[[Received], None]) -> None:
        """Give every message to ``handle`` until the peer closes: no task has to wake up for it.

        Raises what iteration would raise, and what ``handle`` raises; nothing is handed over after it.
        """
        assert self._handle is None, "somebody gets the messages already"
        self._handle, self._dispatched = handle, self._loop.create_future()
        self._hand_over()
        try:
            await self._dispatched
        finally:
            self._handle = None

    def _take(self) -> Received:
        received = self._received.popleft()
        if self._paused and len(self._received) < _MAX_WAITING_MESSAGES // 2 and not self._ended:
            self._paused = False
            self._loop.add_reader(self._sock, self._on_readable)
        return received

    def _hand_over(self) -> None:
        """To ``dispatch``: what was received, a part of it at a time, and the end after it."""
        self._handing_over = False
        dispatched = self._dispatched
        assert dispatched is not None
        for _ in range(_MESSAGES_AT_ONCE):
            if dispatched.done() or self._handle is None:
                return
            if self._received:
                try:
                    self._handle(self._take())
                except Exception as exc:  # noqa: BLE001 (it is raised by ``dispatch``)
                    dispatched.set_exception(exc)
            elif self._error is not None:
                dispatched.set_exception(self._error)
            elif self._ended:
                dispatched.set_result(None)
            else:
                return
        self._hand_over_soon()

    def _hand_over_soon(self) -> None:
        if not self._handing_over:
            self._handing_over = True
            self._loop.call_soon(self._hand_over)

    def _notify(self) -> None:
        """Whoever receives: there is something, or the end."""
        self._wake.set()
        if self._handle is not None:
            self._hand_over_soon()

    def _on_readable(self) -> None:
        # Until nothing is left, because of a socket in error (a peer that died with our bytes unread)
        # libuv tells only once; what is not read then, the end above all, would never be noticed.
        for _ in range(_READS_AT_ONCE):
            if self._ended or self._paused or not self._read():
                return
            if self._handle is None:
                self._wake.set()
                continue
            if not self._handing_over:
                self._hand_over()
            # Who waits for what was handed over has its turn before the next look.
            break
        self._loop.call_soon(self._on_readable)

    def _read(self) -> bool:
        """Take one piece from the socket. False when there is none now."""
        descriptors: list[int] = []
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, _DESCRIPTORS_SPACE, socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors.extend(array.array("i", content[: len(content) - len(content) % 4]))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            # A reset peer is a closed peer.
            data = b""
        self.connection.receive_data(data, descriptors)
        try:
            while isinstance(event := self.connection.next_event(), Received):
                self._received.append(event)
            if event is Signal.PEER_CLOSED:
                self._end(None)
        except RemoteProtocolError as exc:
            self._end(exc)
        if len(self._received) > _MAX_WAITING_MESSAGES and not self._ended:
            self._paused = True
            self._loop.remove_reader(self._sock)
        return True

    # --- sending --------------------------------------------------------------------------------

    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        """Queue a message and write what the socket takes.

        Raises ``LocalProtocolError`` if it is not legal now. To a peer that is gone it does nothing:
        whoever iterates learns of the end. ``descriptors`` stay the caller's and may be closed after
        ``drain``.
        """
        if self.is_closed:
            return
        data = self.connection.send(message)
        if not self._outgoing and not descriptors:
            try:
                sent = self._sock.send(data, socket.MSG_NOSIGNAL)
            except OSError:
                # The way below tells which error it is.
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self._outgoing.append((data, descriptors))
        self._outgoing_bytes += len(data)
        if len(self._outgoing) == 1:
            self._flush()
        if self._outgoing_bytes > _MAX_WAITING_BYTES:
            self._end(SlowPeerError(f"{self._outgoing_bytes} bytes wait for the peer"))

    async def drain(self) -> None:
        """Wait until everything queued is with the kernel (or the connection has ended)."""
        await self._drained.wait()

    def _flush(self) -> None:
        while self._outgoing:
            data, descriptors = self._outgoing[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sent = self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as exc:
                self._outgoing.clear()
                self._outgoing_bytes = 0
                if not isinstance(exc, ConnectionError):
                    # A descriptor that is none, or no kernel memory: the peer is there and would wait for ever.
                    self._end(LocalProtocolError(f"cannot send: {exc}"))
                # Else it is gone. What it sent before is still read; the reader sees the end after it.
                break
            self._outgoing_bytes -= sent
            if sent < len(data):
                self._outgoing[0] = (data[sent:], ())
                break
            self._outgoing.popleft()
        if self._outgoing:
            if self._drained.is_set():
                self._drained.clear()
                self._loop.add_writer(self._sock, self._flush)
        elif not self._drained.is_set():
            self._loop.remove_writer(self._sock)
            self._drained.set()

    # --- ending ---------------------------------------------------------------------------------

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._drained.set()
        self._notify()

    def close(self) -> None:
        """Close the socket and every descriptor that nobody took. Iteration ends."""
        if self._closed:
            return
        self._closed = True
        self._end(None)
        self._loop.remove_writer(self._sock)
        self._drained.set()
        self.connection.state = State.CLOSED
        self._sock.close()
        for received in self._received:
            for descriptor in received.descriptors:
                os.close(descriptor)
        self._received.clear()
        for descriptor in self.connection.stray_descriptors():
            os.close(descriptor)
