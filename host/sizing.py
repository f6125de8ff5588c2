"""``host calibrate`` and ``host plan``: what this machine takes for a room, and how many a machine holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from host.device_table import DeviceTable, read_table, write_table
from host.errors import ConfigError
from host.flags import (
    ConfigOption,
    DeviceOption,
    LogFormatOption,
    LogLevelOption,
    ModelsDirOption,
    ProfileOption,
    errors,
    load,
    output,
)
from host.plan import ENGINES, MOST_ROOMS, Plan, Question, make_plan
from host.signals import run


def calibrate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the table goes.")] = Path("device.json"),
    name: Annotated[str | None, typer.Option("--name", help="What the device is called; default: the file's name.")] = (
        None
    ),
    rooms: Annotated[int, typer.Option("--rooms", min=1, max=255, help="The largest batch that is measured.")] = 16,
    job_cores: Annotated[
        float | None, typer.Option("--job-cores", min=0.0, help="CPU of one room's job, as a load test says it.")
    ] = None,
    note: Annotated[str, typer.Option("--note", help="What a reader of the numbers must know.")] = "",
    profile: ProfileOption = None,
    models_dir: ModelsDirOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Measure what this device takes for everything that a room needs: some minutes, on a machine that is quiet."""
    from host.calibrate import ASSUMED_JOB_CORES
    from host.calibrate import calibrate as measure

    settings = load(
        config,
        profile=profile,
        models_dir=models_dir,
        device=device,
        log_level=log_level,
        log_format=log_format,
        quiet=True,
    )
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: no such folder: {out.parent}")

    async def measured() -> None:
        found = await measure(
            settings,
            name=name or out.stem,
            rooms=rooms,
            job_cores=ASSUMED_JOB_CORES if job_cores is None else job_cores,
            note=note,
            on_progress=lambda text: errors.print(text, style="dim"),
        )
        write_table(found, out)
        output.print(costs_table(found))

    run(measured())
    output.print(f"written to {out}; now: host plan --device {out}")


def plan(
    device: Annotated[str, typer.Option("--device", help="A table of host calibrate, or a known device's name.")] = (
        "cpu-2-cores"
    ),
    rooms: Annotated[
        str, typer.Option("--rooms", help="The curve of these: a number, or several (1,2,4). Default: up to the most.")
    ] = "",
    target_ms: Annotated[
        float, typer.Option("--target-ms", min=1, help="p95 of the response, without the endpointing delay.")
    ] = 1500.0,
    cycle_s: Annotated[float, typer.Option("--cycle-s", min=1, help="From one utterance of a caller to the next.")] = (
        10.0
    ),
    interruptions: Annotated[float, typer.Option("--interruptions", min=0, max=1, help="Share of the answers.")] = 0.1,
    endpointing_ms: Annotated[float, typer.Option("--endpointing-ms", min=0, help="Silence that ends a turn.")] = 500.0,
    context: Annotated[int, typer.Option("--context", min=256, help="Tokens of a room's conversation.")] = 2048,
    memory_gb: Annotated[
        float, typer.Option("--memory-gb", min=0, help="Memory that is there; default: what the table's machine has.")
    ] = 0.0,
    busy_cores: Annotated[float, typer.Option("--busy-cores", min=0, help="CPU that others take, in cores.")] = 0.0,
    duration: Annotated[
        float, typer.Option("--duration", min=10, help="Seconds that a load test would measure, for each N.")
    ] = 60.0,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="The callers of a load test with this seed. Default: many others."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Predict how many rooms a device holds, what binds, and what would lift it. Needs no models, only its table."""
    table = read_table(device)
    question = Question(
        target_s=target_ms / 1000,
        cycle_s=cycle_s,
        endpointing_s=endpointing_ms / 1000,
        interrupts=interruptions,
        context_tokens=context,
        available=round(memory_gb * 1e9),
        busy_cores=busy_cores,
        duration_s=duration,
        seed=seed,
    )
    numbers = _numbers(rooms)
    if as_json:
        output.file.write(json.dumps(described(table, make_plan(table, question, numbers))) + "\n")
        return
    with errors.status("simulating") as status:
        found = make_plan(table, question, numbers, lambda count: status.update(f"simulating {count} rooms"))
    output.print(rendered(table, question, found))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (0,)
    if not all(1 <= number <= MOST_ROOMS for number in numbers):
        raise ConfigError(f"--rooms {text}: allowed is a number from 1 to {MOST_ROOMS}, or several with commas")
    return numbers


def described(table: DeviceTable, found: Plan) -> dict[str, object]:
    """The plan as plain values; times in seconds."""
    return {
        "device": table.name,
        "profile": table.profile,
        "rooms": found.rooms,
        "binding": found.binding.what,
        "bounds": [asdict(bound) for bound in found.bounds],
        "lifts": [asdict(lift) for lift in found.lifts],
        "memory_mb": found.memory.budget.total // 1_000_000,
        "room_mb": found.memory.budget.room // 1_000_000,
        "curve": [asdict(row) for row in found.rows],
    }


def rendered(table: DeviceTable, question: Question, found: Plan) -> RenderableType:
    """For a person."""
    hardware = table.hardware
    head = Text.assemble((table.name, "bold"), f"  {hardware.gpu or hardware.cpu}, {hardware.cores:g} cores")
    about = f"profile {table.profile}, measured {table.measured_at[:10]}" + (f"; {table.note}" if table.note else "")
    target = (
        f"a caller speaks every {question.cycle_s:g} s; p95 of the response at most "
        f"{1000 * question.target_s:.0f} ms without the endpointing delay of {1000 * question.endpointing_s:.0f} ms"
    )
    binding = found.binding
    verdict = Text.assemble(
        (f"{found.rooms} room{'' if found.rooms == 1 else 's'}", "bold green" if found.rooms else "bold red"),
        f": {binding.what} binds, {binding.why}",
    )
    parts: list[RenderableType] = [head, Text(about, "dim"), Text(target, "dim"), _curve(question, found), verdict]
    parts += [
        Text(f"  {bound.what}: {_at_most(bound.rooms)} ({bound.why})", "dim")
        for bound in sorted(found.bounds, key=lambda bound: bound.rooms)
    ]
    if found.lifts:
        parts.append(Text("what would lift it:"))
        parts += [
            Text(f"  {lift.what}: {_at_most(lift.rooms)}", "dim")
            for lift in sorted(found.lifts, key=lambda lift: -lift.rooms)
        ]
    return Group(*parts)


def _at_most(rooms: int) -> str:
    return f"{rooms} rooms or more" if rooms >= MOST_ROOMS else f"{rooms} room{'' if rooms == 1 else 's'}"


def _curve(question: Question, found: Plan) -> Table:
    caption = "response and silence within answers in ms (silence: of a minute and room); shares of the device's time"
    shown = Table(caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("rooms", "p50", "p95", "+delay", "stt", "llm", "tts", "busy", "silence", "CPU", "holds"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        holds = row.holds(question) and row.rooms <= found.rooms
        shown.add_row(
            str(row.rooms),
            f"{1000 * row.p50_s:.0f}",
            f"{1000 * row.p95_s:.0f}",
            f"{1000 * (row.p95_s + question.endpointing_s):.0f}",
            *(f"{row.shares[engine]:.0%}" for engine in ENGINES),
            f"{row.busy:.0%}",
            f"{1000 * row.dry_s:.0f}",
            f"{row.cpu:.2f}",
            "yes" if holds else "no",
            style="" if holds else "dim",
        )
    return shown


def costs_table(table: DeviceTable) -> Table:
    """What was measured, in ms."""
    sizes = sorted({size for known in table.stages.values() for size in known} | set(table.ticks))
    title = f"{table.name}: ms of a quantum, by how many it serves"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("stage", no_wrap=True)
    for size in sizes:
        shown.add_column(str(size), justify="right")
    for name, known in (*table.stages.items(), ("voice activity tick", table.ticks)):
        shown.add_row(name, *(f"{1000 * known[size]:.1f}" if size in known else "" for size in sizes))
    return shown
