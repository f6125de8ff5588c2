"""The inference process from the outside: a real process, its real socket, the shipped fake engines."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import wave
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from inference.client import (
    InferenceRoom,
    InferenceUnavailableError,
    RequestFailedError,
    RoomRefusedError,
)
from inference.wire import messages as m
from tests.inference.process import InferenceProcess, NotReadyError, inference_process

pytestmark = pytest.mark.processes

SPEECH = Path(__file__).parents[1] / "data" / "speech"
DEADLINE_S = 30.0


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[InferenceProcess]:
    async with inference_process(tmp_path) as running:
        yield running


def tone(seconds: float) -> bytes:
    """A 440 Hz tone at 16 kHz: to the fakes, speech."""
    t = np.arange(int(seconds * 16_000)) / 16_000
    return (np.sin(2 * np.pi * 440 * t) * 12_000).astype(np.int16).tobytes()


async def drain_speech(room: InferenceRoom, until: int) -> int:
    """Read the down ring until ``until`` (down clock); returns how many samples that gave."""
    taken = 0
    while room.read_position() < until:
        await room.wait_speech()
        taken += len(room.read_speech(4096)) // 2
    return taken


async def logged(process: InferenceProcess, text: str) -> str:
    """The first log line that has ``text`` in it, as soon as it is there."""
    while (found := next((line.text for line in process.log if text in line.text), None)) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return found


async def test_a_turn_from_audio_to_audio(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room() as room:
        room.listen()
        await asyncio.sleep(0)
        events = room.events()
        room.push(bytes(16_000))
        # Detection begins with what is pushed after the process has taken ``Listen`` up.
        started = asyncio.ensure_future(anext(events))
        while not started.done():
            room.push(tone(0.1))
            await asyncio.wait({started}, timeout=0.02)
        assert isinstance(await started, m.SpeechStarted)
        room.push(bytes(32_000))
        assert isinstance(await anext(events), m.SpeechPaused)
        ended = await anext(events)
        assert isinstance(ended, m.SpeechEnded)
        transcript = await room.transcribe(ended.start, ended.end)
        assert transcript.text.startswith("heard ")
        generation = room.generate([m.ChatMessage("user", "one two three")])
        text = "".join([piece async for piece in generation])
        assert text == "You said: one two three"
        assert generation.done is not None
        assert generation.done.finish == "stop"
        phrase = room.speak(text)
        await phrase.wait()
        assert phrase.start == 0
        assert phrase.end is not None
        assert await drain_speech(room, phrase.end) == phrase.end


async def test_detection_begins_where_it_is_told_to(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room() as room:
        # All of it was spoken before anybody listened.
        room.push(bytes(2 * 16_000) + tone(0.5) + bytes(2 * 16_000))
        room.listen(start=12_000)
        events = room.events()
        started, paused, ended = [await anext(events) for _ in range(3)]
        assert isinstance(started, m.SpeechStarted)
        assert started.start == pytest.approx(16_000, abs=512)
        assert isinstance(paused, m.SpeechPaused)
        assert isinstance(ended, m.SpeechEnded)
        assert ended.end == pytest.approx(24_000, abs=512)
        while room.heard < 40_000 - 512:  # noqa: ASYNC110 (shared memory tells nobody)
            await asyncio.sleep(0.01)
        # And once more, as after a restart.
        room.listen(start=started.start)
        assert room.heard == started.start
        again = await anext(events)
        assert again == started


async def test_detection_begins_with_the_oldest_sample_that_is_kept(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room() as room:
        for _ in range(5):
            room.push(bytes(2 * 300_000))
        room.push(tone(0.5))
        oldest = room.oldest
        assert oldest > 400_000
        room.listen(start=7)
        assert isinstance(await anext(room.events()), m.SpeechStarted), "no audio was lost that could be kept"
        assert room.heard >= oldest


async def test_a_room_lives_on_in_the_process_that_takes_the_place(tmp_path: Path) -> None:
    async with asyncio.timeout(2 * DEADLINE_S):
        async with inference_process(tmp_path) as running:
            client = await running.connect()
            room = await client.open_room("room")
            phrase = room.speak("one")
            await phrase.wait()
            assert phrase.end is not None
            room.push(tone(0.5))
            os.kill(running.pid, signal.SIGKILL)
            await client.wait_gone()
        room.push(tone(0.5))
        async with (
            inference_process(tmp_path, token=running.settings.token) as successor,
            await successor.connect() as other,
        ):
            await other.attach_room(room)
            room.listen(start=0)
            assert isinstance(await anext(room.events()), m.SpeechStarted)
            transcript = await room.transcribe(0, 16_000)
            assert transcript.text == "heard 1000 ms"
            # Nobody has read the first phrase yet: it still lies there, before the second.
            second = room.speak("two")
            await second.wait()
            assert second.start == phrase.end
            assert second.end is not None
            assert await drain_speech(room, second.end) == second.end
        await client.aclose()


async def test_phrases_come_in_the_order_they_were_asked_for(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room() as room:
        phrases = [room.speak(text) for text in ("one", "two and a bit", "three")]
        await asyncio.gather(*(phrase.wait() for phrase in phrases))
        assert phrases[0].start == 0
        assert [phrase.start for phrase in phrases[1:]] == [phrase.end for phrase in phrases[:-1]]


async def test_speech_longer_than_the_ring_waits_for_its_reader(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room() as room:
        phrases = [room.speak("word " * 10) for _ in range(12)]
        waits = [asyncio.ensure_future(phrase.wait()) for phrase in phrases]
        await waits[0]
        done, _ = await asyncio.wait(waits, timeout=0.3)
        assert len(done) < len(waits), "everything fitted: the test speaks too little"
        while not all(wait.done() for wait in waits):
            await asyncio.wait({asyncio.ensure_future(room.wait_speech())}, timeout=0.2)
            room.read_speech(1 << 16)
        assert all(wait.exception() is None for wait in waits)
        ends = [phrase.end for phrase in phrases]
        assert ends == sorted(ends)  # type: ignore[type-var]


async def test_a_cancelled_phrase_ends_and_the_next_one_follows_it(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room() as room:
        long = [room.speak("word " * 300), room.speak("word " * 300)]
        for phrase in long:
            phrase.cancel()
        for phrase in long:
            with pytest.raises(RequestFailedError, match="cancelled"):
                await phrase.wait()
        written = room.skip_speech()
        after = room.speak("now")
        await after.wait()
        assert after.start == written, "something of a cancelled phrase was written after its end"


async def test_a_cancelled_generation_ends_and_a_new_one_begins(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room() as room:
        first = room.generate([m.ChatMessage("user", "word " * 400)])
        first.cancel()
        # It ends either way: the model may have written its last word before the cancel was read.
        try:
            _ = [piece async for piece in first]
        except RequestFailedError as exc:
            assert exc.code == "cancelled"  # noqa: PT017
        second = room.generate([m.ChatMessage("user", "again")])
        assert "".join([piece async for piece in second]) == "You said: again"


async def test_bad_requests_fail_alone(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room("a") as room, process.room("b") as neighbour:
        room.push(tone(1))
        with pytest.raises(RequestFailedError, match="not written yet"):
            await room.transcribe(0, 1_000_000)
        with pytest.raises(RequestFailedError, match="no length"):
            await room.transcribe(500, 500)
        with pytest.raises(RequestFailedError) as too_long:
            _ = [piece async for piece in room.generate([m.ChatMessage("user", "word " * 20_000)])]
        assert too_long.value.code == "too_long"
        neighbour.push(tone(1))
        assert (await neighbour.transcribe(0, 16_000)).text == "heard 1000 ms"
        assert (await room.transcribe(0, 8_000)).text == "heard 500 ms"


async def test_a_room_too_many_is_refused_and_a_slot_comes_back(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room("a") as room:
        async with process.room("b"), await process.connect() as third:
            with pytest.raises(RoomRefusedError, match="all 2 rooms are taken"):
                await third.open_room("c")
        # The slot is free once the process has noticed the end of the connection.
        while True:
            try:
                async with process.room("d") as fourth:
                    fourth.push(tone(0.5))
                    assert (await fourth.transcribe(0, 8_000)).text == "heard 500 ms"
                break
            except RoomRefusedError:
                await asyncio.sleep(0.01)
        room.push(tone(0.5))
        assert (await room.transcribe(0, 8_000)).text == "heard 500 ms"


async def test_who_comes_before_a_slot_is_given_back_waits_for_it(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE_S),
        inference_process(tmp_path, module="tests.inference.slow_main", max_rooms=1) as process,
    ):
        first = await process.connect()
        room = await first.open_room("first")
        room.push(tone(1))
        asked = [asyncio.create_task(room.transcribe(0, 16_000)) for _ in range(4)]
        await process.report(lambda report: any(stage.busy_s > 0 for stage in report.stages))
        # In the middle of a quantum that nothing can interrupt.
        await first.aclose()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(ends[-1], InferenceUnavailableError)
        async with process.room("second") as second, await process.connect() as third:
            second.push(tone(1))
            assert (await second.transcribe(0, 16_000)).text == "heard 1000 ms"
            with pytest.raises(RoomRefusedError, match="all 1 rooms are taken"):
                await third.open_room("third")


async def test_a_wrong_token_is_refused(process: InferenceProcess) -> None:
    with pytest.raises(InferenceUnavailableError, match="wrong token"):
        await process.connect(token="guess")


async def test_garbage_cuts_off_its_sender_alone(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room() as room:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as vandal:
            vandal.setblocking(False)
            await loop.sock_connect(vandal, process.settings.socket_path)
            await loop.sock_sendall(vandal, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while await loop.sock_recv(vandal, 4096):
                pass
        room.push(tone(0.5))
        assert (await room.transcribe(0, 8_000)).text == "heard 500 ms"


async def test_a_corrupt_ring_cuts_off_its_owner_alone(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), await process.connect() as client, process.room("other") as other:
        room = await client.open_room("vandal")
        segment = room._segment
        words = segment.down._words
        words[128 // 8] = 1 << 60
        phrase = room.speak("never heard")
        with pytest.raises((InferenceUnavailableError, RequestFailedError)):
            await phrase.wait()
        assert isinstance(await client.wait_gone(), InferenceUnavailableError)
        other.push(tone(0.5))
        assert (await other.transcribe(0, 8_000)).text == "heard 500 ms"


async def test_a_corrupt_ring_is_noticed_when_it_is_transcribed(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), await process.connect() as client:
        room = await client.open_room("vandal")
        room.push(tone(1))
        room._segment.up._words[64 // 8] = 1 << 63
        with pytest.raises((InferenceUnavailableError, RequestFailedError)):
            await room.transcribe(0, 16_000)
        assert isinstance(await client.wait_gone(), InferenceUnavailableError)


async def test_more_connections_than_descriptors_end_none_of_those_that_are_there(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room() as room:
        taken = max(int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()) + 1
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (taken + 2, hard))
        with ExitStack() as stack:
            # More than there may be gaps among the numbers that are taken.
            for _ in range(64):
                stack.enter_context(socket.socket(socket.AF_UNIX)).connect(process.settings.socket_path)
            await logged(process, "a connection cannot be accepted")
            room.push(tone(0.5))
            assert (await room.transcribe(0, 8_000)).text == "heard 500 ms"
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (hard, hard))
        async with process.room("another"):
            pass


async def test_a_lane_that_is_stuck_ends_the_process_with_its_stack_in_the_log(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), inference_process(tmp_path, module="tests.inference.stuck_main") as process:
        async with process.room() as room:
            room.push(tone(0.5))
            with pytest.raises(InferenceUnavailableError):
                await room.transcribe(0, 8_000)
        told = await logged(process, "a quantum has not ended for")
        assert "in step\n    time.sleep(3600)" in told


async def test_stats_count_rooms(process: InferenceProcess) -> None:
    async with asyncio.timeout(DEADLINE_S), process.room("a"), await process.connect() as asker:
        stats = await asker.stats()
        assert (stats.rooms, stats.max_rooms) == (1, 2)


async def test_when_the_process_dies_every_request_fails_at_once(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S):
        async with inference_process(tmp_path) as running:
            client = await running.connect()
            room = await client.open_room("room")
        waiting = asyncio.gather(
            client.wait_gone(), room.transcribe(0, 1), anext(room.events()), return_exceptions=True
        )
        results = await waiting
        assert all(isinstance(result, InferenceUnavailableError) for result in results)
        with pytest.raises(InferenceUnavailableError, match="no inference process"):
            await running.connect()
        await client.aclose()


async def test_a_device_that_is_not_there_is_said(tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(NotReadyError, match="device 'cuda' was asked for") as failed:
        async with inference_process(tmp_path, device="cuda"):
            pass
    assert failed.value.exit_code == 4


@pytest.mark.models
async def test_a_voice_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    broken = tmp_path / "voice.onnx"
    broken.write_bytes(b"not a model")
    (tmp_path / "voice.onnx.json").write_text("{}")
    with pytest.raises(NotReadyError, match=r"voice") as failed:
        async with inference_process(tmp_path, engines="real", tts_path=str(broken)):
            pass
    assert failed.value.exit_code == 5


@pytest.mark.models
async def test_real_models_hear_answer_and_speak(tmp_path: Path) -> None:
    with wave.open(str(SPEECH / "whats-the-date-today.wav")) as recording:
        question = recording.readframes(recording.getnframes())
    async with (
        asyncio.timeout(120),
        inference_process(tmp_path, engines="real", threads=2, llm_threads=1) as running,
        running.room() as room,
    ):
        room.push(question)
        transcript = await room.transcribe(0, len(question) // 2, language="en")
        assert "date today" in transcript.text.lower()
        chat = [m.ChatMessage("system", "You are brief."), m.ChatMessage("user", transcript.text)]
        generation = room.generate(chat, max_tokens=12, temperature=0.0)
        answer = "".join([piece async for piece in generation])
        assert answer.strip()
        # The second turn finds the first one's cache: only what is new is decoded.
        chat += [m.ChatMessage("assistant", answer), m.ChatMessage("user", "And tomorrow?")]
        again = room.generate(chat, max_tokens=4, temperature=0.0)
        _ = [piece async for piece in again]
        assert again.done is not None
        assert again.done.cached_tokens >= generation.done.prompt_tokens - 1  # type: ignore[union-attr]
        phrase = room.speak("The answer is forty two.")
        await phrase.wait()
        assert phrase.end is not None
        assert phrase.end > 0.8 * room.speech_rate
