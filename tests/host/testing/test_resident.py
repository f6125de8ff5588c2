"""The inference process that tests share: started once, watched, ended in order."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import msgspec
import psutil
import pytest

from host import testing
from host.errors import ConfigError, ModelsError
from host.job.agent import VoiceAgent
from host.testing.resident import Engines, configuration
from inference.client import InferenceUnavailableError

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60.0


def inference_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "inference.main" in child.cmdline()]


def test_it_is_started_and_ended_in_order(caplog: pytest.LogCaptureFixture) -> None:
    before = {process.pid for process in inference_processes()}
    with testing.engines("fake") as running:
        (process,) = [process for process in inference_processes() if process.pid not in before]
        assert repr(running) == "<Engines fake cpu-small running>"
        assert not running.hears_words
    assert not process.is_running()
    assert not [thread for thread in threading.enumerate() if thread is running._thread]
    assert [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
    running.stop()


async def test_all_who_ask_for_the_same_share_one() -> None:
    first = await asyncio.to_thread(testing.shared, "fake")
    second = await asyncio.to_thread(testing.shared, "fake")
    assert first is second
    async with (
        testing.session(VoiceAgent("Be brief.")) as one,
        testing.session(VoiceAgent("Be brief.")) as other,
    ):
        results = await asyncio.gather(one.run(user_input="One"), other.run(user_input="Two"))
        assert [result.reply for result in results] == ["You said: One", "You said: Two"]
    await asyncio.to_thread(testing.close_shared)
    assert not first.is_running()
    third = await asyncio.to_thread(testing.shared, "fake")
    assert third is not first


async def test_a_process_that_dies_fails_the_turn() -> None:
    before = {process.pid for process in inference_processes()}
    with testing.engines("fake") as running:
        (process,) = [process for process in inference_processes() if process.pid not in before]
        with pytest.raises(InferenceUnavailableError, match="went away during the test"):
            await _talk_beyond_the_end(running, process)


async def _talk_beyond_the_end(running: Engines, process: psutil.Process) -> None:
    async with testing.session(VoiceAgent("Be brief."), engines=running) as session:
        assert (await session.run(user_input="One")).reply == "You said: One"
        process.kill()
        await asyncio.to_thread(process.wait, DEADLINE_S)
        await session.run(user_input="Two")


def test_models_that_are_missing_are_named(tmp_path: Path) -> None:
    config = configuration("models")
    nowhere = msgspec.structs.replace(config, models=msgspec.structs.replace(config.models, dir=str(tmp_path)))
    with pytest.raises(ModelsError, match="cpu-small"), testing.engines("models", config=nowhere):
        raise AssertionError("it runs")


def test_a_profile_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="no-such-profile"), testing.engines("fake", profile="no-such-profile"):
        raise AssertionError("it runs")


def test_what_was_never_started_can_be_stopped() -> None:
    Engines(configuration("fake")).stop()


def test_a_program_that_ends_ends_it(tmp_path: Path) -> None:
    """Nobody has to think of it: neither the process nor its folder is left."""
    program = """
        import asyncio, psutil
        from host import VoiceAgent, testing

        async def main():
            async with testing.session(VoiceAgent("Be brief.")) as session:
                print((await session.run(user_input="Hello")).reply)
            print(*[child.pid for child in psutil.Process().children()])

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    reply, pids = done.stdout.splitlines()
    assert reply == "You said: Hello"
    assert pids
    assert not [pid for pid in map(int, pids.split()) if psutil.pid_exists(pid)]
    assert list(tmp_path.glob("*roomful-*")) == []
    assert done.stderr == ""
