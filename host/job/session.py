"""The agent in one conversation, as its author sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from host.job.agent import VoiceAgent
from host.job.answering import Answering
from host.job.asking import LanguageModel
from host.job.chat import ChatHistory
from host.job.dialogue import Dialogue, Outlet
from host.job.reply import Reply
from host.job.settings import SessionSettings
from host.job.transcripts import UserTranscript
from inference.client import InferenceError, InferenceRoom
from inference.wire.supervision import TurnReport


class VoiceSession:
    """The agent and one caller, from the greeting to the end.

    ``outlet`` makes the conversation for this session's ``Dialogue``. ``run`` holds it until ``aclose``.
    ``report`` is called with each turn when it is over.
    """

    def __init__(
        self,
        agent: VoiceAgent,
        inference: InferenceRoom,
        outlet: Callable[[Dialogue], Outlet],
        *,
        settings: SessionSettings,
        context_tokens: int,
        report: Callable[[TurnReport], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        reply_tokens = min(settings.max_reply_tokens, context_tokens // 2)
        self.history = ChatHistory(agent.instructions, context_tokens=context_tokens, reply_tokens=reply_tokens)
        self.close_reason = ""
        self._agent = agent
        model = LanguageModel(inference, self.history, settings, reply_tokens, now)
        self._answering = Answering(self.history, model, report)
        self._outlet = outlet(self._answering)
        self._early: list[Reply] | None = []
        self._ended = asyncio.Event()
        self._failure: InferenceError | None = None

    def __repr__(self) -> str:
        return f"<VoiceSession {self._outlet!r}>"

    async def say(self, text: str) -> str:
        """Say ``text`` as soon as the agent listens. Returns what was heard of it, which joins the history."""
        if self._ended.is_set():
            return ""
        reply = Reply.of(text)
        if self._early is not None:
            self._early.append(reply)
        else:
            self._outlet.say(reply)
        await reply.over.wait()
        return reply.said

    def add_transcript_callback(self, callback: Callable[[UserTranscript], None]) -> None:
        """Have ``callback`` called with each transcript of the caller, as it comes; it must not block."""
        self._answering.add_transcript_callback(callback)

    async def wait_closed(self) -> str:
        """Return the reason when the conversation is over. Raises the ``InferenceError`` that ended it."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        return self.close_reason

    async def aclose(self, reason: str = "") -> None:
        """End the conversation: silence, and every request is cancelled. Returns when that is done."""
        self.close_reason = self.close_reason or reason
        await self._outlet.aclose()
        await self._ended.wait()

    async def run(self) -> None:
        """Hold the conversation until ``aclose``. Raises the ``InferenceError`` that ended it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._answering.begin(tasks, self._agent.greeting)
                early, self._early = self._early or [], None
                for reply in [*([Reply.of(self._agent.greeting)] if self._agent.greeting else []), *early]:
                    self._outlet.say(reply)
                await self._outlet.run()
                raise _EndedError
        except* _EndedError:
            pass
        except* InferenceError as failures:
            self._failure = _first(failures)
            self.close_reason = str(self._failure)
        finally:
            self._ended.set()
        if self._failure is not None:
            raise self._failure


class _EndedError(Exception):
    """Ends the session's task group: not a failure."""


def _first(failure: BaseExceptionGroup[InferenceError]) -> InferenceError:
    found: BaseException = failure
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, InferenceError)
    return found
