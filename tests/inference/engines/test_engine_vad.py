from __future__ import annotations

import numpy as np
import pytest

from inference.engines.base import VAD_WINDOW, Audio, EngineError, EngineOptions
from inference.engines.vad import SileroVoiceActivity

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def vad() -> SileroVoiceActivity:
    engine = SileroVoiceActivity()
    engine.load(EngineOptions(device="cpu", threads=1, max_rooms=4))
    return engine


@pytest.fixture(autouse=True)
def _forget(vad: SileroVoiceActivity) -> None:
    for slot in range(4):
        vad.reset(slot)


def windows_of(audio: Audio) -> Audio:
    return audio[: len(audio) // VAD_WINDOW * VAD_WINDOW].reshape(-1, VAD_WINDOW)


def alone(vad: SileroVoiceActivity, slot: int, windows: Audio) -> Audio:
    return np.concatenate([vad.probabilities([slot], window[None]) for window in windows])


def test_speech_is_found_and_silence_is_not(vad: SileroVoiceActivity, recordings: dict[str, Audio]) -> None:
    speech = windows_of(recordings["go-forward-ten-meters.wav"])
    assert np.mean(alone(vad, 0, speech) > 0.5) > 0.3
    assert alone(vad, 1, np.zeros((60, VAD_WINDOW), np.float32)).max() < 0.2


def test_a_room_hears_the_same_alone_and_beside_others(vad: SileroVoiceActivity, recordings: dict[str, Audio]) -> None:
    rooms = [windows_of(audio)[:60] for audio in list(recordings.values())[:4]]
    expected = [alone(vad, slot, room) for slot, room in enumerate(rooms)]
    for slot in range(4):
        vad.reset(slot)
    # Room 0 is there all the time; the others join late, leave early, pause, and change their row.
    present = {0: range(60), 1: range(10, 50), 2: range(60), 3: range(5, 20)}
    order = np.random.default_rng(7)
    heard: dict[int, list[float]] = {slot: [] for slot in range(4)}
    for tick in range(60):
        slots = [slot for slot in order.permutation(4).tolist() if tick in present[slot]]
        if slots == [] or (tick % 7 == 3 and slots != [0]):
            slots = [slot for slot in slots if slot != 2]  # room 2's audio is late: its next window comes later
        batch = np.stack([rooms[slot][len(heard[slot])] for slot in slots])
        for slot, probability in zip(slots, vad.probabilities(slots, batch), strict=True):
            heard[slot].append(float(probability))
    assert len(heard[0]) == 60
    assert len(heard[2]) < 60
    for slot, probabilities in heard.items():
        # To the last bit: every forward has the same shape, whoever is there.
        np.testing.assert_array_equal(np.float32(probabilities), expected[slot][: len(probabilities)])


def test_reset_forgets_one_room_only(vad: SileroVoiceActivity, recordings: dict[str, Audio]) -> None:
    room = windows_of(recordings["set-a-timer.wav"])[:40]
    fresh = alone(vad, 0, room)
    alone(vad, 1, room)
    vad.reset(0)
    np.testing.assert_array_equal(alone(vad, 0, room), fresh)
    again = alone(vad, 1, room)
    assert np.abs(again - fresh).max() > 1e-3


def test_samples_that_are_not_numbers_do_not_stay_in_the_state(vad: SileroVoiceActivity) -> None:
    vad.probabilities([0], np.full((1, VAD_WINDOW), np.nan, np.float32))
    vad.probabilities([0], np.full((1, VAD_WINDOW), np.inf, np.float32))
    assert np.isfinite(vad.probabilities([0], np.zeros((1, VAD_WINDOW), np.float32))).all()


def test_more_rooms_than_one_forward_holds(recordings: dict[str, Audio]) -> None:
    engine = SileroVoiceActivity()
    engine.load(EngineOptions(device="cpu", threads=1, max_rooms=40))
    room = windows_of(recordings["set-a-timer.wav"])[:20]
    others = np.random.default_rng(1).standard_normal((39, VAD_WINDOW)).astype(np.float32) * 0.1
    expected = alone(engine, 39, room)
    engine.reset(39)
    slots = [*range(39), 39]
    crowded = [engine.probabilities(slots, np.vstack([others, window]))[39] for window in room]
    np.testing.assert_array_equal(np.float32(crowded), expected)
    engine.close()


def test_no_rooms_is_no_work(vad: SileroVoiceActivity) -> None:
    assert vad.probabilities([], np.zeros((0, VAD_WINDOW), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("slots", "shape"), [([0], (1, 256)), ([0], (2, 512)), ([4], (1, 512)), ([-1], (1, 512)), ([1, 1], (2, 512))]
)
def test_wrong_calls_are_refused(vad: SileroVoiceActivity, slots: list[int], shape: tuple[int, int]) -> None:
    with pytest.raises(EngineError, match="voice activity"):
        vad.probabilities(slots, np.zeros(shape, np.float32))


def test_before_load_and_after_close_it_says_so() -> None:
    engine = SileroVoiceActivity()
    with pytest.raises(EngineError, match="not loaded"):
        engine.reset(0)
    engine.load(EngineOptions(device="cpu", threads=1, max_rooms=1))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="not loaded"):
        engine.probabilities([0], np.zeros((1, VAD_WINDOW), np.float32))
