"""``host simulate``: one job on the real process tree, without registration and, in a local room, without a server."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from host.config import worker_options
from host.errors import ConfigError, ConversationError
from host.flags import (
    ApiKeyOption,
    ApiSecretOption,
    ConfigOption,
    DeviceOption,
    LogFormatOption,
    LogLevelOption,
    ModelsDirOption,
    ProfileOption,
    UrlOption,
    errors,
    load,
    output,
)
from host.prepare import agent_functions
from host.signals import run
from inference.wire.supervision import JobUpdate, TurnReport

if TYPE_CHECKING:
    from host.worker import Worker

_STYLES: Mapping[str, str] = {"running": "bold", "success": "bold green", "failed": "bold red"}


@dataclasses.dataclass(frozen=True, slots=True)
class Simulation:
    """One job. ``local``: in a room without a server, with ``waves`` as the caller's turns.

    ``duration_s``: the job is told to end after so many seconds; 0 waits for its own end.
    """

    room: str
    participant_identity: str = ""
    local: bool = True
    waves: tuple[str, ...] = ()
    duration_s: float = 0.0


async def hold(worker: Worker, simulation: Simulation) -> None:
    """Bring the host up, run the job, print its statuses. Raises ``ConversationError`` if it failed."""
    started = asyncio.Event()

    async def on_update(update: JobUpdate) -> None:
        style = _STYLES[update.status]
        output.print(f"[{style}]{update.status}[/] {escape(update.error)}".rstrip(), highlight=False, soft_wrap=True)
        started.set()

    async def end_in_time() -> None:
        await started.wait()
        await asyncio.sleep(simulation.duration_s or math.inf)
        await worker.aclose("the time of the simulation is over")

    running = asyncio.create_task(worker.run(unregistered=True), name="simulate-host")
    limit = asyncio.create_task(end_in_time(), name="simulate-limit")
    job = asyncio.create_task(
        worker.simulate_job(
            simulation.room,
            simulation.participant_identity,
            local=simulation.local,
            waves=simulation.waves,
            on_update=on_update,
        ),
        name="simulate-job",
    )
    try:
        # It ends with the host, too.
        await asyncio.wait((job,))
    finally:
        job.cancel()
        limit.cancel()
        await worker.aclose("the simulation is over")
        await asyncio.wait((running, job, limit))
    # What ended the host says more than what became of the job.
    await running
    result = await job
    if result.status != "success":
        raise ConversationError(f"the job failed: {result.error}")


def show_progress(text: str) -> None:
    """Print what the host does while it comes up, on stderr: models take their time."""
    errors.print(f"[dim]{escape(text)}[/]", highlight=False)


def show_turn(turn: TurnReport) -> None:
    """Print one turn of the conversation."""
    heard, answered = escape(turn.transcript), escape(turn.reply)
    output.print(f"[dim]turn {turn.turn}[/] heard: {heard}", highlight=False, soft_wrap=True)
    cut = " (interrupted)" if turn.interrupted else ""
    answer = f"[dim]turn {turn.turn}[/] answered after {turn.response_ms:.0f} ms: {answered}{cut}"
    output.print(answer, highlight=False, soft_wrap=True)


def simulate(
    agent: Annotated[Path | None, typer.Argument(help="Your agent's Python file. Default: a built-in one.")] = None,
    room: Annotated[str, typer.Option("--room", help="The room's name.")] = "simulation",
    participant_identity: Annotated[
        str, typer.Option("--participant-identity", help="Whom the job is for; as in a job for a participant.")
    ] = "",
    wave: Annotated[
        list[Path] | None,
        typer.Option("--wave", help="The caller's next turn in a local room, a PCM wave file. May be repeated."),
    ] = None,
    duration: Annotated[
        float, typer.Option("--duration", min=0, help="End the job after so many seconds; 0 waits for its own end.")
    ] = 0.0,
    local: Annotated[
        bool, typer.Option("--local", help="A local room even where a LiveKit server is configured.")
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    api_secret: ApiSecretOption = None,
    profile: ProfileOption = None,
    models_dir: ModelsDirOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run one job as the host would, without registering, and tell how it went.

    In a local room without any server; or, with --url or LIVEKIT_URL, in a room of that server.
    """
    settings = load(
        config,
        profile=profile,
        models_dir=models_dir,
        device=device,
        log_level=log_level,
        log_format=log_format,
        worker={"ws_url": url, "api_key": api_key, "api_secret": api_secret, "port": 0, "num_idle_processes": 1},
        quiet=True,
    )
    local = local or not settings.worker.ws_url
    waves = tuple(str(path.resolve()) for path in wave or ())
    if local:
        _check(waves)
    elif waves:
        raise ConfigError("--wave is for a local room (--local): in a LiveKit room the callers speak")
    elif not (settings.worker.api_key and settings.worker.api_secret):
        raise ConfigError(
            "LIVEKIT_API_KEY and LIVEKIT_API_SECRET (or --api-key, --api-secret) are needed to join a LiveKit room"
        )
    options = worker_options(settings, agent_functions(agent))

    from host.worker import Worker

    worker = Worker(options, settings, on_turn=show_turn, on_progress=show_progress)
    run(hold(worker, Simulation(room, participant_identity, local, waves, duration)))


def _check(waves: tuple[str, ...]) -> None:
    from host.job.waves import check_waves

    try:
        check_waves(waves)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
