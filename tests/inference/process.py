"""Starts the real inference process as the supervisor does, for tests of what it serves."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from inference.client import InferenceClient, InferenceRoom
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Role
from inference.wire.stream import MessageStream
from models.catalog import resolve

DEADLINE_S = 60.0


@dataclass
class InferenceProcess:
    """A running inference process; ``settings`` say where it listens."""

    settings: s.InitializeInference
    pid: int
    log: list[s.LogLine] = field(default_factory=list)
    reports: list[s.InferenceReport] = field(default_factory=list)
    reported: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def connect(self, *, token: str | None = None, name: str = "test") -> InferenceClient:
        return await InferenceClient.connect(self.settings.socket_path, token or self.settings.token, name=name)

    async def report(self, accepts: Callable[[s.InferenceReport], bool] = lambda _: True) -> s.InferenceReport:
        """The first report from now on that ``accepts`` takes."""
        async with self.reported:
            since = len(self.reports)
            await self.reported.wait_for(lambda: any(accepts(report) for report in self.reports[since:]))
            return next(report for report in self.reports[since:] if accepts(report))

    @asynccontextmanager
    async def room(self, name: str = "room") -> AsyncIterator[InferenceRoom]:
        async with await self.connect() as client:
            yield await client.open_room(name)


@asynccontextmanager
async def inference_process(
    runtime_dir: Path, *, module: str = "inference.main", **changes: object
) -> AsyncIterator[InferenceProcess]:
    """The process, READY. ``changes`` override its settings (fake engines on the CPU by default).

    With the ``token`` of one that was killed it takes its place, as the supervisor would have it do.
    """
    profile = resolve("cpu-small")
    values: dict[str, object] = {
        "socket_path": str(runtime_dir / "inference.sock"),
        "token": secrets.token_urlsafe(8),
        "device": "cpu",
        "threads": 1,
        "max_rooms": 2,
        "context_tokens": 1024,
        "stt_name": profile.stt.model.name,
        "stt_path": str(profile.stt.path),
        "llm_name": profile.llm.model.name,
        "llm_path": str(profile.llm.path),
        "tts_name": profile.tts.model.name,
        "tts_path": str(profile.tts.path),
        "engines": "fake",
    }
    settings = s.InitializeInference(**(values | changes))  # type: ignore[arg-type]
    Path(settings.socket_path).unlink(missing_ok=True)
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            "--control",
            str(theirs.fileno()),
            "--parent",
            str(os.getpid()),
            pass_fds=(theirs.fileno(),),
            cwd=Path(__file__).parents[2],
        )
    control = MessageStream(ours, Role.CLIENT, SUPERVISION)
    running = InferenceProcess(settings, process.pid)
    try:
        control.send(settings)
        async with asyncio.timeout(DEADLINE_S):
            await _until_ready(control, running)
        reader = asyncio.create_task(_collect_log(control, running))
        yield running
        control.send(s.Shutdown("the test is over"))
        async with asyncio.timeout(DEADLINE_S):
            await reader
    finally:
        control.close()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            raise


class NotReadyError(Exception):
    """The process said why it cannot serve."""

    def __init__(self, message: s.InitializeFailed) -> None:
        super().__init__(message.reason)
        self.exit_code = message.exit_code


async def _until_ready(control: MessageStream, running: InferenceProcess) -> None:
    async for received in control:
        match received.message:
            case s.Ready():
                return
            case s.InitializeFailed() as failed:
                raise NotReadyError(failed)
            case s.LogLine() as line:
                running.log.append(line)
    raise AssertionError("the inference process ended before it was ready")


async def _collect_log(control: MessageStream, running: InferenceProcess) -> None:
    async for received in control:
        match received.message:
            case s.LogLine() as line:
                running.log.append(line)
            case s.InferenceReport() as report:
                async with running.reported:
                    running.reports.append(report)
                    running.reported.notify_all()
