"""For every test: hypothesis without wall-clock limits, because the cores are shared with real processes."""

import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("roomful", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("roomful")


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """What configures logging takes the root logger over; give it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True, scope="module")
def shared_engines() -> Iterator[None]:
    """The inference process that tests of agents share ends with their file: others count their children."""
    yield
    if (resident := sys.modules.get("host.testing.resident")) is not None:
        resident.close_shared()
