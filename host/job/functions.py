"""References to the user's functions, so that a function can be named in one process and imported in another.

    path/to/agent.py:entrypoint        a function of a file
    package.module:entrypoint          a function of a module that can be imported

Nothing is pickled: the process that runs a function imports it itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULE_NAME = "roomful_agent"
"""What the first file that is loaded is called as a module: its loggers show it."""

_loaded: dict[Path, ModuleType] = {}
_loading = threading.RLock()
"""Jobs may be threads; and a file that is being loaded may load another."""


class AgentFileError(Exception):
    """The user's code cannot be used; the message names the file or module and, where there is one, the line."""


def reference_of(function: Callable[..., Any]) -> str:
    """``function`` by name. Raises ``ValueError`` for what cannot be found by its name in another process."""
    module_name, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if not name or getattr(sys.modules.get(module_name), name, None) is not function:
        raise ValueError(
            f"{name or repr(function)} cannot be imported by its name (a lambda, a method, an object, or defined "
            "inside a function); a function of a module is needed"
        )
    if module_name != "__main__":
        return f"{module_name}:{name}"
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return f"{main.__spec__.name}:{name}"
    if getattr(main, "__file__", None) is None:
        raise ValueError(f"{name} is defined in an interactive session; a function of a file or module is needed")
    return f"{Path(str(main.__file__)).resolve()}:{name}"


def import_path() -> tuple[str, ...]:
    """The folders in which this process finds modules, absolute, for ``extend_import_path`` in another."""
    return tuple(dict.fromkeys(str(path) for entry in sys.path if (path := Path(entry).resolve()).is_dir()))


def extend_import_path(folders: Iterable[str]) -> None:
    """Find modules in ``folders`` as well, before the usual places."""
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]


def load_function(reference: str) -> Callable[..., Any]:
    """Import what ``reference`` names. A file is run once in a process. Raises ``AgentFileError``."""
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise AgentFileError(f"{reference!r} names no function; FILE.py:FUNCTION and MODULE:FUNCTION do")
    module = _load_file(place) if _is_file(place) else _load_module(place)
    function: object = getattr(module, name, None)
    if not callable(function):
        raise AgentFileError(f"{describe(place)}: it defines no function {name!r}")
    return function


def user_error(reference: str, exc: BaseException) -> AgentFileError:
    """What ``exc``, raised by the function that ``reference`` names, is to its author. Chain it with ``from``."""
    place, _, name = reference.rpartition(":")
    source = str(Path(place).resolve()) if _is_file(place) else getattr(sys.modules.get(place), "__file__", None)
    return AgentFileError(f"{describe(place)}{_line(exc, source or '')}: {name}: {type(exc).__name__}: {exc}")


def describe(place: str) -> str:
    """The file or module of a reference, as messages name it."""
    return f"agent file {place}" if _is_file(place) else f"agent module {place}"


def _is_file(place: str) -> bool:
    # A relative module name has no place here, so a slash can only be a path's.
    return place.endswith(".py") or "/" in place


def _load_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    with _loading:
        if (known := _loaded.get(path)) is not None:
            return known
        if not path.is_file():
            raise AgentFileError(f"agent file {place}: there is no such file")
        name = f"{_MODULE_NAME}_{len(_loaded) + 1}" if _loaded else _MODULE_NAME
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise AgentFileError(f"agent file {place}: not a Python file (its name must end in .py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        # As for a script: the modules beside the file can be imported.
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as exc:
            del sys.modules[name]
            where = _line(exc, str(path))
            raise AgentFileError(f"agent file {place}{where}: {type(exc).__name__}: {exc}") from exc
        _loaded[path] = module
        return module


def _load_module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as exc:
        raise AgentFileError(f"agent module {place}{_place_of(exc)}: {type(exc).__name__}: {exc}") from exc


def _place_of(exc: BaseException) -> str:
    """The file and line of the user's code in which it happened: " (file.py, line 7)", or "" when there is none."""
    if isinstance(exc, SyntaxError):
        # Its message says it.
        return ""
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen ")
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _line(exc: BaseException, source: str) -> str:
    """Where in the file it happened: ", line 7", or "" when that is not known."""
    if isinstance(exc, SyntaxError) and exc.filename == source:
        return f", line {exc.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == source]
    return f", line {lines[-1]}" if lines else ""
