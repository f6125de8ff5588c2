"""``host status``: what a running host says of itself at ``/worker``, for a person."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from itertools import pairwise
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from host.errors import ConnectionFailedError

_TIMEOUT_S = 5.0
_WIDE = 100
"""Columns from which there is place for kinds and job ids, too."""
_BAR = 20
_GAP = 2
"""Between two columns of the table of processes: one of padding, one where a box would have its line."""
_STATE_STYLES = {
    "ready": "green",
    "running": "bold green",
    "starting": "yellow",
    "initializing": "yellow",
    "stopping": "yellow",
    "ended": "red",
}


# --- asking ---------------------------------------------------------------------------------------


def watch(
    url: str, interval: float = 1.0, *, once: bool = False, as_json: bool = False, console: Console | None = None
) -> None:
    """Show the host at ``url`` every ``interval`` seconds until Ctrl-C, or ``once``; ``as_json``: an object a line.

    Raises ``ConnectionFailedError`` when no host answers at first. Later the table stays and says for how
    long there has been no answer; JSON ends with the error.
    """
    console = console or Console()
    described = fetch(url)
    try:
        if as_json:
            _lines(url, interval, described, once=once, console=console)
        elif once:
            console.print(render(described))
        else:
            _live(url, interval, described, console)
    except KeyboardInterrupt:
        return


def _lines(url: str, interval: float, described: dict[str, Any], *, once: bool, console: Console) -> None:
    while True:
        console.file.write(json.dumps(described) + "\n")
        console.file.flush()
        if once:
            return
        time.sleep(interval)
        described = fetch(url)


def _live(url: str, interval: float, described: dict[str, Any], console: Console) -> None:
    answered_at = time.monotonic()
    with Live(render(described), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            try:
                described, problem = fetch(url), ""
                answered_at = time.monotonic()
            except ConnectionFailedError as exc:
                problem = f"{exc}; this is what it said {duration(time.monotonic() - answered_at)} ago"
            live.update(render(described, problem=problem), refresh=True)


def fetch(url: str) -> dict[str, Any]:
    """What the host at ``url`` ("http://127.0.0.1:8081") says. Raises ``ConnectionFailedError`` naming it."""
    base = (url if "://" in url else f"http://{url}").rstrip("/")
    # A host is asked directly, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{base}/worker", timeout=_TIMEOUT_S) as answer:
            described = json.load(answer)
    except urllib.error.HTTPError as exc:
        exc.close()
        raise ConnectionFailedError(f"what answers at {base} is no Roomful host (HTTP status {exc.code})") from exc
    except (OSError, HTTPException, ValueError) as exc:
        if isinstance(exc, json.JSONDecodeError | UnicodeDecodeError):
            raise ConnectionFailedError(f"what answers at {base} is no Roomful host (no JSON)") from exc
        raise ConnectionFailedError(f"no host answers at {base}: {_reason(exc)}") from exc
    if not isinstance(described, dict) or not described.keys() >= _NEEDED:
        raise ConnectionFailedError(f"what answers at {base} is no Roomful host, or one of another version")
    return described


_NEEDED = frozenset({
    "worker_id", "worker_status", "agent_name", "active_jobs", "sdk_version", "dev", "uptime_s", "draining",
    "max_jobs", "load_threshold", "load", "admission", "inference", "processes",
})  # fmt: skip


def _reason(exc: Exception) -> str:
    reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
    if isinstance(reason, TimeoutError):
        return f"no answer within {_TIMEOUT_S:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    return str(reason) or type(reason).__name__


# --- showing --------------------------------------------------------------------------------------


def render(described: Mapping[str, Any], *, problem: str = "") -> RenderableType:
    """The table, as wide as it is asked to be from 80 columns on. ``problem`` stands above it in red."""
    return _Status(described, problem)


class _Status:
    def __init__(self, described: Mapping[str, Any], problem: str) -> None:
        self._described = described
        self._problem = problem

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        ascii_only = options.ascii_only or not options.encoding.startswith("utf")
        wide = options.max_width >= _WIDE
        parts = [
            _head(self._described),
            _load(self._described, ascii_only=ascii_only),
            _inference(self._described["inference"]),
            _processes(self._described["processes"], options.max_width - 2, wide=wide, ascii_only=ascii_only),
        ]
        if self._problem:
            # On top, because a live table is cut at the terminal's lower end.
            parts.insert(0, Text(self._problem, "bold red"))
        yield Group(*(Padding(part, (0, 1, 1, 1)) for part in parts))


_CONNECTIONS = {
    "WS_AVAILABLE": ("registered, available", "green"),
    "WS_FULL": ("registered, full", "yellow"),
}


def _head(worker: Mapping[str, Any]) -> RenderableType:
    state, style = _CONNECTIONS.get(worker["worker_status"], ("not registered", "red"))
    if worker["draining"]:
        state, style = f"{state}, draining", "yellow"
    title = Text.assemble(("Roomful", "bold"), f" {worker['sdk_version']}")
    for text, its_style in ((printable(worker["worker_id"]), "cyan"), (state, style)):
        if text:
            title.append("  ").append(text, its_style)
    details = [f"agent {printable(worker['agent_name'])}" if worker["agent_name"] else "every room"]
    details.append("development" if worker["dev"] else "production")
    details.append(f"up {duration(worker['uptime_s'])}")
    return Group(title, Text(", ".join(details), "dim"))


def _load(worker: Mapping[str, Any], *, ascii_only: bool) -> RenderableType:
    load, threshold = worker["load"], worker["load_threshold"]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, width=len("  pressure"))
    table.add_column(no_wrap=True, width=_BAR)
    table.add_column(no_wrap=True, width=len("100 %"), justify="right")
    table.add_column(no_wrap=True, overflow="crop")
    # A load is at most 1: a threshold above it is none.
    limit = f"of {percent(threshold)} at most" if threshold is not None and threshold <= 1 else "no threshold"
    notes = {
        "memory": "of what was left at start",
        "pressure": "of the latest requests were late",
        "jobs": f"{worker['active_jobs']} of {worker['max_jobs']} rooms",
    }
    for name in ("value", "cpu", "memory", "pressure", "jobs"):
        style = _load_style(load[name], threshold)
        table.add_row(
            Text("load", "bold") if name == "value" else Text(f"  {name}"),
            bar(load[name], style, ascii_only=ascii_only),
            Text(percent(load[name]), style),
            Text(limit if name == "value" else notes.get(name, ""), "dim"),
        )
    admission = worker["admission"]
    if admission["accepts"]:
        verdict = Text("takes another room", "green")
    else:
        verdict = Text(f"takes no room: {printable(admission['reason'])}", "yellow")
    return Group(table, verdict)


def _load_style(share: float, threshold: float | None) -> str:
    full = 1.0 if threshold is None or threshold <= 0 else threshold
    return "red" if share >= full else "yellow" if share >= 0.75 * full else "green"


def _inference(inference: Mapping[str, Any]) -> RenderableType:
    restarts = inference["restarts"]
    again = Text(f"  {restarts} restart{'' if restarts == 1 else 's'}", "yellow" if restarts else "dim")
    if not inference["ready"]:
        return Text.assemble(("inference", "bold"), "  ", ("not serving", "red"), again)
    line = Text.assemble(
        ("inference", "bold"),
        f"  on {printable(inference['device'])}  {inference['rooms']} of {inference['max_rooms']} rooms",
        f"  busy {percent(inference['busy'])}  pressure {percent(inference['pressure'])}",
        again,
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("  stage", no_wrap=True)
    for heading in ("waiting", "requests", "late", "batches"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in inference["stages"]:
        late = stage["late"] / stage["requests"] if stage["requests"] else 0.0
        table.add_row(
            f"  {stage['stage']}",
            str(stage["waiting"]),
            f"{stage['requests']:,}",
            f"{stage['late']:,} ({percent(late)})",
            f"{stage['quanta']:,}",
        )
    parts: list[RenderableType] = [line]
    if sustained := inference.get("sustained"):
        parts.append(Text(_plan_of_time(sustained, inference["rooms"]), "dim"))
    if planned := inference.get("memory", {}).get("planned_mb"):
        parts.append(Text(_plan_of_memory(planned, inference["memory"]), "dim"))
    if inference["stages"]:
        parts.append(table)
    return Group(*parts)


def _plan_of_time(sustained: Mapping[str, Any], rooms: int) -> str:
    more = max(0, sustained["rooms"] - rooms)
    return (
        f"  answers {sustained['rooms']} {'room' if sustained['rooms'] == 1 else 'rooms'} within"
        f" {sustained['target_ms']:g} ms ({printable(sustained['binding'])} binds): {more or 'no'} more now"
    )


def _plan_of_memory(planned: float, plan: Mapping[str, Any]) -> str:
    more = plan["more_rooms"]
    return (
        f"  memory planned {memory(planned)} of {memory(plan['available_mb'])}, {memory(plan['room_mb'])} a room:"
        f" {more or 'no'} more {'room' if more == 1 else 'rooms'} would fit"
    )


def _processes(processes: Iterable[Mapping[str, Any]], width: int, *, wide: bool, ascii_only: bool) -> RenderableType:
    """The table of processes. What does not fit ``width`` is taken from the rooms' names, never from a number."""
    headings = ("process", "kind", "state", "pid", "room", "job", "memory", "ping", "age")
    rows = [
        (
            printable(process["name"]),
            process["kind"],
            process["state"],
            str(process["pid"] or "-"),
            printable(process["room"]) or "-",
            printable(process["job_id"]) or "-",
            memory(process["memory_mb"]),
            round_trip(process["ping_ms"]),
            duration(process["age_s"]),
        )
        for process in processes
    ]
    shown = [heading for heading in headings if wide or heading not in ("kind", "job")]
    widths = {
        heading: max(cell_len(cell) for cell in (heading, *(row[index] for row in rows)))
        for index, heading in enumerate(headings)
    }
    left = width - _GAP * (len(shown) - 1) - sum(widths[heading] for heading in shown if heading != "room")
    table = Table(
        box=box.ASCII2 if ascii_only else box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )
    for heading in shown:
        table.add_column(
            heading,
            width=min(widths["room"], max(left, len("room"))) if heading == "room" else widths[heading],
            justify="right" if heading in ("pid", "memory", "ping", "age") else "left",
            no_wrap=True,
            overflow="crop" if ascii_only else "ellipsis",
        )
    for row in rows:
        cells = dict(zip(headings, row, strict=True))
        styles = {"state": _STATE_STYLES.get(cells["state"], ""), "room": "cyan" if cells["room"] != "-" else ""}
        table.add_row(*(Text(cells[heading], styles.get(heading, "")) for heading in shown))
    return table


# --- values ---------------------------------------------------------------------------------------


def bar(share: float, style: str = "", *, width: int = _BAR, ascii_only: bool = False) -> Text:
    """``share`` from 0 to 1; anything above nothing shows."""
    full, empty = "#." if ascii_only else "█░"
    filled = min(width, max(round(share * width), 1 if share >= 0.005 else 0))
    return Text.assemble((full * filled, style), (empty * (width - filled), "dim"))


def percent(share: float) -> str:
    """``42 %``."""
    return f"{share * 100:.0f} %"


def memory(megabytes: float) -> str:
    """MB of 10^6 bytes as ``61 MB`` or ``1.8 GB``; ``-`` for 0, which is unknown."""
    if megabytes <= 0:
        return "-"
    return f"{megabytes:.0f} MB" if megabytes < 999.5 else f"{megabytes / 1000:.1f} GB"


def round_trip(milliseconds: float) -> str:
    """``0.4 ms``, ``12 ms``, ``1.2 s``; ``-`` for a negative one, which is unknown."""
    if milliseconds < 0:
        return "-"
    if milliseconds < 9.95:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 999.5 else f"{milliseconds / 1000:.1f} s"


def duration(seconds: float) -> str:
    """The largest unit; of fewer than ten, the next one, too: ``40 s``, ``2 min 5 s``, ``12 min``, ``3 d 4 h``."""
    left = max(0, int(seconds))
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    for (unit, size), (below, below_size) in pairwise(units):
        if left >= size:
            count, rest = divmod(left, size)
            less = rest // below_size
            return f"{count} {unit} {less} {below}" if count < 10 and less else f"{count} {unit}"
    return f"{left} s"


def printable(text: str) -> str:
    """Text of others without what a terminal would obey: room names are chosen by strangers."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
