"""What a docstring says: of the function, and of each argument. Pure.

Understood are a section ``Args:`` (also Arguments, Parameters) with indented ``name: text`` lines, ``Parameters``
underlined with dashes, and ``:param name: text``. What follows ``Returns``, ``Raises`` and the like is for programmers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Final

_ARGUMENTS: Final = frozenset({"args", "arguments", "parameters", "params"})
_OTHERS: Final = frozenset({
    "returns", "return", "raises", "yields", "yield", "examples", "example", "notes", "note", "see also", "warns",
    "attributes", "references",
})  # fmt: skip
_FIELD: Final = re.compile(r":param\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)")
_OTHER_FIELD: Final = re.compile(r":(?:returns?|rtype|raises?|type|yields?)\b[^:]*:")
_ARGUMENT: Final = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_UNDERLINED: Final = re.compile(r"(\w+)\s*(?::.*)?")


@dataclass(slots=True)
class Docstring:
    """``description``: one paragraph a line; ``arguments``: what is said of each, by name."""

    description: str = ""
    arguments: dict[str, str] = field(default_factory=dict)


def read_docstring(text: str | None) -> Docstring:
    """What ``text`` says; of what it does not say, "" or nothing."""
    first, _, rest = (text or "").strip().partition("\n")
    lines = [first, *dedent(rest).splitlines()]
    found = Docstring()
    description: list[str] = []
    section, underlined, name, indent = "", False, "", 0
    for number, line in enumerate(lines):
        stripped = line.strip()
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        heading = stripped.removesuffix(":").lower()
        rule = len(following) > 2 and not following.strip("-")
        if heading in _ARGUMENTS | _OTHERS and (rule or stripped.endswith(":")) and line[:1] == stripped[:1]:
            section, underlined, name = heading, rule, ""
            continue
        depth = len(line) - len(line.lstrip())
        if (param := _FIELD.match(stripped)) is not None:
            section, name, indent = ":param", param[1], depth
            found.arguments[name] = param[2]
        elif _OTHER_FIELD.match(stripped):
            section = ":other"
        elif section in _ARGUMENTS:
            if not stripped or not stripped.strip("-"):
                continue
            starts = _UNDERLINED.fullmatch(stripped) if underlined else _ARGUMENT.match(stripped)
            if starts is not None and (not name or depth <= indent):
                name, indent = starts[1], depth
                found.arguments[name] = "" if underlined else starts[2]
            elif name:
                found.arguments[name] = f"{found.arguments[name]} {stripped}".strip()
        elif section == ":param":
            found.arguments[name] = f"{found.arguments[name]} {stripped}".strip()
        elif not section:
            description.append(stripped)
    found.description = _paragraphs(description)
    return found


def _paragraphs(lines: list[str]) -> str:
    paragraphs = re.split(r"\n{2,}", "\n".join(lines).strip())
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())
