"""What a turn costs the real model: it reads what is new, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from host import testing
from host.job.agent import ModelSettings, VoiceAgent
from host.job.chat_context import ChatContext
from host.job.tool_text import FunctionCall
from host.job.tools import FunctionTool, function_tool
from inference.client import Generation
from inference.wire.messages import GenerateDone

pytestmark = [pytest.mark.processes, pytest.mark.models]


class Observed(VoiceAgent):
    """Keeps what each request of its model had to read."""

    def __init__(self) -> None:
        super().__init__("You answer for a museum. Answer in one short sentence. " * 5)
        self.generations: list[Generation] = []

    @function_tool
    async def opening_hours(self, day: str) -> str:
        """When the museum is open on a day of the week."""
        return f"On {day} from nine to six."

    async def llm_node(
        self, chat_ctx: ChatContext, tools: Sequence[FunctionTool[..., Any]], model_settings: ModelSettings
    ) -> AsyncGenerator[str | FunctionCall, None]:
        observed = dataclasses.replace(model_settings, temperature=0.0, asked=self.generations.append)
        async for part in super().llm_node(chat_ctx, tools, observed):
            yield part

    def read(self) -> list[GenerateDone]:
        return [generation.done for generation in self.generations if generation.done is not None]


async def test_a_turn_costs_what_is_new_in_it() -> None:
    agent = Observed()
    async with testing.session(agent, engines="models") as session:
        await session.run(user_input="Good morning, is there a cloakroom?")
        await session.session.generate_reply(instructions="Ask whether the caller comes alone.", tool_choice="none")
        await session.run(user_input="There are two of us.")
        await session.session.generate_reply(user_input="And on Monday?", tool_choice="opening_hours")
        await session.run(user_input="Thank you.")
    steps = agent.read()
    assert len(steps) >= 6
    # The instructions and the tools are read once, whatever is asked afterwards.
    for before, done in itertools.pairwise(steps):
        new = done.prompt_tokens - done.cached_tokens
        assert done.cached_tokens >= before.prompt_tokens - 40, "what was read is read again"
        assert new < 120
