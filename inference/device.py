"""Which device the engines run on. Asks the CUDA driver itself, so that no model library is loaded for it."""

from __future__ import annotations

import ctypes
from typing import Literal

from inference.engines.base import Device


class NoDeviceError(Exception):
    """The device asked for is not there; the message says what is missing."""


def choose_device(asked: Literal["auto", "cpu", "cuda"]) -> Device:
    """``auto`` is ``cuda`` where a GPU is usable, else ``cpu``. Raises ``NoDeviceError`` for a missing ``cuda``."""
    if asked == "cpu":
        return "cpu"
    try:
        _count_gpus()
    except NoDeviceError:
        if asked == "cuda":
            raise
        return "cpu"
    return "cuda"


def _count_gpus() -> int:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as exc:
        raise NoDeviceError(
            "device 'cuda' was asked for, but this machine has no NVIDIA driver (libcuda.so.1 is not there);"
            " use --device cpu or auto"
        ) from exc
    count = ctypes.c_int(0)
    for status in (driver.cuInit(0), driver.cuDeviceGetCount(ctypes.byref(count))):
        if status:
            raise NoDeviceError(
                f"device 'cuda' was asked for, but the NVIDIA driver answers with error {status};"
                " use --device cpu or auto"
            )
    if count.value == 0:
        raise NoDeviceError("device 'cuda' was asked for, but the NVIDIA driver finds no GPU; use --device cpu or auto")
    return count.value
