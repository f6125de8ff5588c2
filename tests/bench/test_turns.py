"""The pure parts of the turn-taking bench: how its callers are made, and how it counts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

from turns_callers import Call, Step, calls
from turns_clock import Answer, Device, Log, Said
from turns_score import score
from turns_sounds import GRID, LEAD, RATE, VOICE_RMS, Pause, Sound, Voice, cough, noisy, utterance, voice_of


def tone(seconds: float) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(round(seconds * RATE)) * 1e-4).astype(np.float32)


@pytest.fixture
def voice() -> Voice:
    """Two words, 60 ms apart, and a third one after 300 ms, a sentence of its own."""
    pieces = [silence(0.5), tone(0.6), silence(0.06), tone(0.6), silence(0.3), tone(0.6), silence(0.5)]
    words = [(1.1, "two"), (1.75, "words."), (2.65, "More.")]
    return voice_of("three.wav", "two words more", np.concatenate(pieces), (0.5, 2.66), words)


def test_a_voice_is_found_with_its_quiet_places(voice: Voice) -> None:
    assert voice.begin / RATE == pytest.approx(0.5, abs=0.02)
    assert voice.end / RATE == pytest.approx(2.66, abs=0.02)
    assert [(round(gap.begin / RATE, 1), gap.inside) for gap in voice.gaps] == [(1.1, True), (1.8, False)]
    loud = voice.audio[round(0.6 * RATE) : round(1.0 * RATE)]
    assert np.sqrt((loud**2).mean()) == pytest.approx(VOICE_RMS, rel=0.05)


def test_a_pause_is_put_between_words_of_a_sentence_and_filled_with_the_recordings_silence(voice: Voice) -> None:
    sound = utterance(voice, [1.0, 0.7], np.random.default_rng(3), None)
    inserted, own = sound.pauses
    assert (inserted.inserted, own.inserted) == (True, False)
    assert (inserted.inside, own.inside) == (True, False)
    assert inserted.seconds == pytest.approx(1.0, abs=0.02)
    assert own.seconds == pytest.approx(0.3, abs=0.02)
    assert sound.begin == LEAD
    assert (sound.end - sound.begin) / RATE == pytest.approx(2.16 + 0.94, abs=0.03)
    assert np.abs(sound.audio[inserted.begin + 320 : inserted.end - 320]).max() < 0.001
    assert len(sound.audio) % GRID == 0
    assert not np.array_equal(sound.window(len(sound.audio) - 100, 200)[:100], np.zeros(100))


def test_noise_is_as_loud_as_asked_for(voice: Voice) -> None:
    draw = np.random.default_rng(5)
    sound = utterance(voice, [], draw, None)
    noise = noisy(sound, 20.0, draw).audio - sound.audio
    assert 20 * np.log10(VOICE_RMS / np.sqrt((noise**2).mean())) == pytest.approx(20.0, abs=0.2)


def test_calls_are_drawn_from_their_seed(voice: Voice) -> None:
    hums = [("Mhm.", cough(np.random.default_rng(2)))]

    def made(seed: int) -> list[tuple[str, float | None, bytes]]:
        steps = [step for call in calls([voice], hums, 3, 4, seed) for step in call.steps]
        return [(step.sound.kind, step.into_s, step.sound.audio.tobytes()) for step in steps]

    assert made(1) == made(1)
    assert made(1) != made(2)
    assert sum(kind == "turn" for kind, _, _ in made(1)) == 12
    assert {call.snr_db for call in calls([voice], hums, 3, 1, 1)} == {None, 20.0, 10.0}


def test_the_device_does_one_thing_at_a_time_and_what_is_dropped_gives_its_time_back() -> None:
    device, done = Device(), []
    first = device.ask(0, 1.0, lambda: done.append("first"))
    device.ask(0, 1.0, lambda: done.append("second"))
    device.drop(RATE // 2, first)
    assert device.next_before(RATE) is None
    second = device.next_before(3 * RATE // 2)
    assert second is not None
    second.done()
    assert done == ["second"]
    assert device.worked == 3 * RATE // 2


# --- counting -------------------------------------------------------------------------------------------------


def sound(kind: str = "turn", seconds: float = 3.0, pauses: tuple[Pause, ...] = ()) -> Sound:
    audio = np.zeros(LEAD + round(10 * RATE), np.float32)
    return Sound(kind, kind, audio, LEAD, LEAD + round(seconds * RATE), pauses)  # type: ignore[arg-type]


def at(seconds: float) -> int:
    """On a sound's own clock, which begins with its background."""
    return LEAD + round(seconds * RATE)


def answer(voiced: float, committed: float, heard: float | None = None, over: float | None = None) -> Answer:
    return Answer(
        "text",
        committed=at(committed),
        decided=at(committed),
        last_voiced=at(voiced),
        length=RATE,
        heard=None if heard is None else at(heard),
        first_heard=None if heard is None else at(heard),
        over=None if over is None else at(over),
    )


def log_of(*said: tuple[Sound, float, float | None], answers: list[Answer], interrupts: tuple[float, ...] = ()) -> Log:
    placed = [Said(Step(one, 0.5, into), round(begin * RATE)) for one, begin, into in said]
    return Log(Call("call", None, (), ()), placed, answers, [at(one) for one in interrupts])


PAUSED = (Pause(at(1.0), at(1.5), True), Pause(at(2.0), at(2.8), True))


def test_a_commit_inside_a_pause_is_a_false_cut_off() -> None:
    log = log_of((sound(pauses=PAUSED), 0.0, None), answers=[answer(2.0, 2.5, 2.7), answer(3.0, 3.6, 4.0)])
    found = score([log])
    assert found.cut() == (1, 2)
    assert found.cut(0.6) == (0, 1)
    assert [pause.audible for pause in found.pauses] == [False, True]
    assert found.delays_s == [pytest.approx(0.6)]
    assert found.responses_s == [pytest.approx(1.0)]


def test_a_turn_without_a_commit_after_its_last_word_is_missed() -> None:
    log = log_of((sound(pauses=PAUSED), 0.0, None), answers=[answer(1.0, 1.3)])
    found = score([log])
    assert (found.missed, found.late, found.cut(0.6)) == (1, 0, (1, 1))


def test_a_late_answer_is_counted() -> None:
    assert score([log_of((sound(), 0.0, None), answers=[answer(3.0, 5.0)])]).late == 1


def test_a_cough_that_silences_the_agent_is_a_false_barge_in_and_one_that_is_answered_a_false_turn() -> None:
    turn, noise = (sound(), 0.0, None), (sound("cough", 0.4), 5.0, 1.0)
    answers = [answer(3.0, 3.5, 4.0, 8.0)]
    assert not score([log_of(turn, noise, answers=answers)]).false_barge_ins
    found = score([log_of(turn, noise, answers=[*answers, answer(5.3, 6.1)], interrupts=(5.3,))])
    assert dict(found.false_barge_ins) == {"cough": 1}
    assert found.false_turns == 1


def test_an_interruption_is_seen_or_missed() -> None:
    turn, cut_in = (sound(), 0.0, None), (sound(), 5.0, 1.0)
    answers = [answer(3.0, 3.5, 4.0, 9.0), answer(8.0, 8.5, 9.0)]
    found = score([log_of(turn, cut_in, answers=answers, interrupts=(5.6,))])
    assert (found.missed_barge_ins, found.barge_ins_s) == (0, [pytest.approx(0.6)])
    assert score([log_of(turn, cut_in, answers=answers)]).missed_barge_ins == 1
