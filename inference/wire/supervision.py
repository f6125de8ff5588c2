"""What the supervisor and its children say to each other, over one socketpair a child."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inference.wire.tlv import Message, Struct, declare, message, tag

JobStatus = Literal["running", "success", "failed"]


# --- the fork server ----------------------------------------------------------------------------


@message(200, descriptors=1)
@dataclass(frozen=True, slots=True)
class Spawn(Message):
    """Supervisor → fork server: fork a job process that owns the socket travelling with this."""

    name: str = tag(1, maximum=64)


@message(201, descriptors=1)
@dataclass(frozen=True, slots=True)
class Spawned(Message):
    """Fork server → supervisor, in the order of the ``Spawn`` messages. Travels with the process's pidfd.

    Only the parent can open a pidfd knowing that the number has not been given to another process.
    """

    pid: int = tag(1, minimum=1)


@message(203)
@dataclass(frozen=True, slots=True)
class SpawnFailed(Message):
    """Fork server → supervisor, instead of ``Spawned``: the system refused another process."""

    reason: str = tag(1)


@message(202)
@dataclass(frozen=True, slots=True)
class Reaped(Message):
    """Fork server → supervisor: a job process ended. ``exit_code`` as in subprocess: -N for signal N."""

    pid: int = tag(1, minimum=1)
    exit_code: int = tag(2)


# --- coming up ----------------------------------------------------------------------------------


@message(210)
@dataclass(frozen=True, slots=True)
class InitializeInference(Message):
    """Supervisor → inference, first. The paths were verified against the catalogue's checksums before."""

    socket_path: str = tag(1)
    token: str = tag(2, maximum=128)
    device: Literal["auto", "cpu", "cuda"] = tag(3)
    threads: int = tag(4, minimum=1)
    max_rooms: int = tag(5, minimum=1, maximum=255)
    context_tokens: int = tag(6, minimum=256)
    stt_name: str = tag(7)
    stt_path: str = tag(8)
    llm_name: str = tag(9)
    llm_path: str = tag(10)
    tts_name: str = tag(11)
    tts_path: str = tag(12)
    log_level: str = tag(13, default="INFO")
    engines: Literal["real", "stock", "fake"] = tag(14, default="real")
    llm_threads: int = tag(15, default=1, minimum=1)
    stacks_file: str = tag(16, default="")
    """Where the stacks go on SIGUSR1; "" is standard error."""
    resident_rooms: int = tag(17, default=0, minimum=0, maximum=255)
    trace_file: str = tag(18, default="")
    """Where the lanes write what they do and why; "" is nowhere."""
    memory_budget_mb: float = tag(19, default=0.0, minimum=0.0)
    """What the process may take on a CPU, in MB; 0 is no budget."""
    calibrate: bool = tag(20, default=False)
    """Measure what the device takes for everything, and tell it before ``Ready``: some minutes."""


@message(211)
@dataclass(frozen=True, slots=True)
class InitializeJob(Message):
    """Supervisor → job process, first: import the agent, run its prewarm, report ``Ready``.

    ``entrypoint`` and ``prewarm`` ("" for none) name functions of the user's code: ``file.py:function`` or
    ``package.module:function``. ``import_path``: folders to look for modules in, before the usual ones.
    ``stacks_file``: where the stacks go on SIGUSR1; "" is standard error.
    """

    entrypoint: str = tag(1)
    inference_socket: str = tag(2)
    inference_token: str = tag(3, maximum=128)
    log_level: str = tag(4, default="INFO")
    prewarm: str = tag(5, default="")
    import_path: tuple[str, ...] = tag(6, default=())
    stacks_file: str = tag(7, default="")


@message(212)
@dataclass(frozen=True, slots=True)
class Progress(Message):
    """Child → supervisor, while it comes up: what it is doing, for a person to read."""

    text: str = tag(1)


@message(216)
@dataclass(frozen=True, slots=True)
class Calibrated(Message):
    """Inference → supervisor, before ``Ready``, when it was asked to calibrate: ``Calibration`` as JSON."""

    measured: str = tag(1)


@message(213)
@dataclass(frozen=True, slots=True)
class Ready(Message):
    """Child → supervisor: it has done its work once with a real example and can serve."""

    detail: str = tag(1, default="")


@message(214)
@dataclass(frozen=True, slots=True)
class InitializeFailed(Message):
    """Child → supervisor, last: it cannot serve. ``exit_code``: the contract of ``host.errors``."""

    reason: str = tag(1)
    exit_code: int = tag(2, default=1)


# --- being alive --------------------------------------------------------------------------------


@message(220)
@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Supervisor → child. ``sent_ns``: the supervisor's monotonic clock."""

    sent_ns: int = tag(1)


@message(221)
@dataclass(frozen=True, slots=True)
class Pong(Message):
    """Child → supervisor: ``sent_ns`` of the ping, unchanged, so that the round trip is on one clock."""

    sent_ns: int = tag(1)


@message(222)
@dataclass(frozen=True, slots=True)
class LogLine(Message):
    """Child → supervisor: one log record. ``fields``: a JSON object of extra fields. ``level`` as in logging."""

    level: int = tag(1)
    logger: str = tag(2)
    text: str = tag(3)
    created: float = tag(4)
    fields: str = tag(5, default="{}")


# --- how inference does ---------------------------------------------------------------------------

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Upper bounds of ``StageReport.batch_sizes``; one more count is for all above."""
LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds, in seconds, of ``StageReport.latencies``; one more count is for all above."""


@declare
@dataclass(frozen=True, slots=True)
class StageReport(Struct):
    """One stage since the process started. ``waiting``: requests that have not ended, now.

    ``requests``: how many were begun, or waited too long to be; ``late``: how many of them a listener had to
    wait for. ``quanta``: batches run; ``busy_s``: device time of them. ``batch_sizes``: quanta by size, in
    ``BATCH_BUCKETS``; ``batch_items``: the sum of their sizes. ``latencies``, ``latency_sum_s``: requests by
    the time from asked for (speech: from the end of the room's phrase before) to the first result
    (transcript, text, samples), in ``LATENCY_BUCKETS_S``. Counts are of their own bucket, not cumulative
    over buckets.
    """

    stage: Literal["stt", "llm", "tts"] = tag(1)
    waiting: int = tag(2, minimum=0)
    requests: int = tag(3, minimum=0)
    late: int = tag(4, minimum=0)
    quanta: int = tag(5, minimum=0)
    busy_s: float = tag(6)
    batch_sizes: tuple[int, ...] = tag(7, default=())
    latencies: tuple[int, ...] = tag(8, default=())
    latency_sum_s: float = tag(9, default=0.0)
    batch_items: int = tag(10, default=0)


@declare
@dataclass(frozen=True, slots=True)
class MemoryReport(Struct):
    """The device's memory as it was before the models were loaded, in MB (10^6 bytes); zeros where nobody asked.

    ``planned_mb``: what the process takes at most; ``available_mb``: what was there for it; ``room_mb``: what one
    room takes; ``more_rooms``: how many more than ``max_rooms`` would have fitted.
    """

    planned_mb: int = tag(1, default=0, minimum=0)
    available_mb: int = tag(2, default=0, minimum=0)
    room_mb: int = tag(3, default=0, minimum=0)
    more_rooms: int = tag(4, default=0, minimum=0)


@message(215)
@dataclass(frozen=True, slots=True)
class InferenceReport(Message):
    """Inference → supervisor, every second while it serves.

    ``busy``: share of the last interval in which the device lane worked, 0 to 1. ``pressure``: share of
    the requests of about the last 10 s that began late, 0 to 1.
    """

    device: str = tag(1)
    rooms: int = tag(2, minimum=0)
    max_rooms: int = tag(3, minimum=1)
    busy: float = tag(4, minimum=0.0, maximum=1.0)
    pressure: float = tag(5, minimum=0.0, maximum=1.0)
    stages: tuple[StageReport, ...] = tag(6, default=())
    memory: MemoryReport = tag(7, default=MemoryReport())


# --- one job ------------------------------------------------------------------------------------


@message(230)
@dataclass(frozen=True, slots=True)
class StartJob(Message):
    """Supervisor → job process: take one room. ``job``: a serialized livekit.Job ("" for a local room).

    ``transport`` "livekit": join ``url`` with ``token``. "local": play ``waves`` as the caller's turns
    and write the agent's speech to ``out`` (and both sides to ``record``, when given); or, with a ``url``
    ``unix:PATH``, another process is the caller (``host.job.line``).
    ``identity``, ``name``, ``metadata``, ``attributes`` (a JSON object of strings): who the agent is in the
    room, as the request was accepted. ``worker_id``: the registration that the job came by.
    """

    job_id: str = tag(1)
    room: str = tag(2)
    transport: Literal["livekit", "local"] = tag(3)
    job: bytes = tag(4, default=b"")
    url: str = tag(5, default="")
    token: str = tag(6, default="")
    identity: str = tag(7, default="")
    waves: tuple[str, ...] = tag(8, default=())
    out: str = tag(9, default="")
    record: str = tag(10, default="")
    settings: str = tag(11, default="{}")
    worker_id: str = tag(12, default="")
    name: str = tag(13, default="")
    metadata: str = tag(14, default="")
    attributes: str = tag(15, default="{}")


@message(231)
@dataclass(frozen=True, slots=True)
class JobUpdate(Message):
    """Job process → supervisor. "success" and "failed" are sent before the job leaves its room."""

    job_id: str = tag(1)
    status: JobStatus = tag(2)
    error: str = tag(3, default="")


@message(232)
@dataclass(frozen=True, slots=True)
class JobUpdateAck(Message):
    """Supervisor → job process: the final status has been passed on; the room may be left."""

    job_id: str = tag(1)


@message(233)
@dataclass(frozen=True, slots=True)
class TurnReport(Message):
    """Job process → supervisor: one turn of conversation.

    ``audio_s``: seconds of the caller's speech. ``endpointing_ms``: last voiced sample → turn decided.
    ``stt_ms``: turn decided → transcript at hand (0 when the speculative one was there in time).
    ``ttft_ms``: generation asked for → first text. ``ttfa_ms``: generation asked for → first sample at
    the job. ``response_ms``: last voiced sample of the caller → first sample of the answer in the room.
    ``reply``: what was heard of it (all of it unless ``interrupted``). ``out_start_s``/``out_end_s``:
    where the answer lies in the local room's recording. ``barge_in_ms``: what the caller says was taken
    for an interruption → the room is silent (-1 when the answer was not interrupted). A stage that was
    not reached (an answer of which nothing was heard) has -1 as well. ``endpointing_delay_ms``: the silence that was
    chosen to end the turn (-1: not known). ``ahead_ms``: how long before the turn was committed its answer was begun on
    speculation (0: it was not). ``guesses_dropped``: answers to the turn that were begun in vain.
    """

    job_id: str = tag(1)
    turn: int = tag(2)
    transcript: str = tag(3)
    reply: str = tag(4)
    interrupted: bool = tag(5)
    audio_s: float = tag(6)
    endpointing_ms: float = tag(7)
    stt_ms: float = tag(8)
    ttft_ms: float = tag(9)
    ttfa_ms: float = tag(10)
    response_ms: float = tag(11)
    reply_audio_s: float = tag(12)
    out_start_s: float = tag(13, default=0.0)
    out_end_s: float = tag(14, default=0.0)
    barge_in_ms: float = tag(15, default=-1.0)
    endpointing_delay_ms: float = tag(16, default=-1.0)
    ahead_ms: float = tag(17, default=0.0)
    guesses_dropped: int = tag(18, default=0)


# --- ending -------------------------------------------------------------------------------------


@message(240)
@dataclass(frozen=True, slots=True)
class Shutdown(Message):
    """Supervisor → child: finish in order. The child answers with ``Exiting`` and ends."""

    reason: str = tag(1)


@message(242)
@dataclass(frozen=True, slots=True)
class Ending(Message):
    """Job process → supervisor: its room is over, or it was told to end; what is left is the user's code.

    It is killed if it has not ended after ``shutdown_process_timeout``.
    """

    reason: str = tag(1)


@message(241)
@dataclass(frozen=True, slots=True)
class Exiting(Message):
    """Child → supervisor, last."""

    reason: str = tag(1)
