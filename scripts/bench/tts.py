#!/usr/bin/env python3
"""How soon a voice is heard, whether its windows are what one pass gives, and what eight rooms hear.

    python scripts/bench/tts.py [--rooms 8] [--seconds 30] [--repeats 7] [--speech DIR] [--profile cpu-small]

* First audio: sentences of about 10 s, ours against ``PiperVoice.synthesize``, in turn. Our engine speaks the first
  clause of such a sentence as a sentence of its own where there is one; the last sentence has none.
* Equality: our windows, many sentences side by side, against the voice's whole graph, noise off.
* Rooms: all speak all the time, an answer of three phrases after the other, in the order in which our planner
  puts them; stock serves one phrase after the other. A room *falls behind* when it has played what it has before
  the rest of its answer comes.

The last line is one JSON object; ``bars`` are what must hold.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from report import Bar, console, finish, hardware, percentile, table, versions, warn_if_busy
from speech import DEFAULT_FOLDER, read_recordings
from stock import StockTextToSpeech

from inference.costs import CostTable, Stage
from inference.engines.base import Audio, EngineError, EngineOptions, SpeechOut
from inference.engines.piper_load import load_voice
from inference.engines.piper_voice import Order, Scales
from inference.engines.piper_windows import EXACT
from inference.engines.tts import PiperTextToSpeech
from inference.planner import Planner, Task
from models.catalog import resolve

FIRST_AUDIO_SHARE = 0.15
PAUSE_S = 1.0
"""Between two answers of a room."""
SETTLE_S = 0.05
"""Stock's threads spin for a while when they have nothing to do; ours should not be measured beside them."""

SENTENCES = (
    "Your room is on the third floor, just opposite the lift, and breakfast is served from seven until half past ten "
    "in the small dining room on the ground floor that looks out over the harbour.",
    "If you would like to change your reservation, please tell me the name that it was made under, the date on which "
    "you would like to arrive, and how many nights you are going to stay with us this time.",
    "The quickest way from the railway station is the number twelve bus, which leaves every ten minutes from the stop "
    "in front of the main entrance, and takes you almost to our door in a quarter of an hour.",
    "We are happy to welcome small dogs; there is a charge of fifteen euros for every night, and we only ask that you "
    "do not leave them alone in the room or take them into the restaurant in the evening.",
    "The invention of movable metal letters in the middle of the fifteenth century may justly be considered as the "
    "invention of the art of printing and of very much of all that came after it.",
)


# --- first audio ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstAudio:
    """Of one sentence, in seconds."""

    ours_s: float
    stock_s: float
    audio_s: float

    @property
    def share(self) -> float:
        return self.ours_s / self.stock_s


def first_audio(tts: PiperTextToSpeech, stock: StockTextToSpeech, text: str, repeats: int) -> FirstAudio:
    ours_s, stock_s, seconds = [], [], 0.0
    for _ in range(repeats):
        time.sleep(SETTLE_S)
        began = time.perf_counter()
        tts.start(0, text)
        tts.step([0])
        ours_s.append(time.perf_counter() - began)
        tts.cancel(0)
        first_s, _, audio = stock.speak(text)
        stock_s.append(first_s)
        seconds = len(audio) / stock.sample_rate
    return FirstAudio(statistics.median(ours_s), statistics.median(stock_s), seconds)


# --- equality -------------------------------------------------------------------------------------


def largest_difference(model: Path, texts: Sequence[str], options: EngineOptions) -> tuple[float, int]:
    """Between our windows, all sentences side by side, and ``PiperVoice`` in one pass; and how many windows."""
    from piper import PiperVoice, SynthesisConfig

    piper = PiperVoice.load(str(model))
    orders = [Order(piper.phonemes_to_ids(phonemes), noise=0.0) for text in texts for phonemes in piper.phonemize(text)]
    speaker = piper.config.default_speaker_id if piper.config.num_speakers > 1 else None
    voice, _ = load_voice(model, Scales(0.0, 0.0, speaker), options, orders[0].ids)
    sentences = []
    for sentence in voice.encode(orders):
        if isinstance(sentence, EngineError):
            raise SystemExit(f"a sentence fails: {sentence}")
        sentences.append(sentence)
    spoken: list[list[Audio]] = [[] for _ in sentences]
    while going_on := [row for row, sentence in enumerate(sentences) if not sentence.finished]:
        for row, block in zip(going_on, voice.decode([sentences[row] for row in going_on]), strict=True):
            if isinstance(block, EngineError):
                raise SystemExit(f"a window fails: {block}")
            spoken[row].append(block)
    quiet = SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)
    differences = []
    for order, blocks in zip(orders, spoken, strict=True):
        expected = np.asarray(piper.phoneme_ids_to_audio(list(order.ids), quiet))
        ours = np.concatenate(blocks)
        differences.append(float(np.abs(ours - expected).max()) if ours.shape == expected.shape else float("inf"))
    voice.close()
    return max(differences), sum(map(len, spoken))


# --- rooms ----------------------------------------------------------------------------------------


@dataclass
class Room:
    """One listener: plays what comes as soon as it comes."""

    texts: itertools.cycle[str]
    asked: float = 0.0
    phrases: deque[str] = field(default_factory=deque)
    plays_until: float = 0.0
    """When what it has will have been played."""
    heard: bool = False
    next_answer: float = 0.0
    first_audio_s: list[float] = field(default_factory=list)
    silences_s: list[float] = field(default_factory=list)
    audio_s: float = 0.0

    def wants(self, now: float) -> bool:
        """Whether there is something to say; a new answer begins when it is time."""
        if not self.phrases and now >= self.next_answer:
            self.asked, self.heard = now, False
            self.phrases.extend(itertools.islice(self.texts, 3))
        return bool(self.phrases)

    def receive(self, seconds: float, now: float) -> None:
        """More of the answer, at ``now``."""
        if not self.heard:
            self.heard = True
            self.first_audio_s.append(now - self.asked)
        else:
            self.silences_s.append(max(0.0, now - self.plays_until))
        self.plays_until = max(self.plays_until, now) + seconds
        self.audio_s += seconds

    def end_phrase(self) -> None:
        self.phrases.popleft()
        if not self.phrases:
            self.next_answer = self.plays_until + PAUSE_S


@dataclass
class Listened:
    """What all rooms heard, and what it cost."""

    rooms: list[Room]
    steps_s: list[float]
    wall_s: float
    cpu_s: float

    @property
    def first_audio_s(self) -> list[float]:
        return [seconds for room in self.rooms for seconds in room.first_audio_s]

    @property
    def longest_silence_s(self) -> float:
        return max((seconds for room in self.rooms for seconds in room.silences_s), default=0.0)

    @property
    def audio_s(self) -> float:
        return sum(room.audio_s for room in self.rooms)


Step = Callable[[Sequence[Room], float], None]


def listen(texts: Sequence[str], rooms: int, seconds: float, step: Step) -> Listened:
    """``rooms`` rooms that all begin at the same moment, for ``seconds``."""
    # Every room starts elsewhere in the texts.
    all_rooms = [Room(itertools.cycle([*texts[at % len(texts) :], *texts[: at % len(texts)]])) for at in range(rooms)]
    steps_s = []
    cpu = time.process_time()
    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        waiting = [room for room in all_rooms if room.wants(now)]
        if not waiting:
            time.sleep(0.002)
            continue
        step(waiting, began)
        steps_s.append(time.perf_counter() - began - now)
    return Listened(all_rooms, steps_s, time.perf_counter() - began, time.process_time() - cpu)


def stock_step(stock: StockTextToSpeech) -> Step:
    """The phrases in the order in which they were asked for, each sentence when it is ready."""

    def step(waiting: Sequence[Room], began: float) -> None:
        room = min(waiting, key=lambda room: (room.asked, -len(room.phrases)))
        for audio in stock.chunks(room.phrases[0]):
            room.receive(len(audio) / stock.sample_rate, time.perf_counter() - began)
        room.end_phrase()

    return step


def our_step(tts: PiperTextToSpeech) -> Step:
    """One step of our engine with what our planner chooses."""
    numbers = itertools.count(1)
    requests: dict[int, Room] = {}
    since: dict[int, float] = {}
    begun: set[int] = set()
    planner = Planner(CostTable())

    def step(waiting: Sequence[Room], began: float) -> None:
        now = time.perf_counter() - began
        for room in waiting:
            if room not in requests.values():
                number = next(numbers)
                tts.start(number, room.phrases[0])
                requests[number], since[number] = room, now
        tasks = [
            Task(
                Stage.SPEECH if number in begun else Stage.FIRST_SPEECH,
                number,
                number,
                since[number],
                buffered_s=max(0.0, room.plays_until - now),
            )
            for number, room in requests.items()
        ]
        quantum = planner.decide(now, tasks)
        if quantum is None:
            time.sleep(0.002)
            return
        for out in tts.step(quantum.requests):
            if not isinstance(out, SpeechOut):
                raise SystemExit(f"a phrase fails: {out.error}")
            room, since[out.request] = requests[out.request], time.perf_counter() - began
            begun.add(out.request)
            room.receive(len(out.audio) / tts.sample_rate, since[out.request])
            if out.last:
                del requests[out.request]
                room.end_phrase()

    return step


def row_of(name: str, heard: Listened) -> list[str | float]:
    return [
        name,
        len(heard.first_audio_s),
        1000 * percentile(heard.first_audio_s, 0.5),
        1000 * percentile(heard.first_audio_s, 0.95),
        1000 * heard.longest_silence_s,
        1000 * percentile(heard.steps_s, 0.5),
        1000 * max(heard.steps_s),
        100 * sum(heard.steps_s) / heard.wall_s,
        60 * heard.cpu_s / heard.audio_s,
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the rooms are listened to (default 30)")
    parser.add_argument("--repeats", type=int, default=7, help="of each first audio; medians are taken (default 7)")
    parser.add_argument("--speech", type=Path, default=DEFAULT_FOLDER, help="a folder with transcripts.tsv")
    parser.add_argument("--profile", default="cpu-small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 (default): as many as cores")
    asked = parser.parse_args()

    model = resolve(asked.profile).tts.path
    options = EngineOptions(asked.device, asked.threads or len(os.sched_getaffinity(0)), asked.rooms)
    console.print(hardware())
    console.print(f"{model.name}, {options.threads} threads, {versions('piper-tts', 'onnxruntime', 'torch')}")
    warn_if_busy()

    texts = [*SENTENCES, *(recording.transcript for recording in read_recordings(asked.speech))]
    difference, windows = largest_difference(model, texts, options)
    console.print(
        f"{windows} windows of {len(texts)} texts side by side differ from one pass by {difference:.1e} at most"
    )

    began = time.perf_counter()
    tts = PiperTextToSpeech()
    tts.load(model, options)
    console.print(f"{tts!r} in {time.perf_counter() - began:.1f} s")
    stock = StockTextToSpeech(model, asked.device)
    for text in SENTENCES[:2]:  # warm
        first_audio(tts, stock, text, 1)
    firsts = [first_audio(tts, stock, text, asked.repeats) for text in SENTENCES]
    table(
        "First audio",
        ("sentence", "audio s", "ours ms", "stock ms", "share"),
        [
            [f"{text[:34]}…", one.audio_s, 1000 * one.ours_s, 1000 * one.stock_s, one.share]
            for text, one in zip(SENTENCES, firsts, strict=True)
        ],
        caption="from the text to the first samples; the last sentence has no pause",
    )

    ours = listen(texts, asked.rooms, asked.seconds, our_step(tts))
    time.sleep(SETTLE_S)
    theirs = listen(texts, asked.rooms, asked.seconds, stock_step(stock))
    table(
        f"{asked.rooms} rooms, all speaking",
        (
            "",
            "answers",
            "first audio p50 ms",
            "p95 ms",
            "longest silence ms",
            "step p50 ms",
            "step max ms",
            "busy %",
            "CPU s / min of speech",
        ),
        [row_of("ours", ours), row_of("stock", theirs)],
        caption="silence: inside an answer; step: what a cancel and the other engines wait for",
    )
    return finish(
        "tts",
        [
            Bar(
                "first audio of a 10 s sentence, share of stock's",
                statistics.median(one.share for one in firsts),
                "",
                FIRST_AUDIO_SHARE,
            ),
            Bar("windows of many rooms against one pass, noise off", difference, "", EXACT),
            Bar(f"{asked.rooms} rooms: longest silence inside an answer", 1000 * ours.longest_silence_s, "ms", 0.0),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
