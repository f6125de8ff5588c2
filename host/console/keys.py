"""What is typed at the console: a terminal's bytes in, what they mean out. Pure."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

MAX_CHARS = 4000
"""A longer line is cut off: nobody types it, and a prompt has an end."""

_ESCAPE = "\x1b"


@dataclass(frozen=True, slots=True)
class Said:
    """A line that was ended with Enter, and is not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Mute:
    """Tab: the microphone off, or on again."""


@dataclass(frozen=True, slots=True)
class End:
    """Ctrl-D on an empty line."""


Key = Said | Mute | End


class LineEditor:
    """One line being typed. ``text``: what it holds; the cursor is at its end.

    Backspace, Ctrl-U (the line) and Ctrl-W (a word) take away; arrows and other keys that send escape sequences do
    nothing.
    """

    def __init__(self) -> None:
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._escape = ""

    def feed(self, data: bytes) -> list[Key]:
        """What came in, any part of it at a time."""
        keys = [key for char in self._decoder.decode(data) if (key := self._take(char)) is not None]
        if self._escape == _ESCAPE:
            # The key itself: a sequence comes in one piece.
            self._escape = ""
        return keys

    def _take(self, char: str) -> Key | None:
        if self._escape:
            self._skip(char)
            return None
        match char:
            case "\r" | "\n":
                text, self.text = self.text.strip(), ""
                return Said(text) if text else None
            case "\t":
                return Mute()
            case "\x04":
                return End() if not self.text else None
            case "\x7f" | "\b":
                self.text = self.text[:-1]
            case "\x15":
                self.text = ""
            case "\x17":
                self.text = self.text.rstrip().rpartition(" ")[0]
                self.text += " " if self.text else ""
            case "\x1b":
                self._escape = char
            case _ if char.isprintable() and len(self.text) < MAX_CHARS:
                self.text += char
        return None

    def _skip(self, char: str) -> None:
        """The rest of an escape sequence: ``ESC [ ... letter``, ``ESC O letter``, or ``ESC`` and one more."""
        if self._escape == _ESCAPE and char in "[O":
            self._escape += char
        elif not (self._escape == "\x1b[" and "\x20" <= char <= "\x3f"):
            self._escape = ""
