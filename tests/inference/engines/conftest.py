from __future__ import annotations

import csv
import wave
from pathlib import Path

import numpy as np
import pytest

from inference.engines.base import Audio, EngineOptions

ROOT = Path(__file__).parents[3]
WEIGHTS = ROOT / "models" / "weights"
SPEECH = ROOT / "tests" / "data" / "speech"
LANGUAGES = ROOT / "tests" / "data" / "languages"


def weights(relative: str) -> Path:
    path = WEIGHTS / relative
    if not path.exists():
        pytest.fail(f"{path} is missing: run scripts/download_models.sh", pytrace=False)
    return path


@pytest.fixture(scope="session")
def whisper_folder() -> Path:
    return weights("whisper-base")


@pytest.fixture(scope="session")
def english_whisper_folder() -> Path:
    """Of the profile cpu-tiny, which the tests do not need otherwise."""
    folder = WEIGHTS / "whisper-tiny.en"
    if not folder.exists():
        pytest.skip("whisper-tiny.en is not installed (host models download cpu-tiny)")
    return folder


@pytest.fixture(scope="session")
def language_model_file() -> Path:
    return weights("smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def voice_file() -> Path:
    return weights("en_US-joe-medium/en_US-joe-medium.onnx")


@pytest.fixture(scope="session")
def options() -> EngineOptions:
    return EngineOptions(device="cpu", threads=2, max_rooms=4, context_tokens=512)


@pytest.fixture(scope="session")
def recordings() -> dict[str, Audio]:
    """Every recording by its file name: float32 at 16 kHz."""
    found = _read(SPEECH)
    assert len(found) == 7
    return found


@pytest.fixture(scope="session")
def languages() -> dict[str, Audio]:
    """Every recording that is not English by its file name: float32 at 16 kHz."""
    found = _read(LANGUAGES)
    assert len(found) == 2
    return found


def _read(folder: Path) -> dict[str, Audio]:
    found = {}
    for path in sorted(folder.glob("*.wav")):
        with wave.open(str(path)) as opened:
            assert (opened.getframerate(), opened.getnchannels(), opened.getsampwidth()) == (16_000, 1, 2)
            samples = np.frombuffer(opened.readframes(opened.getnframes()), np.int16)
        found[path.name] = samples.astype(np.float32) / 32_768
    return found


@pytest.fixture(scope="session")
def transcripts() -> dict[str, str]:
    with (SPEECH / "transcripts.tsv").open(encoding="utf-8", newline="") as opened:
        return {row["file"]: row["transcript"] for row in csv.DictReader(opened, delimiter="\t")}
