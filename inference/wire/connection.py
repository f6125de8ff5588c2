"""One end of a connection, without any I/O: bytes in, events out; messages in, bytes out.

Everything about what may be said when is in the two ``Protocol`` tables below. A row that is missing
*is* the error. ``ROOM`` (a job and the inference process)::

    NEW --Hello--> GREETED --Welcome--> IDLE --OpenRoom--> OPENING --RoomOpened--> OPEN
                                          ^------RoomRefused---'

A request (``Transcribe``, ``Generate``, ``Speak``, ``GetStats``) takes a new, higher number and stays
open until one of its ending replies; a reply to a number that is not open is an error.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inference.wire import messages as m
from inference.wire import supervision as s
from inference.wire.errors import LocalProtocolError, RemoteProtocolError
from inference.wire.tlv import HEADER, Message, decode_body, decode_header, decode_numbers, encode


class Role(enum.Enum):
    """Which end this is: who speaks first (``CLIENT``) and who answers (``SERVER``)."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


class State(enum.Enum):
    """Where a conversation stands."""

    NEW = "new"
    GREETED = "greeted"
    IDLE = "idle"
    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


class Signal(enum.Enum):
    """What ``next_event`` says when it has no message."""

    NEED_DATA = "need data"
    PEER_CLOSED = "peer closed"


@dataclass(frozen=True, slots=True)
class Received:
    """A whole, legal message from the peer, with the file descriptors that came with it."""

    message: Message
    descriptors: tuple[int, ...] = ()


_MAX_DESCRIPTORS = 2
"""The most that one message carries (``OpenRoom``)."""

Table = Mapping[tuple[Role, State], Mapping[type[Message], State]]


@dataclass(frozen=True, slots=True)
class Protocol:
    """What may be said: by whom, in which state, and the state that follows.

    ``replies``: for each request, the replies it allows and whether they end it.
    """

    name: str
    table: Table
    replies: Mapping[type[Message], Mapping[type[Message], bool]] = field(default_factory=dict)


def _stay(state: State, *kinds: type[Message]) -> dict[type[Message], State]:
    return dict.fromkeys(kinds, state)


_EVENTS = (m.SpeechStarted, m.SpeechPaused, m.SpeechResumed, m.SpeechEnded, m.AudioLost)
_REPLIES = (
    m.Transcript,
    m.TextDelta,
    m.GenerateDone,
    m.EndOfTurn,
    m.SpeakStarted,
    m.SpeakDone,
    m.Stats,
    m.RequestFailed,
)
_BYE: dict[type[Message], State] = {m.Goodbye: State.CLOSED}

ROOM = Protocol(
    name="room",
    table={
        (Role.CLIENT, State.NEW): {m.Hello: State.GREETED},
        (Role.SERVER, State.NEW): _BYE,
        (Role.SERVER, State.GREETED): {m.Welcome: State.IDLE} | _BYE,
        (Role.CLIENT, State.IDLE): {m.OpenRoom: State.OPENING} | _stay(State.IDLE, m.GetStats),
        (Role.SERVER, State.IDLE): _stay(State.IDLE, m.Stats, m.RequestFailed) | _BYE,
        (Role.CLIENT, State.OPENING): _stay(State.OPENING, m.GetStats),
        (Role.SERVER, State.OPENING): {m.RoomOpened: State.OPEN, m.RoomRefused: State.IDLE}
        | _stay(State.OPENING, m.Stats, m.RequestFailed)
        | _BYE,
        (Role.CLIENT, State.OPEN): _stay(
            State.OPEN, m.Listen, m.Transcribe, m.Generate, m.Speak, m.Cancel, m.Promote, m.GetStats
        ),
        (Role.SERVER, State.OPEN): _stay(State.OPEN, *_EVENTS, *_REPLIES) | _BYE,
    },
    replies={
        m.Transcribe: {m.Transcript: True, m.RequestFailed: True},
        m.Generate: {m.EndOfTurn: False, m.TextDelta: False, m.GenerateDone: True, m.RequestFailed: True},
        m.Speak: {m.SpeakStarted: False, m.SpeakDone: True, m.RequestFailed: True},
        m.GetStats: {m.Stats: True, m.RequestFailed: True},
    },
)

_ALIVE_PARENT = (s.Ping, s.Shutdown)
_ALIVE_CHILD = (s.Pong, s.LogLine, s.Exiting)

SUPERVISION = Protocol(
    name="supervision",
    table={
        (Role.CLIENT, State.NEW): _stay(State.OPENING, s.InitializeInference, s.InitializeJob)
        | _stay(State.NEW, *_ALIVE_PARENT),
        (Role.SERVER, State.NEW): _stay(State.NEW, *_ALIVE_CHILD),
        (Role.CLIENT, State.OPENING): _stay(State.OPENING, *_ALIVE_PARENT),
        (Role.SERVER, State.OPENING): {s.Ready: State.IDLE, s.InitializeFailed: State.CLOSED}
        | _stay(State.OPENING, s.Progress, s.Calibrated, *_ALIVE_CHILD),
        (Role.CLIENT, State.IDLE): {s.StartJob: State.OPEN} | _stay(State.IDLE, *_ALIVE_PARENT),
        (Role.SERVER, State.IDLE): _stay(State.IDLE, s.InferenceReport, *_ALIVE_CHILD),
        (Role.CLIENT, State.OPEN): _stay(State.OPEN, s.JobUpdateAck, *_ALIVE_PARENT),
        # A report may cross with a job on its way.
        (Role.SERVER, State.OPEN): _stay(
            State.OPEN, s.InferenceReport, s.JobUpdate, s.TurnReport, s.Ending, *_ALIVE_CHILD
        ),
    },
)

FORKSERVER = Protocol(
    name="forkserver",
    table={
        (Role.CLIENT, State.NEW): _stay(State.NEW, s.Spawn),
        (Role.SERVER, State.NEW): _stay(State.NEW, s.Spawned, s.SpawnFailed, s.Reaped),
    },
)


class Connection:
    """Sans-IO state of one end. Feed it with ``receive_data``, ask ``next_event``, send with ``send``.

    The supervisor is the CLIENT of its children; a job is the CLIENT of the inference process.
    """

    def __init__(self, role: Role, protocol: Protocol) -> None:
        self.role = role
        self._protocol = protocol
        self._table = (self._rows(role), self._rows(role.peer))
        self.state = State.NEW
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self._eof = False
        self._open: dict[int, type[Message]] = {}
        self._last_request = 0

    def __repr__(self) -> str:
        return (
            f"<Connection {self._protocol.name} {self.role.value} {self.state.value}"
            f" open={sorted(self._open)} buffered={len(self._buffer)}>"
        )

    def _rows(self, sender: Role) -> dict[State, Mapping[type[Message], State]]:
        return {state: self._protocol.table.get((sender, state), {}) for state in State}

    @property
    def state(self) -> State:
        """Where the conversation stands."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        # Looked up when the state changes, which is rare, not for each message.
        self._mine, self._peers = (rows[state] for rows in self._table)

    def open_requests(self) -> tuple[int, ...]:
        """Numbers of the requests that have not ended, oldest first."""
        return tuple(self._open)

    def send(self, message: Message) -> bytes:
        """The bytes of ``message``. Raises ``LocalProtocolError`` if it is not legal now; nothing changes then."""
        data = encode(message)
        try:
            self._step(self.role, self._mine, message)
        except _IllegalError as exc:
            raise LocalProtocolError(str(exc)) from None
        return data

    def receive_data(self, data: bytes, descriptors: Iterable[int] = ()) -> None:
        """Take what was read from the socket; empty ``data`` means that the peer closed its end."""
        self._descriptors.extend(descriptors)
        if data:
            self._buffer += data
        else:
            self._eof = True

    def next_event(self) -> Received | Signal:
        """The next message, or why there is none. Raises ``RemoteProtocolError`` on garbage."""
        if not self._buffer and not self._descriptors and not self._eof:
            return Signal.NEED_DATA
        if numbers := decode_numbers(self._buffer):
            message, end = numbers
            del self._buffer[:end]
            return self._received(message, ())
        if len(self._buffer) < HEADER.size:
            return self._starved()
        cls, length = decode_header(self._buffer)
        end = HEADER.size + length
        if len(self._buffer) < end:
            return self._starved()
        message = decode_body(cls, self._buffer[HEADER.size : end])
        del self._buffer[:end]
        descriptors: tuple[int, ...] = ()
        if cls.DESCRIPTORS:
            if len(self._descriptors) < cls.DESCRIPTORS:
                raise RemoteProtocolError(
                    f"{cls.__name__} came with {len(self._descriptors)} descriptors; it needs {cls.DESCRIPTORS}"
                )
            descriptors = tuple(self._descriptors.popleft() for _ in range(cls.DESCRIPTORS))
        return self._received(message, descriptors)

    def stray_descriptors(self) -> tuple[int, ...]:
        """Descriptors that belong to no message; the shell closes them when the connection ends."""
        strays = tuple(self._descriptors)
        self._descriptors.clear()
        return strays

    def _received(self, message: Message, descriptors: tuple[int, ...]) -> Received:
        try:
            self._step(self.role.peer, self._peers, message)
        except _IllegalError as exc:
            self._descriptors.extend(descriptors)
            raise RemoteProtocolError(str(exc)) from None
        return Received(message, descriptors)

    def _starved(self) -> Signal:
        # Descriptors come with the first byte of their frame, so with no frame begun none may be left over:
        # whoever sends more would fill this process's table of open files.
        if len(self._descriptors) > (_MAX_DESCRIPTORS if self._buffer else 0):
            raise RemoteProtocolError(f"{len(self._descriptors)} descriptors came that belong to no message")
        if not self._eof:
            return Signal.NEED_DATA
        if self._buffer:
            raise RemoteProtocolError(f"the peer closed inside a frame ({len(self._buffer)} bytes of it came)")
        self.state = State.CLOSED
        return Signal.PEER_CLOSED

    def _step(self, sender: Role, legal: Mapping[type[Message], State], message: Message) -> None:
        kind = type(message)
        follows = legal.get(kind)
        if follows is None:
            raise _IllegalError(f"{kind.__name__} is not legal from the {sender.value} in state {self.state.value}")
        number: int | None = getattr(message, "request", None)
        if number is not None:
            if kind in self._protocol.replies:
                if number <= self._last_request:
                    raise _IllegalError(f"{kind.__name__} {number}: the last request was {self._last_request}")
                self._last_request = number
                self._open[number] = kind
            else:
                self._answer(kind, number)
        if follows is not self._state:
            self.state = follows

    def _answer(self, kind: type[Message], number: int) -> None:
        asked = self._open.get(number)
        if asked is None:
            raise _IllegalError(f"{kind.__name__} for request {number}, which is not open")
        ends = self._protocol.replies[asked].get(kind)
        if ends is None:
            raise _IllegalError(f"{kind.__name__} does not answer {asked.__name__} {number}")
        if ends:
            del self._open[number]


class _IllegalError(Exception):
    """Not in the table. Becomes a local or a remote protocol error, by who sent it."""
