from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fake_livekit import FakeLiveKit, fake_livekit
from fake_supervisor import supervisors as supervisors

from host import dispatch


@pytest.fixture
async def server() -> AsyncIterator[FakeLiveKit]:
    async with fake_livekit() as server:
        yield server


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting to spread hosts out."""
    monkeypatch.setattr(dispatch.random, "uniform", lambda low, high: low)
