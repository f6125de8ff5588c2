"""The command line: ``host serve``, ``host talk``, ``host models``."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from host import config as configuration
from host.config import Config
from host.errors import ConfigError, HostError, ModelsError
from host.supervisor import SupervisorOptions
from host.telemetry import configure_logging
from models.catalog import ResolvedProfile
from models.errors import ModelError, UnknownProfileError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="[bold]Roomful[/bold] runs LiveKit voice agents on hardware you own: many rooms, one GPU or CPU, no cloud."
    "\n\nTry it without any server:  [bold]host talk question.wav --out answer.wav[/bold]",
)
models_app = typer.Typer(no_args_is_help=True, help="The model weights: what there is, fetch them, check them.")
app.add_typer(models_app, name="models")

errors = Console(stderr=True)
output = Console()

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file (TOML). Default: ./roomful.toml where there is one."),
]
ProfileOption = Annotated[str | None, typer.Option("--profile", "-p", help="Models to use: see `host models list`.")]
ModelsDirOption = Annotated[Path | None, typer.Option("--models-dir", help="Folder of the model weights.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
LogLevelOption = Annotated[str | None, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR.")]


def main() -> None:
    """Entry point of the command ``host``: every foreseen error is one message and its exit code."""
    try:
        app()
    except HostError as exc:
        errors.print(f"[bold red]error:[/] {escape(str(exc))}", soft_wrap=True)
        sys.exit(exc.exit_code)


# --- talk -----------------------------------------------------------------------------------------


@app.command()
def talk(
    waves: Annotated[list[Path], typer.Argument(help="The caller's turns: PCM wave files, played in order.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the agent's answers go, as one wave file.")],
    agent: Annotated[Path | None, typer.Option("--agent", help="Your agent's Python file.")] = None,
    record: Annotated[
        Path | None, typer.Option("--record", help="Also write both sides as a stereo wave: caller left, agent right.")
    ] = None,
    interrupt_after: Annotated[
        float | None,
        typer.Option("--interrupt-after", help="Seconds into an answer at which the caller's next turn begins."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a turn on stdout.")] = False,
    config: ConfigOption = None,
    profile: ProfileOption = None,
    models_dir: ModelsDirOption = None,
    device: DeviceOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Hold a conversation in a local room: the waves are the caller, the agent answers. Needs no server."""
    from host.talk import Conversation, hold

    settings = _load(config, profile, models_dir, device, log_level or "WARNING")
    conversation = Conversation(
        waves=tuple(path.resolve() for path in waves),
        out=out.resolve(),
        record=record.resolve() if record else None,
        interrupt_after_s=interrupt_after,
    )
    conversation.check()
    with _prepared(settings, agent, idle_processes=1) as options:
        _run(hold(conversation, settings.session, options, as_json=as_json))


# --- serve ----------------------------------------------------------------------------------------


@app.command()
def serve(
    agent: Annotated[Path | None, typer.Argument(help="Your agent's Python file. Default: a built-in one.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="The LiveKit server.", envvar="LIVEKIT_URL")] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", help="API key.", envvar="LIVEKIT_API_KEY")] = None,
    api_secret: Annotated[
        str | None,
        typer.Option(
            "--api-secret",
            help="API secret (better given by the environment).",
            envvar="LIVEKIT_API_SECRET",
            show_envvar=True,
        ),
    ] = None,
    agent_name: Annotated[
        str | None, typer.Option("--agent-name", help="Take only jobs dispatched to this name. Default: every room.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="HTTP port of the health check; 0 picks one.")] = None,
    max_retry: Annotated[int | None, typer.Option("--max-retry", help="Tries to reach the server again.")] = None,
    max_rooms: Annotated[int | None, typer.Option("--max-rooms", help="Rooms at once.")] = None,
    num_idle_processes: Annotated[
        int | None, typer.Option("--num-idle-processes", help="Job processes kept warm.")
    ] = None,
    drain_timeout: Annotated[
        float | None, typer.Option("--drain-timeout", help="Seconds that running rooms get to finish.")
    ] = None,
    config: ConfigOption = None,
    profile: ProfileOption = None,
    models_dir: ModelsDirOption = None,
    device: DeviceOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Register with a LiveKit server and answer in its rooms.

    Ctrl-C (or SIGTERM) lets running rooms finish and takes no new ones; a second one ends at once.
    """
    from host.worker import Worker, WorkerOptions

    settings = _load(
        config,
        profile,
        models_dir,
        device,
        log_level,
        worker={
            "ws_url": url,
            "api_key": api_key,
            "api_secret": api_secret,
            "agent_name": agent_name,
            "port": port,
            "max_retry": max_retry,
            "num_idle_processes": num_idle_processes,
            "drain_timeout": drain_timeout,
        },
        inference={"max_rooms": max_rooms},
    )
    for value, name in (
        (settings.worker.ws_url, "LIVEKIT_URL (or --url)"),
        (settings.worker.api_key, "LIVEKIT_API_KEY (or --api-key)"),
        (settings.worker.api_secret, "LIVEKIT_API_SECRET (or --api-secret)"),
    ):
        if not value:
            raise ConfigError(f"{name} is not set: it says which LiveKit server to serve")
    worker_options = WorkerOptions(
        ws_url=settings.worker.ws_url,
        api_key=settings.worker.api_key,
        api_secret=settings.worker.api_secret,
        agent_name=settings.worker.agent_name,
        load_threshold=settings.worker.load_threshold,
        max_retry=settings.worker.max_retry,
        drain_timeout=settings.worker.drain_timeout,
        max_jobs=settings.inference.max_rooms,
        host=settings.worker.host,
        port=settings.worker.port,
        session=settings.session,
    )
    with _prepared(settings, agent, idle_processes=settings.worker.num_idle_processes) as options:
        worker = Worker(worker_options, options)
        _run(worker.run(), on_signal=_DrainFirst(worker.drain, worker.aclose))


# --- models ---------------------------------------------------------------------------------------

ProfileArgument = Annotated[str | None, typer.Argument(help="A profile; default: the configured one (cpu-small).")]


@models_app.command("list")
def models_list(models_dir: ModelsDirOption = None, config: ConfigOption = None) -> None:
    """Every model that Roomful knows, and whether it is installed."""
    from models.table import list_table, profiles_table

    folder = configuration.models_dir(_load(config, None, models_dir, None, None))
    output.print(list_table(folder))
    output.print(profiles_table())


@models_app.command("download")
def models_download(
    profile: ProfileArgument = None,
    from_dir: Annotated[
        Path | None, typer.Option("--from", help="Install from this folder (files or wheels), without any network.")
    ] = None,
    models_dir: ModelsDirOption = None,
    config: ConfigOption = None,
) -> None:
    """Fetch a profile's models and verify every byte. What is there already is not fetched again."""
    from models.fetch import download
    from models.table import verify_table

    settings = _load(config, profile, models_dir, None, None)
    if from_dir is not None and not from_dir.is_dir():
        raise ConfigError(f"--from {from_dir}: no such folder")
    with _model_errors():
        output.print(
            verify_table(download(settings.models.profile, configuration.models_dir(settings), from_dir=from_dir))
        )


@models_app.command("verify")
def models_verify(
    profile: ProfileArgument = None, models_dir: ModelsDirOption = None, config: ConfigOption = None
) -> None:
    """Read every byte of a profile's models and compare with the catalogue. Removes nothing."""
    from models.fetch import fetch_command, verify
    from models.table import verify_table

    settings = _load(config, profile, models_dir, None, None)
    with _model_errors():
        results = verify(settings.models.profile, configuration.models_dir(settings))
    output.print(verify_table(results))
    if bad := [result for result in results if not result.ok]:
        command = fetch_command(settings.models.profile)
        raise ModelsError(f"{len(bad)} of {len(results)} files cannot be used; fetch them with: {command}")


# --- what the commands share ----------------------------------------------------------------------


def _load(
    config: Path | None,
    profile: str | None,
    models_dir: Path | None,
    device: str | None,
    log_level: str | None,
    worker: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
) -> Config:
    settings = configuration.load_config(
        config,
        {
            "": {"log_level": log_level},
            "models": {"profile": profile, "dir": str(models_dir) if models_dir else None},
            "inference": {"device": device, **(inference or {})},
            "worker": worker or {},
        },
    )
    configure_logging(settings.log_level)
    return settings


@contextmanager
def _model_errors() -> Iterator[None]:
    try:
        yield
    except UnknownProfileError as exc:
        raise ConfigError(str(exc)) from exc
    except ModelError as exc:
        raise ModelsError(str(exc)) from exc


def _verified_models(settings: Config) -> ResolvedProfile:
    from models.catalog import resolve
    from models.fetch import ensure_verified

    folder = configuration.models_dir(settings)
    with _model_errors():
        if settings.inference.engines == "fake":
            return resolve(settings.models.profile, folder)
        return ensure_verified(settings.models.profile, folder)


@contextmanager
def _prepared(settings: Config, agent: Path | None, *, idle_processes: int) -> Iterator[SupervisorOptions]:
    """Check the agent file and the models, and make the private folder for the inference socket."""
    if agent is not None:
        _check_agent(agent)
    profile = _verified_models(settings)
    runtime_dir = Path(tempfile.mkdtemp(prefix="roomful-"))
    try:
        yield SupervisorOptions(
            inference=configuration.inference_settings(settings, profile, runtime_dir),
            inference_environment=configuration.inference_environment(),
            job_environment=configuration.job_environment(),
            agent_file=str(agent.resolve()) if agent else "",
            num_idle_processes=idle_processes,
            initialize_process_timeout=settings.worker.initialize_process_timeout,
            inference_initialize_timeout=settings.inference.initialize_timeout,
            shutdown_process_timeout=settings.worker.shutdown_process_timeout,
            log_level=settings.log_level,
        )
    finally:
        shutil.rmtree(runtime_dir, ignore_errors=True)


def _check_agent(path: Path) -> None:
    try:
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except OSError as exc:
        raise ConfigError(f"agent file {path}: {exc.strerror}") from exc
    except (SyntaxError, ValueError) as exc:
        raise ConfigError(f"agent file {path}: {exc}") from exc


class _DrainFirst:
    """The first signal lets the rooms finish, the second does not."""

    def __init__(
        self, drain: Callable[[], Coroutine[Any, Any, None]], close: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._drain = drain
        self._close = close
        self._signals = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self) -> None:
        self._signals += 1
        errors.print("draining: rooms finish, no new ones; once more to end now" if self._signals == 1 else "ending")
        task = asyncio.get_running_loop().create_task(
            self._drain() if self._signals == 1 else self._close(), name=f"signal-{self._signals}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _run(work: Coroutine[Any, Any, None], on_signal: Callable[[], None] | None = None) -> None:
    """Run ``work`` on its own event loop. Without ``on_signal`` a signal cancels it, and it tidies up."""
    received: list[signal.Signals] = []

    async def supervised() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def handle(number: signal.Signals) -> None:
            received.append(number)
            if on_signal is not None:
                on_signal()
            else:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, handle, number)
        await work

    try:
        import uvloop

        uvloop.run(supervised())
    except asyncio.CancelledError:
        if not received:
            raise
        raise typer.Exit(128 + received[0]) from None
