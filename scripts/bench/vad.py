#!/usr/bin/env python3
"""What voice activity detection costs, and that rooms do not disturb each other. Needs no downloaded models.

    python scripts/bench/vad.py [--rooms 32] [--speech DIR]

Ours is one forward of all rooms; the stock way is silero-vad's own model called once for each room's window.
The last line is one JSON object; ``bars`` are what must hold.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import Bar, console, finish, hardware, percentile, table, versions, warn_if_busy
from speech import DEFAULT_FOLDER, read_recordings

from inference.engines.base import VAD_WINDOW, EngineOptions
from inference.engines.vad import SileroVoiceActivity

WINDOW_US = 60.0
ROOM_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
SLOTS = 128
REPEATS = 200


def windows_of(folder: Path, rooms: int, ticks: int) -> NDArray[np.float32]:
    """Windows (ticks, rooms, 512) of the recordings, each room beginning somewhere else in them."""
    audio = np.concatenate([recording.audio for recording in read_recordings(folder)])
    starts = [room * 7919 * VAD_WINDOW % (len(audio) // VAD_WINDOW * VAD_WINDOW) for room in range(rooms)]
    endless = np.concatenate([audio, audio[: len(audio) // VAD_WINDOW * VAD_WINDOW]])
    while len(endless) < max(starts) + ticks * VAD_WINDOW:
        endless = np.concatenate([endless, audio])
    rows = [endless[start : start + ticks * VAD_WINDOW].reshape(ticks, VAD_WINDOW) for start in starts]
    return np.ascontiguousarray(np.stack(rows, axis=1))


def timed_us(work: Callable[[int], object], repeats: int = REPEATS) -> float:
    """Median wall time of ``work(tick)`` in microseconds."""
    taken = []
    for tick in range(repeats):
        began = time.perf_counter()
        work(tick)
        taken.append(1e6 * (time.perf_counter() - began))
    return percentile(taken[repeats // 10 :], 0.5)


def stock_us(windows: NDArray[np.float32]) -> float:
    """One window through silero-vad's own wrapper, as its README shows it, on one thread."""
    import silero_vad
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = silero_vad.load_silero_vad()
    return timed_us(lambda tick: model(torch.from_numpy(windows[tick % len(windows), 0]), 16_000).item())


def undisturbed(engine: SileroVoiceActivity, windows: NDArray[np.float32], rooms: int) -> tuple[int, int]:
    """Probabilities of a room alone against the same room while others join and leave: (compared, different)."""
    ticks = len(windows)
    compared = different = 0
    order = np.random.default_rng(3)
    for watched in (0, rooms // 2, rooms - 1):
        engine.reset(watched)
        alone = [engine.probabilities([watched], windows[tick, [watched]])[0] for tick in range(ticks)]
        engine.reset(watched)
        for tick in range(ticks):
            others = [slot for slot in range(rooms) if slot != watched and order.random() < 0.7]
            for slot in others:
                if order.random() < 0.05:
                    engine.reset(slot)
            slots = [int(slot) for slot in order.permutation([watched, *others])]
            heard = engine.probabilities(slots, windows[tick, slots])[slots.index(watched)]
            compared += 1
            different += bool(heard != alone[tick])
    return compared, different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=32, help="rooms the bar is measured with (default 32)")
    parser.add_argument("--speech", type=Path, default=DEFAULT_FOLDER, help="folder with a transcripts.tsv")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    rooms = max(1, min(SLOTS, arguments.rooms))

    console.print(hardware())
    console.print(versions("torch", "silero-vad"))
    warn_if_busy()
    windows = windows_of(arguments.speech, max(SLOTS, rooms), ticks=64)
    engine = SileroVoiceActivity()
    engine.load(EngineOptions(device=arguments.device, threads=1, max_rooms=SLOTS))
    stock = stock_us(windows)
    rows = []
    measured = {}
    for count in sorted({*ROOM_COUNTS, rooms}):
        slots = list(range(count))
        tick_us = timed_us(lambda tick, slots=slots: engine.probabilities(slots, windows[tick % 64, slots]))
        measured[count] = tick_us / count
        rows.append((str(count), tick_us, tick_us / count, 100 * tick_us / 32_000, stock, stock * count / tick_us))
    table(
        "Voice activity detection, one thread",
        ("rooms", "tick us", "us a window and room", "% of a core", "stock us a window", "× faster"),
        rows,
        "a tick is one 32 ms window of every room",
    )
    compared, different = undisturbed(engine, windows, rooms)
    console.print(f"{compared} probabilities of rooms among others that join and leave: {different} differ in any bit")
    engine.close()
    return finish(
        "vad",
        [
            Bar(f"one window of one of {rooms} rooms", measured[rooms], "us", WINDOW_US),
            Bar("probabilities that joining and leaving rooms changed", different, "of " + str(compared), 0),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
