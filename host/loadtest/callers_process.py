"""A process of callers, seen from the load test."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping

from host.errors import HostError
from host.loadtest.plan import Call, CallersPlan, HangUp, Happened, Ready, decode, encode
from host.process import Process, describe_exit, execute

_START_S = 30.0
_END_S = 15.0


class CallersProcess:
    """Calls are begun and ended here; ``on_event`` is told what happens in them."""

    def __init__(self, on_event: Callable[[Happened], None]) -> None:
        self._on_event = on_event
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._told = False

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self, plan: CallersPlan, environment: Mapping[str, str]) -> None:
        """Returns when it takes calls. Raises ``HostError``."""
        command = [sys.executable, "-m", "host.loadtest.caller_main"]
        self._process, control = execute(command, environment)
        reader, self._writer = await asyncio.open_unix_connection(sock=control, limit=1 << 20)
        self._writer.write(plan.to_json().encode() + b"\n")
        self._reading = asyncio.create_task(self._read(reader), name="callers")
        ready = asyncio.create_task(self._ready.wait(), name="callers-ready")
        try:
            await asyncio.wait({ready, self._reading}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not self._ready.is_set():
            self._process.kill()
            how, _ = await self._end()
            raise HostError(f"the callers' process does not come up: {how}")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            match decode(line):
                case Ready():
                    self._ready.set()
                case Happened() as happened:
                    self._on_event(happened)

    def check(self) -> None:
        """Raises ``HostError`` when it has ended by itself."""
        if self._process is not None and not self._told and not self._process.is_alive():
            raise HostError("the callers' process has ended by itself")

    def begin(self, call: Call) -> None:
        """Begin a call."""
        self._send(encode(call))

    def hang_up(self, room: str = "") -> None:
        """End one call, or with "" all, and the process."""
        self._told = self._told or not room
        self._send(encode(HangUp(room)))

    def _send(self, line: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(line)

    async def wait_ended(self) -> None:
        """Returns when everybody has hung up, as they were told, and the process has ended.

        Raises ``HostError`` when it ended by itself, before it was told to or badly.
        """
        early = self._process is not None and not self._told and not self._process.is_alive()
        how, code = await self._end()
        if early or code:
            raise HostError(f"the callers' process has ended by itself: {how}")

    async def kill(self) -> None:
        """End it now, if it has not ended."""
        if self._process is not None:
            self._process.kill()
            await self._end()

    async def _end(self) -> tuple[str, int]:
        """Returns how it ended."""
        process, self._process = self._process, None
        if process is None:
            return "", 0
        try:
            async with asyncio.timeout(_END_S):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            code = await process.wait()
        process.close()
        if self._reading is not None:
            # What it told last is still in the socket.
            await asyncio.wait([self._reading], timeout=_END_S)
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
        return describe_exit(code), code
