"""What the supervisor is told: what to run, and how closely to watch it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from host.options import BUILT_IN_AGENT, JobExecutorType
from inference.wire.supervision import InitializeInference


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """What to run and how closely to watch it. Times are in seconds, memory in MB (10^6 bytes).

    ``inference``: the first message of the inference process; where it writes its stacks is filled in. Both
    environments are complete: nothing of this process's own is added. ``entrypoint``, ``prewarm`` ("": none):
    references to functions, ``import_path``: where their modules are found (``host.job.functions``).
    ``runtime_dir``: a private folder for the stacks of processes that are killed; "" writes them to standard
    error. ``ping_timeout``: a child that does not answer for that long is killed. ``high_ping_threshold``: a
    round trip longer than that is warned of. ``job_memory_warn_mb``, ``job_memory_limit_mb``: memory (PSS) of a
    job process that is warned of, and that it is killed for; 0 is off.
    """

    inference: InitializeInference
    inference_environment: Mapping[str, str]
    job_environment: Mapping[str, str]
    entrypoint: str = BUILT_IN_AGENT
    prewarm: str = ""
    import_path: tuple[str, ...] = ()
    runtime_dir: str = ""
    job_executor_type: JobExecutorType = JobExecutorType.PROCESS
    num_idle_processes: int = 1
    initialize_process_timeout: float = 10.0
    inference_initialize_timeout: float = 300.0
    shutdown_process_timeout: float = 60.0
    ping_interval: float = 2.5
    ping_timeout: float = 60.0
    high_ping_threshold: float = 0.5
    job_memory_warn_mb: float = 500.0
    job_memory_limit_mb: float = 0.0
    log_level: str = "INFO"
