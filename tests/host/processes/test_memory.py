"""What ``/proc`` says about this process."""

import mmap
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from host import memory

GONE = 2**22 + 1
"""No pid is as large."""


def test_pss_counts_what_is_taken():
    before = memory.pss_mb(os.getpid())
    assert 1 < before < psutil.Process().memory_info().rss / 1e6 + 1
    with mmap.mmap(-1, 40_000_000) as taken:
        taken.write(b"x" * 40_000_000)
        assert memory.pss_mb(os.getpid()) == pytest.approx(before + 40, abs=10)


def test_cpu_time():
    before = memory.cpu_seconds(os.getpid())
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert 0.08 <= memory.cpu_seconds(os.getpid()) - before < 5


def test_a_name_with_brackets_and_spaces():
    comm = Path("/proc/self/comm")
    name = comm.read_text()
    comm.write_text(") 1 (x")
    try:
        assert memory.cpu_seconds(os.getpid()) > 0
    finally:
        comm.write_text(name)


def test_a_process_that_is_gone():
    assert memory.pss_mb(GONE) == 0.0
    assert memory.cpu_seconds(GONE) == 0.0


async def test_the_meter_measures_in_a_thread_that_it_ends():
    before = threading.active_count()
    meter = memory.MemoryMeter()
    own, gone = await meter.measure([os.getpid(), GONE])
    assert own > 1
    assert gone == 0.0
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("memory")] == ["memory_0"]
    meter.close()
    assert threading.active_count() == before
