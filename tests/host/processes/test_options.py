"""Every option of the supervisor has an effect, and what happens is told to the observer."""

import asyncio
import os
import threading
import time

import pytest
import uvloop

from host.errors import HostError
from host.options import JobExecutorType
from host.supervisor import Supervisor
from tests.host.processes.conftest import (
    DEADLINE_S,
    FOREVER,
    eventually,
    job_processes,
    open_descriptors,
    own_children,
    start,
)

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("idle", [0, 1, 3])
async def test_num_idle_processes(options, updates, idle):
    async with Supervisor(options(num_idle_processes=idle)) as supervisor:
        await eventually(lambda: supervisor.idle_processes == idle)
        assert len(job_processes()) == idle
        await (await supervisor.launch(start("one"), on_update=updates)).wait()
        await eventually(lambda: supervisor.idle_processes == idle and len(job_processes()) == idle)


async def test_ping_interval(options, seen):
    async with Supervisor(options(ping_interval=0.1), observer=seen) as supervisor:
        await eventually(lambda: {kind for kind, _ in seen.pings} == {"inference", "job"})
        seen.pings.clear()
        await eventually(lambda: len(seen.pings) >= 10)
        assert all(0 <= seconds < 5.0 for _, seconds in seen.pings)
        assert all(info.ping_ms > 0 for info in supervisor.processes() if info.kind != "forkserver")


async def test_a_long_ping_interval(options, seen):
    async with Supervisor(options(ping_interval=60.0), observer=seen) as supervisor:
        await asyncio.sleep(1.0)
        assert seen.pings == []
        assert [info.ping_ms for info in supervisor.processes()] == [-1.0] * 3


SLOW = """
    import asyncio, time
    async def entrypoint(ctx):
        for _ in range(3):
            time.sleep(0.6)
            await asyncio.sleep(0.2)
"""


@pytest.mark.parametrize(("threshold", "warnings"), [(0.25, 1), (30.0, 0)])
async def test_high_ping_threshold(options, updates, caplog, seen, threshold, warnings):
    """A child that is slow again and again is warned of once in ten seconds."""
    slow = options(SLOW, ping_interval=0.05, high_ping_threshold=threshold)
    async with Supervisor(slow, observer=seen) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        assert (await job.wait()).status == "success"
    assert sum(seconds > 0.3 for kind, seconds in seen.pings if kind == "job") >= 2
    said = [record for record in caplog.records if "to answer a ping" in record.message and record.pid == job.pid]
    assert len(said) == warnings
    assert [(record.job_id, record.room) for record in said] == [("one", "room of one")] * warnings


@pytest.mark.parametrize(("warn_mb", "warnings"), [(70, 1), (0, 0), (5000, 0)])
async def test_job_memory_warn_mb(options, updates, caplog, monkeypatch, warn_mb, warnings):
    monkeypatch.setattr("host.supervisor._MEASURE_S", 0.1)
    agent = """
        import asyncio
        import host.job.context
        host.job.context.ENTRYPOINT_GRACE_S = 0.05
        async def entrypoint(ctx):
            taken = bytearray(b"x") * 80_000_000
            await asyncio.sleep(1000)
    """
    async with Supervisor(options(agent, job_memory_warn_mb=warn_mb)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)

        def memory_mb():
            return {info.job_id: info.memory_mb for info in supervisor.processes()}["one"]

        await eventually(lambda: memory_mb() > 80)
        await asyncio.sleep(0.5)
        assert supervisor.jobs == (job,)
        assert memory_mb() < 300
    said = [record for record in caplog.records if "job_memory_warn_mb" in record.message]
    assert len(said) == warnings
    for record in said:
        assert f"job_memory_warn_mb is {warn_mb}" in record.message
        assert record.memory_mb > warn_mb
        assert (record.pid, record.job_id, record.room) == (job.pid, "one", "room of one")


async def test_initialize_process_timeout_bounds_a_launch(options, updates):
    agent = """
        import time
        def prewarm(process):
            time.sleep(2.0)
        async def entrypoint(ctx): pass
    """
    async with Supervisor(options(agent, num_idle_processes=0, initialize_process_timeout=0.5)) as supervisor:
        with pytest.raises(HostError, match=r"no job process was ready within 0.5 s"):
            await supervisor.launch(start("one"), on_update=updates)
    async with Supervisor(options(agent, num_idle_processes=0, initialize_process_timeout=DEADLINE_S)) as supervisor:
        assert (await (await supervisor.launch(start("one"), on_update=updates)).wait()).status == "success"


async def test_log_level(options, updates, caplog):
    agent = """
        import logging
        async def entrypoint(ctx):
            logging.getLogger("my.agent").info("heard")
            logging.getLogger("my.agent").debug("not heard")
    """
    caplog.set_level("DEBUG")
    async with Supervisor(options(agent, log_level="INFO")) as supervisor:
        await (await supervisor.launch(start("one"), on_update=updates)).wait()
    assert [record.message for record in caplog.records if record.name == "my.agent"] == ["heard"]


async def test_import_path_and_a_reference_to_a_module(options, updates, run_dir):
    folder = run_dir / "elsewhere"
    folder.mkdir()
    (folder / "my_helpers.py").write_text(
        f"from pathlib import Path\nasync def entry(ctx):\n    Path({str(run_dir / 'out')!r}).write_text(ctx.job.id)\n"
    )
    async with Supervisor(options(entrypoint="my_helpers:entry", import_path=(str(folder),))) as supervisor:
        await (await supervisor.launch(start("one"), on_update=updates)).wait()
    assert (run_dir / "out").read_text() == "one"


# --- what is seen ---------------------------------------------------------------------------------


async def test_what_happens_is_observed(options, updates, seen):
    async with Supervisor(options(FOREVER), observer=seen) as supervisor:
        assert sorted(kind for kind, _ in seen.ready) == ["inference", "job"]
        assert all(0 < seconds < DEADLINE_S for _, seconds in seen.ready)
        job = await supervisor.launch(start("one"), on_update=updates)
        assert len(seen.launched) == 1
        await eventually(lambda: seen.reports)
        assert supervisor.inference_report is not None
        assert supervisor.inference_report.max_rooms == 4
        job.shutdown("enough")
        await job.wait()
        assert seen.ended == ["success"]
    assert (seen.failed, seen.killed) == ([], [])


async def test_processes_are_what_the_system_has(options, updates, monkeypatch):
    monkeypatch.setattr("host.supervisor._MEASURE_S", 0.1)
    async with Supervisor(options(FOREVER, ping_interval=0.1)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        await eventually(lambda: supervisor.idle_processes == 1)
        await eventually(lambda: all(info.memory_mb > 0 for info in supervisor.processes()))
        await eventually(lambda: all(info.ping_ms > 0 for info in supervisor.processes() if info.kind != "forkserver"))
        infos = supervisor.processes()
        assert [(info.name, info.kind, info.state) for info in infos] == [
            ("inference", "inference", "ready"),
            ("forkserver", "forkserver", "ready"),
            ("job-1", "job", "running"),
            ("job-2", "job", "ready"),
        ]
        assert {info.pid for info in infos} == {child.pid for child in own_children()}
        assert [(info.job_id, info.room) for info in infos if info.pid == job.pid] == [("one", "room of one")]
        assert all(0 < info.age_s < DEADLINE_S * 2 for info in infos)
        assert infos[0].cpu_s > 0
    assert supervisor.processes() == ()


# --- threads --------------------------------------------------------------------------------------


async def test_jobs_in_threads(options, updates, run_dir, caplog, seen):
    agent = f"""
        import logging, os, threading
        from pathlib import Path
        def prewarm(process):
            process.userdata["greeting"] = "hello"
        async def entrypoint(ctx):
            logging.getLogger("my.agent").warning("in a thread")
            said = f"{{ctx.proc.userdata['greeting']}} {{os.getpid()}} {{threading.current_thread().name}}"
            (Path({str(run_dir)!r}) / ctx.job.id).write_text(said)
    """
    # libuv keeps a pipe for signals from the first loop on.
    uvloop.new_event_loop().close()
    before, threads = open_descriptors(), thread_names()
    in_threads = options(agent, job_executor_type=JobExecutorType.THREAD, num_idle_processes=2)
    async with Supervisor(in_threads, observer=seen) as supervisor:
        await eventually(lambda: supervisor.idle_processes == 2)
        # Inference is a process; there is no fork server.
        assert [child.pid for child in own_children()] == [supervisor.processes()[0].pid]
        jobs = await asyncio.gather(*(supervisor.launch(start(f"j{n}"), on_update=updates) for n in range(3)))
        assert {job.pid for job in jobs} == {os.getpid()}
        results = await asyncio.gather(*(job.wait() for job in jobs))
    assert [(result.status, result.error) for result in results] == [("success", "")] * 3
    assert sorted(updates.statuses) == ["running"] * 3 + ["success"] * 3
    said = [(run_dir / f"j{n}").read_text().split() for n in range(3)]
    assert {words[:2] == ["hello", str(os.getpid())] for words in said} == {True}
    assert len({words[2] for words in said}) == 3
    assert sum(record.name == "my.agent" for record in caplog.records) == 3
    assert "they cannot be killed" in caplog.text
    assert seen.ended == ["success"] * 3
    assert open_descriptors() == before
    assert thread_names() == threads


async def test_a_thread_that_does_not_end_is_abandoned_and_said_so(options, updates, caplog, seen, run_dir):
    agent = f"""
        import asyncio, pathlib, time
        def stuck_in_a_thread():
            while not pathlib.Path({str(run_dir / "go")!r}).exists():
                time.sleep(0.01)
        async def entrypoint(ctx):
            stuck_in_a_thread()
    """
    threads = thread_names()
    stuck = options(agent, job_executor_type=JobExecutorType.THREAD, ping_interval=0.1, ping_timeout=0.5)
    async with Supervisor(stuck, observer=seen) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        result = await job.wait()
        assert result.status == "failed"
        assert "it did not answer a ping within 0.5 s" in result.error
        assert supervisor.jobs == ()
        assert "stuck_in_a_thread" in caplog.text
        assert "is a thread and cannot be killed: it is abandoned" in caplog.text
        assert seen.killed == [("job", "ping")]
        (run_dir / "go").write_text("")
    await eventually(lambda: thread_names() == threads)


async def test_an_agent_that_cannot_be_imported_in_a_thread(options):
    began = time.monotonic()
    with pytest.raises(HostError, match=r"agent\.py, line 1"):
        async with Supervisor(options("import not_there", job_executor_type=JobExecutorType.THREAD)):
            pytest.fail("it came up")
    assert time.monotonic() - began < DEADLINE_S
    assert own_children() == []


def thread_names():
    return sorted(thread.name for thread in threading.enumerate())
