#!/usr/bin/env python3
"""What the inference process takes of the memory, part by part, beside what ``inference/budget.py`` says. On a CPU.

    python scripts/bench/memory.py [--profile cpu-small] [--rooms 4] [--context 2048] [--threads 2]

The models are loaded in this process as the inference process does it, and each engine is asked for the most that
it can be asked for: long utterances in the full window, all rooms at once. "stays" is what the resident set has grown
by afterwards, "working" what it was above that at its highest. The last line is one JSON object; ``bars`` are what
must hold: the sum, and each part that is more than a tenth of it, within 15 %.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# As in the inference process, and before a library reads it.
os.environ.update({"GOMP_SPINCOUNT": "10000", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"})

import numpy as np
import psutil
from report import Bar, console, finish, hardware, table

from inference.budget import MB, Sizes, estimate
from inference.engines.base import SAMPLE_RATE, EngineOptions, Message, Sampling, Utterance
from inference.model_files import read_facts
from models.catalog import default_models_dir, resolve

SPOKEN = (
    "Every room can hear me now and I can hear every one of them as long as nobody else talks at the same time as I do."
)


@dataclass(frozen=True)
class Growth:
    """Of the resident set, in bytes."""

    stays: int
    working: int


def grown_by(work: Callable[[], object]) -> Growth:
    """What ``work`` leaves behind, and what it needed on top."""
    process = psutil.Process()
    before = process.memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set so far is forgotten
    work()
    after = process.memory_info().rss
    highest = next(
        1024 * int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return Growth(after - before, max(0, highest - after))


def import_libraries() -> None:
    """Everything that the engines import when they load."""
    import ctranslate2
    import faster_whisper
    import llama_cpp
    import onnx
    import onnxruntime
    import piper
    import torch

    import inference.main

    assert all((ctranslate2, faster_whisper, llama_cpp, onnx, onnxruntime, piper, torch, inference.main))


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory of the inference process, predicted and measured.")
    parser.add_argument("--profile", default="cpu-small")
    parser.add_argument("--models-dir", type=Path, default=default_models_dir())
    parser.add_argument("--rooms", type=int, default=4)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    rooms, context = arguments.rooms, arguments.context
    profile = resolve(arguments.profile, arguments.models_dir)
    options = EngineOptions("cpu", arguments.threads, rooms, context)
    facts = read_facts(profile.stt.path, profile.llm.path, profile.tts.path)
    budget = estimate(facts, Sizes("cpu", rooms, context, arguments.threads))

    begun = psutil.Process().memory_info().rss
    libraries = grown_by(import_libraries)
    libraries = Growth(libraries.stays + begun, 0)

    from inference.engines.llm import LlamaLanguageModel
    from inference.engines.stt import WhisperSpeechToText
    from inference.engines.tts import PiperTextToSpeech
    from inference.engines.vad import SileroVoiceActivity

    vad, stt, llm, tts = SileroVoiceActivity(), WhisperSpeechToText(), LlamaLanguageModel(), PiperTextToSpeech()
    speech: list[np.ndarray] = []

    def listen() -> None:
        vad.load(options)
        vad.probabilities(list(range(rooms)), np.zeros((rooms, 512), np.float32))

    def transcribe() -> None:
        stt.load(profile.stt.path, options)
        noise = np.random.default_rng(7).normal(0, 0.05, 28 * SAMPLE_RATE).astype(np.float32)
        # Ordinary utterances first, then the longest, of as many rooms as are decoded together.
        for seconds in (4, 8, 28, 28):
            together = min(stt.max_batch, rooms)
            stt.transcribe([Utterance(noise[: seconds * SAMPLE_RATE], "en")] * together)

    def answer() -> None:
        llm.load(profile.llm.path, options)
        for room in range(rooms):
            llm.start(room, room, [Message("user", f"{room} " + SPOKEN)], Sampling(temperature=0.0, max_tokens=16))
        while llm.running():
            llm.step()

    def speak() -> None:
        tts.load(profile.tts.path, options)
        for text in (SPOKEN[:30], SPOKEN, 2 * SPOKEN):
            for room in range(rooms):
                tts.start(room, text)
            while tts.running():
                tts.step(sorted(tts.running()))
        speech.clear()

    measured = {
        "libraries": libraries,
        "voice activity": grown_by(listen),
        "speech to text": grown_by(transcribe),
        "language model": grown_by(answer),
        "voice": grown_by(speak),
    }
    highest = sum(part.stays for part in measured.values()) + max(part.working for part in measured.values())

    parts = {part.name: part for part in budget.parts}
    predicted = {name: (parts[name].resident, parts[name].working) for name in measured}
    # llama.cpp takes both at once.
    both = parts["language model"].resident + parts["its conversations"].resident
    predicted["language model"] = (both, 0)
    rows, bars = [], []
    for name, growth in measured.items():
        resident, working = predicted[name]
        at_most, reached = resident + working, growth.stays + growth.working
        sizes = (f"{size / MB:.0f}" for size in (resident, working, growth.stays, growth.working))
        rows.append([name, *sizes, f"{100 * (at_most / reached - 1):+.0f} %"])
        if reached > 0.1 * highest:
            bars.append(Bar(f"{name}: off by", 100 * abs(at_most / reached - 1), "%", 15.0))
    rows.append(["at the worst moment", f"{budget.total / MB:.0f}", "", f"{highest / MB:.0f}", ""])
    rows[-1].append(f"{100 * (budget.total / highest - 1):+.0f} %")
    bars.append(Bar("at the worst moment: off by", 100 * abs(budget.total / highest - 1), "%", 15.0))
    console.print(hardware())
    table(
        f"memory in MB: {arguments.profile}, {rooms} rooms of {context} tokens, {arguments.threads} threads",
        ["part", "predicted: stays", "working", "measured: stays", "working", "off by"],
        rows,
    )
    uss = psutil.Process().memory_full_info().uss
    console.print(f"unique set size at the end {uss / MB:.0f} MB; one room adds {budget.room / MB:.0f} MB")
    return finish("memory", bars)


if __name__ == "__main__":
    sys.exit(main())
