"""Job after job leaves nothing behind: no process, descriptor, shared memory or thread more than before."""

import asyncio
import dataclasses
import os
import threading
from pathlib import Path

import psutil
import pytest

from host.supervisor import Supervisor
from tests.host.processes.conftest import (
    DEADLINE_S,
    descendant,
    eventually,
    job_processes,
    open_descriptors,
    own_children,
    start,
)

pytestmark = pytest.mark.processes

AGENT = """
    from host.job.context import JobContext
    async def entrypoint(ctx: JobContext):
        client = await ctx.connect_inference()
        room = await client.open_room(ctx.job.room.name)
"""
"""Takes a slot, and with it a segment of shared memory, and ends."""


def held(pids):
    """What those processes hold: descriptors by kind, threads."""
    found = {}
    for pid in pids:
        links = []
        for descriptor in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            try:
                links.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))  # noqa: PTH115
            except FileNotFoundError:
                continue
        kinds = sorted(link.partition(":[")[0] for link in links)
        found[pid] = (len(kinds), sum("memfd" in kind for kind in kinds), psutil.Process(pid).num_threads())
    return found


async def one(supervisor, number):
    updates = []

    async def on_update(update):
        updates.append(update.status)

    async with asyncio.timeout(DEADLINE_S):
        job = await supervisor.launch(start(f"job {number}"), on_update=on_update)
        result = await job.wait()
    assert (result.status, result.error) == ("success", "")
    assert updates == ["running", "success"]


async def test_fifty_jobs_one_after_another_and_ten_at_once_leave_nothing(options, run_dir):
    descriptors_before, threads_before = open_descriptors(), threading.active_count()
    given = options(AGENT, num_idle_processes=2)
    given = dataclasses.replace(given, inference=dataclasses.replace(given.inference, max_rooms=10))
    async with Supervisor(given) as supervisor:
        residents = [os.getpid(), descendant("inference.main").pid, descendant("host.forkserver").pid]

        async def settled():
            await eventually(lambda: supervisor.idle_processes == 2 and len(own_children()) == 4)
            return held(residents)

        for number in range(5):
            # What is made with the first jobs and kept: pools, caches.
            await one(supervisor, number)
        before = await settled()
        for number in range(50):
            await one(supervisor, number)
        await asyncio.gather(*(one(supervisor, number) for number in range(10)))
        await eventually(lambda: held(residents) == before and len(job_processes()) == 2)
        assert supervisor.jobs == ()
        assert sorted(path.name for path in run_dir.glob("*.stacks")) == sorted(
            f"{info.name}.stacks" for info in supervisor.processes()
        )
    assert own_children() == []
    assert open_descriptors() == descriptors_before
    assert threading.active_count() == threads_before
    assert not list(Path(run_dir).glob("*.stacks"))
