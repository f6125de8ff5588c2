"""The host's configuration: defaults, then the file, then the environment, then flags. Parsed once, frozen.

The only module that reads environment variables:

    LIVEKIT_URL  LIVEKIT_API_KEY  LIVEKIT_API_SECRET  LIVEKIT_AGENT_NAME   as every LiveKit worker
    LIVEKIT_DEV_MODE     development: the defaults of development, and a signal does not wait for rooms
    LIVEKIT_LOG_LEVEL    the least level that is logged
    NUM_CPUS             how many CPUs count as this host's, where the system cannot tell
    ROOMFUL_CONFIG       configuration file (default: ./roomful.toml where there is one)
    ROOMFUL_MODELS_DIR   folder of the model weights

``host/prepare.py`` says what it means for the processes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from host.convert import convert
from host.errors import ConfigError
from host.job.settings import SessionSettings
from host.options import (
    BUILT_IN_AGENT,
    DEFAULT_LOG_LEVEL,
    DEV_LOG_LEVEL,
    JobExecutorType,
    WorkerOptions,
    WorkerPermissions,
    WorkerType,
)
from host.threads import SPIN_COUNT

if TYPE_CHECKING:
    from host.agent_file import AgentFunctions

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LogFormat = Literal["auto", "json", "text"]
TrackSource = Literal["CAMERA", "MICROPHONE", "SCREEN_SHARE", "SCREEN_SHARE_AUDIO"]
Megabytes = Annotated[float, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Interval = Annotated[float, Meta(gt=0)]

DEFAULT_FILE = "roomful.toml"
CPU_ROOMS = 4

# The defaults of a worker stand in WorkerOptions and nowhere else.
_WORKER = WorkerOptions(entrypoint_fnc=BUILT_IN_AGENT)
_PERMISSIONS = WorkerPermissions()


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ModelsConfig(_Section, frozen=True):
    """``[models]``. ``profile``: a name of the catalogue; ``dir``: folder of the weights ("" is the package's own)."""

    profile: str = "cpu-small"
    dir: str = ""


class InferenceConfig(_Section, frozen=True):
    """``[inference]``. ``threads`` and ``llm_threads`` 0: chosen from the cores that are there.

    ``max_rooms`` 0: as many as the device answers in time, by ``device_table`` (a file of ``host calibrate``, or a
    known device's name): ``target_ms`` is the p95 of the response without the endpointing delay, ``cycle_s`` how often
    a caller speaks. ``resident_rooms``: rooms for whose conversations the device has memory, 0 for all; the
    others' are kept in host memory. ``memory_budget_mb``: what the inference process may take on a CPU, in MB, 0 for no
    budget; its use of it is a part of the load. ``trace_file``: where the inference process writes what it does and
    why, for a trace viewer; "" is nowhere.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    llm_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    max_rooms: Annotated[int, Meta(ge=0, le=255)] = CPU_ROOMS
    device_table: str = ""
    target_ms: Annotated[float, Meta(ge=1)] = 1500.0
    cycle_s: Annotated[float, Meta(ge=1)] = 10.0
    context_tokens: Annotated[int, Meta(ge=256, le=1_048_576)] = 2048
    resident_rooms: Annotated[int, Meta(ge=0, le=255)] = 0
    memory_budget_mb: Megabytes = 0.0
    initialize_timeout: Seconds = 300.0
    engines: Literal["real", "stock", "fake"] = "real"
    trace_file: str = ""


class PermissionsConfig(_Section, frozen=True):
    """``[worker.permissions]``: ``WorkerPermissions``."""

    can_publish: bool = _PERMISSIONS.can_publish
    can_subscribe: bool = _PERMISSIONS.can_subscribe
    can_publish_data: bool = _PERMISSIONS.can_publish_data
    can_update_metadata: bool = _PERMISSIONS.can_update_metadata
    can_publish_sources: tuple[TrackSource, ...] = ()
    hidden: bool = _PERMISSIONS.hidden


class WorkerConfig(_Section, frozen=True):
    """``[worker]``: the ``WorkerOptions`` that are no functions. None: the default of the mode."""

    ws_url: str = _WORKER.ws_url
    api_key: str = _WORKER.api_key
    api_secret: str = _WORKER.api_secret
    agent_name: str = _WORKER.agent_name
    worker_type: WorkerType = _WORKER.worker_type
    permissions: PermissionsConfig = PermissionsConfig()
    max_retry: Annotated[int, Meta(ge=0)] = _WORKER.max_retry
    max_jobs: Annotated[int, Meta(ge=1)] | None = _WORKER.max_jobs
    load_threshold: Annotated[float, Meta(gt=0)] | None = _WORKER.load_threshold
    job_executor_type: JobExecutorType = _WORKER.job_executor_type
    job_memory_warn_mb: Megabytes = _WORKER.job_memory_warn_mb
    job_memory_limit_mb: Megabytes = _WORKER.job_memory_limit_mb
    num_idle_processes: Annotated[int, Meta(ge=0, le=256)] | None = _WORKER.num_idle_processes
    initialize_process_timeout: Seconds = _WORKER.initialize_process_timeout
    shutdown_process_timeout: Seconds = _WORKER.shutdown_process_timeout
    drain_timeout: Seconds = _WORKER.drain_timeout
    ping_interval: Interval = _WORKER.ping_interval
    ping_timeout: Interval = _WORKER.ping_timeout
    high_ping_threshold: Interval = _WORKER.high_ping_threshold
    host: str = _WORKER.host
    port: Annotated[int, Meta(ge=0, le=65535)] | None = _WORKER.port
    dev: bool = _WORKER.dev


class Config(_Section, frozen=True):
    """Everything, as one tree; the same tree as the file's.

    ``log_level`` None: the default of the mode. ``log_format`` "auto": JSON in production, text in
    development and on a terminal. ``num_cpus`` 0: as many as the system says.
    """

    models: ModelsConfig = ModelsConfig()
    inference: InferenceConfig = InferenceConfig()
    worker: WorkerConfig = WorkerConfig()
    session: SessionSettings = SessionSettings()
    log_level: LogLevel | None = None
    log_format: LogFormat = "auto"
    num_cpus: Annotated[float, Meta(ge=0, le=4096)] = 0.0

    def cores(self) -> int:
        """How many CPUs this process may use, at least 1: ``num_cpus``, or what control group and system say."""
        from host.load import CpuMeter

        return max(1, math.ceil(CpuMeter(self.num_cpus).cores))

    def effective_log_level(self) -> str:
        """``log_level``, or the default of the mode."""
        return self.log_level or (DEV_LOG_LEVEL if self.worker.dev else DEFAULT_LOG_LEVEL)


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
    "max_endpointing_delay_ms": _Range(0, 30_000),
    "vad_endpointing_delay_ms": _Range(0, 10_000),
    "min_interruption_ms": _Range(0, 10_000),
    "min_interruption_words": _Range(0, 100),
    "false_interruption_timeout_ms": _Range(0, 60_000),
    "user_away_timeout_s": _Range(0, 3_600),
    "max_reply_tokens": _Range(1, 8_192),
    "temperature": _Range(0, 5),
    "top_p": _Range(0, 1),
    "repeat_penalty": _Range(0.5, 2),
    "speed": _Range(0.25, 4),
    "volume": _Range(0, 4),
    "speaker": _Range(-1, 10_000),
    "first_phrase_chars": _Range(8, 1_000),
    "phrase_chars": _Range(8, 1_500),
    "interrupt_after_s": _Range(0, 3_600),
    "response_timeout_s": _Range(0, 3_600),
}


@dataclass(frozen=True, slots=True)
class _Variable:
    """Where the value of an environment variable goes ("" is the top level), and what it must be."""

    section: str
    key: str
    kind: type[str | bool | float] = str

    def read(self, name: str, text: str) -> str | bool | float:
        try:
            return msgspec.convert(text, self.kind, strict=False)
        except msgspec.ValidationError as exc:
            allowed = "1, 0, true or false" if self.kind is bool else "a number"
            raise ConfigError(f"environment variable {name} = {text!r}: allowed is {allowed}") from exc


_ENVIRONMENT: Mapping[str, _Variable] = {
    "LIVEKIT_URL": _Variable("worker", "ws_url"),
    "LIVEKIT_API_KEY": _Variable("worker", "api_key"),
    "LIVEKIT_API_SECRET": _Variable("worker", "api_secret"),
    "LIVEKIT_AGENT_NAME": _Variable("worker", "agent_name"),
    "LIVEKIT_DEV_MODE": _Variable("worker", "dev", bool),
    "LIVEKIT_LOG_LEVEL": _Variable("", "log_level"),
    "NUM_CPUS": _Variable("", "num_cpus", float),
    "ROOMFUL_MODELS_DIR": _Variable("models", "dir"),
}

_FLAGS: Mapping[tuple[str, str], str] = {("worker", "ws_url"): "--url", ("models", "dir"): "--models-dir"}
"""Flags that are not called as their key."""


def load_config(path: Path | None = None, flags: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Read the configuration. ``flags``: section -> key -> value from the command line; None values are not set.

    Raises ``ConfigError`` naming the file (or the variable or flag), the key, the value and what is allowed.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(section: str, key: str, value: object, origin: str) -> None:
        if section:
            tree.setdefault(section, {})[key] = value
        else:
            tree[key] = value
        origins[f"{section}.{key}" if section else key] = origin

    file = path or _default_file()
    if file is not None:
        tree = _read(file)
        _convert(tree, {}, str(file))
    for name, variable in _ENVIRONMENT.items():
        if text := os.environ.get(name):
            value = variable.read(name, text.upper() if variable.key == "log_level" else text)
            put(variable.section, variable.key, value, f"environment variable {name}")
    for section, values in (flags or {}).items():
        for key, value in values.items():
            if value is not None:
                put(section, key, value, _FLAGS.get((section, key), f"--{key.replace('_', '-')}"))
    return _convert(tree, origins, str(file or "configuration"))


def worker_options(config: Config, functions: AgentFunctions) -> WorkerOptions:
    """What the configuration and the agent file say, as the options of a worker."""
    worker = config.worker
    return WorkerOptions(
        entrypoint_fnc=functions.entrypoint,
        request_fnc=functions.request_fnc or None,
        prewarm_fnc=functions.prewarm or None,
        load_fnc=functions.load_fnc or None,
        permissions=WorkerPermissions(**msgspec.structs.asdict(worker.permissions)),
        log_level=config.log_level,
        session=config.session,
        **{key: value for key, value in msgspec.structs.asdict(worker).items() if key != "permissions"},
    )


def check_options(options: WorkerOptions) -> None:
    """Refuse what the configuration would refuse, whoever made them. Raises ``ConfigError`` naming the option."""
    _check_session(asdict(options.session), "WorkerOptions")
    given = {key: getattr(options, key) for key in WorkerConfig.__struct_fields__}
    given["permissions"] = {key: getattr(options.permissions, key) for key in PermissionsConfig.__struct_fields__}
    tree = {"worker": given, "log_level": options.log_level}
    _convert(tree, {}, "WorkerOptions")
    if options.ping_timeout <= options.ping_interval:
        raise ConfigError(
            f"WorkerOptions: worker.ping_timeout = {options.ping_timeout:g}: "
            f"allowed is more than worker.ping_interval, which is {options.ping_interval:g}"
        )


def models_dir(config: Config) -> Path | None:
    """Where the weights are, or None for the package's own folder."""
    return Path(config.models.dir).expanduser() if config.models.dir else None


def inference_environment() -> dict[str, str]:
    """The environment of the inference process.

    Teams of threads that spin at barriers cost a factor of thirty as soon as another process wants a
    core, so the spin is bounded; and no library asks a hub or reports to its maker. The libraries read this
    when they are loaded, so it must be there when the process starts.
    """
    return {
        "GOMP_SPINCOUNT": str(SPIN_COUNT),
        # numpy multiplies Whisper's filters in half a millisecond on one thread; its own team spins without bound,
        # and took 40 to 1,000 of them beside a busy process.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def job_environment() -> dict[str, str]:
    """The environment of the job processes: numpy needs no thread team to move samples about."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


# --- reading --------------------------------------------------------------------------------------


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


def _convert(tree: Mapping[str, Any], origins: Mapping[str, str], rest: str) -> Config:
    session = tree.get("session")
    if isinstance(session, dict):
        _check_session(session, rest)
    return convert(tree, Config, origins, rest)


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
