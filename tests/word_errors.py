"""Word errors between what was said and what was heard, spelling aside."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jiwer

_SPELLINGS = {
    "10": "ten",
    "15th": "fifteenth",
    "20th": "twentieth",
    "metres": "meters",
    "what's": "what is",
    "mr": "mister",
}


def plain(text: str) -> str:
    """Lower case, no punctuation, contractions and numbers written out.

    >>> plain("What's 10, Mr. Brown?")
    'what is ten mister brown'
    """
    words = re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("’", "'")).split()
    return " ".join(_SPELLINGS.get(word, word) for word in words)


def word_errors(said: Mapping[str, str], heard: Mapping[str, str]) -> int:
    """Substitutions, deletions and insertions over all files of ``heard``."""
    result = jiwer.process_words([plain(said[name]) for name in heard], [plain(text) for text in heard.values()])
    return result.substitutions + result.deletions + result.insertions
