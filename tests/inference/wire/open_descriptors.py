"""Which descriptors this process has open."""

from __future__ import annotations

import contextlib
from pathlib import Path


def open_descriptors() -> dict[int, str]:
    """Every open descriptor of this process and what it is."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        # The one that lists the folder is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found[int(link.name)] = str(link.readlink())
    return found
