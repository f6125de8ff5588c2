"""What a caller hears, from bytes."""

from __future__ import annotations

import itertools
from array import array

import pytest

from host.loadtest.ear import TICK_S, Ear, TrackEar
from host.loadtest.timeline import Event, Gap, Heard

RATE = 22_050


def voice(seconds: float) -> bytes:
    return array("h", itertools.islice(itertools.cycle((5000, -5000)), round(seconds * RATE))).tobytes()


def quiet(seconds: float) -> bytes:
    return bytes(2 * round(seconds * RATE))


class Hearing:
    def __init__(self) -> None:
        self.ear = Ear(RATE)
        self.events: list[Event] = []
        self.now = 100.0

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.events += self.ear.tick(self.now)
            self.now += TICK_S

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def test_a_stretch_lies_where_its_samples_lie() -> None:
    hearing = Hearing()
    hearing.ear.push(quiet(0.513) + voice(1.004) + quiet(1.0))
    hearing.run(3)
    begun, over = hearing.of(Heard)
    assert begun == Heard(pytest.approx(100.513, abs=1e-4))
    assert over == Heard(pytest.approx(100.513, abs=1e-4), pytest.approx(101.517, abs=1e-4))


def test_a_short_pause_is_a_part_of_speech_and_a_long_one_is_not() -> None:
    hearing = Hearing()
    hearing.ear.push(voice(0.5) + quiet(0.25) + voice(0.5) + quiet(0.5) + voice(0.5))
    hearing.run(3)
    ended = [event for event in hearing.of(Heard) if isinstance(event, Heard) and event.end_s is not None]
    assert [(event.begin_s, event.end_s) for event in ended] == [
        (pytest.approx(100.0, abs=1e-3), pytest.approx(101.25, abs=1e-3)),
        (pytest.approx(101.75, abs=1e-3), pytest.approx(102.25, abs=1e-3)),
    ]


def test_every_sample_is_heard_once_and_counted() -> None:
    hearing = Hearing()
    speech = voice(1.23)
    hearing.ear.push(speech)
    hearing.run(2)
    assert hearing.ear.heard == len(speech) // 2
    assert hearing.ear.take_answer() == speech
    assert hearing.ear.take_answer() == b""


def test_nothing_to_hear_in_the_middle_of_an_answer_is_an_underrun() -> None:
    hearing = Hearing()
    hearing.ear.agent_does("speaking")
    hearing.ear.push(voice(0.5))
    hearing.run(0.8)
    hearing.ear.push(voice(0.5))
    hearing.run(1)
    (gap,) = hearing.of(Gap)
    assert gap == Gap(pytest.approx(100.5, abs=1e-3), pytest.approx(300, abs=1))


def test_silence_after_an_answer_is_none() -> None:
    hearing = Hearing()
    hearing.ear.push(voice(0.5))
    hearing.run(0.8)
    hearing.ear.agent_does("listening")
    hearing.run(3)
    hearing.ear.agent_does("thinking")
    hearing.ear.push(voice(0.5))
    hearing.run(1)
    assert hearing.of(Gap) == []


def test_nor_is_an_answer_that_was_silenced() -> None:
    hearing = Hearing()
    hearing.ear.push(voice(1.0))
    hearing.run(0.4)
    hearing.ear.clear(7)
    hearing.run(1)
    hearing.ear.push(voice(0.5))
    hearing.run(1)
    assert hearing.of(Gap) == []
    assert hearing.ear.cleared == 7
    assert hearing.ear.heard + hearing.ear.dropped == round(1.5 * RATE)
    assert hearing.ear.heard == round(0.9 * RATE)


def test_a_stretch_that_goes_on_ends_with_the_call() -> None:
    hearing = Hearing()
    hearing.ear.push(voice(1.0))
    hearing.run(0.5)
    assert hearing.ear.hears
    assert hearing.ear.finish() == [Heard(pytest.approx(100.0, abs=1e-3), pytest.approx(100.5, abs=1e-3))]
    assert hearing.ear.finish() == []


# --- a WebRTC track ---------------------------------------------------------------------------------


class Track:
    """A track that plays all the time, 20 ms a tick."""

    def __init__(self) -> None:
        self.ear = TrackEar(RATE)
        self.events: list[Event] = []
        self.now = 100.0

    def play(self, pcm: bytes) -> None:
        size = 2 * round(RATE * TICK_S)
        for start in range(0, len(pcm), size):
            self.ear.push(pcm[start : start + size])
            self.now += len(pcm[start : start + size]) / 2 / RATE
            self.events += self.ear.tick(self.now)


def hiss(seconds: float) -> bytes:
    return array("h", itertools.islice(itertools.cycle((3, -3)), round(seconds * RATE))).tobytes()


def test_a_track_is_heard_where_its_samples_lie() -> None:
    track = Track()
    track.play(quiet(0.5) + voice(1.0) + quiet(0.5))
    assert track.events == [
        Heard(pytest.approx(100.5, abs=0.002)),
        Heard(pytest.approx(100.5, abs=0.002), pytest.approx(101.5, abs=0.002)),
    ]


def test_a_track_that_is_late_is_heard_where_it_would_have_been() -> None:
    track = Track()
    for _ in range(50):
        track.ear.push(voice(TICK_S))
    # The process stood still for a second.
    begun, *_ = track.ear.tick(101.0)
    assert begun == Heard(pytest.approx(100.0, abs=0.002))


def test_digital_silence_in_the_middle_of_an_answer_is_an_underrun() -> None:
    track = Track()
    track.ear.agent_does("speaking")
    track.play(voice(0.5) + quiet(0.2) + voice(0.5))
    (gap,) = [event for event in track.events if isinstance(event, Gap)]
    assert gap == Gap(pytest.approx(100.5, abs=0.03), pytest.approx(200, abs=41))


@pytest.mark.parametrize("pause", [hiss(0.3), quiet(0.04)], ids=["a voice that pauses", "a frame or two"])
def test_a_pause_of_the_voice_is_none(pause: bytes) -> None:
    track = Track()
    track.ear.agent_does("speaking")
    track.play(voice(0.5) + pause + voice(0.5))
    assert not any(isinstance(event, Gap) for event in track.events)


def test_silence_between_answers_is_none_and_is_not_kept() -> None:
    track = Track()
    track.play(quiet(0.5))
    track.ear.agent_does("speaking")
    track.play(quiet(0.1) + voice(0.5))
    track.ear.agent_does("listening")
    assert len(track.ear.take_answer()) / 2 / RATE == pytest.approx(0.5, abs=TICK_S)
    track.play(quiet(0.5))
    track.ear.agent_does("speaking")
    track.play(voice(0.5))
    assert not any(isinstance(event, Gap) for event in track.events)
