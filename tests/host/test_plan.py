from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from host.cli import app
from host.device_table import (
    FORMAT,
    KNOWN,
    DeviceTable,
    Hardware,
    Phrase,
    known_devices,
    read_table,
    rounded,
    write_table,
)
from host.errors import ConfigError
from host.plan import PATH_S, Plan, Question, habits, make_plan, simulate
from inference.budget import Facts, LanguageModelFacts, TranscriberFacts, VoiceFacts
from inference.costs import Stage


def ask(**changes: object) -> Question:
    """A question that is answered fast."""
    return Question(**({"room_seconds": 1500.0} | changes))  # type: ignore[arg-type]


STAGES = {
    "encode": {1: 0.06},
    "transcribe": {1: 0.08, 2: 0.1, 4: 0.14},
    "prefill": {1: 0.05, 4: 0.15},
    "decode": {1: 0.008, 8: 0.03},
    "first speech": {1: 0.05},
    "speech": {1: 0.04, 2: 0.06},
}


def table(faster: float = 1.0, **changes: object) -> DeviceTable:
    made = DeviceTable(
        format=FORMAT,
        name="small",
        device="cpu",
        hardware=Hardware("Some CPU", 2.0, 24_000_000_000, "Linux"),
        profile="cpu-small",
        models={"stt": "a", "llm": "b", "tts": "c"},
        threads=2,
        llm_threads=1,
        measured_at="2026-11-21T18:00:00+00:00",
        roomful="0.1.0",
        stages={stage: {size: seconds / faster for size, seconds in sizes.items()} for stage, sizes in STAGES.items()},
        ticks={1: 0.0012, 8: 0.002},
        answers=((Phrase(14, 3.5), Phrase(22, 5.5)), (Phrase(9, 2.2), Phrase(14, 3.6)), (Phrase(12, 3.0),)),
        first_block_s=0.19,
        block_s=0.5,
        job_cores=0.02,
        facts=Facts(
            LanguageModelFacts(96_576_768, 23_040, 49_152, 576, 1536, 8192),
            TranscriberFacts(70_595_072, 2_008_073, 512, 6),
            VoiceFacts(63_201_294),
        ),
    )
    return msgspec.structs.replace(made, **changes)


# --- the table ------------------------------------------------------------------------------------


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_table(table(), tmp_path / "mine.json")
    assert read_table(str(tmp_path / "mine.json")) == rounded(table())
    assert read_table("mine", known=tmp_path) == rounded(table())


def test_who_is_not_known(tmp_path: Path) -> None:
    write_table(table(), tmp_path / "mine.json")
    with pytest.raises(ConfigError, match="--device nobody: neither a file nor a known device; known are mine;"):
        read_table("nobody", known=tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("no json", "not a table of a device"),
        ("[]", "format is None, allowed: 1"),
        ('{"format": 7}', "format is 7, allowed: 1"),
        ('{"format": 1}', "missing required field"),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_table(str(tmp_path / "x.json"))


def test_stages_that_are_missing(tmp_path: Path) -> None:
    write_table(table(stages={"encode": {1: 0.1}, "transcribe": {1: 0.1}}), tmp_path / "x.json")
    with pytest.raises(ConfigError, match="stages: missing: decode, first speech, prefill, speech"):
        read_table(str(tmp_path / "x.json"))


def test_costs_and_limits() -> None:
    costs = table().costs(slower=2.0, faster={Stage.DECODE: 4.0})
    assert costs.predict(Stage.ENCODE, 1) == pytest.approx(0.12)
    assert costs.predict(Stage.DECODE, 1) == pytest.approx(0.004)
    assert table().limits() == {Stage.ENCODE: 1, Stage.TRANSCRIBE: 4}
    assert [table().tick_s(rooms) for rooms in (1, 2, 8)] == [0.0012, 0.002, 0.002]
    assert table().tick_s(16) == pytest.approx(0.004)


@pytest.mark.parametrize("name", known_devices())
def test_tables_that_ship(name: str) -> None:
    shipped = read_table(name)
    assert shipped.name == name
    assert make_plan(shipped, ask(), (1,)).rooms >= 1


def test_one_ships() -> None:
    assert "cpu-2-cores" in known_devices()
    assert KNOWN.is_dir()


# --- the plan -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(table(), ask())


def test_the_curve_ends_with_what_does_not_hold(plan: Plan) -> None:
    assert plan.rooms >= 2
    assert [row.rooms for row in plan.rows][-2:] == [plan.rooms, plan.rooms + 1]
    assert [row.holds(ask()) for row in plan.rows] == [True] * (len(plan.rows) - 1) + [False]
    assert all(row.p50_s <= row.p95_s for row in plan.rows)
    busy = [row.busy for row in plan.rows]
    assert busy == sorted(busy)
    assert sum(plan.rows[0].shares.values()) == pytest.approx(plan.rows[0].busy)


def test_what_binds_and_what_would_lift_it(plan: Plan) -> None:
    assert plan.binding.what in ("speech to text", "language model", "voice")
    assert plan.binding.rooms == plan.rooms
    assert {lift.what for lift in plan.lifts} == {
        "speech to text twice as fast",
        "language model twice as fast",
        "voice twice as fast",
    }
    assert max(lift.rooms for lift in plan.lifts) > plan.rooms


def test_the_same_question_has_the_same_answer(plan: Plan) -> None:
    again = make_plan(table(), ask())
    assert (again.rooms, again.rows) == (plan.rooms, plan.rows)


def test_a_faster_device_a_slower_caller_and_a_softer_target(plan: Plan) -> None:
    assert make_plan(table(faster=3.0), ask()).rooms > plan.rooms
    assert make_plan(table(), ask(cycle_s=30.0)).rooms > plan.rooms
    assert make_plan(table(), ask(target_s=3.0)).rooms >= plan.rooms
    assert make_plan(table(), ask(target_s=0.001)).rooms == 0


def test_others_who_want_the_cores_make_it_slower() -> None:
    quiet, busy = simulate(table(), ask(), 2), simulate(table(), ask(busy_cores=1.0), 2)
    assert busy.p95_s > 1.3 * quiet.p95_s
    # A GPU does not wait for them.
    on_gpu = table(device="cuda")
    assert simulate(on_gpu, ask(busy_cores=1.0), 2).p95_s == simulate(on_gpu, ask(), 2).p95_s


def test_memory_binds() -> None:
    small = make_plan(table(faster=5.0), ask(available=1_450_000_000), (1,))
    assert small.binding.what == "memory"
    assert small.rooms == small.memory.rooms < 6
    assert small.lifts == ()


def test_the_jobs_bind() -> None:
    many = make_plan(table(faster=5.0, job_cores=0.4, device="cuda"), ask(available=100_000_000_000), (1,))
    assert many.binding.what == "CPU beside the models"
    assert many.rooms == 4


def test_one_room_alone_waits_for_nobody() -> None:
    """What one answer costs, one thing after the other, less what is done before the turn is over."""
    row = simulate(table(), ask(interrupts=0.0), 1)
    sooner, later = (PATH_S + tokens * 0.008 + 0.05 for tokens in (9, 14))
    assert 0.85 * sooner < row.p50_s < 1.3 * later
    assert row.dry_s == 0.0


def test_answers_are_those_of_the_table() -> None:
    made = habits(table(), ask(endpointing_s=0.3))
    assert made.answers[0] == ((14, 3.5), (22, 5.5))
    assert made.endpointing_s == 0.3


# --- the command ----------------------------------------------------------------------------------


def test_host_plan(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    write_table(table(0.4, note="made up"), file)
    result = CliRunner().invoke(app, ["plan", "--device", str(file), "--rooms", "1,3"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for expected in ("small  Some CPU, 2 cores", "made up", "+delay", "binds", "what would lift it:"):
        assert expected in result.output


def test_host_plan_for_programs(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    write_table(table(0.4), file)
    result = CliRunner().invoke(app, ["plan", "--device", str(file), "--rooms", "2", "--json"])
    told = json.loads(result.stdout)
    assert [row["rooms"] for row in told["curve"]] == [2]
    assert told["rooms"] == min(bound["rooms"] for bound in told["bounds"])
    assert math.isfinite(told["curve"][0]["p95_s"])


@pytest.mark.parametrize("rooms", ["none", "0", "1,,2", "256"])
def test_rooms_that_are_no_number(tmp_path: Path, rooms: str) -> None:
    file = tmp_path / "mine.json"
    write_table(table(), file)
    result = CliRunner().invoke(app, ["plan", "--device", str(file), "--rooms", rooms])
    assert isinstance(result.exception, ConfigError)
