"""Wave files: read what people have, refuse what is none, write whole or not at all."""

from __future__ import annotations

import io
import os
import struct
import wave
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_PCM = 1
_EXTENSIBLE = 0xFFFE
_ENCODINGS = {2: "ADPCM", 3: "floating point", 6: "A-law", 7: "µ-law", 17: "ADPCM", 85: "MP3"}


def check_waves(paths: Iterable[str]) -> None:
    """Raise ``ValueError`` naming the first file that cannot be played, and why."""
    for path in paths:
        read_wave(path)


def read_wave(path: str) -> tuple[NDArray[np.int16], int]:
    """Read a PCM wave (8, 16, 24 or 32 bits, any rate, any number of channels).

    Returns its channels' mean, shape (samples,), and the sample rate in Hz. Raises ``ValueError``
    naming the file and the reason: missing, not a wave, compressed, or empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise ValueError(f"{path}: {exc.strerror or exc}") from exc
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError(f"{path}: not a wave file (it does not begin with RIFF ... WAVE)")
    try:
        with wave.open(io.BytesIO(_plain_header(path, data))) as opened:
            channels, width, rate = opened.getnchannels(), opened.getsampwidth(), opened.getframerate()
            pcm = opened.readframes(opened.getnframes())
    except (wave.Error, EOFError) as exc:
        raise ValueError(f"{path}: not a wave file that can be read ({exc or 'it is cut off'})") from exc
    if width not in (1, 2, 3, 4) or channels < 1 or not 1_000 <= rate <= 768_000:
        raise ValueError(f"{path}: {width * 8} bits, {channels} channels at {rate} Hz cannot be played")
    samples = _samples(pcm[: len(pcm) - len(pcm) % (width * channels)], width)
    if not len(samples):
        raise ValueError(f"{path}: it holds no samples")
    if channels > 1:
        samples = samples.reshape(-1, channels).astype(np.int32).mean(axis=1).astype(np.int16)
    return samples, rate


def write_wave(path: str, samples: NDArray[np.int16], rate: int) -> None:
    """Write int16 PCM, shape (samples,) or (samples, channels). The file appears whole or not at all."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with wave.open(str(temporary), "wb") as out:
            out.setnchannels(samples.shape[1] if samples.ndim == 2 else 1)
            out.setsampwidth(2)
            out.setframerate(rate)
            out.writeframes(samples.astype("<i2").tobytes())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _samples(pcm: bytes, width: int) -> NDArray[np.int16]:
    """PCM of 1 (unsigned), 2, 3 or 4 bytes a sample as int16: the upper 16 bits."""
    if width == 1:
        return (np.frombuffer(pcm, np.uint8).astype(np.int16) - 128) * np.int16(256)
    if width == 2:
        return np.frombuffer(pcm, "<i2").astype(np.int16)
    raw = np.frombuffer(pcm, np.uint8).reshape(-1, width)
    return np.frombuffer(raw[:, -2:].tobytes(), "<i2").astype(np.int16)


def _plain_header(path: str, data: bytes) -> bytes:
    """``data`` with an extensible PCM header named plain PCM, which is all that ``wave`` of Python 3.11 reads."""
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"fmt " and size >= 16 and at + 8 + size <= len(data):
            (encoding,) = struct.unpack_from("<H", data, at + 8)
            if encoding == _EXTENSIBLE and size >= 40:
                (encoding,) = struct.unpack_from("<H", data, at + 8 + 24)
            if encoding != _PCM:
                kind = _ENCODINGS.get(encoding, f"encoding {encoding}")
                raise ValueError(f"{path}: {kind} is not plain PCM; convert it to 16-bit PCM first")
            return data[: at + 8] + struct.pack("<H", _PCM) + data[at + 10 :]
        at += 8 + size + size % 2
    return data
