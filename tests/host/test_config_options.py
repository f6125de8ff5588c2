"""Every option of a worker: from the file, the environment and flags to WorkerOptions; wrong values are named."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from host import cli
from host.config import Config, PermissionsConfig, WorkerConfig, check_options, load_config, worker_options
from host.errors import ConfigError
from host.job.settings import SessionSettings
from host.options import BUILT_IN_AGENT, JobExecutorType, WorkerOptions, WorkerPermissions, WorkerType
from host.program import run_worker


@dataclass(frozen=True)
class Functions:
    """What an agent file defines."""

    entrypoint: str = BUILT_IN_AGENT
    prewarm: str = ""
    request_fnc: str = ""
    load_fnc: str = ""


OPTIONS = WorkerOptions(entrypoint_fnc=BUILT_IN_AGENT)
FUNCTIONS = ("entrypoint_fnc", "request_fnc", "prewarm_fnc", "load_fnc")

# A value of each key that is not its default, as TOML has it; and what WorkerOptions then holds, where it differs.
VALUES: dict[str, Any] = {
    "ws_url": "ws://127.0.0.1:1",
    "api_key": "the-key",
    "api_secret": "the-secret",
    "agent_name": "clerk",
    "worker_type": "publisher",
    "max_retry": 3,
    "max_jobs": 2,
    "load_threshold": 0.4,
    "job_executor_type": "thread",
    "job_memory_warn_mb": 123.0,
    "job_memory_limit_mb": 456.0,
    "num_idle_processes": 7,
    "initialize_process_timeout": 11.0,
    "shutdown_process_timeout": 12.0,
    "drain_timeout": 13.0,
    "ping_interval": 1.5,
    "ping_timeout": 14.0,
    "high_ping_threshold": 0.25,
    "host": "127.0.0.1",
    "port": 8099,
    "dev": True,
}
HELD: dict[str, Any] = {"worker_type": WorkerType.PUBLISHER, "job_executor_type": JobExecutorType.THREAD}
PERMISSIONS: dict[str, Any] = {
    "can_publish": False,
    "can_subscribe": False,
    "can_publish_data": False,
    "can_update_metadata": False,
    "can_publish_sources": ["MICROPHONE", "SCREEN_SHARE_AUDIO"],
    "hidden": True,
}
FLAGS = {"ws_url": "--url"}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("LIVEKIT_", "ROOMFUL_")) or name == "NUM_CPUS":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).replace("'", '"')


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "host.toml"
    path.write_text(text)
    return path


def options_of(config: Config) -> WorkerOptions:
    return worker_options(config, Functions())  # type: ignore[arg-type]


# --- the file -----------------------------------------------------------------------------------------


def test_every_option_has_a_key_and_every_key_is_tried_here() -> None:
    names = {field.name for field in dataclasses.fields(WorkerOptions)}
    assert set(WorkerConfig.__struct_fields__) == names - {*FUNCTIONS, "session", "log_level"}
    assert set(PermissionsConfig.__struct_fields__) == {field.name for field in dataclasses.fields(WorkerPermissions)}
    assert set(VALUES) == set(WorkerConfig.__struct_fields__) - {"permissions"}
    assert set(PERMISSIONS) == set(PermissionsConfig.__struct_fields__)


def test_without_any_configuration_the_defaults_are_those_of_worker_options() -> None:
    assert options_of(load_config()) == OPTIONS


@pytest.mark.parametrize("key", VALUES)
def test_a_key_of_the_file_arrives_and_changes_nothing_else(tmp_path: Path, key: str) -> None:
    config = load_config(written(tmp_path, f"[worker]\n{key} = {toml(VALUES[key])}\n"))
    expected = dataclasses.replace(OPTIONS, **{key: HELD.get(key, VALUES[key])})
    assert options_of(config) == expected
    assert expected != OPTIONS


@pytest.mark.parametrize("key", PERMISSIONS)
def test_a_permission_of_the_file_arrives(tmp_path: Path, key: str) -> None:
    config = load_config(written(tmp_path, f"[worker.permissions]\n{key} = {toml(PERMISSIONS[key])}\n"))
    value = PERMISSIONS[key]
    expected = WorkerPermissions(**{key: tuple(value) if isinstance(value, list) else value})
    assert options_of(config).permissions == expected != WorkerPermissions()


def test_session_log_level_and_functions_arrive(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, 'log_level = "ERROR"\n[session]\nspeed = 1.5\n'))
    functions = Functions("a.py:entrypoint", "a.py:prewarm", "a.py:request_fnc", "a.py:load_fnc")
    options = worker_options(config, functions)  # type: ignore[arg-type]
    assert options.log_level == "ERROR"
    assert options.session == SessionSettings(speed=1.5)
    assert tuple(getattr(options, name) for name in FUNCTIONS) == (
        "a.py:entrypoint", "a.py:request_fnc", "a.py:prewarm", "a.py:load_fnc",
    )  # fmt: skip


def test_no_load_threshold_can_be_written_down(tmp_path: Path) -> None:
    assert options_of(load_config(written(tmp_path, "[worker]\nload_threshold = inf\n"))).load_threshold == math.inf


# --- the environment ----------------------------------------------------------------------------------

ENVIRONMENT = {
    "LIVEKIT_URL": ("wss://there", lambda config: config.worker.ws_url, "wss://there"),
    "LIVEKIT_API_KEY": ("k", lambda config: config.worker.api_key, "k"),
    "LIVEKIT_API_SECRET": ("s", lambda config: config.worker.api_secret, "s"),
    "LIVEKIT_AGENT_NAME": ("clerk", lambda config: config.worker.agent_name, "clerk"),
    "LIVEKIT_DEV_MODE": ("1", lambda config: config.worker.dev, True),
    "LIVEKIT_LOG_LEVEL": ("debug", lambda config: config.log_level, "DEBUG"),
    "NUM_CPUS": ("2.5", lambda config: config.cores(), 3),
    "ROOMFUL_MODELS_DIR": ("/weights", lambda config: config.models.dir, "/weights"),
    "ROOMFUL_CONFIG": ("other.toml", lambda config: config.worker.port, 4242),
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_an_environment_variable_arrives(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Path("other.toml").write_text("[worker]\nport = 4242\n")
    text, read, expected = ENVIRONMENT[name]
    assert read(load_config()) != expected
    monkeypatch.setenv(name, text)
    assert read(load_config()) == expected


def test_every_environment_variable_is_tried_here() -> None:
    source = Path(cli.__file__).with_name("config.py").read_text()
    assert set(re.findall(r'"((?:LIVEKIT|ROOMFUL)_\w+|NUM_CPUS)"', source)) == set(ENVIRONMENT)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
    assert load_config() == Config()


@pytest.mark.parametrize(("text", "is_dev"), [("1", True), ("true", True), ("0", False), ("false", False)])
def test_development_may_be_switched_off_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, is_dev: bool
) -> None:
    monkeypatch.setenv("LIVEKIT_DEV_MODE", text)
    assert load_config(written(tmp_path, f"[worker]\ndev = {toml(not is_dev)}\n")).worker.dev is is_dev


def test_the_file_gives_way_to_the_environment_and_that_to_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, '[worker]\nagent_name = "of the file"\n')
    assert load_config(file).worker.agent_name == "of the file"
    monkeypatch.setenv("LIVEKIT_AGENT_NAME", "of the environment")
    assert load_config(file).worker.agent_name == "of the environment"
    assert load_config(file, {"worker": {"agent_name": None}}).worker.agent_name == "of the environment"
    assert load_config(file, {"worker": {"agent_name": "of the flag"}}).worker.agent_name == "of the flag"


# --- flags --------------------------------------------------------------------------------------------


class Served:
    """What ``host serve`` would have served: it stands in for the worker, whose processes are not the question here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: WorkerOptions | None = None
        self.config: Config | None = None
        monkeypatch.setattr("host.worker.Worker", self)
        # Logging is the test runner's.
        monkeypatch.setattr("host.flags.configure_logging", self._configure_logging)
        self.logging: tuple[str, str, bool] = ("", "", False)

    def __call__(self, options: WorkerOptions, config: Config) -> Served:
        self.options, self.config = options, config
        return self

    def _configure_logging(self, level: str, log_format: str, *, dev: bool) -> None:
        self.logging = (level, log_format, dev)

    async def run(self) -> None: ...

    async def drain(self) -> None: ...

    async def aclose(self) -> None: ...

    def serve(self, *arguments: str) -> WorkerOptions:
        done = CliRunner().invoke(cli.app, ["serve", *arguments])
        assert done.exit_code == 0, (done.output, done.exception)
        assert self.options is not None
        return self.options


SERVER = ("--url", "ws://127.0.0.1:1", "--api-key", "the-key", "--api-secret", "the-secret")


@pytest.mark.parametrize("key", VALUES)
def test_a_flag_of_host_serve_arrives_and_changes_nothing_else(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    served = Served(monkeypatch)
    before = served.serve(*SERVER)
    flag = FLAGS.get(key, f"--{key.replace('_', '-')}")
    value = {"ws_url": "ws://127.0.0.1:2", "api_key": "k2", "api_secret": "s2"}.get(key, VALUES[key])
    after = served.serve(*SERVER, flag, *(() if value is True else (str(value),)))
    # The level is settled by the command, by what the mode is.
    changed = {key: HELD.get(key, value)} | ({"log_level": "DEBUG"} if key == "dev" else {})
    assert after == dataclasses.replace(before, **changed)
    assert after != before


def test_flags_of_other_sections_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(monkeypatch)
    served.serve(
        *SERVER, "--max-rooms", "9", "--profile", "gpu-4b", "--models-dir", "/weights", "--device", "cpu",
        "--log-level", "warning", "--log-format", "json",
    )  # fmt: skip
    assert served.config is not None
    assert served.config.inference.max_rooms == 9
    assert served.config.inference.device == "cpu"
    assert served.config.models.profile == "gpu-4b"
    assert served.config.models.dir == "/weights"
    assert served.logging == ("WARNING", "json", False)
    assert served.options is not None
    assert served.options.log_level == "WARNING"


def test_the_agent_file_gives_the_functions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    agent = tmp_path / "clerk.py"
    agent.write_text(
        "async def entrypoint(ctx): ...\ndef prewarm(proc): ...\n"
        "async def request_fnc(request): ...\ndef load_fnc(): return 0.5\n"
    )
    options = Served(monkeypatch).serve(*SERVER, str(agent))
    for name, function in zip(FUNCTIONS, ("entrypoint", "request_fnc", "prewarm", "load_fnc"), strict=True):
        assert str(getattr(options, name)) == f"{agent}:{function}"


# --- development --------------------------------------------------------------------------------------


def test_development_changes_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(monkeypatch)
    production, development = (served.serve(*SERVER, *flags).resolved(cores=2) for flags in ((), ("--dev",)))
    assert (production.load_threshold, development.load_threshold) == (0.7, math.inf)
    assert (production.num_idle_processes, development.num_idle_processes) == (2, 0)
    assert (production.port, development.port) == (8081, 0)
    assert (production.log_level, development.log_level) == ("INFO", "DEBUG")
    assert served.logging == ("DEBUG", "auto", True)
    assert served.serve(*SERVER).resolved(cores=64).num_idle_processes == 4
    assert served.logging == ("INFO", "auto", False)


def test_what_is_given_counts_in_development_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--load-threshold", "0.5", "--num-idle-processes", "3", "--port", "8082", "--log-level", "ERROR")
    served = Served(monkeypatch)
    options = served.serve(*SERVER, "--dev", *given, "--log-format", "json").resolved(cores=2)
    assert (options.load_threshold, options.num_idle_processes, options.port) == (0.5, 3, 8082)
    assert served.logging == ("ERROR", "json", True)


# --- a program of its own -----------------------------------------------------------------------------


def test_a_program_serves_with_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("roomful.toml").write_text("[worker]\nmax_jobs = 9\n[inference]\nmax_rooms = 3\n")
    monkeypatch.setenv("LIVEKIT_API_SECRET", "of the environment")
    served = Served(monkeypatch)
    given = dataclasses.replace(OPTIONS, ws_url="ws://127.0.0.1:1", api_key="k", max_jobs=2, port=0)
    run_worker(given)
    assert served.options == dataclasses.replace(given, log_level="INFO")
    assert served.config is not None
    assert served.config.inference.max_rooms == 3
    assert served.config.worker.api_secret == "of the environment"


@pytest.mark.parametrize("by_environment", [True, False])
def test_a_program_in_development(monkeypatch: pytest.MonkeyPatch, by_environment: bool) -> None:
    if by_environment:
        monkeypatch.setenv("LIVEKIT_DEV_MODE", "1")
    served = Served(monkeypatch)
    run_worker(
        dataclasses.replace(OPTIONS, ws_url="ws://127.0.0.1:1", api_key="k", api_secret="s", dev=not by_environment)
    )
    assert served.options is not None
    assert served.options.dev
    assert served.logging == ("DEBUG", "auto", True)


def test_a_program_without_a_server_ends_with_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("host.flags.configure_logging", lambda *_, **__: None)
    with pytest.raises(SystemExit) as ended:
        run_worker(OPTIONS)
    assert ended.value.code == ConfigError.exit_code
    assert "LIVEKIT_URL" in capsys.readouterr().err


# --- wrong values -------------------------------------------------------------------------------------

WRONG = [
    ("worker", "worker_type", '"rooms"', "worker.worker_type = 'rooms': allowed are room, publisher, participant"),
    ("worker", "job_executor_type", '"fork"', "worker.job_executor_type = 'fork': allowed are process, thread"),
    ("worker", "load_threshold", "0", "worker.load_threshold = 0: expected `float` > 0.0"),
    ("worker", "load_threshold", "nan", "worker.load_threshold = nan: expected `float` > 0.0"),
    ("worker", "max_jobs", "0", "worker.max_jobs = 0: expected `int` >= 1"),
    ("worker", "max_retry", "-1", "worker.max_retry = -1: expected `int` >= 0"),
    ("worker", "num_idle_processes", "257", "worker.num_idle_processes = 257: expected `int` <= 256"),
    ("worker", "job_memory_limit_mb", "-5", "worker.job_memory_limit_mb = -5: expected `float` >= 0.0"),
    ("worker", "ping_interval", "0", "worker.ping_interval = 0: expected `float` > 0.0"),
    ("worker", "port", "65536", "worker.port = 65536: expected `int` <= 65535"),
    ("worker", "dev", '"yes"', "worker.dev = 'yes': expected `bool`, got `str`"),
    ("worker", "executor", '"thread"', "worker: object contains unknown field `executor`"),
    (
        "worker.permissions", "can_publish_sources", '["CAMERA", "EAR"]',
        "worker.permissions.can_publish_sources[1] = 'EAR': allowed are CAMERA, MICROPHONE, SCREEN_SHARE,"
        " SCREEN_SHARE_AUDIO",
    ),
    ("worker.permissions", "can_fly", "true", "worker.permissions: object contains unknown field `can_fly`"),
    ("inference", "resident_rooms", "-1", "inference.resident_rooms = -1: expected `int` >= 0"),
    ("inference", "memory_budget_mb", "-1", "inference.memory_budget_mb = -1: expected `float` >= 0.0"),
    ("", "log_format", '"xml"', "log_format = 'xml': allowed are auto, json, text"),
    ("", "log_level", '"LOUD"', "log_level = 'LOUD': allowed are DEBUG, INFO, WARNING, ERROR"),
    ("", "num_cpus", "-1", "num_cpus = -1: expected `float` >= 0.0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "key", "value", "says"), WRONG, ids=[f"{key}-{value}" for _, key, value, _ in WRONG]
)
def test_a_wrong_value_in_the_file(tmp_path: Path, section: str, key: str, value: str, says: str) -> None:
    file = written(tmp_path, f"{f'[{section}]' if section else ''}\n{key} = {value}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    assert str(refused.value) == f"{file}: {says}"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("LIVEKIT_DEV_MODE", "on", "environment variable LIVEKIT_DEV_MODE = 'on': allowed is 1, 0, true or false"),
        ("NUM_CPUS", "two", "environment variable NUM_CPUS = 'two': allowed is a number"),
        ("NUM_CPUS", "-2", "environment variable NUM_CPUS: num_cpus = -2.0: expected `float` >= 0.0"),
        (
            "LIVEKIT_LOG_LEVEL", "loud",
            "environment variable LIVEKIT_LOG_LEVEL: log_level = 'LOUD': allowed are DEBUG, INFO, WARNING, ERROR",
        ),
    ],
)  # fmt: skip
def test_a_wrong_environment_variable(monkeypatch: pytest.MonkeyPatch, name: str, text: str, says: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError) as refused:
        load_config()
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--worker-type", "x"), "--worker-type: worker.worker_type = 'x': allowed are room, publisher, participant"),
        (("--port", "70000"), "--port: worker.port = 70000: expected `int` <= 65535"),
        (("--max-rooms", "-1"), "--max-rooms: inference.max_rooms = -1: expected `int` >= 0"),
        (("--log-format", "x"), "--log-format: log_format = 'x': allowed are auto, json, text"),
    ],
)
def test_a_wrong_flag(arguments: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(cli.app, ["serve", *SERVER, *arguments])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == says


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"worker_type": "x"}, "WorkerOptions: worker.worker_type = 'x': allowed are room, publisher, participant"),
        ({"port": -1}, "WorkerOptions: worker.port = -1: expected `int` >= 0"),
        ({"ping_timeout": 2.5}, "WorkerOptions: worker.ping_timeout = 2.5: allowed is more than worker.ping_interval,"
                                " which is 2.5"),
        ({"log_level": "LOUD"}, "WorkerOptions: log_level = 'LOUD': allowed are DEBUG, INFO, WARNING, ERROR"),
        ({"session": SessionSettings(speed=9)}, "WorkerOptions: session.speed = 9: allowed is 0.25 to 4"),
        ({"permissions": WorkerPermissions(can_publish_sources=("EAR",))},
         "WorkerOptions: worker.permissions.can_publish_sources[0] = 'EAR': allowed are CAMERA, MICROPHONE,"
         " SCREEN_SHARE, SCREEN_SHARE_AUDIO"),
    ],
)  # fmt: skip
def test_options_of_a_program_obey_the_same_rules(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_options(dataclasses.replace(OPTIONS, **changed))
    assert str(refused.value) == says


def test_options_that_are_right_pass() -> None:
    check_options(OPTIONS)
    check_options(OPTIONS.resolved(cores=2))
    check_options(dataclasses.replace(OPTIONS, dev=True).resolved(cores=2))
    full = msgspec.convert({"worker": {**VALUES, "permissions": PERMISSIONS}}, Config)
    check_options(options_of(full))
