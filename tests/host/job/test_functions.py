"""Functions by name: what can be named, where it is found again, and what is said when it is not."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host.job import builtin_agent, functions
from host.job.functions import (
    AgentFileError,
    extend_import_path,
    import_path,
    load_function,
    reference_of,
    user_error,
)


def some_function() -> str:
    return "found"


class Holder:
    def method(self) -> None: ...


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading changes the process for good; a test must not."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(functions, "_loaded", {})


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(text: str, name: str = "agent.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_function_of_a_module_is_found_again() -> None:
    reference = reference_of(some_function)
    assert reference == f"{__name__}:some_function"
    assert load_function(reference) is some_function
    assert load_function("host.job.builtin_agent:entrypoint") is builtin_agent.entrypoint


@pytest.mark.parametrize(
    "function", [lambda: None, Holder().method, Holder.method, functools.partial(some_function), Holder()]
)
def test_what_has_no_name_to_be_found_by_is_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="a function of a module is needed"):
        reference_of(function)


def test_a_nested_function_is_refused_by_name() -> None:
    def inside() -> None: ...

    with pytest.raises(ValueError, match=r"test_a_nested.*inside cannot be imported by its name"):
        reference_of(inside)


PROGRAM = """
from host.job.functions import import_path, reference_of
def entrypoint(): ...
if __name__ == "__main__":
    print(reference_of(entrypoint))
    print("\\n".join(import_path()))
"""


def run(*arguments: str, folder: Path) -> list[str]:
    command = [sys.executable, *arguments]
    root = Path(__file__).parents[3]
    environment = {"PYTHONPATH": str(root)}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return ran.stdout.splitlines()


def test_a_program_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    reference, *folders = run("program.py", folder=tmp_path)
    assert reference == f"{tmp_path / 'program.py'}:entrypoint"
    assert str(tmp_path) in folders
    assert load_function(reference).__name__ == "entrypoint"


def test_a_program_that_is_run_as_a_module_is_named_by_it(tmp_path: Path) -> None:
    (tmp_path / "telephone").mkdir()
    (tmp_path / "telephone" / "__init__.py").write_text("")
    (tmp_path / "telephone" / "program.py").write_text(PROGRAM)
    reference, *folders = run("-m", "telephone.program", folder=tmp_path)
    assert reference == "telephone.program:entrypoint"
    extend_import_path(folders)
    assert load_function(reference).__module__ == "telephone.program"


def test_an_interactive_function_is_refused(tmp_path: Path) -> None:
    code = PROGRAM.replace('if __name__ == "__main__":', "try:").replace(
        "import_path()))", "import_path()))\nexcept ValueError as exc: print(exc)"
    )
    assert "interactive" in run("-c", code, folder=tmp_path)[0]


def test_a_file_is_run_once_however_it_is_named(file: Callable[..., str]) -> None:
    path = file("runs = []\nruns.append(1)\ndef entrypoint(): return runs\ndef prewarm(): return runs\n")
    first, again = load_function(f"{path}:entrypoint"), load_function(f"{Path(path).parent}/./agent.py:prewarm")
    assert first() is again() == [1]


def test_two_files_of_one_name_are_two_modules(file: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "agent.py").write_text("def entrypoint(): return 'other'\n")
    one = load_function(file("def entrypoint(): return 'one'\n") + ":entrypoint")
    other = load_function(f"{tmp_path}/other/agent.py:entrypoint")
    assert (one(), other()) == ("one", "other")
    assert (one.__module__, other.__module__) == ("roomful_agent", "roomful_agent_2")


def test_the_modules_beside_a_file_are_found(file: Callable[..., str]) -> None:
    file("ANSWER = 42\n", "beside_the_agent.py")
    path = file("from beside_the_agent import ANSWER\ndef entrypoint(): return ANSWER\n")
    assert load_function(f"{path}:entrypoint")() == 42


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\nraise RuntimeError('no key')\n", "agent.py, line 2: RuntimeError: no key"),
        ("x = 1\ndef f(:\n", "agent.py, line 2: SyntaxError"),
        ("import no_such_module_here\n", "agent.py, line 1: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", "agent.py, line 2: SystemExit: 3"),
        ("x = 1\n", "agent.py: it defines no function 'entrypoint'"),
        ("entrypoint = 1\n", "agent.py: it defines no function 'entrypoint'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(file: Callable[..., str], text: str, says: str) -> None:
    reference = file(text) + ":entrypoint"
    for _ in range(2):
        # A file that failed is not taken for a loaded one.
        with pytest.raises(AgentFileError, match=r"^agent file /") as raised:
            load_function(reference)
        assert says in str(raised.value)


def test_a_module_that_cannot_be_used_is_named_with_its_line(file: Callable[..., str], tmp_path: Path) -> None:
    file("x = 1\nraise RuntimeError('no key')\n", "broken_module_of_the_test.py")
    extend_import_path([str(tmp_path)])
    with pytest.raises(
        AgentFileError, match=r"^agent module broken_module_of_the_test \(.*test\.py, line 2\): Runtime"
    ):
        load_function("broken_module_of_the_test:entrypoint")
    with pytest.raises(AgentFileError, match=r"^agent module no_such_module_here: ModuleNotFoundError"):
        load_function("no_such_module_here:entrypoint")


@pytest.mark.parametrize("reference", ["", "agent.py", ":entrypoint", "agent.py:"])
def test_what_names_nothing(reference: str) -> None:
    with pytest.raises(AgentFileError, match="names no function"):
        load_function(reference)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(AgentFileError, match=r"^agent file /no/such/agent.py: there is no such file$"):
        load_function("/no/such/agent.py:entrypoint")


def test_the_error_of_a_function_names_its_line(file: Callable[..., str]) -> None:
    reference = file("def prewarm():\n    raise KeyError('warm')\n") + ":prewarm"
    with pytest.raises(KeyError) as raised:
        load_function(reference)()
    assert str(user_error(reference, raised.value)).endswith("agent.py, line 2: prewarm: KeyError: 'warm'")


def test_folders_that_are_known_are_not_looked_at_twice() -> None:
    before = list(sys.path)
    assert all(Path(folder).is_absolute() for folder in import_path())
    extend_import_path([before[-1], "/somewhere/else"])
    assert sys.path == ["/somewhere/else", *before]
