"""From the model's stream of text to phrases that a voice can speak. Pure.

    text ── WordReader ──> words ── PhraseCutter ──> phrases

A phrase is words, each with what the model wrote and what is said for it, so that what was heard of the one is
known of the other. The first phrase is short, because the caller waits for it.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from host.job.abbreviations import OPENERS
from host.job.spoken import Boundary, Word, WordReader, is_sayable

_ROUNDING = 1e-6
_NEXT = Word(" next", "next")
"""Stands for a word that may not be whole yet: where a phrase is cut must not depend on it."""
_MIN_CLAUSE = 12
"""A first clause shorter than this is over before the next phrase can be there."""
_GLUED = tuple(",.;:!?…")


@dataclass(frozen=True, slots=True)
class SpeakablePhrase:
    """``shown``: as the model wrote it. ``spoken``: for the voice; "" where there is nothing to say."""

    words: tuple[Word, ...]

    @property
    def shown(self) -> str:
        """What the model wrote: the phrases of an answer join to exactly the answer."""
        return "".join(word.shown for word in self.words)

    @property
    def spoken(self) -> str:
        """What the voice is asked to say."""
        text = _join(self.words)
        return text if is_sayable(text) else ""

    def heard(self, share: float) -> str:
        """What was written for the words that were heard to their end, when ``share`` (0 to 1) of it was heard."""
        length = share * speech_length(self.spoken)
        said, heard = 0, 0
        for n, (word, gap) in enumerate(_spaced(self.words), 1):
            if not word.spoken:
                continue
            said += gap + speech_length(word.spoken)
            if said > length + _ROUNDING:
                break
            heard = n
        return "".join(word.shown for word in self.words[:heard])


def speech_length(text: str) -> int:
    """How long ``text`` takes to say, in letters as English has them; one of some scripts is a whole syllable."""
    if text.isascii():
        return len(text)
    return sum(3 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


class PhraseCutter:
    """Feed it the model's text as it comes; phrases come out as soon as they are whole.

    ``first_chars`` and ``chars``: how much the first phrase and later ones may say before they are
    cut at a clause, or else at a word. ``language``: ISO 639-1. ``before``: the text that this one goes on
    from, which is not said again.
    """

    def __init__(self, first_chars: int, chars: int, *, language: str = "", before: str = "") -> None:
        self._first_chars = first_chars
        self._chars = chars
        self._reader = WordReader(language)
        self._reader.push(before)
        self._before = len(before)
        self._words: list[Word] = []
        self._length = 0
        self._gap = False
        self._first = True

    def push(self, text: str) -> list[SpeakablePhrase]:
        """The phrases that ``text`` completes."""
        self._reader.push(text)
        return self._read()

    def finish(self) -> list[SpeakablePhrase]:
        """The rest, when the text has ended. A last phrase without anything to say has ``spoken`` ""."""
        self._reader.end()
        phrases = self._read()
        if self._words:
            phrases.append(self._take(len(self._words)))
        return phrases

    def _read(self) -> list[SpeakablePhrase]:
        phrases: list[SpeakablePhrase] = []
        while (word := self._reader.read()) is not None:
            if self._before > 0:
                said, self._before = self._before, self._before - len(word.shown)
                if self._before >= 0:
                    continue
                # It was written further: what is left of it is a word of its own.
                word = replace(word, shown=word.shown[said:])
            self._add([word], phrases)
        if self._before <= 0 and self._words and (begun := self._reader.begun()) is not None:
            # A word that is too long already need not be waited for.
            while (end := self._cut_before(begun)) is not None:
                later = self._words[end:]
                phrases.append(self._take(end))
                self._add(later, phrases)
        return phrases

    def _add(self, words: Iterable[Word], phrases: list[SpeakablePhrase]) -> None:
        """Take ``words``, and add what they make whole to ``phrases``."""
        waiting = deque(words)
        while waiting:
            word = waiting.popleft()
            if (end := self._cut_before(word)) is not None:
                later = self._words[end:]
                phrases.append(self._take(end))
                waiting.extendleft(reversed([*later, word]))
                continue
            self._append(word)
            if self._ends_with(word):
                phrases.append(self._take(len(self._words)))

    def _append(self, word: Word) -> None:
        if word.is_punctuation and (self._length > self._limit() or not self._is_sayable()):
            # Nobody hears marks after nothing, nor ever more of them.
            word = replace(word, spoken="")
        self._words.append(word)
        self._gap = self._gap or word.is_apart
        if word.spoken:
            self._length += (self._gap and self._length > 0) + speech_length(word.spoken)
            self._gap = False

    def _take(self, end: int) -> SpeakablePhrase:
        phrase = SpeakablePhrase(tuple(self._words[:end]))
        self._words, self._length, self._gap = [], 0, False
        self._first = self._first and not phrase.spoken
        return phrase

    def _limit(self) -> int:
        return self._first_chars if self._first else self._chars

    def _is_sayable(self) -> bool:
        return any(is_sayable(word.spoken) for word in self._words)

    def _ends_with(self, word: Word) -> bool:
        """Whether the phrase is whole with ``word``."""
        if word.boundary is Boundary.SENTENCE:
            return self._is_sayable()
        return self._first and word.boundary is Boundary.CLAUSE and self._length >= _MIN_CLAUSE and self._is_sayable()

    def _cut_before(self, word: Word) -> int | None:
        """After how many words the phrase ends because ``word`` makes it too long; None where it does not."""
        if not self._words or not word.spoken or word.is_punctuation:
            return None
        limit = self._limit()
        if self._length + (self._gap or word.is_apart) + speech_length(word.spoken) > limit:
            return self._best_cut(limit)
        if (
            not self._first
            or 2 * self._length < limit
            or word.boundary is Boundary.UNKNOWN
            or word.spoken.lower() not in OPENERS
        ):
            return None
        return len(self._words) if self._words[-1].boundary >= Boundary.WORD and self._is_sayable() else None

    def _best_cut(self, limit: int) -> int | None:
        """After a clause, before a conjunction, between words: where it is not much too early, as late as possible."""
        best: tuple[int, int] | None = None
        length, sayable = 0, False
        for n, ((ends, gap), follows) in enumerate(
            zip(_spaced(self._words), [*self._words[1:], _NEXT], strict=True), 1
        ):
            if ends.spoken:
                length += gap + speech_length(ends.spoken)
                sayable = sayable or is_sayable(ends.spoken)
            if not sayable or not follows.spoken or follows.is_punctuation:
                continue
            rank = 0 if ends.boundary is Boundary.INSIDE else 1
            if rank and 5 * length >= 2 * limit:
                rank = 4 if ends.boundary is Boundary.CLAUSE else 3 if follows.is_conjunction else 2
            if best is None or (rank, n) >= best:
                best = (rank, n)
        return None if best is None else best[1]


def _spaced(words: Sequence[Word]) -> list[tuple[Word, bool]]:
    """Each word, and whether a space is said before it."""
    spaced, begun, gap = [], False, False
    for word in words:
        gap = gap or word.is_apart
        spaced.append((word, begun and gap and not word.spoken.startswith(_GLUED)))
        if word.spoken:
            begun, gap = True, False
    return spaced


def _join(words: Sequence[Word]) -> str:
    return "".join((" " if gap else "") + word.spoken for word, gap in _spaced(words) if word.spoken)
