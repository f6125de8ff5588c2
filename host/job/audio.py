"""Audio through the job: the caller's up to the inference process, the agent's down into the room.

    caller ── room.caller_audio ──> Capture ──> up ring      (the up clock, 16 kHz)
    caller <── room.play ── Player <── down ring             (the down clock, the voice's rate)

``Capture`` knows when each sample of the caller was heard; ``Player`` knows, sample for sample, what
the caller has heard of each phrase.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from host.job.chat import PhraseHeard
from host.job.room import Room
from host.job.speech import SpeakablePhrase
from inference.client import InferenceError, InferenceRoom, InferenceUnavailableError, Phrase, RequestFailedError

CALLER_RATE = 16_000
BLOCK_MS = 20
"""How much speech is moved from the ring into the room at once."""
_REMEMBERED_S = 60.0
_GAP_S = 0.25
"""A caller whose audio stops coming for this long (muted, gone) is taken to be silent."""


class Capture:
    """Pushes the caller's audio and keeps the audio clock. ``on_clock`` is called with every new position.

    ``needs_clock`` says whether somebody waits for time to pass: when the caller's audio stops coming
    then, silence takes its place, so that a caller who mutes after a question gets an answer.
    """

    def __init__(
        self,
        inference: InferenceRoom,
        on_clock: Callable[[int], None],
        needs_clock: Callable[[], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inference = inference
        self._on_clock = on_clock
        self._needs_clock = needs_clock
        self._now = now
        self._pushed: deque[tuple[int, float]] = deque()

    async def run(self, blocks: AsyncIterator[bytes]) -> None:
        """Push ``blocks`` (int16 at 16 kHz) until they end."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._feed(blocks, queue), name="caller-audio")
            while True:
                try:
                    async with asyncio.timeout(_GAP_S):
                        block = await queue.get()
                except TimeoutError:
                    # After a stall of this process the audio is only late: let it come first.
                    await asyncio.sleep(BLOCK_MS / 1000)
                    if queue.empty() and self._needs_clock():
                        self._push(bytes(2 * round(_GAP_S * CALLER_RATE)))
                    continue
                if block is None:
                    return
                self._push(block)

    def time_of(self, position: int) -> float:
        """Monotonic time at which the sample at ``position`` was heard. The last minute is remembered."""
        later = None
        for end, at in reversed(self._pushed):
            if end <= position:
                break
            later = (end, at)
        if later is None:
            return self._pushed[-1][1] if self._pushed else self._now()
        end, at = later
        return at - (end - position) / CALLER_RATE

    @staticmethod
    async def _feed(blocks: AsyncIterator[bytes], queue: asyncio.Queue[bytes | None]) -> None:
        async for block in blocks:
            queue.put_nowait(block)
        queue.put_nowait(None)

    def _push(self, block: bytes) -> None:
        self._inference.push(block)
        now = self._now()
        self._pushed.append((self._inference.position, now))
        while now - self._pushed[0][1] > _REMEMBERED_S:
            self._pushed.popleft()
        self._on_clock(self._inference.position)


@dataclass(eq=False, slots=True)
class SpokenPhrase:
    """A phrase of an utterance. ``phrase`` None: there is nothing to say in it."""

    text: SpeakablePhrase
    phrase: Phrase | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    error: InferenceError | None = None


@dataclass(eq=False, slots=True)
class Utterance:
    """One thing the agent says, phrase by phrase. Times are monotonic seconds, None until it happened.

    ``held``: it may be spoken, and nothing of it may be heard yet.
    ``first_read``: its first sample came out of the ring. ``first_heard``: that sample was heard.
    ``base``: the room's count of heard samples before it; ``origin``: its first sample (down clock).
    """

    base: int
    held: bool = False
    phrases: list[SpokenPhrase] = field(default_factory=list)
    origin: int = 0
    first_read: float | None = None
    first_heard: float | None = None
    heard: int = 0


@runtime_checkable
class AnswerRecorder(Protocol):
    """A room that records the agent's answers and wants to know where one ends."""

    def end_answer(self) -> tuple[float, float]:
        """Where the answer that is over lies in the recording, in seconds."""


class Player:
    """Speaks utterances, one after the other, at the pace of the room.

    ``begin`` an utterance, ``speak`` its phrases as they come, then await ``finish``; or
    ``interrupt`` it at any time. One that is held lies in the ring until it is ``release``d. ``filter_speech`` makes
    of every block (int16, and its rate in Hz) what is played.
    """

    def __init__(
        self,
        room: Room,
        inference: InferenceRoom,
        now: Callable[[], float] = time.monotonic,
        filter_speech: Callable[[bytes, int], bytes] = lambda pcm, _: pcm,
    ) -> None:
        self._room = room
        self._inference = inference
        self._now = now
        self._filter_speech = filter_speech
        self._block = inference.speech_rate * BLOCK_MS // 1000
        self._current: Utterance | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._released = asyncio.Event()
        self._moved = asyncio.Event()
        self._playing = False
        self._interruptions = 0

    async def run(self) -> None:
        """Move speech from the ring into the room until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            while True:
                await self._open.wait()
                try:
                    await self._inference.wait_speech()
                except InferenceUnavailableError:
                    # Whoever holds the conversation has been told, too, and interrupts what was being said.
                    await self._inference.wait_attached()
                    continue
                if self._current is not None and self._current.held:
                    self._released.clear()
                    await self._released.wait()
                elif self._open.is_set():
                    await self._play_block()

    async def begin(self, *, held: bool = False) -> Utterance:
        """A new utterance, as soon as nothing of an interrupted one can come any more."""
        await self._open.wait()
        assert self._current is None, "the utterance before it has not ended"
        self._current = Utterance(self._room.heard_samples(), held)
        return self._current

    def release(self, utterance: Utterance) -> None:
        """``utterance``, which was held, may be heard."""
        assert utterance is self._current
        utterance.held = False
        for spoken in utterance.phrases:
            if spoken.phrase is not None:
                spoken.phrase.promote()
        self._released.set()

    def speak(
        self,
        utterance: Utterance,
        text: SpeakablePhrase,
        *,
        speed: float,
        volume: float,
        speaker: int = -1,
        pronounced: str = "",
    ) -> None:
        """Ask for the next phrase of ``utterance``. ``pronounced``: what the voice is given for it."""
        assert utterance is self._current
        assert self._tasks is not None
        if not text.spoken:
            utterance.phrases.append(silent := SpokenPhrase(text, None))
            silent.ended.set()
            return
        phrase = self._inference.speak(
            pronounced or text.spoken, speed=speed, volume=volume, speaker=speaker, speculative=utterance.held
        )
        spoken = SpokenPhrase(text, phrase)
        utterance.phrases.append(spoken)
        self._tasks.create_task(self._follow(spoken), name="phrase")

    async def finish(self, utterance: Utterance) -> None:
        """Return when ``utterance`` has been heard. Raises the ``RequestFailedError`` of a phrase, after that.

        Raises ``InferenceUnavailableError`` at once when a phrase can never come; the utterance is then
        still to be interrupted.
        """
        for spoken in utterance.phrases:
            await spoken.ended.wait()
            if isinstance(spoken.error, InferenceUnavailableError):
                raise spoken.error
        end = max((spoken.phrase.end or 0 for spoken in utterance.phrases if spoken.phrase), default=0)
        while self._inference.read_position() < end or self._playing:
            self._moved.clear()
            await self._moved.wait()
        await self._room.wait_for_playout()
        # The beginning of a last phrase that failed.
        self._inference.skip_speech()
        self.note_heard(utterance)
        self._current = None
        if error := next((spoken.error for spoken in utterance.phrases if spoken.error), None):
            raise error

    def note_heard(self, utterance: Utterance) -> bool:
        """Bring ``utterance.heard`` up to date; whether any of it was heard."""
        if utterance is self._current and utterance.first_read is not None:
            utterance.heard = self._room.heard_samples() - utterance.base
            if utterance.heard > 0 and utterance.first_heard is None:
                utterance.first_heard = self._now() - utterance.heard / self._inference.speech_rate
        return utterance.heard > 0

    def interrupt(self, utterance: Utterance) -> asyncio.Task[float]:
        """Silence now, and forget what was not heard. The task returns when (monotonic) the room was silent.

        ``utterance.heard`` is final when this returns; ``begin`` waits until nothing of the phrases
        that were cancelled can come any more.
        """
        assert utterance is self._current
        assert self._tasks is not None
        if not utterance.held:
            self._room.clear()
        self.note_heard(utterance)
        self._current = None
        self._open.clear()
        self._released.set()
        self._interruptions += 1
        for spoken in utterance.phrases:
            if spoken.phrase is not None:
                spoken.phrase.cancel()
        return self._tasks.create_task(self._settle(utterance), name="interruption")

    def phrases_heard(self, utterance: Utterance) -> list[PhraseHeard]:
        """What was heard of each phrase."""
        position = utterance.origin + utterance.heard
        result: list[PhraseHeard] = []
        for spoken in utterance.phrases:
            samples: int | None = None
            heard = 0
            if spoken.phrase is None:
                # It is over with the phrase before it.
                samples = 0 if not result or result[-1].samples is not None else None
            elif spoken.phrase.start is not None:
                heard = max(0, position - spoken.phrase.start)
                if spoken.phrase.end is not None:
                    samples = spoken.phrase.end - spoken.phrase.start
                    heard = min(heard, samples)
            result.append(PhraseHeard(spoken.text, samples, heard))
        return result

    async def _play_block(self) -> None:
        position = self._inference.read_position()
        pcm = self._inference.read_speech(self._block)
        utterance = self._current
        if utterance is None:
            # Speech that nobody asked for: of a phrase that failed after its utterance was given up.
            return
        if utterance.first_read is None:
            utterance.first_read, utterance.origin = self._now(), position
        interruptions = self._interruptions
        self._playing = True
        await self._room.play(self._filter_speech(pcm, self._inference.speech_rate))
        self._playing = False
        self._moved.set()
        if interruptions != self._interruptions:
            # The room was silenced while it took this block: it may have come after the silence.
            self._room.clear()

    async def _follow(self, spoken: SpokenPhrase) -> None:
        assert spoken.phrase is not None
        try:
            await spoken.phrase.wait()
        except (RequestFailedError, InferenceUnavailableError) as exc:
            spoken.error = exc
        finally:
            spoken.ended.set()
            self._moved.set()

    async def _settle(self, utterance: Utterance) -> float:
        await self._room.wait_for_playout()
        silent = self._now()
        for spoken in utterance.phrases:
            await spoken.ended.wait()
        self._inference.skip_speech()
        self._open.set()
        return silent
