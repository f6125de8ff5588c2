"""The inference process is killed in the middle of a conversation, and another takes its place.

Real time, the real process with fake engines that take their time, SIGKILL, one room that lives through it. Most
of it is waiting for a caller who speaks, so conversations are held at the same time, each with a process of its own.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from livekit.protocol.agent import Job

from host.job import link
from host.job.agent import VoiceAgent
from host.job.context import JobContext, JobOutcome, JobProcess, run_job
from host.job.room_local import LocalRoom
from host.job.session import VoiceSession
from inference.client import InferenceClient, InferenceRoom
from inference.wire.supervision import TurnReport
from tests.host.job.fakes import PLAIN
from tests.inference.process import InferenceProcess, inference_process

pytestmark = pytest.mark.processes

SPEECH = Path(__file__).parents[2] / "data" / "speech"
DATE = str(SPEECH / "whats-the-date-today.wav")
FORWARD = str(SPEECH / "go-forward-ten-meters.wav")
SLOW = "tests.inference.slow_main"
DEADLINE_S = 90.0


class Processes:
    """The inference process, and those that take its place."""

    def __init__(self, stack: AsyncExitStack, runtime_dir: Path) -> None:
        self._stack = stack
        self._runtime_dir = runtime_dir
        self._token = "token"
        self.running: InferenceProcess | None = None

    async def start(self, **changes: object) -> InferenceProcess:
        self.running = await self._stack.enter_async_context(
            inference_process(self._runtime_dir, module=SLOW, token=self._token, **changes)
        )
        return self.running

    def kill(self) -> None:
        assert self.running is not None
        os.kill(self.running.pid, signal.SIGKILL)


class Call:
    """One job in a local room, held by this process."""

    def __init__(self, processes: Processes, tmp_path: Path, waves: list[str]) -> None:
        assert processes.running is not None
        settings = processes.running.settings
        self.waves = waves
        self.room = LocalRoom("call", waves, str(tmp_path / "out.wav"), response_timeout_s=45.0)
        self.turns: list[TurnReport] = []
        self.session: VoiceSession | None = None
        self.ctx = JobContext(
            self.room,
            Job(id="AJ_1"),
            JobProcess(),
            settings.socket_path,
            settings.token,
            PLAIN,
            self.turns.append,
        )

    async def update(self, status: str, error: str) -> None:
        """Nobody is there to be told."""

    async def hold(self, greeting: str = "") -> JobOutcome:
        async def entrypoint(ctx: JobContext) -> None:
            self.session = await ctx.start_session(VoiceAgent("Be brief.", greeting=greeting))
            await self.session.wait_closed()

        async with asyncio.timeout(DEADLINE_S):
            return await run_job(entrypoint, self.ctx, self.update)

    async def until(self, state: str, *, turn: int = 0) -> None:
        """Return as soon as the conversation is in ``state`` after ``turn`` turns."""
        async with asyncio.timeout(DEADLINE_S):
            while f"{state} turn={turn}>" not in repr(self.session):  # noqa: ASYNC110 (a state of every few ms)
                await asyncio.sleep(0.003)

    def said(self) -> list[tuple[str, str]]:
        assert self.session is not None
        return [(item.role, item.content) for item in self.session.history.messages()]

    def check(self, outcome: JobOutcome, greeting: str = "") -> None:
        """Every question was understood and answered, whole and once, in order."""
        assert outcome == JobOutcome("success", "", "the caller has left")
        assert self.room.unanswered == []
        assert [turn.turn for turn in self.turns] == list(range(1, len(self.waves) + 1))
        for turn in self.turns:
            heard_ms = int(turn.transcript.split()[1])
            assert turn.audio_s * 1000 < heard_ms < turn.audio_s * 1000 + 600
            assert turn.reply == f"You said: {turn.transcript}"
            assert not turn.interrupted
        said = [part for turn in self.turns for part in (("user", turn.transcript), ("assistant", turn.reply))]
        assert self.said() == ([("assistant", greeting)] if greeting else []) + said
        # Whole words were lost to no one: the questions are as long as their recordings.
        for turn, wave in zip(self.turns, self.waves, strict=True):
            seconds, tolerance = {DATE: (1.2, 0.35), FORWARD: (1.5, 0.45)}[wave]
            assert turn.audio_s == pytest.approx(seconds, abs=tolerance)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Every socket, event and memory that a job opens is given back."""

    def opened() -> list[str]:
        links = []
        for descriptor in Path("/proc/self/fd").iterdir():
            try:
                links.append(str(descriptor.readlink()))
            except FileNotFoundError:
                continue
        return sorted(kind for kind in links if "memfd" in kind or "eventfd" in kind or kind.startswith("socket"))

    before = len(opened())
    yield
    assert len(opened()) <= before, opened()
    assert not [kind for kind in opened() if "memfd:roomful" in kind]


@asynccontextmanager
async def process_of_its_own(runtime_dir: Path) -> AsyncIterator[Processes]:
    """An inference process, and those that take its place."""
    async with AsyncExitStack() as stack:
        processes = Processes(stack, runtime_dir)
        await processes.start()
        yield processes


@pytest.fixture
async def processes(tmp_path: Path, nothing_left: None) -> AsyncIterator[Processes]:
    """A process of the test's own. No task is left when it has ended."""
    before = others()
    async with process_of_its_own(tmp_path) as processes:
        yield processes
    assert others() <= before


def others() -> set[asyncio.Task[object]]:
    """Every task but the one that asks."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


Scenario = Callable[[Processes, Path], Awaitable[None]]


async def hold_all(tmp_path: Path, scenarios: dict[str, Scenario]) -> None:
    """Every scenario at the same time. No task is left afterwards."""
    before = others()

    async def hold(number: int, scenario: Scenario) -> None:
        # A unix socket's path is short.
        (place := tmp_path / str(number)).mkdir()
        async with process_of_its_own(place) as processes:
            await scenario(processes, place)

    results = await asyncio.gather(
        *(hold(number, scenario) for number, scenario in enumerate(scenarios.values())), return_exceptions=True
    )
    failures = [result for result in results if isinstance(result, Exception)]
    for name, result in zip(scenarios, results, strict=True):
        if isinstance(result, Exception):
            result.add_note(f"in: {name}")
    if failures:
        raise ExceptionGroup("conversations", failures)
    assert others() <= before


@asynccontextmanager
async def calling(call: Call, greeting: str = "") -> AsyncIterator[asyncio.Task[JobOutcome]]:
    """The call, held in a task."""
    holding = asyncio.create_task(call.hold(greeting))
    try:
        yield holding
    finally:
        holding.cancel()
        await asyncio.wait([holding])


STATES = (
    ("listening", 0),
    ("user speaking", 0),
    ("endpointing", 0),
    ("transcribing", 0),
    ("thinking", 1),
    ("speaking", 1),
    ("listening", 1),
)


async def a_kill_in(state: str, turn: int, processes: Processes, tmp_path: Path) -> None:
    call = Call(processes, tmp_path, [DATE, FORWARD])
    async with calling(call) as holding:
        await call.until(state, turn=turn)
        processes.kill()
        await processes.start()
        call.check(await holding)


@pytest.mark.usefixtures("nothing_left")
async def test_a_kill_in_every_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await hold_all(
        tmp_path, {f"{state} after {turn}": functools.partial(a_kill_in, state, turn) for state, turn in STATES}
    )
    gone = [record for record in caplog.records if "the room stays" in record.message]
    back = [record for record in caplog.records if "is back after" in record.message]
    assert [record.levelno for record in gone] == [logging.WARNING] * len(STATES)
    assert [record.levelno for record in back] == [logging.INFO] * len(STATES)


async def a_kill_in_the_middle_of_speech(processes: Processes, tmp_path: Path) -> None:
    call = Call(processes, tmp_path, [DATE, FORWARD])
    async with calling(call) as holding:
        await call.until("speaking", turn=1)
        # Of five words, 0.3 s each, some were heard.
        async with asyncio.timeout(DEADLINE_S):
            while call.room.heard_samples() < 0.75 * 22_050:  # noqa: ASYNC110 (a count of the room's clock)
                await asyncio.sleep(0.005)
        processes.kill()
        async with asyncio.timeout(DEADLINE_S):
            while call.said()[-1][0] != "assistant":  # noqa: ASYNC110 (a list grows)
                await asyncio.sleep(0.005)
        heard, kept = call.room.heard_samples(), call.said()[-1][1]
        assert "You said: heard 1".startswith(kept[:10])
        # While nobody is there, nothing is heard.
        await asyncio.sleep(0.4)
        assert call.room.heard_samples() == heard
        await processes.start()
        call.check(await holding)
        assert call.turns[0].reply.startswith(kept)
        # The word that was cut off is said again; the others are not.
        assert 5 * 0.3 <= call.turns[0].reply_audio_s <= 6 * 0.3 + 0.05


async def a_hang_that_ends_with_a_kill(processes: Processes, tmp_path: Path) -> None:
    """Detection stops long before the connection breaks; all that was said meanwhile is heard in the end."""
    call = Call(processes, tmp_path, [DATE, FORWARD])
    async with calling(call) as holding:
        await call.until("user speaking")
        assert processes.running is not None
        os.kill(processes.running.pid, signal.SIGSTOP)
        await asyncio.sleep(3.0)  # The caller finishes the question, and nobody has listened.
        assert call.turns == []
        processes.kill()
        await processes.start()
        call.check(await holding)


async def a_greeting_is_said_to_its_end(processes: Processes, tmp_path: Path) -> None:
    call = Call(processes, tmp_path, [DATE, FORWARD])
    async with calling(call, "Good day to you all.") as holding:
        await call.until("speaking")
        processes.kill()
        await processes.start()
        call.check(await holding, "Good day to you all.")


async def two_kills_in_one_conversation(processes: Processes, tmp_path: Path) -> None:
    call = Call(processes, tmp_path, [DATE, FORWARD])
    async with calling(call) as holding:
        await call.until("user speaking")
        processes.kill()
        await processes.start()
        await call.until("thinking", turn=1)
        processes.kill()
        await processes.start()
        call.check(await holding)


async def a_session_waits_for_a_process_that_is_away(processes: Processes, tmp_path: Path) -> None:
    call = Call(processes, tmp_path, [DATE, FORWARD])
    processes.kill()
    async with calling(call) as holding:
        await asyncio.sleep(0.5)
        assert call.session is None
        await processes.start()
        call.check(await holding)


@pytest.mark.usefixtures("nothing_left")
async def test_kills_at_other_moments(tmp_path: Path) -> None:
    scenarios: tuple[Scenario, ...] = (
        a_kill_in_the_middle_of_speech,
        a_hang_that_ends_with_a_kill,
        a_greeting_is_said_to_its_end,
        two_kills_in_one_conversation,
        a_session_waits_for_a_process_that_is_away,
    )
    await hold_all(tmp_path, {scenario.__name__: scenario for scenario in scenarios})  # type: ignore[attr-defined]


async def test_a_refused_room_is_tried_again(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    may_attach = asyncio.Event()
    attach = link.InferenceLink.attach

    async def attach_later(self: link.InferenceLink, room: InferenceRoom) -> None:
        await may_attach.wait()
        await attach(self, room)

    monkeypatch.setattr(link.InferenceLink, "attach", attach_later)
    call = Call(processes, tmp_path, [DATE])
    async with calling(call) as holding:
        await call.until("thinking", turn=1)
        processes.kill()
        successor = await processes.start(max_rooms=1)
        async with await successor.connect() as other:
            await other.open_room("somebody else")
            may_attach.set()
            async with asyncio.timeout(DEADLINE_S):
                while "all 1 rooms are taken" not in caplog.text:  # noqa: ASYNC110 (a log grows)
                    await asyncio.sleep(0.01)
            assert call.turns == []
        call.check(await holding)


async def test_the_end_while_it_is_away(processes: Processes, tmp_path: Path) -> None:
    call = Call(processes, tmp_path, [DATE, FORWARD])
    async with calling(call) as holding:
        await call.until("thinking", turn=1)
        processes.kill()
        await asyncio.sleep(0.5)
        call.ctx.shutdown("the host drains")
        assert await holding == JobOutcome("success", "", "the host drains")
    assert call.turns[0].interrupted


async def test_a_process_that_never_comes_back_fails_the_job(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "AWAY_TIMEOUT_S", 1.0)
    call = Call(processes, tmp_path, [DATE, FORWARD])
    async with calling(call) as holding:
        await call.until("speaking", turn=1)
        processes.kill()
        outcome = await holding
    assert outcome.status == "failed"
    assert outcome.error.startswith("InferenceUnavailableError: the inference process was away for 1 s: no inference")
    assert call.turns[0].interrupted, "what was heard before is reported"


async def test_a_session_that_did_not_come_about_holds_no_slot(processes: Processes, tmp_path: Path) -> None:
    """An author who waits for the caller for so long only, and then tries again."""
    call = Call(processes, tmp_path, [DATE])
    nobody_comes = asyncio.Event()

    async def entrypoint(ctx: JobContext) -> None:
        wait = ctx.room.wait_for_participant
        ctx.room.wait_for_participant = lambda _: nobody_comes.wait()  # type: ignore[method-assign,assignment,return-value]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ctx.start_session(VoiceAgent("Be brief.")), 0.3)
        ctx.room.wait_for_participant = wait  # type: ignore[method-assign]
        await ctx.start_session(VoiceAgent("Be brief."))
        client = await ctx.connect_inference()
        # The slot of the first is free once the process has noticed the end of its connection.
        while (await client.stats()).rooms != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        ctx.shutdown("seen")

    async with asyncio.timeout(DEADLINE_S):
        assert await run_job(entrypoint, call.ctx, call.update) == JobOutcome("success", "", "seen")


async def test_a_connection_of_the_agents_own(processes: Processes, tmp_path: Path) -> None:
    call = Call(processes, tmp_path, [DATE])
    made: list[InferenceClient] = []

    async def entrypoint(ctx: JobContext) -> None:
        client = await ctx.connect_inference()
        assert ctx.inference is client is await ctx.connect_inference()
        assert (await client.stats()).rooms == 0
        made.append(client)
        processes.kill()
        await client.wait_gone()
        starting = asyncio.create_task(processes.start())
        made.append(await ctx.connect_inference())
        await starting
        assert (await ctx.inference.stats()).rooms == 0

    async with asyncio.timeout(DEADLINE_S):
        outcome = await run_job(entrypoint, call.ctx, call.update)
    assert outcome.status == "success", outcome.error
    assert [client.is_gone for client in made] == [True, True]
