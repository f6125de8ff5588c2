"""Words that decide where a sentence ends. Pure data.

English first; what other languages add does not contradict it.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TITLES = _words(
    "mr mrs ms mx dr prof rev hon st gen col maj capt lt sgt gov sen rep pres vs approx univ mt "
    "hr mme mlle sra srta dra nr bzw ca evtl ggf inkl vgl e.g i.e z.b d.h"
)
"""A full stop after one of these never ends a sentence, unless the line ends there, too."""
BEFORE_NUMBERS = _words("no nos fig figs vol art sec ch p pp núm pág")
"""A full stop after one of these ends a sentence unless a number follows."""
NAMES_END = _words("jr sr inc ltd co corp bros st dept")
"""A full stop after one of these, after an initial ("J.") or a name of capitals ("U.S."), ends a sentence only where a
word follows with which sentences begin: a capital alone may belong to the name."""
ABBREVIATIONS = _words(
    "etc b.a m.a cf al ave blvd rd usw jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun "
    "max min est ext tel"
)
"""A full stop after one of these, or after small letters with stops ("a.m."), ends a sentence only where a capital
follows."""
STARTERS = _words(
    "a an the this that these those there here he she it we they you i his her its our their my your who what when "
    "where why how which and but so or if in on at for from with by as after before since because although while "
    "however then also still yet now today no not yes please is are was were do does did can could will would should "
    "may one some many most all both each every another"
)
"""English sentences begin with these, and names do not."""
CONJUNCTIONS = _words(
    "and but or so because although though while whereas if unless until when whenever since where which "
    "und aber oder weil wenn dass et mais ou parce quand si y pero o porque cuando e ma perché quando"
)
"""A long sentence may be cut before one of these."""
OPENERS = _words("and but so because although though while whereas if unless until when whenever since where which")
"""A long first sentence may be cut before one of these earlier than it must."""
SCALES = _words("hundred thousand million billion trillion k m bn")
MONTHS = _words(
    "january february march april may june july august september october november december "
    "januar jänner februar märz mai juni juli oktober dezember"
)
IN_FULL = {
    "no": "number", "nos": "numbers", "vs": "versus", "prof": "professor", "gen": "general", "col": "colonel",
    "maj": "major", "capt": "captain", "lt": "lieutenant", "sgt": "sergeant", "gov": "governor", "sen": "senator",
    "rep": "representative", "rev": "reverend", "pres": "president", "fig": "figure", "figs": "figures",
    "vol": "volume", "sec": "section", "ch": "chapter", "p": "page", "pp": "pages", "mt": "mount",
    "approx": "approximately",
}  # fmt: skip
"""What an English voice would spell or say as it is written."""

_ACRONYM = re.compile(r"(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,2}")


def is_acronym(name: str) -> bool:
    """Whether ``name`` (without its last full stop) is letters with full stops between them: "U.S", "a.m", "Ph.D"."""
    return _ACRONYM.fullmatch(name) is not None
