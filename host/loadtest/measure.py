"""From what callers said and heard to what a load test reports. Pure.

Response: from the last voiced sample of an utterance to the first voiced sample of the agent after it, both on
the caller's audio clock. What became of an utterance::

    answered     the agent was heard after it
    lost         it was not, for as long as the caller's patience lasted
    cut off      the agent took the turn, and was heard, before the caller had finished
    open         the call ended first: not counted

A turn that was taken too early and taken back before anything of it was heard harms nobody; it is counted apart.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from host.loadtest.timeline import Answer, Heard, Said, Shown, Timeline
from host.loadtest.words import error_rate, likeness, plain

Outcome = Literal["answered", "lost", "cut off", "open"]

WRONG = 0.5
"""Word error rate from which a turn was not understood."""
OWN, FOREIGN = 0.5, 0.75
"""A text that is less like what belongs to its room than ``OWN`` and more like what belongs to another one than
``FOREIGN`` (``words.likeness``) is another room's."""
AUDIBLE_MS = 20.0
"""A shorter gap is concealed by whatever plays the audio: one packet."""
TELLING_WORDS = 3
"""Fewer words are not like anything."""
NEAR_S = 30.0
"""Cross-talk is between things that happened at about the same time."""


@dataclass(frozen=True, slots=True)
class TurnMeasure:
    """One utterance. ``response_s`` None where nothing was heard. ``heard_as``: its transcript; ``word_errors``: its
    word error rate, None without a transcript. ``taken_back``: the turn was taken too early, unheard.
    """

    room: str
    turn: int
    clip: str
    begin_s: float
    end_s: float
    outcome: Outcome
    response_s: float | None = None
    committed: int | None = None
    heard_as: str = ""
    word_errors: float | None = None
    taken_back: bool = False
    interrupts: bool = False
    silenced_s: float | None = None
    """Of an interruption: from its first voiced sample to the agent's last."""

    @property
    def wrong(self) -> bool:
        """Whether it was not understood."""
        return self.word_errors is not None and self.word_errors > WRONG


@dataclass(frozen=True, slots=True)
class CrossTalk:
    """Something of ``other`` (a room) came out in ``room``. ``how``: which check found it."""

    room: str
    other: str
    how: Literal["transcript", "name", "audio"]
    text: str


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer as it was heard, transcribed afterwards. ``likeness``: of its letters to those of ``text``, which the
    agent says it said.
    """

    room: str
    segment: str
    text: str
    transcript: str
    likeness: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of some values, in their unit; NaN of none."""

    count: int
    p50: float
    p95: float
    p99: float
    maximum: float
    mean: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution:
        """Percentiles by linear interpolation between the values next to them."""
        ordered = sorted(values)
        if not ordered:
            return cls(0, math.nan, math.nan, math.nan, math.nan, math.nan)
        return cls(
            len(ordered),
            percentile(ordered, 50),
            percentile(ordered, 95),
            percentile(ordered, 99),
            ordered[-1],
            math.fsum(ordered) / len(ordered),
        )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in order.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.5
    """
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def turns_of(call: Timeline, said_texts: Mapping[str, str], *, patience_s: float, now_s: float) -> list[TurnMeasure]:
    """Every utterance of a call. ``said_texts``: recording -> what is said in it. ``now_s``: as far as the call has
    been heard.
    """
    over_s = call.left.at_s if call.left is not None else now_s
    measures = []
    for index, said in enumerate(call.said):
        next_s = call.said[index + 1].begin_s if index + 1 < len(call.said) else math.inf
        measures.append(_turn(call, said, next_s, over_s, said_texts, patience_s))
    return measures


def _turn(
    call: Timeline, said: Said, next_s: float, over_s: float, said_texts: Mapping[str, str], patience_s: float
) -> TurnMeasure:
    answer = next((heard for heard in call.heard if said.end_s <= heard.begin_s < next_s), None)
    taken = [shown for shown in call.shown if _is_taken(shown) and said.begin_s < shown.at_s < next_s]
    early = [shown for shown in taken if shown.at_s < said.end_s]
    cut = any(
        shown.at_s < heard.begin_s < said.end_s and heard.begin_s > said.begin_s
        for shown in early
        for heard in call.heard
    )
    outcome: Outcome
    if cut:
        outcome = "cut off"
    elif answer is not None:
        outcome = "answered"
    elif min(next_s, over_s) - said.end_s < patience_s:
        outcome = "open"
    else:
        outcome = "lost"
    text, number = _transcript(taken, answer)
    reference = said_texts.get(said.clip, "")
    return TurnMeasure(
        call.room,
        said.turn,
        said.clip,
        said.begin_s,
        said.end_s,
        outcome,
        response_s=answer.begin_s - said.end_s if answer is not None and not cut else None,
        committed=number,
        heard_as=text,
        word_errors=error_rate(plain(reference), plain(text)) if taken and reference else None,
        taken_back=bool(early) and not cut,
        interrupts=said.interrupts,
        silenced_s=_silenced(call.heard, said) if said.interrupts else None,
    )


def _is_taken(shown: Shown) -> bool:
    """Whether a turn was taken with these words; one without any is a partial transcript that was withdrawn."""
    return shown.side == "user" and shown.final and bool(shown.text)


def _transcript(taken: Sequence[Shown], answer: Heard | None) -> tuple[str, int | None]:
    """What the agent took the turn to be: of each turn number the last text, up to the answer."""
    texts: dict[str, str] = {}
    for shown in taken:
        if answer is None or shown.at_s <= answer.begin_s + 0.5:
            texts[shown.segment] = shown.text
    if not texts:
        return "", None
    number = list(texts)[-1].rpartition("-")[2]
    return " ".join(texts.values()), int(number) if number.isdigit() else None


def _silenced(heard: Sequence[Heard], said: Said) -> float | None:
    over = [stretch for stretch in heard if stretch.begin_s < said.begin_s]
    if not over:
        return None
    end_s = over[-1].end_s
    return max(0.0, end_s - said.begin_s) if end_s is not None else None


def spurious_turns(call: Timeline) -> list[Shown]:
    """Turns that were taken when the caller had said nothing since the one before."""
    found = []
    for shown in call.shown:
        if not _is_taken(shown):
            continue
        said = [utterance for utterance in call.said if utterance.begin_s < shown.at_s]
        earlier = {
            other.segment
            for other in call.shown
            if _is_taken(other) and said and said[-1].end_s < other.at_s < shown.at_s
        }
        if not said or earlier - {shown.segment}:
            found.append(shown)
    return found


# --- cross-talk -----------------------------------------------------------------------------------


def foreign_transcripts(calls: Sequence[Timeline], said_texts: Mapping[str, str]) -> list[CrossTalk]:
    """Transcripts that are nothing like what this caller said, and much like what another one said then."""
    words = {clip: plain(text) for clip, text in said_texts.items()}
    found = []
    for call in calls:
        for shown in call.shown:
            heard = plain(shown.text)
            if not _is_taken(shown) or len(heard) < TELLING_WORDS:
                continue
            own = {said.clip for said in call.said if abs(said.end_s - shown.at_s) < NEAR_S}
            if max((likeness(words.get(clip, []), heard) for clip in own), default=0.0) >= OWN:
                continue
            others = (
                (other.room, said.clip)
                for other in calls
                if other.room != call.room
                for said in other.said
                if abs(said.end_s - shown.at_s) < NEAR_S and said.clip not in own
            )
            for room, clip in others:
                if likeness(words.get(clip, []), heard) >= FOREIGN:
                    found.append(CrossTalk(call.room, room, "transcript", shown.text))
                    break
    return found


def foreign_names(calls: Sequence[Timeline]) -> list[CrossTalk]:
    """Texts of an agent that hold the name of another room's agent. Nobody but that agent knows it."""
    rooms = {call.name.lower(): call.room for call in calls}
    if not rooms:
        return []
    any_name = re.compile(rf"\b(?:{'|'.join(map(re.escape, rooms))})\b")
    found = []
    for call in calls:
        for shown in call.shown:
            if shown.side != "agent" or not shown.final:
                continue
            names = any_name.findall(" ".join(plain(shown.text)))
            foreign = next((name for name in names if name != call.name.lower()), None)
            if foreign is not None:
                found.append(CrossTalk(call.room, rooms[foreign], "name", shown.text))
    return found


def foreign_audio(checked: Sequence[Checked], calls: Sequence[Timeline]) -> list[CrossTalk]:
    """Answers as they were heard that are nothing like their own text, and much like an answer in another room."""
    texts = [(call.room, answer, plain(answer.text)) for call in calls for answer in call.answers]
    found = []
    for check in checked:
        heard = plain(check.transcript)
        if check.likeness >= OWN or len(heard) < TELLING_WORDS:
            continue
        best = max(
            ((likeness(words, heard), room) for room, _, words in texts if room != check.room and words),
            default=(0.0, ""),
        )
        if best[0] >= FOREIGN:
            found.append(CrossTalk(check.room, best[1], "audio", check.transcript))
    return found


def slope_per_min(samples: Sequence[tuple[float, float]]) -> float:
    """Least squares through (seconds, value); NaN for less than a minute of them."""
    if len(samples) < 3 or samples[-1][0] - samples[0][0] < 60:
        return math.nan
    mean_t = math.fsum(t for t, _ in samples) / len(samples)
    mean_v = math.fsum(v for _, v in samples) / len(samples)
    spread = math.fsum((t - mean_t) ** 2 for t, _ in samples)
    return 60 * math.fsum((t - mean_t) * (v - mean_v) for t, v in samples) / spread


# --- a whole point --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Conversations:
    """All calls of one point of the curve, in seconds."""

    response: Distribution
    after_endpointing: Distribution
    """The response without the endpointing delay."""
    silenced: Distribution
    turns: int
    answered: int
    lost: int
    cut_off: int
    taken_back: int
    wrong: int
    spurious: int
    underruns: int
    underrun_s: float
    answers: int
    word_error_rate: float
    drift_s_per_min: float
    """How the response without the endpointing delay grew while it was measured; NaN for less than a minute."""
    cross_talk: tuple[CrossTalk, ...]
    responses: tuple[tuple[float, float, float], ...] = field(default=(), repr=False)
    """Of each answered turn: when the utterance ended, since the measuring began; the response; and without the
    endpointing delay."""
    trouble: tuple[TurnMeasure, ...] = field(default=(), repr=False)
    """The turns that were lost, cut off, taken back or not understood; their times are since the measuring began."""


def conversations(
    calls: Sequence[Timeline],
    said_texts: Mapping[str, str],
    endpointing_s: Mapping[tuple[str, int], float],
    *,
    delay_s: float,
    patience_s: float,
    begin_s: float,
    end_s: float,
) -> Conversations:
    """What happened from ``begin_s`` to ``end_s``. ``endpointing_s``: (room, number of the turn) -> measured
    endpointing; ``delay_s``: as it is set, which is what counts where detection took longer.
    """
    turns = [
        turn
        for call in calls
        for turn in turns_of(call, said_texts, patience_s=patience_s, now_s=end_s)
        if begin_s <= turn.end_s <= end_s
    ]
    responses = []
    for turn in turns:
        if turn.outcome == "answered" and turn.response_s is not None:
            measured = endpointing_s.get((turn.room, turn.committed or 0), delay_s)
            # A stage that was not reached is -1 there; and a turn may be decided before the delay is over.
            endpointing = min(delay_s, measured) if measured >= 0 else delay_s
            responses.append((turn.end_s - begin_s, turn.response_s, turn.response_s - endpointing))
    gaps = [gap for call in calls for gap in call.gaps if begin_s <= gap.at_s <= end_s and gap.ms >= AUDIBLE_MS]
    outcomes = Counter(turn.outcome for turn in turns)
    understood = [turn for turn in turns if turn.word_errors is not None and turn.outcome == "answered"]
    said_words = {clip: len(plain(text)) for clip, text in said_texts.items()}
    word_count = sum(said_words.get(turn.clip, 0) for turn in understood)
    errors = sum((turn.word_errors or 0.0) * said_words.get(turn.clip, 0) for turn in understood)
    return Conversations(
        response=Distribution.of(response for _, response, _ in responses),
        after_endpointing=Distribution.of(rest for _, _, rest in responses),
        silenced=Distribution.of(turn.silenced_s for turn in turns if turn.silenced_s is not None),
        turns=len(turns) - outcomes["open"],
        answered=outcomes["answered"],
        lost=outcomes["lost"],
        cut_off=outcomes["cut off"],
        taken_back=sum(turn.taken_back for turn in turns),
        wrong=sum(turn.wrong for turn in turns),
        spurious=sum(begin_s <= shown.at_s <= end_s for call in calls for shown in spurious_turns(call)),
        underruns=len(gaps),
        underrun_s=math.fsum(gap.ms for gap in gaps) / 1000,
        answers=sum(begin_s <= answer.at_s <= end_s for call in calls for answer in call.answers),
        word_error_rate=errors / word_count if word_count else math.nan,
        drift_s_per_min=slope_per_min([(at_s, rest) for at_s, _, rest in sorted(responses)]),
        cross_talk=(*foreign_transcripts(calls, said_texts), *foreign_names(calls)),
        responses=tuple(sorted(responses)),
        trouble=tuple(
            replace(turn, begin_s=turn.begin_s - begin_s, end_s=turn.end_s - begin_s)
            for turn in turns
            if turn.outcome in ("lost", "cut off") or turn.taken_back or turn.wrong
        ),
    )


def answered_turns(
    calls: Sequence[Timeline], *, patience_s: float, begin_s: float, end_s: float
) -> set[tuple[str, int]]:
    """The turns that were answered from ``begin_s`` to ``end_s``: (room, the agent's number of the turn)."""
    return {
        (turn.room, turn.committed)
        for call in calls
        for turn in turns_of(call, {}, patience_s=patience_s, now_s=end_s)
        if turn.outcome == "answered" and turn.committed is not None and begin_s <= turn.end_s <= end_s
    }


def check_answer(room: str, answer: Answer, transcript: str) -> Checked:
    """An answer against what it was transcribed to."""
    # Letter by letter: "shook hands" that is heard as "show cans" came through.
    like = likeness("".join(plain(answer.text)), "".join(plain(transcript)))
    return Checked(room, answer.segment, answer.text, transcript, like, answer.seconds)
