"""What the console shows: what was said stays above, what goes on stands below, and moves.

On a terminal. Elsewhere each thing said is a line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from host.console.call import Call
from host.console.script import Entry
from host.console.sound import SILENCE_DB
from inference.wire.supervision import TurnReport

if TYPE_CHECKING:
    from host.console.portaudio import DeviceInfo

_WHO = {"user": ("You", "bold cyan"), "agent": ("Agent", "bold magenta")}
_STYLES = {"listening": "green", "thinking": "yellow", "speaking": "magenta"}
"""Of what the agent does."""
_LONGEST_STATE = len("initializing")
_BETWEEN = "  "
_INDENT = 7
_LOWEST_LINES = 6
"""What stands below the talk: a blank line, the state, what is typed, the help; and some more where that is long."""
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
        self._seen: tuple[object, ...] = ()
        self._printed = False

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

    def note(self, line: str) -> None:
        """Something that neither side said: a job's output, or a library's."""
        self._console.print(Text.from_ansi(line, style="dim"), soft_wrap=True)

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
        if self._console.is_terminal and (now := self._moving()) != self._seen:
            self._seen = now
            self._live.update(self._below(), refresh=True)

    def _moving(self) -> tuple[object, ...]:
        """All that the lower part is made of: when it is the same, nothing is drawn."""
        call = self._call
        if not call.in_writing:
            levels = (call.microphone.level, call.agent_level)
            self._meters = [max(level, shown - _FALL_DB) for level, shown in zip(levels, self._meters, strict=True)]
        return (
            [(entry.side, entry.text, entry.final, entry.turn) for entry in call.script.open],
            (call.state or self._doing, self._typed, self._ending, call.muted, call.is_held_back()),
            [round(level) for level in self._meters],
            call.script.responses_s(),
            self._console.size,
        )

    def _print(self, entry: Entry) -> None:
        if self._console.is_terminal:
            if entry.side == "user" and self._printed:
                self._console.print()
            self._printed = True
            self._console.print(said(entry))
            return
        cut = " (interrupted)" if entry.turn is not None and entry.turn.interrupted else ""
        times = f" [{found.plain}]" if (found := _times(entry)) is not None else ""
        line = Text(f"{_WHO[entry.side][0]}: {entry.text}{cut}{times}")
        self._console.print(line, soft_wrap=True)

    def _below(self) -> RenderableType:
        talk: list[RenderableType] = []
        for entry in self._call.script.open:
            if entry.text:
                if entry.side == "user" and (talk or self._printed):
                    talk.append(Text())
                talk.append(said(entry))
        parts: list[RenderableType] = [_Tail(Group(*talk), self._console.height - _LOWEST_LINES), Text()]
        if self._ending:
            parts.append(Text(self._ending, style="dim"))
            return Group(*parts)
        parts.append(self._status())
        if self._typed is not None:
            row = Table.grid(padding=0)
            row.add_column(width=2)
            row.add_column(overflow="fold")
            row.add_row(Text("›", style="bold"), Text.assemble(self._typed, ("▏", "blink")))
            parts.append(row)
        parts.append(Text(self._help(), style="dim", overflow="ellipsis", no_wrap=True))
        return Group(*parts)

    def _status(self) -> Text:
        """One line; what comes last goes first where there is no room."""
        call = self._call
        if not call.state:
            return Text.assemble(("● ", "dim"), self._doing)
        style = _STYLES.get(call.state, "dim")
        cells = [Text.assemble(("● ", style), f"{call.state:<{_LONGEST_STATE}}")]
        if not call.in_writing:
            quiet = "muted" if call.muted else "waits" if call.is_held_back() else ""
            cells.append(_meter("you", self._meters[0], "green", quiet))
            cells.append(_meter("agent", self._meters[1], "magenta"))
        if (times := call.script.responses_s()) is not None:
            cells.append(Text(f"answers after {1000 * times[0]:.0f} ms", style="dim"))
        while len(cells) > 1 and sum(cell.cell_len + len(_BETWEEN) for cell in cells) > self._console.width:
            cells.pop()
        return Text(_BETWEEN).join(cells)

    def _help(self) -> str:
        if self._typed is None or not self._call.state:
            return "Ctrl-C ends"
        if self._call.in_writing:
            return "Enter sends · Ctrl-C ends"
        mute = "Tab unmutes" if self._call.muted else "Tab mutes"
        return f"{mute} · what you type goes to the agent with Enter · Ctrl-C ends"

    def _redirect(self, old: object, new: object) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)


@dataclass(frozen=True, slots=True)
class _Tail:
    """The last lines of something: of a long answer in a low window what comes is seen, not how it began."""

    whole: RenderableType
    lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.whole, options, pad=False)[-max(1, self.lines) :]:
            yield from line
            yield Segment.line()


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


def summary(call: Call) -> str:
    """The call in a line or two; "" for one of which there is nothing to tell."""
    found = []
    if (times := call.script.responses_s()) is not None:
        found.append(_response_times(*times))
    if call.starved:
        found.append(f"the loudspeaker ran dry {call.starved}x: this machine has too much to do")
    return "\n".join(found)


def _response_times(median_s: float, longest_s: float) -> str:
    return f"answers after {1000 * median_s:.0f} ms, median; {1000 * longest_s:.0f} ms, longest"


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
