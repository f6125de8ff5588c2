"""What the model reads of tools, the grammar of what it may write, and how that is read."""

from __future__ import annotations

import json
import random
from typing import Annotated, Any, Literal

import pytest

from host.job.tool_text import (
    CallParser,
    FunctionCall,
    FunctionCallOutput,
    call_message,
    distinct,
    grammar_for,
    instructions_for,
    result_message,
)
from host.job.tools import function_tool
from inference.engines.grammar import check_grammar
from inference.engines.json_schema import put_schemas
from inference.wire.messages import ChatMessage


@function_tool
def opening_hours(day: Annotated[Literal["friday", "sunday"], "In English."]) -> str:
    """When it is open."""
    return day


@function_tool
def order(dishes: list[str], to: str | None = None) -> None:
    """Orders food."""


TOOLS = (opening_hours, order)
CALL = '<tool_call>\n{"name": "opening_hours", "arguments": {"day": "friday"}}\n</tool_call>'


def read(text: str, size: int = 1) -> tuple[str, tuple[FunctionCall, ...]]:
    parser = CallParser()
    said = "".join(parser.push(text[at : at + size]) for at in range(0, len(text), size))
    return said, parser.finish()


def test_the_model_is_told_each_tool_on_a_line() -> None:
    lines = [line for line in instructions_for(TOOLS).splitlines() if line.startswith("- ")]
    assert lines == [
        '- opening_hours({"day": "friday" | "sunday"}) When it is open. day: In English.',
        '- order({"dishes": [string, ...], "to"?: string | null}) Orders food.',
    ]
    assert instructions_for([]) == ""


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        ({"type": "object", "properties": {}}, "{}"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "{string: integer, ...}"),
        ({"type": "object"}, "object"),
        ({"properties": {"a": {"const": 1}}, "required": ["a"]}, '{"a": 1}'),
        ({"type": "integer", "minimum": 1, "maximum": 8}, "1 to 8"),
        ({"type": "integer", "minimum": 1}, "integer"),
        ({"type": ["number", "null"]}, "number | null"),
        ({"type": "string", "format": "date"}, "date"),
        ({"type": "array"}, "[any, ...]"),
        ({"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"enum": ["a", 2]}}]}, 'boolean | ["a" | 2, ...]'),
        (True, "any"),
    ],
)
def test_a_type_is_told_shortly(schema: Any, shown: str) -> None:
    tool = Described({"type": "object", "properties": {"x": schema}, "required": ["x"]})
    assert f'- odd({{"x": {shown}}})\n' in instructions_for([tool])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_calls_are_read_and_nothing_of_them_is_said(size: int) -> None:
    said, (call,) = read(CALL, size)
    assert (said, call) == ("", FunctionCall("opening_hours", '{"day": "friday"}', raw=CALL))
    said, calls = read(f'{CALL}\n<tool_call> {{"name": "order", "arguments": {{"dishes": []}}}} </tool_call>', size)
    assert [(call.name, call.arguments) for call in calls] == [
        ("opening_hours", '{"day": "friday"}'),
        ("order", '{"dishes": []}'),
    ]


@pytest.mark.parametrize("text", ["Hello.", "<b>Hello</b>", "<tool", "", "We say <tool_call> here.", " \n Yes."])
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_an_answer_is_said_as_it_comes(text: str, size: int) -> None:
    said, calls = read(text, size)
    assert calls == ()
    # What might have become a call and did not is nothing that a person would say.
    assert said == ("" if "<tool_call>".startswith(text) else text)


def test_an_answer_is_not_held_back() -> None:
    parser = CallParser()
    assert [parser.push(text) for text in ("W", "e", " are")] == ["W", "e", " are"]
    assert parser.pieces == 3


@pytest.mark.parametrize(
    "text",
    [
        CALL[:-1],
        CALL[:40],
        "<tool_call>",
        '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
        "<tool_call>\n[]\n</tool_call>",
        '<tool_call>\n{"name": "a"} and </tool_call>',
        "<tool_call>\nnonsense\n</tool_call>",
    ],
)
def test_what_is_no_whole_call_is_none(text: str) -> None:
    assert read(text) == ("", ())


def test_a_call_may_hold_what_ends_one() -> None:
    text = json.dumps({"name": "order", "arguments": {"dishes": ["</tool_call>", "<tool_call>"]}})
    _, (call,) = read(f"<tool_call>\n{text}\n</tool_call>")
    assert json.loads(call.arguments) == {"dishes": ["</tool_call>", "<tool_call>"]}


def test_the_conversation_keeps_what_the_model_wrote() -> None:
    _, calls = read(f"{CALL}\n{CALL.replace('friday', 'sunday')}")
    assert call_message(calls).content == f"{CALL}\n{CALL.replace('friday', 'sunday')}"
    own = FunctionCall("opening_hours", '{"day": "friday"}')
    assert call_message([own]) == ChatMessage("assistant", CALL)
    outputs = [FunctionCallOutput("1", "a", "Nine."), FunctionCallOutput("2", "b", "Ten.", is_error=True)]
    assert result_message(outputs) == ChatMessage(
        "user", "<tool_response>\nNine.\n</tool_response>\n<tool_response>\nTen.\n</tool_response>"
    )


def test_what_is_asked_twice_is_asked_once() -> None:
    one, two = FunctionCall("a", "{}"), FunctionCall("b", "{}", call_id="mine")
    found = distinct([one, two, one], iter(range(7, 9)))
    assert [(call.name, call.call_id) for call in found] == [("a", "call_7"), ("b", "mine")]


# --- the grammar ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "none", "required", "order"])
def test_the_grammar_is_one(choice: str) -> None:
    grammar = put_schemas(grammar_for(TOOLS, choice))
    check_grammar(grammar)
    assert ("opening_hours" in grammar) == (choice in ("auto", "required"))
    assert ("order" in grammar) == (choice != "none")


def test_a_choice_that_no_tool_obeys_is_refused() -> None:
    with pytest.raises(ValueError, match="tool_choice is 'fly', allowed: auto, none, required, opening_hours, order"):
        grammar_for(TOOLS, "fly")
    with pytest.raises(ValueError, match="there is no tool"):
        grammar_for([], "required")
    assert grammar_for([], "auto") == grammar_for([], "none") == ""


class Described:
    name = "odd"
    description = ""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters = self.allowed = parameters


def test_every_string_and_list_has_an_end() -> None:
    properties = {
        "type": {"type": ["string", "null"]},
        "enum": {"type": "array", "items": {"type": "string", "minLength": 300}},
        "day": {"enum": ["friday"]},
        "date": {"type": "string", "format": "date"},
        "short": {"type": "string", "maxLength": 3},
        "dishes": {
            "type": "array",
            "items": {"properties": {"without": {"type": "array", "items": {"type": "string"}}}},
        },
    }
    line = next(
        line for line in grammar_for([Described({"properties": properties})], "odd").splitlines() if "%json" in line
    )
    bounded = json.loads(line.partition("%json")[2])
    assert bounded["additionalProperties"] is False
    assert bounded["properties"] == {
        "type": {"type": ["string", "null"], "maxLength": 200},
        "enum": {"type": "array", "items": {"type": "string", "minLength": 300, "maxLength": 300}, "maxItems": 8},
        "day": {"enum": ["friday"]},
        "date": {"type": "string", "format": "date"},
        "short": {"type": "string", "maxLength": 3},
        "dishes": {
            "type": "array",
            "items": {
                "properties": {
                    "without": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 3},
                },
                "additionalProperties": False,
            },
            "maxItems": 8,
        },
    }
    assert properties["type"] == {"type": ["string", "null"]}, "the tool's own schema stays"


def test_the_grammar_is_of_what_is_allowed() -> None:
    grammar = grammar_for([opening_hours.narrowed(day=["sunday"])], "auto")
    assert '"enum": ["sunday"]' in grammar
    assert instructions_for([opening_hours.narrowed(day=["sunday"])]) == instructions_for([opening_hours])


def test_random_noise_is_read_without_a_fault() -> None:
    draw = random.Random(7)
    parts = ["<tool_call>", "</tool_call>", '{"name": "a", "arguments": {}}', "\n", "<", "text", "{", '"', "é"]
    for _ in range(2000):
        text = "".join(draw.choices(parts, k=draw.randint(0, 8)))
        said, calls = read(text, draw.randint(1, 12))
        assert said in ("", text)
        assert not (said and calls)
