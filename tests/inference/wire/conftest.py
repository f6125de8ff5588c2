"""What the tests of the wire share: whose descriptors are open, and two streams that face each other."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from inference.wire.connection import ROOM, Protocol, Role
from inference.wire.stream import MessageStream


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


@pytest.fixture
def stream_pair() -> Iterator[Callable[..., tuple[MessageStream, MessageStream]]]:
    """``client, server = stream_pair(protocol=ROOM)``; closed at the end of the test."""
    made: list[MessageStream] = []

    def make(protocol: Protocol = ROOM) -> tuple[MessageStream, MessageStream]:
        first, second = socket.socketpair()
        client, server = MessageStream(first, Role.CLIENT, protocol), MessageStream(second, Role.SERVER, protocol)
        made.extend((client, server))
        return client, server

    yield make
    # Synchronous fixtures outlive the test's loop, and closing a stream needs it: the tests close theirs.
    assert all(stream.is_closed for stream in made), made
