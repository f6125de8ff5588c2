"""A step of the real model with tools: calls that parse, or an answer, whatever is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from host.job.tool_text import CALL_TOKENS, CallParser, FunctionCall, grammar_for, instructions_for
from host.job.tools import RunContext, find_tools, function_tool
from inference.engines.base import EngineOptions, GenerationFailed, Message, Sampling
from inference.engines.llm import LlamaLanguageModel

pytestmark = pytest.mark.models

ODD = ("", "Bring minus three soups on the 35th of Nevember.", "<tool_call>", 'Say "{}[]\\".')


@dataclass
class Dish:
    name: Literal["soup", "bread"]
    count: Annotated[int, range(1, 9)] = 1


@function_tool
def order(dish: Dish, when: float | None, by: Literal["bike", "car"] = "bike") -> None:
    """Order food."""


@function_tool
def call_back() -> None:
    """Have somebody call back."""


TOOLS = find_tools(order, call_back)
NOBODY: RunContext[Any] = RunContext(None, None, FunctionCall(""))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llm(language_model_file: Path) -> Iterator[LlamaLanguageModel]:
    engine = LlamaLanguageModel()
    engine.load(language_model_file, EngineOptions(device="cpu", threads=1, max_rooms=1, context_tokens=2048))
    yield engine
    engine.close()


def write(llm: LlamaLanguageModel, requests: tuple[str, ...], choice: str, tools: Any = TOOLS) -> list[str]:
    """What the model writes to each, at a temperature that makes it write anything."""
    texts: list[str] = []
    system = f"You take orders.\n\n{instructions_for(tools)}"
    for seed, request in enumerate(requests):
        sampling = Sampling(
            temperature=1.5,
            top_p=1.0,
            seed=seed,
            max_tokens=30 if choice == "none" else CALL_TOKENS,
            grammar=grammar_for(tools, choice),
        )
        llm.start(seed, 0, [Message("system", system), Message("user", request)], sampling)
        text = ""
        while llm.running():
            for out in llm.step():
                assert not isinstance(out, GenerationFailed), out.error
                text += out.text
        texts.append(text)
    return texts


def read(text: str) -> tuple[str, tuple[FunctionCall, ...]]:
    parser = CallParser()
    return parser.push(text), parser.finish()


def test_every_call_parses_and_can_be_made(llm: LlamaLanguageModel) -> None:
    tools = {tool.name: tool for tool in TOOLS}
    for text in write(llm, ODD, "required"):
        said, calls = read(text)
        assert said == ""
        assert 1 <= len(calls) <= 4, text
        assert text.count("<tool_call>\n{") == len(calls)
        for call in calls:
            tools[call.name].call(call.arguments, NOBODY)


def test_a_named_tool_is_called_once_with_what_is_allowed(llm: LlamaLanguageModel) -> None:
    (narrowed,) = find_tools(order.narrowed(by=["car"]))
    for text in write(llm, ODD[1:3], "order", [narrowed, call_back]):
        _, (call,) = read(text)
        assert call.name == "order"
        assert json.loads(call.arguments)["by"] == "car"


def test_without_a_choice_there_is_no_call(llm: LlamaLanguageModel) -> None:
    for text in write(llm, ODD[:2], "none"):
        assert text
        assert "<" not in text
        assert read(text) == (text, ())
