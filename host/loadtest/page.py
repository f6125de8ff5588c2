"""The report of a load test as one HTML page: tables, and charts as SVG inside of it; it needs nothing else."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from host.loadtest.measure import Distribution
from host.loadtest.report import CurveReport, Report
from host.loadtest.results import Point, by_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"real": "#0f766e", "stock": "#b45309", "fake": "#4338ca"}
_ENGINES = {"real": "Roomful", "stock": "stock engines, one request at a time", "fake": "fake engines"}
_STAGES = (
    ("stt", "speech to text", "#1d4ed8"),
    ("first_token", "first token", "#0f766e"),
    ("first_audio", "first audio", "#ca8a04"),
    ("playout", "playout", "#9ca3af"),
)
_STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1f2937; background: #f3f4f6; margin: 0; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 34px 0 10px; }
.sub { color: #6b7280; margin: 0 0 20px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tile { background: #fff; border: 1px solid #e5e7eb; border-radius: 8px; padding: 12px 18px; flex: 1 1 190px; }
.tile b { display: block; font-size: 26px; line-height: 1.25; } .tile span { color: #6b7280; font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 14px; }
figure { background: #fff; border: 1px solid #e5e7eb; border-radius: 8px; margin: 0; padding: 14px; }
figcaption { font-weight: 600; margin-bottom: 6px; } figure svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; background: #fff; border: 1px solid #e5e7eb; border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid #eef0f2; white-space: nowrap; }
th { color: #6b7280; font-weight: 600; } td.text, th.text { text-align: left; white-space: normal; min-width: 90px; }
td { vertical-align: top; }
tr.fails td { color: #6b7280; } .bad { color: #b91c1c; font-weight: 600; } .good { color: #0f766e; font-weight: 600; }
.alarm { background: #fef2f2; border: 1px solid #b91c1c; border-radius: 8px; padding: 12px 18px; margin: 0 0 16px; }
p.note { color: #6b7280; font-size: 13.5px; }
"""


def page(report: Report) -> str:
    """The page."""
    parts = [_head(report), _alarm(report), _tiles(report), _charts(report)]
    for curve in report.curves:
        parts += [
            _curve_table(curve, report),
            _quality_table(curve),
            _stage_table(curve),
            _process_tables(curve),
            _trouble(curve),
        ]
    parts.append(_notes(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Roomful load test</title><style>{_STYLE}</style></head><body><main>"
        + "\n".join(part for part in parts if part)
        + "</main></body></html>\n"
    )


def charts_possible() -> bool:
    """Whether matplotlib, which draws the charts, is installed (the extra ``loadtest``)."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        return False
    return True


# --- head -----------------------------------------------------------------------------------------


def _head(report: Report) -> str:
    machine, asked = report.machine, report.asked
    gigabytes = machine.memory_mb / 1000
    return (
        "<h1>How many rooms fit</h1>"
        f'<p class="sub">{_text(machine.cpu)}, {machine.cores:g} cores, {gigabytes:.0f} GB; engines on '
        f"{_text(machine.device)}; profile {_text(asked.profile)}; {_text(asked.transport)} rooms. One utterance every "
        f"{asked.cycle_s:g} s a room, answers of up to {asked.reply_tokens} tokens, {asked.duration_s:g} s for each "
        f"number of rooms. {_text(report.made_at)}, Roomful {_text(report.roomful)}.</p>"
    )


def _alarm(report: Report) -> str:
    talk = [talk for curve in report.curves for point in curve.points for talk in point.cross_talk]
    if not talk:
        return ""
    rows = "".join(
        f"<li>in {_text(one.room)}, of {_text(one.other)} ({one.how}): “{_text(one.text)}”</li>" for one in talk[:10]
    )
    return f'<div class="alarm"><b class="bad">Cross-talk: this run has failed.</b><ul>{rows}</ul></div>'


def _tiles(report: Report) -> str:
    tiles = []
    for curve in report.curves:
        best = next((point for point in curve.points if point.rooms == curve.most), None)
        name = _ENGINES.get(curve.engines, curve.engines)
        tiles.append((_rooms(curve.most), f"{name}: p95 ≤ {report.asked.target_ms:.0f} ms without endpointing"))
        if best is not None:
            talk = best.conversations
            tiles += [
                (f"{_ms(talk.after_endpointing.p95)} ms", f"{name}: p95 with {_rooms(best.rooms)}"),
                (f"{talk.underruns}", f"{name}: underruns in {talk.answers} answers"),
            ]
        if curve.points:
            last = curve.points[-1]
            tiles.append((_text(last.binding.stage), f"{name}: binds with {_rooms(last.rooms)}"))
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{_text(what)}</span></div>' for value, what in tiles)
    return f'<div class="tiles">{cells}</div>'


# --- charts ---------------------------------------------------------------------------------------


def _charts(report: Report) -> str:
    if not any(curve.points for curve in report.curves):
        return ""
    figures = [("Response without the endpointing delay, ms", _response_chart(report))]
    for curve in report.curves:
        if curve.points:
            name = _short(curve)
            figures += [
                (f"Where the response goes, mean ms ({name})", _stage_chart(curve)),
                (f"What is used, percent ({name})", _use_chart(curve)),
            ]
            shown = max((p for p in curve.points if p.holds), key=lambda p: p.rooms, default=curve.points[-1])
            figures.append((f"Every response with {_rooms(shown.rooms)}, ms ({name})", _time_chart(curve, shown)))
    cells = "".join(f"<figure><figcaption>{_text(title)}</figcaption>{picture}</figure>" for title, picture in figures)
    return f'<h2>Charts</h2><div class="charts">{cells}</div>'


def _figure() -> tuple[Any, Axes]:
    # The object interface of matplotlib: no state of the process is changed, no display is looked for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.7), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb")
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Any, columns: int = 4) -> None:
    """Above the picture, where it hides nothing."""
    figure.legend(
        loc="outside upper left", ncols=columns, frameon=False, fontsize=9, handlelength=2.4, columnspacing=1.2
    )


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _rooms_axis(axes: Axes, rooms: Iterable[int]) -> None:
    axes.set_xlabel("rooms at once")
    axes.set_xticks(sorted(set(rooms)))


def _response_chart(report: Report) -> str:
    figure, axes = _figure()
    target = report.asked.target_ms
    for curve in report.curves:
        rooms = [point.rooms for point in curve.points]
        colour, name = _COLOURS.get(curve.engines, "#111827"), _short(curve)
        for what, style, label in (("p95", "-", f"{name}, p95"), ("p50", "--", f"{name}, p50")):
            values = [getattr(point.conversations.after_endpointing, what) * 1000 for point in curve.points]
            axes.plot(rooms, values, style, color=colour, marker="o", markersize=4, label=label)
    axes.axhline(target, color="#b91c1c", linestyle=":", linewidth=1.2, label=f"target {target:.0f} ms")
    axes.set_ylim(bottom=0)
    _rooms_axis(axes, (point.rooms for curve in report.curves for point in curve.points))
    # A column a kind of engines.
    _legend(figure, len(report.curves) + 1)
    return _svg(figure)


def _stage_chart(curve: CurveReport) -> str:
    figure, axes = _figure()
    names = [str(point.rooms) for point in curve.points]
    bottom = [0.0] * len(names)
    for key, label, colour in _STAGES:
        # What comes ahead of time is none.
        heights = [max(0.0, _known(getattr(point.stages, key).mean) * 1000) for point in curve.points]
        axes.bar(names, heights, bottom=bottom, color=colour, label=label, width=0.6)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.set_xlabel("rooms at once")
    # Few bars are no wider than many.
    axes.set_xlim(-0.6, max(len(names), 5) - 0.4)
    axes.set_ylim(bottom=0)
    _legend(figure)
    return _svg(figure)


def _use_chart(curve: CurveReport) -> str:
    figure, axes = _figure()
    rooms = [point.rooms for point in curve.points]
    axes.plot(rooms, [100 * point.device.busy for point in curve.points], marker="o", color="#0f766e", label="device")
    axes.plot(rooms, [100 * point.cpu for point in curve.points], marker="o", color="#4338ca", label="CPU, all of it")
    jobs = [100 * sum(use.cpu for use in point.processes if use.kind == "job") / point.cores for point in curve.points]
    axes.plot(rooms, jobs, marker="o", color="#9ca3af", label="CPU, jobs")
    axes.set_ylim(0, 105)
    _rooms_axis(axes, rooms)
    _legend(figure)
    return _svg(figure)


def _time_chart(curve: CurveReport, point: Point) -> str:
    figure, axes = _figure()
    colour = _COLOURS.get(curve.engines, "#111827")
    responses = point.conversations.responses
    axes.scatter(
        [at_s for at_s, _, _ in responses], [1000 * rest for _, _, rest in responses], s=14, color=colour, alpha=0.7
    )
    axes.set_xlim(0, point.seconds)
    axes.set_ylim(bottom=min([0.0, *(1100 * rest for _, _, rest in responses)]))
    axes.set_xlabel("seconds since the measuring began")
    return _svg(figure)


# --- tables ---------------------------------------------------------------------------------------


def _curve_table(curve: CurveReport, report: Report) -> str:
    head = ("rooms", "p50", "p95", "p99", "longest", "drift", "p50 with", "p95 with", "device", "CPU", "others")
    rows = []
    for point in curve.points:
        rest, response = point.conversations.after_endpointing, point.conversations.response
        drift_s = point.conversations.drift_s_per_min
        times = (rest.p50, rest.p95, rest.p99, rest.maximum, drift_s, response.p50, response.p95)
        others = _percent(point.others / point.cores)
        cells = [str(point.rooms), *map(_ms, times), _percent(point.device.busy), _percent(point.cpu), others]
        verdict = '<span class="good">holds</span>' if point.holds else _text(point.why_not)
        rows.append((cells, [verdict, f"<b>{_text(point.binding.stage)}</b>: {_text(point.binding.why)}"]))
    name = _ENGINES.get(curve.engines, curve.engines)
    return (
        f"<h2>{_text(name)}: response in ms, p95 without endpointing at most {report.asked.target_ms:.0f}</h2>"
        + _table(head, rows, ("verdict", "what binds"), [not point.holds for point in curve.points])
    )


def _quality_table(curve: CurveReport) -> str:
    head = ("rooms", "turns", "cut off", "taken back", "lost", "wrong", "word errors", "answers", "underruns",
            "checked", "garbled", "refused")  # fmt: skip
    rows: list[tuple[list[str], list[str]]] = []
    for point in curve.points:
        talk = point.conversations
        cells = [
            str(point.rooms),
            str(talk.turns),
            _bad(talk.cut_off),
            str(talk.taken_back),
            _bad(talk.lost),
            _bad(talk.wrong),
            _percent(talk.word_error_rate),
            str(talk.answers),
            _bad(talk.underruns),
            str(len(point.checked)),
            _bad(point.garbled),
            _bad(len(point.refused)),
        ]
        rows.append((cells, []))
    return "<h2>How well they were served</h2>" + _table(head, rows)


def _stage_table(curve: CurveReport) -> str:
    head = ("rooms", "endpointing", "speech to text", "first token", "first audio", "playout", "silenced")
    rows = []
    for point in curve.points:
        stages = point.stages
        parts = (stages.endpointing, stages.stt, stages.first_token, stages.first_audio, stages.playout)
        cells = [f"{_ms(part.p50)} / {_ms(part.p95)}" for part in (*parts, point.conversations.silenced)]
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in point.device.stages.items())
        memory = f"{point.device.memory_mb:.0f} of {point.device.memory_total_mb:.0f} MB"
        rows.append(([str(point.rooms), *cells], [shares, memory if point.device.memory_total_mb else "–"]))
    return "<h2>Stages of the response, p50 / p95 in ms</h2>" + _table(
        head, rows, ("the device's time", "device memory")
    )


def _process_tables(curve: CurveReport) -> str:
    head = ("rooms", "CPU of a core", "memory MB", "most MB", "MB a minute")
    rows = []
    for point in curve.points:
        for use in by_kind(point.processes):
            slope = "–" if math.isnan(use.slope_mb_per_min) else f"{use.slope_mb_per_min:+.2f}"
            cells = [str(point.rooms), _percent(use.cpu), f"{use.memory_mb:.0f}", f"{use.memory_max_mb:.0f}", slope]
            rows.append((cells, [f"{_text(use.kind)} × {use.count}"]))
    return "<h2>Processes, one of each kind on average</h2>" + _table(head, rows, ("kind",))


def _trouble(curve: CurveReport) -> str:
    rows = []
    for point in curve.points:
        for turn in point.conversations.trouble[:20]:
            what = "taken back" if turn.taken_back else "wrong" if turn.wrong else turn.outcome
            rows.append(([str(point.rooms)], [what, _text(turn.clip), _text(turn.heard_as), _text(turn.room)]))
        rows += [([str(point.rooms)], ["refused", "", _text(one.reason), _text(one.room)]) for one in point.refused]
        rows += [([str(point.rooms)], ["failed", "", _text(one), ""]) for one in point.failed]
        rows += [
            ([str(point.rooms)], ["garbled", _text(check.text), _text(check.transcript), _text(check.room)])
            for check in point.checked
            if check.likeness < 0.5
        ]
    rows += [(["–"], ["left over", "", _text(one), ""]) for one in curve.left_over]
    if not rows:
        return ""
    return "<h2>What went wrong</h2>" + _table(("rooms",), rows, ("what", "said", "heard as", "room"))


def _notes(report: Report) -> str:
    late = max((point.late_ms for curve in report.curves for point in curve.points), default=0.0)
    notes = (
        "Response: from the last voiced sample of an utterance to the first voiced sample of the answer, in the "
        "caller's audio.",
        f"Without endpointing: less the delay that is set ({report.asked.endpointing_ms:.0f} ms), or less what a turn "
        "took, where that is shorter.",
        "Drift: what the response grew by in each minute.",
        "Underrun: 20 ms or more of nothing to hear in the middle of an answer.",
        "Cut off: the agent took the turn and was heard while the caller was speaking; taken back: it took the turn "
        "and nothing was heard of it.",
        "Garbled: the answer, transcribed as it was heard, is less than half of what the agent said.",
        "Others: the share of the CPU that other programs took.",
        f"The callers' own clocks were late by up to {late:.0f} ms (p99).",
    )
    return f'<p class="note">{_text(" ".join(notes))}</p>'


def _table(
    head: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Sequence[str]]],
    text_head: Sequence[str] = (),
    fails: Sequence[bool] = (),
) -> str:
    """``rows``: numbers, and then cells of text; both are HTML."""
    titles = "".join(f"<th>{_text(name)}</th>" for name in head)
    titles += "".join(f'<th class="text">{_text(name)}</th>' for name in text_head)
    lines = []
    for index, (numbers, texts) in enumerate(rows):
        cells = "".join(f"<td>{cell}</td>" for cell in numbers)
        cells += "".join(f'<td class="text">{cell}</td>' for cell in texts)
        lines.append(f'<tr class="fails">{cells}</tr>' if index < len(fails) and fails[index] else f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{titles}</tr>{"".join(lines)}</table></div>'


def _percentiles(values: Distribution) -> tuple[float, float, float]:
    return values.p50, values.p95, values.p99


def _rooms(count: int) -> str:
    return "1 room" if count == 1 else f"{count} rooms"


def _short(curve: CurveReport) -> str:
    return _ENGINES.get(curve.engines, curve.engines).partition(",")[0]


def _ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1000:.0f}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _bad(count: int) -> str:
    return f'<span class="bad">{count}</span>' if count else "0"


def _text(text: str) -> str:
    return html.escape(text)
