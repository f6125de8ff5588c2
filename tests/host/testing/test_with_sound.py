"""Agents with sound, on the inference process with the engines that are shipped for tests, on the room's own clock.

What is counted on that clock is the same on every machine, so these bounds are narrow.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from host import testing
from host.job.agent import VoiceAgent
from host.job.events import UserStateChangedEvent
from host.job.settings import SessionSettings
from host.job.tools import RunContext, function_tool
from host.testing import Call, ScriptedModel
from host.testing.caller import WORD_S, made_up

pytestmark = pytest.mark.processes

SPEECH = Path(__file__).parents[2] / "data" / "speech"
PLAIN = SessionSettings(turn_detection="vad", vad_endpointing_delay_ms=500)
TICK_MS = 20


async def test_a_turn_on_the_rooms_clock() -> None:
    model = ScriptedModel("We open at nine in the morning.")
    async with testing.session(
        VoiceAgent("Be brief.", greeting="Good day."), audio=True, model=model, settings=PLAIN
    ) as session:
        session.opening.expect.next_event().is_message(text="Good day.")
        session.opening.expect.no_more_events()
        result = await session.run(speech="When do you open?")
        result.expect.next_event().is_message(role="assistant", text="We open at nine in the morning.")
        result.expect.no_more_events()
        turn = result.turn
        assert result.user_input == turn.transcript == "When do you open?"
        assert turn.audio_s == pytest.approx(4 * WORD_S, abs=0.07)
        # Nothing but the delay takes time on this clock: engines do not.
        assert turn.endpointing_ms + turn.stt_ms <= turn.response_ms <= turn.endpointing_ms + turn.stt_ms + 3 * TICK_MS
        assert turn.reply_audio_s == pytest.approx(7 * 0.3, abs=0.001)
        assert not turn.interrupted
        assert len(session.room.answer) / 2 / session.room.rate == pytest.approx(7 * 0.3, abs=0.02)  # type: ignore[union-attr]
    assert model.asked[-1][-1].content == "When do you open?"


async def test_the_same_turn_takes_the_same_time() -> None:
    seen = []
    for _ in range(2):
        async with testing.session(
            VoiceAgent("Be brief."), audio=True, model=ScriptedModel("At nine."), settings=PLAIN
        ) as session:
            turn = (await session.run(speech="When do you open?")).turn
            seen.append((turn.audio_s, turn.endpointing_ms, turn.response_ms, turn.reply_audio_s))
    first, second = seen
    # To two ticks: which tick a request's answer comes in depends on the machine.
    assert first == pytest.approx(second, abs=2 * TICK_MS)


async def test_an_interruption() -> None:
    long = "This is a rather long answer that takes quite a while to be heard by anybody."
    model = ScriptedModel(long, "Fine.")
    async with testing.session(VoiceAgent("Be brief."), audio=True, model=model, settings=PLAIN) as session:
        result = await session.run(speech="Tell me more", until_heard_s=1.0)
        result.expect.no_more_events()
        result = await session.run(speech="Please stop that right now")
        heard = result.expect.next_event().is_message(role="assistant").item.content
        assert long.startswith(heard)
        assert 0 < len(heard) < len(long)
        result.expect.next_event().is_message(text="Fine.")
        result.expect.no_more_events()
        first, second = result.turns
        assert first.interrupted
        assert 1.0 <= first.reply_audio_s < 2.5
        assert first.reply == heard
        # What is no cough lasts so long; a few ticks are the detection's.
        assert 0 <= first.barge_in_ms <= PLAIN.min_interruption_ms + 5 * TICK_MS
        assert not second.interrupted


async def test_silence_and_time_that_passes() -> None:
    async with testing.session(VoiceAgent("Be brief."), audio=True, model=ScriptedModel()) as session:
        result = await session.run(audio=testing.silence(0.5))
        result.expect.no_more_events()
        assert result.turns == []
        before = session.room.now()  # type: ignore[union-attr]
        await session.wait(2.0)
        assert session.room.now() - before == pytest.approx(2.0, abs=0.03)  # type: ignore[union-attr]


async def test_a_caller_who_is_away() -> None:
    class Patient(VoiceAgent):
        async def on_enter(self) -> None:
            self.session.on("user_state_changed", self.ask)

        def ask(self, event: UserStateChangedEvent) -> None:
            if event.new_state == "away":
                self.session.say("Are you still there?")

    settings = SessionSettings(user_away_timeout_s=3.0)
    async with testing.session(Patient("Be brief."), audio=True, model=ScriptedModel(), settings=settings) as session:
        result = await session.wait(2.0)
        result.expect.no_more_events()
        result = await session.wait(4.0)
        result.expect.next_event().is_message(text="Are you still there?")


async def test_how_sure_the_model_is_decides_how_long_is_waited() -> None:
    delays = []
    for likely in (1.0, 0.0):
        model = ScriptedModel("Yes.", end_of_turn=likely)
        async with testing.session(VoiceAgent("Be brief."), audio=True, model=model) as session:
            delays.append((await session.run(speech="I would like to")).turn.endpointing_ms)
    sure, unsure = delays
    assert sure < unsure


async def test_what_the_test_has_the_agent_say() -> None:
    async with testing.session(VoiceAgent("Be brief."), audio=True, model=ScriptedModel("Very well.")) as session:
        handle = session.session.say("We close in ten minutes, please come to the till.", allow_interruptions=False)
        result = await session.listen(until_heard_s=1.0)
        result.expect.no_more_events()
        assert not handle.done()
        result = await session.run(speech="Do I have to?")
        result.expect.next_event().is_message(text="We close in ten minutes, please come to the till.")
        assert not handle.interrupted


async def test_a_caller_who_pauses_and_goes_on_has_one_turn() -> None:
    """What was begun at the pause was in vain, and the script is as it was."""
    model = ScriptedModel("At eight.", end_of_turn=lambda said: 1.0 if said.endswith("tonight?") else 0.0)
    speech = testing.tone(1.0) + testing.silence(0.6) + testing.tone(1.0)
    async with testing.session(VoiceAgent("Be brief."), audio=True, model=model) as session:
        result = await session.run(audio=speech, text="Do you have a table for two people tonight?")
        result.expect.next_event().is_message(text="At eight.")
        result.expect.no_more_events()
        assert result.turn.transcript == "Do you have a table for two people tonight?"
        assert result.turn.audio_s == pytest.approx(2.6, abs=0.1)


async def test_typed_in_a_call() -> None:
    async with testing.session(VoiceAgent("Be brief."), audio=True, model=ScriptedModel("At nine.")) as session:
        result = await session.run(user_input="When do you open?")
        result.expect.next_event().is_message(text="At nine.")
        result.expect.no_more_events()
        assert len(session.room.answer) / 2 / session.room.rate == pytest.approx(2 * 0.3, abs=0.02)  # type: ignore[union-attr]


async def test_a_tool_that_takes_its_time() -> None:
    class Slow(VoiceAgent):
        @function_tool(filler="One moment please.", filler_after_ms=20)
        async def look(self, context: RunContext[Any]) -> str:
            """Look it up."""
            await asyncio.sleep(0.3)
            return "at nine"

    model = ScriptedModel(Call("look"), "We open at nine.")
    async with testing.session(Slow("Be brief."), audio=True, model=model, settings=PLAIN) as session:
        result = await session.run(speech="When do you open?")
        result.expect.next_event().is_function_call(name="look")
        result.expect.next_event().is_function_call_output(output="at nine")
        result.expect.next_event().is_message(matches=r"One moment please\.\s+We open at nine\.")
        result.expect.no_more_events()


async def test_a_recording_and_what_the_fakes_make_of_it() -> None:
    wave = SPEECH / "whats-the-date-today.wav"
    async with testing.session(VoiceAgent("Be brief."), audio=True) as session:
        result = await session.run(audio=wave)
        # The fakes say how much they heard, and repeat what was said.
        assert result.user_input.startswith("heard ")
        result.expect.next_event().is_message(text=f"You said: {result.user_input}")
        result = await session.run(audio=wave, text="What's the date today?")
        result.expect.next_event().is_message(text="You said: What's the date today?")


async def test_the_real_clock() -> None:
    loop = asyncio.get_running_loop()
    model = ScriptedModel("At nine.")
    async with testing.session(
        VoiceAgent("Be brief."), audio=True, clock="real", model=model, settings=PLAIN
    ) as session:
        began = loop.time()
        result = await session.run(speech="When?")
        # No less: it is real time, or, on a busy machine, slower.
        assert loop.time() - began >= 0.9 * result.seconds
        assert result.seconds >= WORD_S + 0.5 + 2 * 0.3
        result.expect.next_event().is_message(text="At nine.")


async def test_a_process_of_ones_own() -> None:
    with testing.engines("fake") as running:
        assert running.is_running()
        async with testing.session(VoiceAgent("Be brief."), engines=running) as session:
            assert (await session.run(user_input="Hello")).reply == "You said: Hello"
    assert not running.is_running()


@pytest.mark.parametrize("wrong", [b"", b"123"])
async def test_samples_that_are_none(wrong: bytes) -> None:
    async with testing.session(VoiceAgent("Be brief."), audio=True) as session:
        with pytest.raises(ValueError, match="are no 16-bit samples"):
            await session.run(audio=wrong)
        with pytest.raises(ValueError, match="No such file"):
            await session.run(audio="nothing.wav")
        assert len(made_up("two words")) == 2 * 16_000 * 2 * WORD_S
