"""What a grammar must be before llama.cpp sees it. Pure.

llama.cpp writes the reason why it refuses a grammar, and all of the grammar, to standard error. What people get
wrong most is found here, with its line.
"""

from __future__ import annotations

import re
from typing import Final

from inference.engines.base import EngineError

DEEPEST: Final = 100
"""Parentheses inside one another: llama.cpp's parser calls itself for each."""

MOST_REPEATS: Final = 2_000
"""``{m,n}``: llama.cpp's own limit."""

_TOKEN: Final = re.compile(
    r"""(?P<blank>[ \t\r]+|\#[^\n]*)
      | (?P<newline>\n)
      | (?P<literal>"(?:\\[^\n]|[^"\\\n])*"|\[(?:\\[^\n]|[^\]\\\n])*\]|<[^>\n]*>|\.|!)
      | (?P<defined>[\w-]+)[ \t\r]*::=
      | (?P<name>[\w-]+)
      | (?P<repeat>\{[ \t]*(?P<least>[0-9]+)[ \t]*(?:,[ \t]*(?P<most>[0-9]*)[ \t]*)?\}|[*+?])
      | (?P<open>\()
      | (?P<close>\))
      | (?P<or>\|)
    """,
    re.VERBOSE | re.ASCII,
)


def check_grammar(grammar: str) -> None:
    """Raises ``EngineError`` when ``grammar`` (GBNF) can be nothing that llama.cpp accepts."""
    defined: set[str] = set()
    used: dict[str, int] = {}
    line, depth, at = 1, 0, 0
    while at < len(grammar):
        token = _TOKEN.match(grammar, at)
        if token is None:
            rest = grammar[at : at + 20].partition("\n")[0]
            raise EngineError(f"language model: grammar, line {line}: cannot read {rest!r}")
        at = token.end()
        match token.lastgroup:
            case "newline":
                line += 1
            case "defined":
                if depth:
                    raise EngineError(f"language model: grammar, line {line}: a rule begins inside parentheses")
                defined.add(token["defined"])
            case "name":
                used.setdefault(token["name"], line)
            case "repeat":
                most = max(int(number[:9]) for number in (token["least"], token["most"], "0") if number)
                if most > MOST_REPEATS:
                    raise EngineError(
                        f"language model: grammar, line {line}: {token[0]} repeats more than {MOST_REPEATS} times"
                    )
            case "open":
                depth += 1
                if depth > DEEPEST:
                    raise EngineError(f"language model: grammar, line {line}: more than {DEEPEST} parentheses deep")
            case "close":
                depth -= 1
                if depth < 0:
                    raise EngineError(f"language model: grammar, line {line}: ) without (")
        if not defined and token.lastgroup not in ("newline", "blank"):
            raise EngineError(f"language model: grammar, line {line}: expected NAME ::= ..., got {token[0]!r}")
    if depth:
        raise EngineError(f"language model: grammar, line {line}: ( without )")
    if "root" not in defined:
        raise EngineError("language model: grammar: there is no rule named root")
    for name, where in used.items():
        if name not in defined:
            raise EngineError(f"language model: grammar, line {where}: there is no rule named {name}")


def literal(text: str) -> str:
    """``text`` as a grammar writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
