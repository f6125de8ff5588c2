"""A report that nobody measured, for what is made of reports."""

from __future__ import annotations

import math

from host.loadtest.measure import Checked, Conversations, CrossTalk, Distribution, TurnMeasure
from host.loadtest.report import FORMAT, Asked, CurveReport, Machine, Report
from host.loadtest.results import Binding, DeviceUse, Point, ProcessUse, Refused, Stages


def spread(middle: float) -> Distribution:
    return Distribution.of(middle * share for share in (0.7, 0.9, 1.0, 1.2, 1.6))


def conversations(rooms: int, middle_s: float, *, underruns: int = 0) -> Conversations:
    rest = [(float(at), middle_s + 0.5, middle_s) for at in range(rooms)]
    trouble = TurnMeasure(
        "room", 3, "clip.wav", 1.0, 2.0, "cut off", heard_as="Set <b>a</b> timer", word_errors=0.5, committed=3
    )
    return Conversations(
        response=spread(middle_s + 0.5),
        after_endpointing=spread(middle_s),
        silenced=Distribution.of([]),
        turns=6 * rooms,
        answered=6 * rooms - 1,
        lost=0,
        cut_off=1,
        taken_back=2,
        wrong=0,
        spurious=0,
        underruns=underruns,
        underrun_s=0.04 * underruns,
        answers=7 * rooms,
        word_error_rate=0.07,
        drift_s_per_min=0.01,
        cross_talk=(),
        responses=tuple(rest),
        trouble=(trouble,),
    )


def point(rooms: int, middle_s: float, *, holds: bool = True, cross_talk: tuple[CrossTalk, ...] = ()) -> Point:
    part = spread(middle_s / 4)
    processes = (
        ProcessUse("inference", "inference", 1.2, 1200.0, 1250.0, 0.5),
        *(ProcessUse("job", f"job-{number}", 0.02, 15.0, 16.0) for number in range(rooms)),
    )
    return Point(
        rooms,
        60.0,
        conversations(rooms, middle_s),
        Stages(spread(0.51), part, part, part, part),
        processes,
        DeviceUse("cpu", 0.5, 0.0, {"stt": 0.2, "llm": 0.3}),
        0.6,
        2.0,
        0.1,
        (Refused("room-9", "all 4 rooms are taken"),) if not holds else (),
        (),
        (Checked("room", "agent-1", "Hello there.", "Hello there.", 1.0, 2.0),),
        cross_talk,
        3.0,
        holds,
        "" if holds else "p95 is 3000 ms",
        Binding("language model", "the device worked 90% of the time"),
    )


def report(*, cross_talk: tuple[CrossTalk, ...] = ()) -> Report:
    ours = (point(1, 0.3), point(2, 0.6), point(4, 1.8, holds=False, cross_talk=cross_talk))
    return Report(
        FORMAT,
        "2030-01-02T03:04:05+00:00",
        "1.2.3",
        Machine("A <fast> CPU", 2.0, 16_000.0, "Linux 6", "cpu"),
        Asked(1500.0, 60.0, 10.0, 0.0, 500.0, 40, "local", "speech", 1, "cpu-small"),
        (CurveReport("real", 2, ours), CurveReport("stock", 0, (point(1, math.nan, holds=False),), ("job-1 (77)",))),
    )
