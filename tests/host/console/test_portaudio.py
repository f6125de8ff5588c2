"""The devices, with a stand-in for the library sounddevice."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from host.console.portaudio import PortAudio, list_devices
from host.errors import ConfigError, DeviceError

FAKE = Path(__file__).parent / "fake_sounddevice" / "sounddevice.py"
DEADLINE_S = 20


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sounddevice", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


class Heard:
    def __init__(self) -> None:
        self.pcm = bytearray()
        self._more = threading.Event()

    def __call__(self, pcm: bytes) -> None:
        self.pcm += pcm
        if len(self.pcm) >= 16_000:
            self._more.set()

    def wait(self) -> None:
        assert self._more.wait(DEADLINE_S), "nothing is recorded"


def test_the_list(library: ModuleType) -> None:
    analog, headset, hdmi = list_devices()
    assert (analog.index, analog.name, analog.api, analog.inputs, analog.outputs, analog.rate) == (
        0, "HDA Intel: Analog", "ALSA", 2, 2, 48_000,
    )  # fmt: skip
    assert analog.default_input
    assert analog.default_output
    assert (headset.index, headset.default_input) == (1, False)
    assert hdmi.inputs == 0


@pytest.mark.parametrize(
    ("microphone", "loudspeaker", "name"),
    [
        ("", "", "HDA Intel: Analog"),
        ("headset", "", "Headset and HDA Intel: Analog"),
        ("1", "2", "Headset and HDMI 0"),
        ("Headset", "hdmi", "Headset and HDMI 0"),
    ],
)
def test_devices_by_number_and_by_name(library: ModuleType, microphone: str, loudspeaker: str, name: str) -> None:
    assert PortAudio(microphone, loudspeaker).name == name


@pytest.mark.parametrize(
    ("microphone", "loudspeaker", "error", "says"),
    [
        ("hdmi", "", DeviceError, "--input-device hdmi: no such input; there are 0: HDA Intel: Analog, 1: Headset"),
        ("", "5", DeviceError, "--output-device 5: no such output"),
        ("", "h", ConfigError, "--output-device h: that fits several, give the number: 0: HDA"),
    ],
)
def test_a_device_that_is_not_there(
    library: ModuleType, microphone: str, loudspeaker: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says.replace("(", r"\(")):
        PortAudio(microphone, loudspeaker)


def test_a_machine_without_a_microphone(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [{"name": "HDMI", "hostapi": 0, "max_input_channels": 0, "max_output_channels": 2}]
    monkeypatch.setenv("SOUND_DEVICES", json.dumps(devices))
    library.default.device = (-1, 0)
    with pytest.raises(DeviceError, match=r"no microphone .* host console --text"):
        PortAudio()


def test_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DeviceError, match=r"roomful\[console\]: .* -m pip install sounddevice;"):
        PortAudio()


def test_the_systems_library_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        DeviceError, match="PortAudio library not found; on Debian and Ubuntu: apt install libportaudio2"
    ):
        PortAudio()


@pytest.mark.parametrize("rate", ["", "48000", "44100"])
def test_speech_both_ways_at_whatever_rate_the_devices_have(
    library: ModuleType, rate: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if rate:
        monkeypatch.setenv("SOUND_RATE", rate)
    monkeypatch.setenv("SOUND_HEARS", str(tmp_path / "heard"))
    device = PortAudio()
    heard = Heard()
    asked = 0

    def pull(samples: int) -> bytes:
        nonlocal asked
        asked += samples
        return b"\x00\x10" * samples

    try:
        assert device.open_loudspeaker(22_050, pull) > 0
        device.open_microphone(heard)
        heard.wait()
    finally:
        device.close()
    device.close()
    assert len(heard.pcm) % 2 == 0
    played = (tmp_path / "heard").read_bytes()
    # As long as what was asked for, at the device's own rate; a resampler holds some milliseconds back.
    assert len(played) / 2 / int(rate or 22_050) == pytest.approx(asked / 22_050, abs=0.05)
    middle = memoryview(played).cast("h")[len(played) // 4]
    assert middle == pytest.approx(0x1000, abs=40)


def test_a_device_that_takes_nothing(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    device = PortAudio()

    def refuse(**_: object) -> None:
        raise library.PortAudioError("Error opening device: Device unavailable", -9985)

    monkeypatch.setattr(library, "check_input_settings", refuse)
    with pytest.raises(DeviceError, match=r"^HDA Intel: Analog: Error opening device: Device unavailable$"):
        device.open_microphone(lambda _: None)
