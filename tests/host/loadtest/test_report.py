"""What is made of a load test's results: JSON, its schema, the page, the tables, and what binds."""

from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from host.loadtest.binding import binding
from host.loadtest.load_test import Curve
from host.loadtest.measure import CrossTalk, slope_per_min
from host.loadtest.page import page
from host.loadtest.report import from_json, schema, to_json
from host.loadtest.results import (
    DeviceUse,
    ProcessUse,
    Stages,
    by_kind,
    why_not,
)
from host.loadtest.screen import bindings, process_table, stage_table, table
from inference.wire.supervision import TurnReport
from tests.host.loadtest.made_up import conversations, point, report, spread

FOREIGN = CrossTalk("room-1", "room-2", "audio", "words of <others>")


def check(value: Any, part: dict[str, Any], whole: dict[str, Any], at: str) -> None:
    """As much of JSON Schema as there is in the report's."""
    if "$ref" in part:
        part = whole["$defs"][part["$ref"].rpartition("/")[2]]
    if "anyOf" in part:
        fits = 0
        for choice in part["anyOf"]:
            try:
                check(value, choice, whole, at)
                fits += 1
            except AssertionError:
                continue
        assert fits, at
        return
    kinds = part.get("type", [])
    names = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None),
             "boolean": bool}  # fmt: skip
    if kinds:
        assert any(isinstance(value, names[kind]) for kind in ([kinds] if isinstance(kinds, str) else kinds)), at
    if "enum" in part:
        assert value in part["enum"], at
    if isinstance(value, dict):
        properties = part.get("properties", {})
        assert set(part.get("required", ())) <= set(value), at
        for key, inner in value.items():
            check(inner, properties.get(key, part.get("additionalProperties", {})), whole, f"{at}.{key}")
    if isinstance(value, list) and "items" in part and part["items"] is not False:
        for index, inner in enumerate(value):
            check(inner, part["items"], whole, f"{at}[{index}]")


def test_the_json_is_what_its_schema_says() -> None:
    data = from_json(to_json(report(cross_talk=(FOREIGN,))))
    check(data, schema(), schema(), "report")
    assert data["curves"][1]["points"][0]["conversations"]["after_endpointing"]["p95"] is None
    with pytest.raises(AssertionError, match=r"report\.machine\.cores"):
        check({**data, "machine": {**data["machine"], "cores": "two"}}, schema(), schema(), "report")


def test_every_number_has_its_place_in_the_schema() -> None:
    text = json.dumps(schema())
    for name in ("after_endpointing", "underruns", "cross_talk", "slope_mb_per_min", "left_over", "binding"):
        assert f'"{name}"' in text


class Balance(HTMLParser):
    """Every element that is opened is closed."""

    EMPTY = ("meta", "br", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count += 1
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count += 1


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    html = page(report())
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert html.count("<figure>") == html.count("<svg") == 7
    assert not re.search(r"<script|<link|<img|@import|src=|url\(http", html)
    # What comes from outside is text.
    assert "A &lt;fast&gt; CPU" in html
    assert "Set &lt;b&gt;a&lt;/b&gt; timer" in html
    for words in ("2 rooms", "all 4 rooms are taken", "job-1 (77)", "language model", "p95 is 3000 ms"):
        assert words in html
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)


def test_cross_talk_stands_at_the_top_of_the_page() -> None:
    assert "Cross-talk" not in page(report())
    html = page(report(cross_talk=(FOREIGN,)))
    assert html.index("Cross-talk: this run has failed") < html.index("<h2>")
    assert "words of &lt;others&gt;" in html


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    curve = Curve("real", (point(12, 1.2345), point(24, 2.5, holds=False)))
    for part in (table(curve, 1500), bindings(curve.points), stage_table(curve.points), process_table(curve.points[0])):
        console.print(part)
    text = console.export_text()
    assert "…" not in text
    assert "1955" in text
    assert "24  language model: the device worked" in text


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"target_s": 0.5}, "p95 is"),
        ({"refused": 2}, "2 rooms refused"),
        ({"failed": 1}, "1 jobs failed"),
        ({"cross_talk": 1, "refused": 1}, "cross-talk"),
    ],
)
def test_what_holds(change: dict[str, Any], says: str) -> None:
    asked = {"target_s": 1.5, "refused": 0, "failed": 0, "cross_talk": 0} | change
    because = why_not(conversations(2, 0.5), **asked)
    assert because.startswith(says)
    assert bool(because) == bool(says)


def test_underruns_do_not_hold() -> None:
    talk = conversations(2, 0.1, underruns=3)
    assert why_not(talk, target_s=1.5, refused=0, failed=0, cross_talk=0) == "3 underruns"


STAGES = Stages(spread(0.5), spread(0.1), spread(0.4), spread(0.2), spread(0.01))
INFERENCE = ProcessUse("inference", "inference", 1.5, 1000.0, 1000.0)
JOBS = tuple(ProcessUse("job", f"job-{number}", 0.1, 15.0, 15.0) for number in range(3))


@pytest.mark.parametrize(
    ("busy", "cpu", "refused", "stage", "why"),
    [
        (0.95, 1.0, ["all 4 rooms are taken"], "places", "all 4 rooms are taken"),
        (0.95, 1.0, [], "voice", "95% of the time, 50% of the time for the voice"),
        (0.5, 0.97, [], "CPU", "of 2 cores inference took 1.5, other programs 0.4"),
        (0.5, 0.9, [], "other programs", "they took 1.6 of 2 cores, inference 1.5"),
        (0.5, 0.5, [], "language model", "nothing was full"),
    ],
)
def test_what_binds(busy: float, cpu: float, refused: list[str], stage: str, why: str) -> None:
    device = DeviceUse("cpu", busy, 0.0, {"stt": 0.2, "llm": 0.25, "tts": 0.5})
    others = 1.6 if stage == "other programs" else 0.4
    found = binding(
        device, STAGES, cpu=cpu, cores=2, others=others, processes=(INFERENCE, *JOBS), refused=refused, latest_ms=1.0
    )
    assert found.stage == stage
    assert why in found.why


# --- numbers --------------------------------------------------------------------------------------


def test_a_slope() -> None:
    rising = [(second, 100 + second / 60) for second in range(0, 300, 5)]
    assert slope_per_min(rising) == pytest.approx(1)
    assert slope_per_min([(second, 7) for second in range(0, 300, 5)]) == 0
    assert math.isnan(slope_per_min(rising[:10]))


def test_processes_of_a_kind_are_one() -> None:
    steep = ProcessUse("job", "job-9", 0.4, 25.0, 30.0, 2.0)
    inference, jobs = by_kind((INFERENCE, *JOBS, steep))
    assert inference == INFERENCE
    assert (jobs.kind, jobs.count, jobs.memory_max_mb, jobs.slope_mb_per_min) == ("job", 4, 30.0, 2.0)
    assert jobs.cpu == pytest.approx(0.175)


def turn(response_ms: float, ttfa_ms: float) -> TurnReport:
    return TurnReport("job", 1, "a", "b", False, 1.0, 500.0, 10.0, 100.0, ttfa_ms, response_ms, 2.0)


def test_the_stages_of_a_response_add_up() -> None:
    stages = Stages.of([turn(900, 350), turn(-1, -1)])
    parts = (stages.endpointing, stages.stt, stages.first_token, stages.first_audio, stages.playout)
    assert [part.p50 for part in parts] == pytest.approx([0.5, 0.01, 0.1, 0.25, 0.04])
    assert sum(part.p50 for part in parts) == pytest.approx(0.9)
    assert all(part.count == 1 for part in parts)
