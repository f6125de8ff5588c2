"""A real livekit-server on loopback for the tests: one process, its own keys, its own ports, its log at hand."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livekit import api

KEY = "roomful-tests"
SECRET = "a-secret-of-at-least-thirty-two-characters"
INSTALL = Path(__file__).parents[2] / "scripts" / "install_livekit_server.sh"


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody has, and that the system gives to no outgoing connection before it is used."""
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, lowest_outgoing)
        with socket.socket(socket.AF_INET, kind) as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return port


@dataclass(frozen=True)
class Ports:
    """Where a server listens; given again, another one comes up in its place."""

    http: int = field(default_factory=free_port)
    tcp: int = field(default_factory=free_port)
    udp: int = field(default_factory=lambda: free_port(socket.SOCK_DGRAM))


@dataclass(frozen=True)
class LiveKitServer:
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def token(self, room: str, identity: str, *, agent: bool = False) -> str:
        """A token to join ``room``; with ``agent`` what the server itself gives to an agent."""
        grants = api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True, agent=agent)
        token = api.AccessToken(KEY, SECRET).with_identity(identity).with_grants(grants)
        if agent:
            token = token.with_kind("agent")
        return token.to_jwt()

    def api(self) -> api.LiveKitAPI:
        return api.LiveKitAPI(f"http://127.0.0.1:{self.port}", KEY, SECRET)

    def log_lines(self, text: str) -> list[dict[str, Any]]:
        """The log's records that contain ``text`` in their message."""
        records = []
        for line in self.log.read_text(errors="replace").splitlines():
            if text in line and line.startswith("{"):
                record = json.loads(line)
                if text in record.get("msg", ""):
                    records.append(record)
        return records


def server_binary() -> str:
    done = subprocess.run([INSTALL], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


@contextmanager
def livekit_server(folder: Path, port: int = 0, ports: Ports | None = None) -> Iterator[LiveKitServer]:
    ports = ports or (Ports(http=port) if port else Ports())
    config = {
        "port": ports.http,
        "bind_addresses": ["127.0.0.1"],
        "rtc": {
            "tcp_port": ports.tcp,
            "udp_port": ports.udp,
            "node_ip": "127.0.0.1",
            "use_external_ip": False,
            "enable_loopback_candidate": True,
            "interfaces": {"includes": ["lo"]},
            # Clients would otherwise be told to ask public STUN servers.
            "stun_servers": [f"127.0.0.1:{ports.udp}"],
        },
        "keys": {KEY: SECRET},
        "logging": {"json": True, "level": "info"},
        "room": {"empty_timeout": 20, "departure_timeout": 5},
    }
    # JSON is YAML.
    (folder / "livekit.yaml").write_text(json.dumps(config))
    log = folder / "livekit-server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [server_binary(), "--config", str(folder / "livekit.yaml")],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        )
    try:
        _wait_until_up(ports.http, process, log)
        yield LiveKitServer(ports.http, log, process)
    finally:
        # It has nothing to keep, and in order it takes its time.
        process.kill()
        process.wait()


def _wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                if answer.read() == b"OK":
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"livekit-server did not come up:\n{log.read_text()}")
