"""The history of one conversation, as the language model is given it. Pure.

An assistant's message holds what was *heard* of it, so the model never believes that the caller
knows what was cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from host.job.speech import SpeakablePhrase, speech_length
from inference.wire.messages import ChatMessage

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


class ChatHistory:
    """Instructions and turns, oldest first.

    ``messages`` fits them into ``context_tokens`` less ``reply_tokens`` by leaving out the oldest
    turns; the count is approximate, so a refusal ("too_long") is answered with ``drop_oldest_turn``.
    """

    def __init__(self, instructions: str, *, context_tokens: int, reply_tokens: int) -> None:
        self._system = ChatMessage("system", instructions)
        self._budget = context_tokens - reply_tokens
        self._items: list[ChatMessage] = []
        self._first = 0

    def __repr__(self) -> str:
        return f"<ChatHistory {len(self._items)} messages, {self._first} left out, about {self.tokens()} tokens>"

    @property
    def items(self) -> tuple[ChatMessage, ...]:
        """All that was said in this conversation, also what no longer fits; without the instructions."""
        return tuple(self._items)

    def add_user(self, text: str) -> None:
        """The caller said ``text``."""
        self._items.append(ChatMessage("user", text))

    def add_assistant(self, text: str) -> None:
        """The caller heard ``text``. Nothing heard is nothing said; what follows directly is one message."""
        if not text.strip():
            return
        if len(self._items) > self._first and self._items[-1].role == "assistant":
            text = f"{self._items.pop().content} {text.lstrip()}"
        self._items.append(ChatMessage("assistant", text))

    def take_back_user(self) -> str:
        """Remove the caller's last message, which goes on, and return it. Raises ``ValueError`` if there is none."""
        if not self._items or self._items[-1].role != "user":
            raise ValueError("the last message is not the caller's")
        self._first = min(self._first, len(self._items) - 1)
        return self._items.pop().content

    def messages(self) -> tuple[ChatMessage, ...]:
        """What the model is asked with: instructions and the newest turns that fit, roles alternating."""
        if self.tokens() > self._budget:
            while self.tokens() > self._budget * _KEEP_WHEN_FULL and self.drop_oldest_turn():
                pass
        return self._merged(self._items[self._first :])

    def _merged(self, items: Iterable[ChatMessage]) -> tuple[ChatMessage, ...]:
        merged = [self._system] if self._system.content else []
        for item in items:
            if merged and merged[-1].role == item.role:
                # A turn whose answer failed is followed by the caller's next one.
                merged[-1] = ChatMessage(item.role, f"{merged[-1].content} {item.content}")
            else:
                merged.append(item)
        return tuple(merged)

    def followed_by(self, *coming: ChatMessage) -> tuple[ChatMessage, ...]:
        """``messages`` with ``coming`` after them; empty where there is nothing, or turns would have to be left out."""
        items = (*self._items[self._first :], *coming)
        if sum(_tokens(item.content) for item in (self._system, *items)) > self._budget:
            return ()
        return self._merged(items)

    def drop_oldest_turn(self) -> bool:
        """Leave out the oldest turn (a question and its answer). False if only the newest is left."""
        later = [n for n in range(self._first + 1, len(self._items)) if self._items[n].role == "user"]
        if not later:
            return False
        self._first = later[0]
        return True

    def tokens(self) -> int:
        """About how many tokens ``messages`` is."""
        return sum(_tokens(item.content) for item in (self._system, *self._items[self._first :]))


def _tokens(text: str) -> int:
    return MESSAGE_TOKENS + round(len(text.encode()) / BYTES_PER_TOKEN)
