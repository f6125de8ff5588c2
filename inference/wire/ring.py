"""A ring of 16-bit samples in shared memory: one producer, one consumer, no locks.

Memory of one ring (the data lies elsewhere in the same memfd)::

    header   0        8          16              64            128           192
             +--------+----------+---------------+-------------+-------------+-------------+
             | magic  | capacity | zeros         | written u64 | consumed u64| asleep u64  |
             +--------+----------+---------------+-------------+-------------+-------------+
                                                  producer's    consumer's    consumer's
    data     `capacity` samples of little-endian int16; sample n lies at n mod capacity

``written`` and ``consumed`` count samples since the ring was made; they never wrap (64 bits of 48 kHz
last twelve million years) and each has a cache line of its own and one writer only. The producer
copies samples first and moves ``written`` afterwards; the consumer reads ``written`` first and
copies afterwards. x86-64 keeps stores in order and loads in order, so that is all; elsewhere
``_fence`` puts a barrier between the two. Each side keeps its own cursor privately and never
believes shared memory about it, and checks the peer's for the impossible.

Falling asleep is the one place where each side stores one word and then loads the other's (``asleep``
then ``written`` here, ``written`` then ``asleep`` there). x86-64 lets a load pass an older store, so both
could miss the other's news and the wake-up be lost: ``_full_fence`` stands between the two everywhere.

Overrun policy, chosen when the ring is opened:

* ``OVERWRITE`` (caller's audio): the producer never waits. The consumer reads at any position that
  is still there (``peek``) and learns from ``OverrunError`` when it came too late.
* ``REFUSE`` (agent's speech): ``write`` takes only what fits and says how much.
"""

from __future__ import annotations

import enum
import platform
import struct
import threading
from collections.abc import Callable

from inference.wire.errors import OverrunError, RingCorruptedError

HEADER_BYTES = 256
SAMPLE_BYTES = 2
_MAGIC = b"RFRING01"
_U64 = struct.Struct("<Q")
_WRITTEN, _CONSUMED, _ASLEEP = 64 // 8, 128 // 8, 192 // 8


class Overrun(enum.Enum):
    """What happens when the producer is faster than the consumer."""

    OVERWRITE = "overwrite"
    REFUSE = "refuse"


def _no_fence() -> None:
    """x86-64 (total store order): plain loads and stores keep their order."""


def _lock_fence() -> Callable[[], None]:
    first, second = threading.Lock(), threading.Lock()

    def fence() -> None:
        # Release of the first lock, then acquire of the second: nothing moves across the pair.
        with first:
            pass
        with second:
            pass

    return fence


# Taking a lock is an atomic read-modify-write, which on x86-64 is a full barrier too.
_full_fence: Callable[[], None] = _lock_fence()
_fence: Callable[[], None] = _no_fence if platform.machine() in ("x86_64", "AMD64") else _full_fence

_MAX_CURSOR = 1 << 62
"""No audio clock gets here; below it, positions and their sums fit the signed integers of messages."""


class Ring:
    """One side's view of a ring. ``header``: 256 writable bytes; ``data``: ``capacity`` * 2 bytes.

    ``create`` makes a fresh ring in zeroed memory; the constructor attaches to an existing one and
    raises ``RingCorruptedError`` if there is none of that capacity.
    """

    def __init__(self, header: memoryview, data: memoryview, policy: Overrun) -> None:
        if bytes(header[:8]) != _MAGIC:
            raise RingCorruptedError("no ring in this memory")
        capacity = _U64.unpack_from(header, 8)[0]
        if capacity * SAMPLE_BYTES != len(data):
            raise RingCorruptedError(f"the ring claims {capacity} samples, its memory holds {len(data) // 2}")
        self.capacity: int = capacity
        self.policy = policy
        self._guard: int = max(1, capacity // 16)
        self._words = header.cast("Q")
        self._data = data
        self._written = self._words[_WRITTEN]
        self._consumed = self._words[_CONSUMED]
        waiting = self._written - self._consumed
        if waiting < 0 or self._written > _MAX_CURSOR or (policy is Overrun.REFUSE and waiting > capacity):
            raise RingCorruptedError(f"cursors {self._written} and {self._consumed} in a ring of {capacity}")

    @classmethod
    def create(cls, header: memoryview, data: memoryview, policy: Overrun) -> Ring:
        """Write the header of a new ring and attach to it."""
        header[:HEADER_BYTES] = bytes(HEADER_BYTES)
        _U64.pack_into(header, 8, len(data) // SAMPLE_BYTES)
        header[:8] = _MAGIC
        return cls(header, data, policy)

    def __repr__(self) -> str:
        return f"<Ring {self.policy.value} written={self._written} consumed={self._consumed} of {self.capacity}>"

    # --- producer ---------------------------------------------------------------------------------

    def write(self, samples: bytes | bytearray | memoryview) -> int:
        """Append int16 samples; returns how many were taken (all of them under ``OVERWRITE``)."""
        view = memoryview(samples).cast("B")
        count = len(view) // SAMPLE_BYTES
        if self.policy is Overrun.REFUSE:
            count = min(count, self.space())
        # In blocks of the guard at most, so that a reader of old samples can tell what is being overwritten.
        for start in range(0, count, self._guard):
            self._append(view[start * SAMPLE_BYTES : min(count, start + self._guard) * SAMPLE_BYTES])
        return count

    def _append(self, block: memoryview) -> None:
        position = (self._written % self.capacity) * SAMPLE_BYTES
        first = min(len(block), len(self._data) - position)
        self._data[position : position + first] = block[:first]
        if first < len(block):
            self._data[: len(block) - first] = block[first:]
        self._written += len(block) // SAMPLE_BYTES
        _fence()
        self._words[_WRITTEN] = self._written

    @property
    def produced(self) -> int:
        """The producer's own cursor."""
        return self._written

    def space(self) -> int:
        """Samples that ``write`` would take now. Raises ``RingCorruptedError`` on an impossible cursor."""
        consumed = self._words[_CONSUMED]
        if not self._consumed <= consumed <= self._written:
            raise RingCorruptedError(
                f"consumed cursor {consumed}; it was {self._consumed} and {self._written} are written"
            )
        self._consumed = consumed
        return self.capacity - (self._written - consumed)

    def consumed_by_peer(self) -> int:
        """Where the consumer says it is: between 0 and ``produced``, whatever it says."""
        return min(int(self._words[_CONSUMED]), self._written)

    def consumer_sleeps(self) -> bool:
        """True once after the consumer called ``sleep``: ring its doorbell."""
        _full_fence()
        if not self._words[_ASLEEP]:
            return False
        self._words[_ASLEEP] = 0
        return True

    # --- consumer ---------------------------------------------------------------------------------

    def written(self) -> int:
        """The producer's cursor (samples since the ring was made). Raises ``RingCorruptedError``."""
        written = int(self._words[_WRITTEN])
        impossible = written < self._written or written > _MAX_CURSOR
        if impossible or (self.policy is Overrun.REFUSE and written - self._consumed > self.capacity):
            raise RingCorruptedError(f"written cursor {written}; it was {self._written}, {self._consumed} are consumed")
        self._written = written
        _fence()
        return written

    @property
    def consumed(self) -> int:
        """The consumer's own cursor."""
        return self._consumed

    def readable(self) -> int:
        """Samples between the two cursors."""
        return self.written() - self._consumed

    def read(self, limit: int) -> bytes:
        """Take up to ``limit`` samples in order. Raises ``OverrunError`` when they were overwritten (``OVERWRITE``)."""
        count = min(limit, self.readable())
        refuses = self.policy is Overrun.REFUSE
        taken = self._copy(self._consumed, count) if refuses else self.peek(self._consumed, count)
        self.skip_to(self._consumed + count)
        return taken

    def skip_to(self, position: int) -> None:
        """Move the consumer's cursor forward to ``position`` (at most ``written``)."""
        if not self._consumed <= position <= self.written():
            raise ValueError(f"cannot skip to {position}: consumed {self._consumed}, written {self._written}")
        self._consumed = position
        _fence()
        self._words[_CONSUMED] = position

    def seek(self, position: int) -> None:
        """Move the consumer's cursor to ``position``, forward or back (``OVERWRITE``; at most ``written``).

        The producer waits for nobody there, so the cursor only tells it how far the consumer has got.
        """
        assert self.policy is Overrun.OVERWRITE, "what was consumed has been given back to the producer"
        if not 0 <= position <= self.written():
            raise ValueError(f"cannot seek to {position}: {self._written} are written")
        self._consumed = position
        _fence()
        self._words[_CONSUMED] = position

    def peek(self, start: int, count: int) -> bytes:
        """Copy ``count`` samples from ``start`` without consuming. Raises ``OverrunError`` if they are not there."""
        written = self.written()
        if start < 0 or count < 0 or start + count > written:
            raise OverrunError(f"samples {start} to {start + count} are not written yet ({written} are)")
        taken = self._copy(start, count)
        _fence()
        # The producer may have lapped us while we copied.
        oldest = self.oldest()
        if start < oldest:
            raise OverrunError(f"samples from {start} on are overwritten; the oldest kept is {oldest}")
        return taken

    def oldest(self) -> int:
        """Position of the oldest sample that ``peek`` can give: what may be being overwritten now is not."""
        return max(0, self.written() + self._guard - self.capacity)

    def sleep(self) -> bool:
        """Declare the consumer asleep. False if samples came meanwhile: read them first."""
        self._words[_ASLEEP] = 1
        _full_fence()
        if self.readable():
            self._words[_ASLEEP] = 0
            return False
        return True

    def release(self) -> None:
        """Let go of the shared memory (so that its map can be closed). The ring is of no use afterwards."""
        self._words.release()
        self._data.release()

    def _copy(self, start: int, count: int) -> bytes:
        position = (start % self.capacity) * SAMPLE_BYTES
        size = count * SAMPLE_BYTES
        if size > len(self._data):
            raise OverrunError(f"{count} samples asked of a ring of {self.capacity}")
        first = min(size, len(self._data) - position)
        head = bytes(self._data[position : position + first])
        return head if first == size else head + bytes(self._data[: size - first])
