"""From the configuration and a worker's options to what the supervisor needs; nothing is started here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host.config import Config, check_options, inference_environment, job_environment, models_dir
from host.errors import ConfigError, ModelsError
from host.job.functions import import_path, reference_of
from host.options import WorkerOptions
from host.runtime_dir import runtime_dir
from host.supervisor_options import SupervisorOptions
from host.threads import thread_teams
from inference.wire.supervision import InitializeInference

if TYPE_CHECKING:
    from host.agent_file import AgentFunctions
    from models.catalog import ResolvedProfile

_LONGEST_SOCKET_PATH = 107
"""In bytes: ``sun_path`` of unix(7), without its end."""


@contextmanager
def prepared(config: Config, options: WorkerOptions) -> Iterator[SupervisorOptions]:
    """Check the options and the models, make the private folder of sockets and stacks, translate.

    ``options`` are ``resolved``. The folder is removed at the end. Reads every byte of models that were
    not verified before, which may take seconds: call it in a thread. Raises ``ConfigError`` or
    ``ModelsError``.
    """
    check_options(options)
    entrypoint = _reference("entrypoint_fnc", options.entrypoint_fnc)
    prewarm = _reference("prewarm_fnc", options.prewarm_fnc)
    profile = verified_models(config)
    assert options.num_idle_processes is not None
    assert options.log_level is not None
    with runtime_dir() as folder:
        yield SupervisorOptions(
            inference=_inference(config, profile, folder, options.log_level),
            inference_environment=inference_environment(),
            job_environment=job_environment(),
            entrypoint=entrypoint,
            prewarm=prewarm,
            import_path=import_path(),
            runtime_dir=str(folder),
            job_executor_type=options.job_executor_type,
            num_idle_processes=options.num_idle_processes,
            initialize_process_timeout=options.initialize_process_timeout,
            inference_initialize_timeout=config.inference.initialize_timeout,
            shutdown_process_timeout=options.shutdown_process_timeout,
            ping_interval=options.ping_interval,
            ping_timeout=options.ping_timeout,
            high_ping_threshold=options.high_ping_threshold,
            job_memory_warn_mb=options.job_memory_warn_mb,
            job_memory_limit_mb=options.job_memory_limit_mb,
            log_level=options.log_level,
        )


def agent_functions(path: Path | None) -> AgentFunctions:
    """What the agent file defines; without one, the built-in agent. Raises ``ConfigError`` naming file and line."""
    from host.agent_file import AgentFunctions, read_agent_file

    return read_agent_file(path) if path is not None else AgentFunctions()


def verified_models(config: Config) -> ResolvedProfile:
    """The profile with the paths of its models, each compared with the catalogue. Raises ``ConfigError`` or
    ``ModelsError``.
    """
    from models.catalog import resolve
    from models.fetch import ensure_verified

    folder = models_dir(config)
    with model_errors():
        if config.inference.engines == "fake":
            return resolve(config.models.profile, folder)
        return ensure_verified(config.models.profile, folder)


@contextmanager
def model_errors() -> Iterator[None]:
    """The errors of ``models`` as the host's."""
    from models.errors import ModelError, UnknownProfileError

    try:
        yield
    except UnknownProfileError as exc:
        raise ConfigError(str(exc)) from exc
    except ModelError as exc:
        raise ModelsError(str(exc)) from exc


def _reference(option: str, function: Callable[..., Any] | str | None) -> str:
    """The function by name, so that a job process can import it; "" for none."""
    if function is None or isinstance(function, str):
        return function or ""
    try:
        return reference_of(function)
    except ValueError as exc:
        raise ConfigError(f"WorkerOptions: {option}: {exc}") from exc


def _inference(config: Config, profile: ResolvedProfile, folder: Path, log_level: str) -> InitializeInference:
    """The inference process's first message; its socket lies in ``folder``, private to this user."""
    teams = thread_teams(config.cores())
    socket_path = str(folder / "inference.sock")
    if len(os.fsencode(socket_path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"{socket_path}: a socket's path has at most {_LONGEST_SOCKET_PATH} bytes; set TMPDIR to a shorter folder"
        )
    if config.inference.resident_rooms > config.inference.max_rooms:
        raise ConfigError(
            f"inference.resident_rooms = {config.inference.resident_rooms}: more than inference.max_rooms = "
            f"{config.inference.max_rooms}"
        )
    return InitializeInference(
        socket_path=socket_path,
        token=secrets.token_urlsafe(32),
        device=config.inference.device,
        threads=config.inference.threads or teams.speech,
        llm_threads=config.inference.llm_threads or teams.language,
        max_rooms=config.inference.max_rooms,
        context_tokens=config.inference.context_tokens,
        resident_rooms=config.inference.resident_rooms,
        stt_name=profile.stt.model.name,
        stt_path=str(profile.stt.path),
        llm_name=profile.llm.model.name,
        llm_path=str(profile.llm.path),
        tts_name=profile.tts.model.name,
        tts_path=str(profile.tts.path),
        log_level=log_level,
        engines=config.inference.engines,
        memory_budget_mb=config.inference.memory_budget_mb,
        trace_file=str(Path(config.inference.trace_file).expanduser().resolve()) if config.inference.trace_file else "",
    )
