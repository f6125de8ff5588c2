#!/usr/bin/env python3
"""How long a job waits for its process, and what the processes cost. Needs no models and no LiveKit server.

    python scripts/bench/jobs.py [--jobs 200] [--turns 4] [--livekit]

The real supervisor, fork server, inference process (with its made-up engines) and job processes; the agent
notes the time at which its entrypoint runs, and returns. Linux has one monotonic clock for all processes.
Then the built-in agent holds a conversation of ``--turns`` in a local room, and its process is weighed all the while;
with ``--livekit`` another one in a room of a livekit-server (``scripts/install_livekit_server.sh``), for comparison.
The last line is one JSON object; ``bars`` are what must hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import psutil
from conversing import Weight, in_livekit_room, in_local_room, nothing
from livekit.protocol.agent import Job
from livekit.protocol.models import Room
from report import ROOT, Bar, console, finish, hardware, percentile, table, warn_if_busy

from host.options import BUILT_IN_AGENT
from host.supervisor import Supervisor, SupervisorOptions
from inference.wire.supervision import InitializeInference, StartJob

WARM_UP_JOBS = 5
COLD_JOBS = 10
ENTRYPOINT_P95_MS = 50.0
SUPERVISOR_MB = 60.0
IDLE_JOB_MB = 8.0
CONVERSATION_MB = 25.0
STOCK = "livekit-agents 1.8.9"
STOCK_MB = {"supervisor": 125.0, "idle job": 37.0}
DEADLINE_S = 30.0

AGENT = """
import socket, time

def prewarm(process):
    process.userdata["socket"] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

async def entrypoint(ctx):
    at = time.monotonic()
    ctx.proc.userdata["socket"].sendto(f"{ctx.job.id} {at!r}".encode(), %r)
"""


@dataclass(frozen=True)
class Times:
    """Of some jobs, in milliseconds."""

    to_entrypoint: list[float]
    to_end: list[float]
    jobs_per_second: float


class Entrypoints:
    """Hears from the agent when its entrypoint ran."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "entrypoints")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setblocking(False)

    async def next(self, job_id: str) -> float:
        said, at = (await asyncio.get_running_loop().sock_recv(self._socket, 256)).decode().split()
        assert said == job_id, f"{said} ran instead of {job_id}"
        return float(at)

    def close(self) -> None:
        self._socket.close()


async def eventually(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - it happens in other processes
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise SystemExit(f"waited {DEADLINE_S:g} s for {what}") from None


async def run_jobs(supervisor: Supervisor, entrypoints: Entrypoints, name: str, count: int, idle: int) -> Times:
    """``count`` jobs, one after another; with a pool, each when the pool is full again."""
    to_entrypoint, to_end = [], []
    working_s = 0.0
    for number in range(count):
        await eventually(lambda: supervisor.idle_processes >= idle, "the pool to be warm")
        job_id = f"{name}-{number}"
        start = StartJob(
            job_id=job_id,
            room=job_id,
            transport="livekit",
            job=Job(id=job_id, room=Room(name=job_id)).SerializeToString(),
            url="ws://127.0.0.1:9",
            token="not used: the agent does not join its room",
        )
        assigned_at = time.monotonic()
        async with asyncio.timeout(DEADLINE_S):
            job = await supervisor.launch(start, on_update=nothing)
            ran_at = await entrypoints.next(job_id)
            result = await job.wait()
        gone_at = time.monotonic()
        if result.status != "success":
            raise SystemExit(f"job {job_id} failed: {result.error}")
        to_entrypoint.append(1000 * (ran_at - assigned_at))
        to_end.append(1000 * (gone_at - ran_at))
        working_s += gone_at - assigned_at
    return Times(to_entrypoint, to_end, count / working_s)


def supervisor_options(folder: Path, idle: int) -> SupervisorOptions:
    return SupervisorOptions(
        inference=InitializeInference(
            socket_path=str(folder / "inference.sock"),
            token="only for this run",
            device="cpu",
            threads=1,
            max_rooms=4,
            context_tokens=512,
            stt_name="fake",
            stt_path="",
            llm_name="fake",
            llm_path="",
            tts_name="fake",
            tts_path="",
            engines="fake",
        ),
        inference_environment=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        job_environment=dict(os.environ) | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        entrypoint=f"{folder / 'agent.py'}:entrypoint",
        prewarm=f"{folder / 'agent.py'}:prewarm",
        runtime_dir=str(folder),
        num_idle_processes=idle,
    )


def idle_jobs_mb() -> list[float]:
    """USS of every job process that waits for a job."""
    children = psutil.Process().children(recursive=True)
    return [child.memory_full_info().uss / 1e6 for child in children if child.name().startswith("job-")]


async def supervisor_mb(folder: Path) -> float:
    """RSS of ``host serve`` itself, with all it imports, once it is up. It looks for a server that is not there."""
    (folder / "agent_file.py").write_text("async def entrypoint(ctx):\n    pass\n")
    (folder / "roomful.toml").write_text('[inference]\nengines = "fake"\n[worker]\nport = 0\n')
    with (folder / "host.log").open("w+") as log:
        host = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from host.cli import main; main()",
            *("serve", str(folder / "agent_file.py"), "--config", str(folder / "roomful.toml")),
            *("--url", "ws://127.0.0.1:9", "--api-key", "nobody", "--api-secret", "x" * 32),
            stdout=log,
            stderr=log,
            env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        )
        try:
            # It has everything when it tries to register.
            tried = "cannot connect to LiveKit"
            await eventually(lambda: host.returncode is not None or tried in Path(log.name).read_text(), "host serve")
            if host.returncode is not None:
                raise SystemExit(f"host serve ended:\n{Path(log.name).read_text()}")
            return psutil.Process(host.pid).memory_info().rss / 1e6
        finally:
            if host.returncode is None:
                host.terminate()
                host.terminate()
            await host.wait()


def stock() -> str:
    """Where the numbers of LiveKit's own worker come from."""
    try:
        installed = metadata.version("livekit-agents")
    except metadata.PackageNotFoundError:
        installed = "not installed here"
    numbers = ", ".join(f"{name} {mb:g} MB" for name, mb in STOCK_MB.items())
    return f"For comparison, measured with {STOCK} ({installed}): {numbers}."


def row(name: str, values: Sequence[float]) -> tuple[str | int | float, ...]:
    """Of a table of times."""
    return (name, len(values), percentile(values, 0.5), percentile(values, 0.95), max(values), statistics.mean(values))


async def measure(count: int) -> tuple[Times, Times, list[float], float]:
    with tempfile.TemporaryDirectory(prefix="roomful-bench-") as name:
        folder = Path(name)
        entrypoints = Entrypoints(folder)
        (folder / "agent.py").write_text(AGENT % entrypoints.path)
        try:
            async with Supervisor(supervisor_options(folder, 2)) as supervisor:
                await run_jobs(supervisor, entrypoints, "warm-up", WARM_UP_JOBS, 2)
                warm = await run_jobs(supervisor, entrypoints, "warm", count, 2)
                await eventually(lambda: supervisor.idle_processes == 2, "the pool to be warm")
                idle_mb = idle_jobs_mb()
            async with Supervisor(supervisor_options(folder, 0)) as supervisor:
                await run_jobs(supervisor, entrypoints, "first", 1, 0)
                cold = await run_jobs(supervisor, entrypoints, "cold", COLD_JOBS, 0)
            return warm, cold, idle_mb, await supervisor_mb(folder)
        finally:
            entrypoints.close()


async def weigh_conversations(turns: int, livekit: bool) -> dict[str, Weight]:
    """Of a job in each kind of room."""
    weights = {}
    for name, hold in (("local room", in_local_room), ("LiveKit room", in_livekit_room)):
        if name == "local room" or livekit:
            with tempfile.TemporaryDirectory(prefix="roomful-bench-") as folder:
                options = replace(supervisor_options(Path(folder), 1), entrypoint=BUILT_IN_AGENT, prewarm="")
                weights[name] = await hold(options, turns)
    return weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help="jobs in a prewarmed process (default 200)")
    parser.add_argument("--turns", type=int, default=4, help="of the conversation in which a job is weighed")
    parser.add_argument("--livekit", action="store_true", help="a conversation in a LiveKit room, too")
    arguments = parser.parse_args()
    count = max(1, arguments.jobs)
    console.print(hardware())
    warn_if_busy()
    warm, cold, idle_mb, host_mb = asyncio.run(measure(count))
    weights = asyncio.run(weigh_conversations(max(1, arguments.turns), arguments.livekit))
    table(
        "Jobs",
        ("from … to", "jobs", "p50", "p95", "max", "mean"),
        [
            row("assigned … entrypoint runs, prewarmed", warm.to_entrypoint),
            row("assigned … entrypoint runs, no pool", cold.to_entrypoint),
            row("entrypoint runs … process gone", warm.to_end),
        ],
        "milliseconds",
    )
    console.print(f"{warm.jobs_per_second:.1f} jobs a second, one after another, without waiting for the pool")
    table(
        "A job in a conversation, USS in MB",
        ("where", "turns", "idle before", "peak", "made of"),
        [
            (where, w.turns, w.idle_mb, w.peak_mb, ", ".join(f"{name} {mb:.1f}" for name, mb in w.parts_mb.items()))
            for where, w in weights.items()
        ],
    )
    console.print(stock())
    bars = [
        Bar(
            "assigned … entrypoint runs, p95",
            percentile(warm.to_entrypoint, 0.95),
            "ms",
            ENTRYPOINT_P95_MS,
        ),
        Bar("supervisor (host serve), RSS", host_mb, "MB", SUPERVISOR_MB),
        Bar("idle job process, USS", max(idle_mb), "MB", IDLE_JOB_MB),
        Bar("job in a conversation, local room, USS, peak", weights["local room"].peak_mb, "MB", CONVERSATION_MB),
    ]
    return finish("jobs", bars)


if __name__ == "__main__":
    sys.exit(main())
