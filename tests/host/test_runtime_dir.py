"""The private folder of a host: there while it lives, gone at its end, and after a kill with the next host."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.runtime_dir import runtime_dir

HOLDER = """
import sys
from host.runtime_dir import runtime_dir
with runtime_dir() as folder:
    (folder / "inference.sock").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield process
        process.kill()


def folder_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_it_is_private_and_gone_at_the_end(temporary: Path) -> None:
    with runtime_dir() as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "socket").touch()
    assert list(temporary.iterdir()) == []


def test_it_is_gone_after_an_error(temporary: Path) -> None:
    with pytest.raises(ValueError, match="on purpose"), runtime_dir():
        raise ValueError("on purpose")
    assert list(temporary.iterdir()) == []


@pytest.mark.processes
def test_that_of_a_killed_host_goes_with_the_next(temporary: Path, holder: subprocess.Popen[str]) -> None:
    left = folder_of(holder)
    holder.kill()
    holder.wait()
    assert (left / "inference.sock").exists()
    with runtime_dir() as folder:
        assert not left.exists()
        assert list(temporary.iterdir()) == [folder]


@pytest.mark.processes
def test_that_of_a_living_host_stays(holder: subprocess.Popen[str]) -> None:
    other = folder_of(holder)
    with runtime_dir():
        assert (other / "inference.sock").exists()
    holder.communicate()
    assert holder.returncode == 0
    assert not other.exists()


def test_what_no_host_made_stays(temporary: Path) -> None:
    (temporary / "roomful-notes").mkdir()
    (temporary / "roomful-file").touch()
    (temporary / "elsewhere").mkdir()
    (temporary / "elsewhere" / "lock").touch()
    (temporary / "roomful-link").symlink_to(temporary / "elsewhere")
    with runtime_dir():
        pass
    assert {path.name for path in temporary.iterdir()} == {"roomful-notes", "roomful-file", "roomful-link", "elsewhere"}
