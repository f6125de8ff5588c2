"""Callers and jobs for the tests: who calls, and what is asked of which agent."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from caller import Caller, call
from livekit import api
from livekit_server import LiveKitServer


def caller_in(livekit: LiveKitServer, room: str, identity: str = "caller") -> AbstractAsyncContextManager[Caller]:
    return call(livekit.url, livekit.token(room, identity))


async def dispatch(livekit: LiveKitServer, room: str, metadata: str = "", agent: str = "tone") -> str:
    """Ask for the agent; returns the dispatch's id. A room that is not there is made."""
    async with livekit.api() as server:
        return await dispatch_by(server, room, metadata, agent)


async def dispatch_by(server: api.LiveKitAPI, room: str, metadata: str, agent: str) -> str:
    """The same on a connection that is there, for many."""
    request = api.CreateAgentDispatchRequest(agent_name=agent, room=room, metadata=metadata)
    return (await server.agent_dispatch.create_dispatch(request)).id
