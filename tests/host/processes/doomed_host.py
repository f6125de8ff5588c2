"""A host to be killed: one warm job process, one job, and one whose event loop is blocked. Prints "up" then."""

import asyncio
import os
import sys

from host.supervisor import Supervisor, SupervisorOptions
from inference.wire import supervision as s
from tests.host.processes.conftest import eventually


async def main(socket_path: str, agent_file: str) -> None:
    inference = s.InitializeInference(
        socket_path, "secret", "cpu", 1, 4, 512, "fake", "", "fake", "", "fake", "", engines="fake"
    )
    environment = dict(os.environ)
    options = SupervisorOptions(inference, environment, environment, entrypoint=f"{agent_file}:entrypoint")
    running = asyncio.Queue[str]()

    async def on_update(update: s.JobUpdate) -> None:
        await running.put(update.status)

    async with Supervisor(options) as supervisor:
        for job_id in ("well", "stuck"):
            await supervisor.launch(s.StartJob(job_id, job_id, "local"), on_update=on_update)
            await running.get()
        await eventually(lambda: supervisor.idle_processes)
        sys.stdout.write("up\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
