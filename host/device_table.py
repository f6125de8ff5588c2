"""What a device takes for the engines' work, as a file: written by ``host calibrate``, read by ``host plan``.

Those of known devices lie in ``host/device_tables``. Times are in seconds, memory is in bytes, CPU in cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from host.errors import ConfigError
from inference.budget import Facts
from inference.costs import CostTable, Stage

FORMAT = 1
"""Counts up when a name changes its meaning or goes; new names may come any time."""

KNOWN = Path(__file__).parent / "device_tables"


class Hardware(msgspec.Struct, frozen=True):
    """Where it was measured. ``gpu`` is "" and ``gpu_memory`` 0 without one; ``memory``: of the machine."""

    cpu: str
    cores: float
    memory: int
    system: str
    gpu: str = ""
    gpu_memory: int = 0


class Phrase(msgspec.Struct, frozen=True, array_like=True):
    """A phrase of an answer: its tokens, and the seconds of its speech."""

    tokens: int
    speech_s: float


class DeviceTable(msgspec.Struct, frozen=True):
    """The file.

    ``stages``: stage -> size of a batch -> seconds of a quantum. ``ticks``: rooms -> seconds of a tick of voice
    activity detection, every 32 ms. ``answers``: what the language model answered, cut into phrases.
    ``first_block_s``, ``block_s``: speech that the voice makes in its first step of a phrase, and in each other.
    ``job_cores``: CPU of one room's job, on average over a conversation. ``facts``: what the models take of the memory.
    ``note``: what a reader of its numbers must know.
    """

    format: int
    name: str
    device: Literal["cpu", "cuda"]
    hardware: Hardware
    profile: str
    models: dict[str, str]
    threads: int
    llm_threads: int
    measured_at: str
    roomful: str
    stages: dict[str, dict[int, float]]
    ticks: dict[int, float]
    answers: tuple[tuple[Phrase, ...], ...]
    first_block_s: float
    block_s: float
    job_cores: float
    facts: Facts
    note: str = ""

    def costs(self, slower: float = 1.0, faster: dict[Stage, float] | None = None) -> CostTable:
        """As the simulator takes it; ``slower``: times all; ``faster``: stages that take so much less time."""
        table = CostTable()
        for name, sizes in self.stages.items():
            stage = Stage(name)
            for size, seconds in sizes.items():
                table.learn(stage, size, seconds * slower / (faster or {}).get(stage, 1.0))
        return table

    def limits(self) -> dict[Stage, int]:
        """How many a quantum of speech to text serves at most; the other engines take what they get."""
        return {
            stage: max(self.stages[stage.value])
            for stage in (Stage.ENCODE, Stage.TRANSCRIBE)
            if self.stages.get(stage.value)
        }

    def tick_s(self, rooms: int) -> float:
        """Of a tick of voice activity detection: that of the next larger number that was measured, or in proportion."""
        larger = [seconds for size, seconds in sorted(self.ticks.items()) if size >= rooms]
        if larger:
            return larger[0]
        most = max(self.ticks, default=0)
        return self.ticks[most] * rooms / most if most else 0.0


def read_table(name: str, known: Path = KNOWN) -> DeviceTable:
    """The table in the file ``name``, or of the known device of that name. Raises ``ConfigError``."""
    path = Path(name)
    if not path.is_file() and "/" not in name:
        path = known / f"{name}.json"
    try:
        data = path.read_bytes()
    except OSError as exc:
        names = ", ".join(known_devices(known)) or "none"
        raise ConfigError(
            f"--device {name}: neither a file nor a known device; known are {names}; host calibrate measures this one"
        ) from exc
    try:
        found: Any = msgspec.json.decode(data)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            version = found.get("format") if isinstance(found, dict) else None
            raise ConfigError(f"{path}: format is {version!r}, allowed: {FORMAT}: measure again with host calibrate")
        table = msgspec.convert(found, DeviceTable, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise ConfigError(f"{path}: not a table of a device: {exc}") from exc
    unknown = table.stages.keys() - {stage.value for stage in Stage}
    missing = {stage.value for stage in Stage} - table.stages.keys()
    if unknown or missing:
        wrong = ", ".join(sorted(unknown or missing))
        raise ConfigError(f"{path}: stages: {'unknown' if unknown else 'missing'}: {wrong}")
    return table


def write_table(table: DeviceTable, path: Path) -> None:
    """Write it, for people to read, too. Raises ``ConfigError``."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(rounded(table)), indent=1) + b"\n")
    except OSError as exc:
        raise ConfigError(f"--out {path}: {exc.strerror}") from exc


def known_devices(known: Path = KNOWN) -> list[str]:
    """The names of the tables that ship."""
    return sorted(path.stem for path in known.glob("*.json"))


def rounded(table: DeviceTable) -> DeviceTable:
    """With as many digits as a measurement has."""
    return msgspec.structs.replace(
        table,
        stages={stage: {size: _short(s) for size, s in sizes.items()} for stage, sizes in table.stages.items()},
        ticks={rooms: _short(seconds) for rooms, seconds in table.ticks.items()},
        answers=tuple(
            tuple(Phrase(phrase.tokens, _short(phrase.speech_s)) for phrase in answer) for answer in table.answers
        ),
        first_block_s=_short(table.first_block_s),
        block_s=_short(table.block_s),
        job_cores=_short(table.job_cores),
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")
