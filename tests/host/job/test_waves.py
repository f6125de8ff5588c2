from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from host.job.resample import resample
from host.job.waves import check_waves, read_wave, write_wave

RAMP = np.arange(-2000, 2000, dtype=np.int16) * 16


def write(path: Path, frames: bytes, *, width: int = 2, channels: int = 1, rate: int = 16_000) -> str:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(frames)
    return str(path)


def as_width(samples: np.ndarray, width: int) -> bytes:
    match width:
        case 1:
            return (samples.astype(np.int32) // 256 + 128).astype(np.uint8).tobytes()
        case 2:
            return samples.astype("<i2").tobytes()
        case 3:
            return b"".join(int(sample * 256).to_bytes(3, "little", signed=True) for sample in samples.tolist())
        case _:
            return (samples.astype(np.int64) * 65_536).astype("<i4").tobytes()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_is_read(tmp_path: Path, width: int) -> None:
    samples, rate = read_wave(write(tmp_path / "a.wav", as_width(RAMP, width), width=width, rate=8_000))
    assert rate == 8_000
    assert samples.dtype == np.int16
    np.testing.assert_allclose(samples, RAMP, atol=0 if width > 1 else 256)


def test_channels_are_mixed(tmp_path: Path) -> None:
    both = np.stack([RAMP, np.zeros_like(RAMP)], axis=1)
    samples, _ = read_wave(write(tmp_path / "a.wav", both.astype("<i2").tobytes(), channels=2))
    np.testing.assert_array_equal(samples, RAMP // 2)


def test_an_extensible_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    guid = struct.pack("<H", 1) + b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
    fmt = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16_000, 32_000, 2, 16, 22, 16, 4) + guid
    data = RAMP.astype("<i2").tobytes()
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    samples, rate = read_wave(str(path))
    assert rate == 16_000
    np.testing.assert_array_equal(samples, RAMP)


def wave_of_encoding(path: Path, encoding: int) -> str:
    good = Path(write(path, RAMP.tobytes())).read_bytes()
    at = good.index(b"fmt ") + 8
    path.write_bytes(good[:at] + struct.pack("<H", encoding) + good[at + 2 :])
    return str(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: str(path), "No such file"),
        (lambda path: str(path.parent), "Is a directory"),
        (lambda path: (path.write_bytes(b""), str(path))[1], "not a wave file"),
        (lambda path: (path.write_bytes(b"ID3\x03" + bytes(100)), str(path))[1], "not a wave file"),
        (
            lambda path: (path.write_bytes(b"RIFF\x04\x00\x00\x00WAVE"), str(path))[1],
            "not a wave file that can be read",
        ),
        (lambda path: (path.write_bytes(b"RIFF\xff\xff\xff\xffWAVEfmt "), str(path))[1], "not a wave file that"),
        (lambda path: wave_of_encoding(path, 3), "floating point is not plain PCM"),
        (lambda path: wave_of_encoding(path, 85), "MP3 is not plain PCM"),
        (lambda path: wave_of_encoding(path, 999), "encoding 999 is not plain PCM"),
        (lambda path: write(path, b""), "no samples"),
    ],
)
def test_what_cannot_be_played_is_named_with_its_reason(tmp_path: Path, make: object, reason: str) -> None:
    good = write(tmp_path / "good.wav", RAMP.tobytes())
    bad = make(tmp_path / "bad.wav")  # type: ignore[operator]
    check_waves([good])
    with pytest.raises(ValueError, match=reason) as caught:
        check_waves([good, bad])
    assert bad in str(caught.value)


def test_a_wave_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_wave(str(tmp_path / "out.wav"), RAMP, 22_050)
    write_wave(str(tmp_path / "out.wav"), RAMP[:100], 22_050)
    samples, rate = read_wave(str(tmp_path / "out.wav"))
    assert (len(samples), rate) == (100, 22_050)
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_a_wave_that_cannot_be_written_leaves_nothing_half_done(tmp_path: Path) -> None:
    (tmp_path / "out.wav").mkdir()
    with pytest.raises(IsADirectoryError):
        write_wave(str(tmp_path / "out.wav"), RAMP, 22_050)
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_pitch_and_length(rate: int) -> None:
    seconds = 1.5
    tone = (np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate) * 12_000).astype(np.int16)
    pcm = np.frombuffer(resample(tone.tobytes(), rate, 16_000), np.int16)
    assert abs(len(pcm) - 16_000 * seconds) <= 160
    spectrum = np.abs(np.fft.rfft(pcm[:16_000]))
    assert int(spectrum.argmax()) == 440
