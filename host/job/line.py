"""A telephone line between a job and a caller in another process: frames over a unix stream socket. Pure.

The caller's end listens, the job's end connects and says which room it is. One frame::

    | kind u8 | length u32 | body (`length` bytes) |        all integers little-endian

    job → caller   ROOM   the room's name, UTF-8, first
                   RATE   u32: the sample rate of SPEECH in Hz
                   SPEECH int16 PCM of the agent
                   CLEAR  u32: number of this silence; what was sent before it and not heard yet is dropped
                   STATE  what the agent does, UTF-8: a value of ``lk.agent.state``
                   TEXT   a transcript: u8 final (0, 1), u8 side (0 user, 1 agent), u8 length of the segment's
                          name, the name, the text; both UTF-8
                   METRICS what was measured of a turn, JSON in UTF-8 (``host.job.room.metrics_message``)
    caller → job   TICK   u64 samples heard, u64 samples dropped, u32 number of the last CLEAR that was obeyed,
                          then 20 ms of the caller, int16 PCM at 16 kHz
                   CHAT   what the caller typed, UTF-8

The caller's 20 ms tick is the only clock. Whoever closes the socket has left.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from host.job.room import Side


CALLER_RATE = 16_000
TICK_MS = 20
TICK_BYTES = 2 * CALLER_RATE * TICK_MS // 1000
MAX_BODY_BYTES = 1 << 20

_HEADER = struct.Struct("<BI")
_TICK = struct.Struct("<QQI")
_U32 = struct.Struct("<I")
_SIDES: tuple[Side, Side] = ("user", "agent")


class Kind(enum.IntEnum):
    """What a frame is."""

    ROOM = 1
    RATE = 2
    SPEECH = 3
    CLEAR = 4
    STATE = 5
    TEXT = 6
    TICK = 7
    METRICS = 8
    CHAT = 9


class LineError(ConnectionError):
    """The other end sent what is no frame."""


@dataclass(frozen=True, slots=True)
class Tick:
    """20 ms of the caller, and what was heard of the agent so far, in samples."""

    heard: int
    dropped: int
    cleared: int
    pcm: bytes

    def pack(self) -> bytes:
        """The frame."""
        return pack(Kind.TICK, _TICK.pack(self.heard, self.dropped, self.cleared) + self.pcm)

    @classmethod
    def unpack(cls, body: bytes) -> Tick:
        """Raises ``LineError``."""
        if len(body) < _TICK.size:
            raise LineError(f"a TICK of {len(body)} bytes")
        heard, dropped, cleared = _TICK.unpack_from(body)
        return cls(heard, dropped, cleared, body[_TICK.size :])


@dataclass(frozen=True, slots=True)
class Text:
    """The text so far of one segment of speech."""

    side: Side
    segment: str
    text: str
    final: bool

    def pack(self) -> bytes:
        """The frame."""
        name = self.segment.encode()[:255]
        return pack(Kind.TEXT, bytes((self.final, _SIDES.index(self.side), len(name))) + name + self.text.encode())

    @classmethod
    def unpack(cls, body: bytes) -> Text:
        """Raises ``LineError``."""
        if len(body) < 3 or body[1] > 1 or len(body) < 3 + body[2]:
            raise LineError("a TEXT that is cut off")
        end = 3 + body[2]
        return cls(_SIDES[body[1]], words(body[3:end]), words(body[end:]), bool(body[0]))


def pack(kind: Kind, body: bytes) -> bytes:
    """One frame."""
    return _HEADER.pack(kind, len(body)) + body


def number(value: int) -> bytes:
    """The body of RATE and CLEAR."""
    return _U32.pack(value)


def read_number(body: bytes) -> int:
    """The inverse of ``number``. Raises ``LineError``."""
    if len(body) != _U32.size:
        raise LineError(f"a number of {len(body)} bytes")
    return int(_U32.unpack(body)[0])


def words(body: bytes) -> str:
    """UTF-8. Raises ``LineError``."""
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise LineError(f"text that is no UTF-8: {exc}") from exc


class Frames:
    """Cuts the stream into frames again: bytes in, frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> list[tuple[Kind, bytes]]:
        """The frames that are whole now. Raises ``LineError``."""
        self._buffer += data
        frames: list[tuple[Kind, bytes]] = []
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer, at)
            if kind not in _KINDS or length > MAX_BODY_BYTES:
                raise LineError(f"no frame: kind {kind}, {length} bytes")
            end = at + _HEADER.size + length
            if end > len(self._buffer):
                break
            frames.append((Kind(kind), bytes(self._buffer[at + _HEADER.size : end])))
            at = end
        del self._buffer[:at]
        return frames


_KINDS = frozenset(Kind)
