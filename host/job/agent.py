"""What an agent is: how it behaves, what it can do, and where its author may step in."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from host.job.chat_context import ChatContext, ChatMessage
from host.job.settings import SessionSettings, TurnDetection
from host.job.tool_text import FunctionCall, ToolChoice
from host.job.tools import FunctionTool, find_tools
from inference.client import Generation

if TYPE_CHECKING:
    from host.job.session import VoiceSession


@dataclass(frozen=True, slots=True)
class Voice:
    """How the agent sounds. None is as the settings say.

    ``speed``: 1.0 is the voice's own. ``volume``: 1.0 is its own. ``speaker``: of a voice that has several.
    """

    speed: float | None = None
    volume: float | None = None
    speaker: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How one step of an answer is asked for. ``tool_choice``: whether tools may, or must, be called.

    ``temperature`` None is as the settings say. ``speculative`` and ``asked`` are for who hands them on: the answer may
    not be needed; the request is on its way.
    """

    tool_choice: ToolChoice = "auto"
    temperature: float | None = None
    speculative: bool = False
    asked: Callable[[Generation], None] = lambda _: None


class VoiceAgent:
    """``instructions`` for the model, ``tools`` that it may call, ``greeting`` that it opens with ("" waits).

    A subclass may override the hooks (``on_enter``, ``on_exit``, ``on_user_turn_completed``) and the nodes
    (``transcript_node``, ``llm_node``, ``pronunciation_node``, ``audio_output_node``), and its methods that are
    decorated with ``@function_tool`` are its tools, too.

    ``settings``: how the conversation is held; None takes the host's own. ``language``, ``voice``,
    ``allow_interruptions``, ``turn_detection`` and the endpointing delays replace single ones of them.
    ``chat_ctx``: what this agent knows was said before. ``max_tool_steps``: how often in a row tools may be called
    before an answer.

    Raises ``TypeError`` or ``ValueError`` for tools that are none, or of one name, or a ``turn_detection`` that there
    is not.
    """

    def __init__(
        self,
        instructions: str,
        *,
        tools: Sequence[Callable[..., Any]] = (),
        greeting: str = "",
        language: str | None = None,
        voice: Voice | None = None,
        chat_ctx: ChatContext | None = None,
        allow_interruptions: bool | None = None,
        turn_detection: TurnDetection | None = None,
        min_endpointing_delay_ms: int | None = None,
        max_endpointing_delay_ms: int | None = None,
        settings: SessionSettings | None = None,
        max_tool_steps: int = 3,
    ) -> None:
        if turn_detection not in (None, *get_args(TurnDetection)):
            allowed = ", ".join(get_args(TurnDetection))
            raise ValueError(f"turn_detection is {turn_detection!r}, allowed: {allowed}")
        self.greeting = greeting
        self.max_tool_steps = max_tool_steps
        self._instructions = instructions
        self._tools = find_tools(*tools, self)
        self._chat_ctx = ChatContext() if chat_ctx is None else chat_ctx.copy()
        self._settings = settings
        voice = voice or Voice()
        self._overrides = {
            "language": language,
            "speed": voice.speed,
            "volume": voice.volume,
            "speaker": voice.speaker,
            "allow_interruptions": allow_interruptions,
            "turn_detection": turn_detection,
            "min_endpointing_delay_ms": min_endpointing_delay_ms,
            "max_endpointing_delay_ms": max_endpointing_delay_ms,
        }
        self._session: VoiceSession | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._instructions[:40]!r}>"

    # --- what it is -----------------------------------------------------------------------------------

    @property
    def session(self) -> VoiceSession:
        """The session that it is in. Raises ``RuntimeError`` before it has entered one."""
        if self._session is None:
            raise RuntimeError("the agent is in no session; this is known from on_enter on")
        return self._session

    @property
    def instructions(self) -> str:
        """What the model is told to be."""
        return self._instructions

    @property
    def tools(self) -> tuple[FunctionTool[..., Any], ...]:
        """What the model may call."""
        return self._tools

    @property
    def chat_ctx(self) -> ChatContext:
        """What this agent knows was said. To change it, edit a copy and give it to ``update_chat_ctx``."""
        return self._chat_ctx

    def settings(self, base: SessionSettings) -> SessionSettings:
        """How its conversations are held, where the host would hold them as ``base`` says."""
        given = {name: value for name, value in self._overrides.items() if value is not None}
        return dataclasses.replace(self._settings or base, **given)  # type: ignore[arg-type]

    async def update_instructions(self, instructions: str) -> None:
        """Be told otherwise from the next answer on. The model reads the conversation anew for it."""
        self._instructions = instructions
        self._changed()

    async def update_tools(self, tools: Sequence[Callable[..., Any]]) -> None:
        """Have these tools from the next answer on, and the methods that are tools."""
        self._tools = find_tools(*tools, self)
        self._changed()

    async def update_chat_ctx(self, chat_ctx: ChatContext) -> None:
        """Know that this was said. What the model has read of it before an edit need not be read again."""
        self._chat_ctx.items[:] = chat_ctx.items
        self._changed()

    def _changed(self) -> None:
        if self._session is not None:
            self._session.prepare()

    # --- hooks: override them -------------------------------------------------------------------------

    async def on_enter(self) -> None:
        """It has taken over the session: at the beginning, or by a hand-off."""

    async def on_exit(self) -> None:
        """It has left the session, to another agent or because that is over."""

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        """The caller's turn is over, and is answered when this returns; it is waited for.

        ``turn_ctx`` is what was said before: what is changed in it holds for this answer alone. ``new_message`` may be
        edited. Raise ``StopResponse``, and nothing is answered, and the message is forgotten.
        """

    # --- nodes: override them -------------------------------------------------------------------------

    async def llm_node(
        self, chat_ctx: ChatContext, tools: Sequence[FunctionTool[..., Any]], model_settings: ModelSettings
    ) -> AsyncGenerator[str | FunctionCall, None]:
        """Who writes answers: pieces of text, as they come, and at the end the calls of tools.

        ``chat_ctx`` begins with the instructions. This asks the resident model.
        """
        async with aclosing(self.session.ask_model(chat_ctx, tools, model_settings)) as parts:
            async for part in parts:
                yield part

    def transcript_node(self, text: str) -> str:
        """What is taken for said, of what was transcribed of the caller; "" is nothing."""
        return text

    def pronunciation_node(self, text: str) -> str:
        """What the voice is given for a phrase of an answer. What is shown and remembered stays as it was written."""
        return text

    def audio_output_node(self, pcm: bytes, sample_rate: int) -> bytes:  # noqa: ARG002 (for who overrides it)
        """What is played of a block of speech: mono int16 at ``sample_rate``, as many samples, within milliseconds."""
        return pcm

    # --- for the session ------------------------------------------------------------------------------

    def enter(self, session: VoiceSession) -> None:
        """Called by the session that it takes over. Raises ``RuntimeError`` while it is in another one."""
        if self._session is not None and self._session is not session and not self._session.is_over:
            raise RuntimeError(f"{self!r} is in another session; make an agent for each")
        self._session = session
