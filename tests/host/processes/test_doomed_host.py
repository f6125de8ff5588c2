"""A supervisor that is killed leaves no process behind, not even one that cannot run its event loop."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.host.processes.conftest import DEADLINE_S, eventually

pytestmark = pytest.mark.processes

AGENT = """
import asyncio, time
async def entrypoint(ctx):
    if ctx.job.id == "stuck":
        time.sleep(1000)
    await asyncio.Event().wait()
"""


async def test_every_child_is_gone_two_seconds_after_its_supervisor_was_killed(run_dir):
    agent_file = run_dir / "agent.py"
    agent_file.write_text(AGENT)
    host = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.host.processes.doomed_host",
        str(run_dir / "inference.sock"),
        str(agent_file),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert host.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert await host.stdout.readline() == b"up\n"
        children = psutil.Process(host.pid).children(recursive=True)
        names = sorted(child.name() for child in children)
        assert names[:3] == ["job-1", "job-2", "job-3"]
        assert len(children) == 5
    finally:
        os.kill(host.pid, signal.SIGKILL)
        await host.wait()
    await eventually(lambda: not any(is_running(child) for child in children), deadline_s=2.0)


def is_running(process: psutil.Process) -> bool:
    """Whether it still runs; one that only waits for an init process to read its exit code does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
