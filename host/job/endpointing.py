"""How long a silence must be to end the caller's turn. Pure. Lengths are samples at 16 kHz.

Two things are known at a pause: what was said (its last word, its punctuation), and, where the language model has
read it, the probability that it is complete. Together they are the odds that the turn is over; the better they
are, the shorter the wait, between ``shortest`` and ``longest``. A caller whose own pauses are known is waited for
as long as these make it likely that the turn goes on: their mean and four times their mean deviation, as TCP does
with round trips (RFC 6298).
"""

from __future__ import annotations

import itertools
import math

from host.job.backchannel import words

_SAMPLES_PER_MS = 16

KNOTS = ((-0.85, 1_200), (0.4, 800), (1.4, 500), (2.2, 300), (3.5, 100), (5.5, 0))
"""Log-odds that the turn is over, and how many ms more than the shortest wait they ask for; linear between them.

Fitted on recordings with pauses of 0.2 to 1.5 s inside their sentences, and checked on others
(`scripts/bench/turns.py`).
"""
DOUBTFUL = -2.2
"""At these log-odds and below the caller is waited for as long as patience lasts."""
UNREAD = 2.6
"""Log-odds that a turn is over of which nothing but the transcript is known: about the wait of plain detection."""
_COMPLETE, _QUESTION, _BROKEN_OFF, _TRAILING, _HESITANT = 2.0, 1.0, -2.0, -3.0, -3.0
_MOST_CERTAIN = 0.98
"""No model is believed more than this."""
_KNOWN_AFTER = 2
"""Pauses of a caller after which they count."""
_LEAST_PATIENCE = 900 * _SAMPLES_PER_MS
"""A caller in the middle of a sentence is waited for this long, however short the pauses so far were."""
CAUTION = 300 * _SAMPLES_PER_MS
"""So much longer a caller is waited for who was just cut off."""
_WEIGHT, _DEVIATION_WEIGHT = 1 / 4, 1 / 4
_SHORT_PAUSE = 160 * _SAMPLES_PER_MS
"""Shorter ones are between words, and tell nothing of how a caller thinks."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TRAILING_WORDS: dict[str, frozenset[str]] = {
    "en": _words(
        "a an the and or but so because if when while although though unless until than that which who whose whom "
        "of to from for with without at by in into on onto about between through during before after under over "
        "my your his her its our their this these those some any every each another "
        "i we they he she i'm we're they're you're i'd i'll we'll i've we've let's there's it's that's what's "
        "is are was were am be been being has have had do does did will would can could shall should may might must "
        "want wanna need like very really quite too more most maybe also just not as then plus please tell"
    ),
    "de": _words(
        "der die das den dem des ein eine einen einem einer und oder aber weil wenn dass ob als wie mit von zu zum zur "
        "für in im an am auf bei nach aus über mein meine dein ich wir sie er es ist sind war habe hat möchte "
        "will kann sehr nicht auch noch"
    ),
    "fr": _words(
        "le la les un une des du de d' et ou mais parce que qui si quand avec sans pour dans sur à au aux mon ma mes "
        "ton ta votre je nous vous il elle c'est est sont veux voudrais très pas plus"
    ),
    "es": _words(
        "el la los las un una unos de del y o pero porque que si cuando con sin para por en a al mi mis tu su yo "
        "es son está quiero quisiera muy no más"
    ),
}
_NEVER_LAST = _words(
    "a an the and or but because if my your our their der die das ein eine und oder aber weil dass le la les un "
    "une et ou el los las una y o"
)
"""Behind these a question mark is Whisper's own, too."""
_HESITATIONS = _words("um uh uhm er erm hmm hm mm äh ähm öh euh eh este")
_ANSWERS = _words(
    "yes no yeah yep nope okay ok sure thanks bye goodbye hello hi please stop ja nein oui non sí danke merci gracias"
)
_POLITE_ENDS = (("thank", "you"), ("that's", "all"), ("that's", "it"), ("good", "bye"), ("right", "now"))
_ELLIPSIS = ("...", "…", "-", "–", "—", ",", ":", ";")


def text_odds(text: str, language: str = "en") -> float:
    """Log-odds to add for how ``text`` ends: below 0 it sounds unfinished. Whisper writes "." behind anything."""
    said = words(text)
    if not said:
        return 0.0
    ending = text.rstrip().rstrip("\"'”’)")
    last = said[-1]
    if last in _HESITATIONS:
        return _HESITANT
    if ending.endswith(_ELLIPSIS):
        return _BROKEN_OFF
    if (len(said) <= 2 and last in _ANSWERS) or tuple(said[-2:]) in _POLITE_ENDS:
        return _COMPLETE
    if ending.endswith("?") and last not in _NEVER_LAST:
        # A question may end in any word ("Where are you from?").
        return _QUESTION
    if last in _TRAILING_WORDS.get(language or "en", ()):
        return _TRAILING
    return 0.0


def turn_is_over(text: str, probability: float, language: str = "en") -> float:
    """Log-odds that a caller who said ``text`` has finished. ``probability``: the model's; -1: it has none."""
    if probability < 0:
        odds = UNREAD
    else:
        certain = min(max(probability, 1 - _MOST_CERTAIN), _MOST_CERTAIN)
        odds = math.log(certain / (1 - certain))
    return odds + text_odds(text, language)


class Endpointing:
    """The delays of one caller, who is learned from: ``went_on`` after each pause that was not the end."""

    def __init__(self, shortest: int, longest: int, language: str = "en") -> None:
        self.shortest = shortest
        self.longest = max(shortest, longest)
        self.language = language
        self._pauses = 0
        self._mean = 0.0
        self._deviation = 0.0
        self._caution = 0

    def __repr__(self) -> str:
        return f"<Endpointing {self._pauses} pauses, patience {self.patience() // _SAMPLES_PER_MS} ms>"

    def bounds(self, shortest: int, longest: int, language: str) -> None:
        """Keep to other bounds; what was learned stays."""
        self.shortest, self.longest, self.language = shortest, max(shortest, longest), language

    def went_on(self, pause: int) -> None:
        """The caller went on after ``pause`` samples of silence."""
        if pause < _SHORT_PAUSE:
            return
        pause = min(pause, self.longest)
        if not self._pauses:
            self._mean, self._deviation = float(pause), pause / 2
        else:
            self._deviation += _DEVIATION_WEIGHT * (abs(pause - self._mean) - self._deviation)
            self._mean += _WEIGHT * (pause - self._mean)
        self._pauses += 1

    def cut_off(self) -> None:
        """The caller was answered, and had not finished: there is more of it, and the same may happen again."""
        self._caution = CAUTION

    def answered(self) -> None:
        """The caller has listened to an answer."""
        self._caution = 0

    def patience(self) -> int:
        """The wait for a caller who is certainly in the middle of something."""
        if self._pauses < _KNOWN_AFTER:
            return self.longest
        return max(self.shortest, min(max(round(self._mean + 4 * self._deviation), _LEAST_PATIENCE), self.longest))

    def delay(self, text: str, probability: float) -> int:
        """The silence that ends a turn in which ``text`` was said. ``probability`` as in ``turn_is_over``."""
        over = turn_is_over(text, probability, self.language)
        most = max(self.patience() - self.shortest, KNOTS[0][1] * _SAMPLES_PER_MS)
        more = _between(over, (DOUBTFUL, most), *((odds, ms * _SAMPLES_PER_MS) for odds, ms in KNOTS))
        return min(self.shortest + round(more) + self._caution, self.longest)


def _between(x: float, *knots: tuple[float, float]) -> float:
    """The value at ``x`` of the line through ``knots``, which are in order; beyond its ends it is level."""
    for (left, low), (right, high) in itertools.pairwise(knots):
        if x < right:
            return low + (high - low) * max(0.0, x - left) / (right - left)
    return knots[-1][1]
