#!/usr/bin/env python3
"""What one room costs in CPU per minute, by process and by stage, on the real models.

    python scripts/bench/rooms.py [--speech DIR] [--rooms 1] [--turns 6] [--cycle 10]

The real inference process; callers of this process speak recordings in real time, every ``--cycle`` seconds one, and
are answered: transcribed speculatively and after the end, answered, spoken phrase by phrase, and the speech is taken
from the ring as fast as it would be heard. The job side of it is this bench's own process. Device seconds of a stage
are the device lane's time; on a CPU several threads work in each. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from callers import Caller, inference
from report import console, finish, hardware, percentile, table, warn_if_busy
from speech import DEFAULT_FOLDER, read_recordings

from inference.wire import supervision as s


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def voice_activity_s(trace: Path) -> float:
    """Seconds of the voice activity lane's ticks."""
    events = json.loads(trace.read_text())
    return sum(event["dur"] for event in events if event["name"] == "voice activity") / 1e6


async def measure(arguments: argparse.Namespace) -> None:
    recordings = read_recordings(arguments.speech)
    own = psutil.Process()
    with tempfile.TemporaryDirectory(prefix="roomful-bench-") as name:
        trace = arguments.trace or Path(name) / "trace.json"
        async with inference(Path(name), arguments.rooms, trace) as running, running.rooms(arguments.rooms) as rooms:
            callers = [
                Caller(room, recordings[n % len(recordings) :] + recordings, arguments.cycle)
                for n, room in enumerate(rooms)
            ]
            first = await running.next_report()
            began, inference_s, own_s = time.monotonic(), cpu_s(running.process), cpu_s(own)
            offsets = [arguments.cycle * n / arguments.rooms for n in range(arguments.rooms)]
            await asyncio.gather(
                *(caller.converse(arguments.turns, begin_s) for caller, begin_s in zip(callers, offsets, strict=True))
            )
            last = await running.next_report()
            minutes = (time.monotonic() - began) / 60 * arguments.rooms
            inference_s, own_s = cpu_s(running.process) - inference_s, cpu_s(own) - own_s
        listening_s = voice_activity_s(trace)
    show(first, last, minutes, inference_s, own_s, listening_s, callers)


def show(
    first: s.InferenceReport,
    last: s.InferenceReport,
    minutes: float,
    inference_s: float,
    own_s: float,
    listening_s: float,
    callers: Sequence[Caller],
) -> None:
    rows: list[tuple[str | int | float, ...]] = []
    for before, after in zip(first.stages, last.stages, strict=True):
        quanta, busy_s = after.quanta - before.quanta, after.busy_s - before.busy_s
        size = (after.batch_items - before.batch_items) / max(1, quanta)
        rows.append((f"device lane: {after.stage}", busy_s / minutes, quanta / minutes, size))
    rows.append(("voice activity lane", listening_s / minutes, "", ""))
    rows.append(("inference process, all CPU", inference_s / minutes, "", ""))
    rows.append(("the callers and their jobs (this process)", own_s / minutes, "", ""))
    table("One room, one minute of conversation", ("what", "seconds", "quanta", "batch"), rows, "per room and minute")
    used = (inference_s + own_s) / minutes
    console.print(f"one room takes {used / 60:.2%} of one core: {60 / used:.1f} would fill it")
    responses = [response for caller in callers for response in caller.responses_s]
    if responses:
        p50, p95 = percentile(responses, 0.5), percentile(responses, 0.95)
        console.print(
            f"last sound … first audio (endpointing included): p50 {p50:.3f} s, p95 {p95:.3f} s of {len(responses)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, default=DEFAULT_FOLDER, help="folder with a transcripts.tsv")
    parser.add_argument("--rooms", type=int, default=1)
    parser.add_argument("--turns", type=int, default=6, help="of each caller")
    parser.add_argument("--cycle", type=float, default=10.0, help="seconds from one turn to the next")
    parser.add_argument("--trace", type=Path, help="write the planner's trace here")
    arguments = parser.parse_args()
    console.print(hardware())
    warn_if_busy()
    asyncio.run(measure(arguments))
    return finish("rooms", [])


if __name__ == "__main__":
    sys.exit(main())
