"""What an agent file provides, read without running it: the supervisor never imports the user's models.

An agent file is a Python file that defines functions by these names::

    async def entrypoint(ctx: JobContext) -> None    required
    def prewarm(proc: JobProcess) -> None
    async def request_fnc(request: JobRequest) -> None
    def load_fnc(worker: Worker) -> float
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from host.errors import ConfigError
from host.options import BUILT_IN_AGENT

_COROUTINES = ("entrypoint", "request_fnc")


@dataclass(frozen=True, slots=True)
class AgentFunctions:
    """References to an agent's functions (``FILE.py:NAME``); "" for those that it does not have."""

    entrypoint: str = BUILT_IN_AGENT
    prewarm: str = ""
    request_fnc: str = ""
    load_fnc: str = ""


def read_agent_file(path: Path) -> AgentFunctions:
    """Find the functions of the agent file at ``path``. Raises ``ConfigError`` naming the file and the line."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as exc:
        raise ConfigError(f"agent file {path}: {exc.strerror}") from exc
    except SyntaxError as exc:
        line = f", line {exc.lineno}" if exc.lineno else ""
        raise ConfigError(f"agent file {path}{line}: {exc.msg}") from exc
    except ValueError as exc:
        raise ConfigError(f"agent file {path}: {exc}") from exc
    defined = {name: node for node in _statements(tree.body) for name in _names(node)}
    if "entrypoint" not in defined:
        raise ConfigError(f"agent file {path}: it must define `async def entrypoint(ctx: JobContext)`")
    for name in _COROUTINES:
        if isinstance(node := defined.get(name), ast.FunctionDef):
            raise ConfigError(f"agent file {path}, line {node.lineno}: `{name}` must be an `async def`")
    return AgentFunctions(
        **{
            name: f"{path.resolve()}:{name}" if name in defined else ""
            for name in ("entrypoint", "prewarm", "request_fnc", "load_fnc")
        }
    )


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, with those in its conditions and handlers."""
    for node in body:
        yield node
        match node:
            case ast.If(body=inner, orelse=other):
                yield from _statements([*inner, *other])
            case ast.Try(body=inner, handlers=handlers, orelse=other, finalbody=final):
                yield from _statements([*inner, *(line for h in handlers for line in h.body), *other, *final])
            case ast.With(body=inner):
                yield from _statements(inner)


def _names(node: ast.stmt) -> Iterator[str]:
    """The names that a statement gives a value to."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            yield name
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            yield from (alias.asname or alias.name for alias in aliases)
