"""Cross-talk that was made on purpose fails the whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

AGENT = """
from host.job.agent import VoiceAgent

async def entrypoint(ctx):
    # Every room's agent says the name of the first one.
    session = await ctx.start_session(VoiceAgent("Be kind.", greeting="Hello, this is Amber Badger."))
    await session.wait_closed()
"""
COMMAND = """
from host.cli import main
from host.loadtest import load_test

load_test.ENTRYPOINT = "agent.py:entrypoint"
main()
"""


def test_a_name_in_the_wrong_room_is_found(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "roomful.toml").write_text('[inference]\nengines = "fake"\n')
    command = COMMAND.replace("agent.py", str(tmp_path / "agent.py"))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LIVEKIT_", "ROOMFUL_"))}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            command,
            "loadtest",
            "--rooms",
            "2,3",
            "--duration",
            "5",
            "--cycle-s",
            "4",
            "--out",
            "out",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=kept,
    )
    assert done.returncode == 9, done.stderr
    assert "cross-talk: in loadtest-" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (curve,) = report["curves"]
    # It ends there: what follows would be worth nothing.
    (point,) = curve["points"]
    assert (point["rooms"], point["holds"], point["why_not"]) == (2, False, "cross-talk")
    (talk, *_) = point["cross_talk"]
    assert talk["room"].endswith("azure-beaver")
    assert talk["other"].endswith("amber-badger")
    assert talk["how"] == "name"
    assert "Cross-talk: this run has failed" in (tmp_path / "out" / "report.html").read_text()
