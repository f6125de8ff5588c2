"""What the listener heard of what was sent, sample for sample."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.console.sound import SILENCE_DB, Heard, Loudspeaker, Microphone, level_db

RATE = 1000


def pcm(samples: int, value: int = 1) -> bytes:
    return struct.pack("<h", value) * samples


def test_speech_then_silence() -> None:
    loudspeaker = Loudspeaker(RATE)
    loudspeaker.push(pcm(30))
    assert loudspeaker.pull(20) == pcm(20)
    assert loudspeaker.pull(20) == pcm(10) + pcm(10, 0)
    assert loudspeaker.pull(5) == pcm(5, 0)
    assert loudspeaker.take_played() == pcm(30) + pcm(15, 0)
    assert loudspeaker.take_played() == b""


def test_heard_is_late_by_the_devices_latency() -> None:
    loudspeaker = Loudspeaker(RATE)
    loudspeaker.set_latency(0.04)
    loudspeaker.push(pcm(30))
    heard = []
    for _ in range(5):
        loudspeaker.pull(20)
        heard.append(loudspeaker.heard().heard)
    assert heard == [0, 0, 20, 30, 30]


def test_what_the_device_has_is_heard_and_the_rest_is_dropped() -> None:
    loudspeaker = Loudspeaker(RATE)
    loudspeaker.set_latency(0.04)
    loudspeaker.push(pcm(100))
    loudspeaker.pull(20)
    loudspeaker.clear(1)
    assert loudspeaker.heard() == Heard(0, 80, 1)
    assert loudspeaker.pull(20) == pcm(20, 0)
    loudspeaker.pull(20)
    assert loudspeaker.heard() == Heard(20, 80, 1)


@given(st.lists(st.tuples(st.sampled_from(["push", "pull", "clear"]), st.integers(0, 50))), st.integers(0, 60))
def test_every_sample_is_heard_or_dropped(steps: list[tuple[str, int]], latency: int) -> None:
    loudspeaker = Loudspeaker(RATE)
    loudspeaker.set_latency(latency / RATE)
    sent = 0
    for what, samples in steps:
        match what:
            case "push":
                loudspeaker.push(pcm(samples))
                sent += samples
            case "pull":
                assert len(loudspeaker.pull(samples)) == 2 * samples
            case _:
                loudspeaker.clear(samples)
        heard = loudspeaker.heard()
        assert heard.heard + heard.dropped <= sent
    loudspeaker.pull(50 * len(steps) + 1)
    loudspeaker.pull(latency + 1)
    heard = loudspeaker.heard()
    assert heard.heard + heard.dropped == sent


def test_it_sounds_a_little_longer_than_it_speaks() -> None:
    loudspeaker = Loudspeaker(RATE)
    assert not loudspeaker.is_sounding()
    loudspeaker.push(pcm(20))
    assert loudspeaker.is_sounding()
    loudspeaker.pull(20)
    sounding = 0
    while loudspeaker.is_sounding():
        loudspeaker.pull(20)
        sounding += 20
    assert 100 <= sounding <= 1000


def test_blocks_of_twenty_milliseconds() -> None:
    microphone = Microphone()
    assert microphone.push(bytes(600)) == []
    assert [len(block) for block in microphone.push(bytes(1000))] == [640, 640]
    assert [len(block) for block in microphone.push(bytes(320))] == [640]


@pytest.mark.parametrize(
    ("samples", "level"), [(b"", SILENCE_DB), (bytes(640), SILENCE_DB), (pcm(320, 32767), 0.0), (pcm(320, 3277), -20.0)]
)
def test_levels(samples: bytes, level: float) -> None:
    assert math.isclose(level_db(samples), level, abs_tol=0.01)
