"""What happens in the host, for whoever counts it (``host/metrics.py``)."""

from __future__ import annotations

from typing import Literal

from inference.wire.supervision import InferenceReport, TurnReport

ProcessKind = Literal["inference", "forkserver", "job"]
KillReason = Literal["ping", "memory", "initialize", "shutdown", "other"]


class Observer:
    """Counts nothing: whoever counts overrides what it wants to know.

    Every method is called from the supervisor's event loop and returns at once. Times are in seconds.
    """

    def process_ready(self, kind: ProcessKind, seconds: float) -> None:
        """A process came up; ``seconds`` from its start to READY."""

    def process_failed(self, kind: ProcessKind) -> None:
        """A process did not come up, or ended without having been told to."""

    def process_killed(self, kind: ProcessKind, why: KillReason) -> None:
        """A process is being killed by the supervisor."""

    def ping(self, kind: ProcessKind, seconds: float) -> None:
        """A round trip of a ping."""

    def job_launched(self, seconds: float) -> None:
        """A job is running; ``seconds`` from the launch that was asked for to "running"."""

    def job_ended(self, status: Literal["success", "failed"]) -> None:
        """A job has ended."""

    def turn(self, report: TurnReport) -> None:
        """A turn of a conversation is over."""

    def inference_report(self, report: InferenceReport) -> None:
        """How the inference process does."""
