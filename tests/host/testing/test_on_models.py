"""An agent on the real models: by voice, both ways, and in writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from host import testing
from host.job.agent import VoiceAgent
from host.job.tools import function_tool
from tests.word_errors import plain

pytestmark = pytest.mark.models

SPEECH = Path(__file__).parents[2] / "data" / "speech"


class Clock(VoiceAgent):
    def __init__(self) -> None:
        super().__init__("You tell the time. Be brief.", greeting="The time, please ask.")
        self.asked = 0

    @function_tool
    async def time(self) -> str:
        """What time it is."""
        self.asked += 1
        return "half past nine"


async def test_a_voice_asks_and_a_voice_answers() -> None:
    async with testing.session(Clock(), engines="models", audio=True) as session:
        session.opening.expect.next_event().is_message(text="The time, please ask.")
        result = await session.run(audio=SPEECH / "whats-the-date-today.wav")
        assert plain(result.user_input) == "what is the date today"
        result.expect[-1].is_message(role="assistant", matches=r"\w")
        turn = result.turn
        assert turn.reply_audio_s > 0.2
        # On the room's clock the models take no time.
        assert turn.response_ms <= turn.endpointing_ms + turn.stt_ms + 200
        result = await session.run(speech="What time is it?", may_fail=False)
        assert result.user_input
        assert session.history.messages()[-1].role == "assistant"


async def test_a_call_that_the_model_has_to_make() -> None:
    agent = Clock()
    async with testing.session(agent, engines="models") as session:
        await session.session.generate_reply(user_input="What time is it?", tool_choice="time")
        assert agent.asked == 1
        with session.mock_tools({"time": lambda: "noon"}):
            await session.session.generate_reply(user_input="And now?", tool_choice="time")
        assert agent.asked == 1
        outputs = [item.output for item in session.history.items if item.type == "function_call_output"]  # type: ignore[union-attr]
        assert outputs == ["half past nine", "noon"]
