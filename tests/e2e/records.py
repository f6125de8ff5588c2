"""What the livekit-server and the host wrote down about jobs."""

from __future__ import annotations

import json
from collections import Counter

from host_process import HostProcess
from livekit_server import LiveKitServer


class ServerJobs:
    """Follows the server's log: to whom it gave jobs, and how they ended. ``read`` looks at what is new."""

    def __init__(self, livekit: LiveKitServer) -> None:
        self._log = livekit.log
        self._read = 0
        self._assigned: dict[str, list[str]] = {}
        self._endings: dict[str, list[tuple[str, str]]] = {}
        self._unserved: Counter[tuple[str, str]] = Counter()

    def read(self) -> ServerJobs:
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._read += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            if line.startswith("{"):
                self._note(json.loads(line))
        return self

    def _note(self, record: dict[str, str]) -> None:
        message = record.get("msg", "")
        if message == "assigned job to worker":
            self._assigned.setdefault(record["room"], []).append(record["jobID"])
        elif message == "job ended":
            # A job that ends at once has its end written down before its assignment.
            self._endings.setdefault(record["jobID"], []).append((record["status"], record["error"]))
        elif message == "failed to send job request" and "agentName" in record:
            self._unserved[record["agentName"], record["jobType"]] += 1

    def assigned(self, room: str) -> list[str]:
        """The ids of the room's jobs that a worker got."""
        return self.read()._assigned.get(room, [])

    def endings(self, room: str) -> list[tuple[str, str]]:
        """How the server recorded the ends of the room's jobs: status and error."""
        return [ending for job_id in self.assigned(room) for ending in self._endings.get(job_id, [])]

    def unserved(self, agent_name: str, job_type: str = "JT_ROOM") -> int:
        """How many jobs for the agent the server found nobody for."""
        return self.read()._unserved[agent_name, job_type]


def endings(livekit: LiveKitServer, room: str) -> list[tuple[str, str]]:
    """How the server recorded the ends of the room's jobs: status and error."""
    return ServerJobs(livekit).endings(room)


def job_pids(host: HostProcess, room: str) -> list[int]:
    """The processes that ran the room's jobs, from the host's log."""
    return [record["pid"] for record in host.records("job started") if record["room"] == room]


def job_results(host: HostProcess, room: str) -> list[str]:
    """How the host says the room's jobs ended: "success" or "failed" and the error."""
    ended = [record for record in host.records("job ended") if record["room"] == room]
    return [record["message"].partition(": ")[2].strip() for record in ended]
