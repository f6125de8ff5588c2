"""Tables for ``host models list``, ``download`` and ``verify``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from models.catalog import Catalog, default_models_dir, load_catalog
from models.store import FileResult, Store

_STATE_STYLES = {
    "ok": "green",
    "installed": "green",
    "bundled": "green",
    "missing": "yellow",
    "wrong": "red",
    "wrong size": "red",
    "wrong checksum": "red",
}


def list_table(models_dir: Path | None = None, *, profile: str | None = None, catalog: Catalog | None = None) -> Table:
    """Every model (of ``profile``, if given) and whether it is installed below ``models_dir``.

    The state is a look at names and sizes; ``verify_table`` shows checksums. Memory is MiB once
    loaded, without the KV cache of rooms. Raises ``UnknownProfileError``.
    """
    catalog = catalog or load_catalog()
    store = Store(models_dir or default_models_dir())
    models = catalog.models if profile is None else catalog.profile_models(profile)
    title = f"Models in {store.models_dir}" if profile is None else f"Models of {profile}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # Narrow enough for a terminal of 80 columns; the pinned sources are in the catalogue.
    table.add_column("role", no_wrap=True)
    table.add_column("name", no_wrap=True)
    table.add_column("licence", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for model in models:
        table.add_row(
            model.role,
            Text(model.name),
            model.licence,
            decimal(model.size_bytes) if model.files else "-",
            f"{model.memory_mb} MiB",
            Text(str(model.source).partition(" ")[0]),
            _state(store.glance(model)),
        )
    return table


def profiles_table(*, catalog: Catalog | None = None) -> Table:
    """Every profile: what it is for, what it downloads in bytes, what it holds in memory in MiB."""
    catalog = catalog or load_catalog()
    table = Table(title="Profiles", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("profile")
    table.add_column("for")
    table.add_column("models", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    for name, profile in catalog.profiles.items():
        models = catalog.profile_models(name)
        table.add_row(
            Text(f"{name} (default)" if name == catalog.default_profile else name),
            Text(profile.description),
            Text("\n".join((profile.stt, profile.llm, profile.tts))),
            decimal(sum(model.size_bytes for model in models)),
            f"{sum(model.memory_mb for model in models)} MiB",
        )
    return table


def verify_table(results: Iterable[FileResult]) -> Table:
    """One row a file: its state, and for a bad one what was expected and what was found."""
    table = Table(title="Model files")
    table.add_column("role", no_wrap=True)
    table.add_column("file")
    table.add_column("size", justify="right")
    table.add_column("state")
    table.add_column("detail", overflow="fold")
    for result in results:
        table.add_row(
            result.model.role,
            Text(f"{result.model.name}/{result.file.path}"),
            decimal(result.file.size_bytes),
            _state(result.state),
            "" if result.ok else Text(result.describe()),
        )
    return table


def _state(state: str) -> Text:
    return Text(state, style=_STATE_STYLES[state])
