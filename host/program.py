"""For programs that are workers themselves; a job process imports such a program, so this stays light."""

from __future__ import annotations

from dataclasses import replace

from host.options import WorkerOptions


def run_worker(options: WorkerOptions) -> None:
    """Serve as ``host serve`` does, with options of the program's own: logs, signals, messages and exit codes.

    Models, inference and logs are configured by file and environment, as always; LIVEKIT_DEV_MODE and
    LIVEKIT_LOG_LEVEL count where the options leave it open. Raises ``SystemExit`` with the exit code of an
    error.
    """
    from host.flags import load, reported
    from host.serve import serve_worker

    with reported():
        settings = load(None, log_level=options.log_level, worker={"dev": options.dev or None})
        serve_worker(replace(options, dev=settings.worker.dev, log_level=settings.log_level), settings)
