"""What the tests of the wire share: which descriptors are open."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest


def open_descriptors() -> dict[int, str]:
    """Every open descriptor of this process and what it is."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        # The one that lists the folder is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found[int(link.name)] = str(link.readlink())
    return found


@pytest.fixture
def nothing_left_open() -> Callable[[], AbstractContextManager[None]]:
    """``with nothing_left_open():`` fails if the block leaves a descriptor open that was not open before."""

    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        gc.collect()
        before = open_descriptors()
        yield
        gc.collect()
        after = open_descriptors()
        left = {number: what for number, what in after.items() if before.get(number) != what}
        assert not left

    return watch
