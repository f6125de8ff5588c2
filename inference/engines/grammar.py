"""What a grammar must be before llama.cpp sees it. Pure.

llama.cpp writes the reason why it refuses a grammar, and all of the grammar, to standard error. What people get
wrong most is found here, with its line.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Final

from inference.engines.base import EngineError

DEEPEST: Final = 100
"""Parentheses inside one another: llama.cpp's parser calls itself for each."""

MOST_REPEATS: Final = 2_000
"""``{m,n}``: llama.cpp's own limit."""

MOST_WAYS: Final = 100
"""In which one place may be passed without a character. llama.cpp tries them all, for every token: with optional
parts within optional parts there are soon more than can ever be tried."""

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


@functools.lru_cache(maxsize=64)
def check_grammar(grammar: str) -> None:
    """Raises ``EngineError`` when ``grammar`` (GBNF) can be nothing that llama.cpp accepts."""
    defined: set[str] = set()
    used: dict[str, int] = {}
    tokens: list[tuple[str, str]] = []
    line, depth, at = 1, 0, 0
    while at < len(grammar):
        token = _TOKEN.match(grammar, at)
        if token is None:
            rest = grammar[at : at + 20].partition("\n")[0]
            raise EngineError(f"language model: grammar, line {line}: cannot read {rest!r}")
        at = token.end()
        tokens.append((token.lastgroup or "", token["defined"] or token[0]))
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
    _check_ways(_rules([token for token in tokens if token[0] not in ("blank", "newline")]))


# --- ambiguity ------------------------------------------------------------------------------------------

_Item = tuple["str | list[list[_Item]]", str]
"""A rule's name, "" for characters, or alternatives in parentheses; and how often."""

_Alternatives = list[list["_Item"]]


def _rules(tokens: Sequence[tuple[str, str]]) -> dict[str, _Alternatives]:
    """The grammar as alternatives of sequences. Its parentheses are in order."""
    rules: dict[str, _Alternatives] = {}
    name = ""
    body: list[tuple[str, str]] = []
    for kind, text in [*tokens, ("defined", "")]:
        if kind == "defined":
            rules[name] = _alternatives(iter(body))
            name, body = text, []
        else:
            body.append((kind, text))
    return rules


def _alternatives(tokens: Iterator[tuple[str, str]]) -> _Alternatives:
    found: _Alternatives = [[]]
    for kind, text in tokens:
        if kind == "close":
            break
        if kind == "or":
            found.append([])
        elif kind == "repeat":
            if found[-1]:
                found[-1][-1] = (found[-1][-1][0], found[-1][-1][1] + text[0] + text[1:].replace(" ", ""))
        elif kind == "open":
            found[-1].append((_alternatives(tokens), ""))
        else:
            found[-1].append((text if kind == "name" else "", ""))
            if text == '""':
                found[-1].pop()
    return found


def _check_ways(rules: dict[str, _Alternatives]) -> None:
    """Raises ``EngineError`` when a part of a rule can be passed without a character in too many ways."""
    ways = dict.fromkeys(rules, 0)
    for _ in range(MOST_WAYS):
        found = {name: _ways(alternatives, ways, name) for name, alternatives in rules.items()}
        if found == ways:
            return
        ways = found
    raise EngineError(f"language model: grammar: more than {MOST_WAYS} rules that can be empty lead to one another")


def _ways(alternatives: _Alternatives, ways: dict[str, int], name: str) -> int:
    total = 0
    for sequence in alternatives:
        product = 1
        for what, repeat in sequence:
            one = (ways[what] if what else 0) if isinstance(what, str) else _ways(what, ways, name)
            product *= _repeated(one, repeat, name)
            if product > MOST_WAYS:
                break
        total += product
    if total > MOST_WAYS:
        raise EngineError(f"language model: grammar, rule {name}: too ambiguous: it can be empty in too many ways")
    return total


def _repeated(one: int, repeat: str, name: str) -> int:
    """Ways to pass what can be passed in ``one`` ways, when it is repeated."""
    if not repeat:
        return one
    if repeat == "?":
        return 1 + one
    least, _, most = repeat.strip("{}").partition(",") if repeat[0] == "{" else (str(int(repeat == "+")), "", "")
    if one and repeat != f"{{{least}}}":
        raise EngineError(f"language model: grammar, rule {name}: {repeat} repeats what can be empty")
    if most or repeat[0] != "{" or repeat.endswith(",}"):
        return 0 if int(least) else 1
    return int(min(one, 2) ** min(int(least), 20))


def literal(text: str) -> str:
    """``text`` as a grammar writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
