"""What is known at every pause of a caller, and when: what rules of endpointing are tried on, without any table.

Pauses are those that voice activity detection reports, inside an utterance and at its end. Times are in seconds
after the last voiced sample as it is reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from turns_callers import Call
from turns_models import Models, words
from turns_sounds import RATE, Sound

from host.job.user_turn import PADDING
from inference.activity import VoiceActivity
from inference.engines.base import VAD_WINDOW
from inference.wire import messages as m

_TICK = RATE // 50
_NEAR = RATE // 4


@dataclass(frozen=True)
class Evidence:
    """At one pause. ``final``: it was the end. ``pause_s``: how long it lasted, None at the end.
    ``inserted``: by the bench, and not the speaker's own; ``inside`` a sentence.

    ``text`` is there at ``text_s``, ``probability`` at ``probability_s``. ``late_s``: how much later than the true
    end of the voice the last voiced sample was reported to be. ``spoken_s``: since the turn's first voiced sample.
    """

    utterance: int
    name: str
    snr_db: float | None
    final: bool
    pause_s: float | None
    inserted: bool
    inside: bool
    text: str
    text_s: float
    probability: float
    probability_s: float
    late_s: float
    spoken_s: float


def evidence_of(script: Iterable[Call], models: Models, listen: m.Listen) -> list[Evidence]:
    """Of all turns of all calls."""
    sounds = [step.sound for call in script for step in call.steps if step.sound.kind == "turn"]
    return [found for number, sound in enumerate(sounds) for found in _evidence(number, sound, models, listen)]


def _evidence(number: int, sound: Sound, models: Models, listen: m.Listen) -> list[Evidence]:
    activity = VoiceActivity(listen)
    start: int | None = None
    asked: list[tuple[int, int]] = []
    resumed: list[int] = []
    for window, probability in enumerate(models.voice_probabilities(sound)):
        end = (window + 1) * VAD_WINDOW
        match activity.observe(float(probability), end - VAD_WINDOW, end):
            case m.SpeechStarted(start=at) | m.SpeechResumed(at=at):
                if end > sound.end + RATE // 2:
                    break
                start = at if start is None else start
                resumed += [at] if asked else []
            case m.SpeechPaused(end=last):
                asked.append((last, -(-end // _TICK) * _TICK))
    found = []
    for place, (last, until) in enumerate(asked):
        assert start is not None
        heard = models.transcribe(sound.window(max(start - PADDING, 0), until - max(start - PADDING, 0)))
        text = words(heard.value)
        told = models.end_of_turn(text) if text else None
        text_s = (until - last) / RATE + heard.seconds
        final = place == len(asked) - 1
        found.append(
            Evidence(
                utterance=number,
                name=sound.name,
                snr_db=sound.snr_db,
                final=final,
                inserted=any(p.inserted and p.begin - _NEAR < last < p.end for p in sound.pauses),
                inside=not any(not p.inside and p.begin - _NEAR < last < p.end for p in sound.pauses),
                pause_s=None if final else (resumed[place] - last) / RATE,
                text=text,
                text_s=text_s,
                probability=told.value if told else -1.0,
                probability_s=text_s + (told.seconds if told else 0.0),
                late_s=(last - sound.end) / RATE if final else 0.0,
                spoken_s=(last - start) / RATE,
            )
        )
    return found
