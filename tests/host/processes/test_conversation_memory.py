"""What a job's process holds while it talks: the real process in a local room, recordings as the caller."""

import asyncio
from pathlib import Path

import psutil
import pytest

from host.options import BUILT_IN_AGENT
from host.supervisor import Supervisor
from inference.wire import supervision as s
from tests.host.processes.conftest import eventually

pytestmark = pytest.mark.processes

SPEECH = Path(__file__).parents[2] / "data" / "speech"
CONVERSATION_MB = 25.0
LOOK_S = 0.05


async def test_a_job_in_a_conversation_holds_little(options, updates):
    """At most 25 MB of its own (it is about 10), over two turns with their transcripts, answers and speech."""
    waves = tuple(str(SPEECH / name) for name in ("whats-the-date-today.wav", "set-a-timer.wav"))
    start = s.StartJob(job_id="talk", room="talk", transport="local", waves=waves)
    turns: list[s.TurnReport] = []
    seen: list[float] = []
    async with Supervisor(options(entrypoint=BUILT_IN_AGENT)) as supervisor:
        await eventually(lambda: supervisor.idle_processes == 1)
        job = await supervisor.launch(start, on_update=updates, on_turn=turns.append)
        ending = asyncio.create_task(job.wait())
        while not ending.done():
            try:
                seen.append(psutil.Process(job.pid).memory_full_info().uss / 1e6)
            except psutil.Error:
                # It has just ended.
                break
            await asyncio.wait({ending}, timeout=LOOK_S)
        assert (await ending).status == "success"
    assert len(turns) >= len(waves)
    # The conversation was looked at, not only its end.
    assert len(seen) > 20
    assert max(seen) <= CONVERSATION_MB, f"{max(seen):.1f} MB"
