"""What signals mean: the first lets rooms finish, the second, SIGQUIT and development do not; one more leaves."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from signal import SIGINT, SIGQUIT, SIGTERM

import pytest

from host.signals import Stopping


class Host:
    """Notes what it is told; draining takes until it is closed."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.closed = asyncio.Event()

    async def drain(self) -> None:
        self.told.append("drain")
        await self.closed.wait()

    async def aclose(self) -> None:
        self.told.append("close")
        self.closed.set()


@pytest.mark.parametrize(
    ("at_once", "signals", "told"),
    [
        (False, [SIGTERM], ["drain"]),
        (False, [SIGINT], ["drain"]),
        (False, [SIGQUIT], ["close"]),
        (False, [SIGTERM, SIGINT], ["drain", "close"]),
        (False, [SIGINT, SIGQUIT], ["drain", "close"]),
        (False, [SIGINT, SIGINT, SIGINT], ["drain", "close", "leave 130"]),
        (False, [SIGQUIT, SIGTERM], ["close", "leave 143"]),
        (True, [SIGINT], ["close"]),
        (True, [SIGTERM, SIGTERM], ["close", "leave 143"]),
    ],
)
async def test_what_the_host_is_told(
    at_once: bool, signals: list[signal.Signals], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "host.signals")
    host = Host()
    stopping = Stopping(host.drain, host.aclose, at_once=at_once, leave=lambda code: host.told.append(f"leave {code}"))
    for number in signals:
        stopping(number)
        await asyncio.sleep(0)
    assert host.told == told
    assert len(caplog.records) == len(told)
    assert all(signals[0].name in record.getMessage() for record in caplog.records[:1])
    host.closed.set()


async def test_a_host_that_cannot_be_told_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()

    async def fails() -> None:
        try:
            raise OSError("on purpose")
        finally:
            done.set()

    Stopping(fails, fails)(SIGTERM)
    await done.wait()
    await asyncio.sleep(0)
    assert "could not be obeyed" in caplog.text
    assert "on purpose" in caplog.text


PROGRAM = """
import asyncio, sys
from host.signals import Stopping, run

class Host:
    def __init__(self):
        self.end = asyncio.Event()
    async def run(self):
        print("up", flush=True)
        await self.end.wait()
    async def drain(self):
        print("drain", flush=True)
    async def aclose(self):
        print("close", flush=True)
        if "hang" not in sys.argv:
            self.end.set()

host = Host()
run(host.run(), Stopping(host.drain, host.aclose))
"""

CANCELLED = """
import asyncio
from host.signals import run

async def work():
    print("up", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("tidied up", flush=True)

run(work())
"""


def ask(program: str, *signals: signal.Signals, arguments: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """What the program says from its start on, one more line after each signal, and its exit code."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip()]
        for number in signals:
            process.send_signal(number)
            lines.append(process.stdout.readline().strip())
        return lines, process.wait(30)


@pytest.mark.processes
def test_real_signals() -> None:
    assert ask(PROGRAM, SIGTERM, SIGINT) == (["up", "drain", "close"], 0)
    assert ask(PROGRAM, SIGQUIT) == (["up", "close"], 0)
    # One that does not end is left with one signal more.
    assert ask(PROGRAM, SIGTERM, SIGINT, SIGTERM, arguments=("hang",)) == (["up", "drain", "close", ""], 143)


@pytest.mark.processes
@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_a_command_that_is_interrupted_tidies_up_and_says_so(number: signal.Signals, code: int) -> None:
    assert ask(CANCELLED, number) == (["up", "tidied up"], code)
