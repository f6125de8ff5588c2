"""The conversation in writing, between a room and a dialogue made of lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from host.job.dialogue import Dialogue, Outlet
from host.job.reply import AnsweredTurn, Reply
from host.job.room import AgentState, Side
from host.job.settings import SessionSettings
from host.job.written import WrittenConversation
from inference.client import InferenceUnavailableError, RequestFailedError
from inference.wire.supervision import TurnReport
from tests.host.job.fakes import until

DEADLINE_S = 10.0

Pieces = Callable[[], AsyncGenerator[str, None]]


async def words(text: str) -> AsyncGenerator[str, None]:
    for word in text.split():
        yield f"{word} "


class Room:
    name = "written"

    def __init__(self) -> None:
        self.typed: asyncio.Queue[str | None] = asyncio.Queue()
        self.states: list[AgentState] = []
        self.shown: list[tuple[str, str, bool]] = []

    async def text_input(self) -> AsyncIterator[str]:
        while (text := await self.typed.get()) is not None:
            yield text

    async def set_agent_state(self, state: AgentState) -> None:
        self.states.append(state)

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        assert side == "agent"
        self.shown.append((segment, text, final))


class Answers:
    """A ``Dialogue`` that answers with what the test gives, in order."""

    def __init__(self, *answers: Pieces) -> None:
        self.answers = list(answers)
        self.turns: list[AnsweredTurn] = []
        self.log: list[str] = []
        self.reports: list[TurnReport] = []
        self.errors: list[tuple[str, Exception]] = []

    def answer(self, turn: AnsweredTurn, guess: Reply | None = None) -> Reply:
        self.turns.append(turn)
        return Reply(self.answers.pop(0), turn)

    def begun(self, reply: Reply) -> None:
        self.log.append("begun")

    def heard(self, reply: Reply, *, over: bool) -> None:
        self.log.append(f"heard {reply.said!r}{' interrupted' if reply.interrupted else ''}{'' if over else ' so far'}")

    def measured(self, report: TurnReport) -> None:
        self.reports.append(report)

    def failed(self, source: str, error: Exception) -> None:
        self.errors.append((source, error))

    def state_changed(self, user: str, agent: str) -> None:
        self.log.append(f"{user} {agent}")


class Talk:
    def __init__(self, answers: Answers, settings: SessionSettings) -> None:
        self.room = Room()
        self.dialogue = answers
        self.outages = 0
        self.given_up = False
        self.conversation = WrittenConversation(
            self.room, cast(Dialogue, answers), settings=settings, job_id="job", attach_again=self.attach_again
        )
        self.running: asyncio.Task[None] | None = None

    async def attach_again(self) -> None:
        self.outages += 1
        if self.given_up:
            raise InferenceUnavailableError("it was away for 300 s")

    async def idle(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.conversation.wait_idle()
        # What is shown is shown in order, by a task.
        await asyncio.sleep(0.01)


@asynccontextmanager
async def talking(*answers: Pieces, settings: SessionSettings | None = None) -> AsyncIterator[Talk]:
    talk = Talk(Answers(*answers), settings or SessionSettings())
    talk.running = asyncio.create_task(talk.conversation.run())
    try:
        yield talk
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await talk.conversation.aclose()
            await asyncio.wait([talk.running])


def holding(text: str, more: str, go_on: asyncio.Event) -> Pieces:
    """Writes ``text``, and ``more`` when it may."""

    async def write() -> AsyncGenerator[str, None]:
        yield text
        await go_on.wait()
        yield more

    return write


async def test_a_turn() -> None:
    async with talking(lambda: words("We open at nine.")) as talk:
        talk.room.typed.put_nowait("  When do you open? ")
        await until(lambda: talk.dialogue.reports)
        await talk.idle()
        assert [turn.transcript for turn in talk.dialogue.turns] == ["When do you open?"]
        assert talk.dialogue.log == [
            "listening listening",
            "listening thinking",
            "begun",
            "listening speaking",
            "heard 'We open at nine.'",
            "listening listening",
        ]
        assert talk.room.states == ["listening", "thinking", "speaking", "listening"]
        assert talk.room.shown == [
            ("agent-1", "We", False),
            ("agent-1", "We open", False),
            ("agent-1", "We open at", False),
            ("agent-1", "We open at nine.", False),
            ("agent-1", "We open at nine.", True),
        ]
        (report,) = talk.dialogue.reports
        assert (report.turn, report.transcript, report.reply) == (1, "When do you open?", "We open at nine.")
        assert not report.interrupted
        assert report.ttft_ms >= 0
        assert report.response_ms >= 0
        assert report.barge_in_ms == -1


async def test_what_is_said_comes_one_after_the_other() -> None:
    async with talking(lambda: words("An answer.")) as talk:
        first, second = Reply.of("One."), Reply.of("Two.")
        talk.conversation.say(first)
        talk.conversation.say(second)
        talk.conversation.hear("Hm?")
        await talk.idle()
        assert [text for _, text, final in talk.room.shown if final] == ["One.", "Two.", "An answer."]
        assert first.over.is_set()
        assert [report.reply for report in talk.dialogue.reports] == ["An answer."]


async def test_what_is_typed_interrupts() -> None:
    never = asyncio.Event()
    async with talking(holding("We open ", "at nine.", never), lambda: words("Yes.")) as talk:
        talk.conversation.hear("When do you open?")
        await until(lambda: talk.room.shown)
        talk.conversation.hear("On Sundays?")
        await talk.idle()
        assert [line for line in talk.dialogue.log if line.startswith("heard")] == [
            "heard 'We open' interrupted",
            "heard 'Yes.'",
        ]
        assert [(report.interrupted, report.reply) for report in talk.dialogue.reports] == [
            (True, "We open"),
            (False, "Yes."),
        ]


@pytest.mark.parametrize("by", ["settings", "reply"])
async def test_what_may_not_be_interrupted_is_said_to_its_end(by: str) -> None:
    go_on = asyncio.Event()
    settings = SessionSettings(allow_interruptions=by != "settings")
    async with talking(lambda: words("Yes."), settings=settings) as talk:
        notice = Reply(holding("This call ", "is recorded.", go_on))
        if by == "reply":
            notice.allow_interruptions = False
        talk.conversation.say(notice)
        await until(lambda: talk.room.shown)
        assert not talk.conversation.interrupt()
        talk.conversation.hear("Hello?")
        go_on.set()
        await talk.idle()
        assert [text for _, text, final in talk.room.shown if final] == ["This call is recorded.", "Yes."]


async def test_force_interrupts_everything() -> None:
    async with talking() as talk:
        reply = Reply(holding("This call ", "is recorded.", asyncio.Event()), allow_interruptions=False)
        talk.conversation.say(reply)
        await until(lambda: talk.room.shown)
        assert talk.conversation.interrupt(force=True)
        assert reply.over.is_set()
        assert reply.said == "This call"
        await talk.idle()


async def test_say_that_interrupts_goes_first() -> None:
    async with talking() as talk:
        talk.conversation.say(Reply(holding("One ", "two.", asyncio.Event())))
        await until(lambda: talk.room.shown)
        talk.conversation.say(Reply.of("Later."))
        talk.conversation.say(Reply.of("Stop!"), interrupt=True)
        await talk.idle()
        assert [text for _, text, final in talk.room.shown if final] == ["One", "Stop!", "Later."]


async def test_what_has_not_begun_can_be_withdrawn() -> None:
    go_on = asyncio.Event()
    async with talking() as talk:
        current, waiting = Reply(holding("One ", "two.", go_on)), Reply.of("Three.")
        talk.conversation.say(current)
        talk.conversation.say(waiting)
        await until(lambda: talk.room.shown)
        assert not talk.conversation.withdraw(current)
        assert talk.conversation.withdraw(waiting)
        assert waiting.over.is_set()
        go_on.set()
        await talk.idle()
        assert [text for _, text, final in talk.room.shown if final] == ["One two."]


async def test_a_request_that_fails_ends_the_answer_and_not_the_conversation() -> None:
    async def failing() -> AsyncGenerator[str, None]:
        yield "Well "
        raise RequestFailedError("engine", "the model stumbled")

    async with talking(failing, lambda: words("Fine.")) as talk:
        talk.conversation.hear("Are you there?")
        await talk.idle()
        talk.conversation.hear("And now?")
        await talk.idle()
        assert [source for source, _ in talk.dialogue.errors] == ["llm"]
        assert [report.reply for report in talk.dialogue.reports] == ["Well", "Fine."]


async def test_after_an_outage_the_answer_is_asked_for_again() -> None:
    attempts = 0

    async def away_once() -> AsyncGenerator[str, None]:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise InferenceUnavailableError("the inference process went away")
        yield "Here I am."

    async with talking(away_once) as talk:
        talk.conversation.hear("Hello?")
        await talk.idle()
        assert (attempts, talk.outages) == (2, 1)
        assert talk.dialogue.reports[0].reply == "Here I am."
        assert talk.dialogue.errors == []


async def test_an_answer_that_takes_the_process_away_is_not_asked_for_for_ever() -> None:
    async def away() -> AsyncGenerator[str, None]:
        raise InferenceUnavailableError("the inference process went away")
        yield ""

    async with talking(away) as talk:
        talk.conversation.hear("Hello?")
        await talk.idle()
        assert talk.outages == 2
        assert [source for source, _ in talk.dialogue.errors] == ["inference"]


async def test_an_outage_for_good_ends_the_conversation() -> None:
    async def away() -> AsyncGenerator[str, None]:
        raise InferenceUnavailableError("the inference process went away")
        yield ""

    async with talking(away) as talk:
        talk.given_up = True
        talk.conversation.hear("Hello?")
        assert talk.running is not None
        with pytest.raises(InferenceUnavailableError, match="300 s"):
            async with asyncio.timeout(DEADLINE_S):
                await talk.running
        late = Reply.of("Too late.")
        talk.conversation.say(late)
        assert late.over.is_set()


async def test_the_end_cuts_off_what_is_said_and_what_waits() -> None:
    async with talking(holding("One ", "two.", asyncio.Event())) as talk:
        talk.conversation.hear("Count.")
        waiting = Reply.of("Three.")
        talk.conversation.say(waiting)
        await until(lambda: talk.room.shown)
        await talk.conversation.aclose()
        assert waiting.over.is_set()
        assert [(report.interrupted, report.reply) for report in talk.dialogue.reports] == [(True, "One")]


async def test_closed_before_it_ran() -> None:
    talk = Talk(Answers(), SessionSettings())
    early = Reply.of("Hello.")
    talk.conversation.say(early)
    await talk.conversation.aclose()
    assert early.over.is_set()


def test_it_is_an_outlet() -> None:
    """For the type checker: every method is there as the seam says."""
    outlet: Callable[..., Outlet] = WrittenConversation
    assert outlet is WrittenConversation
