"""Conversations in a local room, in real time, on the real inference process with the shipped fake engines."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from livekit.protocol.agent import Job

from host.job.agent import VoiceAgent
from host.job.context import JobContext, JobOutcome, JobProcess, run_job
from host.job.room_local import LocalRoom
from host.job.session import VoiceSession
from host.job.settings import SessionSettings
from host.job.waves import read_wave, write_wave
from inference.wire.supervision import TurnReport
from tests.host.job.fakes import PLAIN
from tests.inference.process import InferenceProcess, inference_process

pytestmark = pytest.mark.processes

SPEECH = Path(__file__).parents[2] / "data" / "speech"
DATE = str(SPEECH / "whats-the-date-today.wav")
FORWARD = str(SPEECH / "go-forward-ten-meters.wav")
DEADLINE_S = 60.0
RATE = 22_050
WORD_S = 0.3
"""Of the fake voice, which says "You said: heard N ms" to everything."""


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[InferenceProcess]:
    async with inference_process(tmp_path) as running:
        yield running


class Call:
    """One job in a local room."""

    def __init__(
        self,
        process: InferenceProcess,
        tmp_path: Path,
        waves: list[str],
        *,
        interrupt_after_s: float | None = None,
        response_timeout_s: float = 10.0,
        settings: SessionSettings | None = None,
    ) -> None:
        self.out = str(tmp_path / "out.wav")
        self.record = str(tmp_path / "record.wav")
        self.room = LocalRoom(
            "call",
            waves,
            self.out,
            self.record,
            interrupt_after_s=interrupt_after_s,
            response_timeout_s=response_timeout_s,
        )
        self.turns: list[TurnReport] = []
        self.answered = asyncio.Event()
        self.statuses: list[str] = []
        self.sessions: list[VoiceSession] = []
        self.ctx = JobContext(
            self.room,
            Job(id="job"),
            JobProcess(),
            process.settings.socket_path,
            process.settings.token,
            settings or PLAIN,
            self.report,
        )

    def report(self, turn: TurnReport) -> None:
        self.turns.append(turn)
        self.answered.set()

    async def update(self, status: str, error: str) -> None:
        self.statuses.append(status)

    async def hold(
        self, greeting: str = "", then: Callable[[VoiceSession], Awaitable[object]] | None = None
    ) -> JobOutcome:
        async def entrypoint(ctx: JobContext) -> None:
            session = await ctx.start_session(VoiceAgent("Be brief.", greeting=greeting))
            self.sessions.append(session)
            if then is not None:
                await then(session)
            await session.wait_closed()

        async with asyncio.timeout(DEADLINE_S):
            return await run_job(entrypoint, self.ctx, self.update)

    def said(self) -> list[tuple[str, str]]:
        return [(item.role, item.content) for item in self.sessions[0].history.messages()]

    def loud(self, channel: int) -> np.ndarray:
        """Which 20 ms of the recording have sound: the caller's (0) or the agent's (1), shape (ticks,)."""
        import wave

        with wave.open(self.record) as opened:
            pcm = np.frombuffer(opened.readframes(opened.getnframes()), np.int16).reshape(-1, 2)[:, channel]
        tick = RATE // 50
        blocks = pcm[: len(pcm) // tick * tick].reshape(-1, tick).astype(np.float64)
        return np.sqrt((blocks**2).mean(axis=1)) > 300


async def test_a_conversation_from_the_greeting_to_the_end(process: InferenceProcess, tmp_path: Path) -> None:
    call = Call(process, tmp_path, [DATE, FORWARD])
    outcome = await call.hold(greeting="Hello there!")
    assert outcome == JobOutcome("success", "", "the caller has left")
    assert call.statuses == ["running", "success"]
    assert call.room.unanswered == []
    assert [turn.turn for turn in call.turns] == [1, 2]
    samples, rate = read_wave(call.out)
    assert rate == RATE
    for turn in call.turns:
        # Whisper's stand-in says how much it was given: the utterance, padded.
        heard_ms = int(turn.transcript.split()[1])
        assert turn.audio_s * 1000 < heard_ms < turn.audio_s * 1000 + 600
        assert turn.reply == f"You said: {turn.transcript}"
        assert not turn.interrupted
        assert turn.reply_audio_s == pytest.approx(5 * WORD_S, abs=0.001)
        # 500 ms on the audio clock; the blocks come a little early or late.
        assert 460 <= turn.endpointing_ms < 600
        assert turn.stt_ms < 100
        assert 0 <= turn.ttft_ms <= turn.ttfa_ms
        assert turn.endpointing_ms + turn.stt_ms + turn.ttfa_ms - 1 <= turn.response_ms < 1000
        # The answer lies where the report says, and is the fake voice's tone.
        answer = samples[round(turn.out_start_s * RATE) : round(turn.out_end_s * RATE)]
        assert len(answer) / RATE == pytest.approx(5 * WORD_S, abs=0.001)
        spectrum = np.abs(np.fft.rfft(answer[:RATE]))
        assert int(spectrum.argmax()) == 440
    said = [part for turn in call.turns for part in (("user", turn.transcript), ("assistant", turn.reply))]
    assert call.said() == [("assistant", "Hello there!"), *said]
    finals = [(note.side, note.text) for note in call.room.transcripts if note.final]
    assert finals == [("agent", "Hello there!")] + [
        ({"assistant": "agent"}.get(role, role), text) for role, text in said
    ]


async def test_a_caller_who_interrupts(process: InferenceProcess, tmp_path: Path) -> None:
    call = Call(process, tmp_path, [DATE, FORWARD], interrupt_after_s=0.5)
    outcome = await call.hold()
    assert outcome.status == "success"
    first, second = call.turns
    assert first.interrupted
    assert not second.interrupted
    assert 0 <= first.barge_in_ms <= 100
    # What was heard is whole words of the answer, as many as there was time for.
    answer = f"You said: {first.transcript}"
    assert answer.startswith(first.reply)
    assert 0 < len(first.reply) < len(answer)
    assert 0.5 <= first.reply_audio_s < 5 * WORD_S
    assert call.said() == [
        ("user", first.transcript),
        ("assistant", first.reply),
        ("user", second.transcript),
        ("assistant", second.reply),
    ]
    # On the room's own timeline: the agent is silent from the barge-in until it has heard the caller out.
    caller, agent = np.flatnonzero(call.loud(0)), np.flatnonzero(call.loud(1))
    gap = int(np.flatnonzero(np.diff(agent) > 1)[0])
    silent_from, answers_at = agent[gap] + 1, agent[gap + 1]
    began = caller[caller > agent[0]][0]
    assert silent_from - began <= (64 + 32 + 32 + 100) / 20 + 1
    assert answers_at > caller[-1]
    assert len(agent) - gap - 1 == pytest.approx(5 * WORD_S * 50, abs=2), "nothing of the first answer comes later"


async def test_by_default_the_model_ends_turns_and_answers_are_begun_before_that(
    process: InferenceProcess, tmp_path: Path
) -> None:
    call = Call(process, tmp_path, [DATE, FORWARD], settings=SessionSettings())
    outcome = await call.hold()
    assert outcome.status == "success"
    assert [turn.turn for turn in call.turns] == [1, 2]
    for turn in call.turns:
        # The fake model is sure enough of what does not end in "and": shorter than the silence of plain detection.
        assert 300 < turn.endpointing_delay_ms < 500
        assert turn.endpointing_delay_ms <= turn.endpointing_ms + 1
        assert turn.ahead_ms > 0
        assert turn.reply == f"You said: {turn.transcript}"
        assert turn.reply_audio_s == pytest.approx(5 * WORD_S, abs=0.001)
        assert turn.endpointing_ms <= turn.response_ms < 1000


async def test_by_default_an_interruption_has_to_last_and_silences_at_once(
    process: InferenceProcess, tmp_path: Path
) -> None:
    call = Call(process, tmp_path, [DATE, FORWARD], interrupt_after_s=0.5, settings=SessionSettings())
    outcome = await call.hold()
    assert outcome.status == "success"
    first, second = call.turns
    assert first.interrupted
    assert 0 <= first.barge_in_ms <= 100
    answer = f"You said: {first.transcript}"
    assert answer.startswith(first.reply)
    assert 0 < len(first.reply) < len(answer)
    assert call.said() == [
        ("user", first.transcript),
        ("assistant", first.reply),
        ("user", second.transcript),
        ("assistant", second.reply),
    ]


async def test_an_interruption_while_the_ring_is_full_leaves_nothing_behind(
    process: InferenceProcess, tmp_path: Path
) -> None:
    call = Call(process, tmp_path, [DATE, FORWARD], interrupt_after_s=4.0)
    speech = " ".join(f"Sentence number {n} is only here to fill the ring." for n in range(20))
    said: list[str] = []

    async def talk_long(session: VoiceSession) -> None:
        await call.answered.wait()
        said.append((await session.say(speech)).said)

    await call.hold(then=talk_long)
    first, second = call.turns
    assert not first.interrupted
    assert 0 < len(said[0]) < len(speech)
    assert speech.startswith(said[0])
    assert second.reply == f"You said: {second.transcript}"
    assert second.reply_audio_s == pytest.approx(5 * WORD_S, abs=0.001)
    agent = np.flatnonzero(call.loud(1))
    last = agent[np.flatnonzero(np.diff(agent) > 1)[-1] + 1 :]
    assert len(last) == pytest.approx(5 * WORD_S * 50, abs=2)


async def test_a_pause_shorter_than_the_endpointing_delay_is_one_turn(
    process: InferenceProcess, tmp_path: Path
) -> None:
    loud = np.where(np.arange(9_600) % 40 < 20, 8_000, -8_000).astype(np.int16)
    write_wave(str(tmp_path / "pausing.wav"), np.concatenate([loud, np.zeros(5_600, np.int16), loud]), 16_000)
    call = Call(process, tmp_path, [str(tmp_path / "pausing.wav")])
    await call.hold()
    (turn,) = call.turns
    assert turn.audio_s == pytest.approx(1.55, abs=0.07)


async def test_partial_transcripts_are_published_while_the_caller_speaks(
    process: InferenceProcess, tmp_path: Path
) -> None:
    loud = np.where(np.arange(48_000) % 40 < 20, 8_000, -8_000).astype(np.int16)
    write_wave(str(tmp_path / "long.wav"), loud, 16_000)
    call = Call(process, tmp_path, [str(tmp_path / "long.wav")], settings=replace(PLAIN, partial_transcripts=True))
    await call.hold()
    (turn,) = call.turns
    mine = [(note.segment, note.text, note.final) for note in call.room.transcripts if note.side == "user"]
    assert mine[-1] == ("user-1", turn.transcript, True)
    partial = mine[:-1]
    assert 2 <= len(partial) <= 3
    assert all(segment == "user-1" and not final for segment, _, final in partial)
    # Each heard what there was: about a second more than the one before.
    heard = [int(text.split()[1]) for _, text, _ in partial]
    assert 1000 <= heard[0] < 1500
    assert all(900 <= later - earlier < 1500 for earlier, later in itertools.pairwise(heard))


async def test_silence_is_never_a_turn(process: InferenceProcess, tmp_path: Path) -> None:
    write_wave(str(tmp_path / "silence.wav"), np.zeros(16_000, np.int16), 16_000)
    call = Call(process, tmp_path, [str(tmp_path / "silence.wav")], response_timeout_s=1.0)
    outcome = await call.hold()
    assert outcome.status == "success"
    assert call.turns == []
    assert call.room.unanswered == [str(tmp_path / "silence.wav")]


async def test_a_room_without_a_slot_fails_the_job(process: InferenceProcess, tmp_path: Path) -> None:
    async with process.room("one"), process.room("two"):
        call = Call(process, tmp_path, [DATE])
        outcome = await call.hold()
    assert outcome.status == "failed"
    assert outcome.error == "RoomRefusedError: all 2 rooms are taken"
