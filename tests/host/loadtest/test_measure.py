"""From timelines to what is reported, each rule with a timeline that breaks it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.loadtest.measure import (
    Checked,
    Distribution,
    answered_turns,
    check_answer,
    conversations,
    foreign_audio,
    foreign_names,
    foreign_transcripts,
    percentile,
    spurious_turns,
    turns_of,
)
from host.loadtest.timeline import Answer, Event, Gap, Heard, Joined, Left, Said, Shown, Timeline, from_json, to_json

TEXTS = {
    "timer": "Set a timer for ten minutes.",
    "date": "What's the date today?",
    "letters": "the invention of movable metal letters in the middle of the fifteenth century",
}
PATIENCE_S = 20.0


def call(*events: Event, room: str = "one", name: str = "Amber Badger") -> Timeline:
    timeline = Timeline(room, 0, 0, name)
    for event in events:
        timeline.add(event)
    return timeline


def said(begin_s: float, end_s: float, clip: str = "timer", turn: int = 1, *, interrupts: bool = False) -> Said:
    return Said(turn, clip, begin_s, end_s, interrupts)


def took(at_s: float, text: str = TEXTS["timer"], number: int = 1) -> Shown:
    return Shown(at_s, "user", f"user-{number}", text, final=True)


def measured(timeline: Timeline, now_s: float = 1000.0) -> list[tuple[str, float | None]]:
    turns = turns_of(timeline, TEXTS, patience_s=PATIENCE_S, now_s=now_s)
    return [(turn.outcome, turn.response_s) for turn in turns]


def test_the_response_is_from_the_last_voiced_sample_to_the_first() -> None:
    timeline = call(said(10, 12), took(12.5), Heard(13.25), Heard(13.25, 16))
    assert measured(timeline) == [("answered", 1.25)]
    (turn,) = turns_of(timeline, TEXTS, patience_s=PATIENCE_S, now_s=100)
    assert (turn.word_errors, turn.committed, turn.wrong) == (0, 1, False)


def test_an_answer_belongs_to_the_utterance_before_it() -> None:
    timeline = call(said(10, 12), took(12.5), Heard(13, 16), said(20, 22, turn=2), took(22.5, number=2), Heard(24, 25))
    assert measured(timeline) == [("answered", 1), ("answered", 2)]


def test_an_utterance_that_nobody_answers_is_lost() -> None:
    timeline = call(said(10, 12), said(33, 35, turn=2), took(35.5, number=2), Heard(36, 37))
    assert measured(timeline) == [("lost", None), ("answered", 1)]


def test_one_at_the_end_of_the_call_is_open() -> None:
    assert measured(call(said(10, 12)), now_s=20) == [("open", None)]
    assert measured(call(said(10, 12), Left(20))) == [("open", None)]
    assert measured(call(said(10, 12), Left(40))) == [("lost", None)]


def test_an_agent_that_is_heard_before_the_caller_has_finished_cuts_him_off() -> None:
    timeline = call(
        said(10, 15), took(12, "Set a timer"), Heard(13, 13.4), took(15.5, "for ten minutes", 2), Heard(16, 19)
    )
    assert measured(timeline) == [("cut off", None)]


def test_a_turn_that_is_taken_back_unheard_harms_nobody() -> None:
    timeline = call(said(10, 15), took(12, "Set a timer"), took(15.5), Heard(16, 19))
    (turn,) = turns_of(timeline, TEXTS, patience_s=PATIENCE_S, now_s=100)
    assert (turn.outcome, turn.response_s, turn.taken_back, turn.word_errors) == ("answered", 1, True, 0)


def test_a_partial_transcript_that_is_withdrawn_is_no_turn() -> None:
    partial = Shown(11, "user", "user-1", "Set a", final=False)
    timeline = call(said(10, 12), partial, took(12.4, ""), took(12.5), Heard(13, 14), took(20, "", 2))
    (turn,) = turns_of(timeline, TEXTS, patience_s=PATIENCE_S, now_s=100)
    assert (turn.outcome, turn.taken_back, turn.word_errors) == ("answered", False, 0)
    assert spurious_turns(timeline) == []


def test_an_answer_that_is_interrupted_is_no_answer_to_the_interruption() -> None:
    timeline = call(
        said(10, 12),
        took(12.5),
        Heard(13, 15.2),
        said(15, 17, "date", 2, interrupts=True),
        took(17.5, TEXTS["date"], 2),
        Heard(18, 20),
    )
    first, second = turns_of(timeline, TEXTS, patience_s=PATIENCE_S, now_s=100)
    assert (first.outcome, second.outcome, second.response_s) == ("answered", "answered", 1)
    assert second.silenced_s == pytest.approx(0.2)


def test_what_was_not_understood_is_wrong() -> None:
    (turn,) = turns_of(
        call(said(10, 12), took(12.5, "Say the rhymer"), Heard(13, 14)), TEXTS, patience_s=PATIENCE_S, now_s=100
    )
    assert turn.wrong


def test_a_turn_that_nobody_took_is_spurious() -> None:
    early = took(5, "Thank you.", 1)
    late = took(40, "Thank you.", 3)
    timeline = call(early, said(10, 12), took(12.5, number=2), Heard(13, 15), late)
    assert spurious_turns(timeline) == [early, late]


def test_a_point_counts_what_ended_while_it_was_measured() -> None:
    timeline = call(
        said(1, 2), took(2.5), Heard(2.75, 4),
        said(10, 12, turn=2), took(12.5, number=2), Heard(13, 15), Gap(13.5, 40), Gap(14, 19.9), Gap(4, 1000),
        said(20, 22, turn=3), took(22.5, number=3), Heard(24, 25), Left(60),
    )  # fmt: skip
    talk = conversations(
        [timeline], TEXTS, {("one", 2): 0.62, ("one", 3): 0.3}, delay_s=0.5, patience_s=PATIENCE_S, begin_s=5, end_s=50
    )
    assert (talk.turns, talk.answered, talk.lost, talk.underruns, talk.underrun_s) == (2, 2, 0, 1, 0.04)
    # What detection took longer than the delay counts; a turn that was decided before it was over is given its own.
    assert talk.responses == ((pytest.approx(7), 1, 0.5), (pytest.approx(17), 2, 1.7))
    assert (talk.response.p50, talk.after_endpointing.maximum) == (1.5, 1.7)


def test_the_turns_of_a_point_are_known_by_the_agents_numbers() -> None:
    timeline = call(
        said(1, 2), took(2.5), Heard(2.75, 4),
        said(10, 12, turn=2), took(12.5, number=2), Heard(13, 15),
        said(20, 22, turn=3), took(22.5, number=5), Heard(24, 25),
        said(30, 32, turn=4), Left(60),
    )  # fmt: skip
    assert answered_turns([timeline], patience_s=PATIENCE_S, begin_s=5, end_s=50) == {("one", 2), ("one", 5)}


def test_nothing_is_measured_of_nothing() -> None:
    talk = conversations([], TEXTS, {}, delay_s=0.5, patience_s=PATIENCE_S, begin_s=0, end_s=1)
    assert talk.turns == 0
    assert math.isnan(talk.response.p95)


# --- cross-talk -----------------------------------------------------------------------------------


def test_another_callers_words_are_found() -> None:
    one = call(said(10, 12), took(12.5, TEXTS["letters"]))
    other = call(said(9, 12, "letters"), took(12.5, TEXTS["letters"]), room="other")
    (talk,) = foreign_transcripts([one, other], TEXTS)
    assert (talk.room, talk.other, talk.how) == ("one", "other", "transcript")


@pytest.mark.parametrize(
    "text",
    [TEXTS["timer"], "set the time for ten minutes", "something that nobody has said at all", "the invention", ""],
)
def test_words_of_ones_own_or_nobodys_are_not_anothers(text: str) -> None:
    one = call(said(10, 12), took(12.5, text))
    other = call(said(9, 12, "letters"), room="other")
    assert foreign_transcripts([one, other], TEXTS) == []


def test_two_who_say_the_same_are_not_confused() -> None:
    one, other = call(said(10, 12), took(12.5)), call(said(9, 12), took(12.4), room="other")
    assert foreign_transcripts([one, other], TEXTS) == []


def test_another_agents_name_is_found() -> None:
    one = call(Shown(5, "agent", "agent-1", "Hello, this is Azure Beaver. How can I help?", final=True))
    other = call(
        Shown(5, "agent", "agent-1", "Hello, this is Azure Beaver.", final=True), room="other", name="Azure Beaver"
    )
    (talk,) = foreign_names([one, other])
    assert (talk.room, talk.other, talk.how) == ("one", "other", "name")


def answer(text: str) -> Answer:
    return Answer(5, "agent-1", text, "one.pcm", 22050, 2.0)


def test_another_rooms_audio_is_found() -> None:
    ours, theirs = answer("The weather is fine in Rome today."), answer("You have three new messages from Bob.")
    one, other = call(ours), call(theirs, room="other")
    swapped = [
        check_answer("one", ours, "You have three new messages from Bob"),
        check_answer("other", theirs, "the weather is fine in rome today"),
    ]
    assert [(talk.room, talk.other) for talk in foreign_audio(swapped, [one, other])] == [
        ("one", "other"),
        ("other", "one"),
    ]


@pytest.mark.parametrize("heard", ["The weather is fine in Rome.", "the feather in home", "Hm.", ""])
def test_audio_of_ones_own_or_garbled_is_no_cross_talk(heard: str) -> None:
    ours, theirs = answer("The weather is fine in Rome today."), answer("You have three new messages from Bob.")
    one, other = call(ours), call(theirs, room="other")
    assert foreign_audio([check_answer("one", ours, heard)], [one, other]) == []


def test_a_word_that_whisper_mishears_is_not_garbled() -> None:
    shook = answer("The two men shook hands.")
    assert check_answer("one", shook, "the two mencho cans.").likeness > 0.7
    assert check_answer("one", shook, "You have three new messages").likeness < 0.4
    assert check_answer("one", shook, "").likeness == 0


def test_a_check_says_how_much_was_heard_right() -> None:
    assert check_answer("one", answer("Hello there."), "hello there") == Checked(
        "one", "agent-1", "Hello there.", "hello there", 1.0, 2.0
    )


# --- numbers --------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentiles_lie_between_the_values(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    assert ordered[0] <= percentile(ordered, percent) <= ordered[-1]
    assert percentile(ordered, 0) == ordered[0]
    assert percentile(ordered, 100) == ordered[-1]


def test_a_distribution() -> None:
    found = Distribution.of([4, 1, 3, 2])
    assert (found.count, found.p50, found.maximum, found.mean) == (4, 2.5, 4, 2.5)


EVENTS: list[Event] = [
    said(1, 2),
    took(3),
    Heard(4),
    Heard(4, 5),
    Gap(6, 7),
    answer("x"),
    Joined(1, 0),
    Left(9, "gone"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_come_back_from_json(event: Event) -> None:
    assert from_json(to_json(event)) == event
