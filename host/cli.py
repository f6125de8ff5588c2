"""The command line: ``host serve``, ``console``, ``talk``, ``simulate``, ``loadtest``, ``calibrate``, ``plan``,
``status``, and ``models``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from host.config import Config, worker_options
from host.config import models_dir as folder_of
from host.console.command import console
from host.errors import ConfigError, ModelsError
from host.flags import (
    ConfigOption,
    DeviceOption,
    LogFormatOption,
    LogLevelOption,
    ModelsDirOption,
    ProfileOption,
    load,
    output,
    reported,
)
from host.loadtest.command import loadtest
from host.options import DEFAULT_PORT
from host.prepare import agent_functions, model_errors, prepared
from host.serve import serve
from host.signals import run
from host.simulate import simulate
from host.sizing import calibrate, plan

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

app.command()(serve)
app.command()(console)
app.command()(simulate)
app.command()(loadtest)
app.command()(calibrate)
app.command()(plan)


def main() -> None:
    """Entry point of the command ``host``: every foreseen error is one message and its exit code."""
    with reported():
        app()


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
    log_format: LogFormatOption = None,
) -> None:
    """Hold a conversation in a local room: the waves are the caller, the agent answers. Needs no server."""
    from host.talk import Conversation, hold

    settings = load(
        config,
        profile=profile,
        models_dir=models_dir,
        device=device,
        log_level=log_level,
        log_format=log_format,
        worker={"num_idle_processes": 1},
        quiet=True,
    )
    conversation = Conversation(
        waves=tuple(path.resolve() for path in waves),
        out=out.resolve(),
        record=record.resolve() if record else None,
        interrupt_after_s=interrupt_after,
    )
    conversation.check()
    options = worker_options(settings, agent_functions(agent)).resolved(settings.cores())
    with prepared(settings, options) as supervisor_options:
        run(hold(conversation, settings.session, supervisor_options, as_json=as_json))


# --- status ---------------------------------------------------------------------------------------


@app.command()
def status(
    url: Annotated[
        str | None, typer.Option("--url", help="A host's HTTP address. Default: the configured one, on this machine.")
    ] = None,
    watching: Annotated[
        bool | None, typer.Option("--watch/--once", help="Keep showing it. Default: on a terminal.")
    ] = None,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a look.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show a running host: its processes and rooms, memory, pings, load, and whether it takes another room."""
    from host.status import watch

    settings = load(config, quiet=True)
    once = not (output.is_terminal and not as_json) if watching is None else not watching
    watch(url or _address(settings), interval, once=once, as_json=as_json)


def _address(settings: Config) -> str:
    """Where a host with this configuration is to be found. Raises ``ConfigError``."""
    worker = settings.worker
    if worker.port == 0 or (worker.port is None and worker.dev):
        raise ConfigError("the host picks a port of its own, and its log says which: give it as --url 127.0.0.1:PORT")
    name = worker.host if worker.host not in ("", "0.0.0.0", "::") else "127.0.0.1"
    return f"http://{f'[{name}]' if ':' in name else name}:{worker.port or DEFAULT_PORT}"


# --- models ---------------------------------------------------------------------------------------

ProfileArgument = Annotated[str | None, typer.Argument(help="A profile; default: the configured one (cpu-small).")]


@models_app.command("list")
def models_list(models_dir: ModelsDirOption = None, config: ConfigOption = None) -> None:
    """Every model that Roomful knows, and whether it is installed."""
    from models.table import list_table, profiles_table

    folder = folder_of(load(config, models_dir=models_dir))
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

    settings = load(config, profile=profile, models_dir=models_dir)
    if from_dir is not None and not from_dir.is_dir():
        raise ConfigError(f"--from {from_dir}: no such folder")
    with model_errors():
        output.print(verify_table(download(settings.models.profile, folder_of(settings), from_dir=from_dir)))


@models_app.command("verify")
def models_verify(
    profile: ProfileArgument = None, models_dir: ModelsDirOption = None, config: ConfigOption = None
) -> None:
    """Read every byte of a profile's models and compare with the catalogue. Removes nothing."""
    from models.fetch import fetch_command, verify
    from models.table import verify_table

    settings = load(config, profile=profile, models_dir=models_dir)
    with model_errors():
        results = verify(settings.models.profile, folder_of(settings))
    output.print(verify_table(results))
    if bad := [result for result in results if not result.ok]:
        command = fetch_command(settings.models.profile)
        raise ModelsError(f"{len(bad)} of {len(results)} files cannot be used; fetch them with: {command}")
