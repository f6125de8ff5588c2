"""Hypothesis strategies for every message, built from the declarations: type hints, bounds, defaults."""

from __future__ import annotations

import dataclasses
import typing
from types import NoneType
from typing import Any

from hypothesis import strategies as st

from inference.wire import messages, supervision
from inference.wire.tlv import Message, Struct

I64_MIN, I64_MAX = -(1 << 63), (1 << 63) - 1

MESSAGES: tuple[type[Message], ...] = tuple(
    sorted(
        (
            kind
            for module in (messages, supervision)
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
        ),
        key=lambda kind: kind.TYPE,
    )
)
BY_NAME = {kind.__name__: kind for kind in MESSAGES}


def hint_of(cls: type[Struct], name: str) -> Any:
    """The resolved annotation of a field."""
    return typing.get_type_hints(cls)[name]


def bounds_of(cls: type[Struct], name: str) -> tuple[float | None, float | None]:
    """Declared (minimum, maximum) of a field."""
    (spec,) = (spec for spec in dataclasses.fields(cls) if spec.name == name)  # type: ignore[arg-type]
    return spec.metadata["minimum"], spec.metadata["maximum"]


def element_of(hint: Any) -> tuple[Any, bool, bool]:
    """(type of one value, repeated, optional)."""
    repeated = optional = False
    if typing.get_origin(hint) is tuple:
        hint, repeated = typing.get_args(hint)[0], True
    if NoneType in typing.get_args(hint):
        (hint,) = (item for item in typing.get_args(hint) if item is not NoneType)
        optional = True
    return hint, repeated, optional


def structs(cls: type[Struct]) -> st.SearchStrategy[Any]:
    """Any legal value of a message or nested struct."""
    return st.builds(cls, **{field.name: _field(cls, field.name) for field in cls.FIELDS})


def any_message() -> st.SearchStrategy[Message]:
    """Any legal message of any type."""
    return st.sampled_from(MESSAGES).flatmap(structs)


def _field(cls: type[Struct], name: str) -> st.SearchStrategy[Any]:
    hint, repeated, optional = element_of(hint_of(cls, name))
    values = _value(hint, *bounds_of(cls, name))
    if repeated:
        return st.lists(values, max_size=4).map(tuple)
    return st.none() | values if optional else values


def _value(hint: Any, minimum: float | None, maximum: float | None) -> st.SearchStrategy[Any]:
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(
            I64_MIN if minimum is None else int(minimum),
            I64_MAX if maximum is None else int(maximum),
        )
    if hint is float:
        return st.floats(minimum, maximum, allow_nan=False)
    if hint in (str, bytes):
        size = {"min_size": int(minimum or 0), "max_size": min(int(maximum or 40), 40)}
        return st.binary(**size) if hint is bytes else st.text(**size)
    assert issubclass(hint, Struct), hint
    return structs(hint)
