"""Which stage keeps more rooms from fitting, and why. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from host.loadtest.results import Binding, DeviceUse, ProcessUse, Stages

BUSY = 0.8
"""A device lane that works for such a share of the time makes requests wait; so does a CPU."""

OTHERS = 0.25
"""Cores that other programs take, from which on it is worth saying."""

_NAMES = {"stt": "speech to text", "llm": "language model", "tts": "voice", "vad": "voice activity"}
_PARTS = {
    "stt": "speech to text",
    "first_token": "language model",
    "first_audio": "voice",
    "playout": "playout",
}


def binding(
    device: DeviceUse,
    stages: Stages,
    *,
    cpu: float,
    cores: float,
    others: float,
    processes: Sequence[ProcessUse],
    refused: Sequence[str],
    latest_ms: float,
) -> Binding:
    """The first of: places, the device's time, the machine's CPU, the longest stage of the response."""
    if refused:
        return Binding("places", f"{len(refused)} rooms were refused: {refused[0]}")
    stage, share = max(device.stages.items(), key=lambda item: item[1], default=("", 0.0))
    stage = _NAMES.get(stage, stage)
    if device.busy >= BUSY:
        return Binding(
            stage, f"the device worked {device.busy:.0%} of the time, {share:.0%} of the time for the {stage}"
        )
    if cpu >= BUSY:
        kinds: dict[str, float] = {}
        for process in processes:
            kinds[process.kind] = kinds.get(process.kind, 0.0) + process.cpu * process.count
        kind, most = max(kinds.items(), key=lambda item: item[1], default=("", 0.0))
        if others > max(most, OTHERS):
            return Binding("other programs", f"they took {others:.1f} of {cores:g} cores, {kind} {most:.1f}")
        beside = f", other programs {others:.1f}" if others > OTHERS else ""
        why = f"the CPU was busy {cpu:.0%} of the time: of {cores:g} cores {kind} took {most:.1f}{beside}"
        return Binding("CPU", why)
    parts = {name: getattr(stages, part).p95 for part, name in _PARTS.items() if getattr(stages, part).count}
    if not parts:
        return Binding("nothing", "no turn was answered")
    name, worst = max(parts.items(), key=lambda item: item[1])
    late = f"; the callers themselves were up to {latest_ms:.0f} ms late" if latest_ms > 100 else ""
    return Binding(
        name,
        f"nothing was full (device {device.busy:.0%}, CPU {cpu:.0%}); the longest part of the response is the "
        f"{name}, p95 {worst * 1000:.0f} ms{late}",
    )
