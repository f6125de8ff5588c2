"""One call from the console: the line, the sound, the script, and what is typed, on one event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Literal

from host.console.caller import CallersEnd
from host.console.script import Script
from host.console.sound import SILENCE_DB, EchoCanceller, Loudspeaker, Microphone, SoundDevice
from host.errors import DeviceError, HostError
from host.job import line
from host.job.line import TICK_BYTES

EchoMode = Literal["cancel", "mute", "off"]
"""What is done about the loudspeaker that the microphone hears: nothing at all for headphones."""

WARM_UP_S = 1.0
"""So much of the agent's speech an echo canceller needs to learn the room; the agent would interrupt itself."""
SILENT_MICROPHONE_S = 3.0
"""A microphone that gives nothing for so long is gone."""
_SILENCE = bytes(TICK_BYTES)
_LOOK_S = 0.5

MakeEcho = Callable[[int, float], EchoCanceller]
"""Of the rate at which is played, and the delay of the devices in seconds."""


class Call:
    """What the screen shows and the keys change. ``device`` None: in writing.

    ``state``: what the agent says that it does, "" before it came. ``failure``: what ended the call too early.
    """

    def __init__(
        self,
        device: SoundDevice | None,
        echo: EchoMode = "off",
        make_echo: MakeEcho | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.script = Script()
        self.microphone = Microphone()
        self.state = ""
        self.muted = False
        self.failure: HostError | None = None
        self._device = device
        self._echo_mode = echo
        self._make_echo = make_echo
        self._now = now
        self._loudspeaker: Loudspeaker | None = None
        self._echo: EchoCanceller | None = None
        self._end: CallersEnd | None = None
        self._recorded_at = 0.0
        self._left = False
        self._changed = asyncio.Event()

    @property
    def in_writing(self) -> bool:
        """Whether nothing is heard or spoken."""
        return self._device is None

    @property
    def agent_level(self) -> float:
        """Of what is being played, in dB of full scale."""
        return self._loudspeaker.level if self._loudspeaker is not None else SILENCE_DB

    @property
    def starved(self) -> int:
        """How often the loudspeaker ran dry."""
        return self._device.starved if self._device is not None else 0

    def is_held_back(self) -> bool:
        """Whether the microphone is off because the agent is heard."""
        loudspeaker = self._loudspeaker
        if loudspeaker is None or self._echo_mode == "off" or not loudspeaker.is_sounding():
            return False
        return self._echo_mode == "mute" or loudspeaker.heard().heard < WARM_UP_S * loudspeaker.rate

    async def hold(self, path: str) -> str:
        """Wait for the job at the unix socket ``path`` and hold the call; returns why it is over.

        Raises ``DeviceError`` when the sound fails.
        """
        try:
            async with CallersEnd(path, self) as self._end:
                if self._left:
                    self._end.hang_up()
                watching = asyncio.create_task(self._watch_microphone(), name="microphone-watch")
                try:
                    reason = await self._end.wait_closed()
                finally:
                    watching.cancel()
                    await asyncio.wait([watching])
        finally:
            if self._device is not None:
                self._device.close()
        if self.failure is not None:
            raise self.failure
        return reason

    # --- for who reads along ----------------------------------------------------------------------------

    def is_listening(self) -> bool:
        """Whether it is the caller's turn."""
        return self.state == "listening"

    def is_answered(self) -> bool:
        """Whether it is the caller's turn again, after an answer."""
        return self.is_listening() and self.script.is_answered()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds; it is looked at when the job has said something."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def wait_quiet(self, condition: Callable[[], bool], quiet_s: float) -> None:
        """Return when ``condition`` holds and the job has said nothing for ``quiet_s``."""
        while True:
            await self.wait_for(condition)
            self._changed.clear()
            try:
                async with asyncio.timeout(quiet_s):
                    await self._changed.wait()
            except TimeoutError:
                return

    # --- keys -----------------------------------------------------------------------------------------

    def type(self, text: str) -> None:
        """Send a message."""
        if self._end is not None and not self._end.is_over():
            self.script.typed(text, self._now())
            self._end.type(text)

    def toggle_mute(self) -> None:
        """The microphone off, or on again."""
        self.muted = not self.muted

    def hang_up(self) -> None:
        """Leave. Safe to call twice, and before the job came."""
        self._left = True
        if self._end is not None:
            self._end.hang_up()

    # --- what the job says ----------------------------------------------------------------------------

    def on_rate(self, rate: int) -> None:
        """The agent is about to be heard: both devices are opened."""
        if self._device is None or self._loudspeaker is not None:
            return
        self._loudspeaker = loudspeaker = Loudspeaker(rate)
        loop = asyncio.get_running_loop()
        try:
            latency_s = self._device.open_loudspeaker(rate, loudspeaker.pull)
            loudspeaker.set_latency(latency_s)
            if self._echo_mode == "cancel" and self._make_echo is not None:
                self._echo = self._make_echo(rate, latency_s)
            self._recorded_at = self._now()
            self._device.open_microphone(lambda pcm: _call_soon(loop, self._on_recorded, pcm))
        except DeviceError as exc:
            self._fail(exc)

    def on_speech(self, pcm: bytes) -> None:
        """The agent's speech."""
        if self._loudspeaker is not None:
            self._loudspeaker.push(pcm)

    def on_clear(self, number: int) -> None:
        """The agent falls silent."""
        if self._loudspeaker is not None:
            self._loudspeaker.clear(number)

    def on_state(self, state: str) -> None:
        """What the agent does."""
        self.state = state
        self._changed.set()

    def on_text(self, text: line.Text) -> None:
        """What was said. Lines and paragraphs are for the eye: there are none in speech."""
        if not self.in_writing:
            text = dataclasses.replace(text, text=" ".join(text.text.split()))
        self.script.shown(text, self._now())
        self._changed.set()

    # --- the microphone -------------------------------------------------------------------------------

    def _on_recorded(self, pcm: bytes) -> None:
        assert self._loudspeaker is not None
        assert self._end is not None
        self._recorded_at = self._now()
        for block in self.microphone.push(pcm):
            cleaned = self._echo.clean(block, self._loudspeaker.take_played()) if self._echo is not None else block
            if self.muted or self.is_held_back():
                cleaned = _SILENCE
            heard = self._loudspeaker.heard()
            self._end.tick(line.Tick(heard.heard, heard.dropped, heard.cleared, cleaned))

    async def _watch_microphone(self) -> None:
        """Its ticks are the call's clock: without them nothing would ever end."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._loudspeaker is not None and self._now() - self._recorded_at > SILENT_MICROPHONE_S:
                assert self._device is not None
                self._fail(DeviceError(f"{self._device.name}: nothing comes from the microphone any more"))
                return

    def _fail(self, failure: HostError) -> None:
        self.failure = self.failure or failure
        self.hang_up()


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[bytes], None], pcm: bytes) -> None:
    """From a device's thread, which may outlive the event loop by a block."""
    try:
        loop.call_soon_threadsafe(call, pcm)
    except RuntimeError:
        if not loop.is_closed():
            raise
