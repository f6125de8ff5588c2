"""What an agent's author may rely on: hooks, speeches, instructions, the conversation's memory, events."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest

from host.job.agent import ModelSettings, Voice, VoiceAgent
from host.job.chat_context import ChatContext, ChatMessage
from host.job.events import EVENTS, Event, EventEmitter
from host.job.settings import SessionSettings
from host.job.tool_text import FunctionCall
from host.job.tools import FunctionTool, StopResponse
from inference.client import RequestFailedError
from tests.host.job.fakes import RATE, SAMPLES_PER_CHAR, FakeGeneration, until
from tests.host.job.test_session import Talk, talking


def asked(generation: FakeGeneration) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in generation.messages]


def listen(talk: Talk, *names: str) -> list[Any]:
    """Events of these names, as they come."""
    heard: list[Any] = []
    for name in names or EVENTS:
        talk.session.on(name, heard.append)
    return heard


async def answers(talk: Talk, question: str, answer: str) -> FakeGeneration:
    generation = await talk.asks(question)
    generation.write(answer)
    generation.finish()
    await talk.hears_everything()
    return generation


async def listens(talk: Talk) -> None:
    """Until everything was said."""
    async with asyncio.timeout(10):
        while not (talk.session.is_idle and talk.room.states[-1] == "listening"):
            talk.room.hear(320)
            await asyncio.sleep(0)


# --- hooks ---------------------------------------------------------------------------------------------


class Hooked(VoiceAgent):
    """Notes which hooks ran."""

    def __init__(self, name: str = "agent", **settings: Any) -> None:
        super().__init__(f"You are {name}.", **settings)
        self.name = name
        self.ran: list[str] = []

    async def on_enter(self) -> None:
        self.ran.append("enter")

    async def on_exit(self) -> None:
        self.ran.append("exit")


async def test_an_agent_enters_after_its_greeting_was_queued_and_exits_at_the_end() -> None:
    class Greeting(Hooked):
        async def on_enter(self) -> None:
            await super().on_enter()
            self.session.say("The call is recorded.")

    agent = Greeting(greeting="Hello!")
    with pytest.raises(RuntimeError, match="is in no session"):
        _ = agent.session
    async with talking(agent=agent) as talk:
        await until(lambda: talk.room.queue)
        await listens(talk)
        assert [phrase.text for phrase in talk.inference.phrases] == ["Hello!", "The call is recorded."]
        assert agent.session is talk.session
        assert agent.ran == ["enter"]
    assert agent.ran == ["enter", "exit"]


async def test_a_hook_that_fails_is_an_event_and_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(VoiceAgent):
        async def on_enter(self) -> None:
            raise ValueError("no table")

        async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
            raise KeyError("no customer")

    async with talking(agent=Broken("Be brief.")) as talk:
        errors = listen(talk, "error")
        await answers(talk, "Hello?", "Hi.")
        assert talk.said() == [("user", "Hello?"), ("assistant", "Hi.")]
    assert [type(event.error) for event in errors] == [KeyError]
    assert "no table" in caplog.text
    assert "no customer" in caplog.text


class Librarian(VoiceAgent):
    """Looks up what is asked for, corrects names, and does not answer a swear word."""

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        if "damn" in new_message.content:
            raise StopResponse
        new_message.content = new_message.content.replace("Tolstoi", "Tolstoy")
        turn_ctx.add_message(role="system", content="Tolstoy: shelf 7.")


async def test_what_a_hook_adds_holds_for_one_answer_and_what_it_edits_stays() -> None:
    async with talking(agent=Librarian("Be brief.")) as talk:
        first = await answers(talk, "Where is Tolstoi?", "On shelf 7.")
        assert asked(first) == [("system", "Be brief."), ("user", "Tolstoy: shelf 7. Where is Tolstoy?")]
        assert talk.said()[0] == ("user", "Where is Tolstoy?")
        second = await answers(talk, "Thanks.", "Bye.")
        assert asked(second)[1:] == [
            ("user", "Where is Tolstoy?"),
            ("assistant", "On shelf 7."),
            ("user", "Tolstoy: shelf 7. Thanks."),
        ]


async def test_a_hook_may_want_no_answer_and_the_turn_is_forgotten() -> None:
    async with talking(agent=Librarian("Be brief.")) as talk:
        added = listen(talk, "conversation_item_added")
        await talk.says("Oh damn.")
        await until(lambda: talk.reports)
        await until(lambda: talk.room.states[-1] == "listening")
        assert talk.inference.generations == []
        assert talk.said() == []
        assert added == []
        await answers(talk, "Hello?", "Hi.")
        assert [message.content for message in talk.inference.generations[0].messages][1:] == [
            "Tolstoy: shelf 7. Hello?"
        ]


async def test_the_caller_who_goes_on_while_a_hook_runs_takes_the_turn_back() -> None:
    class Slow(VoiceAgent):
        entered = 0
        cancelled = 0

        async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
            self.entered += 1
            if self.entered == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled += 1

    agent = Slow("Be brief.")
    async with talking(agent=agent) as talk:
        await talk.says("Tell me")
        await until(lambda: agent.entered)
        await talk.starts()
        await until(lambda: agent.cancelled)
        assert talk.said() == []
        await talk.stops("Tell me a story.")
        await until(lambda: talk.inference.generations)
        assert asked(talk.inference.generations[0]) == [("system", "Be brief."), ("user", "Tell me a story.")]


async def test_an_agent_belongs_to_one_session_at_a_time() -> None:
    agent = VoiceAgent("Be brief.")
    async with talking(agent=agent) as first:
        assert agent.session is first.session
    async with talking(agent=agent) as another:
        assert agent.session is another.session
        second = Talk(agent, SessionSettings(), 2048)
        with pytest.raises(ExceptionGroup) as raised:
            await second.session.hold()
        assert raised.group_contains(RuntimeError, match="is in another session")


# --- speeches --------------------------------------------------------------------------------------------


async def test_speeches_are_said_in_order_and_each_is_a_message() -> None:
    async with talking() as talk:
        over: list[str] = []
        handles = [talk.session.say(text) for text in ("One.", "Two.", "Three.")]
        for handle in handles:
            handle.add_done_callback(lambda done: over.append(done.said))
        assert talk.session.current_speech is handles[0]
        assert not talk.session.is_idle
        await listens(talk)
        assert over == ["One.", "Two.", "Three."]
        assert talk.said() == [("assistant", "One."), ("assistant", "Two."), ("assistant", "Three.")]
        assert all(handle.done() and not handle.interrupted for handle in handles)
        late: list[object] = []
        handles[0].add_done_callback(late.append)
        assert late == [handles[0]]
        assert (await handles[1]) is handles[1]


async def test_what_need_not_be_remembered_is_not() -> None:
    async with talking() as talk:
        handle = talk.session.say("Beep.", add_to_chat_ctx=False)
        await listens(talk)
        assert handle.said == "Beep."
        assert talk.said() == []


async def test_text_that_comes_bit_by_bit_is_said_as_it_comes() -> None:
    more = asyncio.Event()

    async def story() -> AsyncIterator[str]:
        yield "Once upon a time. "
        await more.wait()
        yield "The end."

    async with talking() as talk:
        handle = talk.session.say(story())
        await until(lambda: talk.inference.phrases)
        assert not handle.done()
        more.set()
        await listens(talk)
        assert handle.said == "Once upon a time. The end."


async def test_interrupt_is_silence_and_nothing_waits_any_more() -> None:
    async with talking() as talk:
        first, second = talk.session.say("One two three four."), talk.session.say("Five.")
        await talk.hears(4 * SAMPLES_PER_CHAR)
        await talk.session.interrupt()
        assert not talk.room.queue
        assert first.done()
        assert second.done()
        assert (first.said, second.said) == ("One", "")
        assert first.interrupted
        assert second.interrupted
        assert talk.said() == [("assistant", "One")]
        assert talk.session.history.messages()[0].interrupted
        await until(lambda: talk.room.states[-1] == "listening")
        assert len(talk.inference.phrases) == 1


async def test_a_speech_that_waits_can_be_called_off() -> None:
    async with talking() as talk:
        first, second, third = (talk.session.say(text) for text in ("One.", "Two.", "Three."))
        second.interrupt()
        assert second.done()
        await listens(talk)
        assert [phrase.text for phrase in talk.inference.phrases] == ["One.", "Three."]
        assert not first.interrupted
        assert third.said == "Three."


async def test_what_may_not_be_interrupted_goes_on() -> None:
    async with talking() as talk:
        notice = talk.session.say("This call is recorded.", allow_interruptions=False)
        await talk.hears(4 * SAMPLES_PER_CHAR)
        with pytest.raises(RuntimeError, match="force=True"):
            talk.session.interrupt()
        with pytest.raises(RuntimeError, match="force=True"):
            notice.interrupt()
        assert not notice.done()
        notice.interrupt(force=True)
        assert notice.done()
        assert notice.said == "This"


async def test_interrupting_an_answer_that_is_thought_about_leaves_the_question() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        await talk.session.interrupt()
        await until(lambda: generation.cancelled)
        await until(lambda: talk.room.states[-1] == "listening")
        assert talk.said() == [("user", "Tell me a story.")]
        (report,) = talk.reports
        assert report.interrupted
        again = await talk.asks("Hello?")
        assert asked(again)[1:] == [("user", "Tell me a story. Hello?")]


async def test_a_speech_before_the_session_is_said_when_it_begins() -> None:
    talk = Talk(VoiceAgent("Be brief.", greeting="Hello!"), SessionSettings(), 2048)
    saying, never = talk.session.say("The call is recorded."), talk.session.say("Never said.")
    never.interrupt()
    running = asyncio.create_task(talk.session.hold())
    await until(lambda: talk.room.queue)
    await listens(talk)
    assert saying.said == "The call is recorded."
    assert [phrase.text for phrase in talk.inference.phrases] == ["Hello!", "The call is recorded."]
    await talk.session.aclose()
    await running


# --- answers that the author asks for --------------------------------------------------------------------


async def test_instructions_for_one_answer_come_last_and_are_gone_afterwards() -> None:
    async with talking() as talk:
        first = await answers(talk, "Hello.", "Hi.")
        handle = talk.session.generate_reply(instructions="Ask for the name.")
        await until(lambda: len(talk.inference.generations) == 2)
        generation = talk.inference.generations[1]
        assert generation.messages[: len(first.messages)] == first.messages, "all of it was read before"
        assert asked(generation)[-2:] == [("assistant", "Hi."), ("user", "Ask for the name.")]
        generation.write("Who are you?")
        generation.finish()
        await listens(talk)
        assert handle.said == "Who are you?"
        last = await answers(talk, "Ann.", "Hi Ann.")
        assert asked(last)[1:] == [("user", "Hello."), ("assistant", "Hi. Who are you?"), ("user", "Ann.")]


async def test_what_is_given_as_the_callers_is_answered_and_remembered_in_order() -> None:
    async with talking() as talk:
        added = listen(talk, "conversation_item_added")
        talk.session.say("One.")
        talk.session.generate_reply(user_input="What comes then?", tool_choice="none")
        await until(lambda: talk.room.queue)
        assert talk.inference.generations == [], "one after the other"
        await until(lambda: talk.room.hear(320) or talk.inference.generations)
        assert asked(talk.inference.generations[0])[1:] == [("assistant", "One."), ("user", "What comes then?")]
        talk.inference.generations[0].write("Two.")
        talk.inference.generations[0].finish()
        await listens(talk)
        assert talk.said() == [("assistant", "One."), ("user", "What comes then?"), ("assistant", "Two.")]
        assert [event.item.content for event in added] == ["One.", "What comes then?", "Two."]
        # It was no turn of the caller's voice.
        assert talk.reports == []


async def test_the_caller_interrupts_what_the_author_asked_for() -> None:
    async with talking() as talk:
        handle = talk.session.generate_reply(instructions="Tell a story.")
        await until(lambda: talk.inference.generations)
        talk.inference.generations[0].write("Once upon a time there was. And then")
        await talk.hears(9 * SAMPLES_PER_CHAR)
        await talk.says("Stop.")
        assert (await asyncio.wait_for(handle, 10)).interrupted
        assert handle.said == "Once upon"
        await until(lambda: len(talk.inference.generations) == 2)
        assert asked(talk.inference.generations[1])[1:] == [("assistant", "Once upon"), ("user", "Stop.")]


async def test_a_choice_that_there_is_not_is_said_at_once() -> None:
    async with talking() as talk:
        with pytest.raises(ValueError, match="tool_choice is 'maybe', allowed: auto, none, required"):
            talk.session.generate_reply(tool_choice="maybe")
        with pytest.raises(ValueError, match="there is no tool"):
            talk.session.generate_reply(tool_choice="required")
        assert talk.session.is_idle


async def test_what_the_caller_types_interrupts_and_is_answered() -> None:
    async with talking() as talk:
        added = listen(talk, "conversation_item_added")
        reading = asyncio.create_task(talk.session.read(talk.room.text_input()))
        story = await talk.asks("Tell me a story.")
        story.write("Once upon a time there was. And then")
        await talk.hears(9 * SAMPLES_PER_CHAR)
        talk.room.typed.put_nowait(" A short one, please. ")
        talk.room.typed.put_nowait("  ")
        await until(lambda: len(talk.inference.generations) == 2)
        assert story.cancelled
        assert asked(talk.inference.generations[1])[1:] == [
            ("user", "Tell me a story."),
            ("assistant", "Once upon"),
            ("user", "A short one, please."),
        ]
        talk.inference.generations[1].write("Once.")
        talk.inference.generations[1].finish()
        await listens(talk)
        assert [event.item.content for event in added] == [message for _, message in talk.said()]
        # What must be heard is heard first.
        notice = talk.session.say("This call is recorded.", allow_interruptions=False)
        await until(lambda: talk.room.queue)
        talk.room.typed.put_nowait("Stop!")
        talk.room.typed.put_nowait(None)
        await reading
        assert not notice.done()
        await until(lambda: talk.room.hear(320) or len(talk.inference.generations) == 3)
        assert notice.said == "This call is recorded."
        assert asked(talk.inference.generations[2])[-1] == ("user", "Stop!")


async def test_an_answer_that_fails_is_an_event_and_the_session_is_idle_after_it() -> None:
    async with talking() as talk:
        errors = listen(talk, "error")
        talk.session.generate_reply(instructions="Tell a story.")
        await until(lambda: talk.inference.generations)
        talk.inference.generations[0].fail(RequestFailedError("engine", "the model broke"))
        async with asyncio.timeout(10):
            await talk.session.wait_idle()
        assert talk.said() == []
        assert [(event.source, event.error.code) for event in errors] == [("llm", "engine")]


# --- what it knows ---------------------------------------------------------------------------------------


async def test_each_prompt_begins_with_the_one_before_it() -> None:
    """Or else the model would read the conversation again and again."""
    async with talking(greeting="Hello!") as talk:
        await until(lambda: talk.room.queue)
        await listens(talk)
        prompts = [asked(await answers(talk, f"Question {n}.", f"Answer {n}.")) for n in range(4)]
        for n, (earlier, later) in enumerate(itertools.pairwise(prompts)):
            assert later[: len(earlier)] == earlier
            assert later[len(earlier) :] == [("assistant", f"Answer {n}."), ("user", f"Question {n + 1}.")]


async def test_instructions_change_from_the_next_answer_on() -> None:
    agent = VoiceAgent("Be brief.")
    async with talking(agent=agent) as talk:
        await answers(talk, "Hello.", "Hi.")
        read = len(talk.inference.prefills)
        await agent.update_instructions("Be verbose.")
        assert asked(talk.inference.prefills[read]) == [
            ("system", "Be verbose."),
            ("user", "Hello."),
            ("assistant", "Hi."),
        ], "it is read in spare time"
        assert asked(await answers(talk, "Bye.", "Goodbye then."))[0] == ("system", "Be verbose.")


async def test_the_conversation_can_be_read_and_edited() -> None:
    agent = VoiceAgent("Be brief.", chat_ctx=ChatContext([ChatMessage("assistant", "We met on Monday.")]))
    async with talking(agent=agent) as talk:
        first = await answers(talk, "Hello.", "Hi.")
        assert asked(first)[1:] == [("assistant", "We met on Monday."), ("user", "Hello.")]
        assert talk.said() == [("user", "Hello."), ("assistant", "Hi.")], "what was before is not of this session"
        chat = talk.session.chat_ctx.copy()
        assert [message.content for message in chat.messages()] == ["We met on Monday.", "Hello.", "Hi."]
        del chat.items[0]
        chat.add_message(role="user", content="My name is Ann.")
        assert len(talk.session.chat_ctx.items) == 3
        await talk.session.update_chat_ctx(chat)
        last = await answers(talk, "Who am I?", "Ann.")
        assert asked(last)[1:] == [("user", "Hello."), ("assistant", "Hi."), ("user", "My name is Ann. Who am I?")]


async def test_what_an_agent_is_made_with_replaces_settings() -> None:
    base = SessionSettings(language="de", speed=1.0)
    agent = VoiceAgent("Be brief.", language="en", voice=Voice(speed=1.2), allow_interruptions=False)
    settings = agent.settings(base)
    assert (settings.language, settings.speed, settings.allow_interruptions) == ("en", 1.2, False)
    assert settings.volume == base.volume
    assert VoiceAgent("Be brief.").settings(base) is not base
    assert VoiceAgent("Be brief.").settings(base) == base
    own = SessionSettings(language="fr")
    assert VoiceAgent("Be brief.", settings=own, min_endpointing_delay_ms=900).settings(base) == SessionSettings(
        language="fr", min_endpointing_delay_ms=900
    )


# --- nodes -----------------------------------------------------------------------------------------------


async def test_who_writes_answers_can_be_replaced() -> None:
    seen: list[list[tuple[str, str]]] = []

    class Parrot(VoiceAgent):
        async def llm_node(
            self, chat_ctx: ChatContext, tools: Sequence[FunctionTool[..., Any]], model_settings: ModelSettings
        ) -> AsyncGenerator[str | FunctionCall, None]:
            seen.append([(message.role, message.content) for message in chat_ctx.messages()])
            yield "You said: "
            yield chat_ctx.messages()[-1].content

    async with talking(agent=Parrot("Repeat.")) as talk:
        await talk.says("Hello there.")
        await until(lambda: talk.room.queue)
        await listens(talk)
        assert talk.inference.generations == []
        assert seen == [[("system", "Repeat."), ("user", "Hello there.")]]
        assert talk.said()[-1] == ("assistant", "You said: Hello there.")


async def test_a_node_may_change_what_the_model_writes() -> None:
    class Polite(VoiceAgent):
        async def llm_node(
            self, chat_ctx: ChatContext, tools: Sequence[FunctionTool[..., Any]], model_settings: ModelSettings
        ) -> AsyncGenerator[str | FunctionCall, None]:
            async for part in super().llm_node(chat_ctx, tools, model_settings):
                yield part.replace("No", "I am afraid not") if isinstance(part, str) else part

    async with talking(agent=Polite("Be brief.")) as talk:
        generation = await talk.asks("May I?")
        generation.write("No.")
        generation.finish()
        await talk.hears_everything()
        assert talk.said()[-1] == ("assistant", "I am afraid not.")
        interrupted = await talk.asks("And now?")
        interrupted.write("No, and never. And")
        await talk.hears(4 * SAMPLES_PER_CHAR)
        await talk.says("Stop.")
        await until(lambda: interrupted.cancelled)
        await until(lambda: len(talk.inference.generations) == 3)


async def test_a_node_that_fails_ends_its_answer_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(VoiceAgent):
        async def llm_node(
            self, chat_ctx: ChatContext, tools: Sequence[FunctionTool[..., Any]], model_settings: ModelSettings
        ) -> AsyncGenerator[str | FunctionCall, None]:
            yield "Well. "
            raise ZeroDivisionError("by zero")

    async with talking(agent=Broken("Be brief.")) as talk:
        errors = listen(talk, "error")
        for _ in range(2):
            before = len(talk.reports)
            await talk.says("Divide.")
            await until(lambda: talk.room.hear(320) or len(talk.reports) > before)  # noqa: B023
        assert [report.reply for report in talk.reports] == ["Well.", "Well."]
        assert {event.source for event in errors} == {"agent"}
    assert "by zero" in caplog.text


async def test_what_is_heard_said_and_played_goes_through_the_agent() -> None:
    class Filtering(VoiceAgent):
        def transcript_node(self, text: str) -> str:
            return text.replace("Tolstoi", "Tolstoy") if "static" not in text else ""

        def pronunciation_node(self, text: str) -> str:
            return text.replace("Tolstoy", "Toll stoy")

        def audio_output_node(self, pcm: bytes, sample_rate: int) -> bytes:
            assert sample_rate == RATE
            return bytes(len(pcm))

    async with talking(agent=Filtering("Be brief.")) as talk:
        await talk.says("static")
        await until(lambda: talk.room.states[-1] == "listening")
        generation = await talk.asks("Tolstoi?")
        generation.write("Tolstoy.")
        generation.finish()
        await talk.hears_everything()
        assert talk.said() == [("user", "Tolstoy?"), ("assistant", "Tolstoy.")]
        assert [phrase.text for phrase in talk.inference.phrases] == ["Toll stoy."]
        assert talk.room.heard
        assert not any(talk.room.heard)


async def test_filters_that_fail_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(VoiceAgent):
        def transcript_node(self, text: str) -> str:
            raise KeyError("heard")

        def pronunciation_node(self, text: str) -> str:
            raise KeyError("said")

        def audio_output_node(self, pcm: bytes, sample_rate: int) -> bytes:
            return pcm[:-2]

    async with talking(agent=Broken("Be brief.")) as talk:
        errors = listen(talk, "error")
        await answers(talk, "Hello?", "Hi.")
        assert talk.said() == [("user", "Hello?"), ("assistant", "Hi.")]
        assert talk.room.voices() == [1]
    assert {type(event.error) for event in errors} == {KeyError, ValueError}
    assert "audio_output_node made" in caplog.text


def test_what_there_is_not_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="turn_detection is 'telepathy', allowed: model, vad, manual"):
        VoiceAgent("Be brief.", turn_detection="telepathy")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is no tool"):
        VoiceAgent("Be brief.", tools=[print])


# --- events ----------------------------------------------------------------------------------------------


async def test_a_conversation_as_its_events() -> None:
    async with talking() as talk:
        events = listen(talk)
        await answers(talk, "Hello.", "Hi.")
    names = {event_type: name for name, event_type in EVENTS.items()}
    kinds = [names[type(event)] for event in events]
    assert (
        kinds.index("user_input_transcribed") < kinds.index("speech_created") < kinds.index("conversation_item_added")
    )
    assert kinds[-1] == "close"
    assert events[-1].reason == "the test is over"
    assert events[-1].error is None
    states = [(event.old_state, event.new_state) for event in events if names[type(event)] == "agent_state_changed"]
    assert states == [("listening", "thinking"), ("thinking", "speaking"), ("speaking", "listening")]
    callers = [event.new_state for event in events if names[type(event)] == "user_state_changed"]
    assert callers == ["speaking", "listening"]
    (said,) = [event for event in events if names[type(event)] == "user_input_transcribed" and event.is_final]
    assert (said.transcript, said.language) == ("Hello.", "en")
    items = [event.item.content for event in events if names[type(event)] == "conversation_item_added"]
    assert items == ["Hello.", "Hi."]
    (metrics,) = [event.metrics for event in events if names[type(event)] == "metrics_collected"]
    assert metrics.reply == "Hi."


async def test_a_turn_that_is_taken_back_was_never_added() -> None:
    async with talking() as talk:
        added = listen(talk, "conversation_item_added")
        await talk.asks("Tell me")
        await talk.starts()
        await talk.stops("Tell me a story.")
        await until(lambda: len(talk.inference.generations) == 2)
        talk.inference.generations[1].write("Once.")
        talk.inference.generations[1].finish()
        await talk.hears_everything()
        assert [event.item.content for event in added] == ["Tell me a story.", "Once."]


def test_who_listens_and_how() -> None:
    emitter = EventEmitter()
    heard: list[Event] = []

    @emitter.on("close")
    def closed(event: Event) -> None:
        heard.append(event)

    def broken(_: Event) -> None:
        raise ValueError("not today")

    async def slow(_: Event) -> None:
        """Nobody would await it."""

    emitter.on("close", broken)
    emitter.on("close", heard.append)
    emitter.emit(EVENTS["close"]("over"))  # type: ignore[call-arg, arg-type]
    assert len(heard) == 2
    emitter.off("close", closed)
    emitter.emit(EVENTS["close"]("over"))  # type: ignore[call-arg, arg-type]
    assert len(heard) == 3
    with pytest.raises(ValueError, match="does not listen"):
        emitter.off("close", closed)
    with pytest.raises(ValueError, match="no event 'opened', allowed: user_state_changed"):
        emitter.on("opened", closed)
    with pytest.raises(ValueError, match="plain function"):
        emitter.on("close", slow)
