"""One point of the curve: so many callers at once, in real time, and what came of it."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from host.errors import HostError
from host.loadtest.agent import CHECK, room_name
from host.loadtest.binding import binding
from host.loadtest.callers import Habits, away_s, call_length_s, joins_after_s
from host.loadtest.callers_process import CallersProcess
from host.loadtest.draws import Draws
from host.loadtest.host_run import HostUnderTest
from host.loadtest.measure import (
    AUDIBLE_MS,
    Checked,
    Conversations,
    CrossTalk,
    Distribution,
    answered_turns,
    check_answer,
    conversations,
    foreign_audio,
)
from host.loadtest.plan import Call, CallersPlan, Happened, agent_name
from host.loadtest.resources import LOOK_S, Watch
from host.loadtest.results import DeviceUse, Point, ProcessUse, Refused, Stages, why_not
from host.loadtest.timeline import Answer, Left, Timeline
from host.tokens import caller_token
from inference.wire.supervision import TurnReport

_SHOWN_S = 60.0
_CALLERS_A_PROCESS = 24
_KEPT = 4
_ENDING_S = 60.0
"""What jobs get to end after their callers have left."""


@dataclass(frozen=True, slots=True)
class PointSettings:
    """What is asked of every point. ``endpointing_s``: the delay that is set. ``check``: how many answers are
    transcribed as they were heard. ``said``: recording -> what is said in it.
    """

    transport: Literal["local", "livekit"]
    speech: Path
    longest_s: float
    said: Mapping[str, str]
    habits: Habits
    duration_s: float
    target_s: float
    endpointing_s: float
    seed: int
    check: int
    folder: Path
    environment: Mapping[str, str]
    url: str = ""
    """Of the LiveKit server; "" without one."""
    api_key: str = ""
    api_secret: str = ""


@dataclass(frozen=True, slots=True)
class Live:
    """What is known while it runs. ``up``: rooms that are; turns are those of the last minute, other counts of all."""

    rooms: int
    up: int
    passed_s: float
    whole_s: float
    after_endpointing: Distribution
    turns: int
    lost: int
    cut_off: int
    underruns: int
    refused: int
    busy: float
    cpu: float
    device_mb: float
    cross_talk: int
    doing: str = ""


@dataclass(frozen=True, slots=True)
class _Use:
    processes: tuple[ProcessUse, ...]
    device: DeviceUse
    machine: float
    cores: float
    others: float


class PointRun:
    """``rooms`` callers against ``host``. ``show`` is told every second how it goes."""

    def __init__(self, rooms: int, host: HostUnderTest, settings: PointSettings, show: Callable[[Live], None]) -> None:
        self._rooms = rooms
        self._host = host
        self._settings = settings
        self._show = show
        self._run = secrets.token_hex(2)
        self._calls: dict[str, Timeline] = {}
        # WebRTC takes much of a core in each: a process a caller, as people have. Locally one does for many.
        processes = rooms if settings.url else math.ceil(rooms / _CALLERS_A_PROCESS)
        self._callers = [CallersProcess(self._on_event) for _ in range(processes)]
        self._over: dict[str, asyncio.Event] = {}
        self._refused: list[Refused] = []
        self._failed: list[str] = []
        # Of what was heard a few times as much is kept as will be looked at, wherever it is.
        answers = rooms * (1 + settings.duration_s / settings.habits.cycle_s)
        self._keep = min(1.0, _KEPT * settings.check / answers)
        self._calls_made = 0
        self._begin_s = self._end_s = 0.0
        self._cross_talk: set[CrossTalk] = set()

    async def run(self, watch: Watch) -> Point:
        """From the first caller to the last check."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            for number, callers in enumerate(self._callers):
                plan = CallersPlan(
                    settings.transport,
                    str(settings.speech),
                    settings.longest_s,
                    settings.seed,
                    str(settings.folder),
                    self._keep,
                    self._socket(number),
                    settings.url,
                    settings.habits,
                )
                stack.push_async_callback(callers.kill)
                await callers.start(plan, settings.environment)
            use = await self._talk(watch)
        turns = self._host.take_turns()
        checked = await self._check()
        return self._point(turns, checked, use)

    async def _talk(self, watch: Watch) -> _Use:
        """Everybody comes, talks, and leaves. Returns what that took."""
        settings = self._settings
        self._host.take_turns()
        # Everybody comes within one cycle; what is measured begins after it.
        start_s = time.monotonic()
        self._begin_s = start_s + settings.habits.cycle_s
        self._end_s = self._begin_s + settings.duration_s
        seats = [asyncio.create_task(self._seat(seat), name=f"seat {seat}") for seat in range(self._rooms)]
        try:
            while (now := time.monotonic()) < self._begin_s:
                await self._look(watch, "joining")
                await asyncio.sleep(min(LOOK_S, self._begin_s - now))
            watch.begin()
            while (now := time.monotonic()) < self._end_s:
                await self._look(watch, "")
                await asyncio.sleep(min(LOOK_S, self._end_s - now))
            device = watch.device(self._host.describe()["inference"]["device"])
            use = _Use(watch.processes(), device, watch.machine(), watch.cores, watch.others())
            for callers in self._callers:
                callers.hang_up()
            await asyncio.gather(*(callers.wait_ended() for callers in self._callers))
            _, running = await asyncio.wait(seats, timeout=_ENDING_S)
            self._failed += [f"{seat.get_name()}: its job does not end" for seat in running]
            await self._host.wait_idle(_ENDING_S)
        finally:
            for seat in seats:
                seat.cancel()
            await asyncio.wait(seats)
        for seat in seats:
            if not seat.cancelled() and (error := seat.exception()) is not None:
                raise error
        return use

    def _point(self, turns: Mapping[str, Sequence[TurnReport]], checked: Sequence[Checked], use: _Use) -> Point:
        settings = self._settings
        talk = self._conversations(
            {(room, turn.turn): turn.endpointing_ms / 1000 for room, reports in turns.items() for turn in reports},
            self._begin_s,
        )
        calls = list(self._calls.values())
        cross_talk = (*talk.cross_talk, *foreign_audio(checked, calls))
        answered = answered_turns(
            calls, patience_s=settings.habits.patience_s, begin_s=self._begin_s, end_s=self._end_s
        )
        stages = Stages.of(
            [turn for room, reports in turns.items() for turn in reports if (room, turn.turn) in answered]
        )
        late_ms = max((call.left.late_p99_ms for call in calls if call.left is not None), default=0.0)
        because = why_not(
            talk,
            target_s=settings.target_s,
            refused=len(self._refused),
            failed=len(self._failed),
            cross_talk=len(cross_talk),
        )
        return Point(
            self._rooms,
            settings.duration_s,
            replace(talk, cross_talk=()),
            stages,
            use.processes,
            use.device,
            use.machine,
            use.cores,
            use.others,
            tuple(self._refused),
            tuple(self._failed),
            tuple(checked),
            cross_talk,
            late_ms,
            not because,
            because,
            binding(
                use.device,
                stages,
                cpu=use.machine,
                cores=use.cores,
                others=use.others,
                processes=use.processes,
                refused=[refused.reason for refused in self._refused],
                latest_ms=late_ms,
            ),
        )

    # --- the seats ------------------------------------------------------------------------------------

    async def _seat(self, seat: int) -> None:
        """One caller after the other, until the end."""
        settings = self._settings
        await asyncio.sleep(joins_after_s(settings.seed, seat, self._rooms, settings.habits))
        number = 0
        while True:
            length_s = call_length_s(settings.seed, seat, number, settings.habits)
            leave_s = None if length_s is None else time.monotonic() + length_s
            if leave_s is not None and leave_s > self._end_s:
                leave_s = None
            if not await self._call(seat, number, leave_s) or leave_s is None:
                return
            await asyncio.sleep(away_s(settings.seed, seat, number))
            if time.monotonic() >= self._end_s:
                return
            number += 1

    async def _call(self, seat: int, number: int, leave_s: float | None) -> bool:
        """One call; whether the host took it."""
        name = agent_name(self._calls_made)
        self._calls_made += 1
        room = room_name(self._run, seat, number, name)
        self._calls[room] = Timeline(room, seat, number, name)
        self._over[room] = asyncio.Event()
        settings = self._settings
        token = caller_token(settings.api_key, settings.api_secret, room, "caller") if settings.url else ""
        process = seat % len(self._callers)
        callers = self._callers[process]
        callers.begin(Call(room, seat, number, leave_s, token))
        if not settings.url:
            return await self._local_job(room, callers, f"unix:{self._socket(process)}")
        # The server gives the job to the host, or to nobody: the caller sees an agent come, or none.
        await self._over[room].wait()
        call = self._calls[room]
        assert call.left is not None
        if call.joined is None:
            self._refused.append(Refused(room, call.left.error))
            return False
        if call.left.error:
            self._failed.append(f"{room}: {call.left.error}")
        return True

    def _socket(self, process: int) -> str:
        return str(self._settings.folder / f"callers-{process}.sock")

    async def _local_job(self, room: str, callers: CallersProcess, line: str) -> bool:
        try:
            error = await self._host.call(room, line)
        except HostError as exc:
            self._refused.append(Refused(room, str(exc)))
            callers.hang_up(room)
            return False
        if error:
            self._failed.append(f"{room}: {error}")
            callers.hang_up(room)
        return True

    def _on_event(self, happened: Happened) -> None:
        self._calls[happened.room].add(happened.event)
        if isinstance(happened.event, Left):
            self._over[happened.room].set()

    # --- looking --------------------------------------------------------------------------------------

    async def _look(self, watch: Watch, doing: str) -> None:
        await self._host.check()
        for callers in self._callers:
            callers.check()
        description = self._host.describe()
        await watch.look(description, {callers.pid: "callers" for callers in self._callers})
        now = time.monotonic()
        # What is shown is of the last minute: all of it, every second, would be work of its own.
        begin_s = max(self._begin_s, now - _SHOWN_S)
        talk = self._conversations({}, begin_s)
        self._cross_talk.update(talk.cross_talk)
        gaps = sum(
            gap.at_s >= self._begin_s and gap.ms >= AUDIBLE_MS for call in self._calls.values() for gap in call.gaps
        )
        up = sum(call.joined is not None and call.left is None for call in self._calls.values())
        device = watch.device("")
        self._show(
            Live(
                self._rooms,
                up,
                max(0.0, now - self._begin_s),
                self._settings.duration_s,
                talk.after_endpointing,
                talk.turns,
                talk.lost,
                talk.cut_off,
                gaps,
                len(self._refused),
                description["inference"]["busy"],
                watch.cpu,
                device.memory_mb,
                len(self._cross_talk),
                doing,
            )
        )

    def _conversations(self, endpointing_s: Mapping[tuple[str, int], float], begin_s: float) -> Conversations:
        settings = self._settings
        # What came before may belong to a turn that ended in time.
        early_s = begin_s - settings.habits.patience_s - settings.habits.cycle_s
        return conversations(
            [call.since(early_s) for call in self._calls.values()],
            settings.said,
            endpointing_s,
            delay_s=settings.endpointing_s,
            patience_s=settings.habits.patience_s,
            begin_s=begin_s,
            end_s=self._end_s,
        )

    # --- the check ------------------------------------------------------------------------------------

    async def _check(self) -> Sequence[Checked]:
        """Some of the answers, as they were heard, transcribed by the same host, now that nobody calls any more."""
        settings = self._settings
        answers = [(call.room, answer) for call in self._calls.values() for answer in call.answers]
        answers = [(room, answer) for room, answer in answers if answer.file and answer.text]
        chosen = Draws(settings.seed, self._rooms).shuffled(answers)[: settings.check]
        if not chosen:
            return []
        try:
            texts = await _transcribed(self._host, [answer for _, answer in chosen], settings.folder / "check.json")
        except HostError as exc:
            # What was measured is there all the same; that nobody looked at what was heard is said.
            self._failed.append(str(exc))
            return []
        return [
            check_answer(room, answer, text)
            for (room, answer), text in zip(chosen, texts, strict=True)
            if text is not None
        ]


async def _transcribed(host: HostUnderTest, answers: Sequence[Answer], file: Path) -> list[str | None]:
    file.write_text(json.dumps([{"file": answer.file, "rate": answer.rate} for answer in answers]))
    if error := await host.check_heard(f"{CHECK}{file}"):
        raise HostError(f"what the callers heard could not be checked: {error}")
    texts: list[str | None] = json.loads(file.with_suffix(".heard").read_text())
    return texts
