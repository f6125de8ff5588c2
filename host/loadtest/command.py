"""``host loadtest``: virtual callers against the real process tree, and how many rooms this machine holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from host.errors import ConfigError, ConversationError
from host.flags import (
    ApiKeyOption,
    ApiSecretOption,
    ConfigOption,
    DeviceOption,
    LogFormatOption,
    LogLevelOption,
    ModelsDirOption,
    ProfileOption,
    UrlOption,
    errors,
    load,
    output,
)
from host.signals import run

if TYPE_CHECKING:
    from host.config import Config
    from host.loadtest.load_test import Curve, LoadTest
    from host.loadtest.report import Report
    from host.loadtest.results import Point

CALLERS, REPORT = "Callers", "Report"
"""Panels of ``--help``."""


def loadtest(
    rooms: Annotated[
        str, typer.Option("--rooms", help="How many at once: a number, several (1,2,4), or auto for the most that fit.")
    ] = "auto",
    target_ms: Annotated[
        float, typer.Option("--target-ms", min=1, help="p95 of the response, without the endpointing delay.")
    ] = 1500.0,
    duration: Annotated[float, typer.Option("--duration", min=1, help="Seconds that are measured, for each N.")] = 60.0,
    most: Annotated[int, typer.Option("--most", min=1, max=255, help="auto does not try more rooms.")] = 16,
    places: Annotated[
        int | None, typer.Option("--places", min=1, max=255, help="Rooms the host has; default: as many as are tried.")
    ] = None,
    admission: Annotated[
        bool, typer.Option("--admission", help="The host refuses by its load, too, as in production.")
    ] = False,
    transport: Annotated[
        str, typer.Option("--transport", help="local, or livekit: real WebRTC callers at --url.")
    ] = "local",
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Afterwards the same with the stock engines, one request at a time.")
    ] = False,
    cycle_s: Annotated[
        float, typer.Option("--cycle-s", min=1, help="From one utterance to the next.", rich_help_panel=CALLERS)
    ] = 10.0,
    call_s: Annotated[
        float,
        typer.Option("--call-s", min=0, help="Mean length of a call; 0: callers stay.", rich_help_panel=CALLERS),
    ] = 0.0,
    interruptions: Annotated[
        float, typer.Option("--interruptions", min=0, max=1, help="Share of the answers.", rich_help_panel=CALLERS)
    ] = 0.1,
    reply_tokens: Annotated[
        int, typer.Option("--reply-tokens", min=1, help="Longest answer, in tokens.", rich_help_panel=CALLERS)
    ] = 40,
    speech: Annotated[
        Path | None,
        typer.Option("--speech", help="Folder of recordings with a transcripts.tsv.", rich_help_panel=CALLERS),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same callers again.", rich_help_panel=CALLERS)] = 1,
    check: Annotated[
        int,
        typer.Option(
            "--check",
            min=0,
            help="Answers that are transcribed as they were heard, for each N.",
            rich_help_panel=REPORT,
        ),
    ] = 24,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for report.json and report.html.", rich_help_panel=REPORT),
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    api_secret: ApiSecretOption = None,
    profile: ProfileOption = None,
    models_dir: ModelsDirOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Have virtual callers talk to the host in real time, and tell how long answers take, and for how many rooms."""
    settings = load(
        config,
        profile=profile,
        models_dir=models_dir,
        device=device,
        log_level=log_level,
        log_format=log_format,
        worker={"ws_url": url, "api_key": api_key, "api_secret": api_secret, "port": 0},
        quiet=True,
    )
    from host.loadtest.callers import Habits
    from host.loadtest.load_test import LoadTest
    from host.loadtest.speech import default_folder

    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: this is no folder")
    test = LoadTest(
        rooms=_rooms(rooms),
        most=most,
        target_ms=target_ms,
        duration_s=duration,
        habits=Habits(cycle_s=cycle_s, call_s=call_s, interrupts=interruptions),
        transport=_transport(transport, settings),
        speech=(speech or default_folder()).resolve(),
        seed=seed,
        check=check,
        reply_tokens=reply_tokens,
        places=places,
        admission=admission,
        baseline=baseline,
    )
    run(_hold(test, settings, out))


async def _hold(test: LoadTest, settings: Config, out: Path | None) -> None:
    from host.loadtest import load_test, report
    from host.loadtest.screen import Screen

    found: dict[str, list[Point]] = {}
    curves: list[load_test.Curve] = []
    with Screen(errors) as screen:

        def on_point(engines: str, point: Point) -> None:
            found.setdefault(engines, []).append(point)
            screen.point(engines, point)

        try:
            curves = await load_test.run(
                test, settings, on_progress=screen.progress, show=screen.show, on_point=on_point
            )
        finally:
            # Whatever ends it: what was measured was measured.
            curves = curves or [load_test.Curve(engines, tuple(points)) for engines, points in found.items()]
            if out is not None and curves:
                _write(report.make(test, settings, curves), out)
    _print(curves, test.target_ms)
    _check(curves)


def _print(curves: list[Curve], target_ms: float) -> None:
    from host.loadtest.screen import bindings, process_table, stage_table, table

    for curve in curves:
        output.print(table(curve, target_ms), bindings(curve.points), stage_table(curve.points), sep="\n")
        if curve.points:
            output.print(process_table(max(curve.points, key=lambda point: point.rooms)))


def _check(curves: list[Curve]) -> None:
    """Raises ``ConversationError`` for cross-talk."""
    for talk in (talk for curve in curves for point in curve.points for talk in point.cross_talk):
        raise ConversationError(
            f"cross-talk: in {talk.room} was heard what belongs to {talk.other} ({talk.how}): {talk.text!r}"
        )


def _write(found: Report, out: Path) -> None:
    from host.loadtest.page import charts_possible, page
    from host.loadtest.report import schema, to_json

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_bytes(to_json(found))
        (out / "report.schema.json").write_text(json.dumps(schema(), indent=1))
        if charts_possible():
            (out / "report.html").write_text(page(found), encoding="utf-8")
        else:
            errors.print("for report.html with its charts install matplotlib: pip install 'roomful\\[loadtest]'")
    except OSError as exc:
        raise ConfigError(f"--out {out}: {exc.strerror}") from exc


def _rooms(text: str) -> tuple[int, ...] | None:
    if text == "auto":
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(1 <= number <= 255 for number in numbers):
        raise ConfigError(f"--rooms {text}: allowed is auto, a number from 1 to 255, or several with commas")
    return numbers


def _transport(text: str, settings: Config) -> Literal["local", "livekit"]:
    if text == "local":
        return "local"
    if text != "livekit":
        raise ConfigError(f"--transport {text}: allowed is local or livekit")
    worker = settings.worker
    if not (worker.ws_url and worker.api_key and worker.api_secret):
        raise ConfigError("--transport livekit needs --url, --api-key and --api-secret (or LIVEKIT_URL and so on)")
    return "livekit"
