"""What a download shows while it runs: bars on a terminal, plain lines in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console

Advance = Callable[[int], None]
"""Called with the number of bytes done since the last call."""


class Progress(Protocol):
    """Where news of a download goes. ``interactive``: a person watches, so pip and the hub may draw bars too."""

    interactive: bool

    def line(self, text: str) -> None:
        """One finished sentence."""

    def bar(self, text: str, total_bytes: int) -> AbstractContextManager[Advance]:
        """A piece of work of ``total_bytes``; the context value takes the bytes as they are done."""


class SilentProgress:
    """Says nothing."""

    interactive = False

    def line(self, text: str) -> None:
        """Drop ``text``."""

    @contextmanager
    def bar(self, text: str, total_bytes: int) -> Iterator[Advance]:  # noqa: ARG002
        """Count nothing."""
        yield lambda _done: None


class ConsoleProgress:
    """Bars when ``console`` is a terminal, otherwise one line for each piece of work worth a line.

    The default console writes to standard error, so that a table on standard output stays clean.
    """

    _WORTH_A_LINE_BYTES = 1_000_000

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self.interactive = self._console.is_terminal

    def line(self, text: str) -> None:
        """Print ``text`` as it is: a path may hold brackets that rich would take for markup."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, text: str, total_bytes: int) -> Iterator[Advance]:
        """A bar that counts bytes, or one line."""
        if not self.interactive:
            if total_bytes >= self._WORTH_A_LINE_BYTES:
                self.line(f"{text} ({total_bytes / 1e6:.0f} MB)")
            yield lambda _done: None
            return

        # Here, because a host that only checks its models would hold two megabytes for bars that it never draws.
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self._console) as bars:
            task = bars.add_task(text, total=total_bytes)
            yield lambda done: bars.advance(task, done)
