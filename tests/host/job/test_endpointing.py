"""How long a silence must be: by words, by the model, by the caller's own pauses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.job.backchannel import is_backchannel, words
from host.job.endpointing import CAUTION, DOUBTFUL, KNOTS, Endpointing, text_odds, turn_is_over

MS = 16


def delay_ms(text: str, probability: float, endpointing: Endpointing | None = None) -> int:
    return (endpointing or Endpointing(300 * MS, 2_500 * MS)).delay(text, probability) // MS


@pytest.mark.parametrize(
    "text",
    [
        "I would like to",
        "I would like to.",
        "And then the",
        "It costs, um",
        "It costs...",
        "So, what I mean is that,",
        "We -",
    ],
)
def test_text_that_breaks_off_is_waited_for(text: str) -> None:
    assert text_odds(text) <= -2
    assert delay_ms(text, 0.5) > delay_ms("I would like a room.", 0.5) + 300


@pytest.mark.parametrize("text", ["Yes.", "No, thanks.", "Thank you.", "That's all."])
def test_text_that_is_an_end_by_itself_is_not(text: str) -> None:
    assert text_odds(text) > 0
    assert delay_ms(text, 0.5) < delay_ms("I would like a room.", 0.5)


def test_a_question_may_end_in_any_word_but_an_article() -> None:
    assert text_odds("Where are you from?") > 0
    assert text_odds("What is the?") < 0
    assert text_odds("Where are you from") < 0


def test_punctuation_alone_says_little_since_whisper_adds_it() -> None:
    assert text_odds("I live in London.") == text_odds("I live in London") == 0
    assert text_odds("") == 0


def test_words_of_another_language_are_not_measured_by_english_ones() -> None:
    assert text_odds("Ich möchte mit der", "de") < 0
    assert text_odds("Ich bin am", "de") < 0
    assert text_odds("I am", "nl") == 0
    assert text_odds("I am", "") < 0, "what is not known is taken for English"


def test_the_surer_the_model_the_shorter_the_wait() -> None:
    delays = [delay_ms("I live in London.", p / 100) for p in range(101)]
    assert delays == sorted(delays, reverse=True)
    assert delays[0] == 2_500
    assert 300 <= delays[-1] <= 400


def test_without_a_word_of_the_model_the_wait_is_about_that_of_plain_detection() -> None:
    assert 450 <= delay_ms("I live in London.", -1) <= 600
    assert delay_ms("I live in", -1) > 1_000


@given(st.text(max_size=40), st.floats(0, 1) | st.just(-1.0), st.lists(st.integers(0, 100_000), max_size=8))
def test_no_delay_is_out_of_bounds(text: str, probability: float, pauses: list[int]) -> None:
    endpointing = Endpointing(300 * MS, 2_500 * MS)
    for pause in pauses:
        endpointing.went_on(pause)
    assert 300 * MS <= endpointing.delay(text, probability) <= 2_500 * MS
    assert 300 * MS <= endpointing.patience() <= 2_500 * MS


def test_the_knots_are_in_order() -> None:
    assert list(KNOTS) == sorted(KNOTS)
    assert KNOTS[0][0] > DOUBTFUL
    assert [ms for _, ms in KNOTS] == sorted((ms for _, ms in KNOTS), reverse=True)
    assert turn_is_over("I live in London.", 1.0) < KNOTS[-1][0], "the model alone is never believed that much"


def test_a_caller_who_pauses_shortly_is_waited_for_less_and_never_below_the_least() -> None:
    caller = Endpointing(300 * MS, 2_500 * MS)
    assert caller.patience() == 2_500 * MS
    for _ in range(8):
        caller.went_on(250 * MS)
    assert caller.patience() == 900 * MS
    assert delay_ms("I would like to", 0.05, caller) < delay_ms("I would like to", 0.05)


def test_a_caller_who_thinks_long_is_waited_for_as_long() -> None:
    caller = Endpointing(300 * MS, 2_500 * MS)
    for pause in (1_300, 1_400, 1_350, 1_300, 1_350, 1_300, 1_400, 1_350):
        caller.went_on(pause * MS)
    assert 1_400 <= caller.patience() // MS < 2_500
    # One pause tells nothing, and gaps between words are none.
    other = Endpointing(300 * MS, 2_500 * MS)
    other.went_on(700 * MS)
    for _ in range(5):
        other.went_on(100 * MS)
    assert other.patience() == 2_500 * MS


def test_a_caller_who_was_cut_off_is_waited_for_longer_until_an_answer_was_heard() -> None:
    caller = Endpointing(300 * MS, 2_500 * MS)
    usual = delay_ms("I live in London.", 0.98, caller)
    caller.cut_off()
    assert delay_ms("I live in London.", 0.98, caller) == usual + CAUTION // MS
    assert delay_ms("I would like to", 0.0, caller) == 2_500
    caller.answered()
    assert delay_ms("I live in London.", 0.98, caller) == usual


def test_bounds_may_change_and_what_was_learned_stays() -> None:
    caller = Endpointing(300 * MS, 2_500 * MS)
    for _ in range(4):
        caller.went_on(400 * MS)
    patience = caller.patience()
    caller.bounds(300 * MS, 3_000 * MS, "en")
    assert caller.patience() == patience
    caller.bounds(500 * MS, 400 * MS, "en")
    assert caller.delay("I would like to", 0.0) == caller.delay("Yes.", 1.0) == 500 * MS


# --- back-channels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Mhm.",
        "Yeah.",
        "Yeah, yeah.",
        "Uh-huh",
        "Mm-hmm, okay.",
        "Oh, I see.",
        "Right, of course!",
        "Thank you.",
        "Hmm…",
    ],
)
def test_back_channels(text: str) -> None:
    assert is_backchannel(text)


@pytest.mark.parametrize(
    "text", ["Stop.", "No.", "Yeah, but what about Tuesday?", "Okay, wait.", "Hello?", "", "...", "[cough]"]
)
def test_what_is_none(text: str) -> None:
    assert not is_backchannel(text)


def test_back_channels_of_other_languages() -> None:
    assert is_backchannel("Ja, genau. Alles klar.", "de")
    assert not is_backchannel("Nein, warte.", "de")
    assert is_backchannel("Mhm", "fi"), "hums are everybody's"
    assert not is_backchannel("yeah", "fr")


def test_sounds_are_no_words() -> None:
    assert words("[cough] (laughs) *sigh* ♪ <noise>") == []
    assert words("It's 5 o’clock, [cough] John-Paul.") == ["it's", "5", "o'clock", "john-paul"]
