"""A handler that runs no rooms: it keeps what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fake_livekit import KEY, SECRET, FakeLiveKit

from host.capacity import Capacity, Load, Status
from host.dispatch import Dispatch, DispatchOptions
from host.offers import Assigned

IDLE = Load()


@dataclass
class Rooms:
    capacity: Capacity = field(default_factory=lambda: Capacity(1, ready=True))
    taken: list[Assigned] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    withdrawn_ids: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def refusal(self) -> str:
        return self.capacity.refusal(0.0, IDLE)

    def reserve(self, job_id: str) -> str:
        return self.capacity.reserve(job_id, 0.0, IDLE)

    def withdrawn(self, job_id: str) -> None:
        self.capacity.release(job_id)
        self.withdrawn_ids.append(job_id)
        self.changed.set()

    def assigned(self, assigned: Assigned) -> None:
        self.capacity.launched(assigned.job.id, 0.0)
        self.taken.append(assigned)
        self.changed.set()

    def terminated(self, job_id: str) -> None:
        self.ended.append(job_id)
        self.changed.set()

    def job_ids(self) -> Sequence[str]:
        return [assigned.job.id for assigned in self.taken]

    def status(self) -> Status:
        return self.capacity.status(0.0, IDLE)

    async def wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def dispatching(server: FakeLiveKit, rooms: Rooms, **options: object) -> AsyncIterator[Dispatch]:
    dispatch = Dispatch(DispatchOptions(server.url, KEY, SECRET, **options), rooms)  # type: ignore[arg-type]
    running = asyncio.create_task(dispatch.run())
    try:
        yield dispatch
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert running.cancelled(), running.exception()
