"""What is promised when something goes wrong, each with its time: who ends, what is said, who goes on."""

import asyncio
import logging
import os
import signal
import time

import psutil
import pytest

from host.errors import HostError
from host.supervisor import Supervisor
from tests.host.processes.conftest import (
    DEADLINE_S,
    FOREVER,
    descendant,
    eventually,
    job_processes,
    open_descriptors,
    own_children,
    start,
)

pytestmark = pytest.mark.processes

logger = logging.getLogger(__name__)


def errors_of(caplog, *texts):
    """The records at ERROR that say all of ``texts``."""
    return [
        record
        for record in caplog.records
        if record.levelno == logging.ERROR and all(text in record.getMessage() for text in texts)
    ]


# --- killed from outside --------------------------------------------------------------------------


async def test_a_busy_job_that_is_killed_is_failed_at_once_and_no_other_notices(options, updates, seen):
    async with Supervisor(options(FOREVER), observer=seen) as supervisor:
        other = await supervisor.launch(start("other"), on_update=updates)
        job = await supervisor.launch(start("one"), on_update=updates)
        killed_at = time.monotonic()
        os.kill(job.pid, signal.SIGKILL)
        result = await job.wait()
        logger.info("failed after %.0f ms", (time.monotonic() - killed_at) * 1000)
        assert time.monotonic() - killed_at < 5.0
        assert (result.status, result.exit_code) == ("failed", -signal.SIGKILL)
        assert result.error == "the job process ended without a result: killed by SIGKILL"
        assert supervisor.jobs == (other,)
        assert other.pid in job_processes()
        # Nobody of ours killed it.
        assert (seen.killed, seen.failed, seen.ended) == ([], ["job"], ["failed"])


async def test_an_idle_process_that_is_killed_right_before_a_launch_costs_the_job_nothing(options, updates):
    """The kernel may not even have ended it when the job is given to it: another process gets the job."""
    async with Supervisor(options()) as supervisor:
        for number in range(8):
            await eventually(lambda: supervisor.idle_processes == 1)
            (victim,) = job_processes()
            os.kill(victim, signal.SIGKILL)
            job = await supervisor.launch(start(f"job {number}"), on_update=updates)
            assert job.pid != victim
            assert (await job.wait()).status == "success"
    assert updates.statuses == ["running", "success"] * 8


async def test_a_process_that_has_closed_its_connection_is_not_handed_out(options, updates, run_dir, monkeypatch):
    """It lives on, stuck at its end: a job would wait for it in vain."""
    agent = f"""
        import asyncio, os, socket, time
        from pathlib import Path
        def close_and_hang():
            for link in Path("/proc/self/fd").iterdir():
                if link.is_symlink() and str(os.readlink(link)).startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(link.name))) as control:
                        control.shutdown(socket.SHUT_RDWR)
            time.sleep(1000)
        def prewarm(process):
            try:
                Path({str(run_dir / "first")!r}).touch(exist_ok=False)
            except FileExistsError:
                return
            asyncio.get_running_loop().call_later(0.2, close_and_hang)
        async def entrypoint(ctx):
            pass
    """
    monkeypatch.setattr("host.child.EXIT_GRACE_S", 3.0)
    async with Supervisor(options(agent)) as supervisor:
        (broken,) = job_processes()
        await eventually(lambda: {info.pid: info.state for info in supervisor.processes()}[broken] == "stopping")
        job = await supervisor.launch(start("one"), on_update=updates)
        assert job.pid != broken
        assert (await job.wait()).status == "success"
        await eventually(lambda: broken not in job_processes())


async def test_a_fork_server_that_is_killed_is_replaced_and_its_jobs_go_on(options, updates, caplog):
    async with Supervisor(options(FOREVER)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        killed_job = await supervisor.launch(start("two"), on_update=updates)
        await eventually(lambda: supervisor.idle_processes == 1)
        fork_server = descendant("host.forkserver").pid
        os.kill(fork_server, signal.SIGKILL)
        await eventually(lambda: "the fork server ended: killed by SIGKILL" in caplog.text)
        # Warm processes that it made can still be used; the next are made by another.
        third = await supervisor.launch(start("three"), on_update=updates)
        await eventually(lambda: supervisor.idle_processes == 1)
        assert descendant("host.forkserver").pid != fork_server
        assert set(supervisor.jobs) == {job, killed_job, third}
        # Nobody is left to tell how it ended; that it did is known.
        os.kill(killed_job.pid, signal.SIGKILL)
        result = await killed_job.wait()
        assert result.status == "failed"
        assert "its exit code is not known, because its fork server is gone" in result.error
        job.shutdown("enough")
        assert (await job.wait()).status == "success"


async def test_a_fork_server_that_is_stuck_is_killed_and_its_jobs_go_on(options, updates, caplog, seen, monkeypatch):
    monkeypatch.setattr("host.forkserver_process._ANSWER_S", 1.0)
    async with Supervisor(options(FOREVER), observer=seen) as supervisor:
        fork_server = descendant("host.forkserver").pid
        os.kill(fork_server, signal.SIGSTOP)
        # The warm process has the job; the next cannot be made.
        job = await supervisor.launch(start("one"), on_update=updates)
        await eventually(lambda: supervisor.idle_processes == 1)
        assert descendant("host.forkserver").pid != fork_server
        assert supervisor.jobs == (job,)
        job.shutdown("enough")
        assert (await job.wait()).status == "success"
    (record,) = errors_of(caplog, "the fork server", "is killed: the fork server did not answer within 1 s")
    assert "it was stopped (SIGSTOP, or a debugger), so it wrote no stacks" in record.getMessage()
    assert seen.killed == [("forkserver", "ping")]


async def test_a_launch_while_the_fork_server_is_stuck_fails_in_time_with_a_reason(options, updates, monkeypatch):
    monkeypatch.setattr("host.forkserver_process._ANSWER_S", 0.5)
    async with Supervisor(options(initialize_process_timeout=1.5)) as supervisor:
        monkeypatch.setattr("host.forkserver_process.ForkServerProcess.COMMAND", ("/not/there",))
        os.kill(descendant("host.forkserver").pid, signal.SIGKILL)
        (await (await supervisor.launch(start("one"), on_update=updates)).wait())
        await eventually(lambda: supervisor.idle_processes == 0)
        asked_at = time.monotonic()
        with pytest.raises(HostError, match=r"no job process was ready within 1.5 s\. .*the fork server"):
            await supervisor.launch(start("two"), on_update=updates)
        assert 1.4 <= time.monotonic() - asked_at < 5.0


# --- a child that is stuck ------------------------------------------------------------------------


async def test_a_fork_that_comes_in_the_moment_in_which_it_is_given_up(options):
    before = open_descriptors()
    async with Supervisor(options(num_idle_processes=0)) as supervisor:
        fork_server = supervisor._fork_server.process
        spawning = asyncio.create_task(fork_server.spawn("job-x"))
        await eventually(lambda: fork_server._spawning)
        fork_server._spawning[0].add_done_callback(lambda _: spawning.cancel())
        await asyncio.wait([spawning])
        assert spawning.cancelled()
        await eventually(lambda: job_processes() == set())
    assert open_descriptors() == before


async def test_a_fork_that_never_comes_does_not_hold_the_end(options, updates, monkeypatch):
    monkeypatch.setattr("host.forkserver_process._ANSWER_S", 1000.0)
    monkeypatch.setattr("host.forkserver_process.EXIT_GRACE_S", 0.3)
    async with Supervisor(options(num_idle_processes=0)) as supervisor:
        os.kill(descendant("host.forkserver").pid, signal.SIGSTOP)
        launching = asyncio.create_task(supervisor.launch(start("one"), on_update=updates))
        # The fork is asked for.
        await asyncio.sleep(0.1)
        stopped_at = time.monotonic()
    assert time.monotonic() - stopped_at < 10.0
    with pytest.raises(HostError, match="the host is stopping"):
        await launching
    assert own_children() == []


async def test_a_stopped_job_is_killed_after_the_ping_timeout(options, updates, caplog, seen):
    async with Supervisor(options(FOREVER, ping_interval=0.2, ping_timeout=1.5), observer=seen) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        os.kill(job.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        result = await job.wait()
        ended_after_s = time.monotonic() - stopped_at
    logger.info("killed after %.2f s", ended_after_s)
    assert 1.4 <= ended_after_s < DEADLINE_S
    assert result.error.endswith("killed by SIGKILL: it did not answer a ping within 1.5 s")
    (record,) = errors_of(caplog, "is killed: it did not answer a ping within 1.5 s")
    assert "it was stopped (SIGSTOP, or a debugger), so it wrote no stacks" in record.getMessage()
    assert (record.pid, record.job_id, record.room) == (job.pid, "one", "room of one")
    assert seen.killed == [("job", "ping")]


BLOCKED = """
    import asyncio, time
    import host.job.context
    host.job.context.ENTRYPOINT_GRACE_S = 0.05
    def stuck_here():
        time.sleep(1000)
    async def helper_of_the_agent():
        await asyncio.Event().wait()
    async def entrypoint(ctx):
        if ctx.job.id == "stuck":
            helper = asyncio.create_task(helper_of_the_agent(), name="my helper")
            await asyncio.sleep(0)
            stuck_here()
        await asyncio.Event().wait()
"""


async def test_a_job_that_blocks_its_loop_is_killed_with_its_stacks_in_the_log_and_no_other(
    options, updates, caplog, run_dir
):
    async with Supervisor(options(BLOCKED, ping_interval=0.2, ping_timeout=1.0)) as supervisor:
        other = await supervisor.launch(start("other"), on_update=updates)
        job = await supervisor.launch(start("stuck"), on_update=updates)
        result = await job.wait()
        assert result.status == "failed"
        assert "it did not answer a ping within 1 s" in result.error
        assert supervisor.jobs == (other,)
        other.shutdown("done")
        assert (await other.wait()).status == "success"
    (record,) = errors_of(caplog, "is killed: it did not answer a ping within 1 s. Its stacks:")
    text = record.getMessage()
    assert "in stuck_here" in text
    assert "agent.py" in text
    assert "my helper" in text
    assert "helper_of_the_agent" in text
    assert (record.pid, record.job_id, record.room) == (job.pid, "stuck", "room of stuck")
    assert not list(run_dir.glob("*.stacks"))


async def test_inference_that_is_stopped_is_killed_and_replaced_and_jobs_go_on(options, updates, caplog, seen):
    async with Supervisor(options(FOREVER, ping_interval=0.2, ping_timeout=1.5), observer=seen) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        os.kill(descendant("inference.main").pid, signal.SIGSTOP)
        await eventually(lambda: not supervisor.inference_ready)
        assert supervisor.inference_report is None
        await eventually(lambda: supervisor.inference_ready)
        assert supervisor.inference_restarts == 1
        assert supervisor.jobs == (job,)
    assert ("inference", "ping") in seen.killed
    assert errors_of(caplog, "inference (pid", "it was stopped")


async def test_a_job_that_does_not_end_is_killed_with_its_stacks_after_the_grace(options, updates, caplog, seen):
    agent = """
        import asyncio
        async def will_not_end():
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass
        async def entrypoint(ctx):
            await will_not_end()
    """
    async with Supervisor(options(agent, shutdown_process_timeout=0.5), observer=seen) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        job.shutdown("enough")
        result = await job.wait()
    assert "it did not end within 0.5 s of being told to" in result.error
    (record,) = errors_of(caplog, "is killed: it did not end within 0.5 s")
    assert "will_not_end" in record.getMessage()
    assert seen.killed == [("job", "shutdown")]


async def test_the_supervisors_own_block_kills_nobody(options, updates, seen, caplog, monkeypatch):
    """Neither a ping that is on its way, nor a process that comes up, nor a fork that was asked for, nor an end."""
    monkeypatch.setattr("host.forkserver_process._ANSWER_S", 0.8)
    agent = """
        import asyncio, time
        import host.job.context
        host.job.context.ENTRYPOINT_GRACE_S = 0.05
        def prewarm(process):
            time.sleep(0.3)
        async def entrypoint(ctx):
            await asyncio.sleep(1000)
    """
    tight = options(agent, ping_interval=0.1, ping_timeout=0.8, initialize_process_timeout=1.0)
    async with Supervisor(tight, observer=seen) as supervisor:
        first = await supervisor.launch(start("first"), on_update=updates)
        launches = [asyncio.create_task(supervisor.launch(start(f"{n}"), on_update=updates)) for n in range(2)]
        for _ in range(5):
            await asyncio.sleep(0.03)
            time.sleep(1.3)  # noqa: ASYNC251 - this is the fault under test
        jobs = [first, *await asyncio.gather(*launches)]
        assert set(supervisor.jobs) == set(jobs)
        assert {job.pid for job in jobs} <= job_processes()
        assert supervisor.inference_ready
        assert (seen.killed, seen.failed) == ([], [])
    assert "the supervisor's event loop stood still for 1." in caplog.text


# --- memory ---------------------------------------------------------------------------------------


async def test_a_job_that_allocates_without_end_is_killed_at_its_limit(options, updates, caplog, seen):
    agent = """
        import asyncio
        import host.job.context
        host.job.context.ENTRYPOINT_GRACE_S = 0.05
        async def take_more_and_more():
            taken = []
            while True:
                taken.append(bytearray(b"x") * 5_000_000)
                await asyncio.sleep(0.02)
        async def entrypoint(ctx):
            if ctx.job.id == "greedy":
                await take_more_and_more()
            await asyncio.sleep(1000)
    """
    limited = options(agent, job_memory_limit_mb=120, job_memory_warn_mb=60)
    async with Supervisor(limited, observer=seen) as supervisor:
        other = await supervisor.launch(start("modest"), on_update=updates)
        job = await supervisor.launch(start("greedy"), on_update=updates)
        result = await job.wait()
        assert supervisor.jobs == (other,)
        (info,) = [info for info in supervisor.processes() if info.job_id == "modest"]
        assert 1 < info.memory_mb < 60
    assert result.status == "failed"
    assert updates.statuses[-2] == "failed"
    used = int(result.error.rpartition("it used ")[2].partition(" MB")[0])
    assert result.error.endswith(f"it used {used} MB, job_memory_limit_mb is 120")
    assert used > 120
    (record,) = errors_of(caplog, "is killed: it used")
    assert "take_more_and_more" in record.getMessage()
    assert seen.killed == [("job", "memory")]


# --- coming up ------------------------------------------------------------------------------------

CHANGEABLE = """
    import pathlib, time
    def hang_for_ever():
        time.sleep(1000)
    def prewarm(process):
        fault = pathlib.Path({fault!r})
        if fault.exists():
            if fault.read_text() == "hang":
                hang_for_ever()
            raise RuntimeError("the prewarm is broken")
    async def entrypoint(ctx): pass
"""


async def test_a_prewarm_that_hangs_is_killed_with_its_stacks_and_not_in_a_hot_loop(
    options, updates, caplog, run_dir, seen
):
    fault = run_dir / "fault"
    agent = CHANGEABLE.format(fault=str(fault))
    async with Supervisor(options(agent, initialize_process_timeout=0.7), observer=seen) as supervisor:
        fault.write_text("hang")
        assert (await (await supervisor.launch(start("one"), on_update=updates)).wait()).status == "success"
        asked_at = time.monotonic()
        with pytest.raises(HostError, match=r"no job process was ready within 0.7 s"):
            await supervisor.launch(start("two"), on_update=updates)
        assert time.monotonic() - asked_at < 5.0
        await eventually(lambda: len(seen.killed) == 2)
        began = time.monotonic()
        # The second failure: 1 s until the next try, and 0.7 s of it.
        await eventually(lambda: len(seen.killed) == 3)
        assert time.monotonic() - began > 1.6
        fault.unlink()
        await eventually(lambda: supervisor.idle_processes == 1)
        assert (await (await supervisor.launch(start("three"), on_update=updates)).wait()).status == "success"
    assert set(seen.killed) == {("job", "initialize")}
    assert all(
        "hang_for_ever" in record.getMessage() for record in errors_of(caplog, "it was not ready within 0.7 s. Its")
    )


async def test_a_prewarm_that_raises_refuses_the_launch_at_once_and_is_not_tried_in_a_hot_loop(
    options, updates, run_dir, seen, caplog
):
    fault = run_dir / "fault"
    agent = CHANGEABLE.format(fault=str(fault))
    async with Supervisor(options(agent), observer=seen) as supervisor:
        fault.write_text("raise")
        assert (await (await supervisor.launch(start("one"), on_update=updates)).wait()).status == "success"
        with pytest.raises(HostError, match="prewarm: RuntimeError: the prewarm is broken"):
            await supervisor.launch(start("two"), on_update=updates)
        await eventually(lambda: len(seen.failed) >= 3)
        failures = len(seen.failed)
        await asyncio.sleep(1.5)
        # The next try is 2 s after the third failure, or later.
        assert len(seen.failed) <= failures + 1
        fault.unlink()
        await eventually(lambda: supervisor.idle_processes == 1)
    assert "the next is started in 0.5 s" in caplog.text
    assert "the next is started in 1.0 s" in caplog.text


async def test_an_idle_process_that_takes_too_much_is_replaced_with_back_off(options, seen, run_dir):
    fault = run_dir / "fault"
    agent = f"""
        import pathlib
        def prewarm(process):
            if pathlib.Path({str(fault)!r}).exists():
                process.userdata["all"] = bytearray(b"x") * 150_000_000
        async def entrypoint(ctx): pass
    """
    async with Supervisor(options(agent, job_memory_limit_mb=100), observer=seen) as supervisor:
        fault.write_text("")
        (victim,) = job_processes()
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: ("job", "memory") in seen.killed)
        fault.unlink()
        await eventually(lambda: supervisor.idle_processes == 1 and supervisor.processes()[-1].memory_mb > 0)
        assert psutil.Process(supervisor.processes()[-1].pid).is_running()


async def test_sigint_and_sigterm_are_for_the_supervisor_alone(options):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    async with Supervisor(options()) as supervisor:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        for info in supervisor.processes():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(info.pid, number)
        await asyncio.sleep(0.3)
        assert len(supervisor.processes()) == 3
        assert all(psutil.Process(info.pid).is_running() for info in supervisor.processes())
        assert supervisor.idle_processes == 1
