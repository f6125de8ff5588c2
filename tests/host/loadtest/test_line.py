"""The line between a job and a caller: bytes both ways, one at a time, and what is no frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.job import line
from host.job.room import Side

GOLDEN = {
    "ROOM": (line.pack(line.Kind.ROOM, b"one"), "01 03000000 6f6e65"),
    "RATE": (line.pack(line.Kind.RATE, line.number(22050)), "02 04000000 22560000"),
    "CLEAR": (line.pack(line.Kind.CLEAR, line.number(2)), "04 04000000 02000000"),
    "TICK": (
        line.Tick(5, 6, 7, b"\x01\x02").pack(),
        "07 16000000 0500000000000000 0600000000000000 07000000 0102",
    ),
    "TEXT": (line.Text("agent", "a-1", "Hé", True).pack(), "06 09000000 01 01 03 612d31 48c3a9"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    frame, golden = GOLDEN[name]
    assert frame.hex() == golden.replace(" ", "")


def test_frames_come_out_whole_whatever_the_pieces() -> None:
    stream = b"".join(frame for frame, _ in GOLDEN.values())
    whole = line.Frames().push(stream)
    assert [kind.name for kind, _ in whole] == list(GOLDEN)
    pieces = line.Frames()
    assert [frame for byte in stream for frame in pieces.push(bytes([byte]))] == whole


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 2**32 - 1), st.binary(max_size=700))
def test_a_tick_comes_back(heard: int, dropped: int, cleared: int, pcm: bytes) -> None:
    ((kind, body),) = line.Frames().push(line.Tick(heard, dropped, cleared, pcm).pack())
    assert (kind, line.Tick.unpack(body)) == (line.Kind.TICK, line.Tick(heard, dropped, cleared, pcm))


@given(st.sampled_from(["user", "agent"]), st.text(max_size=20), st.text(max_size=200), st.booleans())
def test_a_text_comes_back(side: Side, segment: str, text: str, final: bool) -> None:
    ((_, body),) = line.Frames().push(line.Text(side, segment, text, final).pack())
    assert line.Text.unpack(body) == line.Text(side, segment, text, final)


@pytest.mark.parametrize(
    "data",
    [b"\x00\x00\x00\x00\x00", b"\x63\x00\x00\x00\x00", b"\x03\xff\xff\xff\xff"],
    ids=["kind 0", "kind 99", "too long"],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(line.LineError, match="no frame"):
        line.Frames().push(data)


@pytest.mark.parametrize("body", [b"", b"\x01\x02\x00", b"\x01\x01\x05ab", b"\x01\x01\x01\xff"])
def test_a_text_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(line.LineError):
        line.Text.unpack(body)


def test_a_tick_or_number_that_is_cut_off_is_refused() -> None:
    with pytest.raises(line.LineError, match="TICK of 19"):
        line.Tick.unpack(bytes(19))
    with pytest.raises(line.LineError, match="number of 3"):
        line.read_number(bytes(3))
