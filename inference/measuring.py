"""What the engines' quanta cost on this device, measured once they are warm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from inference.costs import CostTable, Stage
from inference.engines.base import (
    Audio,
    LanguageModelEngine,
    Message,
    Sampling,
    SpeechFailed,
    SpeechToTextEngine,
    TextToSpeechEngine,
    TokensOut,
    Utterance,
)
from inference.runner import Engines

BUDGET_S = 4.0
"""About how long all of it may take; larger batches are left out where one is slow, and learned from use."""
SIZES = (1, 2, 4, 8, 16, 32)
_STEPS = 4
_PROMPT = "Tell me in one sentence what you can see from the window of a train that crosses the country at night."
_PHRASE = "Every room can hear me now, and I can hear every one of them."


Measured = tuple[Stage, int, float]
"""A quantum: how many it served, and its seconds."""


def measure(engines: Engines, speech: Audio, max_rooms: int, clock: Callable[[], float] = time.monotonic) -> CostTable:
    """The table of costs of ``engines`` for batches of up to ``max_rooms``.

    ``speech``: an utterance at 16 kHz. The engines are left as they were: nothing runs, no slot remembers. Whatever
    an engine cannot do here is left out; the table then knows what it assumes.
    """
    costs = CostTable()
    measures = (_speech_to_text, _language_model, _voice)
    for one in measures:
        allowed = BUDGET_S / len(measures)
        began = clock()
        for size in SIZES:
            if size > max_rooms or (size > 1 and 3 * (clock() - began) > allowed):
                break
            for stage, served, seconds in one(engines, speech, size, clock):
                costs.learn(stage, served, seconds)
    return costs


def _speech_to_text(engines: Engines, speech: Audio, size: int, clock: Callable[[], float]) -> Iterator[Measured]:
    stt: SpeechToTextEngine = engines.stt
    if size > max(stt.max_encode, stt.max_batch):
        return
    requests = list(range(1, size + 1))
    for request in requests:
        stt.start(request, Utterance(speech, "en"))
    try:
        while waiting := [request for request in requests if request in stt.running()]:
            encoding = [request for request in waiting if stt.next_step(request) == "encode"]
            stage, limit = (Stage.ENCODE, stt.max_encode) if encoding else (Stage.TRANSCRIBE, stt.max_batch)
            batch = (encoding or waiting)[:limit]
            began = clock()
            stt.step(batch)
            yield stage, len(batch), clock() - began
    finally:
        for request in requests:
            stt.cancel(request)


def _language_model(engines: Engines, _: Audio, size: int, clock: Callable[[], float]) -> Iterator[Measured]:
    llm: LanguageModelEngine = engines.llm
    sampling = Sampling(temperature=0.0, max_tokens=2 * _STEPS * (size + 1))
    requests = range(1, size + 1)
    for request in requests:
        # Each its own words from the first on, so that no prompt is found in another's cache.
        llm.start(request, request - 1, [Message("user", f"{request}. {_PROMPT}")], sampling)
    try:
        answering: set[int] = set()
        steps = 0
        began = clock()
        while len(answering) < size and steps < 64:
            answering |= {out.request for out in llm.step(frozenset(requests)) if isinstance(out, TokensOut)}
            steps += 1
        yield Stage.PREFILL, size, (clock() - began) / steps
        for _step in range(_STEPS):
            if llm.running() != frozenset(requests):
                return
            began = clock()
            llm.step(frozenset(requests))
            yield Stage.DECODE, size, clock() - began
    finally:
        for request in requests:
            llm.cancel(request)
            llm.release(request - 1)


def _voice(engines: Engines, _: Audio, size: int, clock: Callable[[], float]) -> Iterator[Measured]:
    tts: TextToSpeechEngine = engines.tts
    requests = list(range(1, size + 1))
    for request in requests:
        tts.start(request, _PHRASE)
    resting = list(requests)
    try:
        while tts.running():
            stage, batch = (Stage.FIRST_SPEECH, resting) if resting else (Stage.SPEECH, requests)
            began = clock()
            out = tts.step(batch)
            yield stage, len(out), clock() - began
            if not out or any(isinstance(one, SpeechFailed) for one in out):
                return
            # A step serves as many as fit into it, so some may still rest.
            resting = [request for request in resting if request not in {one.request for one in out}]
    finally:
        for request in requests:
            tts.cancel(request)
