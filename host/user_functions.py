"""The functions of the user that run in the supervisor: ``request_fnc`` and ``load_fnc``.

Given by name they are imported here, with the file that they stand in. Nothing else of the user's is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from host.errors import ConfigError
from host.job import functions
from host.offers import accept_all
from host.options import LoadFnc, RequestFnc


def request_function(given: RequestFnc | str | None) -> RequestFnc:
    """The user's ``request_fnc``, or one that accepts everything. Raises ``ConfigError``."""
    if not given:
        return accept_all
    function = _imported(given)
    if not _is_coroutine_function(function):
        raise ConfigError(f"request_fnc: {_name(function)} must be an `async def` of one JobRequest")
    return function


def load_function(given: LoadFnc | str | None) -> LoadFnc | None:
    """The user's ``load_fnc``, None without one. Raises ``ConfigError``."""
    if not given:
        return None
    function = _imported(given)
    if _is_coroutine_function(function):
        raise ConfigError(f"load_fnc: {_name(function)} must be a plain function: it is called in a thread")
    return function


def _imported(given: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(given, str):
        return given
    try:
        return functions.load_function(given)
    except functions.AgentFileError as exc:
        raise ConfigError(str(exc)) from exc


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", function))
