"""Silero VAD in torch: one window of every listening room in one forward.

The published module keeps one state for a fixed batch inside itself and forgets it when the batch
size changes, so a room that joined would reset all others. Its inner network is a pure function of
``(64 samples of context + 512 new samples, LSTM state)``; this engine calls that function and keeps
context and state in one row per slot, gathered before and scattered after each forward.

Every forward has the same number of rows, the ones that nobody needs being silence: matrix kernels
are chosen by shape and round differently, so only then does a room hear bit for bit the same
whoever joins and leaves.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from inference.engines.base import VAD_WINDOW, Audio, EngineError, EngineOptions

_CONTEXT: Final = 64
"""Samples of the previous window that the 16 kHz network sees in front of the new one (silero_vad/utils_vad.py)."""

_STATE: Final = 128
"""Width of the LSTM; its state is (2, rows, 128): hidden and cell."""


_ROWS: Final = {"cpu": 16, "cuda": 64}
"""Rows of one forward. On a CPU 16 rows take three times as long as one, 32 rows five times; a GPU hardly notices."""


class SileroVoiceActivity:
    """``VoiceActivityEngine`` on Silero's 16 kHz network."""

    def __init__(self) -> None:
        self._torch: Any = None
        self._network: Any = None
        self._device: Any = None
        self._slots = 0
        self._rows = 0
        self._state: Any = None  # (2, slots, 128) float32 on the device
        self._context: Any = None  # (slots, 64) float32 on the device

    def __repr__(self) -> str:
        return f"SileroVoiceActivity(slots={self._slots}, device={self._device})"

    def load(self, options: EngineOptions) -> None:
        """Load the network that the silero-vad package carries and take the state of all slots.

        Raises ``EngineError`` when the packages, the file or the device are missing or unusable.
        """
        try:
            import silero_vad
            import torch

            # One 576-sample row is far too small to share between threads, and torch's pool would
            # fight the other engines for the cores.
            torch.set_num_threads(1)
            with warnings.catch_warnings():
                # torch announces the end of TorchScript on every load; the package ships nothing newer.
                warnings.simplefilter("ignore")
                module = silero_vad.load_silero_vad(onnx=False)
            self._device = torch.device(options.device)
            self._network = module._model.to(self._device).eval()
            self._state = torch.zeros((2, options.max_rooms, _STATE), device=self._device)
            self._context = torch.zeros((options.max_rooms, _CONTEXT), device=self._device)
        except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as exc:
            raise EngineError(f"voice activity: cannot load Silero on {options.device}: {exc}") from exc
        self._torch = torch
        self._slots = options.max_rooms
        self._rows = _ROWS[options.device]
        silence = np.zeros((1, VAD_WINDOW), np.float32)
        for _ in range(3):  # the first two runs record and compile (tens of milliseconds)
            self.probabilities([0], silence)
        self.reset(0)

    def reset(self, slot: int) -> None:
        """Forget what ``slot`` has heard (a new room, or a gap in its audio)."""
        self._check([slot])
        self._state[:, slot] = 0.0
        self._context[slot] = 0.0

    def probabilities(self, slots: Sequence[int], windows: Audio) -> Audio:
        """Speech probability per row: ``windows`` float32 (rows, 512) at 16 kHz, the result float32 (rows,).

        Samples that are not numbers count as silence, so they cannot stay in a room's state. Raises
        ``EngineError`` for a wrong shape, an unknown slot or a slot that appears twice.
        """
        self._check(slots)
        if windows.shape != (len(slots), VAD_WINDOW):
            raise EngineError(f"voice activity: windows are {windows.shape}, expected ({len(slots)}, {VAD_WINDOW})")
        if not slots:
            return np.zeros(0, np.float32)
        clean = np.nan_to_num(windows.astype(np.float32, copy=False), posinf=1.0, neginf=-1.0)
        blocks = [slice(start, start + self._rows) for start in range(0, len(slots), self._rows)]
        try:
            result: Audio = np.concatenate([self._forward(slots[block], clean[block]) for block in blocks])
        except RuntimeError as exc:
            raise EngineError(f"voice activity: the forward of {len(slots)} rows failed: {exc}") from exc
        return result

    def _forward(self, slots: Sequence[int], windows: Audio) -> Audio:
        """At most one forward's worth of rows."""
        torch, count = self._torch, len(slots)
        with torch.inference_mode():
            rows = torch.as_tensor(slots, device=self._device)
            new = torch.from_numpy(windows).to(self._device)
            heard = torch.zeros((self._rows, _CONTEXT + VAD_WINDOW), device=self._device)
            heard[:count, :_CONTEXT] = self._context[rows]
            heard[:count, _CONTEXT:] = new
            before = torch.zeros((2, self._rows, _STATE), device=self._device)
            before[:, :count] = self._state[:, rows]
            probability, after = self._network(heard, before)
            self._state[:, rows] = after[:, :count]
            self._context[rows] = new[:, -_CONTEXT:]
            result: Audio = probability[:count, 0].cpu().numpy()
        return result

    def close(self) -> None:
        """Free the network and all state."""
        self._network = self._state = self._context = None
        self._slots = 0

    def _check(self, slots: Sequence[int]) -> None:
        if self._network is None:
            raise EngineError("voice activity: not loaded")
        if len(set(slots)) != len(slots):
            raise EngineError(f"voice activity: a slot appears twice in {list(slots)}")
        if slots and not (min(slots) >= 0 and max(slots) < self._slots):
            raise EngineError(f"voice activity: slots {list(slots)} are not all in 0..{self._slots - 1}")
