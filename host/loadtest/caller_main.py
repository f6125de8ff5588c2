"""A process of callers, started by the load test as ``python -m host.loadtest.caller_main``.

The first line on its control socket is the ``CallersPlan``; then come ``Call`` and ``HangUp``, and it tells what
happens (``host.loadtest.plan``). It ends when it is told to, or when its parent is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import uvloop

from host.loadtest.call import Lines, RunningCall
from host.loadtest.line_local import LocalLines
from host.loadtest.plan import Call, CallersPlan, HangUp, Happened, Ready, decode, encode
from host.loadtest.speech import Recording, read_recordings
from host.loadtest.timeline import Event, Left
from inference.supervised import prepare_process

logger = logging.getLogger(__name__)


class Callers:
    """The calls of this process."""

    def __init__(
        self, plan: CallersPlan, recordings: Mapping[str, Recording], tell: Callable[[Happened], None]
    ) -> None:
        self._plan = plan
        self._recordings = recordings
        self._tell = tell
        self._lines = _lines(plan)
        self._calls: dict[str, tuple[RunningCall, asyncio.Task[None]]] = {}

    async def start(self) -> None:
        """Be ready for the jobs."""
        await self._lines.start()

    def begin(self, call: Call) -> None:
        """Begin a call."""

        def report(event: Event) -> None:
            self._tell(Happened(call.room, event))

        running = RunningCall(
            call.room,
            call.seat,
            call.number,
            recordings=self._recordings,
            habits=self._plan.habits,
            seed=self._plan.seed,
            folder=Path(self._plan.folder),
            keep=self._plan.keep,
            report=report,
            leave_s=call.leave_s,
        )

        task = asyncio.create_task(self._hold(running, call, report), name=f"call {call.room}")
        self._calls[call.room] = (running, task)

    async def _hold(self, running: RunningCall, call: Call, report: Callable[[Event], None]) -> None:
        try:
            line = await self._lines.answer(running, call.token)
            await running.run(line)
        except ConnectionError as exc:
            logger.warning("call %s: %s", call.room, exc)
            report(Left(time.monotonic(), str(exc)))
        finally:
            del self._calls[call.room]

    def hang_up(self, room: str) -> None:
        """End one call, or with "" all."""
        for name, (running, task) in list(self._calls.items()):
            if room in ("", name):
                running.hang_up()
                if running.line is None:
                    task.cancel()

    async def aclose(self) -> None:
        """Returns when all calls have ended."""
        self.hang_up("")
        if tasks := [task for _, task in self._calls.values()]:
            await asyncio.wait(tasks)
        await self._lines.aclose()


def _lines(plan: CallersPlan) -> Lines:
    if plan.transport == "local":
        return LocalLines(plan.socket)
    # Only where it is used: WebRTC is most of such a process.
    from host.loadtest.line_livekit import LiveKitLines

    return LiveKitLines(plan.url)


async def run(control: socket.socket) -> int:
    """The process's life on its event loop."""
    reader, writer = await asyncio.open_unix_connection(sock=control, limit=1 << 20)
    plan = CallersPlan.from_json((await reader.readline()).decode())
    recordings = read_recordings(Path(plan.speech), longest_s=plan.longest_s)
    callers = Callers(plan, recordings, lambda happened: writer.write(encode(happened)))
    await callers.start()
    writer.write(encode(Ready()))
    while line := await reader.readline():
        match decode(line):
            case Call() as call:
                callers.begin(call)
            case HangUp(room=room):
                callers.hang_up(room)
                if not room:
                    break
    await callers.aclose()
    writer.close()
    return 0


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m host.loadtest.caller_main")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the parent's socket")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    arguments = parser.parse_args()
    prepare_process(arguments.parent)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(socket.socket(fileno=arguments.control)))


if __name__ == "__main__":
    sys.exit(main())
