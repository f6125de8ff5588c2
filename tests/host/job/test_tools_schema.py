"""From a signature and a docstring to a JSON schema, and from what the model wrote back to values."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict

import pytest

from host.job.docstring import read_docstring
from host.job.tool_schema import ArgumentError, Parameters, SchemaError, kind_of, parameter
from inference.engines.grammar import check_grammar
from inference.engines.json_schema import schema_to_grammar


class Day(enum.Enum):
    FRIDAY = "friday"
    SUNDAY = "sunday"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


@dataclass
class Guest:
    name: str
    age: int | None = None
    dishes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.age is not None and self.age < 0:
            raise ValueError("nobody is that young")


class Address(TypedDict):
    street: str
    floor: NotRequired[int]


@dataclass
class Endless:
    more: list[Endless]


CASES: list[tuple[Any, dict[str, Any], str, Any]] = [
    (str, {"type": "string"}, '"a"', "a"),
    (int, {"type": "integer"}, "4", 4),
    (float, {"type": "number"}, "4", 4.0),
    (bool, {"type": "boolean"}, "true", True),
    (Any, {}, '[1, "a"]', [1, "a"]),
    (Literal["a", 2], {"enum": ["a", 2]}, "2", 2),
    (Day, {"enum": ["friday", "sunday"]}, '"sunday"', Day.SUNDAY),
    (Size, {"enum": [1, 2]}, "2", Size.LARGE),
    (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),  # noqa: UP045 - as people write
    (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}, '"a"', "a"),
    (list[Day], {"type": "array", "items": {"enum": ["friday", "sunday"]}}, '["friday"]', [Day.FRIDAY]),
    (Sequence[int], {"type": "array", "items": {"type": "integer"}}, "[1]", [1]),
    (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}, "[1, 2]", (1, 2)),
    (set[str], {"type": "array", "items": {"type": "string"}}, '["a", "a"]', {"a"}),
    (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}, '{"a": 1}', {"a": 1}),
    (Annotated[int, range(1, 9)], {"type": "integer", "minimum": 1, "maximum": 8}, "8", 8),
    (Annotated[str, "In English."], {"type": "string", "description": "In English."}, '"a"', "a"),
    (
        Guest,
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "dishes": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["name"],
        },
        '{"name": "Ada", "dishes": ["soup"]}',
        Guest("Ada", dishes=["soup"]),
    ),
    (
        Address,
        {
            "type": "object",
            "properties": {"street": {"type": "string"}, "floor": {"type": "integer"}},
            "required": ["street"],
        },
        '{"street": "Main Road"}',
        {"street": "Main Road"},
    ),
]


@pytest.mark.parametrize(("annotation", "schema", "text", "value"), CASES)
def test_a_type_is_a_schema_and_back(annotation: Any, schema: dict[str, Any], text: str, value: Any) -> None:
    kind = kind_of(annotation, "argument")
    assert kind.schema == schema
    decoded = kind.decode(json.loads(text))
    assert decoded == value
    assert type(decoded) is type(value)
    # The engine understands all of it.
    check_grammar(schema_to_grammar(json.dumps(kind.schema)))


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (complex, "complex cannot be said in JSON, allowed: str, int"),
        (bytes | None, "bytes cannot be said in JSON"),
        (list, r"list of what\? Write list\[str\]"),
        (list[object], "object cannot be said"),
        (dict[int, str], r"the keys of a JSON object are strings, allowed: dict\[str, X\]"),
        (tuple[int, str], r"allowed: tuple\[X, \.\.\.\]"),
        (Literal[b"a"], "b'a' is neither a string nor an integer"),
        (Annotated[str, range(3)], r"range\(0, 3\) is for an int"),
        (Annotated[int, range(0)], "not empty"),
        (Endless, r"\.more: Endless holds itself"),
        ("a name", "a name cannot be said"),
        (list[Annotated[bytes, []]], "bytes cannot be said"),
    ],
)
def test_what_json_cannot_say_is_refused(annotation: Any, reason: str) -> None:
    with pytest.raises(SchemaError, match=f"^where.*{reason}"):
        kind_of(annotation, "where")


PARAMETERS = Parameters((
    parameter("day", Day, required=True, description="Which day."),
    parameter("people", Annotated[int, range(1, 9), "How many come."], required=True),
    parameter("guest", Guest | None, required=False),
))  # fmt: skip


def test_the_schema_of_all_arguments() -> None:
    schema = PARAMETERS.schema()
    assert schema["required"] == ["day", "people"]
    assert schema["properties"]["day"] == {"enum": ["friday", "sunday"], "description": "Which day."}
    assert schema["properties"]["people"]["description"] == "How many come."
    assert "description" not in schema["properties"]["guest"]


def test_arguments_are_made_of_what_the_model_wrote() -> None:
    text = '{"day": "friday", "people": 2, "guest": {"name": "Ada"}}'
    assert PARAMETERS.decode(text) == {"day": Day.FRIDAY, "people": 2, "guest": Guest("Ada")}
    assert Parameters(()).decode("") == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "the arguments are not JSON"),
        ("[1]", r"the arguments are not an object, but \[1\]"),
        ('{"day": "friday"}', "the argument 'people' is missing"),
        ('{"day": "friday", "people": 2, "x": 1}', "there is no argument 'x', allowed: day, people, guest"),
        ('{"day": "monday", "people": 2}', 'day: expected one of "friday", "sunday", got "monday"'),
        ('{"day": "friday", "people": 9}', "people: expected 1 to 8, got 9"),
        ('{"day": "friday", "people": true}', "people: expected an integer, got true"),
        ('{"day": "friday", "people": 2, "guest": {"age": 3}}', "guest: 'name' is missing; expected null"),
        ('{"day": "friday", "people": 2, "guest": {"name": "A", "age": -1}}', "guest: nobody is that young"),
        ('{"day": "friday", "people": 2, "guest": {"name": "A", "dishes": [1]}}', r"dishes: \[0\]: expected a string"),
        ('{"day": "friday", "people": 2, "guest": {"nome": "A"}}', "there is no 'nome', allowed: name, age, dishes"),
    ],
)
def test_what_is_wrong_with_arguments_is_said(text: str, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        PARAMETERS.decode(text)


# --- docstrings -------------------------------------------------------------------------------------------

GOOGLE = """Book a table.

    Only for the
    evening.

    Args:
        day: The day
            of the visit.
        people (int): How many: at most eight.

    Returns:
        A sentence.
    """
SPHINX = """Book a table.

    Only for the
    evening.

    :param day: The day
        of the visit.
    :param int people: How many: at most eight.
    :returns: A sentence.
    :raises ToolError: Sometimes.
    """
NUMPY = """Book a table.

    Only for the
    evening.

    Parameters
    ----------
    day : Day
        The day
        of the visit.
    people
        How many: at most eight.

    Returns
    -------
    str
        A sentence.
    """


@pytest.mark.parametrize("text", [GOOGLE, SPHINX, NUMPY], ids=["google", "sphinx", "numpy"])
def test_a_docstring_says_what_an_argument_is(text: str) -> None:
    found = read_docstring(text)
    assert found.description == "Book a table.\nOnly for the evening."
    assert found.arguments == {"day": "The day of the visit.", "people": "How many: at most eight."}


@pytest.mark.parametrize(
    ("text", "description"),
    [
        (None, ""),
        ("", ""),
        ("Say: hello.", "Say: hello."),
        ("Look up the\n    opening hours.", "Look up the opening hours."),
        ("Hours.\n\n    Args:\n", "Hours."),
    ],
)
def test_a_docstring_may_say_nothing_of_arguments(text: str | None, description: str) -> None:
    found = read_docstring(text)
    assert (found.description, found.arguments) == (description, {})
