"""A host in service, seen from outside: real processes with fake engines, its HTTP port, ``host status``."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from host.config import Config, InferenceConfig
from host.options import BUILT_IN_AGENT, WorkerOptions
from host.status import watch
from host.worker import Worker

pytestmark = pytest.mark.processes

DEADLINE_S = 60.0
SPEECH = Path(__file__).parents[2] / "data" / "speech" / "set-a-timer.wav"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@asynccontextmanager
async def serving() -> AsyncIterator[Worker]:
    options = WorkerOptions(
        entrypoint_fnc=BUILT_IN_AGENT,
        host="127.0.0.1",
        port=0,
        load_threshold=float("inf"),
        num_idle_processes=1,
        ping_interval=0.2,
    )
    worker = Worker(options, Config(inference=InferenceConfig(engines="fake", max_rooms=2)))
    running = asyncio.create_task(worker.run(unregistered=True))
    try:
        yield worker
    finally:
        await worker.aclose()
        await running


async def scrape(worker: Worker) -> Samples:
    if not worker.port:
        return {}
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{worker.port}/metrics") as answer,
        ):
            assert answer.status == 200
            text = await answer.text()
    except aiohttp.ClientConnectionError:
        return {}
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


async def scraped(worker: Worker, condition: Callable[[Samples], bool]) -> Samples:
    """The first scrape of which ``condition`` is true."""
    while not condition(samples := await scrape(worker)):  # noqa: ASYNC110 - only asking again can tell
        await asyncio.sleep(0.05)
    return samples


async def test_a_conversation_is_seen() -> None:
    async with asyncio.timeout(DEADLINE_S), serving() as worker:
        up = await scraped(worker, lambda seen: sample(seen, "roomful_inference_up") == 1)
        assert sample(up, "roomful_turns_total", interrupted="false") == 0
        result = await worker.simulate_job("kitchen", local=True, waves=(str(SPEECH),))
        assert result.status == "success"
        seen = await scraped(
            worker,
            lambda seen: (
                sample(seen, "roomful_inference_requests_total", stage="tts") >= 1
                # A child is asked whether it lives again and again, not once.
                and sample(seen, "roomful_ping_seconds_count", kind="inference") >= 3
                and sample(seen, "roomful_memory_bytes", kind="inference") > 0
            ),
        )
        assert sample(seen, "roomful_turns_total", interrupted="false") >= 1
        assert sample(seen, "roomful_turn_response_seconds_count") >= 1
        assert sample(seen, "roomful_jobs_ended_total", status="success") == 1
        assert sample(seen, "roomful_job_launch_seconds_count") == 1
        assert sample(seen, "roomful_inference_batch_size_count", stage="llm") >= 1
        assert sample(seen, "roomful_inference_latency_seconds_count", stage="stt") >= 1
        assert sample(seen, "roomful_process_ready_seconds_count", kind="inference") == 1
        assert sample(seen, "roomful_processes", kind="inference", state="ready") == 1
        assert 0 <= sample(seen, "roomful_load_part", part="cpu") <= 1


async def test_host_status_shows_it() -> None:
    async with asyncio.timeout(DEADLINE_S), serving() as worker:
        await scraped(worker, lambda seen: sample(seen, "roomful_inference_up") == 1)
        console = Console(width=80, color_system=None, file=io.StringIO())
        await asyncio.to_thread(watch, f"http://127.0.0.1:{worker.port}", once=True, console=console)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "not registered" in text
        assert "inference  on cpu  0 of 2 rooms" in text
        assert "forkserver" in text
