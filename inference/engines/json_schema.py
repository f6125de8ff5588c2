"""From a JSON schema to a grammar (GBNF) of texts that obey it. Pure.

Understood: ``type`` (also a list), ``enum``, ``const``, ``properties``, ``required``, ``additionalProperties``,
``items``, ``prefixItems``, ``minItems``, ``maxItems``, ``minLength``, ``maxLength``, ``format`` (date, time,
date-time, uuid; others say nothing about the form), ``minimum``, ``maximum`` and their exclusive forms of an
integer, ``anyOf``, ``oneOf``, ``allOf`` of one, and ``$ref`` within the schema. What would narrow the texts and is
not understood is refused: an answer that only seems to obey is worse than an error.

A grammar may have schemas in it, one a line: ``name ::= %json {"type": "integer"}`` is a rule of the texts that obey.

The grammar allows less than the schema where that costs nothing: an object has its properties in the schema's order
and no others, white space is at most one space after a comma or colon (small models write spaces for ever when they
may), and no ``\\u`` escapes.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from inference.engines.base import EngineError
from inference.engines.grammar import MOST_REPEATS, literal

MAX_RULES: Final = 5_000
DEEPEST: Final = 64
"""Schemas inside one another."""

_DIGITS: Final = 15
"""Of an integer without limits: what any reader of JSON keeps exactly."""

_BASE: Final = {
    "comma": '"," " "?',
    "colon": '":" " "?',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" ["\\/bfnrt]',
    "string": r'"\"" char* "\""',
    "integer": f'"-"? ("0" | [1-9] [0-9]{{0,{_DIGITS - 1}}})',
    "number": 'integer ("." [0-9]{1,15})? ([eE] [-+]? [1-9] [0-9]?)?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "array": '"[" (value (comma value)*)? "]"',
    "object": '"{" (string colon value (comma string colon value)*)? "}"',
    "value": "object | array | string | number | boolean | null",
    "day": '"0" [1-9] | [12] [0-9] | "3" [01]',
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" day',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("Z" | [-+] [01] [0-9] ":" [0-5] [0-9])',
    "hex": "[0-9a-f]",
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}
_FORMATS: Final = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}
_TYPES: Final = ("string", "integer", "number", "boolean", "null", "array", "object")

_SCHEMA_LINE: Final = re.compile(r"[ \t]*(?P<name>[\w-]+)[ \t]*::=[ \t]*%json\b(?P<schema>.*)", re.ASCII)
_RULE: Final = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{[0-9,]*\}|(?P<rule>[\w-]+)', re.ASCII)
"""A rule's name, or what stands in a schema's grammar and may look like one: a literal, characters, a repetition."""

_SAYS_NOTHING: Final = frozenset({
    "$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "title", "description", "default", "examples",
    "deprecated", "readOnly", "writeOnly", "format", "contentMediaType", "contentEncoding",
})  # fmt: skip
_OF_TYPE: Final = {
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}


def schema_to_grammar(text: str) -> str:
    """The grammar of JSON texts that obey the schema in ``text``. Raises ``EngineError`` that says what and where."""
    try:
        schema = json.loads(text)
        return _Grammar(schema).text()
    except (ValueError, RecursionError) as exc:
        raise EngineError(f"language model: json_schema is not JSON: {exc}") from exc


@functools.lru_cache(maxsize=64)
def put_schemas(grammar: str) -> str:
    """``grammar`` with rules in the place of each line ``name ::= %json SCHEMA``. Raises ``EngineError``."""
    if "%json" not in grammar:
        return grammar
    lines = []
    for line in grammar.split("\n"):
        found = _SCHEMA_LINE.fullmatch(line)
        lines.append(line if found is None else _named(found["name"], schema_to_grammar(found["schema"])))
    return "\n".join(lines)


def _named(name: str, grammar: str) -> str:
    """A schema's ``grammar`` as the rule ``name`` and others whose names begin with it."""

    def rename(found: re.Match[str]) -> str:
        rule = found["rule"]
        return found[0] if rule is None else name if rule == "root" else f"{name}-{rule}"

    return _RULE.sub(rename, grammar)


def _refuse(path: str, what: str) -> NoReturn:
    raise EngineError(f"language model: json_schema, {path}: {what}")


class _Grammar:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}
        self._rules["root"] = self._visit(schema, "$", 0)

    def text(self) -> str:
        rules = [*self._rules.items(), *_BASE.items()]
        return "\n".join(f"{name} ::= {body}" for name, body in rules) + "\n"

    def _rule(self, body: str, path: str) -> str:
        if len(self._rules) >= MAX_RULES:
            _refuse(path, "the schema is too large")
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _visit(self, schema: Any, path: str, depth: int) -> str:
        """The name of a rule for ``schema``, or something as short."""
        if depth > DEEPEST:
            _refuse(path, f"more than {DEEPEST} schemas deep")
        if schema is True:
            return "value"
        if not isinstance(schema, dict):
            _refuse(path, f"expected a schema, got {json.dumps(schema)[:40]}")
        said = schema.keys() - _SAYS_NOTHING
        for alone in ("$ref", "enum", "const", "anyOf", "oneOf", "allOf"):
            if alone in schema:
                # The type beside an enum or a const only repeats what its values show.
                more = said - {alone} - ({"type"} if alone in ("enum", "const") else set())
                if more:
                    _refuse(path, f"{', '.join(sorted(more))} beside {alone} is not supported")
                return self._alone(alone, schema, path, depth)
        types = schema.get("type", self._shown_types(said))
        if isinstance(types, str):
            types = [types]
        if not isinstance(types, list) or not types or not all(one in _TYPES for one in types):
            _refuse(path, f"type is {json.dumps(types)[:60]}, allowed: {', '.join(_TYPES)}")
        understood = frozenset({"type"}).union(*(_OF_TYPE.get(one, ()) for one in types))
        if said - understood:
            _refuse(path, f"{', '.join(sorted(said - understood))} of type {'/'.join(types)} is not supported")
        made = {"string": self._string, "integer": self._integer, "array": self._array, "object": self._object}
        bodies = [made[one](schema, path, depth) if one in made else one for one in types]
        return bodies[0] if len(bodies) == 1 else self._rule(" | ".join(bodies), path)

    @staticmethod
    def _shown_types(said: set[str]) -> list[str]:
        """The type that the keywords are about; any, when there are none."""
        return [one for one, words in _OF_TYPE.items() if words & said] or list(_TYPES)

    def _alone(self, keyword: str, schema: dict[str, Any], path: str, depth: int) -> str:
        value = schema[keyword]
        path = f"{path}.{keyword}"
        if keyword == "$ref":
            return self._reference(value, path, depth)
        if keyword == "const":
            return self._rule(_constant(value), path)
        if not isinstance(value, list) or not value:
            _refuse(path, "expected a list that is not empty")
        if keyword == "enum":
            return self._rule(" | ".join(map(_constant, value)), path)
        if keyword == "allOf" and len(value) > 1:
            _refuse(path, "more than one schema is not supported")
        names = [self._visit(one, f"{path}[{number}]", depth + 1) for number, one in enumerate(value)]
        return self._rule(" | ".join(names), path)

    def _reference(self, pointer: Any, path: str, depth: int) -> str:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            _refuse(path, f"{json.dumps(pointer)[:60]} is not in this schema")
        if pointer not in self._refs:
            target = self._schema
            for step in pointer[2:].split("/") if pointer != "#" else ():
                step = step.replace("~1", "/").replace("~0", "~")
                if not isinstance(target, dict) or step not in target:
                    _refuse(path, f"there is no {pointer}")
                target = target[step]
            # The name comes first: the schema may refer to itself.
            name = self._refs[pointer] = self._rule("", path)
            self._rules[name] = self._visit(target, pointer, depth + 1)
        return self._refs[pointer]

    def _string(self, schema: dict[str, Any], path: str, _depth: int) -> str:
        if schema.get("format") in _FORMATS and not {"minLength", "maxLength"} & schema.keys():
            return self._rule(rf'"\"" {_FORMATS[schema["format"]]} "\""', path)
        least, most = _limits(schema, "Length", path)
        if most is None and not least:
            return "string"
        return self._rule(rf'"\"" char{_repeat(least, most)} "\""', path)

    def _integer(self, schema: dict[str, Any], path: str, _depth: int) -> str:
        if not _OF_TYPE["integer"] & schema.keys():
            return "integer"
        limit = 10**_DIGITS - 1
        lowest = max(_whole(schema, "minimum", -limit, path), _whole(schema, "exclusiveMinimum", -limit - 1, path) + 1)
        highest = min(_whole(schema, "maximum", limit, path), _whole(schema, "exclusiveMaximum", limit + 1, path) - 1)
        lowest, highest = max(lowest, -limit), min(highest, limit)
        if lowest > highest:
            _refuse(path, "no integer lies between its limits")
        ways = []
        if lowest < 0:
            ways.append(f'"-" ({integers_between(max(1, -highest), -lowest)})')
        if highest >= 0:
            ways.append(integers_between(max(0, lowest), highest))
        return self._rule(" | ".join(ways), path)

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> str:
        if not _OF_TYPE["array"] & schema.keys():
            return "array"
        least, most = _limits(schema, "Items", path)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            _refuse(path, "prefixItems is not a list")
        if first:
            if least > len(first) or (most is not None and most < len(first)):
                _refuse(path, "minItems and maxItems that differ from prefixItems are not supported")
            names = [self._visit(one, f"{path}.prefixItems[{i}]", depth + 1) for i, one in enumerate(first)]
            return self._rule(f'"[" {" comma ".join(names)} "]"', path)
        if most == 0:
            return self._rule('"[]"', path)
        item = self._visit(schema.get("items", True), f"{path}.items", depth + 1)
        items = f"{item} (comma {item}){_repeat(max(0, least - 1), None if most is None else most - 1)}"
        return self._rule(f'"[" {items} "]"' if least else f'"[" ({items})? "]"', path)

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> str:
        if not _OF_TYPE["object"] & schema.keys():
            return "object"
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            _refuse(path, "properties is no object, or required no list")
        if not properties and not required and (others := schema.get("additionalProperties", True)) is not False:
            value = self._visit(others, f"{path}.additionalProperties", depth + 1)
            pair = f"string colon {value}"
            return self._rule(f'"{{" ({pair} (comma {pair})*)? "}}"', path)
        pairs: list[tuple[str, bool]] = []
        for key in [*properties, *(key for key in required if key not in properties)]:
            value = self._visit(properties.get(key, True), f"{path}.properties.{key}", depth + 1)
            pairs.append((self._rule(f"{_constant(key)} colon {value}", path), key in required))
        return self._rule(f'"{{" {self._pairs(pairs, path)} "}}"', path)

    def _pairs(self, pairs: Sequence[tuple[str, bool]], path: str) -> str:
        """Each pair in its turn, those that are not required or left out, with commas between them."""
        following = begin = '""'  # after a pair, and when there is none yet
        for name, required in reversed(pairs):
            begin = self._rule(f"{name} {following}" + ("" if required else f" | {begin}"), path)
            following = self._rule(f"(comma {name}){'' if required else '?'} {following}", path)
        return begin


def integers_between(lowest: int, highest: int) -> str:
    """A grammar's alternatives for the integers from ``lowest`` to ``highest``, both 0 or more."""
    ways = []
    for digits in range(len(str(lowest)), len(str(highest)) + 1):
        smallest = 10 ** (digits - 1) if digits > 1 else 0
        ways.append(_same_length(str(max(lowest, smallest)), str(min(highest, 10**digits - 1))))
    return " | ".join(ways)


def _same_length(lowest: str, highest: str) -> str:
    if not lowest:
        return ""
    rest = len(lowest) - 1
    if lowest == "0" * len(lowest) and highest == "9" * len(highest):
        return f"[0-9]{{{len(lowest)}}}"
    if lowest[0] == highest[0]:
        return f'"{lowest[0]}" {_same_length(lowest[1:], highest[1:])}'.rstrip()
    ways = [f'"{lowest[0]}" {_same_length(lowest[1:], "9" * rest)}'.rstrip()]
    if int(highest[0]) - int(lowest[0]) > 1:
        between = f"[{int(lowest[0]) + 1}-{int(highest[0]) - 1}]"
        ways.append(f"{between} [0-9]{{{rest}}}" if rest else between)
    ways.append(f'"{highest[0]}" {_same_length("0" * rest, highest[1:])}'.rstrip())
    return f"({' | '.join(ways)})"


def _constant(value: Any) -> str:
    return literal(json.dumps(value, ensure_ascii=False))


def _repeat(least: int, most: int | None) -> str:
    if most is None:
        return f"{{{least},}}" if least else "*"
    return f"{{{least},{most}}}"


def _limits(schema: dict[str, Any], of: str, path: str) -> tuple[int, int | None]:
    least, most = _whole(schema, f"min{of}", 0, path), schema.get(f"max{of}")
    if most is not None:
        most = _whole(schema, f"max{of}", 0, path)
    if not 0 <= least <= MOST_REPEATS or (most is not None and not least <= most <= MOST_REPEATS):
        _refuse(path, f"min{of} is {least}, max{of} is {most}, allowed: 0..{MOST_REPEATS}, min{of} first")
    return least, most


def _whole(schema: dict[str, Any], key: str, default: int, path: str) -> int:
    value = schema.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        _refuse(path, f"{key} is {json.dumps(value)}, expected a whole number")
    return int(value)
