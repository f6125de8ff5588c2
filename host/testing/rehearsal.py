"""An agent, turn by turn: what ``async with host.testing.session(agent)`` gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, cast

from host.job.agent import VoiceAgent
from host.job.chat_context import ChatContext
from host.job.dialogue import Dialogue, Outlet
from host.job.pipeline import Conversation
from host.job.session import VoiceSession
from host.job.settings import SessionSettings
from host.job.tools import mocked
from host.job.written import WrittenConversation
from host.testing.caller import Audio, made_up, pcm, sounding, spoken
from host.testing.overheard import NoEngines, OverheardRoom
from host.testing.resident import EngineKind, Engines, shared
from host.testing.result import RunResult
from host.testing.rooms import ClockKind, RoomInWriting, RoomWithSound
from host.testing.scripted import Mocks, ScriptedModel
from inference.client import InferenceRoom, InferenceUnavailableError

DEADLINE_S = 120.0
"""In real time: a turn that takes longer hangs."""
_SETTLED_S = 0.3
"""On the room's clock: a turn is over when nothing has happened for so long."""
_UNHEARD_S = 1.0
"""On the room's clock, beyond the longest endpointing delay: what the caller said has become no turn."""
_CONTEXT_TOKENS = 2048
_IN_WRITING = "this session is in writing, and nothing is heard in it; session(..., audio=True) is one with sound"


class Rehearsal:
    """A session whose caller is a test. Made by ``session``.

    ``session``: the ``VoiceSession``, with all that it can do. ``model``: the script, where there is one.
    ``opening``: what the agent did before the caller said anything. ``room``: what it was told; with sound, also
    what was heard of the agent last (``room.answer``).
    """

    def __init__(
        self,
        session: VoiceSession,
        conversation: Outlet,
        room: RoomInWriting | RoomWithSound,
        inference: OverheardRoom | NoEngines,
        engines: Engines | None,
        model: ScriptedModel | None,
        mocks: Mocks,
        settings: SessionSettings,
    ) -> None:
        self.session = session
        self.room = room
        self.model = model
        self.opening = RunResult()
        self._conversation = conversation
        self._inference = inference
        self._engines = engines
        self._mocks = mocks
        self._settings = settings
        self._holding: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Rehearsal {self.session!r}>"

    @property
    def current_agent(self) -> VoiceAgent:
        """Who has the word."""
        return self.session.current_agent

    @property
    def history(self) -> ChatContext:
        """What was said, and which tools were called."""
        return self.session.history

    @property
    def userdata(self) -> Any:
        """The session's."""
        return self.session.userdata

    # --- turns ----------------------------------------------------------------------------------------

    async def run(
        self,
        *,
        user_input: str | None = None,
        speech: str | None = None,
        audio: Audio | None = None,
        text: str | None = None,
        until_heard_s: float | None = None,
        may_fail: bool = False,
    ) -> RunResult:
        """One turn of the caller, and all that the agent does then, until there is nothing more to come.

        ``user_input`` is typed. ``speech`` is said by a voice, and ``audio`` is played, in a session with sound;
        ``text`` is then what was said, where the engines are fakes and hear no words. With ``until_heard_s`` it returns
        when so many seconds of the agent were heard: what the caller does next interrupts it.

        Raises what failed in the agent (a hook, a node, a model) unless it ``may_fail``, and ``ScriptEndedError`` when
        the script has no answer left. Raises ``TimeoutError`` when a turn does not end.
        """
        given = [value for value in (user_input, speech, audio) if value is not None]
        if len(given) != 1:
            raise ValueError("a turn is one of user_input (typed), speech (to be spoken) and audio (to be played)")
        if user_input is None or until_heard_s is not None:
            self._room_with_sound()
        if user_input is not None:
            result = RunResult(user_input)
            return await self._record(result, lambda: self._type(user_input), until_heard_s, may_fail=may_fail)
        result = RunResult()
        if speech is not None:
            samples, text = await self._say(speech)
        else:
            assert audio is not None
            samples = pcm(audio)
        return await self._record(result, lambda: self._play(samples, text), until_heard_s, may_fail=may_fail)

    async def listen(self, *, until_heard_s: float | None = None, may_fail: bool = False) -> RunResult:
        """The caller listens until the agent has nothing more to say: for what the test had it say."""
        if until_heard_s is not None:
            self._room_with_sound()
        return await self._record(RunResult(), lambda: None, until_heard_s, may_fail=may_fail)

    async def wait(self, seconds: float, *, may_fail: bool = False) -> RunResult:
        """The caller says nothing for ``seconds`` of the room's clock; in a session with sound."""
        room = self._room_with_sound()
        result = RunResult()
        with result.recorded(self.session):
            end = room.now() + seconds
            await self._while_held(room.run(lambda: room.now() >= end))
        return self._checked(result, may_fail=may_fail)

    @contextmanager
    def mock_tools(
        self, functions: Mapping[str, Callable[..., Any]], *, agent: type[VoiceAgent] = VoiceAgent
    ) -> Iterator[None]:
        """Inside, these are called in the place of the tools of these names. The model knows the tools as they are."""
        remove = self._mocks.add(agent, functions)
        try:
            yield
        finally:
            remove()

    # --- made by session ------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Begin, and let the agent say what it begins with."""
        token = mocked.set(self._mocks)
        try:
            self._holding = asyncio.create_task(self.session.hold(), name="rehearsal")
        finally:
            mocked.reset(token)
        # It begins in its first step: the greeting and the first hook are known after that.
        await asyncio.sleep(0)
        self.opening = await self._record(RunResult(), lambda: None, None, may_fail=False)

    async def end(self) -> None:
        """End the session. Raises the ``InferenceError`` that ended it before."""
        if self._holding is None:
            return
        closing = asyncio.create_task(self.session.aclose("the test is over"), name="rehearsal-end")
        await asyncio.wait({closing, self._holding}, return_when=asyncio.ALL_COMPLETED)
        closing.result()
        self._holding.result()

    # --- how time passes ------------------------------------------------------------------------------

    async def _record(
        self, result: RunResult, begin: Callable[[], None], until_heard_s: float | None, *, may_fail: bool
    ) -> RunResult:
        with result.recorded(self.session):
            begin()
            if isinstance(self.room, RoomWithSound):
                await self._while_held(self._pass_time(self.room, result, until_heard_s))
            else:
                await self._while_held(self._until_idle())
        return self._checked(result, may_fail=may_fail)

    def _checked(self, result: RunResult, *, may_fail: bool) -> RunResult:
        if self.model is not None and self.model.failure is not None:
            raise self.model.failure
        if result.errors and not may_fail:
            raise result.errors[0]
        return result

    async def _until_idle(self) -> None:
        assert isinstance(self._conversation, WrittenConversation)
        while not (self._conversation.is_idle and self.session.is_idle):
            await self._conversation.wait_idle()
            await self.session.wait_idle()

    async def _pass_time(self, room: RoomWithSound, result: RunResult, until_heard_s: float | None) -> None:
        began = busy_at = room.now()
        room.answer.clear()
        spoke = room.caller_is_speaking
        # A caller who was not understood is waited for as long as any rule of the turns may take.
        unheard_s = self._settings.max_endpointing_delay_ms / 1000 + _UNHEARD_S

        def is_over() -> bool:
            nonlocal busy_at
            if until_heard_s is not None and len(room.answer) / (2 * room.rate) >= until_heard_s:
                return True
            if room.caller_is_speaking or self._is_busy(room):
                busy_at = room.now()
            return room.now() - busy_at >= (unheard_s if spoke and not result.transcribed else _SETTLED_S)

        await room.run(is_over)
        result.seconds = room.now() - began

    def _is_busy(self, room: RoomWithSound) -> bool:
        working = isinstance(self._inference, OverheardRoom) and self._inference.is_at_work
        return room.state != "listening" or not room.is_silent or working or not self.session.is_idle

    async def _while_held(self, work: Any) -> None:
        """Await ``work``; what ends the session meanwhile is raised."""
        assert self._holding is not None
        working = asyncio.ensure_future(work)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.wait({working, self._holding}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise TimeoutError(f"the turn has not ended within {DEADLINE_S:g} s: {self!r}") from None
        finally:
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        if self._holding.done():
            self._holding.result()
            if working.cancelled():
                raise RuntimeError(f"the session is over: {self.session.close_reason}")
        working.result()

    # --- the caller -----------------------------------------------------------------------------------

    def _room_with_sound(self) -> RoomWithSound:
        if isinstance(self.room, RoomWithSound):
            return self.room
        raise RuntimeError(_IN_WRITING)

    def _type(self, text: str) -> None:
        if isinstance(self._conversation, WrittenConversation):
            self._conversation.hear(text)
        else:
            self.session.interrupt()
            self.session.generate_reply(user_input=text)

    async def _say(self, text: str) -> tuple[bytes, str | None]:
        assert self._engines is not None
        if self._engines.hears_words:
            return await spoken(self._engines, text), None
        return made_up(text), text

    def _play(self, samples: bytes, text: str | None) -> None:
        room = self._room_with_sound()
        assert isinstance(self._inference, OverheardRoom)
        if text is not None:
            start, end = sounding(samples)
            self._inference.says(self._inference.position + start, self._inference.position + end, text)
        room.play_caller(samples)


@asynccontextmanager
async def session(
    agent: VoiceAgent,
    *,
    engines: EngineKind | Engines = "fake",
    profile: str = "",
    model: ScriptedModel | None = None,
    audio: bool = False,
    clock: ClockKind = "fast",
    settings: SessionSettings | None = None,
    userdata: Any = None,
) -> AsyncIterator[Rehearsal]:
    """Run ``agent`` in a session whose caller is the test; inside, it has begun, and said what it begins with.

    ``engines``: "fake" are those that are shipped for tests, without models; "models" are those of ``profile`` ("":
    the configured one), in one inference process for all tests of the program; or a process of
    ``host.testing.engines``. ``model``: a script in the place of the language model. ``audio``: with sound, else in
    writing; a scripted session in writing needs no process at all. ``clock``: see ``host.testing.rooms``.
    ``settings``: what the agent does not say itself; None is the defaults with a temperature of 0.

    Raises ``HostError`` where the engines do not come up: ``ModelsError`` where models are missing.
    """
    settings = settings or SessionSettings(temperature=0.0, seed=1)
    async with AsyncExitStack() as stack:
        running: Engines | None = None
        inference: OverheardRoom | NoEngines
        context_tokens = _CONTEXT_TOKENS
        if model is not None and not audio and not isinstance(engines, Engines):
            inference = NoEngines(model)
        else:
            if isinstance(engines, Engines):
                running = engines
            else:
                running = await asyncio.to_thread(shared, engines, profile=profile)
            client = await stack.enter_async_context(await running.connect("rehearsal"))
            context_tokens = client.welcome.context_tokens
            inference = OverheardRoom(client, await client.open_room("rehearsal"), model)
        room = RoomWithSound(clock, inference) if audio and isinstance(inference, OverheardRoom) else RoomInWriting()
        rehearsal = _rehearsal(agent, running, inference, room, model, settings, context_tokens, userdata)
        if isinstance(room, RoomWithSound):
            await room.open_speech(inference.speech_rate)
        try:
            await rehearsal.begin()
            yield rehearsal
        finally:
            await rehearsal.end()


def _rehearsal(
    agent: VoiceAgent,
    engines: Engines | None,
    inference: OverheardRoom | NoEngines,
    room: RoomWithSound | RoomInWriting,
    model: ScriptedModel | None,
    settings: SessionSettings,
    context_tokens: int,
    userdata: Any,
) -> Rehearsal:
    made: list[Outlet] = []

    def outlet(dialogue: Dialogue) -> Outlet:
        held = agent.settings(settings)
        if isinstance(room, RoomWithSound):
            made.append(
                Conversation(
                    room,
                    cast(InferenceRoom, inference),
                    dialogue,
                    settings=held,
                    job_id="rehearsal",
                    attach_again=_is_gone,
                    now=room.now,
                )
            )
        else:
            made.append(WrittenConversation(room, dialogue, settings=held, job_id="rehearsal", attach_again=_is_gone))
        return made[-1]

    voice_session = VoiceSession(
        agent,
        cast(InferenceRoom, inference),
        outlet,
        settings=settings,
        context_tokens=context_tokens,
        report=lambda _: None,
        userdata=userdata,
        **({"now": room.now} if isinstance(room, RoomWithSound) else {}),
    )
    mocks = Mocks(lambda: voice_session.current_agent)
    return Rehearsal(voice_session, made[0], room, inference, engines, model, mocks, settings)


async def _is_gone() -> None:
    raise InferenceUnavailableError("the inference process went away during the test")
