"""From a tree of plain values to typed settings; what does not fit is named, with its value and what is allowed."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from host.errors import ConfigError

Settings = TypeVar("Settings", bound=msgspec.Struct)


def convert(tree: Mapping[str, Any], kind: type[Settings], origins: Mapping[str, str], rest: str) -> Settings:
    """``tree`` as a ``kind``. ``origins``: who set a key ("a.b"); what is not in it was set by ``rest``.

    Raises ``ConfigError``: "ORIGIN: KEY = VALUE: what is allowed".
    """
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as exc:
        what, _, where = str(exc).partition(" - at ")
        key = where.strip("`").removeprefix("$.")
        value = _lookup(tree, key)
        given = f" = {value!r}" if value is not _MISSING else ""
        raise ConfigError(
            f"{origins.get(key, rest)}: {key or 'top level'}{given}: {_explain(what, kind, key)}"
        ) from exc


def _explain(what: str, kind: type[msgspec.Struct], key: str) -> str:
    """msgspec's sentence, with the choices where it only says that the value is none of them."""
    what = what[:1].lower() + what[1:]
    if not what.startswith("invalid enum value"):
        return what
    hint: Any = kind
    for part in _parts(key):
        hint = get_args(hint)[0] if isinstance(part, int) else get_type_hints(hint)[part]
    return f"allowed are {', '.join(_choices(hint))}"


def _choices(hint: Any) -> Iterator[str]:
    """The values of an enumeration, a ``Literal``, or either with None."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        yield from (str(member.value) for member in hint)
    for argument in get_args(hint):
        if isinstance(argument, str):
            yield argument
        else:
            yield from _choices(argument)


def _parts(key: str) -> list[str | int]:
    """``a.b[1]`` -> ["a", "b", 1]."""
    return [int(number) if number else name for name, number in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key)]


_MISSING = object()


def _lookup(tree: Any, key: str) -> Any:
    """The value at ``key``; a whole section is none."""
    for part in _parts(key):
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return _MISSING if isinstance(tree, Mapping) else tree
