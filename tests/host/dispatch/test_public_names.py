"""``from host import ...``: all there, and light enough for a job process."""

from __future__ import annotations

import subprocess
import sys

import host

IN_A_JOB = [name for name in host.__all__ if name != "Worker"]
HEAVY = ("aiohttp", "msgspec", "rich", "typer", "psutil", "prometheus_client", "jwt")


def test_every_public_name_is_there() -> None:
    for name in host.__all__:
        assert getattr(host, name).__name__ == name


def test_an_agent_file_may_name_them_all_without_loading_what_the_supervisor_needs() -> None:
    code = f"from host import {', '.join(host.__all__)}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"
