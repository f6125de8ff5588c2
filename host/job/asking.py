"""What the language model is asked in one conversation: for answers, and to read beforehand what they will be to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import cast

from host.job.chat import ChatHistory
from host.job.reply import AnsweredTurn
from host.job.settings import SessionSettings
from inference.client import Generation, InferenceError, InferenceRoom, InferenceUnavailableError, RequestFailedError
from inference.wire.messages import ChatMessage

logger = logging.getLogger(__name__)


class LanguageModel:
    """Answers to ``history`` come out of ``answer``.

    ``prepare`` has the model read what is likely to be asked, so that an answer only waits for what is new then.
    A room has one KV cache: its model does one thing at a time, and an answer goes first.
    """

    def __init__(
        self,
        inference: InferenceRoom,
        history: ChatHistory,
        settings: SessionSettings,
        reply_tokens: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inference = inference
        self._history = history
        self._settings = settings
        self._reply_tokens = reply_tokens
        self._now = now
        self._answering = 0
        self._preparing: Generation | None = None

    async def answer(self, turn: AnsweredTurn | None = None) -> AsyncGenerator[str, None]:
        """The model's answer to the history, which is shortened until it fits."""
        settings = self._settings
        if turn is not None:
            turn.asked, turn.first_text = self._now(), None
        self._answering += 1
        try:
            while True:
                self.drop_preparation()
                generation = self._inference.generate(
                    self._history.messages(),
                    max_tokens=self._reply_tokens,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    repeat_penalty=settings.repeat_penalty,
                    seed=settings.seed,
                )
                try:
                    async with aclosing(cast(AsyncGenerator[str, None], aiter(generation))) as pieces:
                        async for text in pieces:
                            yield text
                except RequestFailedError as exc:
                    if exc.code != "too_long" or not self._history.drop_oldest_turn():
                        raise
                    logger.info("the conversation outgrew the context; its oldest turn is left out")
                else:
                    return
        finally:
            self._answering -= 1

    def prepare(self, tasks: asyncio.TaskGroup, *coming: ChatMessage) -> None:
        """Read the history, and ``coming`` after it, in spare time. Does nothing while an answer is written."""
        if self._answering:
            return
        self.drop_preparation()
        messages = self._history.followed_by(*coming)
        if not messages:
            return
        try:
            generation = self._inference.generate(messages, max_tokens=0, speculative=True)
        except InferenceUnavailableError:
            return
        self._preparing = generation
        tasks.create_task(self._prepare(generation), name="prefill")

    def drop_preparation(self) -> None:
        """Read no further: what was read stays read. Nothing of it comes after this."""
        if self._preparing is not None:
            # At once, and not by its task: an answer may be asked for next.
            self._preparing.cancel()
            self._preparing = None

    async def _prepare(self, generation: Generation) -> None:
        try:
            async with aclosing(cast(AsyncGenerator[str, None], aiter(generation))) as pieces:
                async for _ in pieces:
                    pass
        except InferenceError as exc:
            # Whatever it is, the answer meets it, too, and deals with it.
            logger.debug("not prepared for an answer: %s", exc)
        finally:
            if self._preparing is generation:
                self._preparing = None
