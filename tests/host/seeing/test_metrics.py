from __future__ import annotations

import copy
import time
from typing import Any

import aiohttp
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from host.health import HealthServer
from host.metrics import Metrics
from inference.wire.supervision import BATCH_BUCKETS, LATENCY_BUCKETS_S, InferenceReport, StageReport, TurnReport
from tests.host.seeing.describe import description


class Scrape:
    """What a Prometheus server makes of one answer."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(sorted(labels.items()))]

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


def scrape(metrics: Metrics) -> Scrape:
    body, _ = metrics.render()
    return Scrape(body.decode())


def stage(name: Any, **changes: Any) -> StageReport:
    values: dict[str, Any] = {
        "stage": name,
        "waiting": 0,
        "requests": 10,
        "late": 2,
        "quanta": 6,
        "busy_s": 1.5,
        "batch_sizes": (4, 1, 1, 0, 0, 0, 0, 0),
        "batch_items": 10,
        "latencies": (0, 0, 0, 3, 4, 2, 0, 0, 0, 0, 1),
        "latency_sum_s": 14.25,
    }
    return StageReport(**(values | changes))


def turn(**changes: Any) -> TurnReport:
    values: dict[str, Any] = {
        "job_id": "AJ_1",
        "turn": 1,
        "transcript": "hello",
        "reply": "hi",
        "interrupted": False,
        "audio_s": 1.0,
        "endpointing_ms": 550.0,
        "stt_ms": 0.0,
        "ttft_ms": 120.0,
        "ttfa_ms": 310.0,
        "response_ms": 870.0,
        "reply_audio_s": 2.0,
    }
    return TurnReport(**(values | changes))


async def test_a_scrape_over_http() -> None:
    metrics = Metrics(description)
    health = HealthServer("127.0.0.1", 0, problem=lambda: "", describe=description, metrics=metrics.render)
    await health.start()
    try:
        url = f"http://127.0.0.1:{health.port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            seen = Scrape(await answer.text())
    finally:
        await health.aclose()
    assert seen("roomful_jobs") == 2
    assert seen("process_resident_memory_bytes") > 1e6


def test_the_host_as_it_is() -> None:
    seen = scrape(Metrics(description))
    assert seen("roomful_info", version="0.1.0", agent_name="reception", worker_type="JT_ROOM", device="cpu") == 1
    assert seen("roomful_uptime_seconds") == 7384.2
    assert [seen(f"roomful_{name}") for name in ("registered", "accepting", "draining")] == [1, 1, 0]
    assert (seen("roomful_jobs"), seen("roomful_jobs_max")) == (2, 8)
    assert (seen("roomful_load"), seen("roomful_load_threshold")) == (0.42, 0.7)
    assert {part: seen("roomful_load_part", part=part) for part in ("cpu", "memory", "pressure", "jobs")} == {
        "cpu": 0.42, "memory": 0.0, "pressure": 0.125, "jobs": 0.25,
    }  # fmt: skip
    assert seen("roomful_inference_up") == 1
    assert seen("roomful_inference_restarts_total") == 1
    assert (seen("roomful_inference_rooms"), seen("roomful_inference_rooms_max")) == (2, 8)
    assert (seen("roomful_inference_busy_ratio"), seen("roomful_inference_pressure_ratio")) == (0.37, 0.125)
    assert [seen("roomful_inference_waiting", stage=stage) for stage in ("stt", "llm", "tts")] == [1, 2, 0]
    assert seen("roomful_processes", kind="job", state="running") == 2
    assert seen("roomful_processes", kind="job", state="initializing") == 1
    assert seen("roomful_memory_bytes", kind="inference") == pytest.approx(1834e6)
    assert seen("roomful_memory_bytes", kind="job") == pytest.approx((61.0 + 41.3) * 1e6)


def test_the_names_of_livekits_own_workers() -> None:
    metrics = Metrics(description)
    metrics.process_ready("job", 0.3)
    metrics.process_ready("inference", 12.0)
    seen = scrape(metrics)
    found = {name: value for (name, labels), value in seen.samples.items() if "nodename" in dict(labels)}
    assert found["lk_agents_active_job_count"] == 2
    assert found["lk_agents_child_process_count"] == 3
    assert found["lk_agents_worker_load"] == 0.42
    assert found["lk_agents_proc_initialize_duration_seconds_count"] == 1


def test_no_threshold_and_no_inference() -> None:
    inference = description()["inference"] | {"ready": False, "device": "", "stages": [], "busy": 0.0}
    seen = scrape(Metrics(lambda: description(load_threshold=None, inference=inference, worker_status="")))
    assert "roomful_load_threshold" not in seen.names()
    assert (seen("roomful_inference_up"), seen("roomful_registered")) == (0, 0)
    assert not [name for name in seen.names() if name.startswith("roomful_inference_batch")]


def test_what_happens_is_counted() -> None:
    metrics = Metrics(description)
    assert scrape(metrics)("roomful_jobs_ended_total", status="failed") == 0
    metrics.process_ready("job", 0.3)
    metrics.process_ready("inference", 40.0)
    metrics.process_failed("inference")
    metrics.process_killed("job", "memory")
    metrics.process_killed("job", "memory")
    metrics.ping("job", 0.002)
    metrics.job_launched(0.04)
    metrics.job_ended("success")
    metrics.job_ended("failed")
    seen = scrape(metrics)
    assert seen("roomful_process_ready_seconds_sum", kind="inference") == 40.0
    assert seen("roomful_process_ready_seconds_bucket", kind="job", le="0.5") == 1
    assert seen("roomful_process_ready_seconds_bucket", kind="job", le="0.25") == 0
    assert seen("roomful_process_failures_total", kind="inference") == 1
    assert seen("roomful_process_kills_total", kind="job", reason="memory") == 2
    assert seen("roomful_ping_seconds_count", kind="job") == 1
    assert seen("roomful_job_launch_seconds_sum") == 0.04
    assert seen("roomful_jobs_ended_total", status="failed") == 1


def test_turns() -> None:
    metrics = Metrics(description)
    metrics.turn(turn())
    metrics.turn(turn(interrupted=True, barge_in_ms=80.0))
    metrics.turn(turn(response_ms=-1.0, ttfa_ms=-1.0, ahead_ms=250.0, guesses_dropped=2))
    seen = scrape(metrics)
    assert seen("roomful_turns_total", interrupted="false") == 2
    assert seen("roomful_turns_total", interrupted="true") == 1
    assert seen("roomful_turn_response_seconds_count") == 2, "an answer that nobody heard has no response time"
    assert seen("roomful_turn_response_seconds_sum") == pytest.approx(1.74)
    assert seen("roomful_turn_endpointing_seconds_count") == 3
    assert seen("roomful_turn_stt_seconds_bucket", le="0.05") == 3
    assert seen("roomful_turn_ttft_seconds_bucket", le="0.2") == 3
    assert seen("roomful_turn_ttfa_seconds_count") == 2
    assert seen("roomful_turn_barge_in_seconds_sum") == pytest.approx(0.08)
    assert seen("roomful_turn_ahead_seconds_count") == 1, "two answers were not begun before their turn was over"
    assert seen("roomful_turn_ahead_seconds_sum") == pytest.approx(0.25)
    assert seen("roomful_guesses_dropped_total") == 2


def test_the_counts_of_the_inference_process() -> None:
    metrics = Metrics(description)
    metrics.inference_report(InferenceReport("cpu", 1, 8, 0.5, 0.1, (stage("stt"), stage("llm", requests=3))))
    seen = scrape(metrics)
    assert seen.families["roomful_inference_requests"].type == "counter"
    assert seen.families["roomful_inference_latency_seconds"].type == "histogram"
    assert seen("roomful_inference_requests_total", stage="stt") == 10
    assert seen("roomful_inference_requests_total", stage="llm") == 3
    assert seen("roomful_inference_late_requests_total", stage="stt") == 2
    assert seen("roomful_inference_quanta_total", stage="stt") == 6
    assert seen("roomful_inference_busy_seconds_total", stage="stt") == 1.5
    sizes = [seen("roomful_inference_batch_size_bucket", stage="stt", le=f"{size:g}") for size in BATCH_BUCKETS]
    assert sizes == [4, 5, 6, 6, 6, 6, 6]
    assert seen("roomful_inference_batch_size_sum", stage="stt") == 10
    name = "roomful_inference_latency_seconds"
    latencies = [seen(f"{name}_bucket", stage="stt", le=f"{bound:g}") for bound in LATENCY_BUCKETS_S]
    assert latencies == [0, 0, 0, 3, 7, 9, 9, 9, 9, 9]
    assert seen(f"{name}_bucket", stage="stt", le="+Inf") == seen(f"{name}_count", stage="stt") == 10
    assert seen(f"{name}_sum", stage="stt") == 14.25


def test_the_counts_begin_again_with_another_inference_process() -> None:
    metrics = Metrics(description)
    metrics.inference_report(InferenceReport("cpu", 1, 8, 0.5, 0.1, (stage("stt"),)))
    metrics.inference_report(
        InferenceReport("cpu", 0, 8, 0.0, 0.0, (stage("stt", requests=0, batch_sizes=(), latencies=()),))
    )
    seen = scrape(metrics)
    assert seen("roomful_inference_requests_total", stage="stt") == 0
    assert seen("roomful_inference_batch_size_count", stage="stt") == 0


def test_two_hosts_in_one_program_count_apart() -> None:
    one, other = Metrics(description), Metrics(description)
    one.job_ended("failed")
    assert scrape(one)("roomful_jobs_ended_total", status="failed") == 1
    assert scrape(other)("roomful_jobs_ended_total", status="failed") == 0


def test_nothing_names_a_job_or_a_room_and_no_name_comes_twice() -> None:
    """A series that lives as long as one call would grow the database for ever."""
    metrics = Metrics(description)
    for kind in ("inference", "forkserver", "job"):
        metrics.process_ready(kind, 1.0)  # type: ignore[arg-type]
        metrics.ping(kind, 1.0)  # type: ignore[arg-type]
    metrics.turn(turn())
    body, _ = metrics.render()
    text = body.decode()
    assert "kitchen" not in text
    assert "AJ_" not in text
    assert "_created" not in text
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))
    described = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(described) == len(set(described))
    assert all(name.startswith(("roomful_", "lk_agents_", "process_")) for name in described)


def test_a_scrape_of_a_full_host_is_quick() -> None:
    """It is made on the event loop, which must not stand still."""
    full = description()
    full["processes"] = [copy.copy(full["processes"][2]) for _ in range(200)]
    metrics = Metrics(lambda: full)
    metrics.inference_report(InferenceReport("cpu", 1, 8, 0.5, 0.1, (stage("stt"), stage("llm"), stage("tts"))))
    for kind in ("inference", "forkserver", "job"):
        metrics.process_ready(kind, 1.0)  # type: ignore[arg-type]
        metrics.ping(kind, 1.0)  # type: ignore[arg-type]
    took = []
    for _ in range(9):
        began = time.thread_time()
        metrics.render()
        took.append(time.thread_time() - began)
    assert sorted(took)[4] < 0.03
