from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import pytest
from fake_livekit import FakeLiveKit, Session
from livekit.protocol import agent
from rooms import Rooms, dispatching

from host import dispatch
from host import offers as module
from host.capacity import Capacity
from host.request import AssignmentTimeoutError, JobRequest, NoCapacityError, RequestError


class Doorkeeper:
    """A ``request_fnc`` that does what a test says, and keeps what it was given and what it got."""

    def __init__(self, answer: Callable[[JobRequest], Awaitable[None]] = JobRequest.accept) -> None:
        self.answer = answer
        self.requests: list[JobRequest] = []
        self.errors: list[RequestError] = []
        self.assigned: list[str] = []
        self.changed = asyncio.Event()

    async def __call__(self, request: JobRequest) -> None:
        self.requests.append(request)
        try:
            await self.answer(request)
            self.assigned.append(request.id)
        except RequestError as exc:
            self.errors.append(exc)
        finally:
            self.changed.set()

    async def ended(self) -> None:
        async with asyncio.timeout(5):
            await self.changed.wait()
        self.changed.clear()


async def answer(server: FakeLiveKit, session: Session, count: int = 1) -> agent.AvailabilityResponse:
    return (await server.said(session, "availability", count)).availability


# --- accepted -------------------------------------------------------------------------------------


async def test_a_job_is_accepted_assigned_and_ended(server: FakeLiveKit) -> None:
    rooms = Rooms()
    async with dispatching(server, rooms, agent_name="helper") as dispatch:
        session = await server.session()
        await session.offer("AJ_1")
        available = await answer(server, session)
        assert (available.available, available.participant_identity) == (True, "agent-AJ_1")
        assert available.participant_attributes == {"lk.agent.name": "helper"}
        # The only place is promised: the server hears it at once, and a second offer is refused.
        await server.wait(lambda: session.said("update_worker")[-1].update_worker.status == agent.WorkerStatus.WS_FULL)
        await session.offer("AJ_2")
        assert not (await answer(server, session, 2)).available

        await session.assign("AJ_1")
        await rooms.wait(lambda: bool(rooms.taken))
        (taken,) = rooms.taken
        assert (taken.job.id, taken.url, taken.token, taken.worker_id) == ("AJ_1", server.url, "token-AJ_1", "AW_1")
        assert taken.accept.identity == "agent-AJ_1"
        await dispatch.report_job("AJ_1", "running")
        await session.terminate("AJ_1")
        await rooms.wait(lambda: rooms.ended == ["AJ_1"])
        await dispatch.report_job("AJ_1", "success")
        # It returned after the server had taken the status.
        statuses = [m.update_job.status for m in session.said("update_job")]
        assert statuses == [agent.JobStatus.JS_RUNNING, agent.JobStatus.JS_SUCCESS]
        assert not rooms.withdrawn_ids


async def test_a_request_says_what_the_job_is_and_accepts_as_whom_it_likes(server: FakeLiveKit) -> None:
    rooms = Rooms()

    async def as_somebody(request: JobRequest) -> None:
        await request.accept(name="Ann", identity="ann", metadata="m", attributes={"colour": "red"})

    door = Doorkeeper(as_somebody)
    async with dispatching(server, rooms, agent_name="helper", request_fnc=door):
        session = await server.session()
        await session.offer("AJ_1", "lobby", participant="caller")
        available = await answer(server, session)
        assert (available.available, available.participant_name) == (True, "Ann")
        assert (available.participant_identity, available.participant_metadata) == ("ann", "m")
        assert available.participant_attributes == {"colour": "red", "lk.agent.name": "helper"}
        (request,) = door.requests
        assert (request.id, request.room.name, request.agent_name, request.job.id) == (
            "AJ_1",
            "lobby",
            "helper",
            "AJ_1",
        )
        assert request.publisher is not None
        assert request.publisher.identity == "caller"
        # It goes on when the job has been assigned.
        assert not door.assigned
        await session.assign("AJ_1")
        await door.ended()
        assert door.assigned == ["AJ_1"]
        accepted = rooms.taken[0].accept
        assert (accepted.name, accepted.identity, accepted.metadata) == ("Ann", "ann", "m")
        assert accepted.attributes == {"colour": "red"}
        with pytest.raises(RuntimeError, match="has been answered"):
            await request.reject()


async def test_a_room_job_is_for_nobody_in_particular(server: FakeLiveKit) -> None:
    door = Doorkeeper()
    async with dispatching(server, Rooms(), request_fnc=door):
        session = await server.session()
        await session.offer("AJ_1")
        await answer(server, session)
        assert door.requests[0].publisher is None


async def test_an_offer_that_comes_again_is_promised_once(server: FakeLiveKit) -> None:
    door, rooms = Doorkeeper(), Rooms(Capacity(2, ready=True))
    async with dispatching(server, rooms, request_fnc=door):
        session = await server.session()
        await session.offer("AJ_1")
        await answer(server, session)
        await session.offer("AJ_1")
        assert (await answer(server, session, 2)).available
        assert (len(door.requests), rooms.capacity.taken) == (1, 1)


# --- not accepted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("terminate", [True, False])
async def test_a_rejection_says_whether_others_are_asked(server: FakeLiveKit, terminate: bool) -> None:
    rooms = Rooms()

    async def no(request: JobRequest) -> None:
        await request.reject(terminate=terminate)

    async with dispatching(server, rooms, request_fnc=no):
        session = await server.session()
        await session.offer("AJ_1")
        refused = await answer(server, session)
        assert (refused.job_id, refused.available, refused.terminate) == ("AJ_1", False, terminate)
        assert rooms.capacity.is_empty()


async def test_rejecting_means_nobody_unless_said_otherwise(server: FakeLiveKit) -> None:
    async with dispatching(server, Rooms(), request_fnc=JobRequest.reject):
        session = await server.session()
        await session.offer("AJ_1")
        assert (await answer(server, session)).terminate


async def test_a_request_function_that_raises_or_returns_rejects(
    server: FakeLiveKit, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: JobRequest) -> None:
        raise ValueError("no such customer")

    async def silent(request: JobRequest) -> None:
        pass

    async def leaving(request: JobRequest) -> None:
        sys.exit("no way out")

    for function, said in (
        (broken, "no such customer"),
        (silent, "request_fnc did not answer"),
        (leaving, "no way out"),
    ):
        caplog.clear()
        rooms = Rooms()
        async with dispatching(server, rooms, request_fnc=function):
            session = await server.session(len(server.sessions) + 1)
            await session.offer("AJ_1")
            refused = await answer(server, session)
            assert (refused.available, refused.terminate) == (False, False)
            assert rooms.capacity.is_empty()
        assert said in caplog.text
        assert {record.job_id for record in caplog.records if "request_fnc" in record.getMessage()} == {"AJ_1"}


async def test_a_request_function_that_hangs_rejects_in_time_and_delays_nobody(
    server: FakeLiveKit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The server waits 3 s, see tests/e2e/test_dispatch_real.py.
    assert module.REQUEST_TIMEOUT_S <= 2.5
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.5)
    hanging, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(request: JobRequest) -> None:
        if request.room.name != "slow":
            await request.accept()
            return
        hanging.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            with pytest.raises(RuntimeError, match="its time is over"):
                await request.accept()
            raise

    rooms = Rooms()
    async with dispatching(server, rooms, request_fnc=slow):
        session = await server.session()
        await session.offer("AJ_1", "slow")
        await hanging.wait()
        # The reader does not wait for it.
        await session.offer("AJ_2", "quick")
        first = await answer(server, session)
        assert (first.job_id, first.available) == ("AJ_2", True)
        second = await answer(server, session, 2)
        assert (second.job_id, second.available, second.terminate) == ("AJ_1", False, False)
        async with asyncio.timeout(5):
            await cancelled.wait()
        assert rooms.capacity.taken == 1
    assert "request_fnc did not answer within 0.5 s" in caplog.text


async def test_a_full_host_refuses_without_asking(server: FakeLiveKit) -> None:
    door = Doorkeeper()
    async with dispatching(server, Rooms(Capacity(0, ready=True)), request_fnc=door):
        session = await server.session()
        await session.offer("AJ_1")
        refused = await answer(server, session)
        assert (refused.available, refused.terminate) == (False, False)
        assert not door.requests


async def test_of_two_offers_in_one_instant_one_gets_the_last_place(server: FakeLiveKit) -> None:
    both = asyncio.Barrier(2)

    async def at_once(request: JobRequest) -> None:
        await both.wait()
        await request.accept()

    door, rooms = Doorkeeper(at_once), Rooms()
    async with dispatching(server, rooms, request_fnc=door):
        session = await server.session()
        await session.offer("AJ_1")
        await session.offer("AJ_2")
        await answer(server, session, 2)
        answers = {m.availability.job_id: m.availability for m in session.said("availability")}
        assert sorted(a.available for a in answers.values()) == [False, True]
        winner = next(job_id for job_id, a in answers.items() if a.available)
        await door.ended()
        (error,) = door.errors
        assert isinstance(error, NoCapacityError)
        assert str(error) == "all 1 rooms are taken"
        await session.assign(winner)
        await rooms.wait(lambda: rooms.job_ids() == [winner])


# --- the assignment -------------------------------------------------------------------------------


async def test_an_assignment_that_does_not_come_frees_the_place(
    server: FakeLiveKit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert module.ASSIGNMENT_TIMEOUT_S == 7.5
    monkeypatch.setattr(module, "ASSIGNMENT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(dispatch, "REPEAT_STATUS_S", 0.05)
    rooms = Rooms()

    async def named(request: JobRequest) -> None:
        await request.accept(identity="ann")

    door = Doorkeeper(named)
    async with dispatching(server, rooms, request_fnc=door):
        session = await server.session()
        await session.offer("AJ_1")
        await door.ended()
        assert isinstance(door.errors[0], AssignmentTimeoutError)
        assert rooms.withdrawn_ids == ["AJ_1"]
        assert rooms.capacity.is_empty()
        assert "no assignment came in 0.05 s" in caplog.text
        # One that comes late is taken, as it was accepted, if the place is still free, and failed if it is not.
        await session.assign("AJ_1")
        await rooms.wait(lambda: bool(rooms.taken))
        assert (rooms.taken[0].job.id, rooms.taken[0].accept.identity) == ("AJ_1", "ann")
        await session.assign("AJ_2")
        # Twice, like every final status.
        for number in (1, 2):
            update = (await server.said(session, "update_job", number)).update_job
            assert (update.job_id, update.status) == ("AJ_2", agent.JobStatus.JS_FAILED)
            assert update.error == "assigned too late: all 1 rooms are taken"


async def test_a_job_that_runs_and_is_assigned_once_more_runs_on(
    server: FakeLiveKit, caplog: pytest.LogCaptureFixture
) -> None:
    rooms = Rooms()
    async with dispatching(server, rooms):
        session = await server.session()
        await server.run_job(session, "AJ_1")
        await session.assign("AJ_1")
        # Answers come in order.
        await session.offer("AJ_2")
        await server.said(session, "availability", 2)
        assert len(rooms.taken) == 1
        assert not session.said("update_job")
    assert "assigned once more" in caplog.text


async def test_a_lost_connection_ends_requests_and_promises(server: FakeLiveKit) -> None:
    hanging, cancelled = asyncio.Event(), asyncio.Event()

    async def some(request: JobRequest) -> None:
        if request.room.name == "accepted":
            await request.accept()
        hanging.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    door, rooms = Doorkeeper(some), Rooms(Capacity(2, ready=True))
    async with dispatching(server, rooms, request_fnc=door):
        first = await server.session()
        await first.offer("AJ_1", "accepted")
        await answer(server, first)
        await first.offer("AJ_2", "open")
        async with asyncio.timeout(5):
            await hanging.wait()
        await first.ws.close()
        async with asyncio.timeout(5):
            await cancelled.wait()
        await rooms.wait(lambda: rooms.withdrawn_ids == ["AJ_1"])
        assert [str(error) for error in door.errors] == ["the connection was lost before the assignment"]
        assert rooms.capacity.is_empty()
        second = await server.session(2)
        await server.said(second, "update_worker")
        assert not second.said("availability")


async def test_who_gives_up_waiting_for_the_assignment_has_accepted_all_the_same(
    server: FakeLiveKit, caplog: pytest.LogCaptureFixture
) -> None:
    gave_up = asyncio.Event()

    async def impatient(request: JobRequest) -> None:
        try:
            async with asyncio.timeout(0.01):
                await request.accept()
        finally:
            gave_up.set()

    rooms = Rooms()
    async with dispatching(server, rooms, request_fnc=impatient):
        session = await server.session()
        await session.offer("AJ_1")
        assert (await answer(server, session)).available
        async with asyncio.timeout(5):
            await gave_up.wait()
        await session.assign("AJ_1")
        await rooms.wait(lambda: bool(rooms.taken))
        assert rooms.capacity.job_count == 1
    assert "request_fnc failed" in caplog.text
