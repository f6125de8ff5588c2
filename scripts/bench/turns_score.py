"""What a caller would complain about, counted in what happened. Pure.

* A *false cut-off*: a turn is committed inside a pause, before the caller's last word, whether or not anything of
  the answer was heard by then. Every pause of 0.15 s or more inside a sentence counts once, those of the recording
  too. Pauses between two sentences of a recording, where nobody could know, are counted apart.
* *Endpointing delay*: from the caller's last loud sample to the commit (the decision, and the transcript at hand);
  *response*: to the first sample of the answer. Of the turn's first commit after its last word.
* *Late*: an endpointing delay of more than ``LATE_S``. *Missed*: a turn without any commit after its last word.
* A *false barge-in*: the agent falls silent for a back-channel or a cough. A *missed* one: it speaks on for more than
  ``BARGE_IN_S`` against a turn that was begun over it. Answers that end by themselves within that time do not count.
* A *false turn*: what is answered was a back-channel or a cough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from turns_clock import Answer, Log, Said
from turns_sounds import RATE

LATE_S = 1.5
BARGE_IN_S = 1.5
SHORT_PAUSE_S = 0.6
_NEAR = round(0.35 * RATE)
_AFTER = round(0.8 * RATE)
_FADED, _FADING = round(0.3 * RATE), round(0.7 * RATE)


@dataclass(frozen=True)
class PauseScore:
    """One pause: whether the turn was committed in it, and an answer begun to be heard before the caller's end."""

    seconds: float
    inside: bool
    cut: bool
    audible: bool
    snr_db: float | None


@dataclass(frozen=True)
class TurnScore:
    """One turn. None: never."""

    snr_db: float | None
    delay_s: float | None
    decided_s: float | None
    response_s: float | None


@dataclass
class Score:
    """Of any number of calls."""

    pauses: list[PauseScore] = field(default_factory=list)
    turns: list[TurnScore] = field(default_factory=list)
    cut_elsewhere: int = 0
    overlaps: Counter[str] = field(default_factory=Counter)
    false_barge_ins: Counter[str] = field(default_factory=Counter)
    false_turns: int = 0
    resumed: int = 0
    barge_ins_s: list[float] = field(default_factory=list)
    missed_barge_ins: int = 0
    wrong_resumes: int = 0
    hidden_s: list[float] = field(default_factory=list)
    worked_s: float = 0.0
    wasted_s: float = 0.0

    def cut(self, longest_s: float = 1e9) -> tuple[int, int]:
        """(cut, all) of the pauses inside sentences up to ``longest_s``; without a bound cut-offs elsewhere, too."""
        chosen = [pause for pause in self.pauses if pause.seconds <= longest_s and pause.inside]
        elsewhere = self.cut_elsewhere if longest_s == 1e9 else 0
        return sum(pause.cut for pause in chosen) + elsewhere, len(chosen)

    @property
    def delays_s(self) -> list[float]:
        return [turn.delay_s for turn in self.turns if turn.delay_s is not None]

    @property
    def responses_s(self) -> list[float]:
        return [turn.response_s for turn in self.turns if turn.response_s is not None]

    @property
    def late(self) -> int:
        return sum(delay > LATE_S for delay in self.delays_s)

    @property
    def missed(self) -> int:
        return sum(turn.delay_s is None for turn in self.turns)


def score(logs: Iterable[Log]) -> Score:
    """All of ``logs`` together."""
    result = Score()
    for log in logs:
        _score_call(log, result)
    return result


def _score_call(log: Log, result: Score) -> None:
    turns = [said for said in log.said if said.sound.kind == "turn"]
    for number, said in enumerate(turns):
        until = turns[number + 1].begin if number + 1 < len(turns) else 1 << 60
        _score_turn(said, until, log, result)
    for said in log.said:
        if said.sound.kind != "turn":
            _score_noise(said, log, turns, result)
    result.worked_s += log.worked / RATE
    result.wasted_s += (log.worked - log.used) / RATE
    for answer in log.answers:
        if answer.first_heard is not None:
            result.hidden_s.append((answer.work - (answer.first_heard - answer.decided)) / RATE)


def _score_turn(said: Said, until: int, log: Log, result: Score) -> None:
    committed = [one for one in log.answers if said.begin < one.last_voiced and said.begin < one.committed]
    cuts, final = [], None
    for one in committed:
        place = _pause_of(one, said)
        if one.committed < said.end and (place is not None or one.last_voiced < said.end - _FADING):
            cuts.append((one, place))
        else:
            final = one
            break
    for number, pause in enumerate(said.sound.pauses):
        those = [one for one, place in cuts if place == number]
        audible = any(one.first_heard is not None and one.first_heard < said.end for one in those)
        result.pauses.append(PauseScore(pause.seconds, pause.inside, bool(those), audible, said.sound.snr_db))
    result.cut_elsewhere += sum(place is None for _, place in cuts)
    if final is None or final.committed > until + _AFTER:
        result.turns.append(TurnScore(said.sound.snr_db, None, None, None))
    else:
        # A voice that fades into noise ends where it is last heard.
        end = said.end if final.last_voiced > said.end - _FADED else final.last_voiced
        heard = None if final.first_heard is None else (final.first_heard - end) / RATE
        times = (final.committed - end) / RATE, (final.decided - end) / RATE
        result.turns.append(TurnScore(said.sound.snr_db, *times, heard))
    if said.step.into_s is None or (spoken := _spoken_over(said.begin, log)) is None:
        return
    stopped = next((at for at in log.interrupts if said.begin <= at <= said.end + _AFTER), None)
    if stopped is None and spoken.over is not None and spoken.over - said.begin < BARGE_IN_S * RATE:
        return
    result.overlaps["interruption"] += 1
    if stopped is None or stopped - said.begin > BARGE_IN_S * RATE:
        result.missed_barge_ins += 1
    else:
        result.barge_ins_s.append((stopped - said.begin) / RATE)
        result.wrong_resumes += any(stopped < at < said.end + 2 * RATE for at in log.resumes)


def _pause_of(cut: Answer, said: Said) -> int | None:
    """In which pause of ``said`` the turn was committed, as the last voiced sample tells."""
    near = [(abs(cut.last_voiced - (said.at + pause.begin)), number) for number, pause in enumerate(said.sound.pauses)]
    distance, number = min(near, default=(1 << 60, 0))
    return number if distance <= _NEAR else None


def _spoken_over(at: int, log: Log) -> Answer | None:
    """The answer that is heard at ``at``."""
    for answer in log.answers:
        if answer.first_heard is not None and answer.first_heard <= at and (answer.over is None or at < answer.over):
            return answer
    return None


def _score_noise(said: Said, log: Log, turns: Sequence[Said], result: Score) -> None:
    kind = said.sound.kind
    over_answer = _spoken_over(said.begin, log) is not None
    result.overlaps[kind if over_answer else f"{kind} in silence"] += 1
    until = min([said.end + _AFTER, *(turn.begin for turn in turns if turn.begin > said.end)])
    if over_answer and any(said.begin <= at <= until for at in log.interrupts):
        result.false_barge_ins[kind] += 1
        result.resumed += any(said.begin <= at <= said.end + 4 * RATE for at in log.resumes)
    result.false_turns += any(
        said.begin <= one.last_voiced <= until and said.begin < one.committed for one in log.answers
    )
