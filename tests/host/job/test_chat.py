from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.job.chat import PhraseHeard, PromptWindow, render, truncate_to_heard
from host.job.chat_context import AgentHandoff, ChatContext, ChatItem, ChatMessage
from host.job.speech import PhraseCutter, SpeakablePhrase
from host.job.tool_text import FunctionCall, FunctionCallOutput

RATE = 22_050


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def agent(text: str) -> ChatMessage:
    return ChatMessage("assistant", text)


def system(text: str) -> ChatMessage:
    return ChatMessage("system", text)


def contents(items: list[ChatItem], tools: str = "") -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in render(items, tools)]


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


# --- as the model is given it ----------------------------------------------------------------------------


def test_a_conversation_in_order() -> None:
    items: list[ChatItem] = [system("Be brief."), agent("Hello!"), user("What is the date?"), agent("Monday.")]
    assert contents(items) == [
        ("system", "Be brief."),
        ("assistant", "Hello!"),
        ("user", "What is the date?"),
        ("assistant", "Monday."),
    ]


def test_instructions_and_what_is_said_about_tools_are_one_message() -> None:
    assert contents([system("Be brief.")], "# Tools") == [("system", "Be brief.\n\n# Tools")]
    assert contents([system("Be brief."), system("It is Monday.")]) == [
        ("system", "Be brief."),
        ("user", "It is Monday."),
    ]
    assert contents([user("Hi")], "# Tools") == [("system", "# Tools"), ("user", "Hi")]
    assert contents([user("Hi")]) == [("user", "Hi")]


def test_roles_alternate() -> None:
    items: list[ChatItem] = [
        user("Hello?"),
        agent(""),
        user("Are you there?"),
        agent("Hi."),
        agent("The call is recorded."),
    ]
    assert contents(items) == [("user", "Hello? Are you there?"), ("assistant", "Hi. The call is recorded.")]


def test_instructions_for_one_answer_come_last_and_as_the_callers() -> None:
    items: list[ChatItem] = [system("Be brief."), user("Hi."), agent("Hello."), system("Ask for the name.")]
    assert contents(items)[2:] == [("assistant", "Hello."), ("user", "Ask for the name.")]
    assert render(items)[:3] == render(items[:3]), "what was read before stays as it was"


def test_calls_and_results_of_one_step_are_one_message_each() -> None:
    calls = [FunctionCall("hours", '{"day": "monday"}', "1"), FunctionCall("hours", '{"day": "friday"}', "2")]
    results = [FunctionCallOutput("1", "hours", "nine to six"), FunctionCallOutput("2", "hours", "closed")]
    items: list[ChatItem] = [user("When?"), *calls, *results, AgentHandoff("A", "B"), agent("Nine to six.")]
    asked, called, answered, said = contents(items)
    assert (asked[0], called[0], answered[0], said) == ("user", "assistant", "user", ("assistant", "Nine to six."))
    assert called[1].count("<tool_call>") == 2
    assert answered[1].index("nine to six") < answered[1].index("closed")
    assert render(items[:5]) == render(items)[:3], "each step only adds to what was read"


# --- what fits -------------------------------------------------------------------------------------------


def test_the_oldest_turns_are_left_out_when_the_context_is_full_and_not_one_by_one() -> None:
    window = PromptWindow(context_tokens=600, reply_tokens=100)
    items: list[ChatItem] = []
    sizes = []
    for n in range(40):
        items.append(user(f"question {n} " + "word " * 20))
        sent = window.items("Be brief.", items)
        assert sent[-1] is items[-1]
        assert isinstance(sent[0], ChatMessage)
        assert sent[0].role == "user", "a turn is left out whole"
        assert window.tokens("Be brief.", items) <= 500
        sizes.append(len(sent))
        items.append(agent(f"answer {n} " + "word " * 20))
    drops = [n for n in range(1, 40) if sizes[n] < sizes[n - 1]]
    assert drops, "the conversation fitted: the test says too little"
    assert min(b - a for a, b in itertools.pairwise(drops)) >= 2, "every turn would lose the KV cache"


def test_a_turn_is_left_out_with_the_calls_it_needed() -> None:
    window = PromptWindow(context_tokens=2048, reply_tokens=160)
    called = [FunctionCall("hours", "{}", "1"), FunctionCallOutput("1", "hours", "nine")]
    items: list[ChatItem] = [user("q0"), *called, agent("a0"), user("q1")]
    assert window.drop_oldest_turn(items)
    assert window.items("", items) == (items[4],)
    assert not window.drop_oldest_turn(items), "the newest stays"


def test_an_edited_conversation_is_seen_from_its_beginning() -> None:
    window = PromptWindow(context_tokens=2048, reply_tokens=160)
    items: list[ChatItem] = [user("q0"), agent("a0"), user("q1")]
    window.drop_oldest_turn(items)
    edited: list[ChatItem] = [user("a summary"), user("q2")]
    assert window.seen(edited) == tuple(edited)


def test_what_a_long_question_and_the_instructions_take_counts() -> None:
    window = PromptWindow(context_tokens=200, reply_tokens=100)
    assert window.fits("Be brief.", [user("word " * 10)])
    assert not window.fits("Be brief." * 40, [user("word " * 10)])
    assert not window.fits("Be brief.", [user("word " * 100)])


# --- the items -------------------------------------------------------------------------------------------


def conversation() -> ChatContext:
    return ChatContext(
        [
            system("Be brief."),
            user("When?"),
            FunctionCall("hours", "{}", "1"),
            FunctionCallOutput("1", "hours", "nine"),
            agent("At nine."),
        ]
    )


def test_a_copy_is_a_list_of_its_own_and_may_leave_things_out() -> None:
    chat = conversation()
    copy = chat.copy(exclude_function_call=True, exclude_instructions=True)
    assert [item.type for item in copy.items] == ["message", "message"]
    copy.add_message(role="user", content="Thanks.")
    assert len(chat.items) == 5
    assert copy.items[0] is chat.items[1]
    assert [message.content for message in chat.messages()] == ["Be brief.", "When?", "At nine."]


def test_exactly_this_item_is_removed() -> None:
    first, second = user("Yes."), user("Yes.")
    chat = ChatContext([first, second])
    chat.remove(second)
    chat.remove(agent("not there"))
    assert chat.items == [first]
    assert chat.index_of(second) == -1


@pytest.mark.parametrize(("kept", "types"), [(1, ["message"]), (3, ["message"]), (4, 4), (0, []), (9, 5)])
def test_what_is_kept_never_begins_with_the_result_of_a_call(kept: int, types: list[str] | int) -> None:
    chat = conversation().truncate(max_items=kept)
    assert (len(chat.items) if isinstance(types, int) else [item.type for item in chat.items]) == types


def test_a_context_comes_back_from_json() -> None:
    chat = conversation()
    chat.items.append(AgentHandoff("A", "B"))
    again = ChatContext.from_dict(json.loads(json.dumps(chat.to_dict())))
    assert again.to_dict() == chat.to_dict()
    with pytest.raises(ValueError, match="type is 'thought', allowed: message"):
        ChatContext.from_dict({"items": [{"type": "thought"}]})
