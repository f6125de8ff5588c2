"""Calls without a server: the jobs' ends of the lines come to one unix socket of this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import cast

from host.job import line
from host.job.room import AgentState
from host.loadtest.call import RunningCall
from host.loadtest.ear import Ear
from host.loadtest.timeline import Event, Shown

logger = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
_CALL_COMES_S = 10.0


class LocalLine:
    """One call over a unix socket."""

    def __init__(self, call: RunningCall, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.rate = 0
        self._call = call
        self._reader = reader
        self._writer = writer
        self._ear: Ear | None = None
        self._over = ""

    @property
    def hears(self) -> bool:
        """Whether there was voice in the last tick."""
        return self._ear is not None and self._ear.hears

    def take(self, frames: list[tuple[line.Kind, bytes]]) -> None:
        """What the job says."""
        for kind, body in frames:
            match kind:
                case line.Kind.RATE:
                    self.rate = line.read_number(body)
                    self._ear = Ear(self.rate)
                case line.Kind.SPEECH if self._ear is not None:
                    self._ear.push(body)
                case line.Kind.CLEAR if self._ear is not None:
                    self._ear.clear(line.read_number(body))
                case line.Kind.STATE:
                    state = cast(AgentState, line.words(body))
                    if self._ear is not None:
                        self._ear.agent_does(state)
                    self._call.agent_does(state)
                case line.Kind.TEXT:
                    text = line.Text.unpack(body)
                    self._call.shown(Shown(time.monotonic(), text.side, text.segment, text.text, text.final))
                case line.Kind.METRICS:
                    # A load test measures by itself.
                    pass
                case _:
                    raise line.LineError(f"{kind.name} from a job at this time")

    async def read(self, frames: line.Frames) -> None:
        """Read until the job hangs up."""
        try:
            while data := await self._reader.read(_READ_BYTES):
                self.take(frames.push(data))
            self._over = "the agent has left"
        except line.LineError as exc:
            self._over = f"the line broke: {exc}"
        except ConnectionError as exc:
            # A job that ended before it had read all.
            self._over = f"the agent has left: {exc}"

    def tick(self, at_s: float, block: bytes) -> list[Event]:
        """Say 20 ms at 16 kHz and hear what came; returns what was noticed."""
        ear = self._ear
        if ear is None:
            self._writer.write(line.Tick(0, 0, 0, block).pack())
            return []
        events = ear.tick(at_s)
        self._writer.write(line.Tick(ear.heard, ear.dropped, ear.cleared, block).pack())
        return events

    def take_answer(self) -> bytes:
        """What was heard since the last time (int16)."""
        return self._ear.take_answer() if self._ear is not None else b""

    def finish(self) -> list[Event]:
        """The last things that were noticed."""
        return self._ear.finish() if self._ear is not None else []

    def is_over(self) -> str:
        """Why the job has gone; "" while it is there."""
        return self._over

    async def hang_up(self) -> None:
        """Leave."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class LocalLines:
    """Listens at the unix socket ``path`` for the jobs of the calls."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._expected: dict[str, tuple[RunningCall, asyncio.Future[LocalLine]]] = {}
        self._begun = asyncio.Event()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def answer(self, call: RunningCall, token: str) -> LocalLine:  # noqa: ARG002 (as with a server)
        """The line of ``call``, as soon as its job is there."""
        came: asyncio.Future[LocalLine] = asyncio.get_running_loop().create_future()
        self._expected[call.room] = (call, came)
        self._begun.set()
        try:
            return await came
        finally:
            del self._expected[call.room]

    async def _call_from(self, room: str) -> tuple[RunningCall, asyncio.Future[LocalLine]]:
        """The call; a job may be here before it. Raises ``LineError`` when nobody calls from that room."""
        try:
            async with asyncio.timeout(_CALL_COMES_S):
                while room not in self._expected:
                    self._begun.clear()
                    await self._begun.wait()
        except TimeoutError:
            raise line.LineError(f"a job came for {room}, and nobody calls from there") from None
        return self._expected[room]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = line.Frames()
        cut: list[tuple[line.Kind, bytes]] = []
        try:
            while not cut:
                data = await reader.read(_READ_BYTES)
                if not data:
                    return
                cut = frames.push(data)
            kind, body = cut[0]
            if kind is not line.Kind.ROOM:
                raise line.LineError(f"{kind.name} from a job before it said its room")
            call, came = await self._call_from(line.words(body))
            opened = LocalLine(call, reader, writer)
            opened.take(cut[1:])
            if not came.done():
                came.set_result(opened)
            await opened.read(frames)
        except ConnectionError as exc:
            logger.warning("a line broke: %s", exc)
        finally:
            writer.close()

    async def aclose(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
