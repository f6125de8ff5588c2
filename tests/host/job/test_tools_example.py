"""The restaurant of the examples, in writing: with a script for a model, and with the default one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from host import testing
from host.job.functions import load_function
from host.job.tool_text import FunctionCall
from host.testing import Call, ScriptedModel

EXAMPLE = Path(__file__).parents[3] / "examples" / "restaurant.py"


def restaurant(**settings: bool) -> Any:
    return load_function(f"{EXAMPLE}:Restaurant")(**settings)


def only_grows(model: ScriptedModel) -> bool:
    """Whether each prompt begins with the one before it, so that the KV cache is kept."""
    prompts = ["".join(f"<{message.role}>{message.content}" for message in asked) for asked in model.asked]
    return all(later.startswith(earlier) for earlier, later in itertools.pairwise(prompts))


async def test_it_asks_for_what_was_not_said() -> None:
    model = ScriptedModel("We are by the sea.", Call("book_table", day="friday", people=4))
    book: list[tuple[str, int]] = []
    async with testing.session(restaurant(), model=model, userdata=book) as session:
        assert (await session.run(user_input="Where are you?")).reply == "We are by the sea."
        assert (await session.run(user_input="I would like to book.")).reply == "For which day, please?"
        result = await session.run(user_input="Friday.")
        assert result.reply == "For how many people? We have tables for up to eight."
        assert len(model.asked) == 1
        result = await session.run(user_input="Four of us.")
        result.expect.next_event().is_function_call(name="book_table", arguments={"day": "friday", "people": 4})
        result.expect.next_event().is_function_call_output(is_error=False)
        result.expect.next_event().is_message(text="A table for 4 on Friday is booked.")
        result.expect.no_more_events()
    assert book == [("friday", 4)]
    assert only_grows(model)


async def test_it_says_what_cannot_be() -> None:
    model = ScriptedModel(Call("book_table", day="monday", people=2), Call("opening_hours", day="monday"))
    async with testing.session(restaurant(), model=model, userdata=[]) as session:
        result = await session.run(user_input="A table for two on Monday.")
        result.expect.contains_function_call_output(is_error=True)
        assert result.reply == "On Mondays we are closed."
        result = await session.run(user_input="Are you open on Monday?")
        assert result.reply == "On Mondays we are closed."
        assert session.userdata == []


async def test_a_model_that_can_choose_does() -> None:
    model = ScriptedModel(Call("opening_hours", day="sunday"), "Until five on Sunday.", "You are welcome.")
    async with testing.session(restaurant(model_chooses=True), model=model, userdata=[]) as session:
        result = await session.run(user_input="How late can we come on Sunday?")
        result.expect.contains_function_call(name="opening_hours", arguments={"day": "sunday"})
        assert result.reply == "Until five on Sunday."
        assert (await session.run(user_input="When I need a table, I call.")).reply == "You are welcome."
    assert only_grows(model)


@pytest.mark.models
@pytest.mark.processes
async def test_the_default_model_looks_up_and_books() -> None:
    book: list[tuple[str, int]] = []
    async with testing.session(restaurant(), engines="models", userdata=book) as session:
        result = await session.run(user_input="When are you open on Friday?")
        result.expect.contains_function_call(name="opening_hours", arguments={"day": "friday"})
        assert result.reply == "On Fridays we are open from noon to eleven in the evening."
        result = await session.run(user_input="Please book a table for four people on Friday.")
        result.expect.contains_function_call(name="book_table", arguments={"day": "friday", "people": 4})
        assert result.reply == "A table for 4 on Friday is booked."
        # Two days were named: the model chooses one of them, and nothing else.
        await session.run(user_input="And when are you open on Saturday or Sunday?")
        calls = [item for item in session.history.items if isinstance(item, FunctionCall)]
        assert calls[2].arguments in ('{"day": "saturday"}', '{"day": "sunday"}')
        # Without a tool it answers in words.
        result = await session.run(user_input="Thank you very much!")
        assert [event.type for event in result.events] == ["message"]
        assert "<" not in result.reply
    assert book == [("friday", 4)]
