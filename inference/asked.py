"""Requests of a room that are open: what came for each, and how to end or promote it. For ``client.py``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from inference.wire import messages as m
from inference.wire.tlv import Message


class InferenceError(Exception):
    """Base of what the inference process may answer instead of a result."""


class InferenceUnavailableError(InferenceError):
    """The inference process is not there, or went away; every open request fails with this at once."""


class RoomRefusedError(InferenceError):
    """No slot for another room."""


class RequestFailedError(InferenceError):
    """One request failed. ``code`` as in ``RequestFailed``."""

    def __init__(self, code: m.FailureCode, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


class Asked:
    """One request that was sent, and what came for it and was not asked for yet.

    ``send`` takes what is said about it while the connection lives; ``forget`` its number, when nobody waits for a
    reply any more. ``watch`` is shown every reply as it comes. One at a time waits for the ``next``.
    """

    __slots__ = ("_came", "_forget", "_number", "_send", "_waiter", "watch")

    def __init__(self, number: int, send: Callable[[Message], None], forget: Callable[[int], None]) -> None:
        self.watch: Callable[[Message | InferenceError], None] | None = None
        self._number = number
        self._send = send
        self._forget = forget
        self._came: deque[Message | InferenceError] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, reply: Message | InferenceError) -> None:
        """A reply has come."""
        if self.watch is not None:
            self.watch(reply)
        self._came.append(reply)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Message:
        """The next reply. Raises ``InferenceError`` when it ended without a result, as often as it is asked."""
        while not self._came:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        reply = self._came.popleft()
        if isinstance(reply, InferenceError | m.RequestFailed):
            # Nothing comes after it: whoever asks again hears the same instead of waiting for ever.
            self._came.append(reply)
        if isinstance(reply, InferenceError):
            raise reply
        if isinstance(reply, m.RequestFailed):
            raise RequestFailedError(reply.code, reply.reason)
        return reply

    def cancel(self) -> None:
        """Drop it; it still ends."""
        self._send(m.Cancel(self._number))

    def promote(self) -> None:
        """Somebody waits for it."""
        self._send(m.Promote(self._number))

    def close(self) -> None:
        """Nobody waits for a reply any more."""
        self._forget(self._number)


class Listening:
    """An utterance being transcribed."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._ended = False

    async def wait(self) -> m.Transcript:
        """What was said. Call once. Raises ``InferenceError``. Cancelling the await cancels the request."""
        try:
            reply = await self._asked.next()
        except asyncio.CancelledError:
            self._asked.cancel()
            raise
        finally:
            self._ended = True
            self._asked.close()
        assert isinstance(reply, m.Transcript)
        return reply

    def promote(self) -> None:
        """It was speculative or partial, and somebody waits for it. Harmless when it is done."""
        if not self._ended:
            self._asked.promote()


class Generation:
    """A reply being written. Iterate once for pieces of text; ``done`` holds the counts afterwards.

    ``end_of_turn``: how likely the user's message is complete, if that was asked for: known before the first text
    comes, whether or not anybody iterates. -1 when it cannot be known. A callback of it runs in the loop's next turn.
    """

    def __init__(self, asked: Asked) -> None:
        self.done: m.GenerateDone | None = None
        self.end_of_turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._asked = asked
        asked.watch = self._look_at

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            while self.done is None:
                match await self._asked.next():
                    case m.TextDelta(text=text):
                        yield text
                    case m.GenerateDone() as done:
                        self.done = done
        finally:
            self.cancel()
            self._asked.close()
            self._know_end_of_turn(-1.0)

    def promote(self) -> None:
        """It was speculative, and somebody waits for it. Harmless when it is done."""
        if self.done is None:
            self._asked.promote()

    def cancel(self) -> None:
        """Stop writing; the iteration then raises ``RequestFailedError("cancelled")``. Harmless when it is done."""
        if self.done is None:
            self._asked.cancel()

    def _look_at(self, reply: Message | InferenceError) -> None:
        match reply:
            case m.EndOfTurn(probability=probability) | m.GenerateDone(end_of_turn=probability):
                self._know_end_of_turn(probability)
            case m.RequestFailed() | InferenceError():
                self._know_end_of_turn(-1.0)

    def _know_end_of_turn(self, probability: float) -> None:
        if not self.end_of_turn.done():
            self.end_of_turn.set_result(probability)


class Phrase:
    """A phrase being spoken. ``start`` and ``end`` are on the down clock, None until they are known.

    Keep calling ``wait`` (once): it follows the phrase to its end and fills both in.
    """

    def __init__(self, asked: Asked, text: str) -> None:
        self.text = text
        self.start: int | None = None
        self.end: int | None = None
        self._asked = asked
        self._ended = False

    async def wait_started(self) -> int:
        """Position of the phrase's first sample. Raises ``InferenceError``. Call before ``wait``, or not at all."""
        while self.start is None:
            self._take(await self._asked.next())
        return self.start

    async def wait(self) -> None:
        """Return when the phrase lies in the ring whole. Raises ``RequestFailedError`` (also "cancelled").

        Cancelling the await cancels the phrase.
        """
        try:
            while self.end is None:
                self._take(await self._asked.next())
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            self._ended = True
            self._asked.close()

    def promote(self) -> None:
        """It was speculative, and somebody waits for it. Harmless when it is done."""
        if not self._ended:
            self._asked.promote()

    def cancel(self) -> None:
        """Stop synthesis. ``wait`` still returns or raises; after it nothing more of the phrase is written."""
        if not self._ended:
            self._asked.cancel()

    def _take(self, reply: Message) -> None:
        match reply:
            case m.SpeakStarted(start=start):
                self.start = start
            case m.SpeakDone(start=start, end=end):
                self.start, self.end = start, end
