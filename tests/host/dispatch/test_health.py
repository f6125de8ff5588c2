from __future__ import annotations

import socket
from typing import Any

import aiohttp
import pytest

from host.errors import ConfigError, PortInUseError
from host.health import HealthServer


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


def server(port: int = 0, *, host: str = "127.0.0.1", problem: str = "") -> HealthServer:
    def describe() -> dict[str, Any]:
        return {"active_jobs": 3}

    return HealthServer(host, port, problem=lambda: problem, describe=describe)


async def test_it_says_ok_or_the_reason_and_describes_the_worker() -> None:
    health = server()
    await health.start()
    try:
        assert await get(health.port, "/") == (200, "OK")
        assert await get(health.port, "/worker") == (200, '{"active_jobs": 3}')
        assert (await get(health.port, "/elsewhere"))[0] == 404
    finally:
        await health.aclose()
        await health.aclose()

    ill = server(problem="inference process not running")
    await ill.start()
    try:
        assert await get(ill.port, "/") == (503, "inference process not running")
    finally:
        await ill.aclose()


async def test_a_port_in_use_is_named_and_nothing_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        health = server(port)
        with pytest.raises(PortInUseError, match=f"127.0.0.1:{port}"):
            await health.start()
    # The port is free now, and the failed start has not kept it.
    await health.start()
    assert (await get(port, "/"))[0] == 200
    await health.aclose()


async def test_an_address_that_is_not_ours_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        await server(host="192.0.2.1").start()


async def test_every_address_is_one_port() -> None:
    health = server(host="")
    await health.start()
    try:
        assert await get(health.port, "/") == (200, "OK")
        with pytest.raises(PortInUseError):
            await server(health.port, host="").start()
        if socket.has_dualstack_ipv6():
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://[::1]:{health.port}/") as answer,
            ):
                assert answer.status == 200
    finally:
        await health.aclose()
