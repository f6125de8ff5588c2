"""The structure of the program, tested: arrows, cycles, purity, one owner per power, private means private.

Every rule is a function from a set of sources to a list of complaints. It is asked about the program, and
about a small offender, so that a rule that can no longer fail is found, too.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("host", "inference", "models")
MAX_LINES = 600

# --- what the rules are about ---------------------------------------------------------------------

PURE = (
    "host/lifecycle.py",
    "host/pool.py",
    "host/capacity.py",
    "host/options.py",
    "host/observer.py",
    "host/threads.py",
    "host/console/keys.py",
    "host/console/script.py",
    "host/job/turn.py",
    "host/job/turn_events.py",
    "host/job/turn_rules.py",
    "host/job/user_turn.py",
    "host/job/endpointing.py",
    "host/job/backchannel.py",
    "host/job/chat.py",
    "host/job/chat_context.py",
    "host/job/docstring.py",
    "host/job/speech.py",
    "host/job/tool_schema.py",
    "host/job/tool_text.py",
    "host/job/line.py",
    "host/loadtest/binding.py",
    "host/loadtest/callers.py",
    "host/loadtest/draws.py",
    "host/loadtest/ear.py",
    "host/loadtest/measure.py",
    "host/loadtest/plan.py",
    "host/loadtest/results.py",
    "host/loadtest/search.py",
    "host/loadtest/timeline.py",
    "host/loadtest/words.py",
    "host/testing/expect.py",
    "host/job/spoken.py",
    "host/job/abbreviations.py",
    "inference/activity.py",
    "inference/budget.py",
    "inference/costs.py",
    "inference/planner.py",
    "inference/reports.py",
    "inference/simulator.py",
    "inference/wire/errors.py",
    "inference/wire/tlv.py",
    "inference/wire/messages.py",
    "inference/wire/supervision.py",
    "inference/wire/connection.py",
)
"""Policy: data and ``now`` in, decisions out. Whatever they import must be as pure as they are."""

PLANNED: tuple[str, ...] = ()
"""Named in the architecture and not written yet: pure from their first day."""

PURE_LIBRARY = frozenset({
    "__future__", "abc", "bisect", "codecs", "collections", "copy", "dataclasses", "enum", "fractions", "functools",
    "graphlib", "heapq", "itertools", "json", "math", "numbers", "operator", "re", "reprlib", "statistics", "string",
    "struct", "textwrap", "types", "typing", "unicodedata",
})  # fmt: skip
"""Standard modules that neither look at the world nor wait for it."""

FROM_INFERENCE = (
    "inference.client", "inference.supervised", "inference.wire",
    # What would fit, and how it would go: pure, and without any engine.
    "inference.budget", "inference.costs", "inference.model_files", "inference.simulator",
)  # fmt: skip
"""All that the outside may know of the inside."""

JOB_LIBRARIES = ("numpy", "livekit.rtc", "livekit.protocol")
"""What a job process loads besides the standard library and us. (livekit.api brings aiohttp.)"""

JOB_EXCEPTIONS = {"host.job.main": ("uvloop",)}
"""The event loop, as in the other processes of the host."""


@dataclass(frozen=True, slots=True)
class Power:
    """Names that only ``owners`` may use. ``lazy``: and only inside a function."""

    what: str
    names: tuple[str, ...]
    owners: tuple[str, ...]
    lazy: bool = False


POWERS = (
    Power(
        "environment variables",
        ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"),
        ("host/config.py",),
    ),
    Power("fork", ("os.fork", "os.forkpty"), ("host/forkserver.py",)),
    # Nothing is pickled, so there is no owner.
    Power("multiprocessing", ("multiprocessing", "concurrent.futures.ProcessPoolExecutor", "pickle"), ()),
    Power(
        "processes and signals to them",
        (
            "subprocess",
            "asyncio.create_subprocess_exec",
            "asyncio.create_subprocess_shell",
            "os.kill",
            "os.killpg",
            "os.execl", "os.execle", "os.execlp", "os.execlpe", "os.execv", "os.execve", "os.execvp", "os.execvpe",
            "os.spawnl", "os.spawnle", "os.spawnlp", "os.spawnlpe",
            "os.spawnv", "os.spawnve", "os.spawnvp", "os.spawnvpe",
            "os.posix_spawn",
            "os.posix_spawnp",
            "os.system",
            "os.popen",
            "signal.pidfd_send_signal",
            "signal.pthread_kill",
            "signal.raise_signal",
            "pty",
        ),
        # models/sources.py runs pip, which has no other interface than its command line, when weights are
        # installed: no process of a running host does.
        ("host/process.py", "models/sources.py"),
    ),
    Power(
        "WebRTC",
        ("livekit.rtc",),
        (
            "host/job/room_livekit.py", "host/job/room_livekit_audio.py", "host/job/room_livekit_text.py",
            "host/job/resample.py", "host/loadtest/line_livekit.py", "host/console/echo.py",
        ),
    ),
    Power(
        "shared memory",
        ("mmap", "os.memfd_create", "os.eventfd", "os.eventfd_read", "os.eventfd_write", "_posixshmem"),
        ("inference/segments.py",),
    ),
    Power("Silero", ("silero_vad",), ("inference/engines/vad.py",), lazy=True),
    Power(
        "torch",
        ("torch",),
        ("inference/engines/vad.py", "inference/engines/piper_torch.py", "inference/engines/whisper_features.py"),
        lazy=True,
    ),
    Power(
        "Whisper",
        ("faster_whisper", "ctranslate2"),
        ("inference/engines/stt.py", "inference/engines/stock.py"),
        lazy=True,
    ),
    Power("llama.cpp", ("llama_cpp",), ("inference/engines/llm.py", "inference/engines/stock.py"), lazy=True),
    Power("chat templates", ("jinja2",), ("inference/engines/prompt.py",), lazy=True),
    Power("Piper", ("piper",), ("inference/engines/tts.py", "inference/engines/stock.py"), lazy=True),
    Power("onnxruntime", ("onnxruntime",), ("inference/engines/piper_load.py",), lazy=True),
    Power("ONNX", ("onnx",), ("inference/engines/piper_graph.py", "inference/engines/piper_torch.py"), lazy=True),
    Power("Prometheus", ("prometheus_client",), ("host/metrics.py",)),
    Power("NVML", ("pynvml",), ("host/load.py",), lazy=True),
    Power("tokens", ("jwt", "livekit.api"), ("host/tokens.py",)),
    Power("HTTP", ("aiohttp",), ("host/dispatch.py", "host/health.py")),
    Power(
        "the terminal",
        ("rich", "typer", "click"),
        (
            "host/cli.py",
            "host/console/command.py",
            "host/console/screen.py",
            "host/flags.py",
            "host/loadtest/command.py",
            "host/loadtest/screen.py",
            "host/serve.py",
            "host/simulate.py",
            "host/sizing.py",
            "host/status.py",
            "host/talk.py",
            "models/table.py",
            "models/progress.py",
        ),
    ),
    Power("the keyboard", ("termios", "tty"), ("host/console/terminal.py",)),
    Power("sound", ("sounddevice",), ("host/console/portaudio.py",), lazy=True),
    Power("charts", ("matplotlib",), ("host/loadtest/page.py",), lazy=True),
    Power("the model hub", ("huggingface_hub",), ("models/sources.py",), lazy=True),
)  # fmt: skip

PUBLIC_IN_SPITE_OF_THEIR_NAME = {
    "os._exit",
    "sys._getframe",
    "sys._current_frames",
    "_replace",
    "_asdict",
    "_fields",
    "_make",
    "_fields_",
}
"""Documented names of the standard library."""

FOREIGN_PRIVATE = {
    # The package's wrapper holds the memory of one stream; only the network inside takes it as an argument,
    # which is what lets one forward serve every room.
    ("inference/engines/vad.py", "_model"),
}
"""Where a model library leaves no other way. A library's privates may change under us, so each is a decision."""


# --- reading sources ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Import:
    """``target`` is the dotted name of what is imported: a module, or a name in one."""

    target: str
    bound: str
    line: int
    lazy: bool
    for_types: bool


class Module:
    """One source file."""

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.source = source
        self.tree = ast.parse(source, path)
        parts = path.removesuffix(".py").split("/")
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.imports = tuple(self._imports(self.tree, lazy=False, for_types=False))

    def _imports(self, node: ast.AST, *, lazy: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                for item in child.names:
                    bound = item.asname or item.name.split(".")[0]
                    yield Import(item.name, bound, child.lineno, lazy, for_types)
            elif isinstance(child, ast.ImportFrom):
                base = self._absolute(child)
                for item in child.names:
                    yield Import(f"{base}.{item.name}", item.asname or item.name, child.lineno, lazy, for_types)
            elif name := _imported_by_call(child):
                yield Import(name, "", getattr(child, "lineno", 0), lazy, for_types)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for part in child.body:
                    yield from self._imports(ast.Module([part], []), lazy=lazy, for_types=True)
                for part in child.orelse:
                    yield from self._imports(ast.Module([part], []), lazy=lazy, for_types=for_types)
                continue
            yield from self._imports(child, lazy=inside, for_types=for_types)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, node.module] if node.module else base)

    @functools.cached_property
    def uses(self) -> tuple[tuple[str, int], ...]:
        """Dotted names that are used, as far as imports tell what they are: ("os.environ", line)."""
        bound = {}
        for item in self.imports:
            # ``import a.b`` binds ``a``.
            plain = item.bound and item.target.startswith(f"{item.bound}.") and "." not in item.bound
            from_import = item.target.split(".")[-1] == item.bound
            bound[item.bound] = item.bound if plain and not from_import else item.target
        found = [(item.target, item.line) for item in self.imports]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and (chain := _chain(node)) and chain[0] in bound:
                found.append((".".join([bound[chain[0]], *chain[1:]]), node.lineno))
        return tuple(found)


def _chain(node: ast.expr) -> list[str] | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *names[::-1]] if isinstance(node, ast.Name) else None


def _imported_by_call(node: ast.AST) -> str | None:
    """``importlib.import_module("x")`` and ``__import__("x")`` are imports, too."""
    if not isinstance(node, ast.Call) or not node.args:
        return None
    name, argument = ast.unparse(node.func), node.args[0]
    if name.split(".")[-1] not in ("import_module", "__import__") or not isinstance(argument, ast.Constant):
        return None
    return str(argument.value)


class Sources:
    """All modules of the program, or of an offender made for a test."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.modules = {module.name: module for module in (Module(path, source) for path, source in files.items())}
        self.by_path = {module.path: module for module in self.modules.values()}

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules.values())

    def home(self, target: str) -> str:
        """The module that ``target`` is, or lies in; "" for one that is not ours."""
        parts = target.split(".")
        if parts[0] not in PACKAGES:
            return ""
        for end in range(len(parts), 0, -1):
            if (name := ".".join(parts[:end])) in self.modules:
                return name
        return target


@functools.cache
def program() -> Sources:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "weights" not in path.parts]
    return Sources({str(path.relative_to(ROOT)): path.read_text() for path in sorted(files)})


def within(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


# --- the rules ------------------------------------------------------------------------------------


def wrong_arrows(sources: Sources) -> list[str]:
    """host → inference.client, .supervised, .wire; everything → models; nothing back. For types, too."""
    found = []
    for module in sources:
        for item in module.imports:
            home = sources.home(item.target)
            if not home:
                continue
            if within(module.name, ["inference.wire"]):
                legal = within(home, ["inference.wire"])
            elif within(module.name, ["models"]):
                legal = within(home, ["models"])
            elif within(module.name, ["inference"]):
                legal = within(home, ["inference", "models"])
            else:
                legal = within(home, ["host", "models", *FROM_INFERENCE])
            if not legal:
                found.append(f"{module.path}:{item.line}: {module.name} imports {home}")
    return found


def cycles(sources: Sources) -> list[str]:
    """Modules that need each other. Imports inside functions count: they only hide a cycle."""
    graph = {
        module.name: {
            home
            for item in module.imports
            if not item.for_types and (home := sources.home(item.target)) in sources.modules and home != module.name
        }
        for module in sources
    }

    @functools.cache
    def reaches(start: str) -> frozenset[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for follows in graph[waiting.pop()]:
                if follows not in seen:
                    seen.add(follows)
                    waiting.append(follows)
        return frozenset(seen)

    rings = {frozenset(other for other in reaches(name) if name in reaches(other)) for name in graph}
    return sorted(" <-> ".join(sorted(ring)) for ring in rings if ring)


def impure(sources: Sources) -> list[str]:
    """What a pure file, or any file of ours that it needs, imports or does that touches the world."""
    found = []
    for path in (*PURE, *PLANNED):
        if path not in sources.by_path:
            continue
        waiting = [sources.by_path[path]]
        seen = {waiting[0].name}
        while waiting:
            module = waiting.pop()
            for item in module.imports:
                if item.for_types:
                    continue
                if home := sources.home(item.target):
                    if home in sources.modules and home not in seen:
                        seen.add(home)
                        waiting.append(sources.modules[home])
                elif item.target.split(".")[0] not in PURE_LIBRARY:
                    found.append(f"{path}: {module.path}:{item.line} imports {item.target}")
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "print", "input", "breakpoint"):
                    found.append(f"{path}: {module.path}:{node.lineno} calls {ast.unparse(node.func)}")
                if isinstance(node, ast.AsyncFunctionDef | ast.Await):
                    found.append(f"{path}: {module.path}:{node.lineno} waits")
    return found


def misused_powers(sources: Sources) -> list[str]:
    found = []
    for module in sources:
        for power in POWERS:
            for name, line in module.uses:
                if within(name, power.names) and module.path not in power.owners:
                    found.append(f"{module.path}:{line}: {name}; {power.what}: {', '.join(power.owners) or 'nobody'}")
            if power.lazy and module.path in power.owners:
                found += [
                    f"{module.path}:{item.line}: {item.target} is imported before it is needed"
                    for item in module.imports
                    if within(item.target, power.names) and not item.lazy and not item.for_types
                ]
    return found


def not_standard(sources: Sources) -> list[str]:
    """The wire is for other people's programs, too: they need nothing but Python."""
    return [
        f"{module.path}:{item.line}: {item.target}"
        for module in sources
        if within(module.name, ["inference.wire"])
        for item in module.imports
        if not sources.home(item.target) and item.target.split(".")[0] not in sys.stdlib_module_names
    ]


def heavy_jobs(sources: Sources) -> list[str]:
    """Whatever a job process may load, from any file that it may reach, with the files of its packages."""
    found = []
    starts = [name for name in sources.modules if within(name, ["host.job", "host.forkserver", "inference.client"])]
    seen: set[str] = set()
    waiting = sorted(starts)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in sources.modules:
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])
        module = sources.modules[name]
        for item in module.imports:
            if item.for_types:
                continue
            if home := sources.home(item.target):
                waiting.append(home)
            elif item.target.split(".")[0] not in sys.stdlib_module_names and not within(
                item.target, (*JOB_LIBRARIES, *JOB_EXCEPTIONS.get(name, ()))
            ):
                found.append(f"{module.path}:{item.line}: {item.target}")
    return found


def reaches_into_others(sources: Sources) -> list[str]:
    """Private names of another module or library. A name that this module itself defines is its own."""
    found = []
    for module in sources:
        own = _private_definitions(module.tree)
        for item in module.imports:
            private = [part for part in item.target.split(".") if _is_private(part)]
            if private:
                found.append(f"{module.path}:{item.line}: imports {item.target}")
        imported = {item.bound for item in module.imports}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute):
                name, base = node.attr, node.value
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr")
                and isinstance(node.args[1], ast.Constant)
            ):
                name, base = str(node.args[1].value), node.args[0]
            else:
                continue
            known = {name, f"{ast.unparse(base)}.{name}"} & PUBLIC_IN_SPITE_OF_THEIR_NAME
            if not _is_private(name) or known or (module.path, name) in FOREIGN_PRIVATE:
                continue
            of_import = isinstance(base, ast.Name) and base.id in imported
            if of_import or name not in own:
                found.append(f"{module.path}:{node.lineno}: {ast.unparse(base)}.{name}")
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__")) and name != "_"


def _private_definitions(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return {name for name in names if _is_private(name)}


def swallowed_errors(sources: Sources) -> list[str]:
    """Handlers of everything that do nothing: what went wrong is never known."""
    found = []
    broad = {"", "Exception", "BaseException"}
    for module in sources:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                does_nothing = all(
                    isinstance(line, ast.Pass | ast.Continue)
                    or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
                    for line in node.body
                )
                if does_nothing and broad & {ast.unparse(kind) if kind else "" for kind in caught}:
                    found.append(f"{module.path}:{node.lineno}: an error is dropped")
            elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
                found += [
                    f"{module.path}:{node.lineno}: suppress({ast.unparse(kind)})"
                    for kind in node.args
                    if ast.unparse(kind) in broad
                ]
    return found


def too_long(sources: Sources) -> list[str]:
    return [
        f"{module.path}: {lines} lines" for module in sources if (lines := len(module.source.splitlines())) > MAX_LINES
    ]


def full_packages(sources: Sources) -> list[str]:
    """``import inference.client`` must not load anything that it did not ask for."""
    found = []
    for path in ("inference/__init__.py", "inference/wire/__init__.py", "models/__init__.py"):
        module = sources.by_path.get(path)
        body = module.tree.body if module else []
        if body and not (len(body) == 1 and ast.get_docstring(module.tree)):  # type: ignore[union-attr]
            found.append(f"{path}: more than a docstring")
    return found


# --- the program ----------------------------------------------------------------------------------

RULES: tuple[Callable[[Sources], list[str]], ...] = (
    wrong_arrows,
    cycles,
    impure,
    misused_powers,
    not_standard,
    heavy_jobs,
    reaches_into_others,
    swallowed_errors,
    too_long,
    full_packages,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Callable[[Sources], list[str]]) -> None:
    assert rule(program()) == []


def test_the_rules_are_about_files_that_exist() -> None:
    """Else a file that was renamed would leave its rule without anybody to obey it."""
    listed = {*PURE, *(owner for power in POWERS for owner in power.owners)}
    listed |= {name.replace(".", "/") + ".py" for name in (*JOB_EXCEPTIONS, "inference.client", "inference.supervised")}
    assert sorted(path for path in listed if path not in program().by_path) == []


def test_everything_is_read() -> None:
    assert len(program().modules) > 40
    assert {"host", "host.job.main", "inference", "inference.wire.tlv", "models.catalog"} <= program().modules.keys()


MODEL_LIBRARIES = "torch onnxruntime ctranslate2 llama_cpp faster_whisper piper silero_vad jinja2 huggingface_hub"
"""In the inference process, or where models are fetched, and nowhere else."""
NOT_IN_JOBS = (
    "msgspec rich typer click aiohttp psutil prometheus_client pynvml jwt livekit.api"
    " host.worker host.supervisor host.config host.load host.metrics host.dispatch"
)
NOT_IN_SUPERVISOR = (
    "numpy livekit.rtc livekit.api pynvml pydantic rich.progress"
    " host.talk host.job.main host.job.pipeline inference.main"
)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("host.job.main", f"{MODEL_LIBRARIES} {NOT_IN_JOBS}"),
        ("host.job.functions", f"{MODEL_LIBRARIES} {NOT_IN_JOBS} numpy livekit uvloop"),
        ("inference.client", f"{MODEL_LIBRARIES} {NOT_IN_JOBS} numpy livekit uvloop"),
        ("host", f"{MODEL_LIBRARIES} {NOT_IN_JOBS} numpy livekit uvloop"),
        ("host.worker", f"{MODEL_LIBRARIES} {NOT_IN_SUPERVISOR}"),
        ("host.cli", f"{MODEL_LIBRARIES} {NOT_IN_SUPERVISOR} host.worker livekit aiohttp prometheus_client"),
    ],
    ids=lambda value: value if value.startswith(("host", "inference")) else "",
)
def test_what_is_really_loaded(module: str, banned: str) -> None:
    """The rules read sources; this asks Python, which also knows what livekit and numpy bring."""
    probe = f"import sys, {module}; sys.stdout.write(' '.join(sorted(set({banned.split()!r}) & set(sys.modules))))"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""


# --- each rule can fail ---------------------------------------------------------------------------

OFFENDERS: list[tuple[Callable[[Sources], list[str]], dict[str, str], str]] = [
    (wrong_arrows, {"inference/a.py": "import host.errors"}, "inference.a imports host.errors"),
    (wrong_arrows, {"inference/a.py": "def f():\n    from host import errors", "host/errors.py": ""}, "host.errors"),
    (wrong_arrows, {"inference/a.py": "import importlib\nimportlib.import_module('host.errors')"}, "host.errors"),
    (wrong_arrows, {"host/a.py": "from inference import server", "inference/server.py": ""}, "inference.server"),
    (wrong_arrows, {"host/a.py": "from inference.segments import Segment"}, "host.a imports inference.segments"),
    (wrong_arrows, {"host/a.py": "from inference.client2 import x"}, "inference.client2"),
    (wrong_arrows, {"host/a.py": "import inference", "inference/__init__.py": ""}, "host.a imports inference"),
    (
        wrong_arrows,
        {"models/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import inference.client"},
        "models.a imports inference.client",
    ),
    (wrong_arrows, {"inference/wire/a.py": "from ..client import x", "inference/client.py": ""}, "inference.client"),
    (wrong_arrows, {"inference/wire/a.py": "import models.store"}, "inference.wire.a imports models.store"),
    (cycles, {"host/a.py": "import host.b", "host/b.py": "from host import a"}, "host.a <-> host.b"),
    (
        cycles,
        {"host/a.py": "import host.b", "host/b.py": "import host.c", "host/c.py": "def f():\n    from host.a import x"},
        "host.a <-> host.b <-> host.c",
    ),
    (impure, {"host/pool.py": "import time"}, "host/pool.py:1 imports time"),
    (impure, {"host/pool.py": "from datetime import datetime"}, "imports datetime.datetime"),
    (impure, {"host/pool.py": "def f():\n    import random"}, "imports random"),
    (impure, {"host/pool.py": "import logging"}, "imports logging"),
    (impure, {"host/pool.py": "import numpy"}, "imports numpy"),
    (impure, {"host/pool.py": "from host import b", "host/b.py": "import asyncio"}, "host/b.py:1 imports asyncio"),
    (impure, {"host/pool.py": "async def f(): ..."}, "waits"),
    (impure, {"inference/budget.py": "import time"}, "imports time"),
    (impure, {"host/pool.py": "open('x')"}, "calls open"),
    (misused_powers, {"host/a.py": "import os\nos.environ['X']"}, "host/a.py:2: os.environ; environment"),
    (misused_powers, {"host/a.py": "from os import environ as e"}, "os.environ"),
    (misused_powers, {"host/a.py": "import os as o\no.getenv('x')"}, "os.getenv"),
    (misused_powers, {"host/a.py": "import os\nos.fork()"}, "os.fork"),
    (misused_powers, {"host/a.py": "import os\ndef f():\n    os.kill(1, 9)"}, "os.kill"),
    (misused_powers, {"host/a.py": "from signal import pidfd_send_signal"}, "signal.pidfd_send_signal"),
    (misused_powers, {"host/supervisor.py": "import subprocess"}, "subprocess"),
    (misused_powers, {"host/a.py": "import asyncio\nasyncio.create_subprocess_exec('x')"}, "create_subprocess_exec"),
    (misused_powers, {"host/forkserver.py": "import multiprocessing.shared_memory"}, "multiprocessing"),
    (misused_powers, {"inference/server.py": "import mmap"}, "mmap; shared memory: inference/segments.py"),
    (misused_powers, {"inference/server.py": "import os\nos.eventfd_write(1, 1)"}, "os.eventfd_write"),
    (misused_powers, {"host/job/audio.py": "from livekit import rtc"}, "livekit.rtc"),
    (misused_powers, {"host/job/audio.py": "import livekit.rtc"}, "livekit.rtc"),
    (misused_powers, {"host/job/audio.py": "import livekit\nlivekit.rtc.Room()"}, "livekit.rtc.Room"),
    (misused_powers, {"inference/engines/llm.py": "def load():\n    import torch"}, "torch; torch"),
    (misused_powers, {"inference/engines/llm.py": "import llama_cpp"}, "before it is needed"),
    (misused_powers, {"inference/engines/llm.py": "class A:\n    from llama_cpp import Llama"}, "before it is needed"),
    (misused_powers, {"host/worker.py": "def f():\n    import prometheus_client"}, "prometheus_client; Prometheus"),
    (misused_powers, {"host/worker.py": "def f():\n    import pynvml"}, "pynvml; NVML: host/load.py"),
    (misused_powers, {"host/load.py": "import pynvml"}, "pynvml is imported before"),
    (misused_powers, {"host/dispatch.py": "from livekit import api"}, "livekit.api; tokens: host/tokens.py"),
    (misused_powers, {"host/supervisor.py": "from rich.console import Console"}, "rich.console.Console; the terminal"),
    (misused_powers, {"models/fetch.py": "def f():\n    import huggingface_hub"}, "huggingface_hub"),
    (not_standard, {"inference/wire/a.py": "import numpy as np"}, "inference/wire/a.py:1: numpy"),
    (heavy_jobs, {"host/job/a.py": "import msgspec"}, "host/job/a.py:1: msgspec"),
    (heavy_jobs, {"host/job/a.py": "def f():\n    import torch"}, "torch"),
    (heavy_jobs, {"host/job/a.py": "from livekit import api"}, "livekit.api"),
    (heavy_jobs, {"host/job/a.py": "import uvloop"}, "uvloop"),
    (heavy_jobs, {"host/job/a.py": "import host.b", "host/b.py": "import aiohttp"}, "host/b.py:1: aiohttp"),
    (heavy_jobs, {"host/job/a.py": "", "host/job/__init__.py": "", "host/__init__.py": "import typer"}, "typer"),
    (heavy_jobs, {"inference/client.py": "from inference import a", "inference/a.py": "import torch"}, "torch"),
    (reaches_into_others, {"host/a.py": "from host.b import _x"}, "imports host.b._x"),
    (reaches_into_others, {"host/a.py": "import host._b"}, "imports host._b"),
    (reaches_into_others, {"host/a.py": "from host import b\nb._x()"}, "b._x"),
    (reaches_into_others, {"host/a.py": "from host import b\n_x = 1\nb._x()"}, "b._x"),
    (
        reaches_into_others,
        {"host/a.py": "class A:\n    def f(self, other):\n        other.room._x = 1"},
        "other.room._x",
    ),
    (reaches_into_others, {"host/a.py": "getattr(f(), '_x')"}, "f()._x"),
    (reaches_into_others, {"host/a.py": "import os\nos._exit(1)\nos._wrap_close"}, "os._wrap_close"),
    (swallowed_errors, {"host/a.py": "try:\n    f()\nexcept Exception:\n    pass"}, "host/a.py:3: an error is dropped"),
    (swallowed_errors, {"host/a.py": "try:\n    f()\nexcept:\n    ..."}, "an error is dropped"),
    (swallowed_errors, {"host/a.py": "try:\n    f()\nexcept (OSError, BaseException) as e:\n    pass"}, "is dropped"),
    (
        swallowed_errors,
        {"host/a.py": "for x in y:\n    try:\n        f()\n    except Exception:\n        continue"},
        "is dropped",
    ),
    (swallowed_errors, {"host/a.py": "import contextlib\nwith contextlib.suppress(Exception):\n    f()"}, "suppress"),
    (too_long, {"host/a.py": "\n" * (MAX_LINES + 1)}, "host/a.py: 601 lines"),
    (full_packages, {"inference/__init__.py": '"""Doc."""\nfrom inference.client import x'}, "more than a docstring"),
    (full_packages, {"inference/__init__.py": "x = 1"}, "more than a docstring"),
]


@pytest.mark.parametrize(
    ("rule", "files", "says"), OFFENDERS, ids=[f"{rule.__name__}-{says}" for rule, _, says in OFFENDERS]
)
def test_an_offender_is_found(rule: Callable[[Sources], list[str]], files: dict[str, str], says: str) -> None:
    assert re.search(re.escape(says), "\n".join(rule(Sources(files))))


def test_every_rule_has_an_offender() -> None:
    assert {rule for rule, _, _ in OFFENDERS} == set(RULES)


INNOCENT = {
    "host/__init__.py": '"""Lazy."""',
    "host/config.py": "import os\nos.environ['X']\nos.path.join('a', 'b')",
    "host/process.py": "import subprocess, signal, os\nsignal.pidfd_send_signal(1, 2)",
    "host/errors.py": "",
    "host/pool.py": "import heapq\nfrom collections.abc import Iterable\nfrom host import errors",
    "host/job/a.py": (
        "import os, asyncio, numpy as np\nfrom inference.client import X\nfrom livekit.protocol import agent\n"
        "class A:\n    def __init__(self):\n        self._x = self.__dict__\n"
        "    def same(self, other):\n        return self._x == other._x\n"
        "try:\n    f()\nexcept OSError:\n    pass\n"
        "try:\n    f()\nexcept Exception:\n    raise\n"
        "os._exit(1)"
    ),
    "inference/__init__.py": '"""Doc."""',
    "inference/client.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from inference import other",
    "inference/other.py": "from inference import client\nimport models.store",
    "inference/engines/vad.py": "def load():\n    import torch\n    torch.set_num_threads(1)",
    "inference/segments.py": "import mmap, os\nos.eventfd(0)",
    "models/store.py": "import msgspec",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_innocent_are_left_alone(rule: Callable[[Sources], list[str]]) -> None:
    assert rule(Sources(INNOCENT)) == []
