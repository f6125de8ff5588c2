"""Rings: against a deque, against themselves in another process, and against memory that lies."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ring_peer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference.segments import Segment
from inference.wire.errors import OverrunError, RingCorruptedError
from inference.wire.ring import HEADER_BYTES, Overrun, Ring

SOAK_S = 2.5
WRITTEN, CONSUMED, ASLEEP = 64, 128, 192


class Memory:
    """One ring's memory, seen from both ends and from a hostile peer."""

    def __init__(self, capacity: int, policy: Overrun) -> None:
        self.header = memoryview(bytearray(HEADER_BYTES))
        self.data = memoryview(bytearray(2 * capacity))
        self.producer = Ring.create(self.header, self.data, policy)
        self.consumer = Ring(self.header, self.data, policy)

    def word(self, offset: int) -> int:
        return int.from_bytes(self.header[offset : offset + 8], "little")

    def poke(self, offset: int, value: int) -> None:
        self.header[offset : offset + 8] = value.to_bytes(8, "little")


def pcm(position: int, count: int) -> bytes:
    """Any number of samples whose values tell their position."""
    return b"".join(n.to_bytes(2, "little") for n in range(position % 32768, position % 32768 + count))


# --- against a model ------------------------------------------------------------------------------


class RefuseMachine(RuleBasedStateMachine):
    """A ring that refuses is a bounded queue."""

    @initialize(capacity=st.integers(1, 40))
    def make(self, capacity: int) -> None:
        self.memory = Memory(capacity, Overrun.REFUSE)
        self.model: deque[bytes] = deque()
        self.sent = self.taken = 0

    @rule(count=st.integers(0, 60), odd=st.booleans())
    def write(self, count: int, odd: bool) -> None:
        space = self.memory.producer.capacity - len(self.model)
        assert self.memory.producer.space() == space
        block = pcm(self.sent, count)
        # Half a sample at the end is no sample.
        took = self.memory.producer.write(block + b"\xff" if odd else block)
        assert took == min(count, space)
        self.model.extend(block[2 * at : 2 * at + 2] for at in range(took))
        self.sent += took

    @rule(limit=st.integers(0, 60))
    def read(self, limit: int) -> None:
        expected = b"".join(self.model.popleft() for _ in range(min(limit, len(self.model))))
        assert self.memory.consumer.read(limit) == expected
        self.taken += len(expected) // 2

    @rule(share=st.floats(0, 1))
    def skip(self, share: float) -> None:
        count = int(share * len(self.model))
        self.memory.consumer.skip_to(self.taken + count)
        for _ in range(count):
            self.model.popleft()
        self.taken += count

    @rule(beyond=st.integers(1, 5))
    def skip_where_there_is_nothing(self, beyond: int) -> None:
        for position in (self.sent + beyond, self.taken - beyond):
            with pytest.raises(ValueError, match="cannot skip to"):
                self.memory.consumer.skip_to(position)

    @rule()
    def sleep(self) -> None:
        assert self.memory.consumer.sleep() is (not self.model)
        assert self.memory.producer.consumer_sleeps() is (not self.model)
        assert self.memory.producer.consumer_sleeps() is False

    @rule()
    def attach_again(self) -> None:
        """Both cursors live in the memory: a new view of either end goes on where the old one stood."""
        header, data = self.memory.header, self.memory.data
        self.memory.producer = Ring(header, data, Overrun.REFUSE)
        self.memory.consumer = Ring(header, data, Overrun.REFUSE)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "memory"):
            assert self.memory.consumer.written() == self.memory.producer.produced == self.sent
            assert self.memory.consumer.consumed == self.taken
            assert self.memory.consumer.readable() == len(self.model)


class OverwriteMachine(RuleBasedStateMachine):
    """A ring that overwrites is a window that slides: old samples can be asked for until they are gone."""

    @initialize(capacity=st.integers(1, 40))
    def make(self, capacity: int) -> None:
        self.memory = Memory(capacity, Overrun.OVERWRITE)
        self.guard = max(1, capacity // 16)
        self.window: deque[bytes] = deque(maxlen=capacity - self.guard)
        self.sent = 0

    @rule(count=st.integers(0, 100))
    def write(self, count: int) -> None:
        block = pcm(self.sent, count)
        assert self.memory.producer.write(block) == count
        self.window.extend(block[2 * at : 2 * at + 2] for at in range(count))
        self.sent += count

    @rule(start=st.integers(-5, 400), count=st.integers(-2, 50))
    def peek(self, start: int, count: int) -> None:
        oldest = max(0, self.sent - self.memory.consumer.capacity + self.guard)
        assert self.memory.consumer.oldest() == oldest
        if count < 0 or start < oldest or start + count > self.sent:
            with pytest.raises(OverrunError):
                self.memory.consumer.peek(start, count)
            return
        kept = list(self.window)[start - oldest : start - oldest + count]
        assert self.memory.consumer.peek(start, count) == b"".join(kept)

    @rule(limit=st.integers(0, 50))
    def read(self, limit: int) -> None:
        """Reading in order works until the reader was lapped; then it says so and nothing moves."""
        at, oldest = self.memory.consumer.consumed, self.memory.consumer.oldest()
        if at < oldest:
            with pytest.raises(OverrunError):
                self.memory.consumer.read(limit)
            assert self.memory.consumer.consumed == at
            self.memory.consumer.skip_to(oldest)
            return
        count = min(limit, self.sent - at)
        assert self.memory.consumer.read(limit) == b"".join(list(self.window)[at - oldest : at - oldest + count])
        assert self.memory.consumer.consumed == at + count

    @precondition(lambda self: hasattr(self, "memory"))
    @invariant()
    def counts(self) -> None:
        assert self.memory.consumer.written() == self.sent


TestRefuse = RefuseMachine.TestCase
TestRefuse.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOverwrite = OverwriteMachine.TestCase
TestOverwrite.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.integers(1, 50), st.lists(st.integers(0, 60), max_size=20))
@settings(max_examples=60)
def test_wrap_around(capacity: int, blocks: list[int]) -> None:
    """Sample n lies at n mod capacity, whichever way the blocks fall across the end."""
    memory = Memory(capacity, Overrun.OVERWRITE)
    position = 0
    for count in blocks:
        memory.producer.write(pcm(position, count))
        position += count
    for n in range(max(0, position - capacity), position):
        at = 2 * (n % capacity)
        assert bytes(memory.data[at : at + 2]) == pcm(n, 1)


def test_golden_memory() -> None:
    memory = Memory(4, Overrun.REFUSE)
    memory.producer.write(b"\x01\x02\x03\x04\x05\x06")
    memory.consumer.read(1)
    memory.consumer.read(1)
    assert memory.consumer.sleep() is False
    memory.consumer.read(1)
    assert memory.consumer.sleep()
    assert bytes(memory.header[:16]) == b"RFRING01" + (4).to_bytes(8, "little")
    words = {WRITTEN: 3, CONSUMED: 3, ASLEEP: 1}
    for offset in range(16, HEADER_BYTES, 8):
        assert memory.word(offset) == words.get(offset, 0)
    assert bytes(memory.data) == b"\x01\x02\x03\x04\x05\x06\0\0"


# --- the guard zone -------------------------------------------------------------------------------


def test_what_may_be_being_overwritten_is_not_given_out() -> None:
    memory = Memory(160, Overrun.OVERWRITE)
    guard = 10
    memory.producer.write(pcm(0, 160))
    # Full, and nothing overwritten yet: but the producer's next block is already being copied, for all we know.
    assert memory.consumer.oldest() == guard
    with pytest.raises(OverrunError, match="samples from 9 on are overwritten; the oldest kept is 10"):
        memory.consumer.peek(guard - 1, 1)
    assert memory.consumer.peek(guard, 150) == pcm(guard, 150)


def test_the_producer_never_writes_further_than_the_guard_before_it_says_so() -> None:
    """A reader that copies what is not in the guard zone copies nothing that is being overwritten."""
    memory = Memory(160, Overrun.OVERWRITE)
    watched: list[tuple[int, int]] = []

    class Data:
        """The data as the producer sees it: notes, for each copy, where and what was published by then."""

        def __len__(self) -> int:
            return len(memory.data)

        def __setitem__(self, where: slice, block: memoryview) -> None:
            watched.append((where.start // 2, memory.word(WRITTEN)))
            memory.data[where] = block

    # The one look behind the curtain here: no public way leads between the copy and the cursor.
    memory.producer._data = Data()  # type: ignore[assignment]
    memory.producer.write(pcm(0, 1000))
    assert len(watched) >= 100
    for at, published in watched:
        ahead = (at - published) % 160
        assert ahead < 10


def test_a_reader_that_is_lapped_while_it_copies_is_told() -> None:
    memory = Memory(160, Overrun.OVERWRITE)
    memory.producer.write(pcm(0, 160))

    class Lapping:
        """The data as the consumer sees it: the producer laps the reader in the middle of the copy."""

        def __len__(self) -> int:
            return len(memory.data)

        def __getitem__(self, where: slice) -> memoryview:
            memory.producer.write(pcm(160, 100))
            return memory.data[where]

    memory.consumer._data = Lapping()  # type: ignore[assignment]
    with pytest.raises(OverrunError, match="samples from 20 on are overwritten"):
        memory.consumer.peek(20, 5)


def test_peek_is_bounded_by_the_ring() -> None:
    memory = Memory(32, Overrun.OVERWRITE)
    memory.producer.write(pcm(0, 1000))
    with pytest.raises(OverrunError):
        memory.consumer.peek(0, 33)
    with pytest.raises(OverrunError, match="are not written yet"):
        memory.consumer.peek(1000, 1)
    # A length made up by a peer is not allocated.
    with pytest.raises(OverrunError):
        memory.consumer.peek(0, 1 << 60)


# --- memory that lies -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", list(Overrun))
@pytest.mark.parametrize("claims", [0, 3, 5, 1 << 63, (1 << 64) - 1])
def test_a_claimed_capacity_is_not_believed(policy: Overrun, claims: int) -> None:
    memory = Memory(4, policy)
    memory.poke(8, claims)
    with pytest.raises(RingCorruptedError, match=f"claims {claims} samples, its memory holds 4"):
        Ring(memory.header, memory.data, policy)
    # Who is attached already never looks at it again.
    memory.producer.write(b"abcd")
    assert memory.consumer.peek(0, 2) == b"abcd"


@pytest.mark.parametrize("policy", list(Overrun))
def test_no_ring(policy: Overrun) -> None:
    with pytest.raises(RingCorruptedError, match="no ring in this memory"):
        Ring(memoryview(bytearray(HEADER_BYTES)), memoryview(bytearray(8)), policy)


@pytest.mark.parametrize(
    ("policy", "written", "consumed"),
    [
        (Overrun.REFUSE, 5, 0),
        (Overrun.REFUSE, 0, 1),
        (Overrun.OVERWRITE, 0, 1),
        (Overrun.OVERWRITE, 10, 11),
        # A producer that went on from here would not fit its cursor into the memory.
        (Overrun.REFUSE, (1 << 64) - 1, (1 << 64) - 1),
        (Overrun.OVERWRITE, (1 << 64) - 1, 0),
        (Overrun.OVERWRITE, 1 << 63, 0),
    ],
)
def test_impossible_cursors_are_refused_at_the_door(policy: Overrun, written: int, consumed: int) -> None:
    memory = Memory(4, policy)
    memory.poke(WRITTEN, written)
    memory.poke(CONSUMED, consumed)
    with pytest.raises(RingCorruptedError, match=f"cursors {written} and {consumed} in a ring of 4"):
        Ring(memory.header, memory.data, policy)


@pytest.mark.parametrize("policy", list(Overrun))
@pytest.mark.parametrize("value", [1, (1 << 62) + 1, 1 << 63, (1 << 64) - 1])
def test_a_written_cursor_that_is_impossible(policy: Overrun, value: int) -> None:
    memory = Memory(4, policy)
    memory.producer.write(b"abcd")
    assert memory.consumer.written() == 2
    memory.poke(WRITTEN, value)
    readers = (
        memory.consumer.written,
        memory.consumer.readable,
        memory.consumer.oldest,
        memory.consumer.sleep,
        lambda: memory.consumer.read(1),
        lambda: memory.consumer.peek(0, 1),
        lambda: memory.consumer.skip_to(1),
    )
    for look in readers:
        with pytest.raises(RingCorruptedError, match=f"written cursor {value}; it was 2"):
            look()


def test_a_refusing_ring_never_holds_more_than_itself() -> None:
    memory = Memory(4, Overrun.REFUSE)
    memory.poke(WRITTEN, 5)
    with pytest.raises(RingCorruptedError, match="written cursor 5"):
        memory.consumer.readable()


def test_an_overwriting_ring_may_be_far_ahead() -> None:
    memory = Memory(4, Overrun.OVERWRITE)
    memory.poke(WRITTEN, 1 << 62)
    assert memory.consumer.written() == 1 << 62
    assert memory.consumer.oldest() == (1 << 62) - 3


@pytest.mark.parametrize("value", [0, 4, (1 << 64) - 1])
def test_a_consumed_cursor_that_is_impossible(value: int) -> None:
    """It went back, or is ahead of what was written: else the producer would overwrite what is being read."""
    memory = Memory(4, Overrun.REFUSE)
    memory.producer.write(b"abcdef")
    memory.consumer.read(1)
    assert memory.producer.space() == 2
    memory.poke(CONSUMED, value)
    for look in (memory.producer.space, lambda: memory.producer.write(b"ab")):
        with pytest.raises(RingCorruptedError, match=f"consumed cursor {value}; it was 1 and 3 are written"):
            look()
    assert bytes(memory.data) == b"abcdef\0\0"


def test_an_overwriting_producer_never_looks_at_the_consumer() -> None:
    memory = Memory(4, Overrun.OVERWRITE)
    memory.poke(CONSUMED, (1 << 64) - 1)
    assert memory.producer.write(b"abcdefghij") == 5


# --- another process ------------------------------------------------------------------------------


@contextmanager
def peer(role: str, segment: Segment, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that has attached to ``segment``."""
    command = [sys.executable, str(Path(ring_peer.__file__)), role, str(seconds)]
    command += [str(segment.memfd), str(segment.doorbell)]
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        command, cwd=root, env={"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True,
        pass_fds=(segment.memfd, segment.doorbell),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "attached\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def result(process: subprocess.Popen[str]) -> int:
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return int(output)


@pytest.mark.processes
def test_soak_up() -> None:
    """The caller's audio, much faster than real time: whatever peek gives is whole and is what was written."""
    segment = Segment.create("soak")
    with peer("produce_up", segment, SOAK_S) as process:
        peeks, overruns = ring_peer.watch_up(segment, SOAK_S)
        written = result(process)
    assert written > 4 * segment.up.capacity
    assert peeks > 100
    # The oldest samples were asked for again and again while the producer came for them.
    assert overruns > 0
    assert segment.up.written() == written
    start = segment.up.oldest()
    ring_peer.check(segment.up.peek(start, 32_768), start)
    segment.close()


@pytest.mark.processes
def test_soak_down() -> None:
    """The agent's speech: every sample once and in order, and no wake-up is ever lost."""
    segment = Segment.create("soak")
    with peer("produce_down", segment, SOAK_S) as process:
        consumed, sleeps = ring_peer.consume_down(segment, time.monotonic() + SOAK_S, patience=1.0)
        produced = result(process)
    assert consumed == produced > 10_000
    assert sleeps > 100
    segment.close()


@pytest.mark.processes
def test_falling_asleep_and_writing_at_the_same_moment() -> None:
    segment = Segment.create("lockstep")
    with peer("lockstep", segment, SOAK_S) as process:
        rounds = ring_peer.ask_lockstep(segment, SOAK_S)
        assert rounds > 1000
        process.kill()
    segment.close()


def test_a_consumer_of_overwritten_samples_says_where_it_is_and_may_go_back() -> None:
    memory = Memory(16, Overrun.OVERWRITE)
    memory.producer.write(bytes(2 * 10))
    assert memory.producer.consumed_by_peer() == 0
    for position in (10, 3, 7):
        memory.consumer.seek(position)
        assert memory.producer.consumed_by_peer() == memory.consumer.consumed == position
    for position in (-1, 11):
        with pytest.raises(ValueError, match=f"cannot seek to {position}: 10 are written"):
            memory.consumer.seek(position)
    # Nothing that the peer writes there can lead the producer astray.
    memory.poke(128, (1 << 64) - 1)
    assert memory.producer.consumed_by_peer() == 10


def test_both_sides_of_falling_asleep_have_a_full_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """x86-64 lets a load pass an older store, so without it both could miss each other's news.

    That takes some millions of tries to happen, so the soak above may never meet it.
    """
    memory = Memory(4, Overrun.REFUSE)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "inference.wire.ring._full_fence", lambda: seen.append((memory.word(ASLEEP), memory.word(WRITTEN)))
    )
    assert memory.consumer.sleep()
    # After the store of the one word, before the load of the other.
    assert seen == [(1, 0)]
    memory.producer.write(b"ab")
    assert memory.producer.consumer_sleeps()
    assert seen == [(1, 0), (1, 1)]


def test_the_full_fence_is_a_lock_everywhere() -> None:
    from inference.wire import ring

    assert ring._full_fence is not ring._no_fence
    ring._full_fence()


def test_a_sample_that_came_before_the_fence_keeps_the_consumer_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(4, Overrun.REFUSE)
    monkeypatch.setattr("inference.wire.ring._full_fence", lambda: memory.producer.write(b"ab"))
    assert memory.consumer.sleep() is False
    assert memory.word(ASLEEP) == 0
