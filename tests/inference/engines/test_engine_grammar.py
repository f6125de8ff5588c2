"""Grammars and JSON schemas, without a model."""

from __future__ import annotations

import json
import re

import pytest

from inference.engines.base import EngineError
from inference.engines.grammar import check_grammar, literal
from inference.engines.json_schema import integers_between, put_schemas, schema_to_grammar


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "yes" | "no"',
        '# no "\nroot ::= (answer | [^"\\]]+ .)? # more\nanswer ::= "a\\"b" x{2,3} x{2} x*\nx ::= [\\x41-\\u00e9]{2,}',
        'root ::= "a"? b? c* ("d" e)*\nb ::= "x"? "y"? "z"?\nc ::= "c"\ne ::= "" | "e"',
        'root ::= one\n  | two\none ::= "1"\ntwo ::= "2"',
    ],
)
def test_a_grammar_passes(grammar: str) -> None:
    check_grammar(grammar)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("hello world", "line 1: expected NAME ::= ..., got 'hello'"),
        ("", "there is no rule named root"),
        ('start ::= "a"', "there is no rule named root"),
        ('root ::= "a"\n\nb ::= other', "line 3: there is no rule named other"),
        ('root ::= "a', "line 1: cannot read '\"a'"),
        ("root ::= [a", "line 1: cannot read '[a'"),
        ('root ::= "a"\x00', "line 1: cannot read '\\x00'"),
        ('root ::= ("a"', r"\( without \)"),
        ('root ::= "a")', r"line 1: \) without \("),
        ('root ::= ("a"\nb ::= "c")', "line 2: a rule begins inside parentheses"),
        ("root ::= " + "(" * 5000, "more than 100 parentheses deep"),
        ('root ::= "a"{3,99999}', "repeats more than 2000 times"),
        ('root ::= "a"{99999999999999999999}', "repeats more than 2000 times"),
        ("root ::= a a a a\na ::= b? b? b? b?\nb ::= c?\nc ::= [a-z]?", "too ambiguous"),
        ('root ::= x "a"\nx ::= "" | x', "rules that can be empty lead to one another"),
        ('root ::= ("a"*)*', "rule root: * repeats what can be empty"),
        ('root ::= ("a" | ""){3,9}', "rule root: {3,9} repeats what can be empty"),
        ('root ::= "a"{-1}', "cannot read '{-1}'"),
    ],
)
def test_what_is_wrong_with_a_grammar_is_said(grammar: str, reason: str) -> None:
    with pytest.raises(EngineError, match=reason if "\\(" in reason or "\\)" in reason else re.escape(reason)):
        check_grammar(grammar)


def test_a_literal_is_escaped() -> None:
    assert literal('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'


def matches(alternatives: str, text: str) -> bool:
    """Whether ``text`` matches a grammar of literals, classes, groups and fixed repeats: those are regular."""
    pattern = re.sub(r'"([^"]*)"', r"\1", alternatives).replace(" ", "")
    return re.fullmatch(pattern, text) is not None


@pytest.mark.parametrize(
    ("lowest", "highest"), [(0, 0), (0, 9), (1, 5), (7, 23), (10, 99), (98, 1003), (0, 1250), (199, 201), (456, 789)]
)
def test_integers_between_two_limits(lowest: int, highest: int) -> None:
    grammar = integers_between(lowest, highest)
    assert [n for n in range(1500) if matches(grammar, str(n))] == list(range(lowest, highest + 1))
    assert not matches(grammar, "007")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "json_schema is not JSON"),
        ("[" * 20_000, "json_schema is not JSON"),
        ("3", "$: expected a schema, got 3"),
        ('{"type": "text"}', '$: type is ["text"], allowed: string, integer'),
        ('{"type": "string", "pattern": "^a$"}', "$: pattern of type string is not supported"),
        (
            '{"properties": {"a": {"properties": {"b": {"type": "number", "minimum": 1}}}}}',
            "$.properties.a.properties.b",
        ),
        ('{"not": {}}', "$: not of type"),
        ('{"anyOf": []}', "$.anyOf: expected a list that is not empty"),
        ('{"anyOf": [{}], "type": "object"}', "$: type beside anyOf is not supported"),
        ('{"$ref": "https://example.org/schema"}', '$.$ref: "https://example.org/schema" is not in this schema'),
        ('{"$ref": "#/$defs/none"}', "$.$ref: there is no #/$defs/none"),
        ('{"type": "integer", "minimum": 3, "maximum": 2}', "$: no integer lies between its limits"),
        ('{"type": "string", "maxLength": 3000}', "$: minLength is 0, maxLength is 3000, allowed: 0..2000"),
        ('{"type": "array", "minItems": "2"}', '$: minItems is "2", expected a whole number'),
        ('{"items": ' * 70 + "{}" + "}" * 70, "more than 64 schemas deep"),
        (json.dumps({"properties": {str(n): {"enum": [n]} for n in range(2_500)}}), "the schema is too large"),
    ],
)
def test_a_schema_that_cannot_be_obeyed_is_refused(schema: str, reason: str) -> None:
    with pytest.raises(EngineError, match=re.escape(reason)):
        schema_to_grammar(schema)


def test_the_grammar_of_a_schema_is_one() -> None:
    schema = {
        "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}, "title": "A tree"}},
        "type": "object",
        "properties": {
            "tree": {"$ref": "#/$defs/tree"},
            "either": {"anyOf": [{"type": "null"}, {"const": 'a "b"\n'}, {"enum": [1, "x", None]}]},
            "number": {"type": ["number", "null"], "description": "any"},
            "small": {"type": "integer", "minimum": -5, "exclusiveMaximum": 12},
            "words": {"items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 3},
            "pair": {"prefixItems": [{"type": "integer"}, True]},
            "when": {"type": "string", "format": "date-time"},
            "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "any": {},
        },
        "required": ["tree", "more"],
        "additionalProperties": False,
    }
    check_grammar(schema_to_grammar(json.dumps(schema)))


def test_schemas_stand_in_a_grammar() -> None:
    properties = {"root": {"type": "string", "maxLength": 3}, "r1 char": {"enum": ["r1", 'a"b']}}
    schema = json.dumps({"type": "object", "properties": properties, "required": ["root"]})
    grammar = f'root ::= "a" one | two\none ::= %json {schema}\n  two ::= %json {{"type": "integer"}}\n'
    check_grammar(put_schemas(grammar))
    rules = dict(line.split(" ::= ", 1) for line in put_schemas(grammar).splitlines() if line)
    assert rules["root"] == '"a" one | two'
    assert rules["two"] == "two-integer"
    assert rules["two-integer"] == '"-"? ("0" | [1-9] [0-9]{0,14})'
    assert any("one-char{0,3}" in body for body in rules.values())
    assert any(r'"\"root\"" one-colon' in body for body in rules.values())
    # What is only text in it stays what it is.
    assert any(r'"\"r1\"" | "\"a\\\"b\""' in body for body in rules.values())
    assert put_schemas('root ::= "%json"') == 'root ::= "%json"'
    with pytest.raises(EngineError, match="json_schema is not JSON"):
        put_schemas("root ::= one\none ::= %json {")
    with pytest.raises(EngineError, match=r"json_schema, \$: pattern of type string is not supported"):
        put_schemas('root ::= %json {"type": "string", "pattern": "a"}')
