"""Rooms whose KV cache lies in host memory while they are idle, with the real model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.engines.base import EngineError, EngineOptions, GenerationFailed, Message, Sampling, TokensOut
from inference.engines.llm import LlamaLanguageModel

pytestmark = pytest.mark.models

ROOMS = 4
CONTEXT = 256
SYSTEM = Message("system", "You are a friendly voice assistant. Answer in one short sentence.")
GREEDY = Sampling(temperature=0.0, max_tokens=16)
QUESTIONS = ("What is the sun?", "How far is it from here?", "And how old is the moon?")


def engine(model: Path, resident_rooms: int) -> LlamaLanguageModel:
    llm = LlamaLanguageModel()
    llm.load(model, EngineOptions("cpu", 2, ROOMS, CONTEXT, resident_rooms))
    return llm


@pytest.fixture(scope="module")
def loaded(language_model_file: Path) -> Iterator[LlamaLanguageModel]:
    llm = engine(language_model_file, 1)
    yield llm
    llm.close()


@pytest.fixture
def small(loaded: LlamaLanguageModel) -> LlamaLanguageModel:
    for slot in range(ROOMS):
        loaded.release(slot)
    return loaded


def finish(llm: LlamaLanguageModel) -> dict[int, tuple[str, TokensOut]]:
    texts: dict[int, str] = {}
    ends: dict[int, TokensOut] = {}
    for _ in range(2000):
        if not llm.running():
            return {request: (texts[request], end) for request, end in ends.items()}
        for out in llm.step():
            assert not isinstance(out, GenerationFailed), out.error
            texts[out.request] = texts.get(out.request, "") + out.text
            if out.finish:
                ends[out.request] = out
    raise AssertionError(f"still running: {llm.running()}")


def conversation(llm: LlamaLanguageModel, between: bool) -> list[tuple[str, int]]:
    """Three turns of room 0, with a long prompt of each other room ``between`` them: replies, and tokens not cached."""
    history = [SYSTEM]
    seen = []
    for turn, question in enumerate(QUESTIONS):
        history.append(Message("user", question))
        llm.start(turn, 0, history, GREEDY)
        text, end = finish(llm)[turn]
        seen.append((text, end.prompt_tokens - end.cached_tokens))
        history.append(Message("assistant", text))
        if between:
            for slot in range(1, ROOMS):
                llm.start(90, slot, [SYSTEM, Message("user", f"{slot} {turn} " + "sea " * 150)], GREEDY)
                finish(llm)
    return seen


def test_a_room_that_was_parked_goes_on_as_if_it_had_not_been(
    small: LlamaLanguageModel, language_model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    everything = engine(language_model_file, 0)
    alone = conversation(everything, between=False)
    everything.close()
    with caplog.at_level(logging.DEBUG, logger="inference.llm"):
        parked = conversation(small, between=True)
    assert sum("slot 0 parked" in record.message for record in caplog.records) == len(QUESTIONS)
    assert [text for text, _ in parked] == [text for text, _ in alone]
    # The system prompt is computed once; after that only what is new, and never a turn again.
    assert [new for _, new in parked] == [new for _, new in alone]


def test_rooms_that_do_not_fit_together_are_answered_one_after_the_other(small: LlamaLanguageModel) -> None:
    for slot in range(ROOMS):
        small.start(slot, slot, [SYSTEM, Message("user", f"{slot} " + "sea " * 150)], GREEDY)
    ends = finish(small)
    assert sorted(ends) == list(range(ROOMS))
    assert all(end.finish for _, end in ends.values())


def test_a_room_gives_way_to_one_that_is_urgent_and_goes_on_later(
    small: LlamaLanguageModel, language_model_file: Path
) -> None:
    long = [SYSTEM, Message("user", "Tell me a story. " + "sea " * 150)]
    small.start(1, 0, long, GREEDY)
    texts = {1: "", 2: ""}

    def step(urgent: frozenset[int] | None) -> None:
        for out in small.step(urgent):
            assert isinstance(out, TokensOut)
            texts[out.request] += out.text

    while not texts[1]:
        step(None)
    small.start(2, 1, long, GREEDY)
    while 2 in small.running():
        step(frozenset({2}))
    assert texts[2]
    while small.running():
        step(None)
    everything = engine(language_model_file, 0)
    everything.start(1, 0, long, GREEDY)
    alone = finish(everything)[1][0]
    everything.close()
    assert texts[1] == alone


def test_rooms_that_outgrow_the_pool_while_they_answer_end_all_the_same(small: LlamaLanguageModel) -> None:
    wordy = Sampling(temperature=0.0, max_tokens=90, repeat_penalty=1.3)
    for slot in range(ROOMS):
        small.start(slot, slot, [SYSTEM, Message("user", f"Tell me story number {slot}.")], wordy)
    ends = finish(small)
    assert sorted(ends) == list(range(ROOMS))
    assert sum(end.prompt_tokens + end.completion_tokens for _, end in ends.values()) > CONTEXT


def test_a_parked_room_can_leave(small: LlamaLanguageModel) -> None:
    for slot in range(2):
        small.start(slot, slot, [SYSTEM, Message("user", f"{slot} " + "sea " * 150)], GREEDY)
        finish(small)
    small.release(0)
    small.start(3, 0, [Message("user", "Hello.")], GREEDY)
    assert finish(small)[3][1].cached_tokens == 0


def test_more_resident_rooms_than_rooms_are_refused(language_model_file: Path) -> None:
    with pytest.raises(EngineError, match=r"resident_rooms is 5, allowed: 0\.\.4"):
        engine(language_model_file, 5)
