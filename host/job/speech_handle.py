"""One thing the agent says, in the hands of who had it said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from typing import Any

from host.job.reply import Reply
from host.job.tools import check_wait

_NUMBERS = itertools.count(1)


class SpeechHandle:
    """It is said when its turn comes. Awaiting it returns it, when nothing more of it is heard.

    ``interrupt_reply`` ends it: whether it is over then; its second argument is ``force``.
    """

    def __init__(self, reply: Reply, interrupt_reply: Callable[[Reply, bool], bool]) -> None:
        self.id = f"speech_{next(_NUMBERS)}"
        self._reply = reply
        self._interrupt = interrupt_reply

    def __repr__(self) -> str:
        state = "over" if self.done() else "waiting or said"
        return f"<SpeechHandle {self.id} {state}{' interrupted' if self.interrupted else ''} {self.said!r}>"

    @property
    def said(self) -> str:
        """What was heard of it so far."""
        return self._reply.said

    @property
    def interrupted(self) -> bool:
        """Whether it was ended before its end. What may still be resumed is, until it is."""
        return self._reply.interrupted

    @property
    def allow_interruptions(self) -> bool | None:
        """Whether the caller may interrupt it; None: as the settings say."""
        return self._reply.allow_interruptions

    @allow_interruptions.setter
    def allow_interruptions(self, allowed: bool) -> None:
        self._reply.allow_interruptions = allowed

    def done(self) -> bool:
        """Whether nothing more of it will be heard."""
        return self._reply.over.is_set()

    def interrupt(self, *, force: bool = False) -> SpeechHandle:
        """End it now, or do not begin it. ``force``: even if it may not be interrupted.

        Raises ``RuntimeError`` when it may not.
        """
        if not self.done() and not self._interrupt(self._reply, force):
            raise RuntimeError("this speech does not allow interruptions; interrupt(force=True) ends it all the same")
        return self

    async def wait_for_playout(self) -> None:
        """Return when nothing more of it will be heard. Raises ``RuntimeError`` in a tool that an answer waits for."""
        if not self.done():
            check_wait()
        await self._reply.over.wait()

    def __await__(self) -> Generator[Any, None, SpeechHandle]:
        yield from self.wait_for_playout().__await__()
        return self

    def add_done_callback(self, callback: Callable[[SpeechHandle], None]) -> None:
        """Have ``callback`` called with this handle when it is over; at once if it is."""
        self._reply.over.add_callback(lambda: callback(self))
