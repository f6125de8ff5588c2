"""What the commands share: their common options, and the configuration that comes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from host.config import Config, load_config
from host.errors import HostError
from host.telemetry import configure_logging

errors = Console(stderr=True)
output = Console()

MODELS, LOGS = "Models", "Configuration and logs"
"""Panels of ``--help``."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Configuration file (TOML). Default: ./roomful.toml where there is one.",
        rich_help_panel=LOGS,
    ),
]  # fmt: skip
ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="Models to use: see `host models list`.", rich_help_panel=MODELS)
]
ModelsDirOption = Annotated[
    Path | None, typer.Option("--models-dir", help="Folder of the model weights.", rich_help_panel=MODELS)
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.", rich_help_panel=MODELS)]
LogLevelOption = Annotated[
    str | None, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR.", rich_help_panel=LOGS)
]
LogFormatOption = Annotated[str | None, typer.Option("--log-format", help="auto, json or text.", rich_help_panel=LOGS)]
UrlOption = Annotated[str | None, typer.Option("--url", help="The LiveKit server, ws:// or wss:// (LIVEKIT_URL).")]
ApiKeyOption = Annotated[str | None, typer.Option("--api-key", help="Its API key (LIVEKIT_API_KEY).")]
ApiSecretOption = Annotated[
    str | None, typer.Option("--api-secret", help="Its API secret (better as LIVEKIT_API_SECRET).")
]


def load(
    config: Path | None,
    *,
    profile: str | None = None,
    models_dir: Path | None = None,
    device: str | None = None,
    log_level: str | None = None,
    log_format: str | None = None,
    worker: Mapping[str, Any] | None = None,
    inference: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Config:
    """Read the configuration and set up logging by it. Raises ``ConfigError``.

    ``quiet``: a command for a person, who reads no log: WARNING, as text, unless something else was asked for.
    """
    settings = load_config(
        config,
        {
            "": {"log_level": log_level.upper() if log_level else None, "log_format": log_format},
            "models": {"profile": profile, "dir": str(models_dir) if models_dir else None},
            "inference": {"device": device, **(inference or {})},
            "worker": worker or {},
        },
    )
    level = settings.log_level or ("WARNING" if quiet else settings.effective_log_level())
    configure_logging(level, settings.log_format, dev=quiet or settings.worker.dev)
    return msgspec.structs.replace(settings, log_level=level)


@contextmanager
def reported() -> Iterator[None]:
    """Every foreseen error becomes one message on stderr and ends the program with its exit code."""
    try:
        yield
    except HostError as exc:
        errors.print(f"[bold red]error:[/] {escape(str(exc))}", soft_wrap=True)
        sys.exit(exc.exit_code)
