"""A room whose caller is another process on this machine: load tests call by it, and so may any program.

The caller's end is a unix socket; ``host.job.line`` says what is said on it. As in a LiveKit room the caller is
outside of the job, has a clock of its own, and takes the agent's audio as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from host.job import line
from host.job.room import AgentState, LocalParticipant, Side, metrics_message
from host.job.room_local import QUEUE_MS, LocalAgent
from inference.wire.supervision import TurnReport

logger = logging.getLogger(__name__)

SCHEME = "unix:"
WRITTEN_SCHEME = "written:"
"""Of a caller who types, and reads what the agent says: there are no ticks, and no audio."""
_READ_BYTES = 64 * 1024


class LineRoom:
    """``Room`` at the end of a line. ``url``: ``unix:`` or ``written:``, and the path of the caller's socket."""

    def __init__(self, name: str, url: str, *, identity: str = "agent") -> None:
        self.local_participant: LocalParticipant = LocalAgent(identity)
        self._name = name
        self.written = url.startswith(WRITTEN_SCHEME)
        self._path = url.partition(":")[2]
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._caller: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._typed: asyncio.Queue[str | None] = asyncio.Queue()
        self._closed: asyncio.Future[str] | None = None
        self._rate = 0
        self._moved = asyncio.Event()
        self._sent = 0
        self._heard = 0
        self._dropped = 0
        self._clears = 0
        self._cleared = 0
        self._sent_before_clear = 0

    @property
    def name(self) -> str:
        """The room's name."""
        return self._name

    async def connect(self) -> None:
        """Reach the caller. Raises ``ConnectionError`` naming the room and the reason."""
        if self._closed is not None:
            return
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
        except OSError as exc:
            raise ConnectionError(f"room {self._name}: nobody calls at {self._path}: {exc}") from exc
        self._closed = asyncio.get_running_loop().create_future()
        self._send(line.Kind.ROOM, self._name.encode())
        self._reading = asyncio.create_task(self._read(reader), name="line")

    async def wait_for_participant(self, identity: str = "") -> str:
        """The caller is there at once."""
        return identity or "caller"

    async def wait_closed(self) -> str:
        """Return the reason when the caller has left or the room has ended."""
        assert self._closed is not None, "the room is not connected"
        return await asyncio.shield(self._closed)

    async def leave(self) -> None:
        """Hang up. Safe to call twice and before ``connect``."""
        writer, self._writer = self._writer, None
        if writer is None or self._reading is None:
            return
        self._close("the agent left")
        self._reading.cancel()
        await asyncio.wait([self._reading])
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    # --- the caller's side ----------------------------------------------------------------------------

    async def caller_audio(self) -> AsyncIterator[bytes]:
        """The caller's audio at 16 kHz, 20 ms at a time as it comes, until the caller leaves."""
        while (block := await self._caller.get()) is not None:
            yield block

    async def text_input(self) -> AsyncIterator[str]:
        """What the caller types, message by message, until the caller leaves."""
        while (text := await self._typed.get()) is not None:
            yield text

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = line.Frames()
        reason = "the caller has left"
        try:
            while data := await reader.read(_READ_BYTES):
                for kind, body in frames.push(data):
                    match kind:
                        case line.Kind.TICK:
                            self._take(line.Tick.unpack(body))
                        case line.Kind.CHAT:
                            self._typed.put_nowait(line.words(body))
                        case _:
                            raise line.LineError(f"{kind.name} from a caller")
        except line.LineError as exc:
            reason = f"the line broke: {exc}"
            logger.warning("room %s: %s", self._name, reason)
        except ConnectionError as exc:
            # A caller who hung up before all was read.
            logger.debug("room %s: %s", self._name, exc)
        self._close(reason)

    def _take(self, tick: line.Tick) -> None:
        self._heard, self._dropped, self._cleared = tick.heard, tick.dropped, tick.cleared
        self._caller.put_nowait(tick.pcm)
        self._moved.set()

    # --- the agent's side -----------------------------------------------------------------------------

    async def open_speech(self, sample_rate: int) -> None:
        """``play`` takes PCM at ``sample_rate`` from now on."""
        self._rate = sample_rate
        self._send(line.Kind.RATE, line.number(sample_rate))

    async def play(self, pcm: bytes) -> None:
        """Send the agent's speech. Returns when at most 200 ms wait to be heard."""
        self._send(line.Kind.SPEECH, pcm)
        self._sent += len(pcm) // 2
        while self._waiting() > self._rate * QUEUE_MS // 1000:
            await self._next_tick()

    def clear(self) -> None:
        """Silence now: the caller drops what was not heard yet."""
        self._clears += 1
        self._sent_before_clear = self._sent
        self._send(line.Kind.CLEAR, line.number(self._clears))
        self._moved.set()

    def heard_samples(self) -> int:
        """How many samples given to ``play`` have been heard so far (dropped ones do not count)."""
        return self._heard

    async def wait_for_playout(self) -> None:
        """Return when everything sent has been heard or dropped, and the caller's end has said so."""
        while self._is_open() and (self._waiting() > 0 or self._cleared < self._clears):
            await self._next_tick()

    def _waiting(self) -> int:
        """Samples that were sent and will be heard, but were not yet."""
        if not self._is_open():
            return 0
        if self._cleared < self._clears:
            # Of what went before the silence nothing counts any more.
            return self._sent - self._sent_before_clear
        return self._sent - self._heard - self._dropped

    async def _next_tick(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def set_agent_state(self, state: AgentState) -> None:
        """Tell the caller's end what the agent does."""
        self._send(line.Kind.STATE, state.encode())

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        """Tell the caller's end what was said."""
        self._write(line.Text(side, segment, text, final).pack())

    async def publish_metrics(self, report: TurnReport) -> None:
        """Tell the caller's end what was measured of a turn."""
        self._send(line.Kind.METRICS, metrics_message(report).encode())

    # --- both -----------------------------------------------------------------------------------------

    def _is_open(self) -> bool:
        return self._closed is not None and not self._closed.done()

    def _send(self, kind: line.Kind, body: bytes) -> None:
        self._write(line.pack(kind, body))

    def _write(self, frame: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame)

    def _close(self, reason: str) -> None:
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(reason)
        self._caller.put_nowait(None)
        self._typed.put_nowait(None)
        self._moved.set()
