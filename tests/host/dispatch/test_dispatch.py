from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from fake_livekit import KEY, SECRET, FakeLiveKit, fake_livekit
from livekit.protocol import agent

from host import dispatch as module
from host.capacity import Capacity, Status
from host.dispatch import Dispatch, DispatchOptions, agent_endpoint, retry_delay
from host.errors import AuthenticationError, ConfigError, ConnectionFailedError


@dataclass
class Rooms:
    """A handler that runs no rooms: it keeps what it was told."""

    capacity: Capacity = field(default_factory=lambda: Capacity(1, ready=True))
    taken: list[tuple[str, str, str]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    withdrawn_ids: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def offered(self, job: agent.Job) -> str:
        return self.capacity.reserve(job.id, 0.0)

    def withdrawn(self, job_id: str) -> None:
        self.capacity.release(job_id)
        self.withdrawn_ids.append(job_id)
        self.changed.set()

    def assigned(self, job: agent.Job, url: str, token: str) -> None:
        self.capacity.launched(job.id)
        self.taken.append((job.id, url, token))
        self.changed.set()

    def terminated(self, job_id: str) -> None:
        self.ended.append(job_id)
        self.changed.set()

    def job_ids(self) -> Sequence[str]:
        return [job_id for job_id, _, _ in self.taken]

    def status(self) -> Status:
        return self.capacity.status(0.0)

    async def next_change(self) -> None:
        async with asyncio.timeout(5):
            await self.changed.wait()
        self.changed.clear()


@asynccontextmanager
async def dispatching(server: FakeLiveKit, rooms: Rooms, **options: object) -> AsyncIterator[Dispatch]:
    dispatch = Dispatch(DispatchOptions(server.url, KEY, SECRET, **options), rooms)  # type: ignore[arg-type]
    running = asyncio.create_task(dispatch.run())
    try:
        yield dispatch
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert running.cancelled(), running.exception()


@pytest.fixture
async def server() -> AsyncIterator[FakeLiveKit]:
    async with fake_livekit() as server:
        yield server


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting to spread hosts out."""
    monkeypatch.setattr(module.random, "uniform", lambda low, high: low)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("ws://localhost:7880", "ws://localhost:7880/agent"),
        ("wss://example.com/", "wss://example.com/agent"),
        ("http://example.com/prefix", "ws://example.com/prefix/agent"),
        ("https://example.com", "wss://example.com/agent"),
    ],
)
def test_endpoint(url: str, endpoint: str) -> None:
    assert agent_endpoint(url) == endpoint


@pytest.mark.parametrize("url", ["", "localhost:7880", "ftp://example.com", "ws://"])
def test_a_url_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="expected ws://"):
        agent_endpoint(url)


def test_back_off() -> None:
    assert [retry_delay(failures) for failures in range(1, 9)] == [0, 2, 4, 6, 8, 10, 10, 10]


async def test_it_registers_and_says_its_status(server: FakeLiveKit) -> None:
    async with dispatching(server, Rooms(), agent_name="helper", version="1.2.3") as dispatch:
        session = await server.session()
        register = session.said("register")[0].register
        assert (register.type, register.agent_name, register.version) == (agent.JobType.JT_ROOM, "helper", "1.2.3")
        permissions = register.allowed_permissions
        assert permissions.can_publish
        assert permissions.can_subscribe
        assert permissions.can_publish_data
        assert permissions.can_update_metadata
        assert permissions.agent
        assert not permissions.hidden
        status = (await server.said(session, "update_worker")).update_worker
        assert (status.status, status.load, status.job_count) == (agent.WorkerStatus.WS_AVAILABLE, 0.0, 0)
        assert dispatch.worker_id == "AW_1"
        assert dispatch.told == Status(full=False, load=0.0, job_count=0)
    assert dispatch.worker_id == ""
    assert dispatch.told is None


async def test_a_job_is_accepted_assigned_and_ended(server: FakeLiveKit) -> None:
    rooms = Rooms()
    async with dispatching(server, rooms) as dispatch:
        session = await server.session()
        await session.offer("AJ_1")
        answer = (await server.said(session, "availability")).availability
        assert (answer.available, answer.participant_identity) == (True, "agent-AJ_1")
        # The only place is promised: the server hears it at once, and a second offer is refused.
        await server.wait(lambda: session.said("update_worker")[-1].update_worker.status == agent.WorkerStatus.WS_FULL)
        await session.offer("AJ_2")
        assert not (await server.said(session, "availability", 2)).availability.available

        await session.assign("AJ_1")
        await rooms.next_change()
        assert rooms.taken == [("AJ_1", server.url, "token-AJ_1")]
        await dispatch.report_job("AJ_1", "running")
        await session.terminate("AJ_1")
        await rooms.next_change()
        assert rooms.ended == ["AJ_1"]
        await dispatch.report_job("AJ_1", "success")
        # It returned after the server had taken the status.
        statuses = [m.update_job.status for m in session.said("update_job")]
        assert statuses == [agent.JobStatus.JS_RUNNING, agent.JobStatus.JS_SUCCESS]
        assert not rooms.withdrawn_ids


async def test_an_assignment_that_does_not_come_frees_the_place(
    server: FakeLiveKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASSIGNMENT_TIMEOUT_S", 0.05)
    rooms = Rooms()
    async with dispatching(server, rooms):
        session = await server.session()
        await session.offer("AJ_1")
        await rooms.next_change()
        assert rooms.withdrawn_ids == ["AJ_1"]
        # One that comes late is taken if the place is still free, and failed if it is not.
        await session.assign("AJ_1")
        await rooms.next_change()
        assert [job_id for job_id, _, _ in rooms.taken] == ["AJ_1"]
        await session.assign("AJ_2")
        update = (await server.said(session, "update_job")).update_job
        assert (update.job_id, update.status) == ("AJ_2", agent.JobStatus.JS_FAILED)
        assert "too late" in update.error


async def test_jobs_outlive_the_connection(server: FakeLiveKit) -> None:
    rooms = Rooms(Capacity(3, ready=True))
    async with dispatching(server, rooms) as dispatch:
        first = await server.session()
        await first.offer("AJ_1")
        await server.said(first, "availability")
        await first.assign("AJ_1")
        await rooms.next_change()
        await first.offer("AJ_2")
        await server.said(first, "availability", 2)

        server.status = 503
        await first.ws.close()
        # What was promised to the old connection is free again; what runs goes on.
        await rooms.next_change()
        assert rooms.withdrawn_ids == ["AJ_2"]
        assert not rooms.ended
        # A job that ends meanwhile does not wait for the server.
        async with asyncio.timeout(1):
            await dispatch.report_job("AJ_1", "success")

        await server.wait(lambda: len(server.attempts) >= 2)
        server.status = 101
        second = await server.session(2)
        assert (await server.said(second, "migrate_job")).migrate_job.job_ids == ["AJ_1"]
        update = (await server.said(second, "update_job")).update_job
        assert (update.job_id, update.status) == ("AJ_1", agent.JobStatus.JS_SUCCESS)
        assert (await server.said(second, "update_worker")).update_worker.job_count == 1
        assert dispatch.worker_id == "AW_2"


async def test_a_status_that_was_not_confirmed_is_sent_again(
    server: FakeLiveKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FENCE_TIMEOUT_S", 0.05)
    server.answer_pings = False
    async with dispatching(server, Rooms()) as dispatch:
        first = await server.session()
        await server.said(first, "update_worker")
        await dispatch.report_job("AJ_1", "failed", "it broke")
        server.answer_pings = True
        await first.ws.close()
        second = await server.session(2)
        update = (await server.said(second, "update_job")).update_job
        assert (update.job_id, update.status, update.error) == ("AJ_1", agent.JobStatus.JS_FAILED, "it broke")


async def test_a_refused_key_ends_it_at_once(server: FakeLiveKit) -> None:
    server.status = 401
    dispatch = Dispatch(DispatchOptions(server.url, KEY, SECRET), Rooms())
    with pytest.raises(AuthenticationError, match=KEY):
        await dispatch.run()
    assert len(server.attempts) == 1
    assert dispatch.unreachable


async def test_a_key_that_was_good_is_tried_again(server: FakeLiveKit) -> None:
    """The server may restart with its keys not loaded yet; rooms that run are not ended for it."""
    async with dispatching(server, Rooms()) as dispatch:
        first = await server.session()
        server.status = 401
        await first.ws.close()
        await server.wait(lambda: len(server.attempts) >= 2)
        server.status = 101
        await server.session(2)
        assert not dispatch.unreachable


async def test_nothing_listening_gives_up_after_max_retry(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    dispatch = Dispatch(DispatchOptions(url, KEY, SECRET, max_retry=0), Rooms())
    with pytest.raises(ConnectionFailedError, match=url):
        await dispatch.run()
    assert not caplog.records
    dispatch = Dispatch(DispatchOptions(url, KEY, SECRET, max_retry=1), Rooms())
    with pytest.raises(ConnectionFailedError, match=url):
        await dispatch.run()
    assert [record.getMessage().partition(";")[2] for record in caplog.records] == [" attempt 1 of 2, next in 0 s"]


async def test_a_server_that_never_registers_us_is_not_hammered(
    server: FakeLiveKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of failures goes back to 0 with a registration, not with a websocket."""
    delays: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay: float) -> None:
        delays.append(delay)
        await sleep(0)

    monkeypatch.setattr(module.asyncio, "sleep", noted)
    server.register = False
    dispatch = Dispatch(DispatchOptions(server.url, KEY, SECRET, max_retry=4), Rooms())
    with pytest.raises(ConnectionFailedError, match="refused the registration"):
        await dispatch.run()
    assert len(server.sessions) == 5
    assert delays == [0, 2, 4, 6]


async def test_another_server_is_not_taken_for_livekit(server: FakeLiveKit) -> None:
    server.status = 404
    dispatch = Dispatch(DispatchOptions(server.url, KEY, SECRET, max_retry=0), Rooms())
    with pytest.raises(ConnectionFailedError, match="agent protocol"):
        await dispatch.run()
