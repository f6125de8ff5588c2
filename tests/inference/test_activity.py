"""The table of one room's speech and silence, window by window."""

import pytest

from inference.activity import Phase, VoiceActivity
from inference.wire.messages import Listen, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted

W = 512


def run(probabilities: list[float], **settings: float) -> list[tuple[int, object]]:
    """The events with the index of the window that gave them."""
    activity = VoiceActivity(Listen(True, **settings))  # type: ignore[arg-type]
    events = []
    for index, probability in enumerate(probabilities):
        event = activity.observe(probability, index * W, (index + 1) * W)
        if event is not None:
            events.append((index, event))
    return events


def test_speech_starts_after_the_minimum_and_is_dated_back_to_its_first_window() -> None:
    assert run([0.1, 0.9, 0.9, 0.9], min_speech_ms=64) == [(2, SpeechStarted(W))]


def test_a_click_is_not_speech() -> None:
    assert run([0.9, 0.1, 0.9, 0.1, 0.9, 0.1], min_speech_ms=64) == []


def test_a_pause_then_the_end_are_dated_back_to_the_last_voiced_sample() -> None:
    events = run([0.9] * 4 + [0.1] * 10, min_speech_ms=64, pause_ms=96, min_silence_ms=256)
    assert events == [
        (1, SpeechStarted(0)),
        (6, SpeechPaused(0, 4 * W)),
        (11, SpeechEnded(0, 4 * W)),
    ]


def test_speech_that_goes_on_after_a_pause_is_resumed_and_ends_once() -> None:
    events = run([0.9] * 4 + [0.1] * 4 + [0.9] * 2 + [0.1] * 8, pause_ms=96, min_silence_ms=256)
    assert events == [
        (1, SpeechStarted(0)),
        (6, SpeechPaused(0, 4 * W)),
        (8, SpeechResumed(8 * W)),
        (12, SpeechPaused(0, 10 * W)),
        (17, SpeechEnded(0, 10 * W)),
    ]


def test_a_dip_shorter_than_the_pause_is_not_reported() -> None:
    assert run([0.9] * 4 + [0.1, 0.1] + [0.9] * 4, pause_ms=96) == [(1, SpeechStarted(0))]


@pytest.mark.parametrize("between", [0.36, 0.49])
def test_between_the_thresholds_speech_goes_on_and_silence_stays(between: float) -> None:
    assert run([between] * 20, activation=0.5) == []
    assert run([0.9, 0.9] + [between] * 20, activation=0.5) == [(1, SpeechStarted(0))]


def test_between_the_thresholds_a_silence_that_began_goes_on() -> None:
    events = run([0.9, 0.9, 0.1] + [0.4] * 3, activation=0.5, pause_ms=96)
    assert events == [(1, SpeechStarted(0)), (4, SpeechPaused(0, 2 * W))]


def test_after_the_end_the_room_is_as_new() -> None:
    activity = VoiceActivity(Listen(True))
    for index, probability in enumerate([0.9] * 3 + [0.1] * 12):
        activity.observe(probability, index * W, (index + 1) * W)
    assert activity.phase is Phase.SILENCE
    assert activity.silent_since is None
