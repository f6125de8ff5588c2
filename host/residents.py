"""The processes that are always there: inference and the fork server. Each is started again when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from host import errors
from host.child import EXIT_GRACE_S, Child, InitializationError, Watch
from host.errors import HostError
from host.forkserver_process import ForkServerProcess
from host.lifecycle import Backoff
from host.process import Process, ProcessInfo, SpawnError, execute
from inference.wire import supervision as s
from inference.wire.tlv import Message

logger = logging.getLogger(__name__)

_MAX_FAILED_STARTS = 5
"""Ends in a row before the host gives up: what fails five times needs a person."""
_HEALTHY_AFTER_S = 60.0
"""How long a process must have served before its end counts as the first of a row again."""


@dataclass(frozen=True, slots=True)
class End:
    """How a resident process ended, and for how long it had served."""

    error: HostError
    served_s: float


class Resident(ABC):
    """A process that is always there. ``keep`` must be running for anything to happen.

    ``on_failed`` is told why it cannot be kept: it ended while the host was coming up, or it ends again and
    again. While ``spared()`` the second is no reason to give up.
    """

    def __init__(self, on_failed: Callable[[HostError], None], *, spared: Callable[[], bool] = lambda: False) -> None:
        self.restarts = 0
        """How often it was started again."""
        self._on_failed = on_failed
        self._spared = spared
        self._stopping = asyncio.Event()
        self._host_is_up = False

    def host_is_up(self) -> None:
        """The host serves: from here on the process is started again. What fails before is not tried again blindly."""
        self._host_is_up = True

    async def keep(self) -> None:
        """Run it again whenever it ends, with back-off, until ``stop`` or giving up."""
        backoff = Backoff()
        while not self._stopping.is_set():
            end = await self._serve()
            if self._stopping.is_set():
                return
            now = time.monotonic()
            if end.served_s >= _HEALTHY_AFTER_S:
                backoff = backoff.after_success()
            backoff = backoff.after_failure(now)
            if not self._host_is_up:
                self._on_failed(end.error)
                return
            if backoff.failures >= _MAX_FAILED_STARTS and not self._spared():
                self._on_failed(type(end.error)(f"{end.error} ({backoff.failures} times in a row)"))
                return
            logger.error("%s; it is started again in %.1f s", end.error, backoff.wait_s(now))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.wait_s(now)):
                    await self._stopping.wait()
            self.restarts += 1

    def stop(self) -> None:
        """Have it end in order, and ``keep`` return then."""
        self._stopping.set()
        self._stop()

    @abstractmethod
    async def _serve(self) -> End:
        """Run one process to its end."""

    @abstractmethod
    def _stop(self) -> None:
        """Tell the process to end, if there is one."""


class Inference(Resident):
    """The inference process."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        initialize: s.InitializeInference,
        initialize_timeout_s: float,
        *,
        watch: Watch,
        on_progress: Callable[[str], None],
        on_failed: Callable[[HostError], None],
    ) -> None:
        super().__init__(on_failed)
        self.ready = asyncio.Event()
        """Set while it is up and warm."""
        self.report: s.InferenceReport | None = None
        """What it said last; None while it is away."""
        self.child: Child | None = None
        self._command = command
        self._environment = environment
        self._initialize = initialize
        self._initialize_timeout_s = initialize_timeout_s
        self._watch = watch
        self._on_progress = on_progress

    async def _serve(self) -> End:
        socket_path = Path(self._initialize.socket_path)
        # One that was killed has left its socket behind.
        socket_path.unlink(missing_ok=True)
        try:
            process, control = execute(self._command, self._environment)
        except HostError as exc:
            return End(exc, 0.0)
        child = self.child = Child("inference", "inference", process, control, watch=self._watch, receive=self._receive)
        error: HostError | None = None
        ready_at = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(child.run(), name="inference-run")
                try:
                    initialize = dataclasses.replace(self._initialize, stacks_file=child.stacks_file)
                    await child.initialize(initialize, self._initialize_timeout_s)
                except InitializationError as exc:
                    error = inference_error(exc)
                else:
                    ready_at = time.monotonic()
                    if child.is_idle():
                        self.ready.set()
                await running
        finally:
            self.ready.clear()
            self.report = None
            self.child = None
            socket_path.unlink(missing_ok=True)
            if not self._stopping.is_set():
                self._watch.observer.process_failed("inference")
        return End(
            error or errors.InferenceError(f"the inference process ended: {child.describe_end()}"),
            0.0 if error else time.monotonic() - ready_at,
        )

    def _stop(self) -> None:
        if self.child is not None:
            self.child.stop("the host is stopping", EXIT_GRACE_S)

    def _receive(self, message: Message) -> None:
        match message:
            case s.Progress(text=text):
                self._on_progress(text)
            case s.InferenceReport() as report:
                self.report = report
                self._watch.observer.inference_report(report)
            case _:
                logger.warning("the inference process says %s, which means nothing here", type(message).__name__)


class ForkServer(Resident):
    """The fork server, one process after the other. Those that it made outlive it, and end with this object."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        watch: Watch,
        on_failed: Callable[[HostError], None],
        spared: Callable[[], bool],
    ) -> None:
        super().__init__(on_failed, spared=spared)
        self.process: ForkServerProcess | None = None
        self._environment = environment
        self._watch = watch
        self._life, self._life_of_jobs = -1, -1

    def close(self) -> None:
        """Give everything back; the kernel kills processes of it that are still there."""
        if self._life >= 0:
            os.close(self._life)
            os.close(self._life_of_jobs)
            self._life = self._life_of_jobs = -1

    async def spawn(self, name: str) -> tuple[Process, socket.socket]:
        """A warm job process, and our end of its control socket. Raises ``SpawnError``."""
        if self.process is None:
            raise SpawnError("the fork server is not there")
        return await self.process.spawn(name)

    def processes(self) -> tuple[ProcessInfo, ...]:
        """What runs of it."""
        return (self.process.describe(),) if self.process is not None else ()

    async def _serve(self) -> End:
        began = time.monotonic()
        if self._life < 0:
            self._life_of_jobs, self._life = os.pipe2(os.O_CLOEXEC)
        try:
            process = self.process = ForkServerProcess(self._environment, self._watch, self._life_of_jobs)
        except HostError as exc:
            return End(exc, 0.0)
        try:
            code = await process.run()
        finally:
            self.process = None
            if not self._stopping.is_set():
                self._watch.observer.process_failed("forkserver")
        return End(HostError(f"the fork server ended: {process.describe_end(code)}"), time.monotonic() - began)

    def _stop(self) -> None:
        if self.process is not None:
            self.process.stop()


_ERROR_BY_EXIT_CODE = {kind.exit_code: kind for kind in HostError.__subclasses__()}


def inference_error(exc: InitializationError) -> HostError:
    """Why the inference process does not serve, as the error that its exit code stands for."""
    if not exc.refused:
        return errors.InferenceError(f"the inference process did not come up: {exc}")
    return _ERROR_BY_EXIT_CODE.get(exc.exit_code, errors.InferenceError)(str(exc))


def job_error(exc: InitializationError) -> HostError:
    """Why a job process does not serve, as the error that its exit code stands for."""
    if not exc.refused:
        return HostError(f"a job process did not come up: {exc}")
    return _ERROR_BY_EXIT_CODE.get(exc.exit_code, HostError)(str(exc))
