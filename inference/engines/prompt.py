"""The text around a language model: a conversation becomes a prompt, tokens' bytes become text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NoReturn

from inference.engines.base import EngineError, Message

CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a model file without a template (a base model): the most common format, as llama.cpp does."""


class ChatTemplate:
    """The model file's own chat template, rendered in a sandbox (a model file is not trusted code)."""

    def __init__(self, source: str, bos: str, eos: str, control: Sequence[str]) -> None:
        import jinja2.sandbox

        self._errors: tuple[type[Exception], ...] = (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
        )
        self.bos = bos
        self._eos = eos
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )

        def refuse(message: str) -> NoReturn:
            raise jinja2.TemplateError(message)

        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda layout: datetime.now().astimezone().strftime(layout)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as exc:
            raise EngineError(f"language model: the model file's chat template is invalid: {exc}") from exc
        self._has_tools = re.search(r"""["']tool["']""", source) is not None
        longest_first = sorted(set(control), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt text, ending where the assistant begins. Raises ``EngineError`` when the template refuses."""
        given = [{"role": m.role, "content": self._harmless(m.content)} for m in messages]
        # A model that was never told of tools would read their role's name for the first time.
        no_tools = [message | ({"role": "user"} if message["role"] == "tool" else {}) for message in given]
        ways = [given] if self._has_tools else []
        if not ways or no_tools != given:
            ways.append(no_tools)
        if len(given) > 1 and no_tools[0]["role"] == "system" and no_tools[1]["role"] == "user":
            # Some models (Gemma) have no system role; their makers put it in front of the first user message.
            first = {"role": "user", "content": f"{given[0]['content']}\n\n{given[1]['content']}"}
            ways.append([first, *no_tools[2:]])
        refused: Exception | None = None
        for way in ways:
            try:
                return self._render(way)
            except self._errors as exc:
                refused = refused or exc
        raise EngineError(f"language model: the chat template refuses the messages: {refused}") from refused

    def _render(self, messages: list[dict[str, str]]) -> str:
        # enable_thinking: a spoken answer has no use for a long silent preamble.
        return self._template.render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=self.bos,
            eos_token=self._eos,
            enable_thinking=False,
        )

    def _harmless(self, content: str) -> str:
        """``content`` without control tokens in writing: nobody may end a message from inside it."""
        if self._control is None:
            return content
        while (shorter := self._control.sub("", content)) != content:
            content = shorter
        return content


class TextStream:
    """Bytes of tokens in, text out: whole UTF-8 characters, and nothing of a stop string.

    Text that could be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def __repr__(self) -> str:
        return f"TextStream(held={self._held!r}, stopped={self.stopped})"

    def feed(self, data: bytes) -> str:
        """The text that is certain after ``data``; sets ``stopped`` when a stop string is complete."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data)
        self._held = ""
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        if keep:
            text, self._held = text[:-keep], text[-keep:]
        return text

    def finish(self) -> str:
        """What was held back and is now known to be text. Half a character at the end is dropped."""
        held, self._held = self._held, ""
        return "" if self.stopped else held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop`` and is not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
