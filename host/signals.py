"""What a signal means for a command, and the event loop that it runs on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)

OnSignal = Callable[[signal.Signals], None]
Ending = Callable[[], Coroutine[Any, Any, None]]


class Stopping:
    """The first SIGINT or SIGTERM lets the rooms finish (``drain``); a second one, or SIGQUIT, does not (``close``).

    ``at_once``: nor does the first. A signal after that does not wait for what ``close`` waits for: ``leave`` is
    called with an exit code.
    """

    def __init__(
        self, drain: Ending, close: Ending, *, at_once: bool = False, leave: Callable[[int], object] = os._exit
    ) -> None:
        self._drain = drain
        self._close = close
        self._at_once = at_once
        self._leave = leave
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, number: signal.Signals) -> None:
        """Take a signal."""
        if self._ending:
            # The kernel ends every other process of the host with this one.
            logger.warning("%s: ended without waiting any longer for the jobs", number.name)
            self._leave(128 + number)
            return
        if self._at_once or self._tasks or number is signal.SIGQUIT:
            self._ending = True
            logger.info("%s: ending, jobs are told to finish; once more to wait no longer", number.name)
            self._start(self._close())
        else:
            logger.info("%s: draining, rooms finish and no new ones are taken; once more to end now", number.name)
            self._start(self._drain())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="signal")
        self._tasks.add(task)
        task.add_done_callback(_log_failure)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        logger.error("a signal could not be obeyed", exc_info=failure)


def run(work: Coroutine[Any, Any, None], on_signal: OnSignal | None = None) -> None:
    """Run ``work`` on an event loop of its own. Without ``on_signal``, SIGINT and SIGTERM cancel it, and it tidies up.

    Raises ``SystemExit`` with 128 + the signal's number where a signal cancelled it.
    """
    received: list[signal.Signals] = []

    async def supervised() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def cancel(number: signal.Signals) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal or cancel, number)
        if on_signal is not None:
            loop.add_signal_handler(signal.SIGQUIT, on_signal, signal.SIGQUIT)
        await work

    try:
        import uvloop

        uvloop.run(supervised())
    except asyncio.CancelledError:
        if not received:
            raise
        raise SystemExit(128 + received[0]) from None
