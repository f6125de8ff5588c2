"""What the tests of the wire share: which descriptors are open."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from open_descriptors import open_descriptors


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
