"""For pytest: the same tests on the fakes or on models, and the inference process ended with the tests.

# conftest.py
pytest_plugins = ["host.testing.plugin"]

# test_hotel.py
async def test_breakfast(roomful_engines):
    async with host.testing.session(Hotel(), engines=roomful_engines) as session: ...

$ pytest --roomful-engines models
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from host.testing.resident import Engines, close_shared, shared


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which engines ``roomful_engines`` is."""
    group = parser.getgroup("roomful", "voice agents")
    group.addoption(
        "--roomful-engines",
        choices=("fake", "models"),
        default="fake",
        help="engines of the fixture roomful_engines: those shipped for tests (default), or the models of the profile",
    )
    group.addoption(
        "--roomful-profile", default="", metavar="NAME", help="models of roomful_engines; default: configured"
    )


@pytest.fixture(scope="session")
def roomful_engines(request: pytest.FixtureRequest) -> Iterator[Engines]:
    """The inference process of all tests, warm. Where models are missing, whoever needs it fails and says so."""
    yield shared(request.config.getoption("--roomful-engines"), profile=request.config.getoption("--roomful-profile"))
    close_shared()
