"""What of a room's KV cache a new prompt can use again. Pure: token lists in, decisions out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

SHORTEST_SHIFT: Final = 16
"""Tokens that must agree for the rest of a cache to be moved: fewer are computed as fast."""


def common_prefix(one: Sequence[int], other: Sequence[int], start: int = 0) -> int:
    """How many tokens ``one[start:]`` and ``other`` begin with in common."""
    length = min(len(one) - start, len(other))
    for index in range(length):
        if one[start + index] != other[index]:
            return index
    return max(0, length)


def left_out(cached: Sequence[int], prompt: Sequence[int], keep: int) -> int:
    """How many tokens of ``cached`` must go after the first ``keep``, so that the rest continues ``prompt[:keep]``.

    The choice that keeps most of the cache; 0 when none keeps ``SHORTEST_SHIFT`` tokens.
    """
    rest = prompt[keep:]
    best, longest = 0, SHORTEST_SHIFT - 1
    for start in range(keep + 1, len(cached) - longest):
        if rest and cached[start] == rest[0]:
            length = common_prefix(cached, rest, start)
            if length > longest:
                best, longest = start - keep, length
    return best


def messages_of(tokens: Sequence[int], control: Collection[int]) -> Iterator[list[int]]:
    """``tokens`` in pieces: each control token alone, and what lies between two of them."""
    message: list[int] = []
    for token in tokens:
        if token in control:
            if message:
                yield message
                message = []
            yield [token]
        else:
            message.append(token)
    if message:
        yield message


class SaidMessages:
    """The messages one room's model has written, as the tokens that it chose.

    The text of a message, tokenised, need not give those tokens; in a prompt that holds the text they
    are put in its place, so that the prompt agrees with the KV cache. A message that was cut short (the
    caller heard only its beginning) agrees as far as it goes.

    ``piece``: the bytes of a token. ``control``: the tokens that stand between messages.
    """

    def __init__(self, piece: Callable[[int], bytes], control: Collection[int]) -> None:
        self._piece = piece
        self._control = control
        self._known: dict[bytes, list[int]] = {}

    def __repr__(self) -> str:
        return f"SaidMessages({len(self._known)})"

    def forget(self) -> None:
        """Nothing was said."""
        self._known = {}

    def remember(self, tokens: Sequence[int], prompt: int) -> None:
        """``tokens`` is a prompt of ``prompt`` tokens and what was generated after it."""
        start = prompt
        while start > 0 and tokens[start - 1] not in self._control:
            start -= 1
        # A model that writes control tokens itself ends its message there.
        message = next(messages_of(tokens[start:], self._control), [])
        if len(message) > prompt - start:
            self._known[self._text(message)] = message

    def put_into(self, tokens: list[int]) -> list[int]:
        """``tokens`` with the known messages as they were written. Forgets those that are not among them."""
        if not self._known:
            return tokens
        used: dict[bytes, list[int]] = {}
        out: list[int] = []
        for message in messages_of(tokens, self._control):
            text = self._text(message)
            known = next((known for known in self._known if text and known.startswith(text)), None)
            if known is not None:
                used[known] = self._known[known]
                message = self._beginning(used[known], len(text)) or message
            out += message
        self._known = used
        return out

    def _beginning(self, tokens: list[int], size: int) -> list[int]:
        """The first of ``tokens`` that are ``size`` bytes of text, or none if one of them lies across its end."""
        length = 0
        for count, token in enumerate(tokens, 1):
            length += len(self._piece(token))
            if length >= size:
                return tokens[:count] if length == size else []
        return []

    def _text(self, tokens: Sequence[int]) -> bytes:
        return b"".join(map(self._piece, tokens))
