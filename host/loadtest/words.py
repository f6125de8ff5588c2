"""What was said against what was heard, in words. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPELLINGS = {
    "metres": "meters", "metre": "meter", "colour": "color", "favour": "favor", "mr": "mister", "mrs": "missus",
    "dr": "doctor", "ok": "okay",
    "what's": "what is", "that's": "that is", "it's": "it is", "there's": "there is", "he's": "he is",
    "she's": "she is", "let's": "let us", "i'm": "i am", "i've": "i have", "i'll": "i will", "i'd": "i would",
    "we're": "we are", "we'll": "we will", "we've": "we have", "you're": "you are", "you'll": "you will",
    "they're": "they are", "can't": "can not", "cannot": "can not", "won't": "will not", "don't": "do not",
    "doesn't": "does not", "didn't": "did not", "isn't": "is not", "aren't": "are not", "wasn't": "was not",
}  # fmt: skip
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


def plain(text: str) -> list[str]:
    """The words of ``text``: lower case, no punctuation, contractions and numbers written out.

    >>> plain("What's 10th, Mr. Brown?")
    ['what', 'is', 'tenth', 'mister', 'brown']
    """
    words = re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("’", "'").replace(",", "")).split()
    written = (_SPELLINGS.get(word) or _number(word) for word in (word.strip("'") for word in words) if word)
    return " ".join(written).split()


def error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """Substitutions, deletions and insertions by words said; of two that are empty 0.

    >>> error_rate(["set", "a", "timer"], ["set", "the", "timer", "now"])
    0.6666666666666666
    """
    if not said:
        return float(len(heard))
    return errors(said, heard) / len(said)


def likeness(one: Sequence[str], other: Sequence[str]) -> float:
    """From 0 (nothing in common) to 1 (the same): 1 less the errors by the words of the longer.

    >>> likeness(["set", "a", "timer"], ["set", "the", "timer"])
    0.6666666666666667
    """
    longest = max(len(one), len(other))
    return 1.0 - errors(one, other) / longest if longest else 1.0


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Substitutions, deletions and insertions: Levenshtein's distance in words."""
    row = list(range(len(heard) + 1))
    for index, word in enumerate(said, 1):
        diagonal, row[0] = row[0], index
        for at, other in enumerate(heard, 1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (word != other))
    return row[-1]


def _number(word: str) -> str:
    match = re.fullmatch(r"(\d{1,6})(st|nd|rd|th)?", word)
    if match is None:
        return word
    name = _cardinal(int(match[1]))
    if match[2] is None:
        return name
    *front, last = name.split()
    last = _ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return " ".join([*front, last])


def _cardinal(number: int) -> str:
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            return f"{_cardinal(number // size)} {name}" + (f" {_cardinal(rest)}" if rest else "")
    if number < len(_ONES):
        return _ONES[number]
    return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")
