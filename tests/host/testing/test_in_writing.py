"""Agents in writing with a scripted model: no process, no audio, everything else is the real thing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from host import testing
from host.job.agent import VoiceAgent
from host.job.chat_context import ChatContext, ChatMessage
from host.job.tools import RunContext, StopResponse, ToolError, function_tool
from host.testing import Call, ScriptedModel, ScriptEndedError
from inference.client import RequestFailedError


class Receptionist(VoiceAgent):
    """Books tables, and hands the bill to somebody else."""

    def __init__(self) -> None:
        super().__init__("You answer the telephone of a restaurant.", greeting="Good day.")
        self.booked: list[tuple[str, int]] = []

    @function_tool
    async def book(self, context: RunContext[dict[str, int]], day: str, people: int) -> str:
        """Book a table.

        Args:
            day: The day of the week.
            people: How many come.
        """
        if people > 8:
            raise ToolError("eight at most")
        self.booked.append((day, people))
        context.userdata["bookings"] = context.userdata.get("bookings", 0) + 1
        return f"a table for {people} on {day}"

    @function_tool
    async def manager(self) -> tuple[VoiceAgent, str]:
        """Hand over to the manager."""
        return Manager(), "the manager comes"

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        if new_message.content == "(coughs)":
            raise StopResponse
        if new_message.content == "Break!":
            raise ZeroDivisionError("on purpose")
        turn_ctx.add_message(role="system", content="Today is Monday.")


class Manager(VoiceAgent):
    def __init__(self) -> None:
        super().__init__("You are the manager.")

    async def on_enter(self) -> None:
        self.session.generate_reply(instructions="Introduce yourself.")


async def test_the_opening() -> None:
    async with testing.session(Receptionist(), model=ScriptedModel()) as session:
        session.opening.expect.next_event().is_message(role="assistant", text="Good day.")
        session.opening.expect.no_more_events()


async def test_an_answer() -> None:
    model = ScriptedModel("We open at nine.")
    async with testing.session(Receptionist(), model=model) as session:
        result = await session.run(user_input="When do you open?")
        result.expect.next_event().is_message(role="assistant", text="We open at nine.")
        result.expect.no_more_events()
        assert result.reply == "We open at nine."
        assert (result.turn.transcript, result.turn.reply) == ("When do you open?", "We open at nine.")
        assert [(message.role, message.content) for message in session.history.messages()] == [
            ("assistant", "Good day."),
            ("user", "When do you open?"),
            ("assistant", "We open at nine."),
        ]
    (asked,) = model.asked
    assert asked[0].role == "system"
    assert asked[0].content.startswith("You answer the telephone of a restaurant.")
    # What the hook added for this answer is there, too.
    assert "Today is Monday." in " ".join(message.content for message in asked)


async def test_a_tool() -> None:
    agent = Receptionist()
    model = ScriptedModel(Call("book", day="friday", people=4), "You have a table on Friday.")
    async with testing.session(agent, model=model, userdata={}) as session:
        result = await session.run(user_input="A table for four on Friday, please.")
        result.expect.next_event().is_function_call(name="book", arguments={"day": "friday", "people": 4})
        result.expect.next_event().is_function_call_output(output="a table for 4 on friday", is_error=False)
        result.expect.next_event().is_message(contains="Friday")
        result.expect.no_more_events()
        assert session.userdata == {"bookings": 1}
    assert agent.booked == [("friday", 4)]
    assert "a table for 4 on friday" in model.asked[1][-1].content


async def test_what_a_tool_refuses_goes_to_the_model() -> None:
    model = ScriptedModel(Call("book", day="friday", people=40), "I am sorry, eight at most.")
    async with testing.session(Receptionist(), model=model, userdata={}) as session:
        result = await session.run(user_input="A table for forty!")
        result.expect.contains_function_call_output(is_error=True, contains="eight at most")
        result.expect[-1].is_message(contains="sorry")


async def test_a_hand_off() -> None:
    model = ScriptedModel(Call("manager"), "One moment.", "I am the manager.", "Of course.")
    async with testing.session(Receptionist(), model=model) as session:
        result = await session.run(user_input="The manager, please.")
        result.expect.contains_function_call(name="manager")
        result.expect.contains_agent_handoff(new_agent_type=Manager)
        result.expect[-1].is_message(text="I am the manager.")
        assert isinstance(session.current_agent, Manager)
        result = await session.run(user_input="May I complain?")
        result.expect.next_event().is_message(text="Of course.")
        result.expect.no_more_events()
    assert model.asked[-1][0].content.startswith("You are the manager.")


async def test_a_turn_that_is_not_answered() -> None:
    async with testing.session(Receptionist(), model=ScriptedModel()) as session:
        result = await session.run(user_input="(coughs)")
        result.expect.no_more_events()


async def test_what_fails_in_the_agent_fails_the_test() -> None:
    async with testing.session(Receptionist(), model=ScriptedModel(otherwise="Hm.")) as session:
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            await session.run(user_input="Break!")
        result = await session.run(user_input="Break!", may_fail=True)
        assert [type(error) for error in result.errors] == [ZeroDivisionError]
        result.expect.next_event().is_message(text="Hm.")


async def test_a_model_that_fails() -> None:
    model = ScriptedModel(RequestFailedError("overloaded", "too much to do"), "Better now.")
    async with testing.session(Receptionist(), model=model) as session:
        result = await session.run(user_input="Hello?", may_fail=True)
        assert [type(error) for error in result.errors] == [RequestFailedError]
        result.expect.no_more_events()
        result = await session.run(user_input="Hello?")
        assert result.reply == "Better now."


async def test_a_script_that_has_ended() -> None:
    async with testing.session(Receptionist(), model=ScriptedModel("One.")) as session:
        await session.run(user_input="First?")
        with pytest.raises(ScriptEndedError, match=r"asked 2 times(.*\n)*.*user: .*Second\?"):
            await session.run(user_input="Second?")


async def test_tools_that_are_mocked() -> None:
    agent = Receptionist()
    model = ScriptedModel(
        Call("book", day="friday", people=4), "Done.", Call("book", day="friday", people=5), "Sorry.", otherwise="Yes."
    )

    def full(day: str) -> str:
        return f"{day} is full"

    async with testing.session(agent, model=model, userdata={}) as session:
        with session.mock_tools({"book": full}):
            result = await session.run(user_input="A table for four on Friday, please.")
            result.expect.contains_function_call_output(output="friday is full", is_error=False)
        assert agent.booked == []
        with session.mock_tools({"book": full}, agent=Manager):
            await session.run(user_input="For five?")
        assert agent.booked == [("friday", 5)]


async def test_tools_that_are_mocked_as_in_livekit() -> None:
    model = ScriptedModel(Call("book", day="friday", people=4), "Done.", Call("book", day="friday", people=5), "Done.")
    agent = Receptionist()
    async with testing.session(agent, model=model, userdata={}) as session:
        with testing.mock_tools(Receptionist, {"book": lambda: "mocked"}), testing.mock_tools(Manager, {"book": int}):
            result = await session.run(user_input="For four?")
            result.expect.contains_function_call_output(output="mocked")
        await session.run(user_input="For five?")
    assert agent.booked == [("friday", 5)]


async def test_a_mock_that_fails_and_one_that_waits() -> None:
    model = ScriptedModel(Call("book", day="friday", people=4), "Sorry.", Call("book", day="friday", people=5), "Done.")

    def broken(**_: Any) -> str:
        raise ToolError("the computer is down")

    async def slow(context: RunContext[Any], people: int) -> str:
        await asyncio.sleep(0.01)
        return f"{people} for {context.session.userdata}"

    async with testing.session(Receptionist(), model=model, userdata="Ann") as session:
        with session.mock_tools({"book": broken}):
            result = await session.run(user_input="A table?")
        result.expect.contains_function_call_output(is_error=True, contains="the computer is down")
        with session.mock_tools({"book": slow}):
            result = await session.run(user_input="And now?")
        result.expect.contains_function_call_output(output="5 for Ann")


async def test_a_script_may_look_at_what_it_is_asked() -> None:
    def answer(messages: Any) -> str:
        return f"You asked: {messages[-1].content}"

    async def slowly(messages: Any) -> AsyncIterator[str]:
        for word in ("In ", "pieces."):
            await asyncio.sleep(0)
            yield word

    async with testing.session(VoiceAgent("Be brief."), model=ScriptedModel(answer, slowly)) as session:
        assert (await session.run(user_input="Why?")).reply == "You asked: Why?"
        assert (await session.run(user_input="How?")).reply == "In pieces."


async def test_several_calls_in_one_step() -> None:
    model = ScriptedModel(
        [Call("book", day="friday", people=2), Call("book", day="sunday", people=3)], "Both are booked."
    )
    agent = Receptionist()
    async with testing.session(agent, model=model, userdata={}) as session:
        result = await session.run(user_input="Friday for two, and Sunday for three.")
        result.expect.contains_function_call(arguments={"day": "friday"})
        result.expect.contains_function_call(arguments={"day": "sunday"})
        result.expect[-1].is_message(text="Both are booked.")
    assert sorted(agent.booked) == [("friday", 2), ("sunday", 3)]


async def test_what_the_session_can_do_a_test_can_do() -> None:
    async with testing.session(VoiceAgent("Be brief."), model=ScriptedModel("I wait.")) as session:
        handle = await session.session.say("By the way.")
        assert handle.said == "By the way."
        handle = session.session.generate_reply(instructions="Say that you wait.")
        assert (await handle).said == "I wait."


async def test_what_is_no_turn_is_refused() -> None:
    async with testing.session(VoiceAgent("Be brief."), model=ScriptedModel()) as session:
        with pytest.raises(ValueError, match="a turn is one of"):
            await session.run()
        with pytest.raises(ValueError, match="a turn is one of"):
            await session.run(user_input="Hello", speech="Hello")
        for wrong in ({"speech": "Hello"}, {"audio": testing.tone(1.0)}, {"user_input": "Hello", "until_heard_s": 1.0}):
            with pytest.raises(RuntimeError, match="this session is in writing"):
                await session.run(**wrong)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="this session is in writing"):
            await session.wait(1.0)


async def test_a_session_that_is_over() -> None:
    async with testing.session(VoiceAgent("Be brief."), model=ScriptedModel("Bye.")) as session:
        await session.session.aclose("enough")
        with pytest.raises(RuntimeError, match="the session is over: enough"):
            await session.run(user_input="Are you there?")


async def test_an_agent_that_leaves() -> None:
    left = []

    class Polite(VoiceAgent):
        async def on_exit(self) -> None:
            left.append(self)

    agent = Polite("Be brief.")
    async with testing.session(agent, model=ScriptedModel()):
        assert left == []
    assert left == [agent]


async def test_an_opening_that_fails() -> None:
    class Broken(VoiceAgent):
        async def on_enter(self) -> None:
            raise LookupError("no such table")

    with pytest.raises(LookupError, match="no such table"):
        async with testing.session(Broken("Be brief."), model=ScriptedModel()):
            raise AssertionError("it has begun")
