"""What the language model is asked in one conversation: for answers, and to read beforehand what they will be to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import cast

from host.job.settings import SessionSettings
from inference.client import Generation, InferenceError, InferenceRoom, InferenceUnavailableError
from inference.wire.messages import ChatMessage

logger = logging.getLogger(__name__)


class LanguageModel:
    """Text comes out of ``write``.

    ``prepare`` has the model read what is likely to be asked, so that an answer only waits for what is new then.
    A room has one KV cache: its model does one thing at a time, and what is written goes first.
    ``settings`` may be changed at any time; they hold for what is asked next.
    """

    def __init__(self, inference: InferenceRoom, settings: SessionSettings) -> None:
        self.settings = settings
        self._inference = inference
        self._writing: Generation | None = None
        self._preparing: Generation | None = None

    def __repr__(self) -> str:
        doing = "writing" if self._writing else "preparing" if self._preparing else "idle"
        return f"<LanguageModel {doing}>"

    async def write(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        grammar: str = "",
        temperature: float | None = None,
        speculative: bool = False,
        asked: Callable[[Generation], None] = lambda _: None,
    ) -> AsyncGenerator[str, None]:
        """What the model writes after ``messages``. ``asked`` is given the request as soon as it is on its way.

        ``temperature`` None is as the settings say. ``speculative``: it may be of no use; whether the user's last
        message is complete is asked with it. Raises ``RequestFailedError`` and ``InferenceUnavailableError``.
        """
        settings = self.settings
        self.drop_preparation()
        self.stop()
        generation = self._inference.generate(
            messages,
            max_tokens=max_tokens,
            temperature=settings.temperature if temperature is None else temperature,
            top_p=settings.top_p,
            repeat_penalty=settings.repeat_penalty,
            seed=settings.seed,
            grammar=grammar,
            speculative=speculative,
            end_of_turn=speculative,
        )
        self._writing = generation
        asked(generation)
        try:
            async with aclosing(cast(AsyncGenerator[str, None], aiter(generation))) as pieces:
                async for text in pieces:
                    yield text
        finally:
            if self._writing is generation:
                self._writing = None

    def stop(self) -> None:
        """Write no further, at once: whoever iterates may be told later."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def prepare(
        self,
        tasks: asyncio.TaskGroup,
        messages: Sequence[ChatMessage],
        end_of_turn: Callable[[float], None] | None = None,
    ) -> None:
        """Read ``messages`` in spare time. Does nothing while something is written.

        ``end_of_turn`` is told how likely the last message, the user's, is complete (-1: not known), unless
        ``drop_preparation`` comes first.
        """
        if self._writing is not None:
            return
        self.drop_preparation()
        if not messages:
            return
        try:
            generation = self._inference.generate(
                messages, max_tokens=0, speculative=True, end_of_turn=end_of_turn is not None
            )
        except InferenceUnavailableError:
            return
        self._preparing = generation
        if end_of_turn is not None:
            tell = end_of_turn

            def known(result: asyncio.Future[float]) -> None:
                if self._preparing is generation or generation.done is not None:
                    tell(result.result())

            generation.end_of_turn.add_done_callback(known)
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
