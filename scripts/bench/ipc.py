#!/usr/bin/env python3
"""How long a question to the inference process takes, and whether the rings lose anything.

    python scripts/bench/ipc.py [--clients 32] [--questions 2000] [--soak-s 20]

The real inference process with its made-up engines (so that only the way there and back is measured) and the
client that jobs use, one connection and one open room a client. After 10 ms in which nothing was asked, one of
them asks. The soak is two processes at the two ends of the rings of one room, every sample checked: half of
``--soak-s`` for the caller's audio (the writer never waits: what was overwritten must be noticed), half for
the agent's speech (every sample exactly once, in order). The bar of the ring is for ten minutes: --soak-s 600.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import uvloop
from report import ROOT, Bar, console, finish, hardware, percentile, table, warn_if_busy

from inference.client import InferenceClient
from inference.segments import Segment
from tests.inference.process import inference_process
from tests.inference.wire import ring_peer

IDLE_S = 0.010
P50_US, P99_US = 150.0, 1000.0
WARM_UP = 100


async def alone(clients: list[InferenceClient], questions: int) -> list[float]:
    """Microseconds of round trips, one after another, each after ``IDLE_S`` in which nobody asked anything."""
    dice = random.Random(1)
    taken = []
    for _ in range(WARM_UP + questions):
        await asyncio.sleep(IDLE_S)
        client = dice.choice(clients)
        began = time.perf_counter()
        await client.stats()
        taken.append(1e6 * (time.perf_counter() - began))
    return taken[WARM_UP:]


async def together(clients: list[InferenceClient], questions: int) -> list[float]:
    """The same with every client asking ``IDLE_S`` after its last answer, so that they meet."""

    async def one(client: InferenceClient) -> list[float]:
        taken = []
        for _ in range(questions // len(clients)):
            await asyncio.sleep(IDLE_S)
            began = time.perf_counter()
            await client.stats()
            taken.append(1e6 * (time.perf_counter() - began))
        return taken

    return [value for values in await asyncio.gather(*map(one, clients)) for value in values]


async def round_trips(count: int, questions: int) -> tuple[list[float], list[float]]:
    with tempfile.TemporaryDirectory(prefix="roomful-bench-") as folder:
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(inference_process(Path(folder), max_rooms=count))
            clients = [await stack.enter_async_context(await process.connect()) for _ in range(count)]
            for number, client in enumerate(clients):
                (await client.open_room(f"room-{number}")).listen()
            return await alone(clients, questions), await together(clients, questions)


@contextmanager
def peer(role: str, segment: Segment, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """The process at the other end."""
    descriptors = (segment.memfd, segment.doorbell)
    process = subprocess.Popen(
        [sys.executable, ring_peer.__file__, role, str(seconds), *map(str, descriptors)],
        pass_fds=descriptors,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "attached\n":
            raise SystemExit(f"the other process of the ring did not start ({role})")
        yield process
    finally:
        process.kill()
        process.wait()


def soak(seconds: float) -> tuple[int, list[tuple[str, str]]]:
    """How often something was wrong (the peer's or our own check found it), and lines of a table."""
    faults, lines = 0, []
    up = Segment.create("soak-up")
    with peer("produce_up", up, seconds / 2) as process:
        try:
            peeks, overruns = ring_peer.watch_up(up, seconds / 2)
            said = int(process.stdout.readline())  # type: ignore[union-attr]
            faults += said != up.up.written()
            lines.append(("caller's audio", f"{said:,} samples written, {peeks:,} reads whole, {overruns:,} too late"))
        except (AssertionError, ValueError) as exc:
            faults += 1
            lines.append(("caller's audio", f"FAULT: {exc}"))
    up.close()
    down = Segment.create("soak-down")
    with peer("produce_down", down, seconds / 2) as process:
        try:
            consumed, sleeps = ring_peer.consume_down(down, time.monotonic() + seconds / 2, patience=1.0)
            faults += int(process.stdout.readline()) != consumed  # type: ignore[union-attr]
            lines.append(("agent's speech", f"{consumed:,} samples in order, {sleeps:,} times asleep and woken"))
        except (AssertionError, ValueError) as exc:
            faults += 1
            lines.append(("agent's speech", f"FAULT: {exc}"))
    down.close()
    return faults, lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--soak-s", type=float, default=20.0, help="seconds, 0 for none (the bar: 600)")
    arguments = parser.parse_args()
    console.print(hardware())
    warn_if_busy()
    quiet, crowded = uvloop.run(round_trips(max(1, arguments.clients), max(100, arguments.questions)))
    rows = [
        (name, str(len(values)), *(percentile(values, share) for share in (0.5, 0.95, 0.99)), max(values))
        for name, values in (("one asks after 10 ms of nothing", quiet), ("all ask 10 ms after an answer", crowded))
    ]
    table(
        f"Round trips, {arguments.clients} clients with a room each",
        ("", "questions", "p50 us", "p95 us", "p99 us", "max us"),
        rows,
        "the clients share one process, so when all ask, part of the time is theirs",
    )
    what = f"round trip after 10 ms of idleness, {arguments.clients} clients"
    bars = [
        Bar(f"{what}, p50", percentile(quiet, 0.5), "us", P50_US),
        Bar(f"{what}, p99", percentile(quiet, 0.99), "us", P99_US),
    ]
    if arguments.soak_s > 0:
        faults, lines = soak(arguments.soak_s)
        table(f"Rings, {arguments.soak_s:g} s", ("ring", "what happened"), lines)
        bars.append(Bar(f"samples lost or torn in {arguments.soak_s:g} s, faults", faults, "", 0))
    return finish("ipc", bars)


if __name__ == "__main__":
    sys.exit(main())
