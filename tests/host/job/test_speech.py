"""What is said of what a model writes, phrase by phrase."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.job.speech import PhraseCutter, SpeakablePhrase, speech_length
from host.job.spoken import MAX_WORD, Word, is_sayable
from inference.wire.messages import MAX_PHRASE_CHARS


def phrases_of(
    pieces: Sequence[str], first: int = 60, chars: int = 200, language: str = "en", before: str = ""
) -> list[SpeakablePhrase]:
    cutter = PhraseCutter(first, chars, language=language, before=before)
    return [phrase for piece in pieces for phrase in cutter.push(piece)] + cutter.finish()


def spoken(text: str, first: int = 60, chars: int = 200, language: str = "en") -> list[str]:
    """What is said of ``text``, which comes a character at a time or at once: it makes no difference."""
    phrases = phrases_of(list(text), first, chars, language)
    assert phrases == phrases_of([text], first, chars, language)
    assert "".join(phrase.shown for phrase in phrases) == text
    return [phrase.spoken for phrase in phrases]


def said(text: str, language: str = "en") -> str:
    """What is said of ``text`` in all."""
    return " ".join(part for part in spoken(text, 1_000, 1_000, language) if part)


# --- where phrases end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Hello! How are you?", ["Hello!", "How are you?"]),
        ("Hello", ["Hello"]),
        ("", []),
        ("   \n ", [""]),
        ("Who? Me! Really?! Yes.", ["Who?", "Me!", "Really?!", "Yes."]),
        # A first clause is spoken at once, if it is long enough to cover the wait for the next.
        ("Sure, I can do that. Next.", ["Sure, I can do that.", "Next."]),
        ("Of course I can, whenever you like. Next.", ["Of course I can,", "whenever you like.", "Next."]),
        ("Well, I am here — or was. Yes.", ["Well, I am here —", "or was.", "Yes."]),
        # Titles, initials, abbreviations.
        ("Dr. Smith saw Mr. Jones. He left.", ["Dr Smith saw Mr Jones.", "He left."]),
        ("I saw the Dr.\nYes.", ["I saw the Dr.", "Yes."]),
        ("It was J. R. R. Tolkien. Yes.", ["It was J R R Tolkien.", "Yes."]),
        ("That is plan B. The other one is A.", ["That is plan B.", "The other one is A."]),
        ("Come at 5 p.m. or later. Bye.", ["Come at 5 p.m. or later.", "Bye."]),
        ("Come at 5 p.m. Bring a friend.", ["Come at 5 p.m.", "Bring a friend."]),
        ("Fruit, e.g. apples. Yes.", ["Fruit, e.g. apples.", "Yes."]),
        ("The U.S. Army. I live in the U.S. He too.", ["The U.S Army.", "I live in the U.S.", "He too."]),
        ("He has a Ph.D. in law. Ok.", ["He has a Ph.D. in law.", "Ok."]),
        ("Pears, etc. are fruit. So etc. Then.", ["Pears, etc. are fruit.", "So etc.", "Then."]),
        ("Smith Jr. and Apple Inc. He left.", ["Smith Jr. and Apple Inc.", "He left."]),
        ("St. James St. is on Main St. It is.", ["St James St. is on Main St.", "It is."]),
        ("On Jan. 5 or Sept. 6. Ok.", ["On Jan 5 or Sept 6.", "Ok."]),
        ("The sun. It shines on Mon. and so on.", ["The sun.", "It shines on Mon. and so on."]),
        ("See no. 5 there. No. That is wrong.", ["See number 5 there.", "No.", "That is wrong."]),
        # Numbers.
        ("It is 3.50 or 1,000 or 10:30. Fine.", ["It is 3.50 or 1,000 or 10:30.", "Fine."]),
        ("version v1.2.3 is at example.com today. Ok.", ["version v1.2.3 is at example.com today.", "Ok."]),
        ("On January 5, 2024, we met. Ok.", ["On January 5, 2024,", "we met.", "Ok."]),
        ("I have 5. Then I had 1990. He had none.", ["I have 5.", "Then I had 1990.", "He had none."]),
        ("Am 5. Mai und am 6. bin ich da. Ja.", ["Am 5 Mai und am 6. bin ich da.", "Ja."]),
        ("The 1st, 2nd and 3rd. Yes.", ["The 1st, 2nd and 3rd.", "Yes."]),
        # Ellipses, quotes, brackets.
        ("Well... yes. Wait... What? Hm… no.", ["Well... yes.", "Wait...", "What?", "Hm… no."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ('"Really?" she asked. "Yes!"', ['"Really?" she asked.', '"Yes!"']),
        ("(The end.) Then (see fig. 3) it.", ["(The end.)", "Then (see figure 3) it."]),
        ("**Sure.** I can. *No!* Ok.", ["Sure.", "I can.", "No!", "Ok."]),
        ("Il a dit « Va. » Puis il part ! Oui.", ["Il a dit Va.", "Puis il part!", "Oui."]),
        # Lists and lines.
        ("Steps:\n1. Open it.\n2) Close it\n\nDone", ["Steps:", "1. Open it.", "2. Close it.", "Done"]),
        ("- milk\n- **eggs**\n* bread", ["milk.", "eggs.", "bread."]),
        ("- [ ] one\n- [x] two\n  - three!\n", ["one.", "two.", "three!", ""]),
        ("# Title\nText\n> quoted", ["Title.", "Text", "quoted"]),
        ("| a | b |\n|---|:-:|\n| 1 | two words |\n|x|y|", ["a, b.", "1, two words.", "x, y."]),
        ("first line\nsecond line", ["first line", "second line"]),
        ("One.\n---\nTwo.\n***\nThree.", ["One.", "Two.", "Three."]),
        # Other scripts.
        ("你好。今天天气很好！我们走吧，好不好？", ["你好。", "今天天气很好！", "我们走吧，好不好？"]),
        ("「走吧。」他说。", ["「走吧。」", "他说。"]),
        ("यह है। वह भी।", ["यह है।", "वह भी।"]),
        ("هل هذا؟ نعم.", ["هل هذا؟", "نعم."]),
        # What cannot be said goes with the next phrase, or last.
        ("🎉 Hello. 🎉", ["Hello.", ""]),
    ],
)
def test_phrases(text: str, phrases: list[str]) -> None:
    assert spoken(text) == phrases


def test_a_wrapped_line_goes_on() -> None:
    text = "Hi. This is a line of text that was wrapped by its writer\nand goes on.\nHere\nis\na poem."
    assert spoken(text) == [
        "Hi.",
        "This is a line of text that was wrapped by its writer and goes on.",
        "Here",
        "is",
        "a poem.",
    ]


def test_a_long_first_sentence_is_cut_at_a_word() -> None:
    text = "This first sentence goes on without any clause for much longer than anybody wants to wait for it"
    assert spoken(text, first=40)[0] == "This first sentence goes on without any"


def test_a_long_first_sentence_is_cut_before_a_conjunction_early() -> None:
    text = "I think we all should go to the park because it is so sunny outside today"
    assert spoken(text) == ["I think we all should go to the park", "because it is so sunny outside today"]


def test_a_long_later_sentence_is_cut_at_its_last_clause() -> None:
    text = "Hi. " + "one two three, four five six, seven eight nine ten eleven twelve thirteen"
    assert spoken(text, chars=40) == [
        "Hi.",
        "one two three, four five six,",
        "seven eight nine ten eleven twelve",
        "thirteen",
    ]


def test_a_long_sentence_is_cut_before_a_conjunction_rather_than_at_a_word() -> None:
    text = "Hi. one two three four five six and seven eight nine ten eleven"
    assert spoken(text, chars=40) == ["Hi.", "one two three four five six", "and seven eight nine ten eleven"]


def test_a_number_is_not_cut_from_what_it_counts() -> None:
    assert spoken("Hi. It happened there at 10:30 a.m. or later", chars=30) == [
        "Hi.",
        "It happened there at",
        "10:30 a.m. or later",
    ]


def test_a_word_that_never_ends_is_cut_before_it_is_too_long_to_send() -> None:
    phrases = spoken("x" * (2 * MAX_WORD + 10), first=20, chars=50)
    assert [len(phrase) for phrase in phrases] == [MAX_WORD, MAX_WORD, 10]


def test_a_script_without_spaces_is_cut_all_the_same() -> None:
    phrases = spoken("我" * 300, first=60, chars=90)
    assert [len(phrase) for phrase in phrases] == [20, *[30] * 9, 10]
    assert all(len(phrase) <= 200 for phrase in spoken("กา" * 500))


# --- what is said -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("**Bold** and *it* and ***both***, **a b**.", "Bold and it and both, a b."),
        ("__Bold__ and _it_ but snake_case", "Bold and it but snake_case"),
        ("un**believ**able 2**3 2*3*4 = 24", "unbelievable 2**3 2*3*4 = 24"),
        ("Run `ls -l` now", "Run ls -l now"),
        ("```python\nprint(1)\n# two\n```\nok", "print(1) two ok"),
        ("```ls``` now", "ls now"),
        ("See [our site](https://example.com/a?b=c).", "See our site."),
        ('See [our site](https://example.com "a title here"), then.', "See our site, then."),
        ("[wiki](https://example.org/a_(b)) and [ref][1] and note[^2].", "wiki and ref and note."),
        ("![a cat](cat.png)", "a cat"),
        ("Go to https://www.example.com/a/b?c=d.", "Go to example.com."),
        ("Go to http://example.com:8080/, then stop", "Go to example.com:8080, then stop"),
        ("(see www.example.com/a)", "(see example.com)"),
        ("<https://example.com>", "example.com"),
        ("Mail joe@example.com or <mailto:ann@example.com>.", "Mail joe@example.com or ann@example.com."),
        ("line<br>break</p> <a href='x y'>link</a> <b>x</b>", "line break link x"),
        ("a &amp; b &lt; c", "a & b < c"),
        ("2 * 3 = 6 and a < b and c > d", "2 * 3 = 6 and a < b and c > d"),
        ("Great job! 🎉👍🏽 Bye 👋 1️⃣ 👨‍👩‍👧 🇩🇪 ✅ ok → go ★", "Great job! Bye 1 ok go"),
        ("~~old~~ new ~5", "old new ~5"),
        ("a -- b – c", "a — b — c"),
        ("5 - 3", "5 - 3"),
        ("5 % of £3", "5 % of 3 pounds"),
        ("$5.50, $1, $3 million. $1,000.00", "5 dollars and 50 cents, 1 dollar, 3 million dollars. 1,000 dollars"),
        ("Prof. Hill vs. Lt. Gov. Lee, p. 5", "Professor Hill versus Lieutenant Governor Lee, page 5"),
        ("---", ""),
        ("...", ""),
        ("🎉", ""),
        (":-) [] ()", ""),
        ("tab\tand\x00control\x1b", "tab and control"),
        ("escaped \\*star\\*", "escaped star"),
        ("zero\u200bwidth", "zero width"),
    ],
)
def test_the_voice_gets_clean_text(text: str, words: str) -> None:
    assert said(text) == words


def test_words_of_another_language_are_left_as_they_are() -> None:
    assert said("Nr. 5 vs. $3, no. 5", "de") == "Nr 5 vs. $3, no 5"


def test_a_dash_inside_a_line_is_no_list_also_where_an_answer_goes_on() -> None:
    assert [phrase.spoken for phrase in phrases_of([" - not a list"], before="It is")] == ["not a list"]
    assert [phrase.spoken for phrase in phrases_of(["- a list"], before="These:\n")] == ["a list."]
    assert [phrase.spoken for phrase in phrases_of([" two\n```\n# end"], before="```\n# one")] == ["two", "end."]


# --- whatever is written, and however it arrives ------------------------------------------------------

FRAGMENTS = """Dr. e.g. U.S. a.m. No. 5 3.5 1,000 10:30 $5.50 $3 million ** * _ ` ``` hello The world. and because
[ ]( http://x.com/a "t" ) ( | |---| - # > 1. 🎉 。 ， 你好 「 」 … ... ? ! . , : — <a <br> href &amp; \\ « » ア ー ؟ ।
J. I st. Jan. May"""
SPACES = ("\n", "\n\n", " ", " ", " ", "  ", "\r\n", "\t", "\u00a0")
fragments = st.sampled_from([*FRAGMENTS.split(), *SPACES, "ก" * 30, "x" * 300])
writing = st.lists(st.one_of(fragments, st.text(max_size=4)), max_size=60).map("".join)
limits = st.tuples(st.integers(8, 80), st.integers(8, 200))
languages = st.sampled_from(["", "en", "de"])


@given(writing, limits, languages, st.lists(st.integers(1, 40), min_size=1, max_size=8))
@settings(max_examples=200)
def test_how_the_text_arrives_makes_no_difference(
    text: str, limits: tuple[int, int], language: str, steps: list[int]
) -> None:
    pieces, at = [], 0
    for step in itertools.cycle(steps):
        if at >= len(text):
            break
        pieces.append(text[at : at + step])
        at += step
    assert phrases_of(pieces, *limits, language) == phrases_of([text], *limits, language)


@given(writing, limits, languages)
def test_no_text_is_lost(text: str, limits: tuple[int, int], language: str) -> None:
    phrases = phrases_of([text], *limits, language)
    assert "".join(phrase.shown for phrase in phrases) == text
    assert all(phrase.spoken for phrase in phrases[:-1]), "only the last may have nothing to say"
    assert all(len(phrase.spoken) <= MAX_PHRASE_CHARS for phrase in phrases)


@pytest.mark.parametrize(
    "endless", ["... ", "🎉 ", "Hi ", "Hi; ", "5 ", "! ", "x" * 999 + " ", "$5 ", "\n", "我", "`", "- "]
)
def test_whatever_goes_on_for_ever_can_be_sent(endless: str) -> None:
    phrases = phrases_of([endless * (20_000 // len(endless)), "End."], 1_000, 1_500)
    assert all(len(phrase.spoken) <= MAX_PHRASE_CHARS for phrase in phrases)
    assert phrases[-1].spoken.endswith("End.")


@given(writing, st.integers(0, 200))
def test_an_answer_that_goes_on_is_said_as_if_it_had_not_stopped(text: str, at: int) -> None:
    def said(word: Word) -> tuple[str, str]:
        # Marks are not said where nothing was said before them.
        return word.shown, word.spoken if is_sayable(word.spoken) else ""

    whole = [word for phrase in phrases_of([text], 200, 200) for word in phrase.words]
    ends = list(itertools.accumulate(len(word.shown) for word in whole))
    begun = next((end for end in ends if end >= at), len(text))
    rest = [word for phrase in phrases_of([text[begun:]], 200, 200, before=text[:begun]) for word in phrase.words]
    assert [said(word) for word in rest if word.shown] == [
        said(word) for word, end in zip(whole, ends, strict=True) if end > begun and word.shown
    ]


plain = st.text(st.sampled_from("aabcdeE ,;'\n"), max_size=400)


@given(plain, limits)
def test_every_letter_of_plain_text_is_said(text: str, limits: tuple[int, int]) -> None:
    everything = "".join(phrase.spoken for phrase in phrases_of([text], *limits))
    assert [char for char in everything if char.isalpha()] == [char for char in text if char.isalpha()]


@given(plain, limits)
def test_no_phrase_is_longer_than_it_may_be_unless_it_is_one_word(text: str, limits: tuple[int, int]) -> None:
    for n, phrase in enumerate(phrases_of([text], *limits)):
        limit = limits[0] if n == 0 else max(limits)
        # The marks behind it, which nobody hears, may be one word more.
        assert (
            speech_length(phrase.spoken.rstrip(" ,;'")) <= limit
            or sum(is_sayable(word.spoken) for word in phrase.words) == 1
        )


@given(writing, st.lists(st.floats(0, 1), max_size=5).map(sorted))
def test_what_was_heard_of_a_phrase_are_its_first_words(text: str, shares: list[float]) -> None:
    for phrase in phrases_of([text]):
        beginnings = ["".join(word.shown for word in phrase.words[:n]) for n in range(len(phrase.words) + 1)]
        heard = [phrase.heard(share) for share in shares]
        assert all(part in beginnings for part in heard)
        assert heard == sorted(heard, key=len)
        if phrase.spoken:
            assert phrase.heard(0) == ""
            last = max(n for n, word in enumerate(phrase.words, 1) if word.spoken)
            assert phrase.heard(1) == beginnings[last]
