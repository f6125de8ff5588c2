"""What is said, and why: the agent's side of the seam. Every turn of the caller is answered, each reply followed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from typing import TypeVar

from host.job.agent import VoiceAgent
from host.job.asking import LanguageModel
from host.job.chat_context import ChatMessage
from host.job.dialogue import Outlet, Source, UserState
from host.job.events import (
    AgentFalseInterruptionEvent,
    AgentStateChangedEvent,
    ConversationItemAddedEvent,
    ErrorEvent,
    EventEmitter,
    MetricsCollectedEvent,
    SpeechCreatedEvent,
    UserInputTranscribedEvent,
    UserStateChangedEvent,
)
from host.job.reply import AnsweredTurn, Reply, whole
from host.job.room import AgentState
from host.job.speech_handle import SpeechHandle
from host.job.tool_text import ToolChoice, grammar_for
from host.job.transcripts import UserTranscript
from host.job.writing import Speech, Writer
from inference.client import Generation
from inference.wire.supervision import TurnReport

logger = logging.getLogger(__name__)

T = TypeVar("T", str, bytes)


class Answering:
    """A ``Dialogue``: every turn of the caller is answered by ``agent``; ``writer`` writes what is not known.

    ``events`` are told of all that happens, ``report`` is called with each turn when it is over.
    """

    def __init__(
        self,
        agent: VoiceAgent,
        model: LanguageModel,
        writer: Writer,
        events: EventEmitter,
        report: Callable[[TurnReport], None],
    ) -> None:
        self.agent = agent
        self._model = model
        self._writer = writer
        self._events = events
        self._report = report
        self._outlet: Outlet | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._speeches: dict[Reply, Speech] = {}
        self._guess: Speech | None = None
        self._user_state: UserState = "listening"
        self._agent_state: AgentState = "initializing"
        self._transcript_callbacks: list[Callable[[UserTranscript], None]] = []
        self._moved: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Answering {self.agent!r} {len(self._speeches)} speeches>"

    def begin(self, tasks: asyncio.TaskGroup, outlet: Outlet) -> None:
        """What every conversation begins with is read, as one of ``tasks``, while the caller is greeted."""
        self._tasks, self._outlet = tasks, outlet
        greeting = self.agent.greeting
        coming = [ChatMessage("assistant", greeting)] if greeting else []
        self._model.prepare(tasks, self._writer.fitting(self.agent, coming))

    def end(self) -> None:
        """Nothing more is said."""
        for reply in list(self._speeches):
            reply.over.set()
        self._speeches.clear()
        self.moved()

    @property
    def user_state(self) -> UserState:
        """What the caller does."""
        return self._user_state

    @property
    def agent_state(self) -> AgentState:
        """What the agent does."""
        return self._agent_state

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being said or waits to be said."""
        return not any(speech is not self._guess for speech in self._speeches.values())

    @property
    def pending(self) -> Iterator[SpeechHandle]:
        """What is being said, and what waits to be."""
        return iter([speech.handle for speech in self._speeches.values() if speech is not self._guess])

    async def wait_moved(self) -> None:
        """Return when something that was said is over."""
        moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved.append(moved)
        await moved

    def add_transcript_callback(self, callback: Callable[[UserTranscript], None]) -> None:
        """Have ``callback`` called with each transcript of the caller."""
        self._transcript_callbacks.append(callback)

    # --- made for the author --------------------------------------------------------------------------

    def speak(
        self, text: str | AsyncIterable[str], *, allow_interruptions: bool | None = None, remembered: bool = True
    ) -> Speech:
        """A speech that says ``text``."""
        if isinstance(text, str):
            speech = self._speech(self.agent, lambda: whole(text), known=text, allow_interruptions=allow_interruptions)
        else:
            speech = self._speech(self.agent, lambda: _pieces(text), allow_interruptions=allow_interruptions)
        speech.remembered, speech.settled, speech.complete = remembered, True, True
        self._events.emit(SpeechCreatedEvent("say", speech.handle))
        return speech

    def generate(
        self,
        *,
        user_input: str | None,
        instructions: str,
        tool_choice: ToolChoice,
        allow_interruptions: bool | None,
    ) -> Speech:
        """A speech that the model writes. Raises ``ValueError`` for a ``tool_choice`` that there is not."""
        grammar_for(self.agent.tools, tool_choice)
        speech = self._speech(self.agent, None, allow_interruptions=allow_interruptions)
        speech.question = ChatMessage("user", user_input) if user_input else None
        speech.instructions, speech.tool_choice = instructions, tool_choice
        self._events.emit(SpeechCreatedEvent("generate_reply", speech.handle))
        return speech

    def _speech(
        self,
        agent: VoiceAgent,
        write: Callable[[], AsyncGenerator[str, None]] | None,
        *,
        turn: AnsweredTurn | None = None,
        known: str = "",
        allow_interruptions: bool | None = None,
        committed: bool = True,
    ) -> Speech:
        speech: Speech
        reply = Reply(write or (lambda: self._writer.write(speech)), turn, known, allow_interruptions)
        reply.continued = lambda left: self._continued(speech, left)
        speech = Speech(reply, SpeechHandle(reply, self._interrupt), agent)
        if committed:
            speech.committed.set()
        self._speeches[reply] = speech
        reply.over.add_callback(lambda: self._forget(reply))
        return speech

    def _continued(self, speech: Speech, left: str) -> AsyncGenerator[str, None] | None:
        """What is written of ``speech`` after what is ``left`` of it, when its writing was cut off."""
        unwritten = not (left or speech.reply.before)
        if speech.complete or not (unwritten or speech.execution is not None):
            return None
        return self._writer.go_on(speech, left) if speech.settled else self._writer.write(speech)

    def _interrupt(self, reply: Reply, force: bool) -> bool:
        if self._outlet is None:
            # Nothing has begun.
            reply.interrupted = True
            reply.over.set()
            return True
        return self._outlet.withdraw(reply) or self._outlet.interrupt(force=force)

    def _forget(self, reply: Reply) -> None:
        self._speeches.pop(reply, None)
        self.moved()

    def moved(self) -> None:
        """Something is over: whoever waits looks again."""
        waiting, self._moved = self._moved, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # --- asked ----------------------------------------------------------------------------------------

    def prepare(self, ticket: int, text: str) -> None:
        """The caller may have finished with ``text``."""
        if self._tasks is None:
            return
        outlet = self._outlet

        def tell(probability: float) -> None:
            if outlet is not None:
                outlet.end_of_turn(ticket, probability)

        coming = [ChatMessage("user", text)] if text else []
        self._model.prepare(self._tasks, self._writer.fitting(self.agent, coming), tell if ticket else None)

    def drop_preparation(self) -> None:
        """The caller goes on."""
        self._model.drop_preparation()
        if self._guess is not None:
            guess, self._guess = self._guess, None
            self._model.stop()
            guess.reply.interrupted = True
            guess.reply.over.set()

    def guess(self, ticket: int, text: str) -> Reply | None:
        """The model's answer, where neither a hook nor a node of the agent has to be asked first."""
        self.drop_preparation()
        agent = self.agent
        asks_agent = _overrides(agent, "on_user_turn_completed") or _overrides(agent, "llm_node")
        # What was interrupted, and may be resumed, is not said when there is a turn to be answered.
        occupied = any(not speech.reply.interrupted for speech in self._speeches.values())
        if occupied or asks_agent or not self._writer.fitting(agent, [ChatMessage("user", text)]):
            return None
        placeholder = AnsweredTurn(0, text, audio_s=0.0, last_voiced=0.0, decided=0.0, committed=0.0)
        speech = self._speech(agent, None, turn=placeholder, committed=False)
        speech.question = ChatMessage("user", text)
        speech.premises = self._premises(text)
        self._guess = speech
        outlet = self._outlet

        def known(result: asyncio.Future[float]) -> None:
            if self._guess is speech and outlet is not None:
                outlet.end_of_turn(ticket, result.result())

        def asked(generation: Generation) -> None:
            speech.generation = generation
            if ticket:
                generation.end_of_turn.add_done_callback(known)

        speech.reply.write = lambda: self._writer.write(speech, asked)
        return speech.reply

    def _premises(self, text: str) -> tuple[object, ...]:
        agent = self.agent
        return (agent, agent.instructions, agent.tools, text, *map(id, agent.chat_ctx.items))

    def answer(self, turn: AnsweredTurn, guess: Reply | None = None) -> Reply:
        """The agent's answer."""
        speech, self._guess = self._guess, None
        holds = speech is not None and not speech.failed and speech.premises == self._premises(turn.transcript)
        if speech is not None and speech.reply is guess and holds:
            early = speech.reply.turn
            assert early is not None
            turn.asked, turn.first_text = early.asked, early.first_text
            speech.reply.turn = turn
            self._writer.settle(speech)
            if speech.generation is not None:
                speech.generation.promote()
            speech.committed.set()
        else:
            self._guess = speech
            self.drop_preparation()
            speech = self._speech(self.agent, None, turn=turn)
            speech.question = ChatMessage("user", turn.transcript)
            speech.in_turn = _overrides(self.agent, "on_user_turn_completed")
            if not speech.in_turn:
                self._writer.settle(speech)
        self._events.emit(SpeechCreatedEvent("user_turn", speech.handle))
        return speech.reply

    def take_back(self, reply: Reply) -> None:
        """The caller goes on: nothing of ``reply`` was heard."""
        speech = self._speeches[reply]
        if speech.question is not None and not speech.announced:
            self._writer.remove(speech.agent, speech.question)

    # --- told -----------------------------------------------------------------------------------------

    def begun(self, reply: Reply) -> None:
        """The first of ``reply`` was heard."""
        self._writer.announce(self._speeches[reply])

    def heard(self, reply: Reply, *, over: bool) -> None:
        """What was heard joins the conversation."""
        speech = self._speeches[reply]
        self._writer.announce(speech)
        text = reply.said.strip()
        if speech.remembered and text:
            if speech.item is None:
                speech.item = ChatMessage("assistant", text)
                self._writer.add(speech.agent, speech.item)
            speech.item.content, speech.item.interrupted = text, reply.interrupted
        if over:
            if speech.item is not None:
                self._events.emit(ConversationItemAddedEvent(speech.item))
            self._forget(reply)

    def resumed(self, reply: Reply) -> None:
        """The interruption was none."""
        logger.info("nothing was said in what interrupted %s; it goes on", reply.segment)
        self._events.emit(AgentFalseInterruptionEvent(resumed=True))

    def transcribed(self, transcript: UserTranscript) -> None:
        """What the caller said, or has said so far."""
        for callback in self._transcript_callbacks:
            try:
                callback(transcript)
            except Exception:
                logger.exception("a transcript callback failed")
        if transcript.text:
            language = self._model.settings.language
            self._events.emit(UserInputTranscribedEvent(transcript.text, transcript.final, language))

    def state_changed(self, user: UserState, agent: AgentState) -> None:
        """At least one of them is another one than before."""
        old_user, self._user_state = self._user_state, user
        old_agent, self._agent_state = self._agent_state, agent
        if user != old_user:
            self._events.emit(UserStateChangedEvent(old_user, user))
        if agent != old_agent:
            self._events.emit(AgentStateChangedEvent(old_agent, agent))

    def measured(self, report: TurnReport) -> None:
        """A turn is over."""
        self._report(report)
        self._events.emit(MetricsCollectedEvent(report))

    def failed(self, source: Source, error: Exception) -> None:
        """Something failed."""
        self._events.emit(ErrorEvent(error, source))

    # --- filters --------------------------------------------------------------------------------------

    def filter_transcript(self, text: str) -> str:
        """As the agent hears it."""
        return self._filtered(self.agent.transcript_node, text)

    def pronounce(self, text: str) -> str:
        """As the agent says it."""
        return self._filtered(self.agent.pronunciation_node, text)

    def filter_speech(self, pcm: bytes, sample_rate: int) -> bytes:
        """As the agent sounds."""
        if not _overrides(self.agent, "audio_output_node"):
            return pcm
        filtered = self._filtered(lambda block: self.agent.audio_output_node(block, sample_rate), pcm)
        if len(filtered) != len(pcm):
            # What was heard is counted in samples.
            error = ValueError(f"audio_output_node made {len(filtered)} bytes of {len(pcm)}")
            logger.error("%s", error)
            self._writer.agent_failed(error)
            return pcm
        return filtered

    def _filtered(self, node: Callable[[T], T], given: T) -> T:
        try:
            return node(given)
        except Exception as exc:
            logger.exception("the agent's code failed")
            self._writer.agent_failed(exc)
            return given


async def _pieces(texts: AsyncIterable[str]) -> AsyncGenerator[str, None]:
    async for text in texts:
        yield text


def _overrides(agent: VoiceAgent, name: str) -> bool:
    return getattr(type(agent), name) is not getattr(VoiceAgent, name)
