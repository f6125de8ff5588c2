"""From configuration and options to what the supervisor is told; nothing is started."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from host.config import Config
from host.errors import ConfigError, ModelsError
from host.options import BUILT_IN_AGENT, JobExecutorType, WorkerOptions
from host.prepare import agent_functions, prepared
from host.supervisor_options import SupervisorOptions

OPTIONS = WorkerOptions(entrypoint_fnc=BUILT_IN_AGENT, num_idle_processes=1).resolved(cores=2)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def config(**sections: Any) -> Config:
    tree = {"inference": {"engines": "fake"}} | sections
    tree["inference"] = {"engines": "fake"} | tree["inference"]
    return msgspec.convert(tree, Config)


def told(configuration: Config | None = None, **changed: Any) -> SupervisorOptions:
    with prepared(configuration or config(), dataclasses.replace(OPTIONS, **changed)) as options:
        return options


def differences(one: SupervisorOptions, other: SupervisorOptions) -> dict[str, Any]:
    """What ``other`` has that ``one`` has not, besides what is drawn anew each time."""
    return {
        field.name: getattr(other, field.name)
        for field in dataclasses.fields(SupervisorOptions)
        if field.name not in ("inference", "runtime_dir") and getattr(one, field.name) != getattr(other, field.name)
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("job_executor_type", JobExecutorType.THREAD),
        ("num_idle_processes", 3),
        ("initialize_process_timeout", 1.5),
        ("shutdown_process_timeout", 2.5),
        ("ping_interval", 0.5),
        ("ping_timeout", 5.0),
        ("high_ping_threshold", 0.125),
        ("job_memory_warn_mb", 11.0),
        ("job_memory_limit_mb", 12.0),
        ("log_level", "ERROR"),
    ],
)
def test_an_option_arrives_and_changes_nothing_else(option: str, value: Any) -> None:
    assert differences(told(), told(**{option: value})) == {option: value}


def test_functions_arrive_by_name() -> None:
    options = told(entrypoint_fnc="agent.py:entrypoint", prewarm_fnc=told)
    assert options.entrypoint == "agent.py:entrypoint"
    assert options.prewarm == f"{__name__}:told"
    assert told().prewarm == ""
    assert str(Path(__file__).parents[2]) in options.import_path, "or a job could not import this module"


def test_a_function_without_a_name_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^WorkerOptions: prewarm_fnc: .*<lambda>.* a function of a module is needed"
    ):
        told(prewarm_fnc=lambda _: None)


def test_the_inference_process_is_told_what_is_configured() -> None:
    wanted = {
        "device": "cpu",
        "threads": 3,
        "llm_threads": 2,
        "max_rooms": 7,
        "context_tokens": 512,
        "resident_rooms": 5,
    }
    settings = told(config(inference=wanted), log_level="WARNING").inference
    assert {key: getattr(settings, key) for key in wanted} == wanted
    assert (settings.log_level, settings.engines) == ("WARNING", "fake")
    assert told(config(inference={"initialize_timeout": 9.0})).inference_initialize_timeout == 9.0


@pytest.mark.parametrize(("num_cpus", "threads", "llm_threads"), [(0.5, 1, 1), (1, 1, 1), (2.5, 3, 2), (16, 12, 12)])
def test_threads_are_chosen_by_the_cpus(num_cpus: float, threads: int, llm_threads: int) -> None:
    settings = told(config(num_cpus=num_cpus)).inference
    assert (settings.threads, settings.llm_threads) == (threads, llm_threads)


def test_the_socket_and_the_stacks_are_in_a_folder_that_is_gone_afterwards(temporary: Path) -> None:
    with prepared(config(), OPTIONS) as options:
        folder = Path(options.runtime_dir)
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        assert Path(options.inference.socket_path).parent == folder
        assert len(options.inference.socket_path) < 100, "a unix socket's name has 107 bytes"
    assert not folder.exists()


def test_a_temporary_folder_whose_path_is_too_long_for_a_socket_is_named(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temporary / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ConfigError, match=r"x/roomful-.*inference\.sock: .*TMPDIR"):
        told()
    assert not list(long.iterdir())


def test_every_host_draws_a_token_of_its_own() -> None:
    one, other = told().inference.token, told().inference.token
    assert one != other
    assert len(one) >= 32


def test_nothing_is_left_of_what_could_not_be_prepared(temporary: Path) -> None:
    with pytest.raises(ConfigError, match=r"worker\.max_jobs = 0"):
        told(max_jobs=0)
    with pytest.raises(ConfigError, match=r"^inference\.resident_rooms = 5: more than inference\.max_rooms = 4$"):
        told(config(inference={"resident_rooms": 5}))
    with pytest.raises(ConfigError, match="'gpu-9000'"):
        told(config(models={"profile": "gpu-9000"}))
    missing = msgspec.convert({"models": {"dir": str(temporary / "none")}}, Config)
    with pytest.raises(ModelsError, match="host models download cpu-small"):
        told(missing)
    assert [path for path in temporary.iterdir() if path.name != "none"] == []


def test_without_an_agent_file_the_built_in_agent_serves(temporary: Path) -> None:
    assert agent_functions(None).entrypoint == BUILT_IN_AGENT
    with pytest.raises(ConfigError, match=r"nobody\.py"):
        agent_functions(temporary / "nobody.py")
