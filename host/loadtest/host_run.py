"""The host under test: a worker in this process, with everything that it starts, and nobody registered."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from host.config import Config
from host.errors import HostError
from host.options import WorkerOptions
from host.worker import Worker
from inference.wire.supervision import JobUpdate, TurnReport

_LOOK_S = 0.05


class HostUnderTest(AbstractAsyncContextManager["HostUnderTest"]):
    """Up while it is entered. ``turns``: what the jobs reported since they were taken, by room.

    Raises a ``HostError`` when the host does not come up.
    """

    def __init__(
        self,
        options: WorkerOptions,
        config: Config,
        *,
        registered: bool,
        on_progress: Callable[[str], None],
    ) -> None:
        self.turns: dict[str, list[TurnReport]] = defaultdict(list)
        self._rooms: dict[str, str] = {}
        self._unplaced: list[TurnReport] = []
        self._registered = registered
        self.worker = Worker(options, config, on_turn=self._on_turn, on_progress=on_progress)
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> HostUnderTest:
        self._running = asyncio.create_task(self.worker.run(unregistered=not self._registered), name="host-under-test")
        serving = asyncio.create_task(self.worker.wait_serving(), name="host-serving")
        try:
            await asyncio.wait({self._running, serving}, return_when=asyncio.FIRST_COMPLETED)
            if self._running.done():
                # What ended it says more than that it has ended.
                await self._running
            await serving
        finally:
            serving.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.worker.aclose("the load test is over")
        assert self._running is not None
        await self._running

    async def check(self) -> None:
        """Raises the ``HostError`` that ended the host, if it has ended."""
        assert self._running is not None
        if self._running.done():
            await self._running
            raise HostError("the host has ended by itself")

    def describe(self) -> dict[str, Any]:
        """The host as it is now; learns which job has which room."""
        description = self.worker.describe()
        for process in description["processes"]:
            if process["job_id"]:
                self._rooms[process["job_id"]] = process["room"]
        waiting, self._unplaced = self._unplaced, []
        for turn in waiting:
            self._on_turn(turn)
        return description

    def take_turns(self) -> Mapping[str, list[TurnReport]]:
        """The turns since the last time."""
        self.describe()
        turns, self.turns = self.turns, defaultdict(list)
        return turns

    async def wait_idle(self, timeout_s: float) -> None:
        """Return when no job runs. Raises ``HostError`` when one does not end."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.worker.active_jobs:  # noqa: ASYNC110 (a job that the server gave tells nobody of its end)
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as exc:
            raise HostError(f"{self.worker.active_jobs} jobs do not end") from exc

    async def call(self, room: str, line: str) -> str:
        """A job for ``room``, whose caller is at ``line``, to its end. Returns "" or why it failed.

        Raises ``HostError`` when the host does not take it.
        """

        async def on_update(update: JobUpdate) -> None:
            self._rooms[update.job_id] = room

        result = await self.worker.simulate_job(room, local=True, line=line, on_update=on_update)
        return result.error if result.status != "success" else ""

    async def check_heard(self, metadata: str) -> str:
        """A job that checks. Returns "" or why it failed. Raises ``HostError``."""
        result = await self.worker.simulate_job("loadtest-check", local=True, metadata=metadata)
        return result.error if result.status != "success" else ""

    def _on_turn(self, turn: TurnReport) -> None:
        if (room := self._rooms.get(turn.job_id)) is None:
            self._unplaced.append(turn)
        else:
            self.turns[room].append(turn)
