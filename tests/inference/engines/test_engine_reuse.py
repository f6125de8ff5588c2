"""What of a KV cache a new prompt can use again, decided on made-up tokens: a token is a letter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.engines.reuse import SHORTEST_SHIFT, SaidMessages, common_prefix, left_out, messages_of

CONTROL = frozenset({0})
START = "<"


def tokens(text: str) -> list[int]:
    """A letter is a token; ``<`` is a control token."""
    return [0 if letter == START else ord(letter) for letter in text]


def piece(token: int) -> bytes:
    """Capital letters stand for two of the small ones, as a tokeniser's larger tokens do."""
    letter = chr(token)
    return (letter.lower() * 2 if letter.isupper() else letter).encode() if token else b""


def text(tokens: list[int]) -> str:
    return "".join(START if token == 0 else chr(token) for token in tokens)


def test_messages_lie_between_control_tokens() -> None:
    assert [text(message) for message in messages_of(tokens("<ab<<c"), CONTROL)] == ["<", "ab", "<", "<", "c"]
    assert list(messages_of([], CONTROL)) == []


@given(st.lists(st.integers(0, 3)))
def test_no_token_is_lost_between_messages(some: list[int]) -> None:
    assert [token for message in messages_of(some, CONTROL) for token in message] == some


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)), st.integers(0, 5))
def test_a_common_prefix_is_common_and_the_longest(one: list[int], other: list[int], start: int) -> None:
    length = common_prefix(one, other, start)
    assert one[start : start + length] == other[:length]
    assert one[start : start + length + 1] != other[: length + 1] or length in (len(other), max(0, len(one) - start))


def test_the_oldest_turns_are_found_to_be_left_out() -> None:
    system, first, rest = "<system ", "first question and answer ", "second question and its answer"
    assert left_out(tokens(system + first + rest), tokens(system + rest + "third"), len(system)) == len(first)


def test_what_agrees_only_by_chance_is_not_moved() -> None:
    cached = tokens("<system one and two and some")
    assert left_out(cached, tokens("<system and nothing else"), len("<system ")) == 0
    agreeing = "x" * SHORTEST_SHIFT
    assert left_out(tokens("<ab" + agreeing), tokens("<" + agreeing), 1) == 2
    assert left_out(tokens("<ab" + agreeing[1:]), tokens("<" + agreeing[1:]), 1) == 0


@given(st.lists(st.integers(1, 2), max_size=60), st.lists(st.integers(1, 2), max_size=60), st.integers(0, 60))
def test_whatever_is_left_out_the_rest_continues_the_prompt(cached: list[int], prompt: list[int], keep: int) -> None:
    gap = left_out(cached, prompt, keep)
    if gap:
        assert cached[keep + gap : keep + gap + SHORTEST_SHIFT] == prompt[keep : keep + SHORTEST_SHIFT]


def said() -> SaidMessages:
    """Somebody asked "hi", and the model wrote "aabbcc" as the tokens A, B and two small ones."""
    messages = SaidMessages(piece, CONTROL)
    prompt = tokens("<hi<bot:")
    messages.remember([*prompt, *tokens("ABcc")], len(prompt))
    return messages


def test_a_message_comes_back_as_it_was_written() -> None:
    assert text(said().put_into(tokens("<hi<bot:aabbcc<more"))) == "<hi<bot:ABcc<more"


def test_the_part_that_was_heard_comes_back_as_it_was_written() -> None:
    assert text(said().put_into(tokens("<hi<bot:aabb<more"))) == "<hi<bot:AB<more"
    # Cut inside one of its tokens: that part is tokenised like any other text.
    assert text(said().put_into(tokens("<hi<bot:aab<more"))) == "<hi<bot:aab<more"


def test_other_messages_stay_as_they_are() -> None:
    assert text(said().put_into(tokens("<aabbcc<bot:aaxx<"))) == "<aabbcc<bot:aaxx<"


def test_what_is_in_no_prompt_any_more_is_forgotten() -> None:
    messages = said()
    messages.put_into(tokens("<something else"))
    assert text(messages.put_into(tokens("<bot:aabbcc<"))) == "<bot:aabbcc<"


def test_an_empty_answer_is_not_remembered() -> None:
    messages = SaidMessages(piece, CONTROL)
    prompt = tokens("<hi<bot:")
    messages.remember(prompt, len(prompt))
    messages.remember([*prompt, *tokens("<AB")], len(prompt))
    assert repr(messages) == "SaidMessages(0)"
