"""Everything that needs an event loop once more on uvloop, which the processes of the host run on.

It differs where it matters: of a socket in error it tells once, asyncio's own loop again and again.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
import test_wire_client
import test_wire_stream
import test_wire_supervised
import uvloop


def scenarios() -> list[Any]:
    """Every asynchronous test of the three modules, with each of its sets of parameters."""
    found = []
    for module in (test_wire_stream, test_wire_client, test_wire_supervised):
        for name, function in vars(module).items():
            if not name.startswith("test_") or not inspect.iscoroutinefunction(function):
                continue
            sets: list[dict[str, Any]] = [{}]
            for mark in getattr(function, "pytestmark", []):
                assert mark.name == "parametrize", mark
                names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
                values = [value if len(names) > 1 else (value,) for value in mark.args[1]]
                sets = [known | dict(zip(names, value, strict=True)) for known in sets for value in values]
            found += [pytest.param(function, chosen, id=f"{name}-{at}") for at, chosen in enumerate(sets)]
    return found


@pytest.mark.parametrize(("function", "parameters"), scenarios())
def test_on_uvloop(function: Any, parameters: dict[str, Any], request: pytest.FixtureRequest) -> None:
    wanted = inspect.signature(function).parameters
    fixtures = {name: request.getfixturevalue(name) for name in wanted if name not in parameters}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(function(**parameters, **fixtures))


def test_scenarios_were_found() -> None:
    assert len(scenarios()) > 60
