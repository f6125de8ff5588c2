"""What the livekit-server and the host wrote down about jobs."""

from __future__ import annotations

from host_process import HostProcess
from livekit_server import LiveKitServer


def endings(livekit: LiveKitServer, room: str) -> list[tuple[str, str]]:
    """How the server recorded the ends of the room's jobs: status and error."""
    jobs = {record["jobID"] for record in livekit.log_lines("assigned job to worker") if record["room"] == room}
    ended = [record for record in livekit.log_lines("job ended") if record["jobID"] in jobs]
    return [(record["status"], record["error"]) for record in ended]


def job_pids(host: HostProcess, room: str) -> list[int]:
    """The processes that ran the room's jobs, from the host's log."""
    lines = [line for line in host.log.splitlines() if "job started" in line and f"room={room}" in line]
    return [int(line.partition("pid=")[2].rstrip("] ").split()[0]) for line in lines]
