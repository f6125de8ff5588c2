"""The other process of the ring tests: attaches to a segment whose descriptors it inherited.

    python ring_peer.py ROLE SECONDS MEMFD DOORBELL

Sample n of a ring has the value n mod PERIOD, so a torn, lost or repeated sample is seen. Prints how
much it did; what is wrong ends it with a traceback.
"""

from __future__ import annotations

import random
import select
import struct
import sys
import time

from inference.segments import Segment
from inference.wire.errors import OverrunError

PERIOD = 32749
"""A prime, so that no two laps of a ring hold the same values: a torn sample would look whole."""
_PATTERN = struct.pack(f"<{3 * PERIOD}h", *(3 * tuple(range(PERIOD))))

UP_WINDOW = 512


def samples(position: int, count: int) -> bytes:
    """``count`` samples (at most 32,768) as they lie from ``position`` on."""
    start = position % PERIOD
    return _PATTERN[2 * start : 2 * (start + count)]


def check(taken: bytes, position: int) -> None:
    """Raise ``AssertionError`` naming the first sample that is not what lies at its position."""
    if taken != samples(position, len(taken) // 2):
        values = struct.unpack(f"<{len(taken) // 2}h", taken)
        for offset, value in enumerate(values):
            expected = (position + offset) % PERIOD
            assert value == expected, f"sample {position + offset} is {value}, not {expected}"


def produce_up(segment: Segment, seconds: float) -> int:
    """Far faster than real time, in blocks of every size, so that the ring is lapped again and again."""
    dice = random.Random(1)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        for _ in range(100):
            count = dice.choice((1, 160, 480, 960, 4096, 32_768))
            assert segment.up.write(samples(segment.up.produced, count)) == count
    return segment.up.produced


def watch_up(segment: Segment, total: float) -> tuple[int, int]:
    """Peek at old, new and random stretches until ``total`` samples are written: (peeks, overruns)."""
    dice = random.Random(2)
    peeks = overruns = 0
    deadline = time.monotonic() + total
    while time.monotonic() < deadline:
        written, oldest = segment.up.written(), segment.up.oldest()
        if written - oldest < 2 * UP_WINDOW:
            continue
        # Most of them where the producer is about to write: there a torn read would be.
        start = dice.choice((oldest, oldest, oldest + 1, written - UP_WINDOW, dice.randrange(oldest, written)))
        count = min(dice.choice((1, UP_WINDOW, 32_768)), written - start)
        try:
            check(segment.up.peek(start, count), start)
            peeks += 1
        except OverrunError:
            overruns += 1
    return peeks, overruns


def produce_down(segment: Segment, seconds: float) -> int:
    """As the inference process does: what fits, and the doorbell only for a consumer that sleeps."""
    dice = random.Random(3)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        # Small blocks keep the ring nearly empty, so that the consumer falls asleep again and again.
        segment.down.write(samples(segment.down.produced, dice.choice((1, 1, 1, 7, 256, 4096))))
        if segment.down.consumer_sleeps():
            segment.ring_doorbell()
        for _ in range(dice.randrange(200)):
            pass
    return segment.down.produced


def consume_down(segment: Segment, until: float, patience: float) -> tuple[int, int]:
    """Read in order, sleep whenever there is nothing: (samples, sleeps). Ends after ``patience`` of silence.

    A lost wake-up is a silence that ends with samples in the ring; that is an ``AssertionError``.
    """
    dice = random.Random(4)
    down, sleeps = segment.down, 0
    while True:
        position = down.consumed
        taken = down.read(dice.choice((1, 960, 32_768)))
        check(taken, position)
        if taken or not down.sleep():
            continue
        sleeps += 1
        if not select.select([segment.doorbell], [], [], patience)[0]:
            assert not down.readable(), "samples came and nobody rang"
            if time.monotonic() > until:
                return down.consumed, sleeps
        segment.answer_doorbell()


def ask_lockstep(segment: Segment, seconds: float) -> int:
    """Fall asleep while the other process writes, again and again: one of the two must see the other.

    The up ring is borrowed to start every round together. Returns the rounds; ``AssertionError`` when
    both missed each other.
    """
    dice = random.Random(5)
    ends = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < ends:
        rounds += 1
        segment.up.write(b"\0\0")
        for _ in range(dice.randrange(40)):
            pass
        if segment.down.sleep() and not select.select([segment.doorbell], [], [], 2.0)[0]:
            assert not segment.down.readable(), f"round {rounds}: a sample came and nobody rang"
        segment.answer_doorbell()
        while not segment.down.readable():
            assert time.monotonic() < ends + 5
        segment.down.read(1)
    return rounds


def answer_lockstep(segment: Segment, seconds: float) -> int:
    """The other process of ``ask_lockstep``; killed by whoever started it."""
    dice = random.Random(6)
    ends = time.monotonic() + seconds + 10
    rounds = 0
    while time.monotonic() < ends:
        if segment.up.written() == rounds:
            continue
        rounds += 1
        for _ in range(dice.randrange(40)):
            pass
        segment.down.write(b"\0\0")
        if segment.down.consumer_sleeps():
            segment.ring_doorbell()
    return rounds


def main() -> None:
    role, seconds, memfd, doorbell = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    segment = Segment.attach(memfd, doorbell)
    sys.stdout.write("attached\n")
    sys.stdout.flush()
    work = {"produce_up": produce_up, "produce_down": produce_down, "lockstep": answer_lockstep}[role]
    sys.stdout.write(f"{work(segment, seconds)}\n")
    segment.close()


if __name__ == "__main__":
    main()
