"""The scripted model by itself: what it gives back when it was asked in vain, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from host.job.tool_text import CallParser
from host.testing import Call, ScriptedModel
from host.testing.scripted import Mocks, ScriptedGeneration
from inference.client import RequestFailedError
from inference.wire.messages import ChatMessage

HELLO = (ChatMessage("user", "Hello"),)


async def text(generation: ScriptedGeneration) -> str:
    return "".join([piece async for piece in generation])


async def test_one_after_the_other_and_then_otherwise() -> None:
    model = ScriptedModel("One.", otherwise="And so on.")
    model.add("Two.")
    answers = [await text(model.generate(HELLO)) for _ in range(4)]
    assert answers == ["One.", "Two.", "And so on.", "And so on."]
    assert model.asked == [HELLO] * 4


async def test_it_comes_in_pieces() -> None:
    generation = ScriptedModel("We open  at nine.").generate(HELLO)
    assert [piece async for piece in generation] == ["We", " open", " ", " at", " nine."]
    assert generation.done is not None
    assert (generation.done.finish, generation.done.completion_tokens) == ("stop", 5)


async def test_reading_beforehand_takes_nothing() -> None:
    model = ScriptedModel("One.")
    prefill = model.generate(HELLO, max_tokens=0, speculative=True)
    assert await text(prefill) == ""
    assert prefill.done is not None
    assert model.asked == []
    assert await text(model.generate(HELLO)) == "One."


async def test_a_guess_in_vain_takes_nothing() -> None:
    model = ScriptedModel("One two three.", "Four.")
    guess = model.generate(HELLO, speculative=True)
    pieces = aiter(guess)
    assert await anext(pieces) == "One"
    guess.cancel()
    with pytest.raises(RequestFailedError, match="cancelled"):
        await anext(pieces)
    assert await text(model.generate(HELLO)) == "One two three."
    assert model.asked == [HELLO]


@pytest.mark.parametrize("promoted", [True, False])
async def test_what_was_wanted_is_taken(promoted: bool) -> None:
    model = ScriptedModel("One two three.", "Four.")
    wanted = model.generate(HELLO, speculative=promoted)
    pieces = aiter(wanted)
    await anext(pieces)
    wanted.promote()
    wanted.cancel()
    with pytest.raises(RequestFailedError, match="cancelled"):
        await anext(pieces)
    assert await text(model.generate(HELLO)) == "Four."


async def test_how_sure_it_is() -> None:
    def whether(said: str) -> float:
        return 0.9 if said.endswith("?") else 0.1

    assert ScriptedModel().generate(HELLO).end_of_turn.result() == 1.0
    assert ScriptedModel(end_of_turn=-1.0).generate(HELLO).end_of_turn.result() == -1.0
    model = ScriptedModel(end_of_turn=whether)
    assert model.generate(HELLO).end_of_turn.result() == 0.1
    assert model.generate((*HELLO, ChatMessage("user", "Why?"))).end_of_turn.result() == 0.9


async def test_calls_are_written_as_a_model_writes_them() -> None:
    calls = [Call("book", day="friday", people=2), Call("close")]
    written = await text(ScriptedModel(calls).generate(HELLO))
    parser = CallParser()
    assert parser.push(written) == ""
    assert [(call.name, call.arguments) for call in parser.finish()] == [
        ("book", '{"day": "friday", "people": 2}'),
        ("close", "{}"),
    ]
    assert calls[0] == Call("book", day="friday", people=2) != Call("book")
    assert repr(calls[0]) == "Call('book', day='friday', people=2)"


async def test_functions() -> None:
    async def later(messages: Sequence[ChatMessage]) -> str:
        return messages[0].content

    async def pieces(messages: Sequence[ChatMessage]) -> AsyncIterator[str]:
        yield "a"
        yield "b"

    def failing(messages: Sequence[ChatMessage]) -> Any:
        return RequestFailedError("overloaded", "too much")

    model = ScriptedModel(later, pieces, failing, lambda _: 7)
    assert await text(model.generate(HELLO)) == "Hello"
    assert await text(model.generate(HELLO)) == "ab"
    with pytest.raises(RequestFailedError, match="too much"):
        await text(model.generate(HELLO))
    with pytest.raises(TypeError, match="not 7"):
        await text(model.generate(HELLO))


async def test_no_answer_is_left() -> None:
    model = ScriptedModel()
    with pytest.raises(RequestFailedError, match="no answer left"):
        await text(model.generate(HELLO))
    assert model.failure is not None
    assert "user: Hello" in str(model.failure)


def test_mocks_are_those_of_the_agent_that_has_the_word() -> None:
    agent: object = 1
    mocks = Mocks(lambda: agent)
    remove = mocks.add(int, {"book": lambda: "int"})
    mocks.add(object, {"close": lambda: "object"})
    assert (len(mocks), set(mocks)) == (2, {"book", "close"})
    assert mocks["book"](day="friday") == "int"
    agent = "one"
    assert "book" not in mocks
    assert mocks.get("close") is not None
    agent = 1
    remove()
    assert mocks.get("book") is None
