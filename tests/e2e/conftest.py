from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from livekit_server import LiveKitServer, livekit_server

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def livekit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveKitServer]:
    """One livekit-server for the whole run; every test has a room of its own."""
    with livekit_server(tmp_path_factory.mktemp("livekit")) as server:
        yield server


@pytest.fixture
def room_name(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}-{next(_numbers)}"
