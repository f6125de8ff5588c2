"""Log-mel features, Whisper's view of sound: 80 or 128 bands, a frame each 10 ms.

A batch is one array for all its utterances, each followed by silence up to the window's end. On a CPU it is
computed in blocks that stay in the cache, in buffers that stay: the same transforms for all utterances in one
array take as long or longer, because of the memory that they ask for. On a GPU one transform takes all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from inference.engines.base import SAMPLE_RATE, Audio, Device

HOP: Final = 160
"""Samples in one frame: 10 ms."""

FRAMES_PER_S: Final = SAMPLE_RATE // HOP

_FFT: Final = 400
_BINS: Final = _FFT // 2 + 1
_BLOCK: Final = 256  # frames
_QUIETEST: Final = 1e-10
_DECADES: Final = 8.0
"""Whisper's features end so many decades of power below their maximum: that is what silence looks like."""


class LogMel(Protocol):
    """Features of a batch."""

    def __call__(self, audios: Sequence[Audio], frames: int) -> NDArray[np.float32]:
        """Shape (utterances, bands, ``frames``); what is missing at an utterance's end is silence.

        ``audios``: at 16 kHz, not empty, at most ``frames`` of 160 samples.
        """


def log_mel(filters: NDArray[np.floating[Any]], device: Device) -> LogMel:
    """The features of ``device``. ``filters``: of the mel bands, shape (bands, 201)."""
    return TorchLogMel(filters, "cuda") if device == "cuda" else BlockLogMel(filters)


class BlockLogMel:
    """``LogMel`` on a CPU. A row is the same to the last bit whatever the others are."""

    def __init__(self, filters: NDArray[np.floating[Any]]) -> None:
        self._filters = np.ascontiguousarray(filters.T, np.float32)
        self._window = _hann()
        self._samples = np.empty((_BLOCK, _FFT), np.float32)
        self._spectrum: Any = np.empty((_BLOCK, _BINS), np.complex64)  # numpy's stubs know rfft in float64 alone
        self._power = np.empty((_BLOCK, _BINS), np.float32)
        self._square = np.empty((_BLOCK, _BINS), np.float32)
        self._bands = np.empty((_BLOCK, len(filters)), np.float32)

    def __call__(self, audios: Sequence[Audio], frames: int) -> NDArray[np.float32]:
        """Shape (utterances, bands, ``frames``), as ``LogMel`` says."""
        out = np.empty((len(audios), self._bands.shape[1], frames), np.float32)
        for audio, row in zip(audios, out, strict=True):
            self._fill(audio, row)
        return out

    def _fill(self, audio: Audio, row: NDArray[np.float32]) -> None:
        # The last transform that sees speech ends 400 samples after it.
        padded = np.pad(np.pad(audio, (0, _FFT)), _FFT // 2, mode="reflect")
        samples = sliding_window_view(padded, _FFT)[::HOP][:-1][: row.shape[1]]
        for start in range(0, len(samples), _BLOCK):
            block = samples[start : start + _BLOCK]
            size = len(block)
            windowed = np.multiply(block, self._window, out=self._samples[:size])
            spectrum = np.fft.rfft(windowed, out=self._spectrum[:size])
            power = np.square(spectrum.real, out=self._power[:size])
            power += np.square(spectrum.imag, out=self._square[:size])
            bands = np.matmul(power, self._filters, out=self._bands[:size])
            np.maximum(bands, _QUIETEST, out=bands)
            row[:, start : start + size] = np.log10(bands, out=bands).T
        heard = row[:, : len(samples)]
        silence = max(heard.max() - _DECADES, np.log10(_QUIETEST))
        np.maximum(heard, silence, out=heard)
        row[:, len(samples) :] = silence
        row += 4.0
        row *= 0.25


class TorchLogMel:
    """``LogMel`` in one transform on a torch device."""

    def __init__(self, filters: NDArray[np.floating[Any]], device: str) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._filters = torch.from_numpy(np.ascontiguousarray(filters, np.float32)).to(device)
        self._window = torch.from_numpy(_hann()).to(device)

    def __call__(self, audios: Sequence[Audio], frames: int) -> NDArray[np.float32]:
        """Shape (utterances, bands, ``frames``), as ``LogMel`` says."""
        torch = self._torch
        samples = np.zeros((len(audios), frames * HOP + _FFT), np.float32)
        for row, audio in zip(samples, audios, strict=True):
            row[: len(audio)] = audio
        with torch.inference_mode():
            spectrum = torch.stft(
                torch.from_numpy(samples).to(self._device), _FFT, HOP, window=self._window, return_complex=True
            )
            bands = self._filters @ spectrum[..., :frames].abs().square()
            logs = bands.clamp(min=_QUIETEST).log10()
            logs = torch.maximum(logs, logs.amax(dim=(1, 2), keepdim=True) - _DECADES)
            result: NDArray[np.float32] = ((logs + 4.0) / 4.0).cpu().numpy()
        return result


def _hann() -> NDArray[np.float32]:
    window: NDArray[np.float32] = np.hanning(_FFT + 1)[:-1].astype(np.float32)
    return window
