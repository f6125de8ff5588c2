"""``host serve``: register with a LiveKit server and answer in its rooms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from host.config import Config, worker_options
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
    load,
)
from host.options import WorkerOptions
from host.prepare import agent_functions
from host.signals import Stopping, run

_JOBS, _PROCESSES, _ENDING, _HTTP = "Which jobs", "Job processes", "Ending", "Health, status and metrics"


def _option(flag: str, text: str, panel: str) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=panel)


def serve(
    agent: Annotated[Path | None, typer.Argument(help="Your agent's Python file. Default: a built-in one.")] = None,
    dev: Annotated[
        bool | None,
        typer.Option(
            "--dev/--production",
            help="Development (LIVEKIT_DEV_MODE): no load threshold, no warm processes, any free port, log level "
            "DEBUG, text logs, and the first signal ends.",
        ),
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    api_secret: ApiSecretOption = None,
    max_retry: Annotated[int | None, _option("--max-retry", "Tries to reach the server again.", "Options")] = None,
    agent_name: Annotated[
        str | None, _option("--agent-name", "Take only jobs dispatched to this name. Default: every room.", _JOBS)
    ] = None,
    worker_type: Annotated[
        str | None, _option("--worker-type", "One job a room, publisher or participant.", _JOBS)
    ] = None,
    max_jobs: Annotated[int | None, _option("--max-jobs", "Jobs at once. Default: --max-rooms.", _JOBS)] = None,
    max_rooms: Annotated[
        int | None,
        _option(
            "--max-rooms",
            "Places in the inference process; memory for all is taken at start. 0: as many as --device-table says.",
            _JOBS,
        ),
    ] = None,
    device_table: Annotated[
        str | None,
        _option("--device-table", "What this device sustains: a table of host calibrate, or a known device.", _JOBS),
    ] = None,
    load_threshold: Annotated[
        float | None, _option("--load-threshold", "Load, 0 to 1, from which no job is taken; inf for none.", _JOBS)
    ] = None,
    job_executor_type: Annotated[
        str | None, _option("--job-executor-type", "process, or thread for a debugger.", _PROCESSES)
    ] = None,
    num_idle_processes: Annotated[int | None, _option("--num-idle-processes", "Kept warm.", _PROCESSES)] = None,
    initialize_process_timeout: Annotated[
        float | None, _option("--initialize-process-timeout", "Seconds to become ready.", _PROCESSES)
    ] = None,
    job_memory_warn_mb: Annotated[
        float | None, _option("--job-memory-warn-mb", "MB that are warned of; 0 is off.", _PROCESSES)
    ] = None,
    job_memory_limit_mb: Annotated[
        float | None, _option("--job-memory-limit-mb", "MB at which a job is ended; 0 is off.", _PROCESSES)
    ] = None,
    ping_interval: Annotated[float | None, _option("--ping-interval", "Seconds between pings.", _PROCESSES)] = None,
    ping_timeout: Annotated[
        float | None, _option("--ping-timeout", "Seconds without an answer before it is killed.", _PROCESSES)
    ] = None,
    high_ping_threshold: Annotated[
        float | None, _option("--high-ping-threshold", "Seconds of a round trip that are warned of.", _PROCESSES)
    ] = None,
    drain_timeout: Annotated[
        float | None, _option("--drain-timeout", "Seconds that running rooms get to finish.", _ENDING)
    ] = None,
    shutdown_process_timeout: Annotated[
        float | None, _option("--shutdown-process-timeout", "Seconds that a job gets to end in order.", _ENDING)
    ] = None,
    host: Annotated[str | None, _option("--host", "Address. Default: every one.", _HTTP)] = None,
    port: Annotated[int | None, _option("--port", "Port; 0 picks one.", _HTTP)] = None,
    profile: ProfileOption = None,
    models_dir: ModelsDirOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Register with a LiveKit server and answer in its rooms.

    Ctrl-C (or SIGTERM) lets running rooms finish and takes no new ones; a second one, or SIGQUIT, ends now,
    in order; one more does not wait for that.
    """
    settings = load(
        config,
        profile=profile,
        models_dir=models_dir,
        device=device,
        log_level=log_level,
        log_format=log_format,
        worker={
            "dev": dev,
            "ws_url": url,
            "api_key": api_key,
            "api_secret": api_secret,
            "max_retry": max_retry,
            "agent_name": agent_name,
            "worker_type": worker_type,
            "max_jobs": max_jobs,
            "load_threshold": load_threshold,
            "job_executor_type": job_executor_type,
            "num_idle_processes": num_idle_processes,
            "initialize_process_timeout": initialize_process_timeout,
            "job_memory_warn_mb": job_memory_warn_mb,
            "job_memory_limit_mb": job_memory_limit_mb,
            "ping_interval": ping_interval,
            "ping_timeout": ping_timeout,
            "high_ping_threshold": high_ping_threshold,
            "drain_timeout": drain_timeout,
            "shutdown_process_timeout": shutdown_process_timeout,
            "host": host,
            "port": port,
        },
        inference={"max_rooms": max_rooms, "device_table": device_table},
    )
    options = worker_options(settings, agent_functions(agent))
    serve_worker(options, settings)


def serve_worker(options: WorkerOptions, settings: Config) -> None:
    """Serve until a signal ends it. Raises a ``HostError``."""
    from host.worker import Worker

    worker = Worker(options, settings)
    run(worker.run(), Stopping(worker.drain, worker.aclose, at_once=options.dev))
