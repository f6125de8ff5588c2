"""What the processes of the host take: proportional set size and CPU time, as ``/proc`` tells them."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_UTIME = 11
"""Position of the user time behind the command's name in ``/proc/PID/stat``; the system time is next."""


class MemoryMeter:
    """Measures processes in a thread of its own, because the kernel takes milliseconds for a large one."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory")

    async def measure(self, pids: Sequence[int]) -> list[float]:
        """Proportional set sizes in MB, in the order of ``pids``: see ``pss_mb``."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: [pss_mb(pid) for pid in pids])

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def pss_mb(pid: int) -> float:
    """Proportional set size in MB (10^6 bytes): shared pages are divided among those who share them.

    0 for a process that is gone or may not be looked at. A system that does not know it
    (``CONFIG_PROC_PAGE_MONITOR``) gives the resident set size. Walks the page tables: call it in a thread.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123 - read many times a second
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024 / 1e6
    except FileNotFoundError:
        if not _has_smaps_rollup():
            return _rss_mb(pid)
    except OSError:
        return 0.0
    return 0.0


def cpu_seconds(pid: int) -> float:
    """CPU time that the process has used, in seconds; 0 for one that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0.0
    if not stat:
        return 0.0
    # The name is in brackets and may hold anything, brackets included.
    fields = stat[stat.rindex(b")") + 1 :].split()
    return (int(fields[_UTIME]) + int(fields[_UTIME + 1])) / _TICKS_PER_S


@functools.cache
def _has_smaps_rollup() -> bool:
    return Path("/proc/self/smaps_rollup").exists()


def _rss_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES / 1e6
    except (OSError, IndexError):
        return 0.0
