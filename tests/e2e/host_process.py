"""``host serve`` as a user runs it: the command, its environment, its exit code, its processes, its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from livekit_server import KEY, SECRET, LiveKitServer, free_port

COMMAND = (str(Path(sys.executable).parent / "host"), "serve")

FAKE_ENGINES = """
[inference]
engines = "fake"
max_rooms = {max_rooms}
[worker]
# What else this machine does must not decide a test.
load_threshold = 100.0
"""


def fake_engines(max_rooms: int = 4, *, top: str = "", more: str = "", **worker: object) -> str:
    """A configuration with fake engines and the given keys of ``[worker]``. ``top`` and ``more``: TOML around it."""
    worker = {"load_threshold": 100.0, "num_idle_processes": 1, **worker}
    keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in worker.items())
    return f'{top}\n[inference]\nengines = "fake"\nmax_rooms = {max_rooms}\n[worker]\n{keys}{more}\n'


@dataclass
class HostProcess:
    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    seen: set[int] = field(default_factory=set)

    @property
    def log(self) -> str:
        return (self.folder / "host.log").read_text(errors="replace")

    # --- what it says -----------------------------------------------------------------------------

    def records(self, message: str = "", level: str = "") -> list[dict[str, Any]]:
        """The log's records whose message begins with ``message``."""
        found = []
        for line in self.log.splitlines():
            if line.startswith("{"):
                record = json.loads(line)
                if record["message"].startswith(message) and level in ("", record["level"]):
                    found.append(record)
        return found

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    def healthy(self) -> bool:
        """Whether it is up and registered, as a health check sees it."""
        try:
            return self.get("/") == (200, "OK")
        except urllib.error.URLError:
            return False

    def worker(self) -> dict[str, Any]:
        status, text = self.get("/worker")
        assert status == 200, text
        described: dict[str, Any] = json.loads(text)
        return described

    def wait(self, condition: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Wait for what only asking again can tell. Fails with the host's log, at once if the host has ended."""
        deadline = time.monotonic() + deadline_s
        while not condition():
            assert self.process.poll() is None, f"the host ended while waiting for {what}:\n{self.log}"
            assert time.monotonic() < deadline, f"waited {deadline_s} s for {what}:\n{self.log}"
            time.sleep(0.05)

    def registered(self, times: int = 1) -> bool:
        assert self.process.poll() is None, f"the host ended:\n{self.log}"
        return self.log.count("registered with LiveKit") >= times

    def wait_registered(self, deadline_s: float = 120.0, times: int = 1) -> None:
        self.wait(lambda: self.registered(times), deadline_s, "the registration")

    # --- its processes ----------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """The host's own process and everything below it."""
        try:
            main = psutil.Process(self.process.pid)
            found = [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            found = []
        self.seen.update(process.pid for process in found)
        return found

    def inference(self) -> psutil.Process:
        """The inference process. Only for when it is there."""
        alive = [process for process in self.processes() if process.status() != psutil.STATUS_ZOMBIE]
        return next(process for process in alive if "inference.main" in " ".join(process.cmdline()))

    def memfds(self, pid: int) -> list[str]:
        """The anonymous shared memory that a process holds."""
        links = []
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                links.append(str(descriptor.readlink()))
            except FileNotFoundError:
                continue
        return [link for link in links if link.startswith("/memfd:")]

    def left_over(self) -> list[int]:
        """Processes that were once seen below the host and still live."""
        return [pid for pid in self.seen if psutil.pid_exists(pid)]

    def runtime_folders(self) -> list[Path]:
        """The folders of sockets that a host makes in the temporary directory."""
        return list((self.folder / "tmp").glob("roomful-*"))

    def stop(self, deadline_s: float = 30.0, number: signal.Signals = signal.SIGTERM) -> int:
        self.processes()
        self.process.send_signal(number)
        return self.wait_exit(deadline_s)

    def wait_exit(self, deadline_s: float = 30.0) -> int:
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the host did not end in {deadline_s} s:\n{self.log}") from None


def environment(folder: Path, url: str, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(temporary),
        "LIVEKIT_URL": url,
        "LIVEKIT_API_KEY": key,
        "LIVEKIT_API_SECRET": secret,
    }


@contextmanager
def host_serve(
    server: LiveKitServer | str,
    folder: Path,
    *arguments: str,
    config: str = "",
    secrets: Mapping[str, str] | None = None,
    port: int | None = 0,
) -> Iterator[HostProcess]:
    """``host serve ARGUMENTS`` against ``server`` with ``config`` as its file; ended at the end, if need be killed.

    ``secrets``: further environment variables. ``port``: 0 picks one, None leaves it to the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "roomful.toml").write_text(config)
    flags = [] if port is None else ["--port", str(port := port or free_port())]
    url = server if isinstance(server, str) else server.url
    with (folder / "host.log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, *arguments, *flags, "--config", str(folder / "roomful.toml")],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**environment(folder, url), **(secrets or {})},
        )
    host = HostProcess(process, port or 0, folder)
    try:
        yield host
    finally:
        host.processes()
        if process.poll() is None:
            # Twice: do not wait for rooms.
            process.terminate()
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
