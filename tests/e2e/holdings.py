"""What the processes of a host hold: compared before and after a lot of work, nothing may have come to stay."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
from host_process import HostProcess


@dataclass(frozen=True)
class Held:
    """Of one process. ``descriptors``: what each open descriptor is, with its number for those that have none."""

    descriptors: Counter[str]
    memfds: int
    threads: int


@dataclass(frozen=True)
class Holdings:
    """Of the resident processes by pid, and how many processes of each name there are."""

    residents: dict[int, Held]
    names: Counter[str]

    def more_than(self, before: Holdings) -> list[str]:
        """What is held that was not held before, one line each."""
        more = [f"{count} more {name}" for name, count in (self.names - before.names).items()]
        for pid, held in self.residents.items():
            was = before.residents[pid]
            more += [f"pid {pid}: {count} more {kind}" for kind, count in (held.descriptors - was.descriptors).items()]
            if held.memfds > was.memfds:
                more.append(f"pid {pid}: {held.memfds - was.memfds} more memfds")
            if held.threads > was.threads:
                more.append(f"pid {pid}: {held.threads - was.threads} more threads")
        return more


def _kind(link: str) -> str:
    """Sockets and pipes without their numbers, files with their names."""
    return link.partition(":")[0] if link.startswith(("socket:", "pipe:", "anon_inode:")) else link


def _held(pid: int) -> Held:
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return Held(
        Counter(_kind(link) for link in links),
        sum(link.startswith("/memfd:") for link in links),
        len(list(Path(f"/proc/{pid}/task").iterdir())),
    )


def is_job(process: psutil.Process) -> bool:
    return process.name().startswith("job-")


def holdings(host: HostProcess) -> Holdings:
    """Now. Job processes come and go: they are only counted."""
    residents, names = {}, Counter[str]()
    for process in host.processes():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                names["zombie"] += 1
            elif is_job(process):
                names["job"] += 1
            else:
                residents[process.pid] = _held(process.pid)
                names[process.name()] += 1
        except (psutil.NoSuchProcess, FileNotFoundError):
            continue
    return Holdings(residents, names)
