"""The real models of the turn-taking bench, one request at a time, and everything they said kept on disk.

Each answer is kept with the seconds that it took, under a hash of what went in, of the model and of the code
that ran it, so that a second run, with other rules of turn taking, takes seconds. ``Models`` loads an engine when
it is first needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import ROOT
from turns_sounds import RATE, Audio, Sound

from host.job.resample import resample
from host.job.settings import SessionSettings
from host.job.speech import PhraseCutter
from host.threads import thread_teams
from inference.engines.base import VAD_WINDOW, EngineOptions, Message, Sampling, SpeechOut, Utterance
from models.catalog import resolve

SYSTEM = "You are a helpful voice assistant. Answer in one or two short sentences."
REPLY_TOKENS = 48
CONTEXT_TOKENS = 2048
BACKCHANNELS = ("Mhm.", "Yeah.", "Uh-huh.", "Okay.", "Right.", "I see.", "Sure.", "Oh.")
OTHER_SPEAKER = 1.15
"""The agent's own voice says the back-channels, higher and faster by so much: another speaker."""

_CODE = {
    "vad": ("vad.py",),
    "stt": ("stt.py", "whisper_audio.py", "whisper_features.py", "whisper_search.py"),
    "llm": ("prompt.py", "turn_ends.py", "turn_end_examples.py"),
    "tts": (),
}


@dataclass(frozen=True)
class Taken:
    """What came out, and the seconds that it took."""

    value: Any
    seconds: float


@dataclass(frozen=True)
class Heard:
    """A transcript as Whisper gives it."""

    text: str
    avg_logprob: float
    no_speech_prob: float


class Kept:
    """Results by key in a file of lines, which is only ever appended to."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._kept: dict[str, Taken] = {}
        self.computed = 0
        if path.is_file():
            for line in path.read_text().splitlines():
                key, value, seconds = json.loads(line)
                self._kept[key] = Taken(value, seconds)

    def get(self, key: str, compute: Callable[[], Any]) -> Taken:
        """What is kept under ``key``; otherwise what ``compute`` returns, and how long it took."""
        if key not in self._kept:
            began = time.perf_counter()
            value = compute()
            taken = value if isinstance(value, Taken) else Taken(value, time.perf_counter() - began)
            self._kept[key] = taken
            self.computed += 1
            with self._path.open("a") as opened:
                opened.write(json.dumps([key, taken.value, round(taken.seconds, 5)]) + "\n")
            if self.computed % 50 == 0:
                print(f"  {self.computed} results of the models computed", file=sys.stderr, flush=True)
        return self._kept[key]


class Models:
    """The models of ``profile`` on this machine's CPU."""

    def __init__(self, folder: Path, profile: str) -> None:
        self._profile = resolve(profile)
        self._names = {
            "vad": "silero",
            "stt": self._profile.stt.model.name,
            "llm": self._profile.llm.model.name,
            "tts": self._profile.tts.model.name,
        }
        self.kept = Kept(folder / f"{profile}.jsonl")
        self._teams = thread_teams(len(os.sched_getaffinity(0)))
        self._settings = SessionSettings()
        self._code = {kind: _digest(*(_source(name) for name in names)) for kind, names in _CODE.items()}

    # --- what is asked ----------------------------------------------------------------------------------------

    def voice_probabilities(self, sound: Sound) -> NDArray[np.float64]:
        """Of each window of ``sound``, Silero having heard its background before it."""
        taken = self.kept.get(self._key("vad", sound.audio), lambda: self._probabilities(sound.audio))
        return np.array(taken.value)

    def voiced(self, audio: Audio) -> tuple[float, float]:
        """Seconds of the first and the last window of ``audio`` that is voice."""
        taken = self.kept.get(
            self._key("vad", audio, "voiced"), lambda: self._probabilities(np.pad(audio, (0, VAD_WINDOW)))
        )
        windows = np.flatnonzero(np.array(taken.value) >= self._settings.activation)
        return windows[0] * VAD_WINDOW / RATE, (windows[-1] + 1) * VAD_WINDOW / RATE

    def transcribe(self, audio: Audio) -> Taken:
        """``Heard`` of ``audio``."""
        taken = self.kept.get(self._key("stt", audio), lambda: self._transcribe(audio))
        return Taken(Heard(*taken.value), taken.seconds)

    def words(self, audio: Audio) -> list[tuple[float, str]]:
        """(seconds at which it ends, word), as stock Whisper aligns and writes them."""
        taken = self.kept.get(self._key("stt", audio, "timed words"), lambda: self._words(audio))
        return [(end, word) for end, word in taken.value]

    def end_of_turn(self, text: str) -> Taken:
        """Probability that ``text`` is all the caller wants to say, from its prefill; -1 is not known."""
        return self.kept.get(self._key("llm", text, "end"), lambda: self._end_of_turn(text))

    def first_phrase(self, text: str) -> Taken:
        """The first phrase of the answer to ``text``, whose prefill has been done. Greedy."""
        return self.kept.get(self._key("llm", text, "phrase"), lambda: self._first_phrase(text))

    def first_audio(self, phrase: str) -> float:
        """Seconds until the first block of speech of ``phrase``."""
        return self.kept.get(self._key("tts", phrase, "first"), lambda: self._first_audio(phrase)).seconds

    def backchannels(self) -> list[tuple[str, Audio]]:
        """(text, audio) of each back-channel."""
        return [(text, self._spoken(text)) for text in BACKCHANNELS]

    # --- how it is answered -----------------------------------------------------------------------------------

    def _key(self, kind: str, of: Audio | str, what: str = "") -> str:
        content = of.encode() if isinstance(of, str) else (np.clip(of, -1, 1) * 32_767).astype(np.int16).tobytes()
        return _digest(kind, self._names[kind], self._code[kind], what, content)

    def _probabilities(self, audio: Audio) -> list[float]:
        self._vad.reset(0)
        windows = audio[: len(audio) // VAD_WINDOW * VAD_WINDOW].reshape(-1, 1, VAD_WINDOW)
        return [round(float(self._vad.probabilities([0], window)[0]), 4) for window in windows]

    def _transcribe(self, audio: Audio) -> Taken:
        utterance = Utterance(audio.astype(np.float32), self._settings.language)
        began = time.perf_counter()
        (result,) = self._stt.transcribe([utterance])
        taken = time.perf_counter() - began
        if isinstance(result, Exception):
            raise SystemExit(f"an utterance was not transcribed: {result}")
        return Taken([result.text, result.avg_logprob, result.no_speech_prob], taken)

    def _words(self, audio: Audio) -> list[tuple[float, str]]:
        from faster_whisper import WhisperModel

        if not hasattr(self, "_stock"):
            self._stock = WhisperModel(
                str(self._profile.stt.path), device="cpu", compute_type="int8", cpu_threads=self._teams.speech
            )
        segments, _ = self._stock.transcribe(audio, language="en", word_timestamps=True)
        return [(round(float(word.end), 2), word.word) for segment in segments for word in segment.words or ()]

    def _messages(self, text: str) -> list[Message]:
        return [Message("system", SYSTEM), Message("user", text)]

    def _end_of_turn(self, text: str) -> Taken:
        self._forget_turn()
        began = time.perf_counter()
        probability = self._read(text)
        return Taken(round(probability, 5), time.perf_counter() - began)

    def _read(self, text: str) -> float:
        """Prefill, and what it says about the turn's end."""
        outs = self._run_llm(self._messages(text), Sampling(max_tokens=0), end_of_turn=True)
        return float(next((out.end_of_turn for out in outs), -1.0))

    def _forget_turn(self) -> None:
        """The room's KV cache holds the system prompt alone, as every room's does at least."""
        self._run_llm([Message("system", SYSTEM)], Sampling(max_tokens=0))

    def _first_phrase(self, text: str) -> Taken:
        self._read(text)
        cutter = PhraseCutter(
            self._settings.first_phrase_chars, self._settings.phrase_chars, language=self._settings.language
        )
        began = time.perf_counter()
        sampling = Sampling(temperature=0.0, max_tokens=REPLY_TOKENS)
        self._llm.start(1, 0, self._messages(text), sampling)
        phrases = []
        while self._llm.running() and not phrases:
            for out in self._llm.step():
                phrases += cutter.push(getattr(out, "text", ""))
        self._llm.cancel(1)
        phrases = phrases or cutter.finish()
        return Taken(phrases[0].spoken if phrases else "", time.perf_counter() - began)

    def _run_llm(self, messages: Sequence[Message], sampling: Sampling, *, end_of_turn: bool = False) -> list[Any]:
        self._llm.start(1, 0, messages, sampling, end_of_turn=end_of_turn)
        outs = []
        while self._llm.running():
            outs += self._llm.step()
        return outs

    def _first_audio(self, phrase: str) -> Taken:
        began = time.perf_counter()
        self._tts.start(1, phrase or "Hm.")
        while self._tts.running():
            if any(isinstance(out, SpeechOut) and len(out.audio) for out in self._tts.step([1])):
                break
        taken = time.perf_counter() - began
        self._tts.cancel(1)
        return Taken(None, taken)

    def _spoken(self, text: str) -> Audio:
        taken = self.kept.get(self._key("tts", text, "spoken"), lambda: self._speak(text))
        pcm = np.frombuffer(base64.b64decode(taken.value), np.int16)
        return pcm.astype(np.float32) / 32_768

    def _speak(self, text: str) -> str:
        self._tts.start(1, text)
        blocks = []
        while self._tts.running():
            blocks += [out.audio for out in self._tts.step([1]) if isinstance(out, SpeechOut)]
        rate = round(self._tts.sample_rate * OTHER_SPEAKER)
        return base64.b64encode(resample(np.concatenate(blocks).tobytes(), rate, RATE)).decode()

    # --- engines ----------------------------------------------------------------------------------------------

    def _options(self, threads: int) -> EngineOptions:
        return EngineOptions(device="cpu", threads=threads, max_rooms=1, context_tokens=CONTEXT_TOKENS)

    @cached_property
    def _vad(self) -> Any:
        from inference.engines.vad import SileroVoiceActivity

        engine = SileroVoiceActivity()
        engine.load(self._options(1))
        return engine

    @cached_property
    def _stt(self) -> Any:
        from inference.engines.stt import WhisperSpeechToText

        engine = WhisperSpeechToText()
        engine.load(self._profile.stt.path, self._options(self._teams.speech))
        engine.transcribe([Utterance(np.zeros(RATE, np.float32), "en")])
        return engine

    @cached_property
    def _llm(self) -> Any:
        from inference.engines.llm import LlamaLanguageModel

        engine = LlamaLanguageModel()
        engine.load(self._profile.llm.path, self._options(self._teams.language))
        engine.start(1, 0, self._messages("Hello."), Sampling(max_tokens=1))
        while engine.running():
            engine.step()
        return engine

    @cached_property
    def _tts(self) -> Any:
        from inference.engines.tts import PiperTextToSpeech

        engine = PiperTextToSpeech()
        engine.load(self._profile.tts.path, self._options(self._teams.speech))
        engine.start(1, "All is well.")
        while engine.running():
            engine.step([1])
        return engine


def words(heard: Heard) -> str:
    """What the job takes for said."""
    return "" if heard.no_speech_prob > 0.6 and heard.avg_logprob < -1.0 else heard.text.strip()


def _source(name: str) -> bytes:
    path = ROOT / "inference" / "engines" / name
    return path.read_bytes() if path.is_file() else b""


def _digest(*parts: str | bytes) -> str:
    made = hashlib.blake2b(digest_size=12)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        made.update(len(content).to_bytes(8, "little") + content)
    return made.hexdigest()
