"""The examples of docs/testing.md, run as they are printed."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from host import testing
from host.testing.expect import EventAssert
from host.testing.rehearsal import session

ROOT = Path(__file__).parents[3]
DEADLINE_S = 170.0


def printed_files() -> dict[str, str]:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/testing.md").read_text(), re.MULTILINE | re.DOTALL)
    files = {}
    for block in blocks:
        first = re.match(r"# (\w+\.py)\n", block)
        assert first is not None, f"a block of Python does not say which file it is: {block[:60]!r}"
        files[first[1]] = block
    return files


def run(folder: Path, *arguments: str) -> str:
    for name, text in printed_files().items():
        (folder / name).write_text(text)
    (folder / "conftest.py").write_text('pytest_plugins = ["host.testing.plugin"]\n')
    (folder / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "markers = models: on real models\nfilterwarnings = error\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.processes
def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    count = len(re.findall(r"^async def test_", printed_files()["test_hotel.py"], re.MULTILINE))
    assert count == 5
    assert f"{count} passed" in run(tmp_path, "test_hotel.py")


@pytest.mark.models
def test_the_example_on_models_runs_as_printed(tmp_path: Path) -> None:
    assert "1 passed" in run(tmp_path, "test_hotel_on_models.py")


@pytest.mark.processes
def test_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_either.py").write_text(
        "from host import VoiceAgent, testing\n"
        "async def test_either(roomful_engines):\n"
        "    async with testing.session(VoiceAgent('Be brief.'), engines=roomful_engines) as session:\n"
        "        assert (await session.run(user_input='Hello')).reply == 'You said: Hello'\n"
        "        assert not roomful_engines.hears_words\n"
    )
    assert "1 passed" in run(tmp_path, "test_either.py")
    with pytest.raises(AssertionError, match="invalid choice: 'cloud'"):
        run(tmp_path, "test_either.py", "--roomful-engines", "cloud")


def text() -> str:
    return (ROOT / "docs/testing.md").read_text()


def rows(title: str) -> dict[str, str]:
    """A table of the document: its first column, and the rest."""
    (block,) = re.findall(rf"^\| {title} \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", text(), re.MULTILINE)
    found = {}
    for line in block.splitlines():
        name, rest = line.strip("| ").split(" | ", 1)
        found[name.strip("`")] = rest
    return found


def test_the_arguments_of_a_session_are_all_told() -> None:
    assert list(rows("argument")) == list(inspect.signature(session).parameters)[1:]


def test_the_criteria_of_assertions_are_all_told() -> None:
    for name, told in rows("assertion").items():
        criteria = set(inspect.signature(getattr(EventAssert, name)).parameters) - {"self"}
        assert set(re.findall(r"`(\w+)`", told)) == criteria, name


def test_what_is_named_exists() -> None:
    for name in set(re.findall(r"host\.testing\.(\w+)", text())):
        assert name == "plugin" or hasattr(testing, name), name
    for name in testing.__all__:
        assert getattr(testing, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = testing.nothing
    for link in re.findall(r"\]\(([^)#]+)", text()):
        assert (ROOT / "docs" / link).exists(), link
