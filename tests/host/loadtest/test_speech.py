"""Recordings: where the voice in them begins and ends, and where a speaker may hesitate."""

from __future__ import annotations

import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from host.errors import ConfigError
from host.loadtest.callers import Turn
from host.loadtest.speech import default_folder, read_recordings, voiced_stretches

RATE = 16_000


def write(folder: Path, pieces: list[tuple[float, float]]) -> None:
    """``pieces``: seconds and loudness, 0 to 1, of one recording."""
    noise = np.random.default_rng(1)
    audio = np.concatenate([loud * noise.uniform(-1, 1, round(seconds * RATE)) for seconds, loud in pieces])
    with wave.open(str(folder / "one.wav"), "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes((audio * 30_000).astype("<i2").tobytes())
    (folder / "transcripts.tsv").write_text("file\ttranscript\none.wav\tSome words.\n")


def test_a_clip_ends_with_its_last_voiced_sample(tmp_path: Path) -> None:
    write(tmp_path, [(1.0, 0.001), (1.5, 0.8), (1.0, 0.001)])
    (recording,) = read_recordings(tmp_path, longest_s=10).values()
    clip = recording.clip
    assert (clip.begin_s, clip.end_s, clip.seconds) == (
        pytest.approx(0.15),
        pytest.approx(1.65),
        pytest.approx(1.8, abs=0.01),
    )


def test_breaths_and_clicks_are_no_voice(tmp_path: Path) -> None:
    write(tmp_path, [(0.1, 0.06), (0.5, 0), (1.5, 0.8), (0.5, 0), (0.03, 0.8), (0.3, 0)])
    (recording,) = read_recordings(tmp_path, longest_s=10).values()
    assert recording.clip.end_s - recording.clip.begin_s == pytest.approx(1.5, abs=0.02)


def test_what_is_all_short_is_voice_all_the_same() -> None:
    assert voiced_stretches(np.array([0.0, 1.0, 0.0] + [0.0] * 30 + [1.0])) == [(1, 2), (33, 34)]


def test_a_speaker_hesitates_where_it_is_quiet(tmp_path: Path) -> None:
    write(tmp_path, [(0.5, 0.8), (0.1, 0), (0.5, 0.8), (0.4, 0), (0.5, 0.8)])
    (recording,) = read_recordings(tmp_path, longest_s=10).values()
    (pause_s,) = recording.clip.pauses_s
    assert pause_s == pytest.approx(0.55, abs=0.02)
    said = recording.said(Turn(1, recording.clip, 10, 1, hesitation_s=0.25, pause_s=pause_s))
    assert len(said) == len(recording.samples) + RATE // 4
    quiet = said[round(pause_s * RATE) : round((pause_s + 0.25) * RATE)]
    assert not quiet.any()


def test_the_recordings_of_the_repository() -> None:
    recordings = read_recordings(default_folder(), longest_s=6)
    assert len(recordings) >= 5
    for recording in recordings.values():
        assert 0 <= recording.clip.begin_s <= 0.16
        assert 0.5 < recording.clip.end_s <= recording.clip.seconds <= 6
        assert len(recording.transcript.split()) >= 4


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_recordings(tmp_path, longest_s=6)
    write(tmp_path, [(1.0, 0.0)])
    with pytest.raises(ConfigError, match=r"one.wav: it is silent"):
        read_recordings(tmp_path, longest_s=6)
    write(tmp_path, [(1.0, 0.8)])
    with pytest.raises(ConfigError, match=r"no recording of 0.5 s or less"):
        read_recordings(tmp_path, longest_s=0.5)
    (tmp_path / "transcripts.tsv").write_text("file\ttext\none.wav\tSome words.\n")
    with pytest.raises(ConfigError, match="columns file and transcript"):
        read_recordings(tmp_path, longest_s=6)
    shutil.rmtree(tmp_path)
