"""From the model's stream of text to phrases that a voice can speak. Pure.

A phrase has two texts: ``shown`` is a slice of what the model wrote, untouched, so that the phrases
of an answer join to exactly the answer; ``spoken`` is the same without markup, emoji and the like.
The first phrase is short, because the caller waits for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_WORD = 1_000
"""A word longer than this is cut in two: a phrase must fit into its message."""
_MIN_CLAUSE = 12
"""A first clause shorter than this is over before the next phrase can be there."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words("mr mrs ms mx dr prof rev hon st sr jr gen col maj capt lt sgt gov sen rep pres vs approx dept univ")
"""A full stop after one of these never ends a sentence."""
_BEFORE_NUMBERS = _words("no nos fig vol art sec ch p pp")
"""A full stop after one of these ends a sentence unless a number follows."""
_ABBREVIATIONS = _words(
    "etc e.g i.e a.m p.m u.s u.k u.n e.u ph.d b.a m.a cf al inc ltd co corp ave blvd rd jan feb mar apr jun jul aug "
    "sep sept oct nov dec mon tue wed thu fri sat sun"
)
"""A full stop after one of these ends a sentence only where a capital follows."""

_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]*_~`]*(?=\s)|[。！？]+[」』”’）]*|\n")
_CLAUSE = re.compile(r"[,;:][\"'”’)\]*_~`]*(?=\s)|\s[—–-](?=\s)|—(?=\S)|[，、；：]")
_LIST_NUMBER = re.compile(r"(?:^|\n)[ \t]*\(?\d{1,3}[.)]$")
_LAST_WORD = re.compile(r"([^\W_]+(?:\.[^\W_]+)*)\.$")
_OPEN_LINK = re.compile(r"!?\[[^\]\n]{0,200}$")


@dataclass(frozen=True, slots=True)
class SpeakablePhrase:
    """``shown``: as the model wrote it. ``spoken``: for the voice; "" where there is nothing to say."""

    shown: str
    spoken: str


class PhraseCutter:
    """Feed it the model's text as it comes; phrases come out as soon as they are whole.

    ``first_chars`` and ``chars``: how long the first phrase and later ones may grow before they are
    cut at a clause, or else at a word.
    """

    def __init__(self, first_chars: int, chars: int) -> None:
        self._first_chars = first_chars
        self._chars = chars
        self._text = ""
        self._first = True
        self._line_start = True

    def push(self, text: str) -> list[SpeakablePhrase]:
        """The phrases that ``text`` completes."""
        self._text += text
        phrases = []
        while (end := self._find_cut()) is not None:
            phrases.append(self._take(end))
        return phrases

    def finish(self) -> list[SpeakablePhrase]:
        """The rest, when the text has ended. A last phrase without anything to say has ``spoken`` ""."""
        # Sentences that waited for what follows them are whole now.
        phrases = self.push("\n")
        added = "\n"
        if self._text:
            phrases.append(self._take(len(self._text)))
        if phrases:
            last = phrases.pop()
            shown = last.shown.removesuffix(added)
            if shown or last.spoken:
                phrases.append(SpeakablePhrase(shown, last.spoken))
        return phrases

    def _take(self, end: int) -> SpeakablePhrase:
        shown, self._text = self._text[:end], self._text[end:]
        phrase = SpeakablePhrase(shown, speakable(shown, line_start=self._line_start))
        self._first = self._first and not phrase.spoken
        self._line_start = shown.endswith("\n") or (self._line_start and not shown.strip())
        return phrase

    def _find_cut(self) -> int | None:
        limit = self._first_chars if self._first else self._chars
        sentence = self._sentence_end(limit)
        clauses = [match.end() for match in _CLAUSE.finditer(self._text, 0, limit + 1) if self._can_cut(match.end())]
        if self._first:
            for end in clauses:
                if sentence is not None and sentence < end:
                    break
                if len(speakable(self._text[:end], line_start=self._line_start)) >= _MIN_CLAUSE:
                    return end
        if sentence is not None:
            return sentence
        if len(self._text) <= limit:
            return None
        if clauses:
            return clauses[-1]
        return self._word_cut(limit)

    def _sentence_end(self, limit: int) -> int | None:
        for match in _SENTENCE.finditer(self._text):
            if match.end() > limit:
                break
            ends = self._ends_sentence(match)
            if ends is None:
                break
            if ends and self._can_cut(match.end()):
                # A line break goes with the sentence before it (where its end is known by what follows).
                return match.end() + (match.group()[0] in ".!?…" and self._text[match.end()] == "\n")
        return None

    def _ends_sentence(self, match: re.Match[str]) -> bool | None:
        """Whether a sentence ends here; None while that depends on what follows."""
        before, after = self._text[: match.end()].rstrip("\"'”’)]*_~`"), self._text[match.end() :].lstrip(" \t")
        if match.group() == "\n" or not before.endswith("."):
            return True
        if _LIST_NUMBER.search(before):
            return False
        word = _LAST_WORD.search(before)
        if word is None:
            return True
        name = word.group(1)
        if name.lower() in _TITLES or (len(name) == 1 and name.isupper() and name != "I"):
            return False
        if name.lower() in _ABBREVIATIONS:
            return after[0].isupper() or after[0] == "\n" if after else None
        if name.lower() in _BEFORE_NUMBERS:
            return not after[0].isdigit() if after else None
        return True

    def _can_cut(self, end: int) -> bool:
        head = self._text[:end]
        return bool(speakable(head, line_start=self._line_start)) and not _OPEN_LINK.search(head)

    def _word_cut(self, limit: int) -> int | None:
        spaces = [n + 1 for n in range(min(limit, len(self._text))) if self._text[n].isspace()]
        for end in reversed(spaces):
            if self._can_cut(end):
                return end
        # One long word (an address, mostly): it is cut only where it could not be sent otherwise.
        later = re.compile(r"\s").search(self._text, limit)
        if later is not None and later.end() <= MAX_WORD:
            return later.end()
        return MAX_WORD if len(self._text) > MAX_WORD else None


# --- what a voice can say ---------------------------------------------------------------------------

_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\U0001fb00-\U0001ffff\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u25a0-\u27bf\u2900-\u297f"
    "\u2b00-\u2bff\u3030\u303d\u3297\u3299\u200d\u20e3\ufe0e\ufe0f\U000e0020-\U000e007f]+"
)
_URL = (
    r"(?i)\bhttps?://(?:www\.)?"
    r"([^\s/?#,;!\"'<>)\]]*[^\s/?#.,:;!\"'<>)\]])"  # the host, which is read out
    r"(?:[/?#][^\s\"'<>)\]]*[^\s.,:;!?\"'<>)\]*_]|/)?"  # the path, which is not; a full stop after it is text
)
_LINE_MARK = "\ue000"
"""Stands for text before the phrase on its line (a private character, removed from what comes in)."""

_SUBSTITUTIONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\([*_`#~|\[\]])", r"\1"),
        (r"(?m)^[ \t]*(?:```|~~~)[^\n]*$", " "),
        (r"(?m)^[ \t]*(?:[-*_=][ \t]*){3,}$", " "),
        (r"(?m)^[ \t]*\|?[ \t]*:?-{2,}:?[ \t]*(?:\|[ \t]*:?-{2,}:?[ \t]*)*\|?[ \t]*$", " "),
        (r"(?m)^[ \t]*#{1,6}[ \t]+", ""),
        (r"(?m)^[ \t]*(?:>[ \t]*)+", ""),
        (r"(?m)^[ \t]*[-*+•][ \t]+(?:\[[ xX]\][ \t]+)?", ""),
        (r"!?\[([^\]\n]*)\]\([^)\n]*\)", r"\1"),
        (r"<(https?://[^>\s]+)>", r"\1"),
        (r"</?[A-Za-z][^<>\n]{0,80}>", " "),
        (_URL, r"\1"),
        (r"`+", ""),
        (r"\*\*+|__+|~~", ""),
        (r"(?<![\w*])\*(?=\S)|(?<=\S)\*(?![\w*])", ""),
        (r"(?<!\w)_(?=\S)|(?<=\S)_(?!\w)", ""),
        (r"[ \t]*\|[ \t]*", " "),
    )
)
_SAYABLE = re.compile(r"[^\W_]|[$€£¥%&+=@°½¼¾]")


def speakable(text: str, *, line_start: bool = True) -> str:
    """``text`` without markup, links' addresses, emoji and line breaks; "" if no word is left to say.

    ``line_start``: whether the text begins a line, where a dash is a list's and a # a heading's.
    """
    text = _EMOJI.sub(" ", text.replace(_LINE_MARK, ""))
    if not line_start:
        text = _LINE_MARK + text
    for pattern, by in _SUBSTITUTIONS:
        text = pattern.sub(by, text)
    text = "".join(char if char.isprintable() else " " for char in text.replace(_LINE_MARK, ""))
    text = " ".join(text.split())
    return text if _SAYABLE.search(text) else ""
