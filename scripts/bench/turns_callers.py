"""What the callers of the turn-taking bench do, call by call, all drawn from a seed. Pure.

A call is a row of steps. A turn is one recording, with none, one or two pauses of 0.2 to 1.5 s inside it. While
it is answered, the caller may say "mhm", cough, or interrupt with the next turn at a random point; between two
turns the caller may cough, too. Noise is the same throughout a call: none, or at 20 or 10 dB below the voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from turns_sounds import Audio, Sound, Voice, apart, cough, utterance

PAUSE_S = (0.2, 1.5)
PAUSES = (0.30, 0.45, 0.25)
"""Shares of turns with no, one and two pauses."""
NOISES_DB: tuple[float | None, ...] = (None, 20.0, 10.0)
ANSWER_S = (2.5, 6.0)
THINK_S = (0.5, 1.2)
OVERLAPS = {"none": 0.30, "back-channel": 0.25, "cough": 0.15, "interruption": 0.30}
"""What the caller does while a turn is answered, shares."""
COUGHS_IN_SILENCE = 0.10


@dataclass(frozen=True)
class Step:
    """``into_s``: so long into the answer (None: the agent is let finish, and ``think_s`` passes)."""

    sound: Sound
    think_s: float
    into_s: float | None = None


@dataclass(frozen=True)
class Call:
    """``answers_s``: how long the agent speaks, answer by answer."""

    name: str
    snr_db: float | None
    steps: tuple[Step, ...]
    answers_s: tuple[float, ...]


def calls(
    voices: Sequence[Voice], backchannels: Sequence[tuple[str, Audio]], count: int, turns: int, seed: int
) -> list[Call]:
    """``count`` calls of ``turns`` turns each."""
    return [_call(voices, backchannels, turns, seed, number) for number in range(count)]


def _call(
    voices: Sequence[Voice], backchannels: Sequence[tuple[str, Audio]], turns: int, seed: int, number: int
) -> Call:
    draw = np.random.default_rng((seed, number))
    snr_db = NOISES_DB[number % len(NOISES_DB)]
    steps: list[Step] = []
    answers = [float(draw.uniform(*ANSWER_S)) for _ in range(turns)]
    into_s: float | None = None
    for turn in range(turns):
        if into_s is None and draw.random() < COUGHS_IN_SILENCE:
            steps.append(Step(apart("cough", "cough", cough(draw), draw, snr_db), _think(draw)))
        voice = voices[int(draw.integers(len(voices)))]
        count = int(draw.choice(len(PAUSES), p=PAUSES))
        lengths = draw.uniform(*PAUSE_S, count).tolist()
        steps.append(Step(utterance(voice, lengths, draw, snr_db), _think(draw), into_s))
        into_s = None
        at = float(draw.uniform(0.4, answers[turn] - 1.2))
        match draw.choice(list(OVERLAPS), p=list(OVERLAPS.values())):
            case "back-channel":
                name, audio = backchannels[int(draw.integers(len(backchannels)))]
                steps.append(Step(apart("back-channel", name, audio, draw, snr_db), _think(draw), at))
            case "cough":
                steps.append(Step(apart("cough", "cough", cough(draw), draw, snr_db), _think(draw), at))
            case "interruption":
                into_s = at
    return Call(f"seed {seed} call {number}", snr_db, tuple(steps), tuple(answers))


def _think(draw: np.random.Generator) -> float:
    return float(draw.uniform(*THINK_S))
