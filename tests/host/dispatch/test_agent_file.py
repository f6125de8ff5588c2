from __future__ import annotations

from pathlib import Path

import pytest

from host.agent_file import AgentFunctions, read_agent_file
from host.errors import ConfigError
from host.options import BUILT_IN_AGENT


def agent(folder: Path, text: str) -> Path:
    path = folder / "agent.py"
    path.write_text(text)
    return path


def test_without_a_file_there_is_the_built_in_agent() -> None:
    assert AgentFunctions() == AgentFunctions(BUILT_IN_AGENT, "", "", "")


def test_functions_are_found_and_nothing_is_run(tmp_path: Path) -> None:
    path = agent(
        tmp_path,
        "raise SystemExit('it was imported')\n"
        "async def entrypoint(ctx): ...\n"
        "def prewarm(proc): ...\n"
        "async def request_fnc(request): ...\n"
        "def load_fnc(worker): ...\n",
    )
    found = read_agent_file(path)
    assert found == AgentFunctions(*(f"{path}:{n}" for n in ("entrypoint", "prewarm", "request_fnc", "load_fnc")))


def test_what_is_not_there_is_empty_and_the_path_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent(tmp_path, "async def entrypoint(ctx): ...\n")
    monkeypatch.chdir(tmp_path)
    assert read_agent_file(Path("agent.py")) == AgentFunctions(f"{tmp_path}/agent.py:entrypoint", "", "", "")


@pytest.mark.parametrize(
    "text",
    [
        "from elsewhere import entrypoint",
        "from elsewhere import run as entrypoint",
        "entrypoint = make()",
        "entrypoint: object = make()",
        "if True:\n    async def entrypoint(ctx): ...",
        "try:\n    import fast\nexcept ImportError:\n    from slow import entrypoint",
        "with quiet():\n    async def entrypoint(ctx): ...",
    ],
)
def test_a_module_may_get_its_entrypoint_in_any_way(tmp_path: Path, text: str) -> None:
    path = agent(tmp_path, text)
    assert read_agent_file(path).entrypoint == f"{path}:entrypoint"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nasync def entry(ctx: ...", "line 2"),
        ("def helper(): ...", "must define `async def entrypoint"),
        ("class Agent:\n    async def entrypoint(self): ...", "must define `async def entrypoint"),
        ("entrypoint: object", "must define `async def entrypoint"),
        ("\ndef entrypoint(ctx): ...", "line 2: `entrypoint` must be an `async def`"),
        ("async def entrypoint(ctx): ...\ndef request_fnc(r): ...", "line 2: `request_fnc` must be an `async def`"),
        ("\0", "agent.py"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"agent\.py") as caught:
        read_agent_file(agent(tmp_path, text))
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.py: No such file"):
        read_agent_file(tmp_path / "nowhere.py")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_agent_file(tmp_path)
