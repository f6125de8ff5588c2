"""Callers on a virtual clock: the same from the same seed, and they take turns like people."""

from __future__ import annotations

import itertools

import pytest

from host.loadtest.callers import (
    TABLE,
    Caller,
    Clip,
    Cue,
    Habits,
    Speak,
    State,
    Turn,
    call_length_s,
    joins_after_s,
    turns,
)
from host.loadtest.draws import Draws

CLIPS = tuple(Clip(f"clip-{number}", 2.0 + number, 0.1, 1.9 + number, (1.0,)) for number in range(5))
STEP_S = 0.02


def draw(seed: int, seat: int, call: int, count: int, habits: Habits | None = None) -> list[Turn]:
    return list(itertools.islice(turns(seed, seat, call, CLIPS, habits or Habits()), count))


def test_the_same_seed_is_the_same_caller() -> None:
    assert draw(1, 2, 3, 50) == draw(1, 2, 3, 50)


@pytest.mark.parametrize("other", [(2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)])
def test_another_seed_seat_or_call_is_another_one(other: tuple[int, int, int]) -> None:
    assert draw(1, 2, 3, 20) != draw(*other, 20)


def test_the_draws_are_those_of_splitmix64() -> None:
    """The published first outputs for the seed 1234567, as shares of 2^64."""
    draws = Draws(1234567)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [draws.uniform(0, 1) for _ in published] == pytest.approx(
        [number / 2**64 for number in published], abs=1e-12
    )


def test_every_recording_is_used_before_one_is_used_again() -> None:
    names = [turn.clip.name for turn in draw(7, 0, 0, 50)]
    for start in range(0, 50, 5):
        assert len(set(names[start : start + 5])) == 5


def test_habits_are_kept_on_average() -> None:
    habits = Habits(cycle_s=10, hesitates=0.25, interrupts=0.1, stays_silent=0.05)
    drawn = draw(3, 0, 0, 4000, habits)
    assert sum(turn.after_s for turn in drawn) / 4000 == pytest.approx(10 * 1.05, rel=0.02)
    assert sum(turn.hesitation_s > 0 for turn in drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    assert sum(turn.interrupt_after_s is not None for turn in drawn) / 4000 == pytest.approx(0.1, abs=0.02)


def test_nobody_hesitates_where_there_is_no_quiet_place() -> None:
    smooth = [Clip("smooth", 2.0, 0.1, 1.9)]
    habits = Habits(hesitates=1.0)
    assert all(turn.hesitation_s == 0 for turn in itertools.islice(turns(1, 0, 0, smooth, habits), 20))


@pytest.mark.parametrize("seats", [1, 3, 40])
def test_all_come_within_a_cycle_and_no_two_together(seats: int) -> None:
    habits = Habits(cycle_s=10)
    joined = [joins_after_s(5, seat, seats, habits) for seat in range(seats)]
    assert joined == sorted(joined)
    assert 0 <= joined[0] <= joined[-1] < 10
    assert all(after - before >= 10 / seats / 2 - 1e-9 for before, after in itertools.pairwise(joined))


def test_calls_last_as_long_as_they_should() -> None:
    assert call_length_s(1, 0, 0, Habits(call_s=0)) is None
    lengths = [call_length_s(1, 0, call, Habits(cycle_s=10, call_s=60)) or 0 for call in range(2000)]
    assert min(lengths) >= 15
    assert sum(lengths) / 2000 == pytest.approx(62, rel=0.1)


def test_every_state_has_a_way_on_and_every_cue_is_used() -> None:
    assert set(TABLE) == set(State)
    assert {cue for row in TABLE.values() for cue in row} == set(Cue)


class Conversation:
    """A caller and an agent that answers ``after_s`` after each utterance for ``answer_s``."""

    def __init__(self, habits: Habits, script: list[Turn], *, after_s: float = 1.0, answer_s: float = 3.0) -> None:
        self.caller = Caller(iter([*script, *[script[-1]] * 1000]), habits, 0.0)
        self.after_s, self.answer_s = after_s, answer_s
        self.spoken: list[tuple[float, Speak]] = []
        self.states: list[State] = []
        self.now = 0.0
        self.answer = (-1.0, -1.0)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            begin, over = self.answer
            hears = begin <= self.now < over
            action = self.caller.tick(self.now, hears=hears, agent="speaking" if hears else "listening")
            if not self.states or self.states[-1] is not self.caller.state:
                self.states.append(self.caller.state)
            if action is not None:
                self.spoken.append((self.now, action))
                if hears:
                    self.answer = (begin, self.now + 0.1)
                said = self.now + action.turn.end_s + self.after_s
                if not action.interrupts:
                    self.answer = (said, said + self.answer_s)
            self.now += STEP_S


def plain_turn(number: int = 1, *, interrupt_after_s: float | None = None) -> Turn:
    return Turn(number, CLIPS[0], after_s=10.0, think_s=0.5, interrupt_after_s=interrupt_after_s)


def test_turns_are_taken_once_a_cycle() -> None:
    conversation = Conversation(Habits(), [plain_turn(number) for number in range(1, 5)])
    conversation.run(35)
    begun = [at for at, _ in conversation.spoken]
    assert len(begun) == 4
    assert begun[0] < 1
    assert [after - before for before, after in itertools.pairwise(begun)] == pytest.approx([10, 10, 10], abs=0.1)
    assert conversation.states[:5] == [
        State.THINKING,
        State.SPEAKING,
        State.WAITING,
        State.LISTENING,
        State.THINKING,
    ]


def test_an_answer_is_waited_for_to_its_end() -> None:
    conversation = Conversation(Habits(), [plain_turn(1), plain_turn(2)], answer_s=15)
    conversation.run(25)
    (_, _), (second, _) = conversation.spoken
    # Said at 2, answered from 3 to 18; then 0.4 s of quiet and 0.5 s of thought.
    assert 18.5 < second < 20


def test_an_impatient_caller_interrupts() -> None:
    conversation = Conversation(Habits(), [plain_turn(1, interrupt_after_s=1.0), plain_turn(2)], answer_s=15)
    conversation.run(12)
    (first, _), (second, action) = conversation.spoken
    assert action.interrupts
    assert second - first == pytest.approx(CLIPS[0].end_s + 1.0 + 1.0, abs=0.2)


def test_a_caller_who_gets_no_answer_goes_on() -> None:
    conversation = Conversation(Habits(patience_s=5), [plain_turn(1), plain_turn(2)], after_s=1000)
    conversation.run(14)
    assert len(conversation.spoken) == 2
    assert conversation.states[:4] == [State.THINKING, State.SPEAKING, State.WAITING, State.THINKING]


def test_nobody_speaks_before_the_agent_is_there_or_into_its_greeting() -> None:
    caller = Caller(iter([plain_turn(1), plain_turn(2)]), Habits(), 0.0)
    for step in range(200):
        assert caller.tick(step * STEP_S, hears=False, agent=None) is None
    for step in range(200, 400):
        assert caller.tick(step * STEP_S, hears=True, agent="speaking") is None
    spoken = [caller.tick(step * STEP_S, hears=False, agent="listening") for step in range(400, 450)]
    assert [action.turn.number for action in spoken if action is not None] == [1]


def test_an_agent_that_speaks_into_the_callers_words_has_not_answered() -> None:
    caller = Caller(iter([plain_turn(1), plain_turn(2)]), Habits(), 0.0)
    now = 0.0
    while caller.tick(now, hears=False, agent="listening") is None:
        now += STEP_S
    for _ in range(200):
        now += STEP_S
        caller.tick(now, hears=True, agent="speaking")
    assert caller.state is State.WAITING
    for _ in range(20):
        now += STEP_S
        caller.tick(now, hears=False, agent="speaking")
    caller.tick(now + STEP_S, hears=True, agent="speaking")
    assert caller.state is State.LISTENING
