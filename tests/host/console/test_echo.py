"""The agent's own voice, as the microphone hears it from the loudspeaker, against a caller's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from host.console.echo import Resampler, WebRtcEcho
from host.job.line import CALLER_RATE
from host.job.resample import resample
from host.job.waves import read_wave

SPEECH = Path(__file__).parents[2] / "data" / "speech"
RATE = 22_050
BLOCK = CALLER_RATE // 50
Samples = NDArray[np.float64]


def speech(name: str, seconds: float) -> Samples:
    """A recording at 16 kHz, over and over."""
    samples, rate = read_wave(str(SPEECH / name))
    pcm = resample(samples.tobytes(), rate, CALLER_RATE)
    return np.resize(np.frombuffer(pcm, np.int16).astype(np.float64), round(seconds * CALLER_RATE))


def pcm(samples: Samples) -> bytes:
    return np.clip(samples, -32768, 32767).astype(np.int16).tobytes()


def recorded(played: Samples, delay_s: float, rng: np.random.Generator) -> Samples:
    """A loudspeaker and a small room: late, duller, quieter, with a tail; and a little noise."""
    tail = rng.normal(size=800) * np.exp(-np.arange(800) / 120)
    tail[0] = 4.0
    echo = np.convolve(played, tail / np.abs(tail).sum())[: len(played)]
    late = round(delay_s * CALLER_RATE)
    return np.concatenate([np.zeros(late), echo])[: len(played)] + rng.normal(size=len(played)) * 5


def cleaned(played: Samples, microphone: Samples, delay_s: float) -> Samples:
    echo = WebRtcEcho(RATE, delay_s)
    out = bytearray()
    # Played at the voice's rate, in pieces that do not fit the microphone's.
    voice = resample(pcm(played), CALLER_RATE, RATE)
    step = 2 * round(RATE / 50)
    for number, at in enumerate(range(0, len(microphone) - BLOCK + 1, BLOCK)):
        out += echo.clean(pcm(microphone[at : at + BLOCK]), voice[number * step : (number + 1) * step])
    return np.frombuffer(bytes(out), np.int16).astype(np.float64)


def power_db(samples: Samples) -> float:
    return float(10 * np.log10(np.mean(samples**2) + 1e-9))


@pytest.mark.parametrize("delay_s", [0.06, 0.14])
def test_the_echo_goes(delay_s: float) -> None:
    rng = np.random.default_rng(7)
    played = speech("sense-and-sensibility-0930.wav", 12)
    microphone = recorded(played, delay_s, rng)
    out = cleaned(played, microphone, delay_s)
    half = len(out) // 2
    gone = power_db(microphone[half : len(out)]) - power_db(out[half:])
    assert gone > 15, f"{gone:.0f} dB of echo gone"


def test_the_caller_stays() -> None:
    rng = np.random.default_rng(7)
    caller = speech("whats-the-date-today.wav", 6)
    out = cleaned(np.zeros(len(caller)), caller + rng.normal(size=len(caller)) * 5, 0.06)
    assert abs(power_db(out[len(out) // 2 :]) - power_db(caller[len(out) // 2 :])) < 12


def test_a_caller_who_speaks_over_the_agent_is_heard() -> None:
    """The last seconds have both; what the canceller lets through has the caller's loud moments in it."""
    rng = np.random.default_rng(7)
    played = speech("sense-and-sensibility-0930.wav", 12)
    microphone = recorded(played, 0.06, rng)
    alone = cleaned(played, microphone, 0.06)
    begin = 8 * CALLER_RATE
    caller = np.zeros(len(played))
    caller[begin:] = speech("go-forward-ten-meters.wav", 4)
    both = cleaned(played, microphone + caller, 0.06)
    louder = power_db(both[begin:]) - power_db(alone[begin:])
    assert louder > 15, f"{louder:.0f} dB more with the caller"


def test_a_stream_at_another_rate() -> None:
    resampler = Resampler(48_000, 16_000)
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype(np.int16).tobytes()
    out = b"".join(resampler.push(tone[at : at + 1920]) for at in range(0, len(tone), 1920))
    samples = np.frombuffer(out, np.int16)
    assert len(samples) == pytest.approx(16_000, abs=500)
    assert np.abs(samples[4000:12_000]).max() == pytest.approx(8000, rel=0.02)
    assert Resampler(16_000, 16_000).push(b"ab") == b"ab"
