"""A machine with a microphone that plays a recording, and a loudspeaker that writes what it plays: for tests.

What the library sounddevice is used for, in real time, with the threads that it has. The environment says what the
machine is like: SOUND_SAYS (a wave, 16 kHz mono; said once the agent has been silent for a while), SOUND_HEARS (where
the loudspeaker's samples go), SOUND_RATE (the only rate that the devices take), SOUND_DEVICES (JSON, in place of the
usual ones).
"""

from __future__ import annotations

import json
import os
import threading
import time
import wave
from pathlib import Path
from typing import Any

_SILENCE_S = 1.0
_AUDIBLE = 100
_DEVICES = [
    {"name": "HDA Intel: Analog", "hostapi": 0, "max_input_channels": 2, "max_output_channels": 2},
    {"name": "Headset", "hostapi": 0, "max_input_channels": 1, "max_output_channels": 2},
    {"name": "HDMI 0", "hostapi": 0, "max_input_channels": 0, "max_output_channels": 8},
]
_PATIENCE_S = 3.0
"""A caller who is not greeted speaks all the same."""
_heard_at = time.monotonic() + _PATIENCE_S


class PortAudioError(Exception):
    pass


class default:
    device = (0, 0)


def query_hostapis() -> list[dict[str, Any]]:
    return [{"name": "ALSA"}]


def query_devices() -> list[dict[str, Any]]:
    devices = json.loads(os.environ["SOUND_DEVICES"]) if "SOUND_DEVICES" in os.environ else _DEVICES
    return [{"default_samplerate": float(os.environ.get("SOUND_RATE", "48000")), **device} for device in devices]


def check_input_settings(*, device: int, channels: int, dtype: str, samplerate: int) -> None:
    only = os.environ.get("SOUND_RATE")
    if only is not None and samplerate != int(only):
        raise PortAudioError("Error querying device: Invalid sample rate", -9997)


check_output_settings = check_input_settings


class _Stream:
    def __init__(
        self, *, device: int, samplerate: int, channels: int, dtype: str, blocksize: int, latency: Any, callback: Any
    ) -> None:
        assert dtype == "int16"
        self.latency = 0.02
        self.rate, self.channels, self.block = samplerate, channels, blocksize
        self._callback = callback
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def abort(self) -> None:
        self._over.set()
        self._thread.join()

    def close(self) -> None:
        assert self._over.is_set()

    def _run(self) -> None:
        deadline = time.monotonic()
        while not self._over.is_set():
            self._step()
            deadline += self.block / self.rate
            time.sleep(max(0.0, deadline - time.monotonic()))

    def _step(self) -> None:
        raise NotImplementedError


class RawInputStream(_Stream):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._says = b""
        if "SOUND_SAYS" in os.environ:
            with wave.open(os.environ["SOUND_SAYS"]) as recording:
                assert (recording.getframerate(), recording.getnchannels()) == (self.rate, self.channels)
                self._says = recording.readframes(recording.getnframes())

    def _step(self) -> None:
        size = 2 * self.channels * self.block
        block = b""
        if self._says and time.monotonic() - _heard_at > _SILENCE_S:
            block, self._says = self._says[:size], self._says[size:]
        self._callback(block + bytes(size - len(block)), self.block, None, None)


class RawOutputStream(_Stream):
    def _step(self) -> None:
        global _heard_at
        block = bytearray(2 * self.channels * self.block)
        self._callback(block, self.block, None, None)
        # A resampler's silence may be noise of the last bit.
        if max(memoryview(block).cast("h")) > _AUDIBLE:
            _heard_at = time.monotonic()
        if "SOUND_HEARS" in os.environ:
            with Path(os.environ["SOUND_HEARS"]).open("ab") as file:
                file.write(block)
