"""What a few words of the caller are: sounds, back-channels, or something said. Pure.

A back-channel ("mhm", "yeah, right") tells the speaker to go on. Whisper writes coughs and noise as something in
brackets, or as the closing words of films; over the agent's speech they count as nothing said, too.
"""

from __future__ import annotations

import re
import unicodedata

_SOUND = re.compile(r"\[[^\]]*\]|\([^)]*\)|\*[^*]*\*|<[^>]*>|[♪♫]+")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_HUMS = (
    "ah aha er erm eh ha hm hmm hmmm huh mhm mm mmm mmhm mm-hm mm-hmm mmhmm oh ooh uh uh-huh uhhuh uh-hum uhm um wow"
)

_BACKCHANNELS: dict[str, str] = {
    "en": (
        "yeah yep yup yes ya okay ok okey right sure alright cool nice great good fine true exactly indeed "
        "absolutely definitely totally really interesting perfect understood gotcha thanks you bye | "
        "all right | i see | got it | of course | go on | i know | that's right | that's true | makes sense | "
        "thank you | thank you very much | thank you so much | thanks for watching | thank you for watching | very good"
    ),
    "de": "ja jap jo genau okay ok gut klar stimmt richtig aha verstehe | alles klar | ach so | na klar | sehr gut",
    "fr": "oui ouais ok d'accord voilà bien bon exactement super vrai | c'est ça | bien sûr | je vois | très bien",
    "es": "sí si ya vale claro ok okay bueno bien exacto cierto | por supuesto | ya veo | de acuerdo | muy bien",
    "it": "sì si ok okay va bene certo esatto giusto vero capisco bene | va bene | ho capito | d'accordo",
    "pt": "sim tá ok okay certo claro exato isso bom bem entendi | tá bom | com certeza | muito bem",
    "nl": "ja ok oké okay goed precies juist klopt zeker | ja hoor | ik snap het",
}
"""One word each, and phrases between bars."""


def words(text: str) -> list[str]:
    """The words of ``text`` in small letters, without what stands for a sound ("[cough]")."""
    spoken = _SOUND.sub(" ", unicodedata.normalize("NFKC", text)).casefold().replace("’", "'")
    return _WORD.findall(spoken)


def is_backchannel(text: str, language: str = "en") -> bool:
    """Whether ``text`` has words, and is made of nothing but back-channels of ``language`` (ISO 639-1; "": English)."""
    said = words(text)
    return bool(said) and _covered(said, _phrases(language or "en"))


_HUM_WORDS = frozenset((word,) for word in _HUMS.split())
_PHRASES: dict[str, frozenset[tuple[str, ...]]] = {}


def _phrases(language: str) -> frozenset[tuple[str, ...]]:
    if language not in _PHRASES:
        singles, *phrases = _BACKCHANNELS.get(language, "okay ok").split("|")
        _PHRASES[language] = (
            _HUM_WORDS | {(word,) for word in singles.split()} | {tuple(words(phrase)) for phrase in phrases}
        )
    return _PHRASES[language]


def _covered(said: list[str], phrases: frozenset[tuple[str, ...]]) -> bool:
    """Whether ``said`` can be cut into ``phrases``."""
    longest = max(map(len, phrases))
    reached = {0}
    for end in range(1, len(said) + 1):
        if any(end - n in reached and tuple(said[end - n : end]) in phrases for n in range(1, longest + 1)):
            reached.add(end)
    return len(said) in reached
