"""``host talk`` as a user runs it: the command, the real process tree, the real models, real recordings."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_whisper import WhisperModel
from listening import WEIGHTS

from tests.word_errors import plain, word_errors

pytestmark = [pytest.mark.e2e, pytest.mark.models]

HOST = str(Path(sys.executable).parent / "host")
SPEECH = Path(__file__).parents[1] / "data" / "speech"
NAMES = (
    "set-a-timer.wav",
    "go-forward-ten-meters.wav",
    "sense-and-sensibility-0930.wav",
    "arctic-aew-a0003.wav",
    "lj001-0005.wav",
)
SETTINGS = """
[session]
# The same words every time, so that the judge of the audio is what is tested and not chance.
temperature = 0.0
max_reply_tokens = 40
"""
KEYS = {"transcript", "reply", "audio_s", "endpointing_ms", "stt_ms", "ttft_ms", "ttfa_ms", "response_ms"}
TIMEOUT_S = 240


def talk(tmp_path: Path, *waves: str, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    config = tmp_path / "roomful.toml"
    config.write_text(SETTINGS)
    command = [HOST, "talk", *(str(SPEECH / name) for name in waves)]
    command += ["--out", str(tmp_path / "reply.wav"), "--json", "--config", str(config), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def whisper() -> WhisperModel:
    return WhisperModel(str(WEIGHTS), device="cpu", compute_type="int8", cpu_threads=2)


def stock_transcript(whisper: WhisperModel, audio: str | np.ndarray[Any, np.dtype[np.float32]]) -> str:
    segments, _ = whisper.transcribe(audio, language="en")
    return " ".join(segment.text.strip() for segment in segments)


def spoken(reply: Path, start_s: float, end_s: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The stretch of the reply file, at Whisper's 16 kHz."""
    with wave.open(str(reply)) as opened:
        rate = opened.getframerate()
        samples = np.frombuffer(opened.readframes(opened.getnframes()), np.int16).astype(np.float32) / 32_768
    stretch = samples[int(start_s * rate) : int(end_s * rate)]
    positions = np.arange(0, len(stretch), rate / 16_000)
    return np.interp(positions, np.arange(len(stretch)), stretch).astype(np.float32)


def test_five_recordings_are_heard_and_answered_in_speech(tmp_path: Path, whisper: WhisperModel) -> None:
    with (SPEECH / "transcripts.tsv").open(newline="") as table:
        said = {row["file"]: row["transcript"] for row in csv.DictReader(table, delimiter="\t")}
    turns = talk(tmp_path, *NAMES)
    assert len(turns) == len(NAMES)
    assert all(turn.keys() >= KEYS for turn in turns)

    heard = {name: turn["transcript"] for name, turn in zip(NAMES, turns, strict=True)}
    stock = {name: stock_transcript(whisper, str(SPEECH / name)) for name in NAMES}
    errors, stock_errors = word_errors(said, heard), word_errors(said, stock)
    words = sum(len(plain(said[name]).split()) for name in NAMES)
    print(f"word errors of {words}: ours {errors}, stock {stock_errors}")  # noqa: T201
    assert errors <= stock_errors

    replies = {name: turn["reply"] for name, turn in zip(NAMES, turns, strict=True)}
    read_back = {
        name: stock_transcript(whisper, spoken(tmp_path / "reply.wav", turn["out_start_s"], turn["out_end_s"]))
        for name, turn in zip(NAMES, turns, strict=True)
    }
    reply_words = sum(len(plain(text).split()) for text in replies.values())
    wrong = word_errors(replies, read_back)
    print(f"read back: {wrong} errors in {reply_words} words: {replies} {read_back}")  # noqa: T201
    assert reply_words >= len(NAMES)
    assert wrong / reply_words <= 0.15

    for turn in turns:
        # The order of the stages, not their speed: this machine may be busy.
        assert turn["endpointing_ms"] >= 300 - 30, "one block of audio early at most"
        assert 0 <= turn["ttft_ms"] <= turn["ttfa_ms"]
        assert turn["response_ms"] >= turn["endpointing_ms"] + turn["ttfa_ms"] - 50
        assert turn["reply_audio_s"] > 0.5


def test_an_interrupted_answer_ends_where_it_was_heard_to_end(tmp_path: Path, whisper: WhisperModel) -> None:
    turns = talk(tmp_path, "lj001-0005.wav", "set-a-timer.wav", options=("--interrupt-after", "0.6"))
    first, second = turns[0], turns[-1]
    assert first["interrupted"]
    assert 0 <= first["barge_in_ms"] <= 100, "the agent must be silent within 100 ms of the speech-started event"
    assert "timer" in second["transcript"].lower()
    assert not second["interrupted"]
    # The history keeps what was heard: Whisper hears the same words in what was really played.
    played = stock_transcript(whisper, spoken(tmp_path / "reply.wav", first["out_start_s"], first["out_end_s"]))
    kept, heard = plain(first["reply"]).split(), plain(played).split()
    assert kept
    assert abs(len(kept) - len(heard)) <= 2, (kept, heard)
