"""One inference process for all tests of a program: started when the first asks for it, ended in order at the end.

It is the same process, started and watched by the same code, as below a host. A thread with an event loop of its own
keeps it, because each test may have another event loop; the tests talk to it over its socket as jobs do.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Literal

import msgspec

from host.agent_file import AgentFunctions
from host.child import Watch
from host.config import Config, load_config, worker_options
from host.errors import HostError
from host.prepare import prepared
from host.residents import Inference
from host.supervisor import INFERENCE_COMMAND
from host.supervisor_options import SupervisorOptions
from inference.client import InferenceClient

logger = logging.getLogger(__name__)

EngineKind = Literal["fake", "models"]
"""The engines that are shipped for tests, without models, or the models of a profile."""

_END_S = 60.0


class Engines:
    """A running inference process. Made by ``engines`` or ``shared``."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._options: SupervisorOptions | None = None
        self._failure: BaseException | None = None
        self._settled = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        # A program that ends without ending this takes it along: the kernel kills the process with the thread.
        self._thread = threading.Thread(target=self._run, name="testing-engines", daemon=True)

    def __repr__(self) -> str:
        state = "running" if self.is_running() else "not running"
        return f"<Engines {self.config.inference.engines} {self.config.models.profile} {state}>"

    @property
    def hears_words(self) -> bool:
        """Whether speech is needed, and a hum is none."""
        return self.config.inference.engines != "fake"

    def is_running(self) -> bool:
        """Whether it came up and was not ended."""
        return self._options is not None and self._thread.is_alive()

    def start(self) -> None:
        """Return when it is warm. Raises the ``HostError`` that says why it is not."""
        began = time.monotonic()
        self._thread.start()
        self._settled.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        logger.info("the inference process for tests is ready after %.1f s", time.monotonic() - began)

    def stop(self) -> None:
        """End it in order; returns when it has gone. Safe to call twice."""
        if self._loop is not None and self._ending is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
                self._loop.call_soon_threadsafe(self._ending.set)
        if self._thread.ident is not None:
            self._thread.join(_END_S)

    async def connect(self, name: str) -> InferenceClient:
        """A connection to it; it belongs to the event loop that runs. Raises ``InferenceUnavailableError``."""
        assert self._options is not None, "it is not running"
        inference = self._options.inference
        return await InferenceClient.connect(inference.socket_path, inference.token, name=name)

    # --- in its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except BaseException as exc:
            if self._settled.is_set():
                logger.exception("the inference process for tests cannot be kept")
            self._failure = exc
            if not isinstance(exc, Exception):
                raise
        finally:
            self._settled.set()

    async def _keep(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        options = worker_options(self.config, AgentFunctions()).resolved(self.config.cores())
        failed: asyncio.Future[HostError] = self._loop.create_future()
        # Nobody else waits for this thread, so what it reads may block it.
        with prepared(self.config, options) as ready:
            inference = Inference(
                INFERENCE_COMMAND,
                ready.inference_environment,
                ready.inference,
                ready.inference_initialize_timeout,
                watch=Watch(runtime_dir=ready.runtime_dir),
                on_progress=logger.debug,
                # It stops then, so it is told once.
                on_failed=failed.set_result,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(inference.keep(), name="inference")
                await _first(inference.ready, failed)
                inference.host_is_up()
                self._options = ready
                self._settled.set()
                try:
                    await _first(self._ending, failed)
                finally:
                    inference.stop()


async def _first(event: asyncio.Event, failed: asyncio.Future[HostError]) -> None:
    """Return when ``event`` is set. Raises what ``failed`` holds, if that comes first."""
    waiting = asyncio.create_task(event.wait())
    failing = asyncio.create_task(asyncio.wait({failed}))
    await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    failing.cancel()
    if failed.done():
        raise failed.result()


def configuration(kind: EngineKind, profile: str = "") -> Config:
    """The user's configuration (file and environment), with these engines; ``profile`` "" is the configured one.

    Raises ``ConfigError``.
    """
    config = load_config()
    inference = msgspec.structs.replace(config.inference, engines="fake" if kind == "fake" else "real")
    models = msgspec.structs.replace(config.models, profile=profile or config.models.profile)
    return msgspec.structs.replace(config, inference=inference, models=models)


@contextlib.contextmanager
def engines(kind: EngineKind = "fake", *, profile: str = "", config: Config | None = None) -> Iterator[Engines]:
    """An inference process of your own, for the time of the ``with``. ``config`` overrules the rest.

    Raises ``HostError`` when it does not come up: ``ModelsError`` where models are missing.
    """
    running = Engines(config or configuration(kind, profile))
    running.start()
    try:
        yield running
    finally:
        running.stop()


_shared: dict[tuple[EngineKind, str], Engines] = {}
_shared_lock = threading.Lock()


def shared(kind: EngineKind = "fake", *, profile: str = "") -> Engines:
    """The inference process that all tests of this program share; started by the first that asks.

    Returns when it is warm, which takes seconds the first time: call it in a thread, or in a fixture. It ends with the
    program, or by ``close_shared``. Raises ``HostError`` when it does not come up.
    """
    with _shared_lock:
        running = _shared.get((kind, profile))
        if running is None or not running.is_running():
            running = Engines(configuration(kind, profile))
            running.start()
            _shared[kind, profile] = running
        return running


@atexit.register
def close_shared() -> None:
    """End the shared inference processes, in order."""
    with _shared_lock:
        for running in _shared.values():
            running.stop()
        _shared.clear()
