"""A language model's tokens: text becomes tokens, tokens become bytes, conversations become prompts."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import Any, Final

from inference.engines.base import EngineError, Message
from inference.engines.prompt import CHATML, ChatTemplate
from inference.engines.reuse import common_prefix
from inference.engines.turn_ends import end_of_words

_PLACEHOLDER: Final = "\u241f"
"""A message that stands in no template."""

_log = logging.getLogger("inference.llm")


class Vocabulary:
    """What a llama.cpp model's file says of its tokens, and its chat template.

    ``ends``: tokens that end a message. ``control``: those that stand between messages. ``longest_piece``: a bound
    on the bytes of one token. ``default_stop``: stop strings that a model without a template needs. ``behind_user``:
    what the template writes behind a user's message that ends a prompt.

    Raises ``EngineError`` for a chat template that is invalid.
    """

    def __init__(self, lib: Any, model: Any) -> None:
        self.native = vocab = lib.llama_model_get_vocab(model)
        self._lib = lib
        self._pieces: dict[int, bytes] = {}

        def text_of(token: int) -> str:
            return str(lib.llama_vocab_get_text(vocab, token).decode("utf-8", "replace")) if token >= 0 else ""

        self.size = int(lib.llama_vocab_n_tokens(vocab))
        tokens = range(self.size)
        self.ends = frozenset(t for t in tokens if lib.llama_vocab_is_eog(vocab, t))
        self.control = frozenset(t for t in tokens if lib.llama_vocab_is_control(vocab, t))
        # What the vocabulary writes for a token is never shorter than the token's own bytes.
        self.longest_piece = max(len(lib.llama_vocab_get_text(vocab, t)) for t in tokens)
        control = [text_of(t) for t in sorted(self.control)]
        source = lib.llama_model_chat_template(model, None)
        self.default_stop: tuple[str, ...] = ()
        if not source:
            _log.warning("the model file has no chat template; using ChatML")
            self.default_stop = ("<|im_end|>",)
            control += ["<|im_start|>", "<|im_end|>"]
        self._template = ChatTemplate(
            source.decode("utf-8") if source else CHATML,
            bos=text_of(lib.llama_vocab_bos(vocab)),
            eos=text_of(lib.llama_vocab_eos(vocab)),
            control=[text for text in control if text],
        )
        self.behind_user = self.around_user(())[1]

    def __repr__(self) -> str:
        return f"Vocabulary({self.size})"

    def prompt(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """What the model reads of ``messages``, as text and as tokens.

        Raises ``EngineError`` when the template refuses them, or they cannot be tokenised.
        """
        text = self._template.render(messages)
        return text, self.tokens_of_prompt(text)

    def around_user(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What a prompt has in front of the words of a user who speaks after ``messages``, and behind them."""
        before, _, behind = self._template.render([*messages, Message("user", _PLACEHOLDER)]).rpartition(_PLACEHOLDER)
        return before, behind

    def behind_words(self, text: str, tokens: Sequence[int]) -> int:
        """Of a prompt that ends with the user's message, how many tokens lie behind its last word.

        0 where that cannot be found.
        """
        if not text.endswith(self.behind_user):
            return 0
        end = end_of_words(text[: len(text) - len(self.behind_user)])
        behind = self.tokens(text[end:], special=True)
        if behind and list(tokens[-len(behind) :]) == behind:
            return len(behind)
        # Some vocabularies begin every text with a space.
        return len(tokens) - common_prefix(tokens, self.tokens_of_prompt(text[:end]))

    def tokens_of_prompt(self, text: str) -> list[int]:
        """A prompt, or its beginning, as tokens. Raises ``EngineError`` when there is no way."""
        # A template that writes the begin token itself must not get a second one.
        begin = not (self._template.bos and text.startswith(self._template.bos))
        tokens = self.tokens(text, special=True, begin=begin)
        if not tokens:
            raise EngineError(f"language model: the prompt ({len(text)} characters) cannot be tokenised")
        return tokens

    def tokens(self, text: str, *, special: bool, begin: bool = False) -> list[int]:
        """``text`` as tokens; none when there is no way. ``special``: control tokens may stand in it in writing."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        tokens = (ctypes.c_int32 * size)()
        count = self._lib.llama_tokenize(self.native, data, len(data), tokens, size, begin, special)
        return tokens[: max(0, count)]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; of one that stands between messages, none."""
        piece = self._pieces.get(token)
        if piece is None:
            size = 256
            while True:
                buffer = ctypes.create_string_buffer(size)
                count = self._lib.llama_token_to_piece(self.native, token, buffer, size, 0, False)
                if count >= 0:
                    break
                size = -count
            piece = self._pieces[token] = buffer.raw[:count]
        return piece
