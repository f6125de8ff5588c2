"""One room inside the inference process: its slot, its shared memory, its requests' way back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from inference.activity import VoiceActivity
from inference.engines.base import VAD_WINDOW, Audio
from inference.segments import Segment
from inference.wire import messages as m
from inference.wire.errors import OverrunError, RingCorruptedError
from inference.wire.tlv import Message


class RoomClosedError(Exception):
    """The room is gone; whatever was being done for it is of no use."""


class Room:
    """Shared by the event loop and both lanes; every look into shared memory holds the room's lock.

    ``deliver`` sends a message to the room's job from any thread. ``cut_off`` ends the connection of
    a peer whose shared memory makes no sense.
    """

    def __init__(
        self,
        name: str,
        slot: int,
        segment: Segment,
        deliver: Callable[[Message], None],
        cut_off: Callable[[str], None],
    ) -> None:
        self.name = name
        self.slot = slot
        self.deliver = deliver
        self._cut_off = cut_off
        self._segment = segment
        self._lock = threading.Lock()
        self._closed = False
        self._activity: VoiceActivity | None = None
        self._heard = 0

    def __repr__(self) -> str:
        return f"<Room {self.name!r} slot={self.slot} heard={self._heard}{' closed' if self._closed else ''}>"

    # --- voice activity (the VAD lane, and ``listen`` from the event loop) --------------------------

    def listen(self, settings: m.Listen) -> None:
        """Start or stop detection.

        It begins at ``settings.start``, or at the oldest sample that is kept; -1 is with what is spoken
        from now on. How far it has got shows in the up ring's consumer cursor.
        """
        with self._lock:
            if not settings.enabled or self._closed:
                self._activity = None
                return
            up = self._segment.up
            written = up.written()
            self._activity = VoiceActivity(settings)
            self._heard = written if settings.start < 0 else min(max(settings.start, up.oldest()), written)
            up.seek(self._heard)

    def next_window(self) -> NDArray[np.int16] | None:
        """The next 512 samples that detection has not seen, or None. Reports audio that was lost."""
        with self._lock:
            if self._closed or self._activity is None:
                return None
            up = self._segment.up
            try:
                if up.written() - self._heard < VAD_WINDOW:
                    return None
                oldest = up.oldest()
                if self._heard < oldest:
                    self.deliver(m.AudioLost(oldest - self._heard, oldest))
                    self._heard = oldest
                    self._activity = VoiceActivity(self._activity.settings)
                window = np.frombuffer(up.peek(self._heard, VAD_WINDOW), np.int16)
                self._heard += VAD_WINDOW
                up.seek(self._heard)
            except OverrunError:
                # Lapped between the look and the copy: the next tick finds the new oldest sample.
                return None
            except RingCorruptedError as exc:
                self._cut_off(str(exc))
                return None
            return window

    def observe(self, probability: float) -> None:
        """Tell the room how likely the last window of ``next_window`` is speech."""
        with self._lock:
            if self._closed or self._activity is None:
                return
            event = self._activity.observe(probability, self._heard - VAD_WINDOW, self._heard)
        if event is not None:
            self.deliver(event)

    # --- requests (the device lane) -----------------------------------------------------------------

    def utterance(self, start: int, end: int) -> Audio:
        """The caller's audio from ``start`` to ``end`` as float32. Raises ``OverrunError``, ``RoomClosedError``."""
        with self._lock:
            self._check_open()
            try:
                pcm = self._segment.up.peek(start, end - start)
            except RingCorruptedError as exc:
                self._cut_off(str(exc))
                raise RoomClosedError(str(exc)) from exc
        return np.frombuffer(pcm, np.int16).astype(np.float32) / 32768.0

    def write_speech(self, samples: NDArray[np.int16]) -> int:
        """Append to the down ring what fits; returns how many samples that was. Raises ``RoomClosedError``."""
        with self._lock:
            self._check_open()
            down = self._segment.down
            try:
                taken = down.write(samples.tobytes())
            except RingCorruptedError as exc:
                self._cut_off(str(exc))
                raise RoomClosedError from exc
            if taken and down.consumer_sleeps():
                self._segment.ring_doorbell()
        return taken

    def speech_written(self) -> int:
        """Where the next sample of speech will lie on the down clock. Raises ``RoomClosedError``."""
        with self._lock:
            self._check_open()
            return self._segment.down.produced

    def buffered_samples(self) -> int:
        """Speech in the ring that the job has not taken yet (0 for a room that is gone)."""
        with self._lock:
            if self._closed:
                return 0
            try:
                return self._segment.down.capacity - self._segment.down.space()
            except RingCorruptedError as exc:
                self._cut_off(str(exc))
                return 0

    def close(self) -> None:
        """Give the shared memory back. Lanes that come later get ``RoomClosedError``."""
        with self._lock:
            self._closed = True
            self._activity = None
            self._segment.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RoomClosedError(f"room {self.name!r} is closed")
