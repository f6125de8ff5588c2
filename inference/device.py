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


def free_gpu_memory() -> int:
    """Bytes that are free on the first GPU that this process sees, beside its own context. Raises ``NoDeviceError``.

    NVML would count devices that CUDA_VISIBLE_DEVICES hides, and not know of the context.
    """
    _count_gpus()
    driver = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(0), ctypes.c_void_p(None)
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    # The primary context is the one that every library of this process works in; it stays.
    for status in (
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        driver.cuCtxPushCurrent_v2(context),
        driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
        driver.cuCtxPopCurrent_v2(ctypes.byref(context)),
    ):
        if status:
            raise NoDeviceError(f"the NVIDIA driver answers with error {status} when it is asked for free memory")
    return free.value


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
