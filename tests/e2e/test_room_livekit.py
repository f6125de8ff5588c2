"""The LiveKit room against a real server and a real caller: no models, no other process of ours."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from caller import RATE, Caller, call, read_wave, rms, until
from livekit import rtc
from livekit.api import DeleteRoomRequest
from livekit_server import LiveKitServer

from host.job.room import Room, RoomEndedError
from host.job.room_livekit import LiveKitRoom

pytestmark = pytest.mark.e2e

SPEECH = Path(__file__).parents[1] / "data" / "speech"
VOICE_RATE = 22_050


def tone(seconds: float, hertz: float = 440.0, rate: int = VOICE_RATE) -> bytes:
    time_s = np.arange(int(seconds * rate)) / rate
    return (0.3 * 32_767 * np.sin(2 * np.pi * hertz * time_s)).astype(np.int16).tobytes()


def pitch(pcm: bytes, rate: int = RATE) -> float:
    samples = np.frombuffer(pcm, dtype=np.int16).astype(np.float64)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(samples.size)))
    return float(np.argmax(spectrum) * rate / samples.size)


@asynccontextmanager
async def agent_in(livekit: LiveKitServer, name: str) -> AsyncIterator[LiveKitRoom]:
    room = LiveKitRoom(name, livekit.url, livekit.token(name, "agent", agent=True))
    try:
        await room.connect()
        yield room
    finally:
        await room.leave()


def caller_in(livekit: LiveKitServer, name: str, identity: str = "caller") -> AbstractAsyncContextManager[Caller]:
    return call(livekit.url, livekit.token(name, identity))


class Listener:
    """What the agent hears."""

    def __init__(self, room: LiveKitRoom) -> None:
        self.pcm = bytearray()
        self.blocks: list[tuple[float, int]] = []
        self._room = room
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for block in self._room.caller_audio():
            self.pcm += block
            self.blocks.append((time.monotonic(), len(block)))


async def test_it_is_a_room(livekit: LiveKitServer, room_name: str) -> None:
    room: Room = LiveKitRoom(room_name, livekit.url, "")
    await room.leave()
    await room.leave()


async def test_joining_with_a_bad_token_says_which_room(livekit: LiveKitServer, room_name: str) -> None:
    room = LiveKitRoom(room_name, livekit.url, "no.such.token")
    with pytest.raises(ConnectionError, match=room_name):
        await room.connect()
    await room.leave()


async def test_both_hear_each_other_and_the_caller_leaving_ends_it(livekit: LiveKitServer, room_name: str) -> None:
    question = read_wave(SPEECH / "go-forward-ten-meters.wav")
    async with agent_in(livekit, room_name) as room, caller_in(livekit, room_name) as caller:
        assert await room.wait_for_participant() == "caller"
        await room.open_speech(VOICE_RATE)
        listener = Listener(room)
        await caller.wait(lambda: bool(caller.heard), 10, "the agent's track")

        await caller.say(question)
        await until(lambda: rms(bytes(listener.pcm[-RATE:])) < 0.002, 10, "the question's end")
        heard = np.frombuffer(bytes(listener.pcm), dtype=np.int16).astype(np.float64)
        said = np.frombuffer(question, dtype=np.int16).astype(np.float64)
        # An Opus codec and a jitter buffer lie between: compare the energy, and the loudness over time.
        assert np.sum(heard**2) == pytest.approx(np.sum(said**2), rel=0.25)

        started = time.monotonic()
        await room.play(tone(1.0))
        # Play paces: all but what may wait in the queue has been heard when it returns.
        assert time.monotonic() - started == pytest.approx(0.8, abs=0.15)
        await room.wait_for_playout()
        assert time.monotonic() - started == pytest.approx(1.0, abs=0.15)
        assert room.heard_samples() == VOICE_RATE
        await caller.wait_for_silence(ms=300)
        loud = [
            bytes(caller.heard[at : at + 640])
            for at in range(0, len(caller.heard), 640)
            if rms(bytes(caller.heard[at : at + 640])) > 0.05
        ]
        assert len(loud) * 0.02 == pytest.approx(1.0, abs=0.06)
        assert pitch(b"".join(loud[5:-5])) == pytest.approx(440, abs=3)

        await caller.hang_up()
        async with asyncio.timeout(10):
            assert "CLIENT_INITIATED" in await room.wait_closed()
            await listener.task


async def test_the_first_words_wait_for_a_listener(livekit: LiveKitServer, room_name: str) -> None:
    async with agent_in(livekit, room_name) as room:
        await room.open_speech(VOICE_RATE)
        speaking = asyncio.create_task(room.play(tone(1.0)))
        await asyncio.sleep(0.3)
        assert room.heard_samples() == 0
        # An interruption is not kept waiting.
        room.clear()
        await asyncio.wait_for(speaking, 1)
        speaking = asyncio.create_task(room.play(tone(1.0)))
        async with caller_in(livekit, room_name) as caller:
            await speaking
            await room.wait_for_playout()
            await caller.wait_for_silence(ms=300)
            loud = [at for at in range(0, len(caller.heard), 640) if rms(bytes(caller.heard[at : at + 640])) > 0.05]
            # A client that has only just taken a track fades its beginning in.
            assert len(loud) * 0.02 == pytest.approx(1.0, abs=0.25)


async def test_clear_silences_the_room_at_once(livekit: LiveKitServer, room_name: str) -> None:
    async with agent_in(livekit, room_name) as room, caller_in(livekit, room_name) as caller:
        await room.wait_for_participant()
        await room.open_speech(VOICE_RATE)
        speaking = asyncio.create_task(room.play(tone(5.0)))
        await caller.wait_for_speech()
        await until(lambda: room.heard_samples() > VOICE_RATE, 10, "a second of speech")

        room.clear()
        cleared, heard = time.monotonic(), room.heard_samples()
        async with asyncio.timeout(1):
            await speaking
            await room.wait_for_playout()
        await caller.wait(lambda: caller.loudness(40) < 0.01, 2, "silence")
        silent_after_ms = 1000 * (time.monotonic() - cleared)
        assert silent_after_ms < 250, "network and jitter buffer included"
        assert room.heard_samples() == heard
        assert VOICE_RATE <= heard < 1.5 * VOICE_RATE

        # What is said next is heard whole.
        await room.play(tone(0.5, hertz=880))
        await room.wait_for_playout()
        assert room.heard_samples() == heard + VOICE_RATE // 2
        await caller.wait(lambda: pitch(bytes(caller.heard[-RATE:])) == pytest.approx(880, abs=5), 5, "880 Hz")


async def test_states_and_transcripts_are_shown(livekit: LiveKitServer, room_name: str) -> None:
    async with agent_in(livekit, room_name) as room, caller_in(livekit, room_name) as caller:
        await room.wait_for_participant()
        await room.open_speech(VOICE_RATE)
        for state in ("listening", "thinking", "speaking", "listening"):
            await room.set_agent_state(state)
        await room.publish_transcript("user", "u1", "set a", final=False)
        await caller.wait(lambda: len(caller.shown) == 1, 10, "the user's transcript")
        await room.publish_transcript("user", "u1", "set a timer", final=True)
        await room.publish_transcript("agent", "a1", "Done", final=False)
        await room.publish_transcript("agent", "a1", "Done. Ten minutes.", final=True)
        await caller.wait(lambda: bool(caller.texts("agent")), 10, "the agent's transcript")

        assert [state for _, state in caller.states] == ["listening", "thinking", "speaking", "listening"]
        assert caller.texts("caller") == ["set a timer"]
        assert caller.texts("agent") == ["Done. Ten minutes."]
        tracks = {shown.identity: shown.track for shown in caller.shown}
        agent_tracks = list(caller.agents()[0].track_publications)
        assert tracks == {"caller": caller.publication.sid, "agent": agent_tracks[0]}


async def test_a_muted_caller_is_not_heard(livekit: LiveKitServer, room_name: str) -> None:
    async with agent_in(livekit, room_name) as room, caller_in(livekit, room_name) as caller:
        await room.wait_for_participant()
        listener = Listener(room)
        await until(lambda: len(listener.pcm) > RATE, 10, "half a second of the caller")
        track = caller.publication.track
        assert track is not None
        track.mute()
        # The silence that ends what was being said, then nothing.
        await until(lambda: listener.blocks[-1][0] < time.monotonic() - 0.5, 10, "no more blocks")
        assert rms(bytes(listener.pcm[-RATE:])) == 0.0
        before = len(listener.pcm)
        track.unmute()
        await until(lambda: len(listener.pcm) > before + RATE, 10, "the caller again")


async def test_a_republished_track_is_followed(livekit: LiveKitServer, room_name: str) -> None:
    async with agent_in(livekit, room_name) as room, caller_in(livekit, room_name) as caller:
        await room.wait_for_participant()
        listener = Listener(room)
        await until(lambda: len(listener.pcm) > RATE, 10, "half a second of the caller")
        async with asyncio.timeout(20):
            await caller.room.local_participant.unpublish_track(caller.publication.sid)
        track = rtc.LocalAudioTrack.create_audio_track("another", caller.source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        async with asyncio.timeout(20):
            await caller.room.local_participant.publish_track(track, options)
        async with asyncio.timeout(20):
            await caller.say(tone(2.0, 300, RATE))
        await until(lambda: pitch(bytes(listener.pcm[-RATE:])) == pytest.approx(300, abs=5), 10, "the new track")


async def test_a_caller_who_comes_back_is_still_the_caller(livekit: LiveKitServer, room_name: str) -> None:
    async with agent_in(livekit, room_name) as room, caller_in(livekit, room_name):
        await room.wait_for_participant()
        listener = Listener(room)
        closed = asyncio.create_task(room.wait_closed())
        await until(lambda: len(listener.pcm) > RATE, 10, "half a second of the caller")
        # The same identity joins again, as after a change of network: the server drops the first one.
        async with caller_in(livekit, room_name) as again:
            await again.say(tone(2.0, 300, RATE))
            await until(lambda: pitch(bytes(listener.pcm[-RATE:])) == pytest.approx(300, abs=5), 10, "the caller again")
            assert not closed.done()
        async with asyncio.timeout(10):
            assert "CLIENT_INITIATED" in await closed


@pytest.mark.parametrize("scenario", ["SIMULATE_SIGNAL_RECONNECT", "SIMULATE_FULL_RECONNECT"])
async def test_a_broken_connection_is_mended(
    livekit: LiveKitServer, room_name: str, monkeypatch: pytest.MonkeyPatch, scenario: str
) -> None:
    rooms: list[rtc.Room] = []
    make = rtc.Room

    def remembered() -> rtc.Room:
        rooms.append(make())
        return rooms[-1]

    async with caller_in(livekit, room_name) as caller:
        monkeypatch.setattr(rtc, "Room", remembered)
        async with agent_in(livekit, room_name) as room:
            await room.wait_for_participant()
            await room.open_speech(VOICE_RATE)
            listener = Listener(room)
            closed = asyncio.create_task(room.wait_closed())
            await until(lambda: len(listener.pcm) > RATE, 10, "half a second of the caller")

            reconnected = asyncio.Event()
            rooms[0].on("reconnected", reconnected.set)
            await rooms[0].simulate_scenario(rtc.SimulateScenarioKind.Value(scenario))
            async with asyncio.timeout(20):
                await reconnected.wait()

            await caller.say(tone(2.0, 300, RATE))
            await until(lambda: pitch(bytes(listener.pcm[-RATE:])) == pytest.approx(300, abs=5), 10, "the caller again")
            speaking = asyncio.create_task(room.play(tone(8.0, 880)))
            await caller.wait(lambda: pitch(bytes(caller.heard[-RATE:])) == pytest.approx(880, abs=5), 10, "the agent")
            room.clear()
            await speaking
            assert not closed.done()
        assert await closed == "the agent left"


async def test_waiting_for_a_named_caller_and_a_room_that_is_deleted(livekit: LiveKitServer, room_name: str) -> None:
    async with agent_in(livekit, room_name) as room:
        waiting = asyncio.create_task(room.wait_for_participant("vip"))
        async with caller_in(livekit, room_name, "somebody"), caller_in(livekit, room_name, "vip") as vip:
            assert await waiting == "vip"
            assert isinstance(vip, Caller)
            async with livekit.api() as server:
                await server.room.delete_room(DeleteRoomRequest(room=room_name))
            async with asyncio.timeout(10):
                assert "ROOM_DELETED" in await room.wait_closed()
            with pytest.raises(RoomEndedError, match="ended"):
                await room.wait_for_participant("nobody")


async def test_a_room_that_ends_before_the_agent_speaks_has_ended(livekit: LiveKitServer, room_name: str) -> None:
    """What fails by it is no failure of the job."""
    async with agent_in(livekit, room_name) as room, livekit.api() as server:
        await server.room.delete_room(DeleteRoomRequest(room=room_name))
        with pytest.raises(RoomEndedError, match=r"ended before the agent spoke: .*ROOM_DELETED"):
            await room.open_speech(VOICE_RATE)


async def test_rooms_that_were_left_leave_nothing(livekit: LiveKitServer, room_name: str) -> None:
    async def visit(number: int) -> None:
        name = f"{room_name}-{number}"
        async with agent_in(livekit, name) as room, caller_in(livekit, name) as caller:
            await room.wait_for_participant()
            await room.open_speech(VOICE_RATE)
            listener = Listener(room)
            await room.play(tone(0.3))
            # A client that has just joined may miss a stream: its data channel opens a moment later.
            for attempt in range(20):
                await room.publish_transcript("agent", f"a{attempt}", "Hello.", final=True)
                with contextlib.suppress(AssertionError):
                    await caller.wait(lambda: bool(caller.shown), 0.5, "the transcript")
                    break
            assert caller.shown
            await until(lambda: len(listener.pcm) > 0, 10, "the caller")
        await listener.task

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

    # The first visits start the native side's own threads, and what a visit held may be given back late.
    for number in range(3):
        await visit(number)
    descriptors, threads = held()
    for number in range(3, 9):
        await visit(number)
    await until(lambda: held()[0] <= descriptors + 2 and held()[1] <= threads + 4, 15, "what six visits held")
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_a_refused_token_is_not_shown(
    livekit: LiveKitServer, room_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The signature is of another token: the server quotes what it refuses.
    head, _, _ = livekit.token(room_name, "agent", agent=True).rpartition(".")
    _, _, signature = livekit.token("elsewhere", "agent", agent=True).rpartition(".")
    token = f"{head}.{signature}"
    room = LiveKitRoom(room_name, livekit.url, token)
    with pytest.raises(ConnectionError, match="401") as refused:
        await room.connect()
    await room.leave()
    assert "(token)" in str(refused.value)
    shown = [str(refused.value), *(record.getMessage() for record in caplog.records)]
    assert not [text for text in shown if token in text]
