"""What no message can carry, handed to a device lane directly: it fails alone, too."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inference.engines.base import Audio, EngineOptions, TranscriptFailed, TranscriptOut, Utterance
from inference.engines.fake import FakeLanguageModel, FakeSpeechToText, FakeTextToSpeech, FakeVoiceActivity
from inference.rooms import Room
from inference.runner import DeviceLane, Engines
from inference.segments import Segment
from inference.wire import messages as m
from inference.wire.tlv import Message

DEADLINE_S = 30.0


class Broken(Room):
    """A room whose audio is no numbers."""

    def utterance(self, start: int, end: int) -> Audio:
        return np.full(end - start, np.nan, np.float32)


class Fragile(FakeSpeechToText):
    """Fails as a whole when one utterance of a step is poison. The first step waits for all to be there."""

    def __init__(self) -> None:
        super().__init__(max_encode=8)
        self.go = threading.Event()
        self.batches: list[int] = []
        self.poisoned: set[int] = set()

    def start(self, request: int, utterance: Utterance) -> None:
        if not np.isfinite(utterance.audio).all():
            self.poisoned.add(request)
            utterance = Utterance(np.zeros_like(utterance.audio))
        super().start(request, utterance)

    def step(self, requests: Sequence[int]) -> list[TranscriptOut | TranscriptFailed]:
        assert self.go.wait(DEADLINE_S)
        self.batches.append(len(requests))
        if self.poisoned & set(requests):
            raise RuntimeError("a library's own error")
        return super().step(requests)


def test_audio_that_is_no_numbers_fails_alone() -> None:
    stt, llm, tts = Fragile(), FakeLanguageModel(), FakeTextToSpeech()
    llm.load(Path(), EngineOptions("cpu", 1, 4, 1024))
    lane = DeviceLane(Engines(FakeVoiceActivity(), stt, llm, tts))
    said: dict[int, Message] = {}
    changed = threading.Condition()

    def deliver(message: Message) -> None:
        assert isinstance(message, m.Transcript | m.RequestFailed)
        with changed:
            assert message.request not in said, "every request ends once"
            said[message.request] = message
            changed.notify_all()

    segments = [Segment.create(f"room {slot}") for slot in range(4)]
    rooms = [
        (Broken if slot == 2 else Room)(f"room {slot}", slot, segment, deliver, lambda reason: None)
        for slot, segment in enumerate(segments)
    ]
    for segment in segments:
        segment.up.write(np.full(16_000, 9000, np.int16).tobytes())
    lane.start()
    try:
        for number, room in enumerate(rooms, 1):
            lane.submit(room, m.Transcribe(number, 0, 8000))
        stt.go.set()
        with changed:
            assert changed.wait_for(lambda: len(said) == 4, DEADLINE_S)
    finally:
        lane.stop()
        for room in rooms:
            room.close()
    assert {number for number, message in said.items() if isinstance(message, m.RequestFailed)} == {3}
    failed = said[3]
    assert isinstance(failed, m.RequestFailed)
    assert failed.code == "engine"
    assert max(stt.batches) > 1
    assert stt.running() == frozenset()
