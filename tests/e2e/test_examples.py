"""The examples, run as the README prints them: its commands, in a folder where they lie where it says.

What they say is tested where the models are (the commands as printed, and ``test_tools_by_voice``); that they run, take
calls and give them back needs no models.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from caller import Caller, read_wave, until
from dispatching import caller_in
from host_process import environment, host_serve
from livekit_server import LiveKitServer
from records import endings

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
QUESTION = ROOT / "tests" / "data" / "speech" / "whats-the-date-today.wav"
BIN = Path(sys.executable).parent
TIMEOUT_S = 240
FAKES = '[inference]\nengines = "fake"\n[worker]\nload_threshold = 100.0\n'

pytestmark = pytest.mark.e2e


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a reader's: the examples, and a question."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copy(QUESTION, tmp_path / "question.wav")
    return tmp_path


def printed_commands(word: str) -> list[list[str]]:
    """What the README has its reader type about the examples, with ``word`` in it."""
    typed = re.findall(r"^\$ (.*examples/.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in typed if word in line]


def run(command: list[str], folder: Path, config: str) -> subprocess.CompletedProcess[str]:
    (folder / "roomful.toml").write_text(config)
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_takes_a_call(example: str, folder: Path) -> None:
    done = run(["host", "simulate", f"examples/{example}", "--wave", "question.wav", "--local"], folder, FAKES)
    assert "running" in done.stdout
    assert "success" in done.stdout
    # The fakes hear how long somebody spoke.
    assert re.search(r"heard \d+ ms", done.stdout), done.stdout
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.models
def test_the_commands_without_a_server_as_printed(folder: Path) -> None:
    commands = printed_commands("host talk")
    assert commands
    for command in commands:
        done = run(command, folder, "[session]\nmax_reply_tokens = 30\n")
        assert "date" in done.stdout
        assert "answered" in done.stdout
        answer = folder / command[command.index("--out") + 1]
        assert answer.stat().st_size > 22_050
        answer.unlink()


async def test_the_receptionist_is_served_as_printed(livekit: LiveKitServer, tmp_path: Path, room_name: str) -> None:
    (command,) = printed_commands("host serve")
    assert command == ["host", "serve", "examples/receptionist.py"]
    with host_serve(livekit, tmp_path, str(ROOT / command[2]), config=FAKES) as host:
        host.wait_registered(120)
        async with caller_in(livekit, room_name) as caller:
            greeting = "Hotel Miramar, good day. How can I help you?"
            assert await _said(caller, 1) == [greeting]
            await caller.wait_for_silence()
            await caller.say(read_wave(QUESTION))
            said = await _said(caller, 2)
            (heard,) = caller.texts("caller")
            assert said[1] == f"You said: {heard}"
            await caller.hang_up()
        await until(lambda: bool(endings(livekit, room_name)), 20, "the job's end")
        assert endings(livekit, room_name) == [("JS_SUCCESS", "")]


async def test_the_front_desk_is_a_program_as_printed(livekit: LiveKitServer, folder: Path) -> None:
    assert "`python examples/front_desk.py`" in " ".join((ROOT / "README.md").read_text().split())
    with _program(["python", "examples/front_desk.py"], livekit, folder) as (program, log):
        await until(lambda: "registered with LiveKit" in log.read_text(), 120, "the registration")
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(caller_in(livekit, "hotel-splendid-1"))
            caller = await _first_taken(livekit, stack)
            assert await _said(caller, 1) == ["Front desk, good day."]
            (agent,) = caller.agents()
            assert agent.name == "Front desk"
            # It was asked about the other room before.
            assert other.agents() == []
        program.send_signal(signal.SIGTERM)
        await until(lambda: program.poll() is not None, 60, "the program's end")
        assert program.returncode == 0, log.read_text()


async def _said(caller: Caller, count: int) -> list[str]:
    """What the agent has said, as soon as that is so much."""
    await caller.wait(lambda: bool(caller.agents()), 60, "the agent")
    (agent,) = caller.agents()
    await caller.wait(lambda: len(caller.texts(agent.identity)) >= count, 60, f"{count} transcripts of the agent")
    return caller.texts(agent.identity)


async def _first_taken(livekit: LiveKitServer, stack: AsyncExitStack) -> Caller:
    """A caller in a room of the hotel that was taken: a host that is busy at that moment takes none, as it should."""
    for number in range(1, 6):
        caller = await stack.enter_async_context(caller_in(livekit, f"hotel-miramar-{number}"))
        try:
            await caller.wait(lambda caller=caller: bool(caller.agents()), 15, "the agent")  # type: ignore[misc]
        except AssertionError:
            continue
        return caller
    raise AssertionError("none of five calls was taken")


@contextmanager
def _program(
    command: list[str], livekit: LiveKitServer, folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    _wait_for_the_port(8081)
    (folder / "roomful.toml").write_text(FAKES)
    log = folder / "program.log"
    with log.open("wb") as out:
        program = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment(folder, livekit.url), "PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield program, log
    finally:
        if program.poll() is None:
            program.terminate()
            program.terminate()
            try:
                program.wait(20)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


def _wait_for_the_port(port: int) -> None:
    """The port of health and metrics, where the program says nothing else; another host may have it for now."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("", port))
            except OSError:
                assert time.monotonic() < deadline, f"port {port} is taken"
            else:
                return
        time.sleep(0.2)
