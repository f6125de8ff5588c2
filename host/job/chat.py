"""A conversation as the language model is given it, and what was heard of a reply. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from host.job.chat_context import AgentHandoff, ChatItem, ChatMessage
from host.job.speech import SpeakablePhrase, speech_length
from host.job.tool_text import FunctionCall, FunctionCallOutput, call_message, result_message
from inference.wire import messages as wire

BYTES_PER_TOKEN = 3.5
"""Of UTF-8 text, on the low side: about 4 in English, and CJK needs about a token a character (3 bytes)."""
MESSAGE_TOKENS = 8
"""What a chat template puts around one message."""
_KEEP_WHEN_FULL = 0.7
"""Dropping turns costs the room its KV cache from there on, so enough is dropped at once to last a while."""


@dataclass(frozen=True, slots=True)
class PhraseHeard:
    """A phrase, its length and how much of it was heard, in samples on one clock.

    ``samples`` None: it was still being synthesised, so its length is estimated from the others.
    """

    text: SpeakablePhrase
    samples: int | None
    heard: int


def truncate_to_heard(phrases: Sequence[PhraseHeard], sample_rate: int) -> str:
    """What was written for what was heard: whole phrases, and of the one cut off the words said to their end.

    Where a word ends in a phrase is judged by its share of what is said.
    """
    heard = []
    per_letter = _samples_per_letter(phrases, sample_rate)
    for phrase in phrases:
        if phrase.samples is not None and phrase.heard >= phrase.samples:
            heard.append(phrase.text.shown)
            continue
        samples = phrase.samples if phrase.samples is not None else per_letter * speech_length(phrase.text.spoken)
        heard.append(phrase.text.heard(phrase.heard / max(samples, 1)))
        break
    return "".join(heard).rstrip()


def _samples_per_letter(phrases: Iterable[PhraseHeard], sample_rate: int) -> float:
    known = [(phrase.samples, speech_length(phrase.text.spoken)) for phrase in phrases if phrase.samples]
    known = [(samples, letters) for samples, letters in known if letters]
    if not known:
        # English is spoken at about 15 letters a second.
        return sample_rate / 15
    return sum(samples for samples, _ in known) / sum(letters for _, letters in known)


def render(items: Iterable[ChatItem], tools: str = "") -> tuple[wire.ChatMessage, ...]:
    """``items`` as the model is given them; roles alternate. ``tools``: what follows the instructions about tools.

    A message of the system is the first; those further on read as the user's, since many models know no others.
    What is only new at the end leaves everything before it as it is, to the letter: it need not be read again.
    """
    rest = list(items)
    instructions = tools
    if rest and isinstance(first := rest[0], ChatMessage) and first.role == "system":
        instructions = "\n\n".join(text for text in (first.content, tools) if text)
        del rest[0]
    rendered = [wire.ChatMessage("system", instructions)] if instructions else []
    for _, group in itertools.groupby(rest, _kind):
        for message in _messages(list(group)):
            if rendered and rendered[-1].role == message.role:
                # A turn whose answer failed is followed by the caller's next one.
                rendered[-1] = wire.ChatMessage(message.role, f"{rendered[-1].content} {message.content}")
            else:
                rendered.append(message)
    return tuple(rendered)


def _kind(item: ChatItem) -> object:
    """Calls, and results, that follow each other belong to one step; a message stands for itself."""
    return id(item) if isinstance(item, ChatMessage) else type(item)


def _messages(group: list[ChatItem]) -> Iterator[wire.ChatMessage]:
    match group[0]:
        case ChatMessage(role=role, content=content):
            if content:
                yield wire.ChatMessage("user" if role == "system" else role, content)
        case FunctionCall():
            yield call_message([item for item in group if isinstance(item, FunctionCall)])
        case FunctionCallOutput():
            yield result_message([item for item in group if isinstance(item, FunctionCallOutput)])


class PromptWindow:
    """Which items of a conversation the model is asked with: the newest turns that fit.

    They have ``context_tokens`` less ``reply_tokens``. The count is approximate, so a refusal ("too_long") is
    answered with ``drop_oldest_turn``.
    """

    def __init__(self, *, context_tokens: int, reply_tokens: int) -> None:
        self._budget = context_tokens - reply_tokens
        self._first: ChatItem | None = None

    def __repr__(self) -> str:
        return f"<PromptWindow {self._budget} tokens, from {self._first}>"

    def items(self, instructions: str, items: Sequence[ChatItem]) -> tuple[ChatItem, ...]:
        """The newest turns that fit beside ``instructions``; the oldest are left out, for good."""
        if self.tokens(instructions, items) > self._budget:
            while self.tokens(instructions, items) > self._budget * _KEEP_WHEN_FULL and self.drop_oldest_turn(items):
                pass
        return tuple(items[self._start(items) :])

    def fits(self, instructions: str, items: Sequence[ChatItem]) -> bool:
        """Whether nothing would have to be left out."""
        return self.tokens(instructions, items) <= self._budget

    def seen(self, items: Sequence[ChatItem]) -> tuple[ChatItem, ...]:
        """``items`` without those that are left out so far."""
        return tuple(items[self._start(items) :])

    def drop_oldest_turn(self, items: Sequence[ChatItem]) -> bool:
        """Leave out the oldest turn (a question and its answer). False if only the newest is left."""
        for item in items[self._start(items) + 1 :]:
            if isinstance(item, ChatMessage) and item.role == "user":
                self._first = item
                return True
        return False

    def tokens(self, instructions: str, items: Sequence[ChatItem]) -> int:
        """About how many tokens the model reads."""
        return _tokens(instructions) + sum(_tokens(_written(item)) for item in items[self._start(items) :])

    def _start(self, items: Sequence[ChatItem]) -> int:
        if self._first is None:
            return 0
        return next((n for n, item in enumerate(items) if item is self._first), 0)


def _written(item: ChatItem) -> str:
    match item:
        case ChatMessage(content=content):
            return content
        case FunctionCall():
            return call_message([item]).content
        case FunctionCallOutput():
            return result_message([item]).content
        case AgentHandoff():
            return ""


def _tokens(text: str) -> int:
    return MESSAGE_TOKENS + round(len(text.encode()) / BYTES_PER_TOKEN)
