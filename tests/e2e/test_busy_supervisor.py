"""What the supervisor costs, and that it answers in time while every core is busy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from caller import until
from dispatching import dispatch_by
from holdings import is_job
from host_process import fake_engines, host_serve
from livekit_server import LiveKitServer
from records import ServerJobs
from wire_tap import wire_tap

pytestmark = pytest.mark.e2e

AGENT = Path(__file__).parent / "agents" / "orders.py"
OFFERS = 24
ANSWER_S = 1.0
SUPERVISOR_MB = 60.0
IDLE_JOB_MB = 8.0


@contextlib.contextmanager
def every_core_busy() -> Iterator[int]:
    """One loop a core that never gives way by itself; returns how many."""
    cores = sorted(os.sched_getaffinity(0))
    code = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint('on', flush=True)\nwhile True: pass"
    loops = [
        subprocess.Popen([sys.executable, "-c", code, str(core)], stdout=subprocess.PIPE, text=True) for core in cores
    ]
    try:
        for loop in loops:
            assert loop.stdout is not None
            assert loop.stdout.readline() == "on\n"
        yield len(loops)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
            assert loop.stdout is not None
            loop.stdout.close()


def spread(times_s: list[float]) -> str:
    """Median, 95th percentile and maximum, in milliseconds."""
    ordered = sorted(1000 * time_s for time_s in times_s)
    p50, p95 = (ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] for share in (0.5, 0.95))
    return f"p50 {p50:.1f}, p95 {p95:.1f}, max {ordered[-1]:.1f} ms of {len(ordered)}"


async def test_the_supervisor_answers_while_every_core_is_busy(
    livekit: LiveKitServer, tmp_path: Path, room_name: str
) -> None:
    jobs = ServerJobs(livekit)
    config = fake_engines(4, ping_interval=0.25)
    async with wire_tap(livekit) as tap, livekit.api() as server:
        arguments = (str(AGENT), "--agent-name", "busy")
        with host_serve(tap.url, tmp_path / "host", *arguments, config=config) as host:
            # Looked for from the event loop: the registration goes through this process.
            await until(host.registered, 60, "the registration")
            with every_core_busy() as loops:
                tap.pongs.clear()
                rooms = [f"{room_name}-{number}" for number in range(OFFERS)]
                for room in rooms:
                    await dispatch_by(server, room, "return", "busy")
                    await until(lambda room=room: bool(jobs.endings(room)), 30, "the job's end")
            assert [jobs.endings(room) for room in rooms] == [[("JS_SUCCESS", "")]] * OFFERS
            print(  # noqa: T201
                f"{loops} cores busy; answers to offers: {spread(tap.offers)}; pongs: {spread(tap.pongs)}; "
                f"assigned to running: {spread(tap.starts)}"
            )
            assert len(tap.offers) == OFFERS
            assert len(tap.pongs) >= OFFERS
            assert max(tap.offers) < ANSWER_S
            assert max(tap.pongs) < ANSWER_S
            assert host.stop() == 0


async def test_what_the_supervisor_and_an_idle_job_weigh(
    livekit: LiveKitServer, tmp_path: Path, room_name: str
) -> None:
    """After some jobs, so that what is made at the first one counts."""
    jobs = ServerJobs(livekit)
    config = fake_engines(4, num_idle_processes=2)
    async with livekit.api() as server:
        arguments = (str(AGENT), "--agent-name", "light")
        with host_serve(livekit, tmp_path / "host", *arguments, config=config) as host:
            host.wait_registered(60)
            for number in range(10):
                room = f"{room_name}-{number}"
                await dispatch_by(server, room, "visit", "light")
                await until(lambda room=room: bool(jobs.endings(room)), 30, "the job's end")
            assert host.get("/metrics")[0] == 200
            await until(lambda: len([p for p in host.processes() if is_job(p)]) == 2, 20, "two idle processes")
            await until(lambda: host.worker()["active_jobs"] == 0, 10, "the host to be idle")
            supervisor_mb = psutil.Process(host.process.pid).memory_info().rss / 1e6
            idle_mb = [p.memory_full_info().uss / 1e6 for p in host.processes() if is_job(p)]
            print(  # noqa: T201
                f"supervisor {supervisor_mb:.1f} MB RSS (bar {SUPERVISOR_MB:g}); "
                f"idle jobs {', '.join(f'{mb:.1f}' for mb in idle_mb)} MB USS (bar {IDLE_JOB_MB:g})"
            )
            assert supervisor_mb <= SUPERVISOR_MB
            assert max(idle_mb) <= IDLE_JOB_MB
