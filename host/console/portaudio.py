"""This machine's microphone and loudspeaker, through PortAudio (the library sounddevice, extra ``console``).

16 kHz and the voice's own rate are asked for first; a device that knows neither gets its own rate, resampled. So do
devices without mono.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from host.errors import ConfigError, DeviceError
from host.job.line import CALLER_RATE

_BLOCK_S = 0.02
_OUTPUT_LATENCY_S = 0.1
"""The callback is Python in a process that shares its cores with the models: less of a buffer may crackle."""

Direction = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device as PortAudio lists it. ``inputs``, ``outputs``: channels. ``rate``: its own, in Hz."""

    index: int
    name: str
    api: str
    inputs: int
    outputs: int
    rate: int
    default_input: bool
    default_output: bool


@dataclass(frozen=True, slots=True)
class _Format:
    rate: int
    channels: int


class PortAudio:
    """``SoundDevice``. ``input_device``, ``output_device``: number or part of the name; "" is the system's choice.

    Raises ``DeviceError`` when sounddevice or PortAudio is not installed, or there is no such device; ``ConfigError``
    when a name is ambiguous.
    """

    def __init__(self, input_device: str = "", output_device: str = "") -> None:
        self._library = _library()
        self._input = self._choose(input_device, "input")
        self._output = self._choose(output_device, "output")
        self._streams: list[Any] = []
        self._starved = 0

    @property
    def starved(self) -> int:
        """See ``SoundDevice``."""
        return self._starved

    @property
    def name(self) -> str:
        """Both, for a person."""
        names = [self._input.name, self._output.name]
        return names[0] if names[0] == names[1] else " and ".join(names)

    def open_microphone(self, hear: Callable[[bytes], None]) -> None:
        """See ``SoundDevice``."""
        found = self._format(self._input, "input", CALLER_RATE)
        resample = _resampling(found.rate, CALLER_RATE)

        def on_block(data: Any, frames: int, time: Any, status: Any) -> None:  # noqa: ARG001 (PortAudio's signature)
            hear(resample(_first_channel(bytes(data), found.channels)))

        self._open(self._library.RawInputStream, self._input, found, "high", on_block)

    def open_loudspeaker(self, rate: int, pull: Callable[[int], bytes]) -> float:
        """See ``SoundDevice``."""
        found = self._format(self._output, "output", rate)
        if found.rate != rate:
            pull = _Upsampled(pull, rate, found.rate).pull

        def on_block(data: Any, frames: int, time: Any, status: Any) -> None:  # noqa: ARG001 (PortAudio's signature)
            self._starved += bool(status and status.output_underflow)
            data[:] = _all_channels(pull(frames), found.channels)

        return self._open(self._library.RawOutputStream, self._output, found, _OUTPUT_LATENCY_S, on_block)

    def close(self) -> None:
        """See ``SoundDevice``."""
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.abort()
            stream.close()

    def _choose(self, asked: str, direction: Direction) -> DeviceInfo:
        channels = "inputs" if direction == "input" else "outputs"
        usable = [device for device in _devices(self._library) if getattr(device, channels)]
        if not usable:
            what = "microphone" if direction == "input" else "loudspeaker"
            raise DeviceError(f"this machine has no {what} that PortAudio finds; write instead: host console --text")
        if not asked:
            default = f"default_{direction}"
            return next((device for device in usable if getattr(device, default)), usable[0])
        exact = [device for device in usable if asked in (str(device.index), device.name)]
        found = exact or [device for device in usable if asked.lower() in device.name.lower()]
        names = ", ".join(f"{device.index}: {device.name}" for device in found or usable)
        if not found:
            raise DeviceError(f"--{direction}-device {asked}: no such {direction}; there are {names}")
        if len(found) > 1:
            raise ConfigError(f"--{direction}-device {asked}: that fits several, give the number: {names}")
        return found[0]

    def _format(self, device: DeviceInfo, direction: Direction, rate: int) -> _Format:
        """The first that the device takes."""
        check = getattr(self._library, f"check_{direction}_settings")
        refused: Exception | None = None
        for wanted in (rate, device.rate):
            for channels in (1, 2):
                try:
                    check(device=device.index, channels=channels, dtype="int16", samplerate=wanted)
                except self._library.PortAudioError as exc:
                    refused = exc
                else:
                    return _Format(wanted, channels)
        raise DeviceError(f"{device.name}: {_reason(refused)}") from refused

    def _open(self, kind: Any, device: DeviceInfo, found: _Format, latency: float | str, on_block: Any) -> float:
        try:
            stream = kind(
                device=device.index,
                samplerate=found.rate,
                channels=found.channels,
                dtype="int16",
                blocksize=round(found.rate * _BLOCK_S),
                latency=latency,
                callback=on_block,
            )
            self._streams.append(stream)
            stream.start()
        except self._library.PortAudioError as exc:
            raise DeviceError(f"{device.name}: {_reason(exc)}") from exc
        return float(stream.latency)


class _Upsampled:
    """A source at one rate that is asked for samples at another."""

    def __init__(self, pull: Callable[[int], bytes], from_rate: int, to_rate: int) -> None:
        self._pull = pull
        self._step = max(1, round(from_rate * _BLOCK_S / 2))
        self._resample = _resampling(from_rate, to_rate)
        self._ready = bytearray()

    def pull(self, samples: int) -> bytes:
        while len(self._ready) < 2 * samples:
            self._ready += self._resample(self._pull(self._step))
        pcm = bytes(self._ready[: 2 * samples])
        del self._ready[: 2 * samples]
        return pcm


def list_devices() -> Sequence[DeviceInfo]:
    """What PortAudio finds. Raises ``DeviceError`` when it, or sounddevice, is not installed."""
    return _devices(_library())


def _library() -> Any:
    instead = "or write instead: host console --text"
    try:
        import sounddevice
    except ImportError as exc:
        raise DeviceError(
            f"microphone and loudspeaker need the extra roomful[console]: {sys.executable} -m pip install sounddevice; "
            f"{instead}"
        ) from exc
    except OSError as exc:
        # The package is there, the system's library is not.
        raise DeviceError(
            f"{exc}; on Debian and Ubuntu: apt install libportaudio2, on Fedora: dnf install portaudio; {instead}"
        ) from exc
    return sounddevice


def _devices(library: Any) -> list[DeviceInfo]:
    try:
        apis = library.query_hostapis()
        listed = library.query_devices()
    except library.PortAudioError as exc:
        raise DeviceError(f"PortAudio cannot list the devices: {_reason(exc)}") from exc
    inputs, outputs = library.default.device
    return [
        DeviceInfo(
            index,
            str(device["name"]),
            str(apis[device["hostapi"]]["name"]),
            int(device["max_input_channels"]),
            int(device["max_output_channels"]),
            round(device["default_samplerate"]),
            index == inputs,
            index == outputs,
        )
        for index, device in enumerate(listed)
    ]


def _resampling(from_rate: int, to_rate: int) -> Callable[[bytes], bytes]:
    if from_rate == to_rate:
        return bytes
    from host.console.echo import Resampler

    return Resampler(from_rate, to_rate).push


def _first_channel(pcm: bytes, channels: int) -> bytes:
    return pcm if channels == 1 else array.array("h", pcm)[::channels].tobytes()


def _all_channels(pcm: bytes, channels: int) -> bytes:
    if channels == 1:
        return pcm
    samples = array.array("h", bytes(len(pcm) * channels))
    for channel in range(channels):
        samples[channel::channels] = array.array("h", pcm)
    return samples.tobytes()


def _reason(failure: Exception | None) -> str:
    """Without the class and the error number, which mean nothing to a person."""
    return str(failure.args[0]) if failure is not None and failure.args else str(failure)
