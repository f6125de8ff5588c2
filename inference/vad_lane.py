"""The voice activity lane: a thread that ticks every 32 ms for all rooms, beside the device lane."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from inference.engines.base import VoiceActivityEngine
from inference.rooms import Room
from inference.trace import VAD_LANE, Trace

logger = logging.getLogger(__name__)

VAD_TICK_S = 0.032
_MAX_WINDOWS_PER_TICK = 32


class VadLane:
    """Every 32 ms: one window of every listening room, one batched forward, events to the jobs."""

    def __init__(self, engine: VoiceActivityEngine, trace: Trace | None = None) -> None:
        self._engine = engine
        self._trace = trace
        self._rooms: dict[int, Room] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vad-lane", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def add(self, room: Room) -> None:
        """Watch a room (its ``listen`` says when)."""
        with self._lock:
            self._engine.reset(room.slot)
            self._rooms[room.slot] = room

    def remove(self, room: Room) -> None:
        """Watch it no more."""
        with self._lock:
            self._rooms.pop(room.slot, None)

    def reset(self, room: Room) -> None:
        """Forget what the room's detector has heard (it starts to listen anew)."""
        with self._lock:
            self._engine.reset(room.slot)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = max(due + VAD_TICK_S, time.monotonic())
            try:
                self._tick()
            except Exception:
                logger.exception("a voice activity tick failed")

    def _tick(self) -> None:
        # A room that pushes its audio in bursts, or a late tick, has several windows waiting.
        for _ in range(_MAX_WINDOWS_PER_TICK):
            with self._lock:
                ready = [(room, window) for room in self._rooms.values() if (window := room.next_window()) is not None]
                if not ready:
                    return
                began = time.monotonic()
                windows = np.stack([window for _, window in ready]).astype(np.float32) / 32768.0
                probabilities = self._engine.probabilities([room.slot for room, _ in ready], windows)
                ended = time.monotonic()
            for (room, _), probability in zip(ready, probabilities, strict=True):
                room.observe(float(probability))
            if self._trace is not None:
                self._trace.slice(VAD_LANE, "voice activity", began, ended, rooms=len(ready))
