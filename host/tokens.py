"""Access tokens of a LiveKit server, as ``livekit.api.AccessToken`` makes them.

That package is not used for it because importing it costs the supervisor more than the tokens are worth.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import jwt

from host.options import WorkerPermissions

_REGISTRATION_TTL_S = 3600
_JOB_TTL_S = 3600
"""As the server's own tokens for agents: it is only needed to join."""


def registration_token(api_key: str, api_secret: str) -> str:
    """What a worker registers with."""
    return _signed(api_key, api_secret, {"video": {"agent": True, **_ANYTHING}}, "", _REGISTRATION_TTL_S)


def job_token(api_key: str, api_secret: str, room: str, identity: str, *, permissions: WorkerPermissions) -> str:
    """What an agent joins ``room`` with when no server has assigned it: the grants that it would have had."""
    video: dict[str, Any] = {
        "roomJoin": True,
        "room": room,
        "canPublish": permissions.can_publish,
        "canSubscribe": permissions.can_subscribe,
        "canPublishData": permissions.can_publish_data,
        "canUpdateOwnMetadata": permissions.can_update_metadata,
        "hidden": permissions.hidden,
        "agent": True,
    }
    if permissions.can_publish_sources:
        video["canPublishSources"] = [source.lower() for source in permissions.can_publish_sources]
    return _signed(api_key, api_secret, {"kind": "agent", "video": video}, identity, _JOB_TTL_S)


def caller_token(api_key: str, api_secret: str, room: str, identity: str) -> str:
    """What a caller joins ``room`` with: a person's token."""
    video = {"roomJoin": True, "room": room, **_ANYTHING}
    return _signed(api_key, api_secret, {"video": video}, identity, _JOB_TTL_S)


_ANYTHING = {"canPublish": True, "canSubscribe": True, "canPublishData": True}
"""The defaults of ``livekit.api.VideoGrants``, which it writes out."""


def _signed(api_key: str, api_secret: str, claims: Mapping[str, Any], identity: str, ttl_s: int) -> str:
    now = int(time.time())
    signed = {**claims, "sub": identity, "iss": api_key, "nbf": now, "exp": now + ttl_s}
    with warnings.catch_warnings():
        # How long the secret is was decided where the server was set up; that of its development mode is short.
        warnings.simplefilter("ignore")
        return jwt.encode(signed, api_secret, algorithm="HS256")
