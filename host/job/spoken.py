"""Words as a model writes them, and as a voice says them. Pure.

``WordReader`` takes text in pieces of any size and gives it back word by word: what is shown, what is said
for it, and whether a sentence or a clause ends with it. A rule that must look at what follows a word
(``Ahead``) waits until it has come, so how the text arrives makes no difference.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace

from host.job import abbreviations as abbr

MAX_WORD = 1_000
"""Characters. A longer word is cut in two: what is said must fit into its message."""
_LONG_LINE = 50
"""Characters. A line this long was wrapped where the next one begins in lower case."""
_MAX_MARKS = 3
"""Characters of a word that is nothing but punctuation."""
_MAX_HIDDEN_WORDS = 12
"""A link's title or a tag that is not closed after so many words is text."""


class Boundary(enum.IntEnum):
    """What ends with a word. INSIDE: nothing; a name, number or the like goes on. UNKNOWN: it has not ended."""

    UNKNOWN = -1
    INSIDE = 0
    WORD = 1
    CLAUSE = 2
    SENTENCE = 3


@dataclass(frozen=True, slots=True)
class Word:
    """``shown``: as written, with the space before it; all of them join to the text. ``spoken``: "" says nothing."""

    shown: str
    spoken: str
    boundary: Boundary = Boundary.WORD

    @property
    def is_apart(self) -> bool:
        """Whether there is space before it."""
        return self.shown[:1].isspace()

    @property
    def is_conjunction(self) -> bool:
        """Whether a new clause may begin with it."""
        return self.spoken.lower() in abbr.CONJUNCTIONS

    @property
    def is_punctuation(self) -> bool:
        """Whether it is nothing but marks, which belong to the word before it."""
        return bool(self.spoken) and not is_sayable(self.spoken)


def is_sayable(text: str) -> bool:
    """Whether a voice has anything to say in ``text``."""
    return _SAYABLE.search(text) is not None


class _MoreNeededError(Exception):
    """What follows has not come yet."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What follows a word. ``ended``: nothing comes after ``text``. Each question has one answer, or raises."""

    text: str
    at: int
    ended: bool

    def char(self, skipped: re.Pattern[str]) -> str:
        """The first character after ``skipped``; "\\n" at the end of the line or of the text."""
        found = skipped.match(self.text, self.at)
        end = found.end() if found else self.at
        if end < len(self.text):
            return self.text[end]
        if not self.ended:
            raise _MoreNeededError
        return "\n"

    def letter(self) -> str:
        """The first character of the next word, behind quotes and brackets."""
        return self.char(_OPENING)

    def mark(self) -> str:
        """The next character that is no space."""
        return self.char(_SPACES)

    def word(self) -> str:
        """The next word on the line, without opening quotes and brackets."""
        self.letter()
        begin = _OPENING.match(self.text, self.at)
        found = _NEXT_WORD.match(self.text, begin.end() if begin else self.at)
        if found is None:
            return ""
        if found.end() == len(self.text) and not self.ended:
            raise _MoreNeededError
        return found.group()


@dataclass(frozen=True, slots=True)
class _Line:
    """Where in the text a word stands.

    ``start``: nothing but marks of a list, a quotation or the like is before it on its line. ``bullet``: a
    list's mark is right before it. ``block``: its line is a list's item, a heading or a table's row. ``row``: it
    is in a table. ``cell``: after a table's cell. ``length``: characters on this line. ``fence``: what ends the
    code block that it is in. ``info``: it is in the line that opens one. ``hidden``: what closes the link's
    title or the tag that it is in, ``hidden_words``: for how long. ``quoted``: guillemets that are open.
    ``last``: what was said before it. ``money``: the currency to be said after it.
    """

    start: bool = True
    bullet: bool = False
    block: bool = False
    row: bool = False
    cell: bool = False
    length: int = 0
    fence: str = ""
    info: bool = False
    hidden: str = ""
    hidden_words: int = 0
    quoted: int = 0
    last: str = ""
    money: str = ""


class WordReader:
    """Text goes in by ``push`` and ``end``, words come out of ``read``. ``language``: ISO 639-1, "" is unknown."""

    def __init__(self, language: str = "") -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._line = _Line()
        self._english = language == "en"

    def push(self, text: str) -> None:
        """More text."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self) -> None:
        """No more text comes."""
        self._ended = True

    def read(self) -> Word | None:
        """The next word; None until more text has come."""
        try:
            end = self._word_end()
            shown = self._text[self._at : end]
            ahead = _Ahead(self._text, end, self._ended)
            spoken, boundary, line = self._say(shown, ahead)
        except _MoreNeededError:
            return self._last_stop()
        self._at, self._line = end, line
        return Word(shown, spoken, boundary)

    def _last_stop(self) -> Word | None:
        """At the end of the text a list's last item ends as the others did."""
        if not self._ended or not (stop := _block_stop(self._line)):
            return None
        self._line = replace(self._line, last=stop)
        return Word("", stop, Boundary.SENTENCE)

    def begun(self) -> Word | None:
        """The beginning of the next word where it is sure to be said as it stands; nothing is known of its end."""
        if self._ended or self._line.info or self._line.hidden or self._line.start:
            return None
        found = _BEGUN.fullmatch(self._text, self._at)
        if found is None or _ADDRESS.match(found.group(2)):
            return None
        return Word(found.group(), found.group(2), Boundary.UNKNOWN)

    def _word_end(self) -> int:
        text = self._text
        found = _SPACES.match(text, self._at)
        begin = found.end() if found else self._at
        if begin == len(text):
            if self._ended and begin > self._at:
                return begin
            raise _MoreNeededError
        if text[begin] == "\n":
            return begin + 1
        found = _WORD.match(text, begin)
        assert found is not None
        word = found.group()
        if not word.isascii() and (inside := _BREAK.search(word)) is not None:
            return begin + inside.start()
        if len(word) > MAX_WORD:
            return begin + MAX_WORD
        if found.end() == len(text) and not self._ended:
            raise _MoreNeededError
        return found.end()

    # --- one word -----------------------------------------------------------------------------------

    def _say(self, shown: str, ahead: _Ahead) -> tuple[str, Boundary, _Line]:
        line = self._line
        written = shown.strip()
        if not written:
            return self._end_line(shown, ahead)
        line = replace(line, length=line.length + len(shown))
        if line.start and (found := _FENCE.match(written)) and found.group()[:3] == (line.fence or written[:3]):
            # The line that opens a code block also names its language.
            opens = not line.fence
            return "", Boundary.WORD, replace(line, fence=written[:3] if opens else "", info=True, start=False)
        if line.info and "`" not in written:
            return "", Boundary.WORD, line
        if line.fence and not line.info:
            return _printable(written), Boundary.WORD, replace(line, start=False)
        if line.info:
            # Code in a line of text may have three marks as well.
            line = replace(line, fence="", info=False)
        if line.start and (marked := self._say_mark(written, line)) is not None:
            return marked
        line = replace(line, start=False, bullet=False)
        if line.row or "|" in written:
            spoken, line = _say_cells(written, line, ahead)
        else:
            spoken, line = _say_word(written, line)
        return self._finish(written, spoken, line, ahead)

    @staticmethod
    def _say_mark(written: str, line: _Line) -> tuple[str, Boundary, _Line] | None:
        """A mark at the beginning of a line, if ``written`` is one."""
        if _BULLET.fullmatch(written):
            return "", Boundary.INSIDE, replace(line, bullet=True, block=True)
        if _QUOTATION.fullmatch(written):
            return "", Boundary.INSIDE, line
        if _HEADING.fullmatch(written):
            return "", Boundary.INSIDE, replace(line, start=False, block=True)
        if _RULE.fullmatch(written):
            return "", Boundary.INSIDE, replace(line, start=False)
        if line.bullet and _TASK.fullmatch(written):
            return "", Boundary.INSIDE, line
        if found := _NUMBERED.fullmatch(written):
            return f"{found.group(1)}.", Boundary.INSIDE, replace(line, block=True, bullet=False)
        return None

    def _end_line(self, shown: str, ahead: _Ahead) -> tuple[str, Boundary, _Line]:
        if not shown.endswith("\n"):
            return "", Boundary.WORD, self._line
        line = self._line
        wrapped = not line.block and not line.fence and line.length >= _LONG_LINE and ahead.letter().islower()
        follows = _Line(fence=line.fence, length=0, last=line.last if wrapped else "", quoted=line.quoted)
        return _block_stop(line), Boundary.WORD if wrapped else Boundary.SENTENCE, follows

    def _finish(self, written: str, spoken: str, line: _Line, ahead: _Ahead) -> tuple[str, Boundary, _Line]:
        """What ends with the word, and what that makes of what is said."""
        if self._english:
            spoken, line = _say_money(spoken, line, ahead)
        line = replace(line, quoted=max(0, line.quoted + written.count("«") - written.count("»")))
        spoken, boundary = _judge(spoken, line, ahead, expand=self._english)
        if not spoken and line.last[-1:] in _STOPS and _CLOSING.fullmatch(written):
            boundary = Boundary.SENTENCE
        return spoken, boundary, replace(line, last=spoken or line.last)


def _block_stop(line: _Line) -> str:
    """What is said at the end of a list's item, a heading or a table's row: they are sentences."""
    return "." if line.block and line.last and line.last[-1] not in _ENDS and not _CLAUSE_END.search(line.last) else ""


# --- what ends with a word ----------------------------------------------------------------------------

_STOPS = frozenset(".!?…。！？．｡؟۔।॥።។")
_ENDS = _STOPS | frozenset("\"'”’»“)]}」』】》〉")
_SPACES = re.compile(r"[^\S\n]*")
_OPENING = re.compile(r"[^\S\n]*(?:[\"'“‘«„‚(\[*_`~]+[^\S\n]*)*")
_CLOSING = re.compile(r"[\"'”’»“)\]}」』）】》〉*_`~]+")
_NEXT_WORD = re.compile(r"\S+")
_WORD = re.compile(rf"\S{{1,{MAX_WORD + 1}}}")
_BEGUN = re.compile(r"([^\S\n]*)([A-Za-z]+)")
_ADDRESS = re.compile(r"(?i)h(?:t(?:t(?:p|$)|$)|$)|w(?:w(?:w|$)|$)|m(?:a(?:i(?:l(?:t(?:o|$)|$)|$)|$)|$)")
"""What may begin an address, of which not all is said."""
_END = re.compile(r"([.!?…]+|[。！？．｡؟۔।॥።។…]+)([\"'”’»“)\]}」』）】》〉]*)$")
_CLAUSE_END = re.compile(r"(?:[,;:،؛，、；：]|[—–])[\"'”’»“)\]}」』）】》〉]*$")
_NAME = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)*$")
_DAY_COMMA = re.compile(r"\d(?:st|nd|rd|th)?,$")

_CJK = r"\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SMALL_KANA = "ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ"
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_UNSPACED_FIRST = r"\u0e01-\u0e2e\u0e40-\u0e44\u0e81-\u0eae\u0ec0-\u0ec4\u1000-\u102a\u1780-\u17b3"
_BREAK = re.compile(
    r"(?<=[。！？．｡，、；：])(?=[^\s。！？．｡，、；：」』）】》〉”’\"'…])"  # after a mark
    r"|(?<=[」』）】》〉])(?=[^\s\W])"
    rf"|(?<=[{_CJK}ー々])(?![{_SMALL_KANA}])(?=[{_CJK}「『（《【])"  # no script with spaces
    rf"|(?<=[—…])(?=\w)"
    rf"|(?<=[{_UNSPACED}]{{60}})(?=[{_UNSPACED_FIRST}])"
)


def _judge(spoken: str, line: _Line, ahead: _Ahead, *, expand: bool) -> tuple[str, Boundary]:
    """What ends with ``spoken``; a full stop that ends nothing is not said: a voice would pause there."""
    found = _END.search(spoken)
    if found is None:
        if _DAY_COMMA.search(spoken) and ahead.letter().isdigit():
            return spoken, Boundary.INSIDE
        if _CLAUSE_END.search(spoken):
            return spoken, Boundary.CLAUSE
        # A number goes with what is counted.
        return spoken, Boundary.INSIDE if spoken[-1:].isdigit() or spoken in _SIGNS else Boundary.WORD
    stop, closed = found.groups()
    if line.quoted and ahead.mark() == "»":
        return spoken, Boundary.INSIDE
    if stop[-1] not in ".!?…":
        return spoken, Boundary.SENTENCE
    if closed and ahead.letter().islower():
        return spoken, Boundary.WORD
    if stop == "…" or stop.startswith(".."):
        return spoken, Boundary.CLAUSE if ahead.letter().islower() else Boundary.SENTENCE
    if stop != "." or closed:
        return spoken, Boundary.SENTENCE
    before = spoken[: found.start()]
    name = _NAME.search(before)
    boundary = _judge_number(before, ahead) if name is None else _judge_name(name.group(), ahead)
    if boundary is Boundary.SENTENCE:
        return spoken, boundary
    if name is not None and expand and boundary is Boundary.INSIDE and (full := abbr.IN_FULL.get(name.group().lower())):
        return before[: name.start()] + (full.capitalize() if name.group()[0].isupper() else full), boundary
    if ahead.letter().isupper() or ahead.letter().isdigit():
        return before, boundary
    return spoken, boundary


def _judge_number(before: str, ahead: _Ahead) -> Boundary:
    """After a number (or a bracket, a sign) with a full stop: ordinals of some languages are written so."""
    digits = before.lstrip("(\"'")
    if not (digits.isdigit() and len(digits) <= 2):
        return Boundary.SENTENCE
    follows = ahead.letter()
    if follows.islower():
        return Boundary.INSIDE
    if follows.isupper() and ahead.word().strip(".,;:!?").lower() in abbr.MONTHS:
        return Boundary.INSIDE
    return Boundary.SENTENCE


def _judge_name(name: str, ahead: _Ahead) -> Boundary:
    """After a word with a full stop."""
    key = name.lower()
    initial = len(name) == 1 and name.isupper()
    if key in abbr.TITLES and key not in abbr.NAMES_END:
        return Boundary.SENTENCE if ahead.letter() == "\n" else Boundary.INSIDE
    if key in abbr.BEFORE_NUMBERS:
        return Boundary.INSIDE if ahead.letter().isdigit() else Boundary.SENTENCE
    if initial or key in abbr.NAMES_END or (name[0].isupper() and abbr.is_acronym(name)):
        follows = ahead.letter()
        if follows == "\n":
            return Boundary.SENTENCE
        if follows.isupper() and ahead.word().strip(",;:!?").lower() in abbr.STARTERS:
            return Boundary.SENTENCE
        return Boundary.INSIDE if initial or key in abbr.TITLES else Boundary.WORD
    if key in abbr.ABBREVIATIONS or abbr.is_acronym(name):
        follows = ahead.letter()
        if follows.isdigit():
            return Boundary.INSIDE
        return Boundary.SENTENCE if follows == "\n" or follows.isupper() else Boundary.WORD
    return Boundary.SENTENCE


# --- what is said for a word --------------------------------------------------------------------------

_SAYABLE = re.compile(r"[^\W_]|[$€£¥%&+=@°½¼¾]")
_SIGNS = frozenset("$€£¥#(~+-−–±≈<>=*/×÷")
_SIGNS_ALONE = frozenset("*<>/~^#×÷")
_DASHES = frozenset("-–−")
_PROSODY = re.compile(r"[.,;:!?…。！？．｡，、；：؟،؛۔।॥—–]+")
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\U0001fb00-\U0001ffff\u2190-\u21ff\u2300-\u23ff\u24b6-\u24ff\u25a0-\u2775\u2794-\u27bf"
    "\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299\u200b\u200d\u2060\ufeff\u20e3\ufe0e\ufe0f\U000e0020-\U000e007f]+"
)
_URL = re.compile(
    r"(?i)\b(?:https?://(?:www\.)?|www\.)"
    r"([^\s/?#,;!\"'<>)\]]*[^\s/?#.,:;!\"'<>)\]*_])"  # the host, which is read out
    r"(?:[/?#](?:[^\s\"'<>)\]]*[^\s.,:;!?\"'<>)\]*_])?)?"  # the path, which is not; a full stop after it is text
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES))
_SUBSTITUTIONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\([!-/:-@\[-`{-~])", r"\1"),
        (r"(?:\]\[[^\]\s]*\]|\[\^[^\]\s]*\])", ""),  # a reference, a footnote
        (r"<((?:https?://|mailto:)?[^<>\s]+[.@:][^<>\s]+)>", r"\1"),
        (r"</?[A-Za-z][^<>\s]*>", " "),
        (r"(?i)\bmailto:", ""),
        (_URL.pattern, r"\1"),
        (r"`+", ""),
        (r"(?<![^\s(\"'“‘«\[—–/-])(?:[*_]|~~)+(?=[^\s*_~])", ""),
        (r"(?<=[^\s*_~])(?:[*_]|~~)+(?![^\s.,;:!?…。！？，、；：)\"'”’»\]—–/-])", ""),
        (r"(?<=[^\W\d_])\*\*+(?=[^\W\d_])", ""),
        (r"[\[\]]", " "),
        (r"^(?:-+|–|—)$", "—"),
    )
)
_LINK_TARGET = re.compile(r"\]\(<?[^\s()]*(?:\([^\s()]*\)[^\s()]*)*>?(\)?)")
_TAG = re.compile(
    r"<(?:a|img|span|div|p|font|table|td|th|tr|h[1-6]|ol|ul|li|pre|code|audio|video|break|prosody|say-as)$"
)
_FENCE = re.compile(r"```+[^`]*$|~~~+")
_BULLET = re.compile(r"[-*+•·◦‣–]")
_QUOTATION = re.compile(r">+")
_HEADING = re.compile(r"#{1,6}")
_RULE = re.compile(r"[-*_=]{3,}|\|?:?-{2,}:?(?:\|:?-{2,}:?)*\|?")
_TASK = re.compile(r"\[[xX]?\]?|\]")
_NUMBERED = re.compile(r"\(?(\d{1,3}|[A-Za-z](?=\)))[.)]")
_CELL_RULE = re.compile(r":?-+:?")
_MONEY = re.compile(r"(\(?[-−]?)([$€£])(\d+(?:,\d{3})*)(?:\.(\d\d))?([.,;:!?)…]*)")
_AFTER_WORD = ".,;:!?…)\"'”’*_"
_MONEY_NAMES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "pence")}


def _printable(text: str) -> str:
    text = _EMOJI.sub(" ", text)
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _say_word(written: str, line: _Line) -> tuple[str, _Line]:
    if line.hidden:
        before, closed, written = written.partition(line.hidden)
        if not closed and line.hidden_words < _MAX_HIDDEN_WORDS:
            return "", replace(line, hidden_words=line.hidden_words + 1)
        line = replace(line, hidden="", hidden_words=0)
        written = written if closed else before
    if (found := _LINK_TARGET.search(written)) and not found.group(1):
        # A title in quotes follows.
        written, line = written[: found.start()], replace(line, hidden=")")
    elif found:
        written = _LINK_TARGET.sub("", written)
    if found := _TAG.search(written):
        written, line = written[: found.start()], replace(line, hidden=">")
    text = _printable(_ENTITY.sub(lambda entity: _ENTITIES[entity.group()], written))
    is_sign = text in _SIGNS_ALONE or (text in _DASHES and line.last[-1:].isdigit())
    if not is_sign:
        text = text.removeprefix("!") if text.startswith("![") else text
        for pattern, by in _SUBSTITUTIONS:
            text = pattern.sub(by, text)
        text = " ".join(text.split())
    if is_sayable(text) or (is_sign and line.last):
        return text, line
    return text[:_MAX_MARKS] if _PROSODY.fullmatch(text) else "", line


def _say_cells(written: str, line: _Line, ahead: _Ahead) -> tuple[str, _Line]:
    """A word with a table's bars in it: a comma is said between two cells."""
    if not line.row and written.startswith("|") and not line.last:
        line = replace(line, row=True, block=True)
    said = ""
    for n, part in enumerate(written.split("|")):
        spoken, line = ("", line) if _CELL_RULE.fullmatch(part) else _say_word(part, line)
        if n > 0 and line.cell:
            said, line = said + ",", replace(line, cell=False)
        if spoken:
            said, line = f"{said} {spoken}".strip(), replace(line, cell=True)
    if said.endswith(",") and written.endswith("|") and ahead.mark() == "\n":
        said = said[:-1]
    return said, line


def _say_money(spoken: str, line: _Line, ahead: _Ahead) -> tuple[str, _Line]:
    """In English the currency is said after the amount."""
    if line.money:
        scale = spoken.rstrip(_AFTER_WORD)
        return f"{scale} {line.money}{spoken[len(scale) :]}", replace(line, money="")
    found = _MONEY.fullmatch(spoken)
    if found is None:
        return spoken, line
    before, sign, amount, cents, after = found.groups()
    name, part = _MONEY_NAMES[sign]
    if not after and not cents and ahead.word().strip(_AFTER_WORD).lower() in abbr.SCALES:
        return f"{before}{amount}", replace(line, money=f"{name}s")
    said = f"{amount} {name}" if amount == "1" else f"{amount} {name}s"
    if cents and int(cents):
        said += f" and {int(cents)} {part}" if part == "pence" or int(cents) == 1 else f" and {int(cents)} {part}s"
    return f"{before}{said}{after}", line
