"""The process tree at work: pool, jobs, and what happens when something dies."""

import asyncio
import json
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from host.errors import ConfigError, DeviceError, HostError, InferenceError
from host.options import BUILT_IN_AGENT
from host.supervisor import Supervisor
from inference.wire import supervision as s
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

QUESTION = Path(__file__).parents[2] / "data" / "speech" / "whats-the-date-today.wav"


def kill_and_block_until_dead(pid):
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    ended, _, _ = select.select([descriptor], [], [], DEADLINE_S)
    os.close(descriptor)
    assert ended


# --- the pool -----------------------------------------------------------------------------------


async def test_the_pool_is_warm_and_refilled(options, updates):
    async with Supervisor(options(num_idle_processes=2)) as supervisor:
        await eventually(lambda: supervisor.idle_processes == 2)
        warm = job_processes()
        assert len(warm) == 2
        job = await supervisor.launch(start("one"), on_update=updates)
        assert job.pid in warm
        await job.wait()
        await eventually(lambda: supervisor.idle_processes == 2)
        assert len(job_processes()) == 2
        assert len(job_processes() - warm) == 1


async def test_more_jobs_than_warm_processes(options, updates):
    async with Supervisor(options(num_idle_processes=1)) as supervisor:
        jobs = await asyncio.gather(*(supervisor.launch(start(f"j{n}"), on_update=updates) for n in range(5)))
        assert len({job.pid for job in jobs}) == 5
        results = await asyncio.gather(*(job.wait() for job in jobs))
        assert [result.status for result in results] == ["success"] * 5


async def test_without_a_pool_a_process_is_started_for_the_job(options, updates):
    async with Supervisor(options(num_idle_processes=0)) as supervisor:
        assert job_processes() == set()
        job = await supervisor.launch(start("one"), on_update=updates)
        assert (await job.wait()).status == "success"


async def test_an_idle_process_that_is_killed_is_replaced(options):
    async with Supervisor(options()) as supervisor:
        (victim,) = job_processes()
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: job_processes() - {victim} and supervisor.idle_processes == 1)
        assert len(job_processes()) == 1


async def test_a_dead_idle_process_is_not_handed_out(options, updates):
    async with Supervisor(options()) as supervisor:
        (victim,) = job_processes()
        kill_and_block_until_dead(victim)
        # The supervisor has not had a turn of its loop since: only the kernel knows.
        job = await supervisor.launch(start("one"), on_update=updates)
        assert job.pid != victim
        assert (await job.wait()).status == "success"


async def test_what_an_idle_job_process_holds(options, run_dir):
    """The process imports no model library and costs at most 10 MB of its own."""
    agent = f"""
        import json, os, sys
        def prewarm(process):
            with open({str(run_dir / "seen")!r}, "w") as out:
                threads = os.listdir("/proc/self/task")
                json.dump([sorted(sys.modules), len(threads)], out)
        async def entrypoint(ctx): pass
    """
    async with Supervisor(options(agent, num_idle_processes=2)) as supervisor:
        await eventually(lambda: supervisor.idle_processes == 2)
        modules, threads = json.loads((run_dir / "seen").read_text())
        uss = [psutil.Process(pid).memory_full_info().uss for pid in job_processes()]
    heavy = {"torch", "onnxruntime", "ctranslate2", "llama_cpp", "faster_whisper", "piper"}
    foreign = {"aiohttp", "msgspec", "rich", "typer"}
    assert {name.partition(".")[0] for name in modules} & (heavy | foreign) == set()
    assert {"livekit.rtc", "numpy", "host.job.main"} <= set(modules)
    assert threads == 1
    assert max(uss) <= 10 * 1000 * 1000, uss


async def test_a_launch_that_is_given_up_leaves_the_pool_as_it_was(options, updates):
    agent = """
        import time
        def prewarm(process):
            time.sleep(0.5)
        async def entrypoint(ctx): pass
    """
    async with Supervisor(options(agent, num_idle_processes=0)) as supervisor:
        launch = asyncio.create_task(supervisor.launch(start("one"), on_update=updates))
        await eventually(job_processes)
        launch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launch
        await eventually(lambda: not job_processes())
        assert supervisor.jobs == ()
    assert updates.seen == []


# --- one job ------------------------------------------------------------------------------------


async def test_a_job_runs_the_agent_file(options, updates, run_dir):
    agent = f"""
        from pathlib import Path
        def prewarm(process):
            process.userdata["greeting"] = "hello"
        async def entrypoint(ctx):
            said = f"{{ctx.proc.userdata['greeting']}} {{ctx.job.id}} {{ctx.job.room.name}}"
            Path({str(run_dir / "out")!r}).write_text(said)
    """
    async with Supervisor(options(agent)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        assert job.room == "room of one"
        assert job in supervisor.jobs
        result = await job.wait()
    assert (run_dir / "out").read_text() == "hello one room of one"
    assert (result.status, result.error, result.exit_code) == ("success", "", 0)
    assert updates.statuses == ["running", "success"]
    assert supervisor.jobs == ()


async def test_an_entrypoint_that_raises_fails_the_job_with_its_text(options, updates):
    agent = """
        async def entrypoint(ctx):
            raise ValueError("no such customer")
    """
    async with Supervisor(options(agent)) as supervisor:
        result = await (await supervisor.launch(start("one"), on_update=updates)).wait()
    assert result.status == "failed"
    assert "ValueError: no such customer" in result.error
    assert updates.statuses == ["running", "failed"]


async def test_the_job_stays_until_its_status_was_passed_on(options):
    passed_on = asyncio.Event()
    final = asyncio.Event()

    async def on_update(update):
        if update.status == "success":
            final.set()
            await passed_on.wait()

    async with Supervisor(options()) as supervisor:
        job = await supervisor.launch(start("one"), on_update=on_update)
        await asyncio.wait_for(final.wait(), DEADLINE_S)
        await asyncio.sleep(0.3)
        assert job.pid in job_processes()
        passed_on.set()
        await asyncio.wait_for(job.wait(), 3)
        assert job.pid not in job_processes()


async def test_an_on_update_that_raises_does_not_stop_the_others(options, updates, caplog):
    async def broken(update):
        raise OSError("the server is gone")

    agent = """
        import host.job.main
        host.job.main.ACKNOWLEDGE_TIMEOUT_S = 0.05
        async def entrypoint(ctx): pass
    """
    async with Supervisor(options(agent)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=broken)
        other = await supervisor.launch(start("two"), on_update=updates)
        assert (await other.wait()).status == "success"
        assert (await job.wait()).status == "success"
    assert "on_update(running) failed" in caplog.text


async def test_a_job_ends_in_order_when_it_is_told_to(options, updates, run_dir):
    agent = f"""
        import asyncio
        from pathlib import Path
        import host.job.context
        host.job.context.ENTRYPOINT_GRACE_S = 0.05
        async def entrypoint(ctx):
            ctx.add_shutdown_callback(lambda reason: Path({str(run_dir / "reason")!r}).write_text(reason) and None)
            await asyncio.Event().wait()
    """
    async with Supervisor(options(agent)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        await eventually(lambda: updates.statuses == ["running"])
        job.shutdown("the operator says so")
        result = await job.wait()
    assert (run_dir / "reason").read_text() == "the operator says so"
    assert result.status == "success"


async def test_a_job_that_does_not_end_is_killed_after_the_grace(options, updates):
    agent = """
        import asyncio
        async def entrypoint(ctx):
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass
    """
    async with Supervisor(options(agent, shutdown_process_timeout=0.5)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        await eventually(lambda: updates.statuses == ["running"])
        job.shutdown("enough")
        result = await job.wait()
    assert result.exit_code == -signal.SIGKILL
    assert "it did not end within 0.5 s of being told to" in result.error
    assert updates.statuses == ["running", "failed"]


async def test_a_job_that_ends_by_itself_and_hangs_is_killed_after_the_grace(options, updates):
    agent = """
        import asyncio
        async def entrypoint(ctx):
            ctx.add_shutdown_callback(lambda reason: asyncio.Event().wait())
    """
    async with Supervisor(options(agent, shutdown_process_timeout=0.5)) as supervisor:
        async with asyncio.timeout(DEADLINE_S):
            job = await supervisor.launch(start("one"), on_update=updates)
            result = await job.wait()
    assert result.exit_code == -signal.SIGKILL
    assert "it did not end within 0.5 s of the end of its room" in result.error
    assert updates.statuses == ["running", "failed"]


async def test_a_killed_job_fails_once_with_the_signal_named(options, updates):
    async with Supervisor(options(FOREVER)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        await eventually(lambda: updates.statuses == ["running"])
        os.kill(job.pid, signal.SIGKILL)
        result = await job.wait()
        assert result.exit_code == -signal.SIGKILL
        assert "killed by SIGKILL" in result.error
    assert updates.statuses == ["running", "failed"]
    assert updates.seen[-1].error == result.error


async def test_a_job_that_exits_by_itself_fails_with_its_exit_code(options, updates):
    agent = """
        import os
        async def entrypoint(ctx):
            os._exit(7)
    """
    async with Supervisor(options(agent)) as supervisor:
        result = await (await supervisor.launch(start("one"), on_update=updates)).wait()
    assert result.exit_code == 7
    assert "exit code 7" in result.error


async def test_a_blocked_supervisor_does_not_hold_it_against_its_children(options, updates, caplog):
    async with Supervisor(options(ping_interval=0.1, ping_timeout=1.2, high_ping_threshold=0.8)) as supervisor:
        before = job_processes()
        time.sleep(1.5)  # noqa: ASYNC251 - this is the fault under test
        await asyncio.sleep(0.3)
        assert job_processes() == before
        assert supervisor.inference_ready
    assert "to answer a ping" not in caplog.text


async def test_a_slow_child_is_warned_of(options, updates, caplog):
    agent = """
        import asyncio, time
        async def entrypoint(ctx):
            time.sleep(1.0)
            await asyncio.sleep(0.1)
    """
    async with Supervisor(options(agent, ping_interval=0.1, high_ping_threshold=0.3)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        assert (await job.wait()).status == "success"
    (warning,) = [record for record in caplog.records if "to answer a ping" in record.message]
    assert warning.levelno == logging.WARNING
    assert str(job.pid) in warning.message


async def test_log_records_come_through_with_pid_and_job(options, updates, caplog):
    agent = """
        import logging
        async def entrypoint(ctx):
            logging.getLogger("my.agent").warning("order %d", 42, extra={"customer": "Ada"})
    """
    async with Supervisor(options(agent)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        await job.wait()
    (record,) = [record for record in caplog.records if record.name == "my.agent"]
    assert (record.levelname, record.getMessage()) == ("WARNING", "order 42")
    assert (record.pid, record.job_id, record.room, record.customer) == (job.pid, "one", "room of one", "Ada")


async def test_a_conversation_with_the_built_in_agent_is_reported_turn_by_turn(options, updates, run_dir):
    turns = []
    talk = s.StartJob("talk", "talk", "local", waves=(str(QUESTION),), out=str(run_dir / "reply.wav"))
    async with Supervisor(options(entrypoint=BUILT_IN_AGENT)) as supervisor:
        job = await supervisor.launch(talk, on_update=updates, on_turn=turns.append)
        result = await job.wait()
    assert (result.status, result.error) == ("success", "")
    assert [turn.turn for turn in turns] == [1]
    assert turns[0].transcript
    assert turns[0].reply
    assert (run_dir / "reply.wav").stat().st_size > 1000


async def test_the_same_job_is_not_started_twice(options, updates):
    async with Supervisor(options(FOREVER)) as supervisor:
        await supervisor.launch(start("one"), on_update=updates)
        with pytest.raises(HostError, match="one is running already"):
            await supervisor.launch(start("one"), on_update=updates)


# --- coming up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ("async def entrypoint(ctx) pass", "agent.py, line 1: SyntaxError"),
        ("import os\nimport not_there\n", "agent.py, line 2: ModuleNotFoundError: No module named 'not_there'"),
        ("def entrypoint(ctx): pass", "it must define `async def entrypoint"),
        ("def prewarm(p):\n    1 / 0\nasync def entrypoint(ctx): pass", "agent.py, line 2: prewarm: ZeroDivisionError"),
    ],
)
async def test_a_wrong_agent_file_is_named_with_its_line(options, agent, message):
    before = open_descriptors()
    with pytest.raises(ConfigError, match=message):
        async with Supervisor(options(agent)):
            pytest.fail("it came up")
    assert own_children() == []
    assert open_descriptors() == before


async def test_an_agent_file_that_broke_later_fails_the_launch_at_once(options, updates, run_dir):
    async with Supervisor(options(num_idle_processes=0)) as supervisor:
        (run_dir / "agent.py").write_text("import not_there")
        with pytest.raises(ConfigError, match="not_there"):
            await supervisor.launch(start("one"), on_update=updates)
    assert updates.seen == []


REFUSING = """
import argparse, socket
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Connection, Received, Role
parser = argparse.ArgumentParser()
parser.add_argument("--control", type=int)
parser.add_argument("--parent", type=int)
control = socket.socket(fileno=parser.parse_args().control)
connection = Connection(Role.SERVER, SUPERVISION)
while not isinstance(connection.next_event(), Received):
    connection.receive_data(control.recv(4096))
control.sendall(connection.send(s.Progress("looking for the device")))
control.sendall(connection.send(s.InitializeFailed("no such device: cuda", 4)))
"""


async def test_an_inference_process_that_refuses_gives_its_reason_and_exit_code(options):
    progress = []
    supervisor = Supervisor(options(), on_progress=progress.append, inference_command=(sys.executable, "-c", REFUSING))
    with pytest.raises(DeviceError, match=r"^no such device: cuda$"):
        async with supervisor:
            pytest.fail("it came up")
    assert progress == ["looking for the device"]
    assert own_children() == []


async def test_an_inference_process_that_dies_before_it_is_ready_is_not_tried_again(options):
    command = (sys.executable, "-c", "raise SystemExit(7)")
    with pytest.raises(InferenceError, match="it ended before it was ready: exit code 7"):
        async with Supervisor(options(), inference_command=command):
            pytest.fail("it came up")


async def test_an_inference_process_that_takes_too_long_is_killed(options):
    command = (sys.executable, "-c", "import time; time.sleep(1000)")
    with pytest.raises(InferenceError, match=r"it was not ready within 0.5 s"):
        async with Supervisor(options(inference_initialize_timeout=0.5), inference_command=command):
            pytest.fail("it came up")
    assert own_children() == []


async def test_a_host_that_ends_while_its_models_load_does_not_wait_for_them(options, seen):
    environment = {**os.environ, "STUCK_AT": "loading"}
    command = (sys.executable, "-m", "tests.inference.stuck_main")
    given, progress = options(inference_environment=environment), []
    supervisor = Supervisor(given, on_progress=progress.append, observer=seen, inference_command=command)
    entering = asyncio.create_task(supervisor.__aenter__())
    await eventually(lambda: progress == ["loading voice activity detection on cpu"])
    entering.cancel()
    await asyncio.wait([entering])
    assert seen.killed == []
    assert own_children() == []


# --- resident processes that die ----------------------------------------------------------------


async def test_inference_that_is_killed_is_started_again(options, updates, caplog):
    async with Supervisor(options(FOREVER)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        killed = descendant("inference.main").pid
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: not supervisor.inference_ready)
        await eventually(lambda: supervisor.inference_ready)
        assert descendant("inference.main").pid != killed
        assert supervisor.jobs == (job,)
    assert "the inference process ended: killed by SIGKILL; it is started again in 0.5 s" in caplog.text


async def test_inference_that_dies_again_and_again_ends_the_host(options, monkeypatch, run_dir):
    monkeypatch.setattr("host.residents._MAX_FAILED_STARTS", 2)
    async with Supervisor(options()) as supervisor:
        for _ in range(2):
            await eventually(lambda: supervisor.inference_ready)
            os.kill(descendant("inference.main").pid, signal.SIGKILL)
            await eventually(lambda: not supervisor.inference_ready)
        error = await asyncio.wait_for(supervisor.wait_failed(), DEADLINE_S)
    assert isinstance(error, InferenceError)
    assert "2 times in a row" in str(error)
    # The socket that a killed process leaves.
    assert sorted(path.name for path in run_dir.iterdir()) == ["agent.py"]


# --- going down ---------------------------------------------------------------------------------


async def test_nothing_is_left_after_the_stop(options, updates, run_dir):
    before = open_descriptors()
    async with Supervisor(options(FOREVER, num_idle_processes=2)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=updates)
        await eventually(lambda: updates.statuses == ["running"])
    assert (await job.wait()).status == "success"
    assert updates.statuses == ["running", "success"]
    assert own_children() == []
    assert open_descriptors() == before
    assert sorted(path.name for path in run_dir.iterdir()) == ["agent.py"]
    assert len(asyncio.all_tasks()) == 1


async def test_no_job_is_started_while_the_host_stops(options, updates):
    async with Supervisor(options(num_idle_processes=0)) as supervisor:
        late = asyncio.create_task(supervisor.launch(start("one"), on_update=updates))
        await asyncio.sleep(0)
    with pytest.raises(HostError, match="the host is stopping"):
        await late
    with pytest.raises(HostError, match="the host is stopping"):
        await supervisor.launch(start("two"), on_update=updates)


async def test_a_cancelled_host_stops_in_order(options, updates):
    up = asyncio.Event()

    async def host():
        async with Supervisor(options(FOREVER)) as supervisor:
            await supervisor.launch(start("one"), on_update=updates)
            up.set()
            await asyncio.Event().wait()

    before = open_descriptors()
    task = asyncio.create_task(host())
    await asyncio.wait_for(up.wait(), DEADLINE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert updates.statuses[-1] == "success"
    assert own_children() == []
    assert open_descriptors() == before


async def test_a_host_cancelled_twice_kills_what_is_left(options, updates):
    stubborn = """
        import asyncio, time
        async def entrypoint(ctx):
            time.sleep(1000)
    """
    up = asyncio.Event()

    async def host():
        async with Supervisor(options(stubborn)) as supervisor:
            await supervisor.launch(start("one"), on_update=updates)
            up.set()
            await asyncio.Event().wait()

    before = open_descriptors()
    task = asyncio.create_task(host())
    await asyncio.wait_for(up.wait(), DEADLINE_S)
    task.cancel()
    await asyncio.sleep(0.2)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert own_children() == []
    assert open_descriptors() == before


async def test_a_report_that_nobody_takes_does_not_hold_the_stop(options, monkeypatch):
    monkeypatch.setattr("host.job_pool._LAST_REPORTS_S", 0.1)
    monkeypatch.setattr("host.job_pool.EXIT_GRACE_S", 0.5)
    reported = asyncio.Event()

    async def never(update):
        if update.status != "running":
            reported.set()
            await asyncio.Event().wait()

    async with Supervisor(options(shutdown_process_timeout=0.5)) as supervisor:
        job = await supervisor.launch(start("one"), on_update=never)
        await asyncio.wait_for(reported.wait(), DEADLINE_S)
        stopping_since = time.monotonic()
    assert time.monotonic() - stopping_since < DEADLINE_S / 2
    assert (await job.wait()).status == "success"
    assert own_children() == []


async def test_an_error_in_the_body_comes_out_as_it_is(options):
    with pytest.raises(HostError, match="mine"):
        async with Supervisor(options(num_idle_processes=0)):
            raise HostError("mine")
