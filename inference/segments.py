"""Shared memory: the sealed memfd that holds both rings of a room, and its doorbell.

The job makes a segment and passes its descriptors with ``OpenRoom``; the inference process attaches
to it. The memfd is sealed against shrinking and growing, so neither side can crash the other by
truncating it, and it disappears with the last process that holds it. One memfd::

    0         256        4096                                    ...
    +---------+----------+------------------+--------------------+
    | up      | down     | up data          | down data          |
    | header  | header   | 2^20 samples     | 2^18 samples       |
    +---------+----------+------------------+--------------------+
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

from inference.wire.errors import RingCorruptedError
from inference.wire.ring import HEADER_BYTES, SAMPLE_BYTES, Overrun, Ring

UP_SAMPLES = 1 << 20
"""65 s of the caller at 16 kHz: the longest stretch that can be transcribed in one piece and then some."""
DOWN_SAMPLES = 1 << 18
"""11.9 s of speech at 22,050 Hz: how far synthesis may run ahead of the listener."""

_DATA_OFFSET = 4096
_UP_BYTES = UP_SAMPLES * SAMPLE_BYTES
_DOWN_BYTES = DOWN_SAMPLES * SAMPLE_BYTES
SEGMENT_BYTES = _DATA_OFFSET + _UP_BYTES + _DOWN_BYTES

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Segment:
    """One room's shared memory: ``up`` (caller's audio) and ``down`` (agent's speech).

    ``ring_doorbell`` wakes the peer that waits on ``doorbell`` (an eventfd). ``close`` gives
    everything back; rings handed out are of no use afterwards.
    """

    def __init__(self, memory: mmap.mmap, doorbell: int, *, fresh: bool, memfd: int = -1) -> None:
        self.doorbell = doorbell
        self.memfd = memfd
        self._memory = memory
        self._view = memoryview(memory)
        attach = Ring.create if fresh else Ring
        down_start = _DATA_OFFSET + _UP_BYTES
        self.up = attach(self._view[:HEADER_BYTES], self._view[_DATA_OFFSET:down_start], Overrun.OVERWRITE)
        self.down = attach(
            self._view[HEADER_BYTES : 2 * HEADER_BYTES], self._view[down_start:SEGMENT_BYTES], Overrun.REFUSE
        )

    @classmethod
    def create(cls, name: str) -> Segment:
        """A new, sealed segment. ``name`` shows in /proc/PID/maps. Keeps the memfd open to be passed on."""
        # The kernel takes 249 bytes without a zero in them.
        label = f"roomful:{name}".encode(errors="replace").replace(b"\0", b"?")[:200].decode(errors="ignore")
        memfd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memfd, SEGMENT_BYTES)
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
            memory = mmap.mmap(memfd, SEGMENT_BYTES)
            doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            os.close(memfd)
            raise
        return cls(memory, doorbell, fresh=True, memfd=memfd)

    @classmethod
    def attach(cls, memfd: int, doorbell: int) -> Segment:
        """Attach to a segment that a peer made. Takes both descriptors over, also when it fails.

        Raises ``RingCorruptedError`` for memory that is not sealed, not of the right size, not writable or holds
        no rings, and for a doorbell that is no eventfd.
        """
        try:
            try:
                seals = fcntl.fcntl(memfd, fcntl.F_GET_SEALS)
            except OSError as exc:
                raise RingCorruptedError("the memory offered is not a memfd") from exc
            if seals & _SEALS != _SEALS:
                raise RingCorruptedError("the memfd is not sealed against shrinking and growing")
            size = os.fstat(memfd).st_size
            if size != SEGMENT_BYTES:
                raise RingCorruptedError(f"the memfd has {size} bytes, not {SEGMENT_BYTES}")
            # Writing to anything but an eventfd could block this process or fail when the peer likes.
            if str(Path(f"/proc/self/fd/{doorbell}").readlink()) != "anon_inode:[eventfd]":
                raise RingCorruptedError("the doorbell offered is not an eventfd")
            os.set_blocking(doorbell, False)
            try:
                memory = mmap.mmap(memfd, SEGMENT_BYTES)
            except OSError as exc:
                raise RingCorruptedError(f"the memfd cannot be mapped: {exc.strerror}") from exc
            return cls(memory, doorbell, fresh=False)
        except BaseException:
            os.close(doorbell)
            raise
        finally:
            os.close(memfd)

    def ring_doorbell(self) -> None:
        """Wake the peer. An eventfd only counts, so this never blocks and many rings are one wake."""
        try:
            os.eventfd_write(self.doorbell, 1)
        except BlockingIOError:
            return

    def answer_doorbell(self) -> None:
        """Reset the doorbell after having been woken."""
        try:
            os.eventfd_read(self.doorbell)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Release the map and the descriptors. Safe to call twice."""
        if self.doorbell < 0:
            return
        self.up.release()
        self.down.release()
        self._view.release()
        self._memory.close()
        os.close(self.doorbell)
        self.doorbell = -1
        if self.memfd >= 0:
            os.close(self.memfd)
            self.memfd = -1
