"""What the engines' work takes on this device, measured at leisure: what ``host calibrate`` asks for.

Unlike the costs that are measured while the process comes up (``measuring``), these are means over utterances,
prompts and phrases of several lengths, as people and models make them, for every size of a batch.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from inference.costs import Stage
from inference.engines.base import (
    SAMPLE_RATE,
    VAD_WINDOW,
    Audio,
    EngineError,
    Message,
    Sampling,
    SpeechFailed,
    SpeechOut,
    TokensOut,
    Utterance,
)
from inference.runner import Engines

SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)
ANSWER_TOKENS: Final = 40
"""A spoken answer of one or two sentences."""
_SIZE_S: Final = 40.0
"""A batch so slow that one round of it takes longer is the largest that is measured."""

SYSTEM: Final = (
    "You are a helpful voice assistant. What you write is spoken aloud to a caller on the phone: "
    "answer in one or two short sentences of plain words, without lists, headings or emoji."
)
SAID: Final = (
    "What time do you open on Saturday?",
    "I would like to book a table for four people tomorrow evening, please.",
    "Could you tell me how I get from the station to the hotel?",
    "My order has not arrived yet, and I was told that it would be here on Monday.",
    "Yes, that is right.",
    "How long does it take to fly from London to New York in the winter?",
    "Thank you. And is there anything that I have to bring along?",
    "Please read the last sentence to me again, a little more slowly.",
)
"""What callers say, 1 to 5 s each."""


@dataclass(slots=True)
class Calibration:
    """Seconds. ``stages``: of a quantum, by stage and size; ``ticks``: of a tick of voice activity, by rooms.

    ``answers``: what the model answered, piece by piece as it came; ``spoken``: phrases with the seconds of their
    speech. ``first_block_s``, ``block_s``: speech of a phrase's first block, and of each other.
    """

    stages: dict[Stage, dict[int, float]] = field(default_factory=dict)
    ticks: dict[int, float] = field(default_factory=dict)
    answers: list[list[str]] = field(default_factory=list)
    spoken: list[tuple[str, float]] = field(default_factory=list)
    first_block_s: float = 0.0
    block_s: float = 0.0

    def to_json(self) -> str:
        """As it crosses to the supervisor."""
        stages = {stage.value: sizes for stage, sizes in self.stages.items()}
        return json.dumps(
            {
                "stages": stages,
                "ticks": self.ticks,
                "answers": self.answers,
                "spoken": self.spoken,
                "first_block_s": self.first_block_s,
                "block_s": self.block_s,
            }
        )


def calibrate(
    engines: Engines,
    max_rooms: int,
    say: Callable[[str], None],
    *,
    rounds: int = 3,
    clock: Callable[[], float] = time.monotonic,
) -> Calibration:
    """Measure it all, ``rounds`` times for each size up to ``max_rooms``; the least counts. The engines are left as
    they were.

    Raises ``EngineError`` when one of them cannot do its work.
    """
    measuring = _Measuring(engines, clock)
    say("measuring voice activity detection")
    ticks = {size: measuring.tick(size) for size in SIZES if size <= max_rooms}
    spoken = [(text, measuring.speak_alone(text)) for text in SAID]
    for what, work in (
        ("speech to text", measuring.transcribe),
        ("language model", measuring.answer),
        ("voice", measuring.speak),
    ):
        for size in (size for size in SIZES if size <= max_rooms):
            say(f"measuring {what}: {size} at once")
            began = clock()
            for first in range(0, len(SAID), size):
                measuring.least_of(rounds, partial(work, size, first))
            if clock() - began > rounds * _SIZE_S:
                break
    return Calibration(
        stages={
            # As answers end, batches of every size come by; few of each.
            stage: {size: _mean(taken) for size, taken in sorted(measuring.costs[stage].items()) if size in SIZES}
            for stage in Stage
        },
        ticks=ticks,
        answers=measuring.answers,
        spoken=spoken,
        first_block_s=_mean(measuring.first_blocks_s),
        block_s=_mean(measuring.blocks_s),
    )


Quanta = dict[Stage, dict[int, list[float]]]
"""Seconds by stage and how many were served."""


class _Measuring:
    """``costs``: of all quanta, each as fast as it ever was: whatever else the machine does only makes them slower.

    ``taken``: of one round.
    """

    def __init__(self, engines: Engines, clock: Callable[[], float]) -> None:
        self.costs = _no_quanta()
        self.taken = _no_quanta()
        self.answers: list[list[str]] = []
        self.first_blocks_s: list[float] = []
        self.blocks_s: list[float] = []
        self._engines = engines
        self._clock = clock
        self._speech: dict[str, Audio] = {}

    def least_of(self, rounds: int, work: Callable[[], None]) -> None:
        """Do the same several times, and keep of every quantum the least."""
        done: list[Quanta] = []
        for _ in range(rounds):
            self.taken = _no_quanta()
            work()
            done.append(self.taken)
        for stage in Stage:
            for size in {size for one in done for size in one[stage]}:
                runs = [one[stage][size] for one in done if one[stage][size]]
                if len({len(run) for run in runs}) == 1:
                    self.costs[stage][size] += [min(same) for same in zip(*runs, strict=True)]
                else:  # a voice does not say a phrase twice in the same way
                    fastest: list[float] = min(runs, key=lambda run: _mean(run))
                    self.costs[stage][size] += fastest

    def tick(self, rooms: int, repeats: int = 30) -> float:
        """Seconds that a window of each of ``rooms`` takes: the lower quartile, since ticks are short."""
        windows = np.zeros((rooms, VAD_WINDOW), np.float32)
        taken = []
        for _ in range(repeats):
            began = self._clock()
            self._engines.vad.probabilities(list(range(rooms)), windows)
            taken.append(self._clock() - began)
        for slot in range(rooms):
            self._engines.vad.reset(slot)
        return sorted(taken)[repeats // 4]

    def speak_alone(self, text: str) -> float:
        """Seconds of speech; it is what the callers say."""
        tts = self._engines.tts
        tts.start(1, text)
        blocks = []
        while tts.running():
            for out in tts.step([1]):
                blocks.append(_audio(out))
        samples = np.concatenate(blocks).astype(np.float32) / 32768.0
        positions = np.arange(0, len(samples), tts.sample_rate / SAMPLE_RATE)
        self._speech[text] = np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)
        return len(samples) / tts.sample_rate

    def transcribe(self, size: int, number: int) -> None:
        """Utterances of ``size`` rooms that ended together."""
        stt = self._engines.stt
        if size > max(stt.max_encode, stt.max_batch):
            return
        for request, text in enumerate(_some(SAID, size, number), 1):
            stt.start(request, Utterance(self._speech[text], "en"))
        while waiting := sorted(stt.running()):
            encoding = [request for request in waiting if stt.next_step(request) == "encode"]
            stage, limit = (Stage.ENCODE, stt.max_encode) if encoding else (Stage.TRANSCRIBE, stt.max_batch)
            batch = (encoding or waiting)[:limit]
            began = self._clock()
            stt.step(batch)
            self.taken[stage][len(batch)].append(self._clock() - began)

    def answer(self, size: int, number: int) -> None:
        """The second turn of ``size`` conversations: the first one and the system prompt are in the cache."""
        llm = self._engines.llm
        sampling = Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS)
        requests = list(range(1, size + 1))
        chats = [[Message("system", SYSTEM), Message("user", text)] for text in _some(SAID, size, number)]
        for request, chat in zip(requests, chats, strict=True):
            llm.start(request, request - 1, chat, sampling)
        said = self._generate(requests, measured=False)
        for request, chat, text in zip(requests, chats, _some(SAID, size, number + 3), strict=True):
            chat += [Message("assistant", "".join(said[request])), Message("user", text)]
            llm.start(request, request - 1, chat, sampling)
        self.answers += self._generate(requests, measured=True).values()
        for request in requests:
            llm.release(request - 1)

    def _generate(self, requests: Sequence[int], *, measured: bool) -> dict[int, list[str]]:
        """All of them prompt by prompt, then together token by token, while all of them answer."""
        llm = self._engines.llm
        pieces: dict[int, list[str]] = {request: [] for request in requests}
        steps = 0
        began = self._clock()
        while not all(pieces[request] for request in requests) and steps < 64 * len(requests):
            _collect(llm.step(frozenset(request for request in requests if not pieces[request])), pieces)
            steps += 1
        if measured and steps:
            # A step takes a bounded number of prompt tokens: several of them are one prefill here.
            self.taken[Stage.PREFILL][len(requests)].append(self._clock() - began)
        while llm.running():
            answering = llm.running()
            began = self._clock()
            _collect(llm.step(), pieces)
            if measured:
                self.taken[Stage.DECODE][len(answering)].append(self._clock() - began)
        return pieces

    def speak(self, size: int, number: int) -> None:
        """A phrase of each of ``size`` rooms, as many at once as the engine takes into a step."""
        tts = self._engines.tts
        resting = list(range(1, size + 1))
        for request, text in zip(resting, _some(SAID, size, number), strict=True):
            tts.start(request, text)
        while running := sorted(tts.running()):
            resting = [request for request in resting if request in running]
            stage, batch = (Stage.FIRST_SPEECH, resting) if resting else (Stage.SPEECH, running)
            began = self._clock()
            made = tts.step(batch)
            self.taken[stage][len(made)].append(self._clock() - began)
            blocks_s = self.first_blocks_s if stage is Stage.FIRST_SPEECH else self.blocks_s
            blocks_s += [len(_audio(out)) / tts.sample_rate for out in made]
            served = {out.request for out in made}
            # Who is served goes to the end, as the planner would have it.
            resting = [request for request in resting if request not in served]


def _no_quanta() -> Quanta:
    return defaultdict(lambda: defaultdict(list))


def _collect(outs: Sequence[Any], pieces: dict[int, list[str]]) -> None:
    for out in outs:
        if not isinstance(out, TokensOut):
            raise EngineError(f"language model: {out.error}")
        # A token that gave no text yet is one all the same; an end before any text is an answer, too.
        pieces[out.request].append(out.text)


def _audio(out: SpeechOut | SpeechFailed) -> Any:
    if isinstance(out, SpeechFailed):
        raise EngineError(f"voice: {out.error}")
    return out.audio


def _some(texts: Sequence[str], count: int, begin: int) -> list[str]:
    return [texts[(begin + number) % len(texts)] for number in range(count)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
