#!/usr/bin/env python3
"""Transcription: how fast, alone and for many rooms, and how exact.

    python scripts/bench/stt.py [--speech DIR] [--rooms 8] [--repeats 3] [--profile cpu-small] [--device cpu]

Every recording is transcribed alone by the stock way (faster-whisper's ``transcribe``) and by ours, and then as
if all rooms had finished speaking at once: stock in turn, ours in the batches that the host would make. The
two sides run in processes of their own, in turns, ``--repeats`` times; times are medians of the repeats.

The last line is one JSON object; ``bars`` are what must hold.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import Bar, console, finish, hardware, percentile, table, versions, warn_if_busy
from sides import give_back, in_process
from speech import DEFAULT_FOLDER, Recording, read_recordings, word_errors

from inference.engines.base import EngineOptions, SttStep, TranscriptFailed, Utterance
from inference.engines.stt import WhisperSpeechToText
from models.catalog import resolve

ALONE_SHARE = 0.4
ROOMS_TIMES = 3.0
WER_POINTS = 0.5
BATCHES = (1, 2, 4, 8)
"""Utterances decoded together, tried one after the other."""

QUANTUM_MS = 150.0
SHORT_S = 7.0
"""Utterances up to this length are to be transcribed in quanta of ``QUANTUM_MS``: a goal, not a bar."""


class Steps:
    """Our engine, driven as the host does; ``quanta`` holds every step: its kind, its utterances, its milliseconds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.engine = WhisperSpeechToText()
        options = EngineOptions(arguments.device, arguments.threads, arguments.rooms)
        self.engine.load(resolve(arguments.profile).stt.path, options)
        self.quanta: list[tuple[SttStep, int, float]] = []

    def transcribe(self, batch: Sequence[Recording], *, draft: bool = False) -> tuple[dict[str, str], dict[str, float]]:
        """Texts and seconds by name, when all of ``batch`` were said at once. Encodes before it decodes."""
        began = time.perf_counter()
        for request, recording in enumerate(batch):
            self.engine.start(request, Utterance(recording.audio, "en", draft))
        texts: dict[str, str] = {}
        taken: dict[str, float] = {}
        while running := sorted(self.engine.running()):
            encode = [request for request in running if self.engine.next_step(request) == "encode"]
            kind: SttStep = "encode" if encode else "decode"
            start = time.perf_counter()
            ended = self.engine.step(encode or running)
            now = time.perf_counter()
            # A request's next step changes, or it ends: so many were served.
            left = self.engine.running()
            waiting = sum(request in left and self.engine.next_step(request) == kind for request in encode or running)
            self.quanta.append((kind, len(encode or running) - waiting, 1000 * (now - start)))
            for out in ended:
                name = batch[out.request].name
                if isinstance(out, TranscriptFailed):
                    raise SystemExit(f"{name}: {out.error}")
                texts[name] = out.transcription.text
                taken[name] = now - began
        return texts, taken


def ours(arguments: argparse.Namespace, recordings: Sequence[Recording]) -> dict[str, Any]:
    """Our engine, warm, as the inference process uses it."""
    steps = Steps(arguments)
    steps.transcribe(recordings[:1])
    run: dict[str, Any] = {"alone_s": {}, "texts": {}, "alone": {}, "draft_s": {}, "drafts": {}, "together": {}}
    for recording in recordings:
        steps.quanta.clear()
        texts, taken = steps.transcribe([recording])
        run["texts"] |= texts
        run["alone_s"] |= taken
        run["alone"][recording.name] = list(steps.quanta)
        texts, taken = steps.transcribe([recording], draft=True)
        run["drafts"] |= texts
        run["draft_s"] |= taken
    run["max_batch"] = max_batch = steps.engine.max_batch
    run["by_batch"] = {}
    for size in sorted({*BATCHES, max_batch}):
        steps.engine.max_batch = size
        steps.quanta.clear()
        rooms_s = 0.0
        waited_s: list[float] = []
        for recordings_at_once in at_once(recordings, arguments.rooms):
            began = time.perf_counter()
            texts, taken = steps.transcribe(recordings_at_once)
            rooms_s += time.perf_counter() - began
            waited_s += taken.values()
            if size == max_batch:
                run["together"] |= texts
        run["by_batch"][size] = {"rooms_s": rooms_s, "waited_s": waited_s, "quanta": list(steps.quanta)}
    steps.engine.close()
    chosen = run["by_batch"][max_batch]
    return run | {"rooms_s": chosen["rooms_s"], "waited_s": chosen["waited_s"]}


def show_quanta(runs: Sequence[dict[str, Any]], recordings: Sequence[Recording], rooms: int) -> None:
    """How long one quantum holds the device lane, alone and in batches: of its median and the longest, the medians."""

    def held(quanta: Sequence[Sequence[tuple[SttStep, int, float]]]) -> list[float]:
        cells = []
        for kind in ("encode", "decode"):
            ms = [[took for other, _, took in run if other == kind] for run in quanta]
            cells += [statistics.median(statistics.median(run) for run in ms), statistics.median(map(max, ms))]
        return cells

    short = [recording.name for recording in recordings if recording.seconds <= SHORT_S]
    rows: list[tuple[str | float, ...]] = []
    for what, names in ((f"≤ {SHORT_S:g} s", short), ("all", [recording.name for recording in recordings])):
        alone = [[quantum for name in names for quantum in run["alone"][name]] for run in runs]
        rows.append((what, *held(alone), "", ""))
    count = sum(map(len, at_once(recordings, rooms)))
    for size in runs[0]["by_batch"]:
        together = [run["by_batch"][size] for run in runs]
        rate = count / statistics.median(each["rooms_s"] for each in together)
        waited_s = statistics.median(percentile(each["waited_s"], 0.5) for each in together)
        rows.append((f"by {size}", *held([each["quanta"] for each in together]), rate, waited_s))
    table(
        f"Quanta in ms; {rooms} rooms: utterances per s, seconds to the text",
        ("", "encode", "longest", "decode", "longest", "per s", "text after"),
        rows,
        f"goal: {QUANTUM_MS:g} ms for utterances up to {SHORT_S:g} s; the engine decodes by {runs[0]['max_batch']}",
    )


def stock(arguments: argparse.Namespace, recordings: Sequence[Recording]) -> dict[str, Any]:
    """faster-whisper, one utterance after the other."""
    from stock import StockSpeechToText

    model = StockSpeechToText(resolve(arguments.profile).stt.path, arguments.device, arguments.threads)
    model.transcribe(recordings[0].audio)
    texts: dict[str, str] = {}
    alone_s: dict[str, float] = {}
    for recording in recordings:
        began = time.perf_counter()
        texts[recording.name] = model.transcribe(recording.audio)
        alone_s[recording.name] = time.perf_counter() - began
    rooms_s = 0.0
    waited_s: list[float] = []
    for recordings_at_once in at_once(recordings, arguments.rooms):
        began = time.perf_counter()
        for recording in recordings_at_once:
            model.transcribe(recording.audio)
            waited_s.append(time.perf_counter() - began)
        rooms_s += time.perf_counter() - began
    return {"alone_s": alone_s, "rooms_s": rooms_s, "waited_s": waited_s, "texts": texts, "together": texts}


def at_once(recordings: Sequence[Recording], rooms: int) -> list[list[Recording]]:
    """Every recording in groups of ``rooms``; the last one is filled up from the beginning."""
    endless = [*recordings, *recordings * rooms]
    return [endless[start : start + rooms] for start in range(0, len(recordings), rooms)]


def medians(runs: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """Per recording, the median over the repeats."""
    return {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, default=DEFAULT_FOLDER, help="folder with a transcripts.tsv")
    parser.add_argument("--rooms", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of both sides; 0: as many as there are cores")
    parser.add_argument("--profile", default="cpu-small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--side", choices=("ours", "stock"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.threads = arguments.threads or len(os.sched_getaffinity(0))
    recordings = read_recordings(arguments.speech)
    if arguments.side:
        give_back((ours if arguments.side == "ours" else stock)(arguments, recordings))
        return 0

    console.print(hardware())
    console.print(f"{versions('faster-whisper', 'ctranslate2')}, {resolve(arguments.profile).stt.model.name},", end=" ")
    seconds = sum(recording.seconds for recording in recordings)
    console.print(f"{len(recordings)} recordings of {seconds:.0f} s in all, {arguments.threads} threads")
    warn_if_busy()
    keys = ("speech", "rooms", "threads", "profile", "device")
    given = [f"--{key}={getattr(arguments, key)}" for key in keys]
    theirs, us = [], []
    for _ in range(arguments.repeats):
        theirs.append(in_process(__file__, *given, "--side=stock", ours=False))
        us.append(in_process(__file__, *given, "--side=ours", ours=True))

    our_s, stock_s = medians(us, "alone_s"), medians(theirs, "alone_s")
    table(
        "One utterance alone",
        ("recording", "seconds", "stock s", "ours s", "× stock"),
        [
            (r.name, f"{r.seconds:.1f}", stock_s[r.name], our_s[r.name], our_s[r.name] / stock_s[r.name])
            for r in recordings
        ],
        f"median of the last column {statistics.median(our_s[name] / stock_s[name] for name in our_s):.3f}",
    )
    share = sum(our_s.values()) / sum(stock_s.values())
    count = sum(map(len, at_once(recordings, arguments.rooms)))
    our_rate = count / statistics.median(run["rooms_s"] for run in us)
    stock_rate = count / statistics.median(run["rooms_s"] for run in theirs)
    said = {recording.name: recording.transcript for recording in recordings}
    rows = []
    points = {}
    for name, texts in (
        ("stock", theirs[0]["texts"]),
        ("ours, alone", us[0]["texts"]),
        ("ours, batch", us[0]["together"]),
        ("ours, drafts", us[0]["drafts"]),
    ):
        errors, words = word_errors(said, texts)
        points[name] = 100 * errors / words
        rows.append((name, f"{errors} of {words}", f"{points[name]:.2f} %"))
    table("Word errors", ("", "errors", "rate"), rows)
    our_waited = [value for run in us for value in run["waited_s"]]
    stock_waited = [value for run in theirs for value in run["waited_s"]]
    table(
        f"{arguments.rooms} rooms finish speaking at once",
        ("", "utterances/s", "text after s, p50", "p95"),
        [
            ("stock, in turn", stock_rate, percentile(stock_waited, 0.5), percentile(stock_waited, 0.95)),
            ("ours", our_rate, percentile(our_waited, 0.5), percentile(our_waited, 0.95)),
        ],
    )
    show_quanta(us, recordings, arguments.rooms)
    draft_s = medians(us, "draft_s")
    console.print(
        f"a draft takes {sum(draft_s.values()) / sum(our_s.values()):.2f} of the time of a final text,"
        f" {1000 * statistics.median(draft_s.values()):.0f} ms in the middle"
    )
    worst = max(points["ours, alone"], points["ours, batch"])
    what = f"{arguments.rooms} rooms, utterances per second against stock's"
    return finish(
        "stt",
        [
            Bar(what, our_rate / stock_rate, "×", ROOMS_TIMES, at_least=True),
            Bar("a lone utterance against stock's time", share, "×", ALONE_SHARE),
            Bar("word error rate above stock's", worst - points["stock"], "points", WER_POINTS),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
