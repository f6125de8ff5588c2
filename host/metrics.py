"""What Prometheus may ask: everything the host counts, on a registry of its own.

What happens is counted as it happens (``Metrics`` is the host's ``Observer``); what *is* comes from the same
description that ``/worker`` shows, when it is asked for. Counts of the inference process are its own and begin
again with it, which Prometheus takes for what it is, a counter's reset. No label names a job or a room.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from host.observer import KillReason, Observer, ProcessKind
from inference.wire.supervision import BATCH_BUCKETS, LATENCY_BUCKETS_S, InferenceReport, StageReport, TurnReport

_START_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_LIVEKIT_START_BUCKETS_S = (0.1, 0.5, 1, 2, 5, 10)
_LAUNCH_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PING_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 60)
_TURN_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10)
_BARGE_IN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2.5)

_TURN_STAGES = {
    "response": ("response_ms", "The caller's last voiced sample to the first sample of the answer in the room"),
    "endpointing": ("endpointing_ms", "The caller's last voiced sample to the decision that the turn is over"),
    "stt": ("stt_ms", "That decision to the transcript; 0 where a speculative one was at hand"),
    "ttft": ("ttft_ms", "Generation asked for to the first text"),
    "ttfa": ("ttfa_ms", "Generation asked for to the first sample of speech"),
}


class Metrics(Observer):
    """``render`` is the answer to a scrape. ``describe`` gives the object of ``/worker``."""

    def __init__(self, describe: Callable[[], dict[str, Any]]) -> None:
        self._registry = registry = CollectorRegistry()
        self._inference: InferenceReport | None = None
        self._node = socket.gethostname()

        def histogram(name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self._ready = histogram(
            "roomful_process_ready_seconds", "Start of a process to READY", _START_BUCKETS_S, ["kind"]
        )
        self._livekit_ready = histogram(
            "lk_agents_proc_initialize_duration_seconds",
            "Time taken to initialize a job process",
            _LIVEKIT_START_BUCKETS_S,
            ["nodename"],
        )
        self._failed = counter(
            "roomful_process_failures", "Processes that did not come up or ended by themselves", ["kind"]
        )
        self._killed = counter("roomful_process_kills", "Processes killed by the supervisor", ["kind", "reason"])
        self._ping = histogram("roomful_ping_seconds", "Round trips of pings to processes", _PING_BUCKETS_S, ["kind"])
        self._launch = histogram("roomful_job_launch_seconds", "A job asked for to it running", _LAUNCH_BUCKETS_S)
        self._ended = counter("roomful_jobs_ended", "Jobs that have ended", ["status"])
        for status in ("success", "failed"):
            # From 0, so that a rate can see the first one.
            self._ended.labels(status)
        self._turns = counter("roomful_turns", "Turns of conversations", ["interrupted"])
        for interrupted in ("true", "false"):
            self._turns.labels(interrupted)
        self._stages = {
            name: (field, histogram(f"roomful_turn_{name}_seconds", text, _TURN_BUCKETS_S))
            for name, (field, text) in _TURN_STAGES.items()
        }
        self._barge_in = histogram(
            "roomful_turn_barge_in_seconds",
            "The decision that the caller interrupts to the room being silent",
            _BARGE_IN_BUCKETS_S,
        )
        self._ahead = histogram(
            "roomful_turn_ahead_seconds",
            "An answer begun on speculation to its turn being over",
            _TURN_BUCKETS_S,
        )
        self._guesses_dropped = counter("roomful_guesses_dropped", "Answers begun on speculation in vain")
        # The supervisor itself: process_resident_memory_bytes, process_cpu_seconds_total, process_open_fds.
        ProcessCollector(registry=registry)
        registry.register(_Described(describe, self._node))
        registry.register(_Inference(lambda: self._inference))

    def render(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its content type."""
        return generate_latest(_WithoutCreated(self._registry)), CONTENT_TYPE_PLAIN_0_0_4

    # --- what happens -----------------------------------------------------------------------------

    def process_ready(self, kind: ProcessKind, seconds: float) -> None:
        """A process came up."""
        self._ready.labels(kind).observe(seconds)
        if kind == "job":
            self._livekit_ready.labels(self._node).observe(seconds)

    def process_failed(self, kind: ProcessKind) -> None:
        """A process did not come up, or ended by itself."""
        self._failed.labels(kind).inc()

    def process_killed(self, kind: ProcessKind, why: KillReason) -> None:
        """A process is being killed."""
        self._killed.labels(kind, why).inc()

    def ping(self, kind: ProcessKind, seconds: float) -> None:
        """A round trip of a ping."""
        self._ping.labels(kind).observe(seconds)

    def job_launched(self, seconds: float) -> None:
        """A job is running."""
        self._launch.observe(seconds)

    def job_ended(self, status: Literal["success", "failed"]) -> None:
        """A job has ended."""
        self._ended.labels(status).inc()

    def turn(self, report: TurnReport) -> None:
        """A turn is over. Stages that it did not reach (-1) are not counted."""
        self._turns.labels("true" if report.interrupted else "false").inc()
        for field, histogram in self._stages.values():
            if (milliseconds := float(getattr(report, field))) >= 0:
                histogram.observe(milliseconds / 1000)
        if report.barge_in_ms >= 0:
            self._barge_in.observe(report.barge_in_ms / 1000)
        if report.ahead_ms > 0:
            self._ahead.observe(report.ahead_ms / 1000)
        self._guesses_dropped.inc(report.guesses_dropped)

    def inference_report(self, report: InferenceReport) -> None:
        """What the inference process has counted since it started."""
        self._inference = report


class _WithoutCreated(Collector):
    """A registry without the time at which each counter was made, which nobody asks for here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class _Described(Collector):
    """The state of the host as ``/worker`` tells it, as gauges."""

    def __init__(self, describe: Callable[[], dict[str, Any]], node: str) -> None:
        self._describe = describe
        self._node = node

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry must not look while the host is still being made."""
        return ()

    def collect(self) -> Iterator[Metric]:
        worker = self._describe()
        load, inference, processes = worker["load"], worker["inference"], worker["processes"]
        yield _gauge(
            "roomful_info",
            "The host",
            {(worker["sdk_version"], worker["agent_name"], worker["worker_type"], inference["device"]): 1},
            "version agent_name worker_type device",
        )
        yield _gauge("roomful_uptime_seconds", "Since the host was started", worker["uptime_s"])
        yield _gauge("roomful_registered", "1 while a LiveKit server knows this host", bool(worker["worker_status"]))
        yield _gauge("roomful_accepting", "1 while another room would be taken", worker["admission"]["accepts"])
        yield _gauge("roomful_draining", "1 while running rooms finish and no other is taken", worker["draining"])
        yield _gauge("roomful_jobs", "Jobs that run", worker["active_jobs"])
        yield _gauge("roomful_jobs_max", "Jobs that may run at once", worker["max_jobs"])
        yield _gauge("roomful_load", "The load, 0 to 1: the largest of its parts", load["value"])
        parts = {name: value for name, value in load.items() if name != "value"}
        yield _gauge("roomful_load_part", "What the load is made of, each 0 to 1", parts, "part")
        if worker["load_threshold"] is not None:
            yield _gauge("roomful_load_threshold", "Load from which no room is taken", worker["load_threshold"])
        yield _gauge("roomful_inference_up", "1 while the inference process serves", inference["ready"])
        yield CounterMetricFamily(
            "roomful_inference_restarts", "Times the inference process was started again", inference["restarts"]
        )
        yield _gauge("roomful_inference_rooms", "Rooms that have a slot", inference["rooms"])
        yield _gauge("roomful_inference_rooms_max", "Slots", inference["max_rooms"])
        yield _gauge("roomful_inference_busy_ratio", "Share of the last second the device worked", inference["busy"])
        yield _gauge(
            "roomful_inference_pressure_ratio", "Share of the latest requests that began late", inference["pressure"]
        )
        waiting = {stage["stage"]: stage["waiting"] for stage in inference["stages"]}
        yield _gauge("roomful_inference_waiting", "Requests that have not ended", waiting, "stage")
        states: dict[tuple[str, str], float] = {}
        memory: dict[str, float] = {}
        for process in processes:
            state = process["kind"], process["state"]
            states[state] = states.get(state, 0) + 1
            memory[process["kind"]] = memory.get(process["kind"], 0) + process["memory_mb"] * 1e6
        yield _gauge("roomful_processes", "Processes below the supervisor", states, "kind state")
        yield _gauge(
            "roomful_memory_bytes", "Memory of processes, shared pages divided among their users", memory, "kind"
        )
        # Under the names of LiveKit's own workers, for their dashboards.
        jobs = sum(process["kind"] == "job" for process in processes)
        for name, text, value in (
            ("lk_agents_active_job_count", "Number of active jobs", worker["active_jobs"]),
            ("lk_agents_child_process_count", "Number of job processes", jobs),
            ("lk_agents_worker_load", "Load of the worker", worker["worker_load"]),
        ):
            yield _gauge(name, text, {self._node: value}, "nodename")


class _Inference(Collector):
    """The latest report of the inference process, as the counters and histograms that it is."""

    def __init__(self, latest: Callable[[], InferenceReport | None]) -> None:
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        report = self._latest()
        if report is None:
            return
        for name, text, value in _STAGE_COUNTERS:
            counter = CounterMetricFamily(f"roomful_inference_{name}", text, labels=["stage"])
            for stage in report.stages:
                counter.add_metric([stage.stage], value(stage))
            yield counter
        sizes = HistogramMetricFamily("roomful_inference_batch_size", "Requests in one quantum", labels=["stage"])
        latencies = HistogramMetricFamily(
            "roomful_inference_latency_seconds", "A request asked for to its end", labels=["stage"]
        )
        for stage in report.stages:
            sizes.add_metric([stage.stage], _cumulative(BATCH_BUCKETS, stage.batch_sizes), stage.batch_items)
            latencies.add_metric([stage.stage], _cumulative(LATENCY_BUCKETS_S, stage.latencies), stage.latency_sum_s)
        yield sizes
        yield latencies


_STAGE_COUNTERS: tuple[tuple[str, str, Callable[[StageReport], float]], ...] = (
    ("requests", "Requests that were begun", lambda stage: stage.requests),
    ("late_requests", "Requests that were begun later than a listener would notice", lambda stage: stage.late),
    ("quanta", "Batches run", lambda stage: stage.quanta),
    ("busy_seconds", "Device time", lambda stage: stage.busy_s),
)


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Counts of each bucket, and of what is above all, as Prometheus wants them."""
    filled = [*counts, *[0] * (len(bounds) + 1 - len(counts))]
    return list(zip([*(f"{bound:g}" for bound in bounds), "+Inf"], accumulate(filled), strict=True))


def _gauge(name: str, text: str, value: float | Mapping[Any, float], labels: str = "") -> GaugeMetricFamily:
    """``value``: a number, or one for each label's value, or one for each tuple of labels' values."""
    family = GaugeMetricFamily(name, text, labels=labels.split())
    for key, number in (value if isinstance(value, Mapping) else {(): value}).items():
        family.add_metric([key] if isinstance(key, str) else list(key), float(number))
    return family
