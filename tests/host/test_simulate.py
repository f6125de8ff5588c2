"""``host simulate`` as a user runs it: one job in a local room, on real processes with made-up engines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

HOST = str(Path(sys.executable).parent / "host")
WAVE = Path(__file__).parents[1] / "data" / "speech" / "set-a-timer.wav"
TIMEOUT_S = 120
CONFIG = """
[inference]
engines = "fake"
max_rooms = 1
"""
# What a job prints comes out on stderr: stdout is the command's own.
AGENTS = {
    "says.py": """
async def entrypoint(ctx):
    await ctx.connect()
    print("room", ctx.room.name, "for", await ctx.wait_for_participant(), flush=True)
""",
    "raises.py": """
async def entrypoint(ctx):
    await ctx.connect()
    raise RuntimeError("no kitchen today" + ", nor tomorrow" * 10)
""",
    "waits.py": """
import asyncio

async def entrypoint(ctx):
    async def note(reason):
        print("callback:", reason, flush=True)

    ctx.add_shutdown_callback(note)
    await ctx.connect()
    print("waiting", flush=True)
    await asyncio.Event().wait()
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "roomful.toml").write_text(CONFIG)
    (tmp_path / "tmp").mkdir()
    for name, source in AGENTS.items():
        (tmp_path / name).write_text(source)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LIVEKIT_", "ROOMFUL_"))}
    return {**kept, "TMPDIR": str(folder / "tmp")}


def simulate(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [HOST, "simulate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=folder,
        env=environment(folder),
    )
    # A traceback of the agent's own is in the log, with the job; anything foreseen is one message.
    assert "Traceback" not in done.stderr.partition("\nerror:")[2], done.stderr
    assert list((folder / "tmp").glob("*roomful-*")) == []
    return done


def statuses(text: str) -> list[str]:
    return re.findall(r"^(running|success|failed)\b", text, re.MULTILINE)


def test_the_built_in_agent_answers_a_wave(folder: Path) -> None:
    done = simulate(folder, "--wave", WAVE)
    assert done.returncode == 0, done.stderr
    assert statuses(done.stdout) == ["running", "success"]
    assert re.search(r"^turn 1 heard: \S", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^turn 1 answered after \d+ ms: \S", done.stdout, re.MULTILINE), done.stdout
    # Models take their time, and somebody waits.
    assert "warming up" in done.stderr


def test_room_and_participant_are_the_jobs(folder: Path) -> None:
    done = simulate(folder, "says.py", "--room", "kitchen", "--participant-identity", "cook")
    assert done.returncode == 0, done.stderr
    assert "room kitchen for cook" in done.stderr
    assert statuses(done.stdout) == ["running", "success"]


def test_a_job_that_fails_is_told_with_its_error(folder: Path) -> None:
    done = simulate(folder, "raises.py")
    assert done.returncode == 9, done.stderr
    assert statuses(done.stdout) == ["running", "failed"]
    # On one line, however long.
    assert f"failed RuntimeError: no kitchen today{', nor tomorrow' * 10}\n" in done.stdout
    assert "no kitchen today" in done.stderr


def test_a_duration_ends_the_job_in_order(folder: Path) -> None:
    done = simulate(folder, "waits.py", "--duration", "0.5")
    assert done.returncode == 0, done.stderr
    assert "callback:" in done.stderr
    assert statuses(done.stdout) == ["running", "success"]


def test_an_interrupt_ends_the_job_and_its_processes(folder: Path) -> None:
    process = subprocess.Popen(
        [HOST, "simulate", "waits.py"], stderr=subprocess.PIPE, text=True, cwd=folder, env=environment(folder)
    )
    with process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith("waiting") for line in lines)
        process.send_signal(signal.SIGINT)
        # To the end: no process of the host holds the pipe any more.
        rest = process.stderr.read()
        assert process.wait(TIMEOUT_S) == 130
    assert "callback:" in rest
    assert list((folder / "tmp").glob("*roomful-*")) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nobody.py",), "nobody.py"),
        (("--wave", "nobody.wav"), "nobody.wav"),
        (("--url", "ws://127.0.0.1:1", "--wave", "x.wav"), "--wave is for a local room"),
        (("--url", "ws://127.0.0.1:1"), "LIVEKIT_API_KEY and LIVEKIT_API_SECRET"),
    ],
)
def test_what_cannot_be_simulated_is_said_before_anything_starts(
    folder: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = simulate(folder, *arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert done.stdout == ""
