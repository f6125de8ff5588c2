#!/usr/bin/env python3
"""How many threads, and for how long they may spin: quiet, and with another busy process on the machine.

    python scripts/bench/threads.py [--threads 1,2] [--spins 0,100,1000,10000,default] [--repeats 3]

llama.cpp and CTranslate2 share their work between OpenMP threads that wait for each other some thousand times a
second. A thread that spins while it waits answers at once, but when it has a core that the one it waits for needs,
all stand still until the kernel takes it away. The real engines, each setting in a process of its own, because
libgomp reads GOMP_SPINCOUNT when it is loaded:

* an utterance of the recordings transcribed, a reply of the language model, a phrase spoken;
* a mix of them, as two rooms make it, while voice activity detection ticks in its own thread.

Chosen is what makes a turn (utterance, reply and phrase) shortest beside a busy process; of what is within a tenth of
that, what is shortest on the quiet machine. The last line is one JSON object; ``bars`` are what must hold of the
settings that the host has.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from report import ROOT, Bar, console, finish, hardware, percentile, table, versions, warn_if_busy
from speech import DEFAULT_FOLDER, read_recordings

from host.config import inference_environment
from host.threads import thread_teams
from inference.engines.base import EngineOptions, Message, Sampling, Utterance
from inference.engines.llm import LlamaLanguageModel
from inference.engines.stt import WhisperSpeechToText
from inference.engines.tts import PiperTextToSpeech
from inference.engines.vad import SileroVoiceActivity
from models.catalog import resolve

REPLY_TOKENS = 24
PHRASE = "Breakfast is served from seven until half past ten."
QUESTION = "Tell me a long story about a town by the sea."
ROOMS = 8
"""That are listened to; two of them speak at once."""
ENOUGH_S = 4.0
"""No setting is repeated for longer than this: a bad one takes thirty times as long as a good one."""
NEAR = 1.1
"""As good as the best."""
BUSY_TIMES, QUIET_TIMES = 1.25, 1.5
"""What the host's settings may cost against the best measured here."""
WORK = ("stt", "llm", "tts", "mix")
DEFAULT_SPIN, ANY = "default", ""


@dataclass(frozen=True)
class Setting:
    """``spin``: GOMP_SPINCOUNT, or what libgomp does without it. One thread waits for nobody: its spin is ``ANY``."""

    spin: str
    threads: int

    @classmethod
    def of(cls, spin: str, threads: int) -> Setting:
        return cls(spin if threads > 1 else ANY, threads)

    def __str__(self) -> str:
        return f"{self.threads}, spin {self.spin}" if self.threads > 1 else "1"


Times = Mapping[str, float]
"""Seconds of each of ``WORK``, quiet and busy: "stt", "stt busy"."""


@dataclass(frozen=True)
class Choice:
    """One spin for the whole process, threads of speech and of the language model."""

    spin: str
    threads: int
    llm_threads: int


# --- one setting, in a process of its own ---------------------------------------------------------


def measure(threads: int, repeats: int, speech: Path, profile_name: str) -> dict[str, float]:
    """Seconds of each piece of work, the median of ``repeats``."""
    profile = resolve(profile_name)
    options = EngineOptions("cpu", threads, max_rooms=ROOMS)
    stt, llm, tts, vad = WhisperSpeechToText(), LlamaLanguageModel(), PiperTextToSpeech(), SileroVoiceActivity()
    stt.load(profile.stt.path, options)
    llm.load(profile.llm.path, options)
    tts.load(profile.tts.path, options)
    vad.load(options)
    recordings = sorted(read_recordings(speech), key=lambda recording: abs(recording.seconds - 4.0))[:2]
    utterances = [Utterance(recording.audio, "en") for recording in recordings]
    sampling = Sampling(temperature=0.0, max_tokens=REPLY_TOKENS)
    chat = [Message("system", "You tell stories."), Message("user", QUESTION)]

    def transcribe() -> None:
        stt.transcribe(utterances[:1])

    def reply() -> None:
        llm.start(0, 0, chat, sampling)
        while llm.running():
            llm.step()

    def speak() -> None:
        tts.start(0, PHRASE)
        while tts.running():
            tts.step([0])

    def mix() -> None:
        stt.transcribe(utterances)
        for room in range(2):
            llm.start(room, room, chat, sampling)
            tts.start(room, PHRASE)
        while llm.running() or tts.running():
            if llm.running():
                llm.step()
            if tts.running():
                tts.step(sorted(tts.running()))

    work: dict[str, Callable[[], None]] = {"stt": transcribe, "llm": reply, "tts": speak, "mix": mix}
    for run in work.values():
        run()
    taken: dict[str, float] = {}
    for name, run in work.items():
        with ticking(vad) if name == "mix" else nobody():
            taken[name] = median_s(run, repeats)
    with busy_process():
        for name, run in work.items():
            with ticking(vad) if name == "mix" else nobody():
                taken[f"{name} busy"] = median_s(run, repeats)
    return taken


def median_s(run: Callable[[], None], repeats: int) -> float:
    taken: list[float] = []
    while len(taken) < repeats and sum(taken) < ENOUGH_S:
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return percentile(taken, 0.5)


@contextmanager
def nobody() -> Iterator[None]:
    yield


@contextmanager
def ticking(vad: SileroVoiceActivity) -> Iterator[None]:
    """Voice activity detection of all rooms every 32 ms, as its lane does it."""
    over = threading.Event()
    windows = np.zeros((ROOMS, 512), np.float32)

    def tick() -> None:
        while not over.wait(0.032):
            vad.probabilities(list(range(ROOMS)), windows)

    thread = threading.Thread(target=tick, name="vad-lane")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that takes one core, as far as it gets it."""
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# --- all of them ----------------------------------------------------------------------------------


def in_process(setting: Setting, arguments: argparse.Namespace) -> dict[str, float]:
    environment = inference_environment()
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        environment.pop(name, None)
    if setting.spin not in (DEFAULT_SPIN, ANY):
        environment |= {"GOMP_SPINCOUNT": setting.spin, "OMP_WAIT_POLICY": "PASSIVE"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    given = (f"--{key}={getattr(arguments, key)}" for key in ("repeats", "speech", "profile"))
    command = [sys.executable, __file__, f"--one={setting.threads}", *given]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{setting} ended with {process.returncode}")
    times: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return times


def turn_s(times: Mapping[Setting, Times], choice: Choice, when: str = "") -> float:
    """Utterance, reply and phrase, one after the other. ``when``: "" or " busy"."""
    speech, llm = (times[Setting.of(choice.spin, size)] for size in (choice.threads, choice.llm_threads))
    return speech[f"stt{when}"] + llm[f"llm{when}"] + speech[f"tts{when}"]


def chosen(times: Mapping[Setting, Times]) -> Choice:
    """Best beside a busy process; of what is nearly as good, the best on the quiet machine."""
    choices = possible(times)
    limit = NEAR * min(turn_s(times, choice, " busy") for choice in choices)
    return min(
        (choice for choice in choices if turn_s(times, choice, " busy") <= limit),
        key=lambda choice: turn_s(times, choice),
    )


def possible(times: Mapping[Setting, Times]) -> list[Choice]:
    """What can be made of the settings that were measured."""
    spins = dict.fromkeys(setting.spin for setting in times if setting.spin != ANY) or {ANY: None}
    threads = dict.fromkeys(setting.threads for setting in times)
    choices = (Choice(*parts) for parts in itertools.product(spins, threads, threads))
    return [c for c in choices if {Setting.of(c.spin, c.threads), Setting.of(c.spin, c.llm_threads)} <= times.keys()]


def report(times: Mapping[Setting, Times], ours: Choice) -> list[Bar]:
    """Print what was measured; the bars of the host's settings."""
    spoken = [
        (str(setting), *(f"{taken[name + when]:.2f}" for name in WORK for when in _WHEN))
        for setting, taken in times.items()
    ]
    table(
        "Seconds, quiet and beside a busy process",
        ("threads", *(f"{name}{when}" for name in WORK for when in _WHEN)),
        spoken,
        f"an utterance of 4 s; {REPLY_TOKENS} tokens; a phrase of 3 s; two of each beside voice activity detection",
    )
    best = chosen(times)
    rows = []
    for name, choice in (("chosen here", best), ("the host's", ours)):
        what = f"spin {choice.spin}, {choice.threads} threads for speech, {choice.llm_threads} for the language model"
        rows.append((name, what, turn_s(times, choice), turn_s(times, choice, " busy")))
    table(
        "A turn",
        ("", "setting", "quiet s", "busy s"),
        rows,
        f"best when busy; within {NEAR:g} × of it, best when quiet",
    )
    fastest = {when: min(turn_s(times, choice, when) for choice in possible(times)) for when in _WHEN}
    return [
        Bar(
            "a turn beside a busy process, × the best setting",
            turn_s(times, ours, " busy") / fastest[" busy"],
            "",
            BUSY_TIMES,
        ),
        Bar("a turn on the quiet machine, × the best setting", turn_s(times, ours) / fastest[""], "", QUIET_TIMES),
    ]


_WHEN = ("", " busy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2", help="team sizes, separated by commas")
    parser.add_argument("--spins", default=f"0,100,1000,10000,{DEFAULT_SPIN}", help="values of GOMP_SPINCOUNT")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--speech", type=Path, default=DEFAULT_FOLDER, help="folder with a transcripts.tsv")
    parser.add_argument("--profile", default="cpu-small")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.repeats, arguments.speech, arguments.profile)))
        return 0
    console.print(hardware())
    console.print(versions("llama-cpp-python", "ctranslate2", "onnxruntime", "torch"))
    warn_if_busy()
    teams = thread_teams(len(os.sched_getaffinity(0)))
    ours = Choice(inference_environment()["GOMP_SPINCOUNT"], teams.speech, teams.language)
    sizes: Sequence[int] = [int(size) for size in arguments.threads.split(",")]
    settings = [Setting.of(spin, size) for size in sizes for spin in arguments.spins.split(",")]
    settings += [Setting.of(ours.spin, size) for size in (ours.threads, ours.llm_threads)]
    times = {setting: in_process(setting, arguments) for setting in dict.fromkeys(settings)}
    return finish("threads", report(times, ours))


if __name__ == "__main__":
    sys.exit(main())
