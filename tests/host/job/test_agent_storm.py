"""Callers, authors, tools and a model that do anything at any time: what must hold, whatever happens.

Everything that was heard is in the history, word for word, and nothing else; every speech ends; roles alternate.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from host.job.agent import VoiceAgent
from host.job.events import ErrorEvent, SpeechCreatedEvent
from host.job.settings import SessionSettings
from host.job.speech import PhraseCutter, SpeakablePhrase
from host.job.speech_handle import SpeechHandle
from host.job.tools import function_tool
from inference.wire.messages import SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted, Transcript
from tests.host.job.fakes import PLAIN, SAMPLES_PER_CHAR, FakeGeneration
from tests.host.job.test_session import Talk, talking

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
EAGER = SessionSettings(min_interruption_ms=200, false_interruption_timeout_ms=200, user_away_timeout_s=2.0)
"""Answers begun on speculation, back-channels, graded endpointing."""


class Handy(VoiceAgent):
    """Its tools are quick, slow, or hand over."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__("Do anything.")
        self.rng = rng
        self.began = self.ended = 0

    @function_tool(filler="Just a moment.", filler_after_ms=0)
    async def look_up(self) -> str:
        """Look something up."""
        self.began += 1
        for _ in range(self.rng.randrange(200)):
            await asyncio.sleep(0)
        self.ended += 1
        return "found"

    @function_tool
    async def hand_over(self) -> VoiceAgent:
        """Somebody else takes over."""
        return Handy(self.rng)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 6))) + "."


class Storm:
    """Who acts: the model, the ear, the transcriber, the caller and the author."""

    def __init__(self, talk: Talk, rng: random.Random) -> None:
        self.talk = talk
        self.rng = rng
        self.handles: list[SpeechHandle] = []
        talk.session.on("speech_created", self._created)

    def _created(self, event: SpeechCreatedEvent) -> None:
        self.handles.append(event.speech_handle)

    @staticmethod
    async def _until(condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 (no time passes here but that of the audio)
            await asyncio.sleep(0)

    async def model(self) -> None:
        """Answers, or calls tools where it may."""
        writers: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            await self._until(lambda: len(self.talk.inference.generations) > number)  # noqa: B023
            writers.add(asyncio.create_task(self._write(self.talk.inference.generations[number])))

    async def _write(self, generation: FakeGeneration) -> None:
        rng = self.rng
        if "tool_call" in str(generation.settings["grammar"]) and rng.random() < 0.4:
            name = rng.choice(["look_up", "look_up", "hand_over"])
            generation.write(f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>')
        else:
            for word in " ".join(sentence(rng) for _ in range(rng.randint(1, 4))).split(" "):
                generation.write(f"{word} ")
                for _ in range(rng.randrange(5)):
                    await asyncio.sleep(0)
        generation.finish()

    async def transcriber(self) -> None:
        for number in itertools.count():
            await self._until(lambda: len(self.talk.inference.transcriptions) > number)  # noqa: B023
            for _ in range(self.rng.randrange(20)):
                await asyncio.sleep(0)
            result = self.talk.inference.transcriptions[number][3]
            text = self.rng.choice(["", "Mhm.", sentence(self.rng), sentence(self.rng), sentence(self.rng)])
            if not result.done():
                result.set_result(Transcript(1, text, "en", -0.1, 0.0, 1.0))

    async def ear(self) -> None:
        while True:
            self.talk.room.hear(self.rng.choice([100, 320, 1_000]))
            await asyncio.sleep(0)

    async def speaks(self) -> None:
        """With pauses, some of them long enough to end a turn."""
        talk, rng = self.talk, self.rng
        voice = talk.inference.voice
        began = talk.inference.position
        await talk.silence(60)
        voice.put_nowait(SpeechStarted(began))
        while True:
            await talk.silence(rng.choice([40, 100, 400, 800]))
            ended = talk.inference.position
            await talk.silence(100)
            voice.put_nowait(SpeechPaused(0, ended))
            await talk.silence(rng.choice([20, 100, 300]))
            if rng.random() < 0.6:
                voice.put_nowait(SpeechEnded(0, ended))
                await talk.silence(rng.choice([0, 300, 1_000, 3_000]))
                return
            voice.put_nowait(SpeechResumed(talk.inference.position))

    async def acts(self) -> None:
        session, rng = self.talk.session, self.rng
        acts: list[Callable[[], object]] = [
            lambda: session.say(sentence(rng)),
            lambda: session.say(sentence(rng), allow_interruptions=False),
            lambda: session.generate_reply(instructions=sentence(rng)),
            lambda: session.generate_reply(user_input=sentence(rng)),
            lambda: session.generate_reply(tool_choice="look_up"),
            session.interrupt,
            lambda: session.interrupt(force=True),
            lambda: rng.choice(self.handles).interrupt() if self.handles else None,
            lambda: session.update_agent(Handy(rng)),
        ]
        with contextlib.suppress(RuntimeError):
            rng.choice(acts)()
        if rng.random() < 0.2:
            await session.current_agent.update_instructions(sentence(rng))
        for _ in range(rng.randrange(300)):
            await asyncio.sleep(0)

    async def restarts(self) -> None:
        """The inference process dies, and another one takes its place."""
        if self.rng.random() < 0.7:
            return
        before = self.talk.outages
        self.talk.inference.go_away()
        await self._until(lambda: self.talk.outages > before)
        await self.talk.silence(self.rng.choice([0, 100, 1_000]))
        self.talk.inference.come_back()
        for _ in range(20):
            await asyncio.sleep(0)

    async def until_idle(self) -> None:
        async with asyncio.timeout(30):
            while not self.talk.session.is_idle or self.talk.session.agent_state != "listening":
                await self.talk.silence(100)

    async def rages(self, acts: int) -> None:
        actors: list[Callable[[], Awaitable[Any]]] = [self.model, self.transcriber, self.ear]
        tasks = [asyncio.ensure_future(actor()) for actor in actors]
        try:
            for _ in range(acts):
                await self.rng.choice([self.speaks, self.acts, self.acts, self.restarts])()
            await self.until_idle()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def phrase_of(text: str) -> SpeakablePhrase:
    cutter = PhraseCutter(1_000, 1_000)
    return SpeakablePhrase(tuple(word for part in cutter.push(text) + cutter.finish() for word in part.words))


def heard_words(talk: Talk) -> list[str]:
    """From the sound alone: every phrase has a sample value of its own."""
    samples = np.frombuffer(talk.room.heard, np.int16)
    words: list[str] = []
    for number, phrase in enumerate(talk.inference.phrases, 1):
        share = int((samples == number).sum()) / (SAMPLES_PER_CHAR * len(phrase.text))
        words += phrase_of(phrase.text).heard(share).split()
    return words


@pytest.mark.parametrize("settings", [PLAIN, EAGER], ids=["plain", "eager"])
@pytest.mark.parametrize("seed", range(12))
async def test_what_was_heard_is_the_history_whatever_happens(seed: int, settings: SessionSettings) -> None:
    rng = random.Random(seed)
    async with talking(agent=Handy(rng), settings=settings) as talk:
        errors: list[ErrorEvent] = []
        talk.session.on("error", errors.append)
        storm = Storm(talk, rng)
        await storm.rages(40)
        assert {event.source for event in errors} <= {"inference"}
        assert all(handle.done() for handle in storm.handles)
        history = talk.session.history.messages()
        said = " ".join(message.content for message in history if message.role == "assistant").split()
        assert said == heard_words(talk)
        in_handles = " ".join(handle.said for handle in storm.handles).split()
        assert sorted(in_handles) == sorted(said), "who had it said knows what was heard of it"
        for generation in talk.inference.generations:
            roles = [message.role for message in generation.messages]
            assert all(one != other for one, other in itertools.pairwise(roles))
        executed = [item for item in talk.session.history.items if item.type == "function_call_output"]
        calls = [item for item in talk.session.history.items if item.type == "function_call"]
        assert len(executed) == len(calls)
