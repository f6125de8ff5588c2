"""A job that no server has assigned, as ``Worker.simulate_job`` starts it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from livekit.protocol import agent, models

from host.dispatch import JOB_TYPES, agent_endpoint
from host.errors import ConfigError
from host.options import WorkerOptions
from host.request import agent_identity
from host.tokens import job_token
from inference.wire.supervision import StartJob


def simulated_job(options: WorkerOptions, room: str, participant_identity: str, metadata: str) -> StartJob:
    """The job as a server would describe it. Raises ``ConfigError``."""
    if not room:
        raise ConfigError("a simulated job needs the name of a room")
    job = agent.Job(
        id=f"simulated-{secrets.token_hex(6)}",
        type=JOB_TYPES[options.worker_type],
        room=models.Room(name=room),
        metadata=metadata,
        agent_name=options.agent_name,
    )
    if participant_identity:
        job.participant.identity = participant_identity
    return StartJob(
        job_id=job.id,
        room=room,
        transport="local",
        job=job.SerializeToString(),
        identity=agent_identity(job.id),
        settings=options.session.to_json(),
    )


def locally(start: StartJob, waves: Sequence[str], out: str, record: str, line: str = "") -> StartJob:
    """In a room without a server: ``waves`` are the caller's turns, ``out`` and ``record`` files to write.

    With ``line`` (``unix:PATH``) the caller is another program (``host.job.room_line``).
    """
    return replace(start, transport="local", waves=tuple(waves), out=out, record=record, url=line)


def joining(start: StartJob, options: WorkerOptions) -> StartJob:
    """In a room of the LiveKit server, with a token of our own. Raises ``ConfigError``."""
    agent_endpoint(options.ws_url)
    if not (options.api_key and options.api_secret):
        raise ConfigError("LIVEKIT_API_KEY and LIVEKIT_API_SECRET are needed to join a room of a LiveKit server")
    token = job_token(options.api_key, options.api_secret, start.room, start.identity, permissions=options.permissions)
    return replace(start, transport="livekit", url=options.ws_url, token=token)
