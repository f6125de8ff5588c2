"""A supervisor that is killed leaves no process behind, not even one that cannot run its event loop."""

import asyncio
import contextlib
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


@pytest.mark.parametrize("fork_server", ["alive", "killed before", "stopped before"])
async def test_every_child_is_gone_two_seconds_after_its_supervisor_was_killed(run_dir, fork_server):
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
        (server,) = fork_servers(host.pid)
        if fork_server == "stopped before":
            server.send_signal(signal.SIGSTOP)
        elif fork_server == "killed before":
            server.send_signal(signal.SIGKILL)
            # Its jobs go on without it, and another is started.
            await eventually(lambda: fork_servers(host.pid) not in ([], [server]))
            assert sum(is_running(child) for child in children) == 4
            children += fork_servers(host.pid)
    finally:
        os.kill(host.pid, signal.SIGKILL)
        await host.wait()
    await eventually(lambda: not any(is_running(child) for child in children), deadline_s=2.0)


def fork_servers(pid: int) -> list[psutil.Process]:
    """Those that live, of the host ``pid``."""
    found = []
    for child in psutil.Process(pid).children():
        # One that has ended, or is not the fork server yet, has no such command line.
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "host.forkserver" in child.cmdline():
                found.append(child)
    return found


def is_running(process: psutil.Process) -> bool:
    """Whether it still runs; one that only waits for an init process to read its exit code does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
