from __future__ import annotations

import asyncio
import socket

import pytest
from fake_livekit import KEY, SECRET, FakeLiveKit
from livekit.protocol import agent, models
from rooms import Rooms, dispatching

from host import dispatch as module
from host.capacity import Capacity, Status
from host.dispatch import Dispatch, DispatchOptions, agent_endpoint, retry_delay
from host.errors import AuthenticationError, ConfigError, ConnectionFailedError
from host.options import WorkerPermissions, WorkerType


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


@pytest.mark.parametrize(
    "url", ["", "localhost:7880", "ftp://example.com", "ws://", "ws://[::1", "ws://a:b", "ws://a:99999"]
)
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


async def test_it_registers_as_what_it_was_told_to_be(server: FakeLiveKit) -> None:
    permissions = WorkerPermissions(
        can_publish=False,
        can_subscribe=False,
        can_publish_data=False,
        can_update_metadata=False,
        can_publish_sources=("MICROPHONE", "SCREEN_SHARE_AUDIO"),
        hidden=True,
    )
    async with dispatching(server, Rooms(), worker_type=WorkerType.PARTICIPANT, permissions=permissions):
        register = (await server.session()).said("register")[0].register
        assert register.type == agent.JobType.JT_PARTICIPANT
        assert register.allowed_permissions == models.ParticipantPermission(
            can_publish_sources=[models.TrackSource.MICROPHONE, models.TrackSource.SCREEN_SHARE_AUDIO],
            hidden=True,
            agent=True,
        )


async def test_status_is_told_at_intervals_and_at_once_on_a_change(
    server: FakeLiveKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = Rooms()
    assert (module.STATUS_INTERVAL_S, module.HEARTBEAT_S) == (2.5, 30.0)
    monkeypatch.setattr(module, "STATUS_INTERVAL_S", 600.0)
    async with dispatching(server, rooms) as dispatch:
        session = await server.session()
        await server.said(session, "update_worker")
        rooms.capacity.draining = True
        dispatch.status_changed()
        told = (await server.said(session, "update_worker", 2)).update_worker
        assert (told.status, told.load) == (agent.WorkerStatus.WS_FULL, 1.0)
        monkeypatch.setattr(module, "STATUS_INTERVAL_S", 0.01)
        dispatch.status_changed()
        await server.said(session, "update_worker", 6)


async def test_jobs_outlive_the_connection(server: FakeLiveKit) -> None:
    rooms = Rooms(Capacity(3, ready=True))
    async with dispatching(server, rooms) as dispatch:
        first = await server.session()
        await first.offer("AJ_1")
        await server.said(first, "availability")
        await first.assign("AJ_1")
        await rooms.wait(lambda: bool(rooms.taken))
        await first.offer("AJ_2")
        await server.said(first, "availability", 2)

        server.status = 503
        await first.ws.close()
        # What was promised to the old connection is free again; what runs goes on.
        await rooms.wait(lambda: bool(rooms.withdrawn_ids))
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


async def test_a_final_status_is_told_twice(server: FakeLiveKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may have dropped the first: it had not noted down the assignment yet."""
    monkeypatch.setattr(module, "REPEAT_STATUS_S", 0.05)
    async with dispatching(server, Rooms()) as dispatch:
        session = await server.session()
        await server.said(session, "update_worker")
        await dispatch.report_job("AJ_1", "running")
        await dispatch.report_job("AJ_1", "failed", "it broke")
        await server.said(session, "update_job", 3)
        running, *final = [message.update_job for message in session.said("update_job")]
        assert running.status == agent.JobStatus.JS_RUNNING
        assert [(u.job_id, u.status, u.error) for u in final] == [("AJ_1", agent.JobStatus.JS_FAILED, "it broke")] * 2


async def test_a_server_that_does_not_answer_the_heartbeat_is_left(
    server: FakeLiveKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.1)
    server.alive = False
    async with dispatching(server, Rooms()) as dispatch:
        await server.session()
        await server.wait(lambda: len(server.attempts) == 2)
        server.alive = True
        await server.session(3)
        await server.said(await server.session(3), "update_worker")
        assert dispatch.worker_id == "AW_3"


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
    with pytest.raises(ConnectionFailedError, match=rf"{url}.* \(2 attempts\)"):
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
