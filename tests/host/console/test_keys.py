"""What a terminal sends, any part of it at a time, and what is made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.console.keys import MAX_CHARS, End, Key, LineEditor, Mute, Said


@pytest.mark.parametrize(
    ("typed", "keys", "left"),
    [
        (b"hello\r", [Said("hello")], ""),
        (b"hello\n", [Said("hello")], ""),
        (b"  two words  \r", [Said("two words")], ""),
        (b"\r   \r", [], ""),
        (b"one\rtwo\rthr", [Said("one"), Said("two")], "thr"),
        ("Grüße, 你好\r".encode(), [Said("Grüße, 你好")], ""),
        (b"cut\x7f\x7f\x08", [], ""),
        (b"\x7fx", [], "x"),
        (b"gone\x15kept", [], "kept"),
        (b"one two  \x17", [], "one "),
        (b"one\x17", [], ""),
        (b"\t", [Mute()], ""),
        (b"half\t", [Mute()], "half"),
        (b"\x04", [End()], ""),
        (b"text\x04", [], "text"),
        (b"a\x1b[Ab", [], "ab"),
        (b"a\x1b[1;5Cb", [], "ab"),
        (b"a\x1bOPb", [], "ab"),
        (b"a\x1bxb", [], "ab"),
        (b"a\x01\x02b", [], "ab"),
    ],
)
def test_what_is_typed(typed: bytes, keys: list[Key], left: str) -> None:
    editor = LineEditor()
    assert editor.feed(typed) == keys
    assert editor.text == left


def test_the_escape_key_alone_does_not_swallow_the_next() -> None:
    editor = LineEditor()
    editor.feed(b"\x1b")
    editor.feed(b"[")
    assert editor.text == "["


def test_a_character_may_come_in_pieces() -> None:
    editor = LineEditor()
    for byte in "né\r".encode():
        keys = editor.feed(bytes([byte]))
    assert keys == [Said("né")]


def test_a_line_has_an_end() -> None:
    editor = LineEditor()
    assert editor.feed(b"x" * (MAX_CHARS + 10) + b"\r") == [Said("x" * MAX_CHARS)]


@given(st.lists(st.binary(max_size=12)))
def test_nothing_that_comes_breaks_it(parts: list[bytes]) -> None:
    editor = LineEditor()
    for part in parts:
        for key in editor.feed(part):
            assert not isinstance(key, Said) or (key.text == key.text.strip() != "")
    assert editor.text.isprintable()
