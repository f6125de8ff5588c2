"""The inference process as the conversation of a test has it: a script may hear, and answer, instead of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from host.testing.scripted import ScriptedGeneration, ScriptedModel
from inference.client import Generation, InferenceClient, InferenceRoom, Listening
from inference.wire.messages import ChatMessage, Transcript


@dataclass(frozen=True, slots=True)
class _Words:
    """What the caller says from ``start`` to ``end`` (up clock)."""

    start: int
    end: int
    text: str

    def between(self, start: int, end: int) -> list[str]:
        """The words said in that time; they are taken to be equally long."""
        words = self.text.split()
        length = (self.end - self.start) / max(len(words), 1)
        return [word for n, word in enumerate(words) if start <= self.start + (n + 0.5) * length < end]


class ScriptedListening:
    """As ``inference.client.Listening``: an utterance whose words are known."""

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript

    async def wait(self) -> Transcript:
        """What was said."""
        return self._transcript

    def promote(self) -> None:
        """It is there already."""


class OverheardRoom:
    """An ``InferenceRoom`` of ``client``, with ``model`` in the place of its language model where there is one."""

    def __init__(self, client: InferenceClient, inner: InferenceRoom, model: ScriptedModel | None) -> None:
        self.inner = inner
        self._client = client
        self._model = model
        self._said: list[_Words] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def position(self) -> int:
        """Samples of the caller so far."""
        return self.inner.position

    @property
    def heard(self) -> int:
        """How far voice activity detection has got."""
        return self.inner.heard

    @property
    def is_at_work(self) -> bool:
        """Whether something that was asked for has not come yet."""
        return self.inner.open_requests > 0

    async def settle(self) -> None:
        """Return when what detection has reported so far has come: what is sent on one connection comes in order."""
        await self._client.stats()

    def says(self, start: int, end: int, text: str) -> None:
        """The caller says ``text`` from ``start`` to ``end`` (up clock), whatever the audio is."""
        self._said.append(_Words(start, end, text))

    def generate(self, messages: Sequence[ChatMessage], **settings: Any) -> Generation | ScriptedGeneration:
        """As ``InferenceRoom.generate``."""
        if self._model is not None:
            return self._model.generate(messages, **settings)
        return self.inner.generate(messages, **settings)

    async def transcribe(self, start: int, end: int, **settings: Any) -> Transcript:
        """As ``InferenceRoom.transcribe``."""
        return await self.listen_to(start, end, **settings).wait()

    def listen_to(self, start: int, end: int, **settings: Any) -> Listening | ScriptedListening:
        """As ``InferenceRoom.listen_to``."""
        scripted = [said for said in self._said if said.start < end and start < said.end]
        if not scripted:
            return self.inner.listen_to(start, end, **settings)
        text = " ".join(word for said in scripted for word in said.between(start, end))
        return ScriptedListening(Transcript(1, text, settings.get("language") or "en", -0.1, 0.0, 0.0))


class NoEngines:
    """What a conversation in writing needs of an ``InferenceRoom``, with no process behind it."""

    speech_rate = 16_000
    position = heard = oldest = 0
    is_attached = True

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model

    async def wait_attached(self) -> None:
        """It is always there."""

    def generate(self, messages: Sequence[ChatMessage], **settings: Any) -> ScriptedGeneration:
        """As ``InferenceRoom.generate``."""
        return self._model.generate(messages, **settings)
