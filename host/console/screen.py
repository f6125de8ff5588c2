"""What the console shows: what was said stays above, what goes on stands below, and moves.

On a terminal. Elsewhere each thing said is a line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from host.console.call import Call
from host.console.script import Entry, Script
from host.console.sound import SILENCE_DB
from inference.wire.supervision import TurnReport

if TYPE_CHECKING:
    from host.console.portaudio import DeviceInfo

_WHO = {"user": ("You", "bold cyan"), "agent": ("Agent", "bold magenta")}
_STATES = {
    "initializing": ("●", "dim", "coming"),
    "listening": ("●", "green", "listening"),
    "thinking": ("●", "yellow", "thinking"),
    "speaking": ("●", "magenta", "speaking"),
}
_INDENT = 7
_METER_COLUMNS = 16
_LOUD_DB = -6.0
_FALL_DB = 2.0
"""How much the meter falls back in one look."""


class Screen:
    """Shows ``call`` on ``console`` whenever it is told to ``look``. ``errors``: where the start-up is told."""

    def __init__(self, console: Console, errors: Console, call: Call) -> None:
        self._console = console
        self._errors = errors
        self._typed: str | None = None
        self._doing = "starting"
        self._call = call
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._meters = [SILENCE_DB, SILENCE_DB]
        self._ending = ""
        self._redirected: list[logging.StreamHandler[object]] = []

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            original = sys.stderr
            self._live.start()
            # A log line goes above what moves, and not across it.
            self._redirect(original, sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            replaced = sys.stderr
            self._live.stop()
            self._redirect(replaced, sys.stderr)
        for entry in self._call.script.take_all():
            self._print(entry)

    def progress(self, text: str) -> None:
        """What the host does while it comes up."""
        self._doing = text
        if not self._console.is_terminal:
            self._errors.print(Text(text, style="dim"), soft_wrap=True)

    def typing(self, text: str) -> None:
        """The line in the making; nobody types before this was called once."""
        self._typed = text

    def ending(self, what: str) -> None:
        """The call is over, and what belongs to it is being ended."""
        self._ending = what
        self.look()

    def look(self) -> None:
        """Show the call as it is."""
        for entry in self._call.script.take_settled():
            self._print(entry)
        if self._console.is_terminal:
            self._live.update(self._below(), refresh=True)

    def _print(self, entry: Entry) -> None:
        if self._console.is_terminal:
            self._console.print(said(entry))
            return
        cut = " (interrupted)" if entry.turn is not None and entry.turn.interrupted else ""
        times = f" [{found.plain}]" if (found := _times(entry)) is not None else ""
        line = Text(f"{_WHO[entry.side][0]}: {entry.text}{cut}{times}")
        self._console.print(line, soft_wrap=True)

    def _below(self) -> RenderableType:
        parts: list[RenderableType] = [said(entry) for entry in self._call.script.open if entry.text]
        parts.append(Text())
        if self._ending:
            parts.append(Text(self._ending, style="dim"))
            return Group(*parts)
        parts.append(self._status())
        if self._typed is not None:
            typed = Text.assemble(("› ", "bold"), self._typed, ("▏", "blink"))
            parts.append(Padding(typed, (0, 0, 0, 0)))
        parts.append(Text(self._help(), style="dim", overflow="ellipsis", no_wrap=True))
        return Group(*parts)

    def _status(self) -> RenderableType:
        if not self._call.state:
            return Text.assemble(("● ", "dim"), self._doing)
        sign, style, text = _STATES.get(self._call.state, ("●", "dim", self._call.state))
        line = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = [Text.assemble((sign, style), " ", text)]
        if not self._call.in_writing:
            levels = (self._call.microphone.level, self._call.agent_level)
            self._meters = [max(level, shown - _FALL_DB) for level, shown in zip(levels, self._meters, strict=True)]
            quiet = "muted" if self._call.muted else "waits" if self._call.is_held_back() else ""
            cells.append(_meter("you", self._meters[0], "green", quiet))
            cells.append(_meter("agent", self._meters[1], "magenta"))
        if (times := self._call.script.responses_s()) is not None:
            cells.append(Text(f"{times[0]:.2f} s to an answer", style="dim"))
        for _ in cells:
            line.add_column(no_wrap=True)
        line.add_row(*cells)
        return line

    def _help(self) -> str:
        if self._typed is None:
            return "Ctrl-C ends"
        if self._call.in_writing:
            return "Enter sends · Ctrl-C ends"
        mute = "Tab unmutes" if self._call.muted else "Tab mutes"
        return f"{mute} · what you type goes to the agent with Enter · Ctrl-C ends"

    def _redirect(self, old: object, new: object) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)  # type: ignore[arg-type]


def said(entry: Entry) -> RenderableType:
    """One entry: who, what, and below an answer how long it took."""
    name, style = _WHO[entry.side]
    row = Table.grid(padding=0)
    row.add_column(width=_INDENT, no_wrap=True)
    row.add_column(overflow="fold")
    text = Text(entry.text, style="" if entry.final else "italic")
    if not entry.final:
        text.append(" …", style="dim")
    if entry.turn is not None and entry.turn.interrupted:
        text.append(" — interrupted", style="dim")
    row.add_row(Text(name, style=style), text)
    if (times := _times(entry)) is not None:
        row.add_row("", times)
    return row


def _times(entry: Entry) -> Text | None:
    if entry.turn is not None:
        return _measured(entry.turn)
    if entry.waited_s is not None and entry.final:
        return Text(f"{1000 * entry.waited_s:.0f} ms to the first words", style="dim")
    return None


def _measured(turn: TurnReport) -> Text | None:
    if turn.audio_s == 0 and turn.response_ms >= 0:
        # It was typed.
        return Text(f"{turn.response_ms:.0f} ms to the first words", style="dim")
    stages = [
        f"{name} {ms:.0f}"
        for name, ms in (
            ("end of turn", turn.endpointing_ms),
            ("transcript", turn.stt_ms),
            ("first token", turn.ttft_ms),
            ("first audio", turn.ttfa_ms),
        )
        if ms >= 0
    ]
    if turn.barge_in_ms >= 0:
        stages.append(f"silent after {turn.barge_in_ms:.0f}")
    if turn.response_ms < 0:
        return Text(", ".join(stages), style="dim") if stages else None
    return Text.assemble((f"{turn.response_ms:.0f} ms", "green dim"), (f": {', '.join(stages)}", "dim"))


def _meter(name: str, level_db: float, style: str, instead: str = "") -> Text:
    if instead:
        return Text.assemble((f"{name} ", "dim"), (f"{instead:<{_METER_COLUMNS}}", "bold red"))
    filled = round(_METER_COLUMNS * (1 - level_db / SILENCE_DB))
    loud = round(_METER_COLUMNS * (1 - _LOUD_DB / SILENCE_DB))
    return Text.assemble(
        (f"{name} ", "dim"),
        ("━" * min(filled, loud), style),
        ("━" * max(0, filled - loud), "red"),
        ("─" * (_METER_COLUMNS - filled), "dim"),
    )


def summary(script: Script) -> str:
    """The call in a line; "" for one without an answer that was measured."""
    if (times := script.responses_s()) is None:
        return ""
    return f"to an answer: {times[0]:.2f} s median, {times[1]:.2f} s longest"


def devices_table(devices: Sequence[DeviceInfo]) -> Table:
    """For ``--list-devices``."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("number", "name", "microphone", "loudspeaker", "Hz", "through"):
        table.add_column(title, justify="right" if title in ("number", "Hz") else "left")
    for device in devices:
        inputs, outputs = (
            f"{channels} channel{'s' if channels > 1 else ''}{', default' if default else ''}" if channels else ""
            for channels, default in (
                (device.inputs, device.default_input),
                (device.outputs, device.default_output),
            )
        )
        table.add_row(str(device.index), Text(device.name), inputs, outputs, str(device.rate), Text(device.api))
    return table
