"""docs/agents.md, compared with the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import host
from host import testing
from host.job.agent import VoiceAgent
from host.job.events import EVENTS
from host.job.session import VoiceSession
from host.job.speech_handle import SpeechHandle
from host.testing import Call, ScriptedModel

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "agents.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def first_cells(text: str) -> list[str]:
    rows = re.findall(r"^\|([^|]*(?:`[^`]*`[^|]*)*)\|", text, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_the_example_is_an_agent_file() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module: dict[str, object] = {}
    exec(compile(code, "agents.md", "exec"), module)
    agent = module["FrontDesk"]()  # type: ignore[operator]
    assert isinstance(agent, VoiceAgent)
    assert [tool.name for tool in agent.tools] == ["to_restaurant"]
    assert inspect.iscoroutinefunction(module["entrypoint"])


def test_what_an_agent_and_a_session_have() -> None:
    for title, owner in (("VoiceAgent", VoiceAgent), ("VoiceSession", VoiceSession)):
        text = section(title).split("| of `SpeechHandle`")[0]
        settings = inspect.signature(owner.__init__).parameters
        for span in first_cells(text):
            name = re.match(r"\w+", span)
            assert name, span
            if name[0] not in ("voice", "language", "allow_interruptions", "turn_detection"):
                assert hasattr(owner, name[0]) or name[0] in settings, span
            method = getattr(owner, name[0], None)
            if "(" in span and inspect.isfunction(method):
                given = re.findall(r"(\w+)(?:=[^,)]*)?", span.split("(", 1)[1].split(")")[0])
                known = inspect.signature(method).parameters
                assert all(argument in known or argument in ("text", "ctx", "tools", "agent") for argument in given), (
                    span
                )
    for span in first_cells(section("VoiceSession").split("| of `SpeechHandle` | |")[1]):
        name = span.removeprefix("await ").split("(")[0]
        assert name == "handle" or hasattr(SpeechHandle, name), span


def test_what_an_agent_is_made_with() -> None:
    given = re.search(r"`VoiceAgent\(([^`]*)\)`", TEXT)
    assert given
    named = [name.strip() for name in given[1].replace("*,", "").split(",")]
    assert named == list(inspect.signature(VoiceAgent).parameters)


def test_events() -> None:
    assert set(first_cells(section("Events"))) == set(EVENTS)
    for row in section("Events").splitlines():
        if row.startswith("| `"):
            names, fields = row.strip("| ").split(" | ")
            for name in re.findall(r"`(\w+)`", names):
                for field in re.findall(r"^`(\w+)|, `(\w+)", fields.split(":")[0]):
                    assert hasattr(EVENTS[name], next(filter(None, field))), (name, field)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (DOCS / link).exists(), link


def test_all_that_is_public_is_there() -> None:
    for name in host.__all__:
        assert getattr(host, name).__name__ == name


async def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module: dict[str, Any] = {}
    exec(compile(code, "agents.md", "exec"), module)
    script = ScriptedModel("Good day.", "Three are free.", Call("to_restaurant"))
    async with testing.session(module["FrontDesk"](), model=script, userdata={"free": 3}) as session:
        assert session.opening.reply == "Good day."
        result = await session.run(user_input="Is there a room?")
        assert result.reply == "Three are free."
        result = await session.run(user_input="The restaurant, please.")
        assert result.reply == "The restaurant, good day."
        assert session.current_agent.instructions == "You answer for the restaurant."
