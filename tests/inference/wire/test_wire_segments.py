"""Segments: the seals are really there, strange memory is refused, and nothing stays open."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from inference.segments import DOWN_SAMPLES, SEGMENT_BYTES, UP_SAMPLES, Segment
from inference.wire.errors import RingCorruptedError

Watch = Callable[[], AbstractContextManager[None]]
SHRINK, GROW, SEAL, WRITE = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL, fcntl.F_SEAL_WRITE


def mapped(name: str) -> int:
    """How many times a segment of that name is mapped in this process."""
    return sum(f"roomful:{name}" in line for line in Path("/proc/self/maps").read_text().splitlines())


def memory(size: int = SEGMENT_BYTES, seals: int = SHRINK | GROW | SEAL) -> int:
    number = os.memfd_create("odd", os.MFD_ALLOW_SEALING)
    os.ftruncate(number, size)
    if seals:
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
    return number


def test_layout() -> None:
    assert SEGMENT_BYTES == 4096 + 2 * UP_SAMPLES + 2 * DOWN_SAMPLES
    segment = Segment.create("layout")
    segment.up.write(b"UP")
    segment.down.write(b"DN")
    content = os.pread(segment.memfd, SEGMENT_BYTES, 0)
    assert content[:8] == content[256:264] == b"RFRING01"
    assert content[4096:4098] == b"UP"
    assert content[4096 + 2 * UP_SAMPLES :][:2] == b"DN"
    segment.close()


def test_the_seals_are_really_there() -> None:
    segment = Segment.create("sealed")
    for size in (0, SEGMENT_BYTES - 1, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.memfd, size)
    # Nor can a seal be added that would make the memory read-only for a peer that attaches later.
    with pytest.raises(PermissionError):
        fcntl.fcntl(segment.memfd, fcntl.F_ADD_SEALS, WRITE)
    segment.close()


def test_both_ends_see_one_memory(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        ours = Segment.create("both")
        theirs = Segment.attach(os.dup(ours.memfd), os.dup(ours.doorbell))
        assert mapped("both") == 2
        ours.up.write(b"up")
        assert theirs.up.peek(0, 1) == b"up"
        assert ours.down.sleep()
        theirs.down.write(b"dn")
        assert theirs.down.consumer_sleeps()
        theirs.ring_doorbell()
        theirs.ring_doorbell()
        assert os.eventfd_read(ours.doorbell) == 2
        assert ours.down.read(10) == b"dn"
        ours.close()
        # The memory lives as long as one of them holds it.
        theirs.up.peek(0, 1)
        theirs.close()
        assert mapped("both") == 0


def test_a_doorbell_that_was_not_rung_or_rung_too_often() -> None:
    segment = Segment.create("bell")
    segment.answer_doorbell()
    os.eventfd_write(segment.doorbell, (1 << 64) - 2)
    segment.ring_doorbell()
    segment.answer_doorbell()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(segment.doorbell)
    segment.close()


def test_the_descriptors_are_not_inherited() -> None:
    segment = Segment.create("cloexec")
    assert not os.get_inheritable(segment.memfd)
    assert not os.get_inheritable(segment.doorbell)
    segment.close()


def test_close_twice(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        segment = Segment.create("twice")
        segment.close()
        segment.close()
        assert mapped("twice") == 0


@pytest.mark.parametrize("name", ["", "ü" * 256, "語" * 256, "a\0b", "\udc80", "../etc", "a b\n"])
def test_any_room_name(nothing_left_open: Watch, name: str) -> None:
    with nothing_left_open():
        Segment.create(name).close()


# --- strange offers -------------------------------------------------------------------------------


def a_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def a_file() -> int:
    return os.open(__file__, os.O_RDONLY)


def a_socket() -> int:
    return socket.socket(socket.AF_UNIX).detach()


def read_only_memory() -> int:
    segment = Segment.create("read-only")
    number = os.open(f"/proc/self/fd/{segment.memfd}", os.O_RDONLY)
    segment.close()
    return number


@pytest.mark.parametrize(
    ("offer", "says"),
    [
        (lambda: memory(seals=0), "not sealed against shrinking and growing"),
        (lambda: memory(seals=SHRINK), "not sealed"),
        (lambda: memory(seals=GROW | SEAL), "not sealed"),
        # Whoever may still add seals may take the memory's writability away.
        (lambda: memory(seals=SHRINK | GROW), "not sealed"),
        (lambda: memory(seals=SHRINK | GROW | SEAL | WRITE), "cannot be mapped"),
        (read_only_memory, "cannot be mapped"),
        (lambda: memory(0), f"has 0 bytes, not {SEGMENT_BYTES}"),
        (lambda: memory(SEGMENT_BYTES - 1), f"has {SEGMENT_BYTES - 1} bytes"),
        (lambda: memory(SEGMENT_BYTES + 4096), f"has {SEGMENT_BYTES + 4096} bytes"),
        (memory, "no ring in this memory"),
        (a_pipe, "not a memfd"),
        (a_file, "not a memfd"),
        (a_socket, "not a memfd"),
        (lambda: os.eventfd(0), "not a memfd"),
    ],
)
def test_strange_memory_is_refused_and_closed(nothing_left_open: Watch, offer: Callable[[], int], says: str) -> None:
    with nothing_left_open():
        memfd, doorbell = offer(), os.eventfd(0)
        with pytest.raises(RingCorruptedError, match=says):
            Segment.attach(memfd, doorbell)
    assert mapped("odd") == 0


@pytest.mark.parametrize("offer", [a_pipe, a_file, a_socket, memory])
def test_a_strange_doorbell_is_refused_and_closed(nothing_left_open: Watch, offer: Callable[[], int]) -> None:
    """Writing to a full pipe would block every room; writing to one without a reader would fail."""
    with nothing_left_open():
        segment = Segment.create("bell")
        with pytest.raises(RingCorruptedError, match="the doorbell offered is not an eventfd"):
            Segment.attach(os.dup(segment.memfd), offer())
        segment.close()
    assert mapped("bell") == 0


def test_a_blocking_doorbell_does_not_block() -> None:
    segment = Segment.create("bell")
    doorbell = os.eventfd(0)
    os.eventfd_write(doorbell, (1 << 64) - 2)
    theirs = Segment.attach(os.dup(segment.memfd), doorbell)
    theirs.ring_doorbell()
    theirs.close()
    segment.close()


def test_corrupted_cursors_are_refused_and_nothing_stays_mapped(nothing_left_open: Watch) -> None:
    with nothing_left_open():
        segment = Segment.create("corrupt")
        # ``written`` of the down ring.
        os.pwrite(segment.memfd, (1 << 40).to_bytes(8, "little"), 256 + 64)
        with pytest.raises(RingCorruptedError, match="cursors"):
            Segment.attach(os.dup(segment.memfd), os.dup(segment.doorbell))
        segment.close()
    assert mapped("corrupt") == 0


def test_no_descriptors_left_for_the_doorbell(nothing_left_open: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with nothing_left_open():
        monkeypatch.setattr(os, "eventfd", full)
        with pytest.raises(OSError, match="Too many open files"):
            Segment.create("full")
    assert mapped("full") == 0
