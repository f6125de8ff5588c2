"""What is printed for good, when, and with which measurements."""

from __future__ import annotations

import pytest

from host.console.script import Entry, Script
from host.job.line import Text
from inference.wire.supervision import TurnReport


def report(
    turn: int, transcript: str, reply: str, *, interrupted: bool = False, response_ms: float = 900
) -> TurnReport:
    return TurnReport("job", turn, transcript, reply, interrupted, 1.0, 500, 0, 200, 300, response_ms, 2.0)


def user(number: int, text: str, *, final: bool = True) -> Text:
    return Text("user", f"user-{number}", text, final)


def agent(number: int, text: str, *, final: bool = True) -> Text:
    return Text("agent", f"agent-{number}", text, final)


def texts(entries: list[Entry]) -> list[str]:
    return [entry.text for entry in entries]


def test_a_turn_is_printed_with_what_was_measured() -> None:
    script = Script()
    script.shown(user(1, "What's", final=False), 0)
    assert script.take_settled() == []
    assert texts(list(script.open)) == ["What's"]
    script.shown(user(1, "What's the date?"), 0)
    assert texts(script.take_settled()) == ["What's the date?"]
    script.shown(agent(1, "The date", final=False), 0)
    script.shown(agent(1, "The date is the first."), 0)
    # What was measured comes by another way.
    assert script.take_settled() == []
    script.measured(report(1, "What's the date?", "The date is the first."))
    (entry,) = script.take_settled()
    assert entry.turn is not None
    assert entry.turn.response_ms == 900
    assert list(script.open) == []


def test_measurements_may_come_before_the_last_words() -> None:
    script = Script()
    script.shown(user(1, "Hello"), 0)
    script.shown(agent(1, "Good", final=False), 0)
    script.measured(report(1, "Hello", "Good day."))
    assert texts(script.take_settled()) == ["Hello"]
    script.shown(agent(1, "Good day."), 0)
    assert texts(script.take_settled()) == ["Good day."]


def test_an_answer_that_is_resumed_is_printed_once() -> None:
    script = Script()
    script.shown(user(1, "Hello"), 0)
    script.shown(agent(1, "Good day,"), 0)
    script.shown(user(2, "m", final=False), 0)
    script.shown(user(2, ""), 0)
    assert texts(script.take_settled()) == ["Hello"]
    script.shown(agent(1, "Good day, how are you?"), 0)
    script.measured(report(1, "Hello", "Good day, how are you?"))
    assert texts(script.take_settled()) == ["Good day, how are you?"]


def test_an_answer_without_measurements_is_printed_when_something_follows() -> None:
    script = Script()
    script.shown(agent(1, "Hotel Miramar."), 0)
    assert script.take_settled() == []
    script.shown(user(1, "He", final=False), 0)
    assert script.take_settled() == []
    script.shown(user(1, "Hello"), 0)
    assert texts(script.take_settled()) == ["Hotel Miramar.", "Hello"]


def test_measurements_belong_to_the_answer_to_their_own_turn() -> None:
    script = Script()
    script.shown(user(1, "One"), 0)
    script.shown(agent(1, "First", final=True), 0)
    script.shown(user(2, "Two"), 0)
    script.shown(agent(2, "Second"), 0)
    script.measured(report(2, "Two", "Second", response_ms=2))
    script.measured(report(1, "One", "First", interrupted=True, response_ms=1))
    turns = {entry.text: entry.turn.response_ms for entry in script.take_all() if entry.turn is not None}
    assert turns == {"First": 1, "Second": 2}


def test_the_end_prints_what_is_left() -> None:
    script = Script()
    script.shown(user(1, "I would li", final=False), 0)
    assert texts(script.take_all()) == ["I would li"]
    assert script.take_all() == []


def test_what_is_typed_is_there_at_once_and_once() -> None:
    script = Script()
    script.typed("hello", 10.0)
    assert texts(script.take_settled()) == ["hello"]
    # Some conversations tell it back.
    script.shown(user(1, "hello"), 10.1)
    assert script.take_settled() == []
    assert not script.is_answered()
    script.shown(agent(1, "Hi", final=False), 10.4)
    assert not script.is_answered()
    script.shown(agent(1, "Hi there."), 10.6)
    assert script.is_answered()
    (entry,) = script.take_all()
    assert entry.waited_s == pytest.approx(0.4)
    assert script.responses_s() == pytest.approx((0.4, 0.4))


def test_response_times() -> None:
    script = Script()
    assert script.responses_s() is None
    for turn, ms in enumerate((900, 1100, 2500, -1), 1):
        script.measured(report(turn, "", "", response_ms=ms))
    assert script.responses_s() == pytest.approx((1.1, 2.5))
