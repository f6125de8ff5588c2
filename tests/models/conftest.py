from __future__ import annotations

from pathlib import Path

import pytest
from fake_weights import CATALOG_TOML, Recorder, write_wheels

from models.catalog import Catalog, parse_catalog


@pytest.fixture
def catalog() -> Catalog:
    return parse_catalog(CATALOG_TOML)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with every wheel of profile "small"."""
    return write_wheels(tmp_path / "wheels")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
