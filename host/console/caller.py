"""The caller's end of the line: a unix socket at which one job calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

from host.job import line

logger = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024


class Listener(Protocol):
    """Who hears what the job says."""

    def on_rate(self, rate: int) -> None:
        """Its speech will come at ``rate`` Hz."""

    def on_speech(self, pcm: bytes) -> None:
        """The next of it."""

    def on_clear(self, number: int) -> None:
        """Silence, the ``number``-th."""

    def on_state(self, state: str) -> None:
        """What the agent does."""

    def on_text(self, text: line.Text) -> None:
        """A transcript."""


class CallersEnd:
    """Listens at ``path`` while it is entered; the first job that comes has the line."""

    def __init__(self, path: str, listener: Listener) -> None:
        self._path = path
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._early = bytearray()
        self._closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> CallersEnd:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()
        assert self._server is not None
        self._server.close()

    def tick(self, tick: line.Tick) -> None:
        """20 ms of the caller."""
        self._write(tick.pack())

    def type(self, text: str) -> None:
        """A message that the caller typed; it waits for a job that is not there yet."""
        frame = line.pack(line.Kind.CHAT, text.encode())
        if self._writer is None:
            self._early += frame
        self._write(frame)

    def hang_up(self) -> None:
        """Leave. Safe to call twice, and before the job came."""
        if self._writer is not None:
            self._writer.close()
        self._over("you have left")

    async def wait_closed(self) -> str:
        """Return why the line is closed, when it is."""
        return await asyncio.shield(self._closed)

    def is_over(self) -> bool:
        """Whether nobody is, or will be, at the other end."""
        return self._closed.done()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._writer is not None or self._closed.done():
            writer.close()
            return
        self._writer = writer
        writer.write(bytes(self._early))
        frames = line.Frames()
        try:
            while data := await reader.read(_READ_BYTES):
                for kind, body in frames.push(data):
                    self._take(kind, body)
            self._over("the agent has left")
        except line.LineError as exc:
            logger.warning("the line broke: %s", exc)
            self._over(f"the line broke: {exc}")
        except ConnectionError as exc:
            self._over(f"the agent has left: {exc}")
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _take(self, kind: line.Kind, body: bytes) -> None:
        listener = self._listener
        match kind:
            case line.Kind.ROOM | line.Kind.METRICS:
                # There is one room; and turns are reported by another way, whether or not clients are told.
                pass
            case line.Kind.RATE:
                listener.on_rate(line.read_number(body))
            case line.Kind.SPEECH:
                listener.on_speech(body)
            case line.Kind.CLEAR:
                listener.on_clear(line.read_number(body))
            case line.Kind.STATE:
                listener.on_state(line.words(body))
            case line.Kind.TEXT:
                listener.on_text(line.Text.unpack(body))
            case _:
                raise line.LineError(f"{kind.name} from a job")

    def _write(self, frame: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame)

    def _over(self, reason: str) -> None:
        if not self._closed.done():
            self._closed.set_result(reason)
