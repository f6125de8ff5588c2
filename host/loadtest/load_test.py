"""The whole load test: the host comes up, points are run until the search is over, and again with the stock engines."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from host.agent_file import AgentFunctions
from host.config import Config, job_environment, worker_options
from host.loadtest.callers import LONGEST_OF_CYCLE, Habits
from host.loadtest.host_run import HostUnderTest
from host.loadtest.point import Live, PointRun, PointSettings
from host.loadtest.resources import Watch
from host.loadtest.results import Point
from host.loadtest.search import next_rooms
from host.loadtest.speech import read_recordings

ENTRYPOINT = "host.loadtest.agent:entrypoint"


@dataclass(frozen=True, slots=True)
class LoadTest:
    """What is asked. ``rooms`` None: search for the most, up to ``most``. ``places``: what the host has; None for as
    many as are tried. ``admission``: the host refuses by its load, too, as in production.
    """

    rooms: tuple[int, ...] | None
    most: int
    target_ms: float
    duration_s: float
    habits: Habits
    transport: Literal["local", "livekit"]
    speech: Path
    seed: int
    check: int
    reply_tokens: int
    places: int | None = None
    admission: bool = False
    baseline: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one kind of engines, in the order in which they were run."""

    engines: str
    points: tuple[Point, ...]
    left_over: tuple[str, ...] = ()
    """Processes of the host that were there after it had ended."""

    def best(self) -> int:
        """The most rooms that held; 0 for none."""
        return max((point.rooms for point in self.points if point.holds), default=0)


async def run(
    test: LoadTest,
    config: Config,
    *,
    on_progress: Callable[[str], None],
    show: Callable[[Live], None],
    on_point: Callable[[str, Point], None],
) -> list[Curve]:
    """Run it all. Raises a ``HostError``."""
    longest_s = LONGEST_OF_CYCLE * test.habits.cycle_s
    recordings = await asyncio.to_thread(read_recordings, test.speech, longest_s=longest_s)
    curves = []
    livekit = test.transport == "livekit"
    for engines in ("real", "stock") if test.baseline else (config.inference.engines,):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loadtest-")))
            settings = PointSettings(
                test.transport,
                test.speech,
                longest_s,
                {name: recording.transcript for name, recording in recordings.items()},
                test.habits,
                test.duration_s,
                test.target_ms / 1000,
                config.session.vad_endpointing_delay_ms / 1000,
                test.seed,
                test.check if config.inference.engines != "fake" else 0,
                folder,
                job_environment(),
                *((config.worker.ws_url, config.worker.api_key, config.worker.api_secret) if livekit else ()),
            )
            on_progress(f"{engines} engines" if test.baseline else "starting")
            points, left_over = await _curve(
                test, _prepared(test, config, engines), settings, on_progress, show, on_point
            )
        curves.append(Curve(engines, tuple(points), left_over))
    return curves


async def _curve(
    test: LoadTest,
    config: Config,
    settings: PointSettings,
    on_progress: Callable[[str], None],
    show: Callable[[Live], None],
    on_point: Callable[[str, Point], None],
) -> tuple[list[Point], tuple[str, ...]]:
    points: list[Point] = []
    options = replace(
        worker_options(config, AgentFunctions(entrypoint=ENTRYPOINT)),
        # Nobody else needs to see it.
        host="127.0.0.1",
        port=0,
    )
    if not test.admission:
        # Whether so many rooms hold is what is asked; the host is not to judge beforehand.
        options = replace(options, load_threshold=float("inf"))
    watch = Watch(config.num_cpus)
    try:
        async with HostUnderTest(
            options, config, registered=test.transport == "livekit", on_progress=on_progress
        ) as host:
            todo = list(test.rooms or ())
            while True:
                held: Mapping[int, bool] = {point.rooms: point.holds for point in points}
                rooms = (todo.pop(0) if todo else None) if test.rooms else next_rooms(held, test.most)
                if rooms is None:
                    break
                point = await PointRun(rooms, host, settings, show).run(watch)
                points.append(point)
                on_point(config.inference.engines, point)
                if point.cross_talk:
                    break
        return points, watch.left_over()
    finally:
        await watch.aclose()


def _prepared(test: LoadTest, config: Config, engines: str) -> Config:
    places = test.places or (max(test.rooms) if test.rooms else test.most)
    # Every turn waits for the same silence, which is taken off, and none of the work of an answer is hidden in it.
    session = replace(
        config.session,
        turn_detection="vad",
        preemptive=False,
        min_interruption_ms=0,
        max_reply_tokens=test.reply_tokens,
    )
    if engines == "stock":
        # Nothing is asked of them that they could not take back: they transcribe a turn when it is over.
        session = replace(session, pause_ms=session.vad_endpointing_delay_ms, partial_transcripts=False)
    return msgspec.structs.replace(
        config,
        inference=msgspec.structs.replace(config.inference, max_rooms=places, engines=engines),
        session=session,
    )
