"""The terminal: what is typed, key by key, or from elsewhere line by line; and what others write on it."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from host.console.keys import Key, LineEditor

_READ_BYTES = 4096
_STDERR = 2
_PIPE_BYTES = 1 << 20
"""Whoever writes more at once waits for it to be shown."""


class Keyboard:
    """The terminal at standard input, without echo, while it is entered. Ctrl-C stays a signal; Ctrl-Z does nothing.

    A host that is stopped would answer nobody, and its terminal would stay as it is here.
    """

    def __init__(self) -> None:
        self._saved: list[object] | None = None
        self._editor = LineEditor()

    @contextmanager
    def read(self, on_key: Callable[[Key], None], on_typing: Callable[[str], None]) -> Iterator[None]:
        """Call ``on_key`` for what is typed, and ``on_typing`` with the line in the making."""
        terminal = sys.stdin.fileno()
        loop = asyncio.get_running_loop()

        def on_input() -> None:
            for key in self._editor.feed(os.read(terminal, _READ_BYTES)):
                on_key(key)
            on_typing(self._editor.text)

        self._saved = termios.tcgetattr(terminal)
        raw = termios.tcgetattr(terminal)
        raw[3] &= ~(termios.ECHO | termios.ICANON)
        raw[6][termios.VMIN] = 1
        raw[6][termios.VTIME] = 0
        raw[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(terminal, termios.TCSADRAIN, raw)
        loop.add_reader(terminal, on_input)
        on_typing("")
        try:
            yield
        finally:
            loop.remove_reader(terminal)
            self.restore()

    def restore(self) -> None:
        """Give the terminal back as it was; safe to call twice, and for a program that ends at once."""
        saved, self._saved = self._saved, None
        if saved is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, saved)  # type: ignore[arg-type]


@contextmanager
def standard_error(show: Callable[[str], None]) -> Iterator[None]:
    """Give ``show`` each line that jobs, and libraries of this process, write to standard error on a terminal.

    They would write it across what is shown there.
    """
    if not os.isatty(_STDERR):
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    terminal = os.dup(_STDERR)
    os.dup2(writer, _STDERR)
    os.close(writer)
    partial = bytearray()

    def on_output() -> None:
        try:
            partial.extend(os.read(reader, _PIPE_BYTES))
        except BlockingIOError:
            return
        *whole, rest = bytes(partial).split(b"\n")
        partial[:] = rest
        for text in whole:
            show(text.decode(errors="replace"))

    loop = asyncio.get_running_loop()
    loop.add_reader(reader, on_output)
    try:
        yield
    finally:
        loop.remove_reader(reader)
        os.dup2(terminal, _STDERR)
        os.close(terminal)
        on_output()
        if partial:
            show(bytes(partial).decode(errors="replace"))
        os.close(reader)


async def lines() -> AsyncIterator[str]:
    """The lines of standard input that are not empty, as they come, to its end."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    def read() -> None:
        for text in itertools.chain(sys.stdin, [None]):
            try:
                loop.call_soon_threadsafe(queue.put_nowait, text)
            except RuntimeError:
                # The call was over before the input was.
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while (text := await queue.get()) is not None:
        if text := text.strip():
            yield text
