"""From a function's annotations to a JSON schema, and from JSON to values of those types. Pure.

    str int float bool None       as they are; ``Annotated[int, range(1, 9)]`` is one of 1 to 8
    Literal, Enum                 one of the values (an Enum's values are strings or integers)
    X | None, X | Y, Optional     any of them
    list, Sequence, tuple[X, ...], set, frozenset
    dict[str, X], Any
    dataclass, TypedDict          an object with their fields
    Annotated[X, "..."]           X, and what it means

What else there is cannot be said in JSON, and is refused when the tool is made.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, Union

EXPRESSIBLE: Final = (
    "str, int, float, bool, Literal, Enum, list, tuple[X, ...], set, dict[str, X], a dataclass, a TypedDict, "
    "Any, and these with | None"
)

Json = dict[str, Any]
Decode = Callable[[Any], Any]
T = TypeVar("T")


class SchemaError(TypeError):
    """An annotation that cannot be said in JSON, or is missing. The message names it and what is allowed."""


class ArgumentError(ValueError):
    """Arguments that are not what the schema says; the message is for the model to read."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A type: ``schema`` of its values in JSON; ``decode`` makes one of what was read, or raises ``ValueError``."""

    schema: Json
    decode: Decode


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a tool. ``description``: "" when nothing is said about it."""

    name: str
    kind: Kind
    required: bool
    description: str = ""


@dataclass(frozen=True, slots=True)
class Parameters:
    """All arguments of a tool, in order."""

    items: tuple[Parameter, ...]

    def schema(self) -> Json:
        """Of the object that holds the arguments."""
        return {
            "type": "object",
            "properties": {
                one.name: {**one.kind.schema, "description": one.description} if one.description else one.kind.schema
                for one in self.items
            },
            "required": [one.name for one in self.items if one.required],
        }

    def decode(self, text: str) -> dict[str, Any]:
        """The arguments in ``text``, a JSON object. Raises ``ArgumentError``."""
        given = read_object(text)
        known = {one.name: one for one in self.items}
        if unknown := sorted(given.keys() - known.keys()):
            raise ArgumentError(f"there is no argument {unknown[0]!r}, allowed: {', '.join(known) or 'none'}")
        if missing := [one.name for one in self.items if one.required and one.name not in given]:
            raise ArgumentError(f"the argument {missing[0]!r} is missing")
        try:
            return {name: _within(name, known[name].kind.decode, value) for name, value in given.items()}
        except (ValueError, TypeError) as exc:
            # A dataclass may refuse what it is given, in its own words.
            raise ArgumentError(str(exc)) from exc


def read_object(text: str) -> Json:
    """The JSON object in ``text``. Raises ``ArgumentError``."""
    try:
        given = json.loads(text or "{}")
    except ValueError as exc:
        raise ArgumentError(f"the arguments are not JSON: {exc}") from exc
    if not isinstance(given, dict):
        raise ArgumentError(f"the arguments are not an object, but {_shown(given)}")
    return given


def parameter(name: str, annotation: Any, *, required: bool, description: str = "") -> Parameter:
    """An argument of that type. Raises ``SchemaError``."""
    kind = kind_of(annotation, name)
    return Parameter(name, kind, required, description or str(kind.schema.get("description", "")))


def kind_of(annotation: Any, where: str, _outer: tuple[Any, ...] = ()) -> Kind:
    """What ``annotation`` is in JSON. ``where`` names it in the ``SchemaError`` that it may raise."""
    if (plain := _look_up(_PLAIN, annotation)) is not None:
        return plain
    if annotation is Any:
        return Kind({}, lambda value: value)
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _annotated(kind_of(arguments[0], where, _outer), arguments[1:], where)
    if origin is Literal:
        return _one_of({value: value for value in arguments}, where)
    if origin in (Union, types.UnionType):
        return _any_of([kind_of(one, where, _outer) for one in arguments])
    if (make := _look_up(_LISTS, origin or annotation)) is not None:
        return _list(annotation, make, arguments, where, _outer)
    if origin is dict or annotation is dict:
        return _mapping(arguments, where, _outer)
    if isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return _one_of({member.value: member for member in annotation}, where)
        if dataclasses.is_dataclass(annotation) or typing.is_typeddict(annotation):
            if annotation in _outer:
                raise SchemaError(f"{where}: {annotation.__name__} holds itself")
            return _record(annotation, where, (*_outer, annotation))
    shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    raise SchemaError(f"{where}: {shown} cannot be said in JSON, allowed: {EXPRESSIBLE}")


# --- plain values -----------------------------------------------------------------------------------------


def _plain(name: str, what: str, *accepted: type) -> Kind:
    def decode(value: Any) -> Any:
        # To Python a bool is an int; to JSON it is not.
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            raise ValueError(f"expected {what}, got {_shown(value)}")
        return value

    return Kind({"type": name}, decode)


_NUMBER: Final = _plain("number", "a number", int, float)
_PLAIN: Final[Mapping[Any, Kind]] = {
    str: _plain("string", "a string", str),
    int: _plain("integer", "an integer", int),
    float: Kind(_NUMBER.schema, lambda value: float(_NUMBER.decode(value))),
    bool: _plain("boolean", "true or false", bool),
    None: (_NOTHING := _plain("null", "null", type(None))),
    type(None): _NOTHING,
}


def _annotated(kind: Kind, notes: Iterable[Any], where: str) -> Kind:
    for note in notes:
        if isinstance(note, str):
            kind = Kind({**kind.schema, "description": note}, kind.decode)
        elif isinstance(note, range):
            kind = _in_range(kind, note, where)
        elif isinstance(described := getattr(note, "description", None), str):
            kind = Kind({**kind.schema, "description": described}, kind.decode)
    return kind


def _in_range(kind: Kind, allowed: range, where: str) -> Kind:
    if kind.schema.get("type") != "integer" or allowed.step != 1 or not allowed:
        raise SchemaError(f"{where}: {allowed} is for an int, not empty, and in steps of one")

    def decode(value: Any) -> Any:
        if kind.decode(value) not in allowed:
            raise ValueError(f"expected {allowed[0]} to {allowed[-1]}, got {value}")
        return value

    return Kind({**kind.schema, "minimum": allowed[0], "maximum": allowed[-1]}, decode)


def _one_of(values: Mapping[Any, Any], where: str) -> Kind:
    for value in values:
        if not isinstance(value, str | int | None):
            raise SchemaError(f"{where}: {value!r} is neither a string nor an integer")
    shown = ", ".join(json.dumps(value, ensure_ascii=False) for value in values)

    def decode(value: Any) -> Any:
        for allowed, meant in values.items():
            if value == allowed and type(value) is type(allowed):
                return meant
        raise ValueError(f"expected one of {shown}, got {_shown(value)}")

    return Kind({"enum": list(values)}, decode)


def _any_of(kinds: list[Kind]) -> Kind:
    def decode(value: Any) -> Any:
        reasons = []
        for kind in kinds:
            try:
                return kind.decode(value)
            except ValueError as exc:
                reasons.append(str(exc))
        raise ValueError("; ".join(dict.fromkeys(reasons)))

    return Kind({"anyOf": [kind.schema for kind in kinds]}, decode)


# --- containers -------------------------------------------------------------------------------------------

_LISTS: Final[Mapping[Any, Callable[[list[Any]], Any]]] = {
    list: list,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    tuple: tuple,
    set: set,
    collections.abc.Set: frozenset,
    frozenset: frozenset,
}


def _list(annotation: Any, make: Decode, arguments: tuple[Any, ...], where: str, outer: tuple[Any, ...]) -> Kind:
    if not arguments:
        raise SchemaError(f"{where}: {annotation.__name__} of what? Write {annotation.__name__}[str], for example")
    if make is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        raise SchemaError(f"{where}: {annotation} cannot be said in JSON, allowed: tuple[X, ...]")
    item = kind_of(arguments[0], where, outer)

    def decode(value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError(f"expected a list, got {_shown(value)}")  # noqa: TRY004 (it is data, not code)
        return make([_within(f"[{number}]", item.decode, one) for number, one in enumerate(value)])

    return Kind({"type": "array", "items": item.schema}, decode)


def _mapping(arguments: tuple[Any, ...], where: str, outer: tuple[Any, ...]) -> Kind:
    if not arguments or arguments[0] is not str:
        raise SchemaError(f"{where}: the keys of a JSON object are strings, allowed: dict[str, X]")
    item = kind_of(arguments[1], where, outer)

    def decode(value: Any) -> Any:
        return {key: _within(key, item.decode, one) for key, one in _expect_object(value).items()}

    return Kind({"type": "object", "additionalProperties": item.schema}, decode)


def _record(cls: Any, where: str, outer: tuple[Any, ...]) -> Kind:
    """A dataclass or a TypedDict."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as exc:
        raise SchemaError(f"{where}: an annotation of {cls.__name__} is not defined: {exc}") from exc
    if dataclasses.is_dataclass(cls):
        missing = dataclasses.MISSING
        fields = [field for field in dataclasses.fields(cls) if field.init]
        names = [field.name for field in fields]
        required = {one.name for one in fields if one.default is missing and one.default_factory is missing}
    else:
        names, required = list(hints), set(cls.__required_keys__)
        for name, hint in hints.items():
            # The class does not see them where annotations are strings.
            if (said := typing.get_origin(hint)) in (typing.Required, typing.NotRequired):
                hints[name] = typing.get_args(hint)[0]
                (required.add if said is typing.Required else required.discard)(name)
    kinds = {name: kind_of(hints[name], f"{where}.{name}", outer) for name in names}

    def decode(value: Any) -> Any:
        given = _expect_object(value)
        if unknown := sorted(given.keys() - kinds.keys()):
            raise ValueError(f"there is no {unknown[0]!r}, allowed: {', '.join(kinds)}")
        if absent := [name for name in names if name in required and name not in given]:
            raise ValueError(f"{absent[0]!r} is missing")
        return cls(**{name: _within(name, kinds[name].decode, one) for name, one in given.items()})

    schema: Json = {"type": "object", "properties": {name: kind.schema for name, kind in kinds.items()}}
    return Kind({**schema, "required": [name for name in names if name in required]}, decode)


def _look_up(table: Mapping[Any, T], annotation: Any) -> T | None:
    """What the table has for ``annotation``, which need not be hashable."""
    return next((found for key, found in table.items() if key is annotation), None)


def _expect_object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {_shown(value)}")  # noqa: TRY004 (it is data, not code)
    return value


def _within(name: str, decode: Decode, value: Any) -> Any:
    try:
        return decode(value)
    except (ValueError, TypeError) as exc:
        raise ValueError(f"{name}: {exc}") from exc


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
