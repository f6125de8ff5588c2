"""llama.cpp's batch and its log, as Python has them."""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_log = logging.getLogger("inference.llm")

_keep_log_callback: Any = None
"""llama.cpp holds the callback for the life of the process, so it must never be collected."""

native_errors: deque[str] = deque(maxlen=4)
"""llama.cpp's last error lines: its functions return only a code, the reason is in the log."""


@dataclass(slots=True)
class Batch:
    """A ``llama_batch`` whose arrays are numpy's, so that a chunk is written in one assignment.

    One row is one token: its id, its position, the one sequence it belongs to and whether its logits
    are wanted. ``native`` points into the arrays, which live as long as this object.
    """

    lib: Any
    size: int
    native: Any = field(init=False)
    _arrays: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        token = np.zeros(self.size, np.int32)
        position = np.zeros(self.size, np.int32)
        count = np.ones(self.size, np.int32)  # every token belongs to exactly one sequence
        sequence = np.zeros(self.size, np.int32)
        pointers = (sequence.ctypes.data + 4 * np.arange(self.size, dtype=np.uintp)).astype(np.uintp)
        logits = np.zeros(self.size, np.int8)
        self._arrays = (token, position, sequence, logits, count, pointers)
        fields: dict[str, Callable[[], Any]] = {
            "token": lambda: token,
            "pos": lambda: position,
            "n_seq_id": lambda: count,
            "seq_id": lambda: pointers,
            "logits": lambda: logits,
        }
        types = dict(self.lib.llama_batch._fields_)
        self.native = self.lib.llama_batch(n_tokens=0)
        for name, array in fields.items():
            setattr(self.native, name, ctypes.cast(array().ctypes.data, types[name]))

    def clear(self) -> None:
        """No tokens."""
        self.native.n_tokens = 0

    def add(self, tokens: Sequence[int], position: int, sequence: int, logits: bool, also: Sequence[int] = ()) -> int:
        """Append ``tokens`` from ``position`` on; ``logits`` asks for the last one's, ``also`` for those of others of
        them. Returns the last row."""
        start = self.native.n_tokens
        end = start + len(tokens)
        token, positions, sequences, wanted, _, _ = self._arrays
        token[start:end] = tokens
        positions[start:end] = np.arange(position, position + len(tokens))
        sequences[start:end] = sequence
        wanted[start:end] = 0
        wanted[end - 1] = logits
        for index in also:
            wanted[start + index] = True
        self.native.n_tokens = end
        return int(end) - 1


def redirect_log(lib: Any) -> None:
    """Send llama.cpp's log to Python's at debug level; it would go to stderr."""
    global _keep_log_callback
    if _keep_log_callback is None:
        error_level, continued = 4, 5  # enum ggml_log_level: debug 1, info 2, warn 3, error 4, cont 5

        def receive(level: int, text: bytes, _data: object) -> None:
            line = text.decode("utf-8", "replace").rstrip()
            if not line or line == "." or level == continued:
                return
            if level == error_level:
                native_errors.append(line)
            _log.debug("llama.cpp: %s", line)

        _keep_log_callback = lib.llama_log_callback(receive)
    lib.llama_log_set(_keep_log_callback, ctypes.c_void_p(0))
