"""Jobs in threads of the supervisor, for a debugger: the same conversation, without processes.

A thread cannot be killed and has no memory of its own: what does not end is abandoned, and limits have no effect.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable

import uvloop

logger = logging.getLogger(__name__)

_JOIN_S = 1.0
_ABANDONED = 1


class ThreadHandle:
    """A thread in the place of a process. Belongs to the event loop that made it."""

    def __init__(self, name: str, main: Callable[[], int]) -> None:
        self.pid = os.getpid()
        self._name = name
        self._main = main
        self._exit_code = _ABANDONED
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # A daemon, because one that was abandoned must not hold the end of the supervisor.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        code = 1
        try:
            code = self._main()
        except Exception:
            logger.exception("%s failed", self._name)
        finally:
            try:
                self._loop.call_soon_threadsafe(self._on_ended, code)
            except RuntimeError:
                # It was abandoned, and the supervisor has ended since.
                logger.debug("%s has ended after the supervisor", self._name)

    def _on_ended(self, code: int) -> None:
        if not self._ended.is_set():
            self._exit_code = code
            self._ended.set()

    def is_alive(self) -> bool:
        """Whether it runs and was not abandoned."""
        return self._thread.is_alive() and not self._ended.is_set()

    def kill(self) -> None:
        """Abandon it: a thread cannot be killed."""
        if not self.is_alive():
            return
        logger.error("%s is a thread and cannot be killed: it is abandoned, and runs on until it ends", self._name)
        self._ended.set()

    def cpu_s(self) -> float:
        """Not known."""
        return 0.0

    async def stacks(self, stacks_file: str) -> str:  # noqa: ARG002 - the interface of a process
        """Its stack now."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "it has ended"

    async def wait(self) -> int:
        """Return its exit code when it has ended or was abandoned."""
        await self._ended.wait()
        if self._exit_code != _ABANDONED:
            self._thread.join(_JOIN_S)
        return self._exit_code

    def close(self) -> None:
        """Nothing is to be given back."""


class ThreadExecutor:
    """Makes threads that run ``host.job.main``."""

    async def spawn(self, name: str) -> tuple[ThreadHandle, socket.socket]:
        """A thread that waits for its first message, and our end of its socket."""
        # Imported here: it brings livekit and numpy, which the supervisor of processes does not need.
        from host.job.main import run

        ours, theirs = socket.socketpair()

        def main() -> int:
            with theirs, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_job(run, theirs))

        return ThreadHandle(name, main), ours


async def _job(run: Callable[..., Awaitable[int]], control: socket.socket) -> int:
    return await run(control, in_thread=True)
