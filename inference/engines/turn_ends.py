"""How likely it is that a caller has finished, read from what a model expects after the last word.

A language model that has read an unfinished user's message says in its next token's distribution whether it
expects more. The mass of the tokens that would end the message (its end token, ``.``, ``?``, ``!``, a new line) is
the evidence; the position is the last word's, before any punctuation, because Whisper writes a full stop behind
whatever it heard. The prefill of a prompt passes there anyway, so the number costs one row of logits.

What the mass means differs from model to model: at load each reads examples, whole and cut
(``turn_end_examples.py``), and a logistic function is fitted to what it says of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
"""Of one position, shape (vocabulary,)."""

CLOSING: Final = " \t\r\n.?!…-–—\"'”’)]*"
"""What may stand behind the last word of a message and says nothing about its end."""

ENDINGS: Final = (".", "?", "!", "\n")
"""Texts that end a sentence, where the vocabulary has a token for one."""

_LEAST_SEPARATION: Final = 0.75
"""Area under the curve on the examples: a model that sees less knows nothing about ends of turns."""

_RIDGE: Final = 1.0
_STEPS: Final = 25


def end_of_words(text: str) -> int:
    """Where the last word of ``text`` ends (characters)."""
    return len(text.rstrip(CLOSING))


def log_odds_of_ending(logits: Logits, endings: NDArray[np.int64]) -> float:
    """Of the mass that the distribution gives to the tokens ``endings``."""
    scaled = np.exp(logits - logits.max(), dtype=np.float64)
    ending = float(scaled[endings].sum())
    other = float(scaled.sum()) - ending
    return float(np.log(max(ending, 1e-12)) - np.log(max(other, 1e-12)))


def separation(finished: Sequence[float], cut: Sequence[float]) -> float:
    """Area under the curve: how often a finished one has more than a cut one."""
    more = np.subtract.outer(np.asarray(finished), np.asarray(cut))
    return float(np.mean((more > 0) + 0.5 * (more == 0)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Log odds of ending to the probability that a message is complete."""

    slope: float
    offset: float
    separation: float

    def probability(self, log_odds: float) -> float:
        """Between 0 and 1."""
        return float(1.0 / (1.0 + np.exp(-np.clip(self.slope * log_odds + self.offset, -30.0, 30.0))))


def calibrate(finished: Sequence[float], cut: Sequence[float]) -> Calibration | None:
    """Fit a logistic function to log odds at ends and at cuts, both counted as equally likely.

    None when the model does not tell them apart. Newton's method, the slope drawn a little towards nothing.
    """
    if len(finished) < 2 or len(cut) < 2:
        return None
    area = separation(finished, cut)
    if area < _LEAST_SEPARATION:
        return None
    x = np.concatenate([np.asarray(finished), np.asarray(cut)])
    y = np.concatenate([np.ones(len(finished)), np.zeros(len(cut))])
    weight = np.concatenate([np.full(len(finished), 0.5 / len(finished)), np.full(len(cut), 0.5 / len(cut))])
    weight *= len(x)
    inputs = np.stack([x, np.ones_like(x)], axis=1)
    ridge: NDArray[Any] = np.diag([_RIDGE, 0.0])
    fitted = np.zeros(2)
    for _ in range(_STEPS):
        guess = 1.0 / (1.0 + np.exp(-np.clip(inputs @ fitted, -30.0, 30.0)))
        slope = inputs.T @ (weight * (y - guess)) - ridge @ fitted
        curve = inputs.T @ (inputs * (weight * guess * (1.0 - guess))[:, None]) + ridge
        fitted = fitted + np.linalg.solve(curve + 1e-9 * np.eye(2), slope)
    return Calibration(float(fitted[0]), float(fitted[1]), area)


class TurnEnds:
    """What one model's logits say about ends of turns. ``endings``: its tokens that end a message or a sentence."""

    def __init__(self, endings: Collection[int]) -> None:
        self._endings = np.array(sorted(endings), np.int64)
        self.calibration: Calibration | None = None

    def __repr__(self) -> str:
        return f"TurnEnds(endings={len(self._endings)}, {self.calibration})"

    def log_odds(self, logits: Logits) -> float:
        """The evidence at one position."""
        return log_odds_of_ending(logits, self._endings)

    def probability(self, logits: Logits) -> float:
        """That the message is complete at this position; -1 when the model cannot tell."""
        if self.calibration is None:
            return -1.0
        return self.calibration.probability(self.log_odds(logits))
