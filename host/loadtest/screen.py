"""What a load test shows on a terminal: how it goes, and the table at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live as LiveDisplay
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from host.loadtest.binding import OTHERS
from host.loadtest.load_test import Curve
from host.loadtest.point import Live
from host.loadtest.results import Point, by_kind

_EVERY_S = 10.0
_BOX = SIMPLE_HEAD
_PADDING = (0, 1, 0, 0)
_TITLES = (
    "rooms", "p50", "p95", "p99", "p95\nwith", "turns", "under\nruns", "cut\noff", "lost", "wrong", "no\nroom",
    "dev-\nice", "CPU",
)  # fmt: skip


class Screen:
    """Live on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = LiveDisplay(console=console, refresh_per_second=2, transient=True)
        self._said_s = -math.inf

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def progress(self, text: str) -> None:
        """What the host does while it comes up."""
        if self._console.is_terminal:
            self._live.update(Text(text, style="dim"))
        else:
            self._console.print(f"[dim]{escape(text)}[/]", highlight=False)

    def show(self, now: Live) -> None:
        """How a point goes."""
        if self._console.is_terminal:
            self._live.update(_live(now))
        elif now.passed_s - self._said_s >= _EVERY_S or now.passed_s < self._said_s:
            self._said_s = now.passed_s
            self._console.print(_line(now), highlight=False, soft_wrap=True)

    def point(self, engines: str, point: Point) -> None:
        """A point is over."""
        self._said_s = -math.inf
        verdict = "[green]holds[/]" if point.holds else f"[red]does not hold[/]: {escape(point.why_not)}"
        talk = point.conversations
        self._console.print(
            f"{point.rooms} rooms ({engines}): p50 {ms(talk.after_endpointing.p50)}, "
            f"p95 {ms(talk.after_endpointing.p95)} ms without endpointing; {verdict}",
            highlight=False,
            soft_wrap=True,
        )
        if point.others > OTHERS:
            self._console.print(
                f"[yellow]other programs took {point.others:.1f} of {point.cores:g} cores[/]: the numbers are of both",
                highlight=False,
            )


def ms(seconds: float) -> str:
    """Milliseconds, or a dash.

    >>> ms(1.2345), ms(float("nan"))
    ('1234', '–')
    """
    return "–" if math.isnan(seconds) else f"{seconds * 1000:.0f}"


def _line(now: Live) -> str:
    return (
        f"[dim]{now.passed_s:.0f} of {now.whole_s:.0f} s[/] rooms {now.up}/{now.rooms} {now.doing} "
        f"p50 {ms(now.after_endpointing.p50)} p95 {ms(now.after_endpointing.p95)} ms, turns {now.turns} a minute, "
        f"underruns {now.underruns}, device {now.busy:.0%}, CPU {now.cpu:.0%}"
    )


def _live(now: Live) -> Group:
    grid = Table.grid(padding=(0, 2))
    for _ in range(8):
        grid.add_column()
    grid.add_row(
        "[dim]rooms[/]",
        f"[bold]{now.up}[/] of {now.rooms}",
        "[dim]p50[/]",
        f"[bold]{ms(now.after_endpointing.p50)}[/] ms",
        "[dim]p95[/]",
        f"[bold]{ms(now.after_endpointing.p95)}[/] ms",
        "[dim]turns a minute[/]",
        f"{now.turns}",
    )
    grid.add_row(
        "[dim]underruns[/]",
        _bad(now.underruns),
        "[dim]lost[/]",
        _bad(now.lost),
        "[dim]cut off[/]",
        _bad(now.cut_off),
        "[dim]refused[/]",
        _bad(now.refused),
    )
    grid.add_row(
        "[dim]device[/]",
        f"{now.busy:.0%}" + (f" {now.device_mb:.0f} MB" if now.device_mb else ""),
        "[dim]CPU[/]",
        f"{now.cpu:.0%}",
        "[dim]cross-talk[/]",
        _bad(now.cross_talk),
        "",
        f"[dim]{now.doing}[/]",
    )
    return Group(grid, ProgressBar(total=now.whole_s, completed=min(now.passed_s, now.whole_s), width=72))


def _bad(count: int) -> str:
    return f"[red]{count}[/]" if count else "0"


def table(curve: Curve, target_ms: float) -> Table:
    """The curve over the number of rooms."""
    found = Table(
        title=f"{curve.engines} engines: response in ms, without endpointing (target: p95 ≤ {target_ms:.0f})",
        title_justify="left",
        box=_BOX,
        padding=_PADDING,
        show_edge=False,
    )
    for name in _TITLES:
        found.add_column(name, justify="right")
    for point in sorted(curve.points, key=lambda point: point.rooms):
        talk = point.conversations
        rest = talk.after_endpointing
        found.add_row(
            str(point.rooms),
            ms(rest.p50),
            ms(rest.p95),
            ms(rest.p99),
            ms(talk.response.p95),
            str(talk.turns),
            _bad(talk.underruns),
            _bad(talk.cut_off),
            _bad(talk.lost),
            _bad(talk.wrong),
            _bad(len(point.refused)),
            f"{point.device.busy:.0%}",
            f"{point.cpu:.0%}",
            style="" if point.holds else "dim",
        )
    return found


def bindings(points: Sequence[Point]) -> Text:
    """What keeps more rooms from fitting, a line for each number of them."""
    lines = Text("what binds")
    for point in sorted(points, key=lambda point: point.rooms):
        lines.append(f"\n{point.rooms:5}  ").append(point.binding.stage, "bold").append(f": {point.binding.why}")
    return lines


def stage_table(points: Sequence[Point]) -> Table:
    """Where the response goes."""
    found = Table(
        title="stages of the response, p50 / p95 in ms",
        title_justify="left",
        box=_BOX,
        padding=_PADDING,
        show_edge=False,
    )
    found.add_column("rooms", justify="right")
    for name in ("endpointing", "speech to text", "first token", "first audio", "playout"):
        found.add_column(name, justify="right")
    for point in sorted(points, key=lambda point: point.rooms):
        stages = point.stages
        found.add_row(
            str(point.rooms),
            *(
                f"{ms(part.p50)} / {ms(part.p95)}"
                for part in (stages.endpointing, stages.stt, stages.first_token, stages.first_audio, stages.playout)
            ),
        )
    return found


def process_table(point: Point) -> Table:
    """What the processes took."""
    found = Table(
        title=f"processes with {point.rooms} rooms", title_justify="left", box=_BOX, padding=_PADDING, show_edge=False
    )
    for name in ("kind", "how many"):
        found.add_column(name)
    for name in ("CPU of a core", "memory MB", "most MB", "MB a minute"):
        found.add_column(name, justify="right")
    for use in by_kind(point.processes):
        slope = "–" if math.isnan(use.slope_mb_per_min) else f"{use.slope_mb_per_min:+.2f}"
        found.add_row(
            use.kind, str(use.count), f"{use.cpu:.1%}", f"{use.memory_mb:.0f}", f"{use.memory_max_mb:.0f}", slope
        )
    return found
