"""An agent that calls tools: steps, interruptions, hand-off, on a model that writes what the test says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from host.job.agent import VoiceAgent
from host.job.chat_context import AgentHandoff, ChatMessage
from host.job.tool_text import FunctionCall, FunctionCallOutput
from host.job.tools import RunContext, StopResponse, ToolError, function_tool
from tests.host.job.fakes import SAMPLES_PER_CHAR, FakeGeneration, until
from tests.host.job.test_agent import asked, listen, listens
from tests.host.job.test_session import Talk, talking


def calls(generation: FakeGeneration, name: str, **arguments: Any) -> None:
    """The model calls a tool."""
    called = json.dumps({"name": name, "arguments": arguments})
    generation.write("<tool_call>\n")
    generation.write(f"{called}\n</tool_call>")
    generation.finish()


async def step(talk: Talk, number: int) -> FakeGeneration:
    """The model's ``number``th request, from 1."""
    await until(lambda: len(talk.inference.generations) >= number)
    return talk.inference.generations[number - 1]


def kinds(talk: Talk) -> list[str]:
    return [
        f"{item.role}: {item.content}" if isinstance(item, ChatMessage) else item.type
        for item in talk.session.history.items
    ]


class Desk(VoiceAgent):
    """Opening hours, and bookings that take their time."""

    def __init__(self, **settings: Any) -> None:
        super().__init__("You answer for a museum.", **settings)
        self.booked: list[int] = []
        self.may_go_on = asyncio.Event()

    @function_tool
    async def hours(self, day: str) -> str:
        """When the museum is open."""
        if day == "never":
            raise ToolError("There is no such day.")
        return f"On {day} from nine to six."

    @function_tool(filler="One moment.", filler_after_ms=0)
    async def book(self, context: RunContext[Any], people: int) -> str:
        """Book a tour."""
        await self.may_go_on.wait()
        self.booked.append(people)
        context.userdata["people"] = people
        return "Booked."

    @function_tool
    async def hang_up(self) -> None:
        """Nothing more is to be said."""
        raise StopResponse

    @function_tool
    async def to_guide(self) -> VoiceAgent:
        """Hand over to a guide."""
        return Guide()

    @function_tool
    async def to_guide_politely(self) -> tuple[VoiceAgent, str]:
        """Hand over to a guide, with a word."""
        return Guide(), "The guide takes over."


class Guide(VoiceAgent):
    """Greets, and says what was said before."""

    def __init__(self) -> None:
        super().__init__("You guide through the museum.", greeting="Welcome!")

    async def on_enter(self) -> None:
        self.session.userdata["guide"] = self


async def test_the_model_calls_a_tool_and_answers_with_what_came_of_it() -> None:
    async with talking(agent=Desk()) as talk:
        events = listen(talk, "function_tools_executed", "conversation_item_added")
        first = await talk.asks("When are you open on Monday?")
        calls(first, "hours", day="monday")
        second = await step(talk, 2)
        assert second.messages[: len(first.messages)] == first.messages, "the prompt only grows"
        assert [role for role, _ in asked(second)] == ["system", "user", "assistant", "user"]
        assert "On monday from nine to six." in asked(second)[-1][1]
        assert "hours" in asked(first)[0][1]
        second.write("From nine to six.")
        second.finish()
        await listens(talk)
        assert kinds(talk) == [
            "user: When are you open on Monday?",
            "function_call",
            "function_call_output",
            "assistant: From nine to six.",
        ]
        assert talk.inference.phrases[0].text == "From nine to six.", "nothing of a call is said"
        question, executed, answer = events
        assert question.item.content == "When are you open on Monday?"
        ((call, output),) = executed.zipped()
        assert (call.name, json.loads(call.arguments)) == ("hours", {"day": "monday"})
        assert output.output == "On monday from nine to six."
        assert answer.item.content == "From nine to six."
        third = await talk.asks("Thanks.")
        assert third.messages[: len(second.messages)] == second.messages
        assert asked(third)[-2:] == [("assistant", "From nine to six."), ("user", "Thanks.")]


async def test_what_went_wrong_in_a_tool_is_for_the_model_to_say() -> None:
    async with talking(agent=Desk()) as talk:
        calls(await talk.asks("And never?"), "hours", day="never")
        second = await step(talk, 2)
        assert "There is no such day." in asked(second)[-1][1]
        output = talk.session.history.items[-1]
        assert isinstance(output, FunctionCallOutput)
        assert output.is_error


async def test_tools_are_called_so_often_and_then_there_is_an_answer() -> None:
    async with talking(agent=Desk(max_tool_steps=2)) as talk:
        calls(await talk.asks("When?"), "hours", day="monday")
        calls(await step(talk, 2), "hours", day="tuesday")
        last = await step(talk, 3)
        grammars = [str(generation.settings["grammar"]) for generation in talk.inference.generations]
        assert ["tool_call" in grammar for grammar in grammars] == [True, True, False]
        last.write("From nine to six.")
        last.finish()
        await listens(talk)
        assert kinds(talk)[1:5] == ["function_call", "function_call_output"] * 2


async def test_a_tool_that_must_be_called_is_and_then_the_model_may_choose() -> None:
    async with talking(agent=Desk()) as talk:
        talk.session.generate_reply(user_input="Monday?", tool_choice="hours", instructions="Look it up.")
        first = await step(talk, 1)
        assert "to_guide" not in str(first.settings["grammar"])
        assert asked(first)[-1] == ("user", "Monday? Look it up.")
        calls(first, "hours", day="monday")
        second = await step(talk, 2)
        assert "to_guide" in str(second.settings["grammar"])
        assert asked(second)[1] == ("user", "Monday?")
        assert asked(second)[-1][1].endswith("Look it up.")


async def test_something_is_said_while_a_slow_tool_runs() -> None:
    agent = Desk()
    async with talking(agent=agent, userdata={}) as talk:
        calls(await talk.asks("A tour for three."), "book", people=3)
        await until(lambda: talk.inference.phrases)
        assert talk.inference.phrases[0].text == "One moment."
        assert len(talk.inference.generations) == 1
        agent.may_go_on.set()
        second = await step(talk, 2)
        second.write("It is booked.")
        second.finish()
        await listens(talk)
        assert talk.session.userdata == {"people": 3}
        assert kinds(talk)[-1] == "assistant: One moment.\nIt is booked."
        (report,) = talk.reports
        assert report.reply.split() == ["One", "moment.", "It", "is", "booked."]


async def test_who_goes_on_while_a_tool_runs_begins_a_turn_of_their_own_and_the_tool_ends() -> None:
    agent = Desk()
    async with talking(agent=agent, userdata={}) as talk:
        executed = listen(talk, "function_tools_executed")
        calls(await talk.asks("A tour for three."), "book", people=3)
        await until(lambda: talk.inference.phrases)
        await talk.starts()
        await talk.stops("At eight please.")
        await until(lambda: len(talk.inference.generations) == 2)
        assert kinds(talk)[0] == "user: A tour for three."
        assert kinds(talk)[-1] == "user: At eight please."
        assert agent.booked == []
        agent.may_go_on.set()
        await until(lambda: executed)
        assert agent.booked == [3], "half a booking is worse than one that is not wanted"
        answer = talk.inference.generations[1]
        answer.write("At eight.")
        answer.finish()
        await listens(talk)
        last = await talk.asks("Thanks.")
        assert "Booked." in " ".join(content for _, content in asked(last))


async def test_a_cough_while_a_tool_runs_changes_nothing() -> None:
    agent = Desk()
    async with talking(agent=agent, userdata={}) as talk:
        calls(await talk.asks("A tour for three."), "book", people=3)
        resumed = listen(talk, "agent_false_interruption")
        await until(lambda: talk.room.queue)
        await talk.hears(3 * SAMPLES_PER_CHAR)
        await talk.starts()
        await talk.stops("")
        agent.may_go_on.set()
        second = await step(talk, 2)
        second.write("It is booked.")
        second.finish()
        await listens(talk)
        assert agent.booked == [3]
        (report,) = talk.reports
        assert report.reply.split()[-3:] == ["It", "is", "booked."]
        assert not report.interrupted
        assert [event.resumed for event in resumed] == [True]


@pytest.mark.parametrize("heard", [0, 3])
async def test_a_restart_of_inference_while_a_tool_runs_does_not_call_it_again(heard: int) -> None:
    agent = Desk()
    async with talking(agent=agent, userdata={}) as talk:
        calls(await talk.asks("A tour for three."), "book", people=3)
        await until(lambda: talk.room.queue)
        if heard:
            await talk.hears(heard * SAMPLES_PER_CHAR)
        talk.inference.go_away()
        await until(lambda: talk.outages)
        talk.inference.come_back()
        agent.may_go_on.set()
        second = await step(talk, 2)
        assert "Booked." in asked(second)[-1][1]
        second.write("It is booked.")
        second.finish()
        await listens(talk)
        assert agent.booked == [3]
        assert talk.inference.phrases[-1].text == "It is booked."


async def test_a_tool_may_end_the_answer() -> None:
    async with talking(agent=Desk()) as talk:
        calls(await talk.asks("Bye."), "hang_up")
        await until(lambda: talk.reports)
        await listens(talk)
        assert len(talk.inference.generations) == 1
        assert kinds(talk) == ["user: Bye.", "function_call", "function_call_output"]


async def test_a_tool_hands_over_to_another_agent() -> None:
    agent = Desk()
    left: list[VoiceAgent] = []

    async def on_exit() -> None:
        left.append(talk.session.current_agent)

    agent.on_exit = on_exit  # type: ignore[method-assign]
    async with talking(agent=agent, userdata={}) as talk:
        added = listen(talk, "conversation_item_added")
        calls(await talk.asks("A guide, please."), "to_guide")
        await until(lambda: "guide" in talk.session.userdata)
        guide = talk.session.userdata["guide"]
        assert talk.session.current_agent is guide
        assert left == [guide]
        await listens(talk)
        assert [phrase.text for phrase in talk.inference.phrases] == ["Welcome!"]
        assert len(talk.inference.generations) == 1, "the old agent says nothing more"
        (handoff,) = [item for item in talk.session.history.items if isinstance(item, AgentHandoff)]
        assert (handoff.old_agent, handoff.new_agent) == ("Desk", "Guide")
        assert handoff in [event.item for event in added]
        # Its memory is its own.
        second = await talk.asks("Hello?")
        assert asked(second) == [
            ("system", "You guide through the museum."),
            ("assistant", "Welcome!"),
            ("user", "Hello?"),
        ]
        assert kinds(talk)[0] == "user: A guide, please."
        assert [item.type for item in agent.chat_ctx.items] == ["message", "function_call", "function_call_output"]


async def test_the_old_agent_may_have_the_last_word() -> None:
    async with talking(agent=Desk(), userdata={}) as talk:
        calls(await talk.asks("A guide, please."), "to_guide_politely")
        second = await step(talk, 2)
        assert asked(second)[0][1].startswith("You answer for a museum.")
        assert "The guide takes over." in asked(second)[-1][1]
        assert "tool_call" not in str(second.settings["grammar"])
        second.write("I put you through.")
        second.finish()
        await listens(talk)
        assert [phrase.text for phrase in talk.inference.phrases] == ["I put you through.", "Welcome!"]


async def test_the_tools_of_an_agent_change_from_the_next_answer_on() -> None:
    @function_tool
    async def weather(city: str) -> str:
        """What the weather is like."""
        return f"Rain in {city}."

    agent = VoiceAgent("Be brief.", tools=[weather])
    async with talking(agent=agent) as talk:
        first = await talk.asks("How is the weather?")
        assert "weather" in asked(first)[0][1]
        first.write("Fine.")
        first.finish()
        await listens(talk)
        await agent.update_tools([])
        second = await talk.asks("And now?")
        assert asked(second)[0] == ("system", "Be brief.")
        assert second.settings["grammar"] == ""


async def test_a_handed_over_session_is_held_as_the_new_agent_wants() -> None:
    async with talking(agent=VoiceAgent("Be brief.")) as talk:
        configured: list[str] = []
        talk.conversation.configure = lambda settings: configured.append(settings.language)  # type: ignore[method-assign]
        talk.session.update_agent(VoiceAgent("Sois bref.", language="fr", greeting="Bonjour!"))
        assert configured == ["fr"]
        await until(lambda: talk.room.queue)
        await listens(talk)
        assert kinds(talk) == ["agent_handoff", "assistant: Bonjour!"]


async def test_a_call_that_nobody_gave_to_the_model_is_an_item_like_any_other() -> None:
    agent = VoiceAgent("Be brief.")
    chat = agent.chat_ctx.copy()
    chat.items += [FunctionCall("hours", "{}", "1"), FunctionCallOutput("1", "hours", "nine to six")]
    await agent.update_chat_ctx(chat)
    async with talking(agent=agent) as talk:
        first = await talk.asks("When?")
        assert "nine to six" in asked(first)[-1][1]


@pytest.mark.parametrize("text", ["<", "<b>Bold</b> words.", "1 < 2, I think."])
async def test_without_tools_the_model_writes_what_it_likes(text: str) -> None:
    async with talking() as talk:
        generation = await talk.asks("Well?")
        generation.write(text)
        generation.finish()
        await until(lambda: talk.reports or talk.room.hear(320))
        assert generation.settings["grammar"] == ""
