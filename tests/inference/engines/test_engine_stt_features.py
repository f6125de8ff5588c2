"""Log-mel features against faster-whisper's own, in a batch and alone, with numpy and with torch."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.engines.base import SAMPLE_RATE, Audio
from inference.engines.whisper_features import FRAMES_PER_S, BlockLogMel, TorchLogMel

pytestmark = pytest.mark.models

FRAMES = 10 * FRAMES_PER_S


@pytest.fixture(scope="module", params=[80, 128])
def filters(request: pytest.FixtureRequest) -> NDArray[np.float32]:
    from faster_whisper.feature_extractor import FeatureExtractor

    found: NDArray[np.float32] = FeatureExtractor(feature_size=request.param).mel_filters
    return found


@pytest.fixture(scope="module")
def audios(recordings: dict[str, Audio]) -> list[Audio]:
    """Real speech; a millisecond of it; one sample more than a block; and one that fills the window."""
    speech = recordings["sense-and-sensibility-0930.wav"]
    long = np.resize(recordings["jfk-ask-not.wav"], 10 * SAMPLE_RATE)
    return [
        *(audio for audio in recordings.values() if len(audio) < 10 * SAMPLE_RATE),
        speech[:16],
        speech[:40961],
        long,
    ]


def theirs(audio: Audio, filters: NDArray[np.float32]) -> NDArray[np.float32]:
    """faster-whisper's features of ``audio`` followed by real silence, up to the window's end and beyond."""
    from faster_whisper.feature_extractor import FeatureExtractor

    silence = np.zeros(FRAMES * 160 + SAMPLE_RATE - len(audio), np.float32)
    found: NDArray[np.float32] = FeatureExtractor(feature_size=len(filters))(np.concatenate([audio, silence]))
    return found[:, :FRAMES]


def test_a_batch_is_what_faster_whisper_makes_one_by_one(filters: NDArray[np.float32], audios: list[Audio]) -> None:
    ours = BlockLogMel(filters)(audios, FRAMES)
    assert ours.shape == (len(audios), len(filters), FRAMES)
    assert ours.dtype == np.float32
    for row, audio in zip(ours, audios, strict=True):
        np.testing.assert_allclose(row, theirs(audio, filters), atol=2e-5)


def test_a_row_does_not_know_its_neighbours(filters: NDArray[np.float32], audios: list[Audio]) -> None:
    log_mel = BlockLogMel(filters)
    together = log_mel(audios, FRAMES)
    for row, audio in zip(together, audios, strict=True):
        np.testing.assert_array_equal(row, log_mel([audio], FRAMES)[0])


def test_torch_makes_the_same(filters: NDArray[np.float32], audios: list[Audio]) -> None:
    with_torch = TorchLogMel(filters, "cpu")(audios, FRAMES)
    assert with_torch.dtype == np.float32
    np.testing.assert_allclose(with_torch, BlockLogMel(filters)(audios, FRAMES), atol=2e-4)
