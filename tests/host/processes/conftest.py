"""The real process tree: a supervisor in the test, the real inference process with fake engines, real jobs."""

import asyncio
import os
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import psutil
import pytest

from host.observer import KillReason, Observer, ProcessKind
from host.supervisor import SupervisorOptions
from inference.wire import supervision as s

DEADLINE_S = 20.0
"""For what should take milliseconds: the cores are shared."""

NOTHING = "async def entrypoint(ctx): pass"

FOREVER = """
    import asyncio
    import host.job.context
    # It never returns by itself; a test need not wait as long as a user's entrypoint is waited for.
    host.job.context.ENTRYPOINT_GRACE_S = 0.05
    async def entrypoint(ctx):
        await asyncio.Event().wait()
"""


async def eventually(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Return when ``condition()`` is true; fail after the deadline."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.01)


def job_processes() -> set[int]:
    """Pids of the job processes below this process, as the system sees them."""
    pids = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("job-") and process.status() != psutil.STATUS_ZOMBIE:
                pids.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return pids


_others: set[int] = set()


@pytest.fixture(autouse=True)
def _remember_others() -> None:
    """What runs below this process before the test is not the test's: a server that other tests share."""
    _others.clear()
    _others.update(child.pid for child in psutil.Process().children(recursive=True))


def own_children() -> list[psutil.Process]:
    """Processes below this one that were not there when the test began."""
    return [child for child in psutil.Process().children(recursive=True) if child.pid not in _others]


def open_descriptors():
    """This process's descriptors and what they are: a socket and a pipe have a number of their own."""
    found = {}
    for path in list(Path("/proc/self/fd").iterdir()):
        try:
            found[path.name] = str(path.readlink())
        except FileNotFoundError:
            # The listing's own.
            continue
    return found


def descendant(module: str) -> psutil.Process:
    """The child of this process that runs ``module``."""
    (found,) = (process for process in psutil.Process().children() if module in process.cmdline())
    return found


def start(job_id: str) -> s.StartJob:
    """A job in a local room in which nobody calls."""
    return s.StartJob(job_id=job_id, room=f"room of {job_id}", transport="local")


class Updates:
    """An ``on_update`` that remembers."""

    def __init__(self) -> None:
        self.seen: list[s.JobUpdate] = []

    async def __call__(self, update: s.JobUpdate) -> None:
        self.seen.append(update)

    @property
    def statuses(self) -> list[str]:
        return [update.status for update in self.seen]


class Seen(Observer):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.ready: list[tuple[str, float]] = []
        self.failed: list[str] = []
        self.killed: list[tuple[str, str]] = []
        self.killed_at: list[float] = []
        self.pings: list[tuple[str, float]] = []
        self.launched: list[float] = []
        self.ended: list[str] = []
        self.turns: list[s.TurnReport] = []
        self.reports: list[s.InferenceReport] = []

    def process_ready(self, kind: ProcessKind, seconds: float) -> None:
        self.ready.append((kind, seconds))

    def process_failed(self, kind: ProcessKind) -> None:
        self.failed.append(kind)

    def process_killed(self, kind: ProcessKind, why: KillReason) -> None:
        self.killed.append((kind, why))
        self.killed_at.append(time.monotonic())

    def ping(self, kind: ProcessKind, seconds: float) -> None:
        self.pings.append((kind, seconds))

    def job_launched(self, seconds: float) -> None:
        self.launched.append(seconds)

    def job_ended(self, status: Literal["success", "failed"]) -> None:
        self.ended.append(status)

    def turn(self, report: s.TurnReport) -> None:
        self.turns.append(report)

    def inference_report(self, report: s.InferenceReport) -> None:
        self.reports.append(report)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def updates() -> Updates:
    return Updates()


@pytest.fixture
def run_dir():
    # Not tmp_path: a unix socket's path holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="roomful-") as path:
        yield Path(path)


@pytest.fixture
def options(run_dir):
    """Options for an agent file of the given text, with whatever else a test needs to be different."""

    def make(agent: str = NOTHING, **different: object) -> SupervisorOptions:
        agent_file = run_dir / "agent.py"
        agent_file.write_text(textwrap.dedent(agent))
        settings: dict[str, object] = {
            "inference": s.InitializeInference(
                socket_path=str(run_dir / "inference.sock"),
                token="secret",
                device="cpu",
                threads=1,
                max_rooms=4,
                context_tokens=512,
                stt_name="fake",
                stt_path="",
                llm_name="fake",
                llm_path="",
                tts_name="fake",
                tts_path="",
                engines="fake",
            ),
            "inference_environment": dict(os.environ),
            "job_environment": dict(os.environ),
            "entrypoint": f"{agent_file}:entrypoint",
            "prewarm": f"{agent_file}:prewarm" if "def prewarm" in agent else "",
            "runtime_dir": str(run_dir),
            "num_idle_processes": 1,
            "initialize_process_timeout": DEADLINE_S,
            "shutdown_process_timeout": DEADLINE_S,
        }
        return SupervisorOptions(**settings | different)  # type: ignore[arg-type]

    return make
