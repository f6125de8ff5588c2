"""Weights on disk: is a file what the catalogue says, and how a new one gets there.

::

    <models dir>/
        <model>/<file>        complete and checked: nothing else ever has a final name
        <model>/.<file>.part  being written; renamed once its checksum holds
        .partial/<model>/     what pip and the hub client have brought so far, kept to resume
        .lock                 held while files are added or removed
        .verified.json        stamps: files whose full checksum has been seen to hold

A checksum over gigabytes takes seconds, so a file that passed is remembered by its size, its
modification time and its inode. Whatever changes one of them costs a full check again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from models.catalog import CatalogFile, Model
from models.errors import FetchError, ModelError
from models.progress import Progress

State = Literal["ok", "missing", "wrong size", "wrong checksum"]

CHUNK_BYTES = 1 << 20

PARTIAL_DIR = ".partial"
LOCK_FILE = ".lock"
STAMP_FILE = ".verified.json"


@dataclass(frozen=True, slots=True)
class FileResult:
    """What a check of one file found. ``found``: the size in bytes or the sha256, if it was the wrong one."""

    model: Model
    file: CatalogFile
    path: Path
    state: State
    found: str = ""
    removed: bool = False

    @property
    def ok(self) -> bool:
        """The file is there and is the one the catalogue names."""
        return self.state == "ok"

    def describe(self) -> str:
        """State, what was expected and what was found, in one line."""
        match self.state:
            case "ok":
                return "ok"
            case "missing":
                return f"missing: expected {self.file.size_bytes} bytes"
            case "wrong size":
                text = f"wrong size: expected {self.file.size_bytes} bytes, found {self.found}"
            case "wrong checksum":
                text = f"wrong checksum: expected sha256 {self.file.sha256}, found {self.found}"
        return f"{text} (removed)" if self.removed else text


class _Stamp(msgspec.Struct, frozen=True):
    """A file as it was when its checksum held. ``mtime_ns``: nanoseconds since the epoch."""

    sha256: str
    size_bytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, file: CatalogFile, status: os.stat_result) -> _Stamp:
        return cls(file.sha256, status.st_size, status.st_mtime_ns, status.st_ino)


class Store:
    """The weights below ``models_dir``. Reading creates nothing, so a read-only mount will do."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        self._stamps = self._read_stamps()
        self._saved = dict(self._stamps)

    def path(self, model: Model, file: CatalogFile) -> Path:
        """Where ``file`` of ``model`` belongs."""
        return model.folder(self.models_dir) / file.path

    def partial_dir(self, model: Model) -> Path:
        """Where the parts of a download of ``model`` are collected, on the same file system."""
        return self.models_dir / PARTIAL_DIR / model.name

    # --- checking ---------------------------------------------------------------------------------

    def glance(self, model: Model) -> Literal["bundled", "installed", "missing", "wrong"]:
        """A look at names and sizes only; reads no content."""
        if not model.files:
            return "bundled"
        state: Literal["installed", "wrong"] = "installed"
        for file in model.files:
            try:
                size = self.path(model, file).stat().st_size
            except OSError:
                return "missing"
            if size != file.size_bytes:
                state = "wrong"
        return state

    def check(self, model: Model, file: CatalogFile, progress: Progress, *, full: bool = False) -> FileResult:
        """Is the file what the catalogue says? A valid stamp answers at once unless ``full`` is set.

        Raises ``ModelError`` if the file is there and cannot be read.
        """
        path = self.path(model, file)
        try:
            with path.open("rb") as opened:
                # Taken before reading: a change during the read then no longer fits the stamp.
                status = os.fstat(opened.fileno())
                if status.st_size != file.size_bytes:
                    return FileResult(model, file, path, "wrong size", f"{status.st_size} bytes")
                stamp = _Stamp.of(file, status)
                if not full and self._stamps.get(_key(model, file)) == stamp:
                    return FileResult(model, file, path, "ok")
                digest = _hash(opened, f"checking {model.name}/{file.path}", file.size_bytes, progress)
        except (FileNotFoundError, NotADirectoryError):
            return FileResult(model, file, path, "missing")
        except OSError as exc:
            raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
        if digest != file.sha256:
            self._stamps.pop(_key(model, file), None)
            return FileResult(model, file, path, "wrong checksum", digest)
        self._stamps[_key(model, file)] = stamp
        return FileResult(model, file, path, "ok")

    def save_stamps(self) -> None:
        """Remember what passed. On a read-only mount that is impossible: each start then checks in full."""
        if self._stamps == self._saved:
            return
        temporary = self.models_dir / f"{STAMP_FILE}.{os.getpid()}"
        try:
            temporary.write_bytes(msgspec.json.encode(self._stamps))
            temporary.replace(self.models_dir / STAMP_FILE)
        except OSError:
            return
        self._saved = dict(self._stamps)

    def _read_stamps(self) -> dict[str, _Stamp]:
        try:
            return msgspec.json.decode((self.models_dir / STAMP_FILE).read_bytes(), type=dict[str, _Stamp])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}  # stamps only save time; without them every file is checked in full

    # --- changing ---------------------------------------------------------------------------------

    @contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """Hold the folder for writing; waits, and says so, while another download has it.

        Creates the folder. Raises ``FetchError`` where it cannot be written.
        """
        try:
            self.models_dir.mkdir(parents=True, exist_ok=True)
            lock = (self.models_dir / LOCK_FILE).open("ab")
        except OSError as exc:
            raise FetchError(f"{self.models_dir} cannot be written: {exc.strerror}") from exc
        with lock:
            if not _try_lock(lock):
                progress.line(f"another download is running in {self.models_dir}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._stamps = self._read_stamps()
            self._saved = dict(self._stamps)
            yield

    def remove_if_wrong(self, result: FileResult, progress: Progress) -> FileResult:
        """Remove the wrong file behind ``result``, unless a download that is running will replace it.

        Returns ``result`` with ``removed`` set if the file is gone.
        """
        try:
            with (self.models_dir / LOCK_FILE).open("ab") as lock:
                if not _try_lock(lock):
                    return result
                again = self.check(result.model, result.file, progress)
                if not again.ok:
                    self.remove(again)
                    return FileResult(again.model, again.file, again.path, again.state, again.found, True)
                return again
        except (OSError, FetchError):
            return result  # a read-only mount: reported, not loaded, and left where it is

    def remove(self, result: FileResult) -> None:
        """Remove the file and its stamp. Call with the folder locked. Raises ``FetchError``."""
        self._stamps.pop(_key(result.model, result.file), None)
        try:
            result.path.unlink(missing_ok=True)
        except OSError as exc:
            raise FetchError(f"{result.path} cannot be removed: {exc.strerror}") from exc

    def put(self, model: Model, file: CatalogFile, chunks: Iterable[bytes], progress: Progress) -> FileResult:
        """Write ``chunks`` beside the final name and rename once the checksum holds.

        Call with the folder locked. Bytes that are not the catalogue's leave no trace, nor does an
        exception. Raises ``FetchError`` when the disk refuses, and whatever ``chunks`` raises.
        """
        path = self.path(model, file)
        temporary = path.with_name(f".{path.name}.part")
        digest = hashlib.sha256()
        size = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                temporary.open("wb") as out,
                progress.bar(f"installing {model.name}/{file.path}", file.size_bytes) as advance,
            ):
                for chunk in chunks:
                    size += len(chunk)
                    if size > file.size_bytes:
                        return FileResult(model, file, path, "wrong size", "more")
                    out.write(chunk)
                    digest.update(chunk)
                    advance(len(chunk))
                out.flush()
                os.fsync(out.fileno())
                status = os.fstat(out.fileno())
            if size != file.size_bytes:
                return FileResult(model, file, path, "wrong size", f"{size} bytes")
            if digest.hexdigest() != file.sha256:
                return FileResult(model, file, path, "wrong checksum", digest.hexdigest())
            temporary.replace(path)
        except OSError as exc:
            raise FetchError(f"{path} cannot be written: {exc.strerror}") from exc
        finally:
            temporary.unlink(missing_ok=True)
        self._stamps[_key(model, file)] = _Stamp.of(file, status)
        return FileResult(model, file, path, "ok")

    def adopt(self, model: Model, file: CatalogFile, source: Path, progress: Progress) -> FileResult:
        """Rename ``source``, a file below ``partial_dir``, to its final name once its checksum holds.

        Saves a copy of gigabytes. Call with the folder locked. Raises ``FetchError``.
        """
        path = self.path(model, file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as opened:
                status = os.fstat(opened.fileno())
                if status.st_size != file.size_bytes:
                    return FileResult(model, file, path, "wrong size", f"{status.st_size} bytes")
                digest = _hash(opened, f"checking {model.name}/{file.path}", file.size_bytes, progress)
            if digest != file.sha256:
                return FileResult(model, file, path, "wrong checksum", digest)
            source.replace(path)
        except OSError as exc:
            raise FetchError(f"{path} cannot be written: {exc.strerror}") from exc
        self._stamps[_key(model, file)] = _Stamp.of(file, status)
        return FileResult(model, file, path, "ok")


def _key(model: Model, file: CatalogFile) -> str:
    return f"{model.name}/{file.path}"


def _try_lock(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _hash(opened: BinaryIO, text: str, size_bytes: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    with progress.bar(text, size_bytes) as advance:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()
