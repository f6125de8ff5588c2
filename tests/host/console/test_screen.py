"""What a person sees, at several widths, and what a file gets."""

from __future__ import annotations

import dataclasses
import io
import logging
import sys

import pytest
from rich.console import Console
from rich.text import Text

from host.console.call import Call
from host.console.portaudio import DeviceInfo
from host.console.screen import Screen, devices_table, said, summary
from host.console.script import Entry
from host.console.sound import SILENCE_DB
from host.job.line import Text as Line
from inference.wire.supervision import TurnReport

ANSWER = "The date today is Saturday, the twenty-fourth of June, and it is going to be a fine day by the sea, I hear."
TURN = TurnReport("job", 1, "What's the date today?", ANSWER, False, 1.0, 508, 0, 284, 478, 996, 2.7)


class Device:
    name = "a device"
    starved = 0

    def open_microphone(self, hear: object) -> None: ...

    def open_loudspeaker(self, rate: int, pull: object) -> float:
        return 0.0

    def close(self) -> None: ...


def shown(renderable: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def call_of(*, in_writing: bool) -> Call:
    return Call(None if in_writing else Device())


def terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, height=24, force_terminal=True, color_system=None), out


def test_an_entry_hangs_below_its_name() -> None:
    entry = Entry("agent", "agent-1", ANSWER, final=True, turn=TURN)
    assert shown(said(entry), 80) == [
        "Agent  The date today is Saturday, the twenty-fourth of June, and it is going to",
        "       be a fine day by the sea, I hear.",
        "       996 ms: end of turn 508, transcript 0, first token 284, first audio 478",
    ]


def test_what_may_still_change_looks_so() -> None:
    assert shown(said(Entry("user", "user-1", "What's the", final=False)), 80) == ["You    What's the …"]


@pytest.mark.parametrize(
    ("turn", "line"),
    [
        (
            {"interrupted": True, "barge_in_ms": 12.4},
            "996 ms: end of turn 508, transcript 0, first token 284, first audio 478, silent after 12",
        ),
        ({"ttfa_ms": -1.0, "response_ms": -1.0}, "end of turn 508, transcript 0, first token 284"),
        ({"audio_s": 0.0, "endpointing_ms": 0.0, "response_ms": 312.0}, "312 ms to the first words"),
    ],
)  # fmt: skip
def test_measurements(turn: dict[str, object], line: str) -> None:
    entry = Entry("agent", "agent-1", "Yes.", final=True, turn=dataclasses.replace(TURN, **turn))  # type: ignore[arg-type]
    assert shown(said(entry), 120)[1].strip() == line


def test_markup_in_what_was_said_is_text() -> None:
    assert shown(said(Entry("user", "", "[bold]loud[/] [x]", final=True)), 80) == ["You    [bold]loud[/] [x]"]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("in_writing", [True, False])
def test_what_moves_fits_the_width(width: int, in_writing: bool) -> None:
    call = call_of(in_writing=in_writing)
    console, out = terminal(width)
    with Screen(console, Console(stderr=True), call) as screen:
        call.state = "speaking"
        screen.typing("x" * 200)
        call.on_text(Line("user", "user-1", "What's the date", final=False))
        call.microphone.level = -10.0
        call.script.measured(TURN)
        screen.look()
    text = Text.from_ansi(out.getvalue()).plain
    assert all(len(line) <= width for line in text.splitlines())
    assert "speaking" in text
    assert "What's the date …" in text


def test_the_end_of_a_long_answer_is_seen_in_a_low_window() -> None:
    call = call_of(in_writing=True)
    out = io.StringIO()
    console = Console(file=out, width=40, height=10, force_terminal=True, color_system=None)
    with Screen(console, Console(stderr=True), call) as screen:
        call.state = "speaking"
        screen.typing("wait")
        call.on_text(Line("agent", "agent-1", " ".join(f"word{n}" for n in range(100)), final=False))
        screen.look()
        text = Text.from_ansi(out.getvalue()).plain
        assert len(text.splitlines()) <= 10
        assert "word99 …" in text
        assert "word0 " not in text
        assert "› wait" in text
        assert "Ctrl-C ends" in text
    # For good it is printed whole.
    assert "word0 word1" in Text.from_ansi(out.getvalue()).plain


def test_states_and_meters() -> None:
    call = call_of(in_writing=False)
    console, out = terminal()
    with Screen(console, Console(stderr=True), call) as screen:
        screen.progress("loading whisper-base")
        screen.look()
        assert "loading whisper-base" in out.getvalue()
        call.state = "listening"
        call.microphone.level = 0.0
        screen.look()
        assert "you ━━━━━━━━━━━━━━━━" in out.getvalue()
        call.microphone.level = SILENCE_DB
        for _ in range(40):
            screen.look()
        assert "you ────────────────" in out.getvalue()
        call.toggle_mute()
        screen.typing("")
        screen.look()
        assert "muted" in out.getvalue()
        assert "Tab unmutes" in out.getvalue()
        screen.ending("ending …")
        assert "ending …" in out.getvalue()


def test_the_log_goes_above_what_moves(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        console, out = terminal()
        with Screen(console, Console(stderr=True), call_of(in_writing=True)) as screen:
            screen.look()
            logging.getLogger("test").warning("the tide is high")
            assert "the tide is high" in out.getvalue()
        logging.getLogger("test").warning("the tide is low")
    finally:
        root.removeHandler(handler)
    assert "the tide is low" in capsys.readouterr().err
    assert "the tide is low" not in out.getvalue()


def test_a_file_gets_a_line_for_each_thing_said() -> None:
    call = call_of(in_writing=True)
    out, errors = io.StringIO(), io.StringIO()
    with Screen(Console(file=out, width=80), Console(file=errors, width=80), call) as screen:
        screen.progress("loading")
        screen.look()
        call.script.typed("What's the date today?", 0)
        call.on_text(Line("agent", "agent-1", ANSWER, final=True))
        call.script.measured(TURN)
        screen.look()
        call.on_text(Line("user", "user-2", "Tha", final=False))
        screen.look()
    assert out.getvalue().splitlines() == [
        "You: What's the date today?",
        f"Agent: {ANSWER} [996 ms: end of turn 508, transcript 0, first token 284, first audio 478]",
        "You: Tha",
    ]
    assert errors.getvalue() == "loading\n"


def test_the_summary() -> None:
    device = Device()
    call = Call(device)
    assert summary(call) == ""
    call.script.measured(TURN)
    assert summary(call) == "answers after 996 ms, median; 996 ms, longest"
    device.starved = 3
    assert summary(call).splitlines()[1].startswith("the loudspeaker ran dry 3x")


def test_the_devices() -> None:
    table = devices_table(
        [
            DeviceInfo(0, "HDA Intel: Analog", "ALSA", 2, 2, 48_000, default_input=True, default_output=True),
            DeviceInfo(7, "HDMI [3]", "ALSA", 0, 8, 48_000, default_input=False, default_output=False),
        ]
    )
    lines = shown(table, 100)
    assert [line.split() for line in lines] == [
        ["number", "name", "microphone", "loudspeaker", "Hz", "through"],
        ["0", "HDA", "Intel:", "Analog", "2", "channels,", "default", "2", "channels,", "default", "48000", "ALSA"],
        ["7", "HDMI", "[3]", "8", "channels", "48000", "ALSA"],
    ]
