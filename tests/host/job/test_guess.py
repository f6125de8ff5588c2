"""Answers that are begun before the caller's turn is over: what they may do, and when they are of use."""

from __future__ import annotations

import asyncio
from typing import Any

from host.job.agent import VoiceAgent
from host.job.chat_context import ChatContext, ChatMessage
from host.job.reply import AnsweredTurn, Reply
from host.job.tools import function_tool
from inference.client import RequestFailedError
from tests.host.job.fakes import FakeGeneration, until
from tests.host.job.test_agent import asked, listen
from tests.host.job.test_agent_tools import calls
from tests.host.job.test_session import Talk, talking


class Speaker:
    """Reads a reply as it is written, as who speaks it would."""

    def __init__(self, reply: Reply) -> None:
        self.said: list[str] = []
        self.reply = reply
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for text in self.reply.begin():
            self.said.append(text)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


def turn(text: str) -> AnsweredTurn:
    return AnsweredTurn(1, text, audio_s=1.0, last_voiced=0.0, decided=0.5, committed=0.5)


async def guessing(talk: Talk, text: str, ticket: int = 7) -> tuple[Speaker, FakeGeneration]:
    reply = talk.dialogue.guess(ticket, text)
    assert reply is not None
    speaker = Speaker(reply)
    await until(lambda: talk.inference.generations)
    return speaker, talk.inference.generations[-1]


async def test_a_guess_commits_nothing_until_the_turn_is_over_and_then_goes_on() -> None:
    async with talking() as talk:
        created = listen(talk, "speech_created", "conversation_item_added")
        speaker, generation = await guessing(talk, "What is the date?")
        assert generation.settings["speculative"] is True
        assert asked(generation) == [("system", "Be brief."), ("user", "What is the date?")]
        generation.write("Mon")
        await until(lambda: speaker.said)
        assert talk.said() == []
        assert created == []
        assert talk.session.is_idle
        answered = turn("What is the date?")
        assert talk.dialogue.answer(answered, speaker.reply) is speaker.reply
        assert generation.promoted
        assert speaker.reply.turn is answered
        assert answered.asked > 0 or answered.first_text is None
        assert talk.said() == [("user", "What is the date?")]
        assert not talk.session.is_idle
        generation.write("day.")
        generation.finish()
        await speaker.task
        assert speaker.said == ["Mon", "day."]
        assert len(talk.inference.generations) == 1
        speaker.reply.shown = speaker.reply.said = "Monday."
        talk.dialogue.begun(speaker.reply)
        talk.dialogue.heard(speaker.reply, over=True)
        assert talk.said() == [("user", "What is the date?"), ("assistant", "Monday.")]
        assert talk.session.is_idle


async def test_the_probability_that_the_turn_is_over_comes_with_a_guess() -> None:
    async with talking() as talk:
        told: list[tuple[int, float]] = []
        talk.conversation.end_of_turn = lambda ticket, probability: told.append((ticket, probability))  # type: ignore[method-assign]
        talk.dialogue.prepare(6, "What is")
        talk.inference.prefills[-1].end_of_turn.set_result(0.01)
        await until(lambda: told)
        _, generation = await guessing(talk, "What is the date?")
        assert generation.settings["end_of_turn"] is True
        generation.end_of_turn.set_result(0.9)
        await until(lambda: len(told) == 2)
        assert told == [(6, 0.01), (7, 0.9)]
        talk.dialogue.drop_preparation()


async def test_what_was_prepared_for_a_caller_who_went_on_tells_nothing() -> None:
    async with talking() as talk:
        told: list[float] = []
        talk.conversation.end_of_turn = lambda ticket, probability: told.append(probability)  # type: ignore[method-assign]
        talk.dialogue.prepare(6, "What is")
        prefill = talk.inference.prefills[-1]
        talk.dialogue.drop_preparation()
        prefill.end_of_turn.set_result(0.5)
        _, generation = await guessing(talk, "What is the")
        talk.dialogue.drop_preparation()
        assert generation.cancelled
        generation.end_of_turn.set_result(0.5)
        for _ in range(5):
            await asyncio.sleep(0)
        assert told == []
        assert talk.said() == []


async def test_a_guess_at_other_words_is_in_vain() -> None:
    async with talking() as talk:
        speaker, generation = await guessing(talk, "What is")
        reply = talk.dialogue.answer(turn("What is the date?"), speaker.reply)
        assert reply is not speaker.reply
        assert generation.cancelled
        assert not generation.promoted
        assert speaker.reply.over.is_set()
        await speaker.stop()
        other = Speaker(reply)
        await until(lambda: len(talk.inference.generations) == 2)
        assert asked(talk.inference.generations[1])[-1] == ("user", "What is the date?")
        assert talk.inference.generations[1].settings["speculative"] is False
        await other.stop()


async def test_a_guess_before_the_conversation_was_edited_is_in_vain() -> None:
    agent = VoiceAgent("Be brief.")
    async with talking(agent=agent) as talk:
        speaker, generation = await guessing(talk, "What is the date?")
        await agent.update_chat_ctx(ChatContext([ChatMessage("user", "It is the fifth.")]))
        reply = talk.dialogue.answer(turn("What is the date?"), speaker.reply)
        assert reply is not speaker.reply
        assert generation.cancelled
        await speaker.stop()


async def test_a_tool_is_called_only_when_the_turn_is_over() -> None:
    called: list[str] = []

    class Desk(VoiceAgent):
        @function_tool
        async def book(self, day: str) -> str:
            """Book a tour."""
            called.append(day)
            return "Booked."

    async with talking(agent=Desk("Be brief.")) as talk:
        speaker, generation = await guessing(talk, "A tour on Monday.")
        calls(generation, "book", day="monday")
        for _ in range(20):
            await asyncio.sleep(0)
        assert called == []
        assert len(talk.inference.generations) == 1
        talk.dialogue.answer(turn("A tour on Monday."), speaker.reply)
        await until(lambda: len(talk.inference.generations) == 2)
        assert called == ["monday"]
        assert talk.inference.generations[1].settings["speculative"] is False
        await speaker.stop()


async def test_nothing_is_guessed_where_the_agent_is_to_be_asked_first_or_something_is_to_be_said() -> None:
    class Hooked(VoiceAgent):
        async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
            """Whatever it does, it must be done first."""

    class Writer(VoiceAgent):
        def llm_node(self, *arguments: Any) -> Any:
            raise AssertionError("not asked")

    for agent in (Hooked("Be brief."), Writer("Be brief.")):
        async with talking(agent=agent) as talk:
            assert talk.dialogue.guess(1, "Hello?") is None
    async with talking() as talk:
        await talk.starts()
        talk.session.say("One moment.")
        assert talk.dialogue.guess(1, "Hello?") is None
        assert talk.inference.generations == []


async def test_a_guess_that_failed_is_no_answer() -> None:
    async with talking() as talk:
        speaker, generation = await guessing(talk, "What is the date?")
        generation.fail(RequestFailedError("overloaded", "too busy for guesses"))
        await asyncio.wait([speaker.task])
        assert isinstance(speaker.task.exception(), RequestFailedError)
        reply = talk.dialogue.answer(turn("What is the date?"), speaker.reply)
        assert reply is not speaker.reply
        other = Speaker(reply)
        await until(lambda: len(talk.inference.generations) == 2)
        await other.stop()


async def test_after_an_interruption_an_answer_may_be_begun_ahead() -> None:
    async with talking() as talk:
        first = await talk.asks("Tell me a story.")
        first.write("Once upon a time there was. And then")
        await talk.hears(9_000)
        await talk.starts()
        await until(lambda: first.cancelled)
        assert talk.dialogue.guess(7, "Stop.") is not None
        talk.dialogue.drop_preparation()
