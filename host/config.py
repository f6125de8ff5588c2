"""The host's configuration: defaults, then the file, then the environment, then flags. Parsed once, frozen.

The only module that reads environment variables:

    LIVEKIT_URL  LIVEKIT_API_KEY  LIVEKIT_API_SECRET  LIVEKIT_AGENT_NAME   as every LiveKit worker
    ROOMFUL_CONFIG       configuration file (default: ./roomful.toml where there is one)
    ROOMFUL_MODELS_DIR   folder of the model weights
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from host.errors import ConfigError
from host.job.settings import SessionSettings
from inference.wire.supervision import InitializeInference
from models.catalog import ResolvedProfile

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]

DEFAULT_FILE = "roomful.toml"
CPU_ROOMS = 4


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ModelsConfig(_Section, frozen=True):
    """``[models]``. ``profile``: a name of the catalogue; ``dir``: folder of the weights ("" is the package's own)."""

    profile: str = "cpu-small"
    dir: str = ""


class InferenceConfig(_Section, frozen=True):
    """``[inference]``. ``threads`` and ``llm_threads`` 0: chosen from the cores that are there."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    llm_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    max_rooms: Annotated[int, Meta(ge=1, le=255)] = CPU_ROOMS
    context_tokens: Annotated[int, Meta(ge=256, le=1_048_576)] = 2048
    initialize_timeout: Seconds = 300.0
    engines: Literal["real", "fake"] = "real"


class WorkerConfig(_Section, frozen=True):
    """``[worker]``: names and meanings as LiveKit's worker options; times in seconds."""

    ws_url: str = ""
    api_key: str = ""
    api_secret: str = ""
    agent_name: str = ""
    load_threshold: Annotated[float, Meta(gt=0)] = 0.7
    max_retry: Annotated[int, Meta(ge=0)] = 16
    drain_timeout: Seconds = 1800.0
    num_idle_processes: Annotated[int, Meta(ge=0, le=256)] = 1
    initialize_process_timeout: Seconds = 10.0
    shutdown_process_timeout: Seconds = 60.0
    host: str = ""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8081


class Config(_Section, frozen=True):
    """Everything, as one tree; the same tree as the file's."""

    models: ModelsConfig = ModelsConfig()
    inference: InferenceConfig = InferenceConfig()
    worker: WorkerConfig = WorkerConfig()
    session: SessionSettings = SessionSettings()
    log_level: LogLevel = "INFO"


@dataclass(frozen=True, slots=True)
class _Range:
    minimum: float
    maximum: float


# SessionSettings is used inside job processes, which import nothing but the standard library for it,
# so its bounds are kept here.
_SESSION_RANGES: Mapping[str, _Range] = {
    "activation": _Range(0.05, 0.99),
    "min_speech_ms": _Range(0, 5_000),
    "pause_ms": _Range(32, 5_000),
    "min_endpointing_delay_ms": _Range(0, 10_000),
    "max_reply_tokens": _Range(1, 8_192),
    "temperature": _Range(0, 5),
    "top_p": _Range(0, 1),
    "repeat_penalty": _Range(0.5, 2),
    "speed": _Range(0.25, 4),
    "volume": _Range(0, 4),
    "first_phrase_chars": _Range(8, 1_000),
    "phrase_chars": _Range(8, 1_500),
    "interrupt_after_s": _Range(0, 3_600),
    "response_timeout_s": _Range(0, 3_600),
}

_ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "LIVEKIT_URL": ("worker", "ws_url"),
    "LIVEKIT_API_KEY": ("worker", "api_key"),
    "LIVEKIT_API_SECRET": ("worker", "api_secret"),
    "LIVEKIT_AGENT_NAME": ("worker", "agent_name"),
    "ROOMFUL_MODELS_DIR": ("models", "dir"),
}


def load_config(path: Path | None = None, flags: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Read the configuration. ``flags``: section -> key -> value from the command line; None values are not set.

    Raises ``ConfigError`` naming the file (or the variable or flag), the key, the value and what is allowed.
    """
    tree: dict[str, Any] = {}
    origin: dict[tuple[str, str], str] = {}
    file = path or _default_file()
    if file is not None:
        tree = _read(file)
        _convert(tree, str(file))
    for variable, (section, key) in _ENVIRONMENT.items():
        if value := os.environ.get(variable):
            tree.setdefault(section, {})[key] = value
            origin[section, key] = f"environment variable {variable}"
    for section, values in (flags or {}).items():
        for key, value in values.items():
            if value is None:
                continue
            if section:
                tree.setdefault(section, {})[key] = value
            else:
                tree[key] = value
            origin[section, key] = f"--{key.replace('_', '-')}"
    return _convert(tree, ", ".join(dict.fromkeys(origin.values())) or "configuration")


def _default_file() -> Path | None:
    if name := os.environ.get("ROOMFUL_CONFIG"):
        return Path(name)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        decoded = msgspec.toml.decode(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    assert isinstance(decoded, dict)
    return decoded


def _convert(tree: Mapping[str, Any], origin: str) -> Config:
    session = tree.get("session")
    if isinstance(session, dict):
        _check_session(session, origin)
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as exc:
        what, _, where = str(exc).partition(" - at ")
        key = where.strip("`").removeprefix("$.")
        value = _lookup(tree, key)
        given = f" = {value!r}" if value is not _MISSING else ""
        raise ConfigError(f"{origin}: {key or 'top level'}{given}: {_explain(what, key)}") from exc


def _explain(what: str, key: str) -> str:
    """msgspec's sentence, with the choices where it only says that the value is none of them."""
    what = what[:1].lower() + what[1:]
    if not what.startswith("invalid enum value"):
        return what
    hint: Any = Config
    for part in key.split("."):
        hint = get_type_hints(hint)[part]
    return f"allowed are {', '.join(get_args(hint))}"


_MISSING = object()


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split(".") if key else ():
        if not isinstance(tree, Mapping) or part not in tree:
            return _MISSING
        tree = tree[part]
    return _MISSING if isinstance(tree, Mapping) else tree


def _check_session(session: Mapping[str, Any], origin: str) -> None:
    known = {field.name for field in fields(SessionSettings)}
    for key, value in session.items():
        if key not in known:
            raise ConfigError(f"{origin}: session.{key}: unknown key; known are {', '.join(sorted(known))}")
        allowed = _SESSION_RANGES.get(key)
        if allowed is None or not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not allowed.minimum <= value <= allowed.maximum:
            raise ConfigError(
                f"{origin}: session.{key} = {value!r}: allowed is {allowed.minimum:g} to {allowed.maximum:g}"
            )


# --- what the configuration means for the processes -----------------------------------------------


def models_dir(config: Config) -> Path | None:
    """Where the weights are, or None for the package's own folder."""
    return Path(config.models.dir).expanduser() if config.models.dir else None


def inference_settings(config: Config, profile: ResolvedProfile, runtime_dir: Path) -> InitializeInference:
    """The inference process's settings; its socket lies in ``runtime_dir`` (private to this user)."""
    return InitializeInference(
        socket_path=str(runtime_dir / "inference.sock"),
        token=secrets.token_urlsafe(32),
        device=config.inference.device,
        threads=config.inference.threads or _cores(),
        llm_threads=config.inference.llm_threads or max(1, _cores() - 1),
        max_rooms=config.inference.max_rooms,
        context_tokens=config.inference.context_tokens,
        stt_name=profile.stt.model.name,
        stt_path=str(profile.stt.path),
        llm_name=profile.llm.model.name,
        llm_path=str(profile.llm.path),
        tts_name=profile.tts.model.name,
        tts_path=str(profile.tts.path),
        log_level=config.log_level,
        engines=config.inference.engines,
    )


def inference_environment() -> dict[str, str]:
    """The environment of the inference process.

    Teams of threads that spin at barriers cost a factor of thirty as soon as another process wants a
    core, so the spin is bounded; and no library asks a hub or reports to its maker.
    """
    return {
        "GOMP_SPINCOUNT": "10000",
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def job_environment() -> dict[str, str]:
    """The environment of the job processes: numpy needs no thread team to move samples about."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _cores() -> int:
    return len(os.sched_getaffinity(0))
