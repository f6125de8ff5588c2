"""The host's HTTP port: is it well (``/``), what is it doing (``/worker``), and what has it done (``/metrics``)."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web

from host.errors import ConfigError, PortInUseError


class HealthServer:
    """Serves ``GET /``: 200 "OK", or 503 with the reason; ``GET /worker``: a JSON object; ``GET /metrics``.

    ``problem`` gives the reason ("" when all is well), ``describe`` the object, ``metrics`` what
    Prometheus asks for with its content type (None: there are no metrics, and 404 is the answer). ``port``
    0 picks a free one; ``port`` then says which.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        problem: Callable[[], str],
        describe: Callable[[], dict[str, Any]],
        metrics: Callable[[], tuple[bytes, str]] | None = None,
    ) -> None:
        self._host = host
        self.port = port
        self._problem = problem
        self._describe = describe
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Bind. Raises ``PortInUseError`` or ``ConfigError`` naming host and port."""
        app = web.Application()
        app.router.add_get("/", self._health)
        app.router.add_get("/worker", self._worker)
        if self._metrics is not None:
            app.router.add_get("/metrics", self._scrape)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        try:
            await self._site(self._runner).start()
        except OSError as exc:
            await self.aclose()
            where = f"{self._host or '0.0.0.0'}:{self.port}"
            if exc.errno == errno.EADDRINUSE:
                raise PortInUseError(f"something else already listens on {where}; choose another port") from exc
            raise ConfigError(f"cannot listen on {where}: {exc}") from exc
        self.port = self._runner.addresses[0][1]

    def _site(self, runner: web.AppRunner) -> web.BaseSite:
        if self._host:
            return web.TCPSite(runner, self._host, self.port)
        # One socket for both families: with one each, port 0 would pick two different ports.
        if socket.has_dualstack_ipv6():
            return web.SockSite(
                runner, socket.create_server(("", self.port), family=socket.AF_INET6, dualstack_ipv6=True)
            )
        return web.TCPSite(runner, "0.0.0.0", self.port)

    async def aclose(self) -> None:
        """Close the port. Safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        problem = self._problem()
        return web.Response(text=problem or "OK", status=503 if problem else 200)

    async def _worker(self, _: web.Request) -> web.Response:
        return web.json_response(self._describe())

    async def _scrape(self, _: web.Request) -> web.Response:
        assert self._metrics is not None
        body, content_type = self._metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})
