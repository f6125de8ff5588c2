"""What the engines' quanta cost on this device, measured once they are warm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from inference.costs import CostTable, Stage
from inference.engines.base import (
    Audio,
    LanguageModelEngine,
    Message,
    Sampling,
    SpeechFailed,
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
            for stage, seconds in one(engines, speech, size, clock):
                costs.learn(stage, size, seconds)
    return costs


def _speech_to_text(
    engines: Engines, speech: Audio, size: int, clock: Callable[[], float]
) -> Iterator[tuple[Stage, float]]:
    if size > engines.stt.max_batch:
        return
    began = clock()
    engines.stt.transcribe([Utterance(speech, "en")] * size)
    yield Stage.TRANSCRIBE, clock() - began


def _language_model(engines: Engines, _: Audio, size: int, clock: Callable[[], float]) -> Iterator[tuple[Stage, float]]:
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
        yield Stage.PREFILL, (clock() - began) / steps
        yield from _decoding(llm, requests, clock)
    finally:
        for request in requests:
            llm.cancel(request)
            llm.release(request - 1)


def _decoding(
    llm: LanguageModelEngine, requests: Sequence[int], clock: Callable[[], float]
) -> Iterator[tuple[Stage, float]]:
    for _ in range(_STEPS):
        if llm.running() != frozenset(requests):
            return
        began = clock()
        llm.step(frozenset(requests))
        yield Stage.DECODE, clock() - began


def _voice(engines: Engines, _: Audio, size: int, clock: Callable[[], float]) -> Iterator[tuple[Stage, float]]:
    tts: TextToSpeechEngine = engines.tts
    requests = list(range(1, size + 1))
    for request in requests:
        tts.start(request, _PHRASE)
    stage = Stage.FIRST_SPEECH
    try:
        while tts.running() == frozenset(requests):
            began = clock()
            out = tts.step(requests)
            yield stage, clock() - began
            if any(isinstance(one, SpeechFailed) for one in out):
                return
            stage = Stage.SPEECH
    finally:
        for request in requests:
            tts.cancel(request)
