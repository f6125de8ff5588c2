from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.job.speech import MAX_WORD, PhraseCutter, speakable


def cut(text: str, first: int = 60, chars: int = 200, step: int = 1) -> list[tuple[str, str]]:
    """The phrases of a text that comes in pieces of ``step`` characters, as (shown, spoken)."""
    cutter = PhraseCutter(first, chars)
    phrases = [phrase for at in range(0, len(text), step) for phrase in cutter.push(text[at : at + step])]
    phrases += cutter.finish()
    return [(phrase.shown, phrase.spoken) for phrase in phrases]


def spoken(text: str, **limits: int) -> list[str]:
    return [spoken for _, spoken in cut(text, **limits)]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Hello! How are you?", ["Hello!", "How are you?"]),
        ("Hello", ["Hello"]),
        ("", []),
        ("   \n ", [""]),
        # A first clause is spoken at once, if it is long enough to cover the wait for the next.
        ("Sure, I can do that. Next.", ["Sure, I can do that.", "Next."]),
        ("Of course I can, whenever you like. Next.", ["Of course I can,", "whenever you like.", "Next."]),
        # What is no end of a sentence.
        ("Dr. Smith saw Mr. Jones. He left.", ["Dr. Smith saw Mr. Jones.", "He left."]),
        ("It costs 3.50 dollars. Fine.", ["It costs 3.50 dollars.", "Fine."]),
        ("It was J. R. Tolkien. Yes.", ["It was J. R. Tolkien.", "Yes."]),
        ("Come at 5 p.m. or later. Bye.", ["Come at 5 p.m. or later.", "Bye."]),
        ("Come at 5 p.m. Bring a friend.", ["Come at 5 p.m.", "Bring a friend."]),
        ("Fruit, e.g. apples. Yes.", ["Fruit, e.g. apples.", "Yes."]),
        ("See no. 5 there. No. That is wrong.", ["See no. 5 there.", "No.", "That is wrong."]),
        ("Who? Me! Well... yes.", ["Who?", "Me!", "Well...", "yes."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("version 1.2.3 is at example.com today. Ok.", ["version 1.2.3 is at example.com today.", "Ok."]),
        # Lists and lines.
        ("Steps:\n1. Open it.\n2. Close it.\n", ["Steps:", "1. Open it.", "2. Close it."]),
        ("- milk\n- eggs\n* bread\n", ["milk", "eggs", "bread"]),
        # Other scripts.
        ("你好。今天天气很好！", ["你好。", "今天天气很好！"]),
    ],
)
def test_phrases(text: str, phrases: list[str]) -> None:
    assert spoken(text) == phrases
    assert spoken(text, step=1000) == phrases, "how the text arrives makes no difference"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("**Bold** and *it* and ***both***", "Bold and it and both"),
        ("__Bold__ and _it_ but snake_case", "Bold and it but snake_case"),
        ("# Heading", "Heading"),
        ("> quoted", "quoted"),
        ("Run `ls -l` now", "Run ls -l now"),
        ("```python\nprint(1)\n```", "print(1)"),
        ("See [our site](https://example.com/a?b=c).", "See our site."),
        ("![a cat](cat.png)", "a cat"),
        ("Go to https://www.example.com/a/b?c=d.", "Go to example.com."),
        ("Go to http://example.com:8080/, then stop", "Go to example.com:8080, then stop"),
        ("<https://example.com>", "example.com"),
        ("line<br>break", "line break"),
        ("2*3*4 = 24", "2*3*4 = 24"),
        ("2 * 3 = 6", "2 * 3 = 6"),
        ("Great job! 🎉👍🏽 Bye 👋", "Great job! Bye"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a b 1 2"),
        ("~~old~~ new", "old new"),
        ("- [x] done", "done"),
        ("a < b and c > d", "a < b and c > d"),
        ("5 % of $3", "5 % of $3"),
        ("---", ""),
        ("...", ""),
        ("🎉", ""),
        ("tab\tand\x00control\x1b", "tab and control"),
        ("escaped \\*star\\*", "escaped star"),
    ],
)
def test_the_voice_gets_clean_text(text: str, said: str) -> None:
    assert speakable(text) == said


def test_a_dash_inside_a_line_is_no_list() -> None:
    assert speakable("- not a list", line_start=False) == "- not a list"


def test_a_long_first_sentence_is_cut_at_a_word() -> None:
    text = "This first sentence goes on without any clause for much longer than anybody wants to wait for it"
    phrases = cut(text, first=40)
    assert phrases[0][0] == "This first sentence goes on without any "
    assert "".join(shown for shown, _ in phrases) == text


def test_a_long_later_sentence_is_cut_at_its_last_clause() -> None:
    text = "Hi. " + "one two three, four five six, seven eight nine ten eleven twelve thirteen"
    assert spoken(text, chars=40) == [
        "Hi.",
        "one two three, four five six,",
        "seven eight nine ten eleven twelve",
        "thirteen",
    ]


def test_a_link_is_not_cut_in_two() -> None:
    text = "Look at [this wonderful, long and winding page about trees](https://example.com/x) today please."
    assert spoken(text, first=30) == [
        "Look at",
        "this wonderful, long and winding page about trees today please.",
    ]


def test_a_word_that_never_ends_is_cut_before_it_is_too_long_to_send() -> None:
    phrases = spoken("x" * (2 * MAX_WORD + 10), first=20, chars=50)
    assert [len(phrase) for phrase in phrases] == [MAX_WORD, MAX_WORD, 10]


def test_what_cannot_be_said_goes_with_the_next_phrase_or_last() -> None:
    assert cut("🎉 Hello. 🎉") == [("🎉 Hello.", "Hello."), (" 🎉", "")]


plain = st.text(st.sampled_from("aabcdeE12 ,.;:!?'-\n"), max_size=400)
anything = st.text(st.one_of(st.sampled_from("ab1 .,!?\n*_`#-[]()|<>~\\:/🎉—。"), st.characters()), max_size=300)


@given(anything, st.integers(8, 80), st.integers(8, 200), st.integers(1, 50))
def test_phrases_join_to_the_text(text: str, first: int, chars: int, step: int) -> None:
    phrases = cut(text, first, chars, step)
    assert "".join(shown for shown, _ in phrases) == text
    assert all(said for _, said in phrases[:-1]), "only the last may have nothing to say"
    assert all(said == speakable(said, line_start=False) or "\\" in text or "<" in text for _, said in phrases if said)


@given(plain, st.integers(8, 80), st.integers(8, 200))
def test_every_character_of_plain_text_is_spoken(text: str, first: int, chars: int) -> None:
    def without_marks(text: str) -> str:
        # Dashes that begin a line are a list's; a phrase of nothing but punctuation is not spoken.
        text = re.sub(r"(?m)^[ \t]*(?:[-][ \t]*){2,}$", " ", text)
        return re.sub(r"[^\w]", "", text)

    assert without_marks("".join(spoken(text, first=first, chars=chars))) == without_marks(text)


@given(plain, st.integers(8, 60), st.integers(20, 200))
def test_no_phrase_is_longer_than_it_may_be_unless_it_is_one_word(text: str, first: int, chars: int) -> None:
    for n, (shown, _) in enumerate(cut(text, first, chars)):
        limit = first if n == 0 else chars
        earlier = [shown[:at] for at in range(1, limit + 1) if shown[at - 1 : at].isspace()]
        assert len(shown) <= limit + 1 or not any(speakable(head) for head in earlier)


@given(plain)
def test_how_the_text_arrives_makes_no_difference(text: str) -> None:
    assert cut(text, step=1) == cut(text, step=7)
