"""Many jobs, one after another and at once: every one recorded rightly, and nothing left of any of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from caller import until
from dispatching import dispatch_by
from holdings import holdings
from host_process import HostProcess, fake_engines, host_serve
from livekit import api
from livekit_server import LiveKitServer, livekit_server
from records import ServerJobs

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.e2e

AGENT = Path(__file__).parent / "agents" / "orders.py"
AFTER_ONE_ANOTHER = 200
AT_ONCE = 20
IDLE = 2


@pytest.fixture(scope="module")
def livekit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveKitServer]:
    """A server of its own: its log holds these jobs and no others."""
    with livekit_server(tmp_path_factory.mktemp("livekit")) as server:
        yield server


@pytest.fixture(scope="module")
def host(livekit: LiveKitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    config = fake_engines(AT_ONCE, num_idle_processes=IDLE)
    folder = tmp_path_factory.mktemp("host")
    with host_serve(livekit, folder, str(AGENT), "--agent-name", "many", config=config) as host:
        host.wait_registered(60)
        yield host


async def run_at_once(server: api.LiveKitAPI, host: HostProcess, jobs: ServerJobs, name: str, release: Path) -> None:
    """``AT_ONCE`` jobs that are all there at one time, with a room and a place in it each."""
    rooms = [f"{name}-{number}" for number in range(AT_ONCE)]
    await asyncio.gather(*(dispatch_by(server, room, f"until {release}", "many") for room in rooms))
    await until(lambda: host.worker()["active_jobs"] == AT_ONCE, 60, f"{AT_ONCE} jobs to run")
    release.touch()
    await until(lambda: all(jobs.endings(room) for room in rooms), 60, "their ends")
    assert [jobs.endings(room) for room in rooms] == [[("JS_SUCCESS", "")]] * AT_ONCE


async def test_two_hundred_jobs_leave_nothing(livekit: LiveKitServer, host: HostProcess, tmp_path: Path) -> None:
    jobs = ServerJobs(livekit)
    supervisor = psutil.Process(host.process.pid)

    def settled() -> bool:
        described = host.worker()
        return described["active_jobs"] == 0 and holdings(host).names["job"] == IDLE

    async with livekit.api() as server:
        # What is made once and kept (a pool of threads, the first room's code) is not a leak.
        await run_at_once(server, host, jobs, "warm-up", tmp_path / "warm")
        await until(settled, 20, "the warm-up to be over")
        before, memory_before = holdings(host), supervisor.memory_info().rss

        orders = ("return", "visit", "return", "raise number {number}")
        began = time.monotonic()
        for number in range(AFTER_ONE_ANOTHER):
            room, order = f"one-{number}", orders[number % len(orders)].format(number=number)
            await dispatch_by(server, room, order, "many")
            await until(lambda room=room: bool(jobs.endings(room)), 20, f"the end of job {number}")
            failed = [("JS_FAILED", f"ValueError: number {number}")]
            assert jobs.endings(room) == (failed if order.startswith("raise") else [("JS_SUCCESS", "")]), order
        one_after_another_s = time.monotonic() - began

        began = time.monotonic()
        await run_at_once(server, host, jobs, "at-once", tmp_path / "release")
        at_once_s = time.monotonic() - began

    await until(settled, 20, "the host to be idle")
    try:
        await until(lambda: not holdings(host).more_than(before), 20, "everything to be given back")
    except AssertionError:
        pytest.fail("held after the jobs: " + "; ".join(holdings(host).more_than(before)))
    grown_mb = (supervisor.memory_info().rss - memory_before) / 1e6
    print(  # noqa: T201
        f"{AFTER_ONE_ANOTHER} jobs in {one_after_another_s:.1f} s, {AT_ONCE} at once in {at_once_s:.1f} s; "
        f"the supervisor grew by {grown_mb:.2f} MB to {supervisor.memory_info().rss / 1e6:.1f} MB"
    )
    assert grown_mb < 5, "memory of a job stays behind"
    # Every job once, and each recorded once.
    assert all(len(jobs.assigned(f"one-{number}")) == 1 for number in range(AFTER_ONE_ANOTHER))
    assert not host.memfds(host.inference().pid)
    assert host.get("/") == (200, "OK")
