"""What a job process weighs while it holds a conversation: the real process, in a local room or in LiveKit's.

USS is what the process alone holds, and what the system gets back at its end.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from livekit.protocol.agent import Job
from livekit.protocol.models import Room
from report import ROOT

from host.supervisor import Supervisor, SupervisorOptions
from inference.wire.supervision import JobUpdate, StartJob, TurnReport

LOOK_S = 0.05
TURN_DEADLINE_S = 60.0
SPEECH = ROOT / "tests" / "data" / "speech"


@dataclass(frozen=True)
class Weight:
    """Of one job in a conversation of ``turns``: USS in MB, before it, at most, and what the most was made of."""

    turns: int
    idle_mb: float
    peak_mb: float
    parts_mb: dict[str, float]


def waves(count: int) -> list[str]:
    """What the caller says, turn by turn."""
    found = sorted(str(path) for path in SPEECH.glob("*.wav"))
    if not found:
        raise SystemExit(f"no recordings in {SPEECH}")
    return [found[number % len(found)] for number in range(count)]


async def nothing(_: JobUpdate) -> None:
    """What the job reports is not sent anywhere."""


def private_mb(pid: int) -> float:
    return psutil.Process(pid).memory_full_info().uss / 1e6


def private_parts_mb(pid: int) -> dict[str, float]:
    """USS by what is mapped: the heap, nameless memory, libraries by name. The largest ones."""
    parts: Counter[str] = Counter()
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            path = line.split(maxsplit=5)[5:]
            name = Path(path[0]).name.strip("[]") if path else "anonymous"
        elif line.startswith(("Private_Clean:", "Private_Dirty:")):
            parts[name] += int(line.split()[1]) * 1024
    return {name: size / 1e6 for name, size in parts.most_common(6)}


async def weigh(
    options: SupervisorOptions,
    start: StartJob,
    turns: int,
    caller: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> Weight:
    """Run the job ``start`` to the end of its conversation of ``turns``, and look at its process all the time.

    ``caller`` speaks in the room, where there is a person; it is over when the caller has left.
    """
    reports: list[TurnReport] = []
    peak, parts = 0.0, {}
    async with Supervisor(options) as supervisor, asyncio.timeout(TURN_DEADLINE_S * (1 + turns)):
        while not supervisor.idle_processes:  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(LOOK_S)
        (idle,) = (child for child in supervisor.processes() if child.kind == "job")
        idle_mb = private_mb(idle.pid)
        job = await supervisor.launch(start, on_update=nothing, on_turn=reports.append)
        async with asyncio.TaskGroup() as group:
            if caller is not None:
                group.create_task(caller())
            ending = group.create_task(job.wait())
            while not ending.done():
                try:
                    now_mb = private_mb(job.pid)
                    if now_mb > peak:
                        peak, parts = now_mb, private_parts_mb(job.pid)
                except (psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
                    break
                await asyncio.wait({ending}, timeout=LOOK_S)
        result = ending.result()
    if result.status != "success" or len(reports) < turns:
        raise SystemExit(f"the conversation ended {result.status} after {len(reports)} turns: {result.error}")
    return Weight(len(reports), idle_mb, peak, parts)


async def in_local_room(options: SupervisorOptions, turns: int) -> Weight:
    """With the built-in agent, and recordings as the caller."""
    start = StartJob(job_id="local", room="local", transport="local", waves=tuple(waves(turns)))
    return await weigh(options, start, turns)


async def in_livekit_room(options: SupervisorOptions, turns: int) -> Weight:
    """The same in a room of a real LiveKit server on this machine, with WebRTC at both ends."""
    sys.path.insert(0, str(ROOT / "tests" / "e2e"))
    from caller import call, read_wave
    from livekit_server import livekit_server

    with tempfile.TemporaryDirectory(prefix="roomful-bench-") as folder, livekit_server(Path(folder)) as server:

        async def speak() -> None:
            async with call(server.url, server.token("livekit", "caller")) as caller:
                await caller.wait(lambda: bool(caller.agents()), TURN_DEADLINE_S, "the agent")
                for wave in waves(turns):
                    await caller.say(read_wave(Path(wave)))
                    await caller.wait_for_speech(TURN_DEADLINE_S)
                    await caller.wait_for_silence(deadline_s=TURN_DEADLINE_S)

        start = StartJob(
            job_id="livekit",
            room="livekit",
            transport="livekit",
            job=Job(id="livekit", room=Room(name="livekit")).SerializeToString(),
            url=server.url,
            token=server.token("livekit", "agent", agent=True),
            identity="agent",
        )
        return await weigh(options, start, turns, speak)
