from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.job.chat import ChatHistory, PhraseHeard, truncate_to_heard
from host.job.speech import PhraseCutter, SpeakablePhrase
from inference.wire.messages import ChatMessage

RATE = 22_050


def history(context_tokens: int = 2048, reply_tokens: int = 160) -> ChatHistory:
    return ChatHistory("Be brief.", context_tokens=context_tokens, reply_tokens=reply_tokens)


def contents(chat: ChatHistory) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in chat.messages()]


def phrase(text: str) -> SpeakablePhrase:
    """``text`` as one phrase."""
    cutter = PhraseCutter(1_000, 1_000)
    return SpeakablePhrase(tuple(word for part in cutter.push(text) + cutter.finish() for word in part.words))


def part(text: str, samples: int | None, heard: int) -> PhraseHeard:
    return PhraseHeard(phrase(text), samples, heard)


# --- what was heard -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phrases", "heard"),
    [
        ([], ""),
        ([part("Hello there.", 1000, 0)], ""),
        ([part("Hello there.", 1000, 1000)], "Hello there."),
        # 5 of 12 characters: the end of the first word.
        ([part("Hello there.", 1200, 500)], "Hello"),
        ([part("Hello there.", 1200, 499)], ""),
        ([part("Hello there.", 1200, 1199)], "Hello"),
        ([part("One.", 100, 100), part(" Two three.", 1100, 500)], "One. Two"),
        ([part("One.", 100, 100), part(" Two.", 100, 0)], "One."),
        # Nothing after a phrase that was not heard to its end.
        ([part("One two.", 100, 50), part(" Three.", 0, 0)], "One"),
        # Still being synthesised: its length is judged by the phrase before it, 100 samples a character.
        ([part("Hello.", 600, 600), part(" And goodbye.", None, 500)], "Hello. And"),
        # Nothing known: 15 characters a second.
        ([part("One two three four five.", None, RATE)], "One two three"),
        # What is said may be more, or less, than what was written: words count by what is said for them.
        ([part("It is **really** 5 o'clock.", 2300, 1300)], "It is **really**"),
        ([part("See [this page](https://example.com/a/very/long/path) now.", 1800, 1299)], "See [this"),
        (
            [part("See [this page](https://example.com/a/very/long/path) now.", 1800, 1300)],
            "See [this page](https://example.com/a/very/long/path)",
        ),
        # A character of Chinese is said as long as three letters, and is a word.
        ([part("OK 我们走。", 1500, 600)], "OK 我"),
        # Nothing to say in it (a rule, an emoji): heard with what came before.
        ([part("Done.", 100, 100), part(" 🎉", 0, 0)], "Done. 🎉"),
    ],
)
def test_truncate_to_heard(phrases: list[PhraseHeard], heard: str) -> None:
    assert truncate_to_heard(phrases, RATE) == heard


words = st.lists(st.text(st.characters(categories=["Lu", "Ll"]), min_size=1, max_size=8), min_size=1, max_size=12)


@given(st.lists(st.tuples(words, st.integers(1, 10_000)), min_size=1, max_size=5), st.integers(0, 60_000))
def test_what_was_heard_is_whole_words_from_the_beginning_and_never_shrinks(
    spoken: list[tuple[list[str], int]], heard: int
) -> None:
    def cut(heard: int) -> list[str]:
        phrases, left = [], heard
        for text, samples in spoken:
            phrases.append(part(" ".join(text) + " ", samples, min(left, samples)))
            left = max(0, left - samples)
        return truncate_to_heard(phrases, RATE).split()

    everything = [word for text, _ in spoken for word in text]
    result = cut(heard)
    assert result == everything[: len(result)]
    assert len(cut(heard + 500)) >= len(result)
    if heard >= sum(samples for _, samples in spoken):
        assert result == everything


# --- the history ----------------------------------------------------------------------------------------


def test_a_conversation_in_order() -> None:
    chat = history()
    chat.add_assistant("Hello!")
    chat.add_user("What is the date?")
    chat.add_assistant("Monday.")
    assert contents(chat) == [
        ("system", "Be brief."),
        ("assistant", "Hello!"),
        ("user", "What is the date?"),
        ("assistant", "Monday."),
    ]


def test_without_instructions_there_is_no_system_message() -> None:
    chat = ChatHistory("", context_tokens=512, reply_tokens=100)
    chat.add_user("Hi")
    assert contents(chat) == [("user", "Hi")]


def test_nothing_heard_is_nothing_said_and_questions_without_an_answer_are_one_message() -> None:
    chat = history()
    chat.add_user("Hello?")
    chat.add_assistant("  ")
    chat.add_user("Are you there?")
    assert contents(chat)[1:] == [("user", "Hello? Are you there?")]
    assert chat.items == (ChatMessage("user", "Hello?"), ChatMessage("user", "Are you there?"))


def test_the_rest_of_a_resumed_answer_joins_its_beginning() -> None:
    chat = history()
    chat.add_user("Tell me.")
    chat.add_assistant("Once upon")
    chat.add_assistant(" a time.")
    assert contents(chat)[-1] == ("assistant", "Once upon a time.")


def test_a_turn_that_goes_on_is_taken_back() -> None:
    chat = history()
    chat.add_user("Tell")
    assert chat.take_back_user() == "Tell"
    assert chat.items == ()
    with pytest.raises(ValueError, match="not the caller's"):
        chat.take_back_user()
    chat.add_assistant("Hello.")
    with pytest.raises(ValueError, match="not the caller's"):
        chat.take_back_user()


def test_the_oldest_turns_are_left_out_when_the_context_is_full_and_not_one_by_one() -> None:
    chat = history(context_tokens=600, reply_tokens=100)
    sizes = []
    for n in range(40):
        chat.add_user(f"question {n} " + "word " * 20)
        sent = chat.messages()
        assert sent[0].role == "system"
        assert sent[-1].content.startswith(f"question {n} ")
        assert sent[1].role == "user", "a turn is left out whole"
        assert chat.tokens() <= 500
        sizes.append(len(sent))
        chat.add_assistant(f"answer {n} " + "word " * 20)
    drops = [n for n in range(1, 40) if sizes[n] < sizes[n - 1]]
    assert drops, "the conversation fitted: the test says too little"
    assert min(b - a for a, b in itertools.pairwise(drops)) >= 2, "every turn would lose the KV cache"
    assert len(chat.items) == 80


def test_too_long_drops_turns_until_only_the_newest_is_left() -> None:
    chat = history()
    for n in range(3):
        chat.add_user(f"q{n}")
        chat.add_assistant(f"a{n}")
    chat.add_user("q3")
    assert chat.drop_oldest_turn()
    assert contents(chat)[1] == ("user", "q1")
    assert chat.drop_oldest_turn()
    assert chat.drop_oldest_turn()
    assert not chat.drop_oldest_turn()
    assert contents(chat) == [("system", "Be brief."), ("user", "q3")]
    assert chat.take_back_user() == "q3"
    chat.add_user("q3 and more")
    assert contents(chat) == [("system", "Be brief."), ("user", "q3 and more")]
