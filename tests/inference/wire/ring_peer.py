"""The other process of the ring tests: attaches to a segment whose descriptors it inherited.

    python ring_peer.py ROLE SECONDS MEMFD DOORBELL

Sample n of a ring has the value n mod 32768, so a torn, lost or repeated sample is seen. Prints how
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

PERIOD = 32768
_PATTERN = struct.pack(f"<{2 * PERIOD}h", *range(PERIOD), *range(PERIOD))

UP_WINDOW = 512
LOCKSTEP_ROUNDS = 1_000_000


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


def lockstep(segment: Segment, consumer: bool, seconds: float) -> int:
    """Fall asleep and write at the same moment, again and again: one of the two must have seen the other.

    The cursors of the up ring are borrowed to start every round together, so each process has one word
    of its own there. Returns the rounds; ``AssertionError`` when both sides missed each other.
    """
    down, gate = segment.down, segment.up
    ends = time.monotonic() + seconds
    rounds = 0
    dice = random.Random(5 + consumer)
    while rounds < LOCKSTEP_ROUNDS and time.monotonic() < ends:
        rounds += 1
        # The consumer opens the round with a write to the up ring; the producer answers in the down ring.
        if consumer:
            gate.write(b"\0\0")
            for _ in range(dice.randrange(8)):
                pass
            asleep = down.sleep()
            if asleep and not select.select([segment.doorbell], [], [], 2.0)[0]:
                assert not down.readable(), f"round {rounds}: a sample came and nobody rang"
            segment.answer_doorbell()
            while not down.readable():
                assert time.monotonic() < ends + 5
            down.read(1)
        else:
            while gate.written() < rounds:
                if time.monotonic() > ends + 5:
                    return rounds
            for _ in range(dice.randrange(8)):
                pass
            down.write(b"\0\0")
            if down.consumer_sleeps():
                segment.ring_doorbell()
    return rounds


def main() -> None:
    role, seconds, memfd, doorbell = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    segment = Segment.attach(memfd, doorbell)
    print("attached", flush=True)
    if role == "produce_up":
        print(produce_up(segment, seconds))
    elif role == "produce_down":
        print(produce_down(segment, seconds))
    elif role == "lockstep":
        print(lockstep(segment, False, seconds))
    segment.close()


if __name__ == "__main__":
    main()
