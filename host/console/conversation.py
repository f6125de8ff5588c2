"""The host, one job, and the call with it, from the first line to the last."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host.console.call import Call
from host.console.keys import End, Key, Mute, Said
from host.console.screen import Screen
from host.console.terminal import Keyboard, lines, standard_error
from host.errors import ConversationError, HostError
from host.job.room_line import SCHEME, WRITTEN_SCHEME
from host.running_job import JobResult
from inference.wire.supervision import JobUpdate

if TYPE_CHECKING:
    from host.worker import Worker

logger = logging.getLogger(__name__)

ROOM = "console"
_LOOK_S = 0.1
_ANSWER_S = 60.0
"""How long the next line of a file waits for the answer to the one before."""
_GREETING_S = 0.5
"""An agent that listens may be about to greet."""
_MORE_S = 0.1
"""And one that has answered may have more to say."""
_SOUND_SYSTEM = ("ALSA lib ", "jack ", "Cannot connect to server ")
"""How lines begin that sound libraries write on their own."""
_GOODBYE_S = 10.0
"""What the job gets to end by itself after the caller has left."""


class Conversation:
    """``keyboard``: None where nobody can type; ``reads``: lines come from a file or a pipe, to its end."""

    def __init__(self, worker: Worker, call: Call, screen: Screen, keyboard: Keyboard | None, *, reads: bool) -> None:
        self._worker = worker
        self._call = call
        self._screen = screen
        self._keyboard = keyboard
        self._reads = reads
        self._ended = asyncio.Event()
        self._begun = False

    async def close(self) -> None:
        """The caller hangs up; ``hold`` ends everything else in order."""
        self._ended.set()
        self._call.hang_up()

    async def hold(self) -> None:
        """Bring the host up, hold the call, end the job and the host.

        Raises ``ConversationError`` when the job failed, ``DeviceError`` when the sound did, and what ends a host.
        """
        with tempfile.TemporaryDirectory(prefix="roomful-console-") as folder:
            path = str(Path(folder) / "line.sock")
            running = asyncio.create_task(self._worker.run(unregistered=True), name="console-host")
            talking = asyncio.create_task(self._call.hold(path), name="console-call")
            job = asyncio.create_task(self._job(path), name="console-job")
            ended = asyncio.create_task(self._ended.wait(), name="console-end")
            tasks: tuple[asyncio.Task[Any], ...] = (running, talking, job, ended)
            with self._screen, standard_error(self._note):
                try:
                    async with self._typing():
                        await self._show(tasks)
                    self._screen.ending("ending …")
                    self._call.hang_up()
                    if self._begun:
                        await asyncio.wait((running, job), timeout=_GOODBYE_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self._call.hang_up()
                    ended.cancel()
                    await self._worker.aclose("the call is over")
                    await asyncio.wait(tasks)
        # What ended the host says more than what became of the job.
        await running
        await talking
        self._check(job)

    async def _show(self, tasks: tuple[asyncio.Task[Any], ...]) -> None:
        """Until one of them is done."""
        while not any(task.done() for task in tasks):
            self._screen.look()
            await asyncio.wait(tasks, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)

    async def _job(self, path: str) -> JobResult:
        async def on_update(update: JobUpdate) -> None:
            self._begun = self._begun or update.status == "running"

        scheme = WRITTEN_SCHEME if self._call.in_writing else SCHEME
        return await self._worker.simulate_job(ROOM, local=True, line=f"{scheme}{path}", on_update=on_update)

    def _check(self, job: asyncio.Task[JobResult]) -> None:
        """Raises what became of the job, unless the caller did not wait for it."""
        if (failure := job.exception()) is not None:
            if self._ended.is_set() and isinstance(failure, HostError):
                return
            raise failure
        result = job.result()
        if result.status != "success":
            raise ConversationError(f"the job failed: {result.error}")

    def _note(self, text: str) -> None:
        """What a job or a library printed."""
        if text.startswith(_SOUND_SYSTEM):
            # Of devices that nobody asked for, and of what the devices' own counts tell better.
            logger.debug("%s", text)
        else:
            self._screen.note(text)

    # --- what is typed --------------------------------------------------------------------------------

    @asynccontextmanager
    async def _typing(self) -> AsyncIterator[None]:
        if self._keyboard is not None:
            with self._keyboard.read(self._on_key, self._screen.typing):
                yield
            return
        reading = asyncio.create_task(self._read_lines(), name="console-lines") if self._reads else None
        try:
            yield
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.wait([reading])

    def _on_key(self, key: Key) -> None:
        match key:
            case Said(text=text):
                self._call.type(text)
            case Mute():
                self._call.toggle_mute()
            case End():
                self._ended.set()

    async def _read_lines(self) -> None:
        """Each line waits for the answer to the one before; after the last the caller leaves."""
        await self._call.wait_quiet(self._call.is_listening, _GREETING_S)
        async for text in lines():
            self._call.type(text)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await self._call.wait_quiet(self._call.is_answered, _MORE_S)
            except TimeoutError:
                logger.warning("no answer in %.0f s", _ANSWER_S)
        self._ended.set()
