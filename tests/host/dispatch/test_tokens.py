"""Our tokens against those of livekit.api, which the server's own makers write."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import jwt
from livekit.api import AccessToken, TokenVerifier, VideoGrants

from host.options import WorkerPermissions
from host.tokens import job_token, registration_token

KEY, SECRET = "key", "a-secret-of-at-least-thirty-two-characters"


def claims(token: str) -> dict[str, Any]:
    """What a token says, with its times as how long it is good for."""
    decoded: dict[str, Any] = jwt.decode(token, SECRET, algorithms=["HS256"])
    decoded["good_for_s"] = decoded.pop("exp") - decoded.pop("nbf")
    return decoded


def test_a_worker_registers_with_the_grants_of_an_agent() -> None:
    theirs = AccessToken(KEY, SECRET).with_grants(VideoGrants(agent=True)).with_ttl(timedelta(hours=1)).to_jwt()
    ours = registration_token(KEY, SECRET)
    assert claims(ours) == claims(theirs)
    assert jwt.get_unverified_header(ours) == jwt.get_unverified_header(theirs)
    assert TokenVerifier(KEY, SECRET).verify(ours) == TokenVerifier(KEY, SECRET).verify(theirs)


def test_an_agent_joins_with_what_it_is_permitted() -> None:
    permissions = WorkerPermissions(
        can_publish_data=False, can_update_metadata=False, can_publish_sources=("MICROPHONE",), hidden=True
    )
    ours = job_token(KEY, SECRET, "lobby", "ann", permissions=permissions)
    grants = VideoGrants(
        room_join=True,
        room="lobby",
        agent=True,
        can_publish=True,
        can_subscribe=True,
        can_publish_data=False,
        can_publish_sources=["microphone"],
        can_update_own_metadata=False,
        hidden=True,
    )
    theirs = (
        AccessToken(KEY, SECRET)
        .with_grants(grants)
        .with_kind("agent")
        .with_identity("ann")
        .with_ttl(timedelta(hours=1))
        .to_jwt()
    )
    assert claims(ours) == claims(theirs)


def test_the_least_that_joins_a_room() -> None:
    ours = claims(job_token(KEY, SECRET, "lobby", "ann", permissions=WorkerPermissions()))
    grants = VideoGrants(room_join=True, room="lobby", agent=True, can_update_own_metadata=True, hidden=False)
    token = AccessToken(KEY, SECRET).with_grants(grants).with_kind("agent").with_identity("ann")
    assert ours == claims(token.with_ttl(timedelta(hours=1)).to_jwt())
