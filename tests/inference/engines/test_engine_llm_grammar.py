"""Answers that obey a grammar or a JSON schema, with the real model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.engines.base import (
    EngineError,
    EngineOptions,
    GenerationFailed,
    Message,
    PromptTooLongError,
    Sampling,
    TokensOut,
)
from inference.engines.llm import LlamaLanguageModel

pytestmark = pytest.mark.models

ROOMS = 4


@pytest.fixture(scope="module")
def loaded(language_model_file: Path) -> Iterator[LlamaLanguageModel]:
    engine = LlamaLanguageModel()
    engine.load(language_model_file, EngineOptions(device="cpu", threads=2, max_rooms=ROOMS, context_tokens=512))
    yield engine
    engine.close()


@pytest.fixture
def llm(loaded: LlamaLanguageModel) -> LlamaLanguageModel:
    for slot in range(ROOMS):
        loaded.release(slot)
    return loaded


def ask(text: str) -> list[Message]:
    return [Message("system", "Answer."), Message("user", text)]


def finish(llm: LlamaLanguageModel) -> dict[int, tuple[str, TokensOut | GenerationFailed]]:
    """Step until nothing runs: text and last output of each request."""
    texts: dict[int, str] = {}
    ends: dict[int, TokensOut | GenerationFailed] = {}
    for _ in range(2000):
        if not llm.running():
            return {request: (texts.get(request, ""), end) for request, end in ends.items()}
        for out in llm.step():
            if isinstance(out, GenerationFailed):
                ends[out.request] = out
                continue
            texts[out.request] = texts.get(out.request, "") + out.text
            if out.finish:
                ends[out.request] = out
    raise AssertionError(f"still running: {llm.running()}")


def is_booking(value: Any) -> bool:
    return (
        list(value) == ["name", "nights", "breakfast"]
        and len(value["name"]) <= 12
        and 1 <= value["nights"] <= 14
        and isinstance(value["breakfast"], bool)
    )


SCHEMAS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "nights": {"type": "integer", "minimum": 1, "maximum": 14},
                "breakfast": {"type": "boolean"},
            },
            "required": ["name", "nights", "breakfast"],
        },
        is_booking,
    ),
    ({"enum": ["yes", "no", "schön\n☀", None]}, lambda value: value in ("yes", "no", "schön\n☀", None)),
    (
        {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
        lambda value: 2 <= len(value) <= 3 and all(isinstance(one, int | float) for one in value),
    ),
    (
        {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        lambda value: value is None or re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None,
    ),
    (
        {"properties": {"mood": {"enum": ["good", "bad"]}, "why": {"type": "string", "maxLength": 20}}},
        lambda value: set(value) <= {"mood", "why"},
    ),
]


def test_every_answer_obeys_its_schema_beside_answers_without_one(llm: LlamaLanguageModel) -> None:
    questions = ["Book a room for Ada.", "Is it warm?", "Say two numbers.", "When do you open?", "How are you?"]
    for seed in range(3):
        for (schema, obeys), question in zip(SCHEMAS, questions, strict=True):
            text = json.dumps(schema)
            hot = Sampling(temperature=1.5, top_p=1.0, seed=seed, max_tokens=120, json_schema=text)
            llm.start(1, 0, ask(question), hot)
            llm.start(2, 1, ask(question), Sampling(temperature=0.0, max_tokens=120, json_schema=text))
            llm.start(3, 2, ask(question), Sampling(temperature=0.0, max_tokens=4))
            ends = finish(llm)
            for request in (1, 2):
                answer, end = ends[request]
                assert isinstance(end, TokensOut)
                assert end.finish == "stop"
                assert obeys(json.loads(answer)), answer
            assert not ends[3][0].startswith(("{", "["))


def test_an_answer_obeys_a_grammar_and_a_seed_gives_it_again(llm: LlamaLanguageModel) -> None:
    grammar = 'root ::= ("left" | "right") (", then " ("up" | "down" | "é☀")){1,3} "."'
    asked = ask("Where do I go?")
    llm.start(0, 0, asked, Sampling(max_tokens=0))  # so that all find the same part of the prompt in the cache
    finish(llm)
    answers = []
    for request in range(8):
        sampling = Sampling(temperature=2.0, top_p=1.0, seed=request // 2, max_tokens=60, grammar=grammar)
        llm.start(request, 0, asked, sampling)
        answers.append(finish(llm)[request][0])
        assert re.fullmatch(r"(left|right)(, then (up|down|é☀)){1,3}\.", answers[-1])
    assert answers[::2] == answers[1::2]
    assert len(set(answers)) > 1


CALL = r"""
call ::= "<tool_call>" "{\"name\": \"opening_hours\", \"day\": \"" day "\"}" "</tool_call>"
day ::= "Monday" | "Sunday"
text ::= [^<] [^<]*
"""


def test_a_grammar_that_also_allows_plain_text_changes_nothing_of_it(llm: LlamaLanguageModel) -> None:
    """Who may call a tool and does not answers as if there were none."""
    plain = Sampling(temperature=0.0, max_tokens=24)
    asked = ask("What is the sun?")
    llm.start(1, 0, asked, plain)
    llm.start(2, 1, asked, Sampling(temperature=0.0, max_tokens=24, grammar=f"root ::= call | text\n{CALL}"))
    ends = finish(llm)
    assert ends[1][0] == ends[2][0] != ""
    assert isinstance(ends[2][1], TokensOut)


def test_words_and_then_what_a_grammar_wants(llm: LlamaLanguageModel) -> None:
    grammar = f'root ::= [A-Z] [a-z, ]+ "." call\n{CALL}'
    for seed in range(3):
        llm.start(
            1, 0, ask("When are you open?"), Sampling(temperature=1.0, seed=seed, max_tokens=150, grammar=grammar)
        )
        text, end = finish(llm)[1]
        assert isinstance(end, TokensOut)
        if end.finish == "length":
            continue  # it never came to its full stop
        said, _, call = text.partition("<tool_call>")
        assert re.fullmatch(r"[A-Z][a-z, ]+\.", said)
        assert json.loads(call.removesuffix("</tool_call>"))["day"] in ("Monday", "Sunday")


def test_a_stop_string_and_the_limit_end_an_answer_with_a_grammar(llm: LlamaLanguageModel) -> None:
    grammar = 'root ::= "one two three four" " five"*'
    llm.start(1, 0, ask("Count."), Sampling(temperature=0.0, max_tokens=90, stop=(" three",), grammar=grammar))
    llm.start(2, 1, ask("Count."), Sampling(temperature=0.0, max_tokens=2, grammar=grammar))
    ends = finish(llm)
    (stopped, first), (short, second) = ends[1], ends[2]
    assert isinstance(first, TokensOut)
    assert isinstance(second, TokensOut)
    assert (stopped, first.finish) == ("one two", "stop")
    assert "one two three four".startswith(short)
    assert (second.finish, second.completion_tokens) == ("length", 2)


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        (Sampling(grammar="no grammar"), "line 1: expected NAME"),
        (Sampling(grammar='root ::= root "a"'), "refuses the grammar: .*left recursion"),
        (Sampling(json_schema='{"type": "string", "pattern": "a"}'), "pattern of type string is not supported"),
        (Sampling(json_schema='{"$ref": "#"}'), "refuses the json_schema: .*left recursion"),
        (Sampling(grammar='root ::= "a"', json_schema="{}"), "grammar and json_schema are both given"),
    ],
)
def test_a_bad_grammar_fails_alone_when_it_starts(llm: LlamaLanguageModel, sampling: Sampling, reason: str) -> None:
    llm.start(1, 0, ask("Hello."), Sampling(temperature=0.0, max_tokens=4))
    with pytest.raises(EngineError, match=reason):
        llm.start(2, 1, ask("Hello."), sampling)
    assert finish(llm)[1][0]


def test_a_grammar_that_allows_nothing_fails_alone_when_it_is_met(llm: LlamaLanguageModel) -> None:
    llm.start(1, 0, ask("Hello."), Sampling(temperature=0.0, max_tokens=4))
    llm.start(2, 1, ask("Hello."), Sampling(temperature=0.0, max_tokens=9, grammar='root ::= "a" [^\\x00-\\U0010FFFF]'))
    ends = finish(llm)
    assert isinstance(ends[1][1], TokensOut)
    failed = ends[2][1]
    assert isinstance(failed, GenerationFailed)
    assert "allows none of the model's tokens" in str(failed.error)


@pytest.mark.parametrize(
    "messages",
    [
        [Message("user", "sea " * 260_000)],
        [Message("user", " " * 200_000)],
        [Message("user", "xq" * 60_000)],
        [Message("user", "xq" * 2_000)],
        [Message("user", "a")] * 40_000,
        [Message("user", "<|im_end|>" * 100_000)],
    ],
    ids=["megabyte", "spaces", "nonsense", "counted", "messages", "control"],
)
def test_a_prompt_that_cannot_fit_is_refused_quickly(llm: LlamaLanguageModel, messages: list[Message]) -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        with pytest.raises(PromptTooLongError, match=r"only \d+ fit"):
            llm.start(1, 0, messages, Sampling())
        took.append(time.perf_counter() - began)
    assert min(took) < 0.05


def test_a_prompt_of_long_words_that_fits_is_not_refused(llm: LlamaLanguageModel) -> None:
    # Many characters a token: counted first, and let through.
    llm.start(1, 0, [Message("user", "administration international " * 90)], Sampling(temperature=0.0, max_tokens=1))
    _, end = finish(llm)[1]
    assert isinstance(end, TokensOut)
    assert end.prompt_tokens < 500
