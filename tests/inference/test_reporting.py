"""What the lane counts while it works, and the reports of a real inference process."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.engines.base import EngineOptions
from inference.engines.fake import FakeLanguageModel, FakeSpeechToText, FakeTextToSpeech, FakeVoiceActivity
from inference.rooms import Room
from inference.runner import DeviceLane, Engines
from inference.segments import Segment
from inference.wire import messages as m
from inference.wire.supervision import InferenceReport, StageReport
from inference.wire.tlv import Message
from tests.inference.process import InferenceProcess, inference_process

DEADLINE_S = 30.0
COST_S = 0.4
"""What an utterance takes: the second one that waits for it begins 0.7 s after its deadline."""


def stage(report: InferenceReport, name: str) -> StageReport:
    return next(stage for stage in report.stages if stage.stage == name)


# --- the lane -------------------------------------------------------------------------------------


class Lane:
    """A device lane with slow fakes, and one room."""

    def __init__(self) -> None:
        self.stt = FakeSpeechToText(cost_s=COST_S, max_batch=1)
        llm, tts = FakeLanguageModel(), FakeTextToSpeech()
        options = EngineOptions("cpu", 1, 2, 1024)
        llm.load(Path(), options)
        tts.load(Path(), options)
        self.lane = DeviceLane(Engines(FakeVoiceActivity(), self.stt, llm, tts))
        self.segment = Segment.create("test")
        self.segment.up.write(bytes(2 * 16_000))
        self.ended: set[int] = set()
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self.room = Room("test", 0, self.segment, self._deliver, lambda reason: pytest.fail(reason))
        self.lane.start()

    def transcribe(self) -> int:
        number = next(self._numbers)
        self.lane.submit(self.room, m.Transcribe(number, 0, 8000))
        return number

    def speak(self, text: str) -> int:
        number = next(self._numbers)
        self.lane.submit(self.room, m.Speak(number, text))
        return number

    def wait(self, *numbers: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.ended >= set(numbers), DEADLINE_S)

    def report(self) -> InferenceReport:
        return self.lane.report("cpu", 1, 2)

    def close(self) -> None:
        self.lane.stop()
        self.room.close()

    def _deliver(self, message: Message) -> None:
        if isinstance(message, m.Transcript | m.SpeakDone | m.RequestFailed):
            with self._changed:
                self.ended.add(message.request)
                self._changed.notify_all()


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane()
    yield lane
    lane.close()


def test_requests_that_wait_behind_others_are_late(lane: Lane) -> None:
    idle = lane.report()
    assert (idle.busy, idle.pressure) == (0.0, 0.0)
    assert [(stage.requests, stage.waiting) for stage in idle.stages] == [(0, 0)] * 3
    numbers = [lane.transcribe() for _ in range(4)]
    lane.wait(*numbers)
    report = lane.report()
    counted = stage(report, "stt")
    assert (counted.requests, counted.waiting, counted.quanta) == (4, 0, 8), "encoding is a quantum of its own"
    assert counted.late in (2, 3), "the first began at once; on a slow machine the second is late, too"
    assert counted.batch_sizes[0] == 8
    assert counted.busy_s >= 4 * COST_S
    assert sum(counted.latencies) == 4
    assert counted.latency_sum_s >= (1 + 2 + 3 + 4) * COST_S
    assert 0.3 < report.pressure <= 1.0
    assert 0.5 < report.busy <= 1.0


def test_one_request_at_a_time_is_in_time(lane: Lane) -> None:
    for _ in range(3):
        lane.wait(lane.transcribe())
    counted = stage(lane.report(), "stt")
    assert counted.requests == 3
    # None, but for a machine so busy that the lane's thread slept a third of a second.
    assert counted.late < 2


def test_a_request_that_never_begins_is_late_all_the_same(lane: Lane) -> None:
    """An overloaded lane whose callers give up has pressure, though it served everything it began in time."""
    numbers = [lane.transcribe() for _ in range(4)]
    lane.wait(*numbers[:2])
    # While the third one runs.
    lane.lane.cancel(lane.room, numbers[3])
    lane.wait(*numbers)
    counted = stage(lane.report(), "stt")
    assert (counted.requests, counted.quanta) == (4, 6)
    assert counted.late >= 2


def test_what_waits_and_a_batch_that_runs_are_seen(lane: Lane) -> None:
    numbers = [lane.transcribe() for _ in range(2)]
    lane.wait(numbers[0])
    # The second one runs now: one more waits, and the lane has not been idle.
    report = lane.report()
    assert stage(report, "stt").waiting == 1
    assert report.busy > 0.5
    lane.wait(numbers[1])


def test_two_that_ask_how_busy_it_is_do_not_disturb_each_other(lane: Lane) -> None:
    lane.report()
    lane.wait(lane.transcribe())
    assert lane.lane.load().busy > 0
    assert lane.report().busy > 0


def test_a_phrase_behind_another_is_not_slow_for_that(lane: Lane) -> None:
    """The first fills the ring for seconds; the second can begin only when a listener has made room."""
    long, short = lane.speak("word " * 60), lane.speak("word")
    deadline = time.monotonic() + DEADLINE_S
    began = time.monotonic()
    while short not in lane.ended:
        assert time.monotonic() < deadline
        if time.monotonic() - began > 1.0:
            lane.segment.down.read(1 << 20)
        time.sleep(0.01)
    assert long in lane.ended
    counted = stage(lane.report(), "tts")
    assert sum(counted.latencies) == 2
    assert counted.latency_sum_s < 1.0, "the wait for the listener was counted"


# --- the process ----------------------------------------------------------------------------------


@pytest.mark.processes
async def test_the_process_reports_every_second(tmp_path: Path) -> None:
    async with asyncio.timeout(2 * DEADLINE_S), inference_process(tmp_path) as process:
        first = await process.report()
        assert (first.device, first.rooms, first.max_rooms, first.pressure) == ("cpu", 0, 2, 0.0)
        assert [stage.stage for stage in first.stages] == ["stt", "llm", "tts"]
        assert [stage.requests for stage in first.stages] == [0, 0, 0], "the warm-up is no request"
        await _one_of_each(process)
        after = await process.report(lambda report: report.rooms == 0 and stage(report, "tts").requests > 0)
        for name in ("stt", "llm", "tts"):
            counted = stage(after, name)
            assert (counted.requests, counted.waiting) == (1, 0)
            assert sum(counted.latencies) == 1
            assert counted.quanta == sum(counted.batch_sizes) >= 1
            assert counted.batch_items == counted.quanta, "there is one room"
        assert stage(after, "llm").quanta > 1, "a token a step"
        for _ in range(2):
            await process.report()


async def _one_of_each(process: InferenceProcess) -> None:
    async with process.room() as room:
        await process.report(lambda report: report.rooms == 1)
        room.push(np.zeros(16_000, np.int16).tobytes())
        await room.transcribe(0, 16_000)
        assert "".join([piece async for piece in room.generate([m.ChatMessage("user", "one two three")])])
        await room.speak("one").wait()
