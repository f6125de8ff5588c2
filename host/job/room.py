"""What a conversation needs of a room, whatever carries it: a LiveKit room or a local one.

Audio is mono int16 little-endian PCM: the caller's at 16 kHz, the agent's at the rate given to
``open_speech``. Everything is called from the job's event loop.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Literal, Protocol

from inference.wire.supervision import TurnReport

AgentState = Literal["initializing", "listening", "thinking", "speaking"]
"""The values of the participant attribute ``lk.agent.state`` that LiveKit clients show."""

Side = Literal["user", "agent"]

TOPIC_METRICS = "roomful.metrics"
"""Topic of the data messages with what was measured of each turn."""
_NOT_IN_METRICS = frozenset({"job_id", "out_start_s", "out_end_s"})


class RoomEndedError(ConnectionError):
    """The room ended before the conversation began. An end like any other, not a failure of the job."""


class LocalParticipant(Protocol):
    """The agent as a participant: in a LiveKit room ``livekit.rtc.LocalParticipant``, with all that it can do."""

    @property
    def identity(self) -> str:
        """Who the agent is in the room."""


class Room(Protocol):
    """One room, one caller, one agent."""

    @property
    def name(self) -> str:
        """The room's name."""

    @property
    def local_participant(self) -> LocalParticipant:
        """The agent. Raises ``ConnectionError`` before the room was joined."""

    async def connect(self) -> None:
        """Join. Raises ``ConnectionError`` naming the room and the reason."""

    async def wait_for_participant(self, identity: str = "") -> str:
        """Wait for the caller (the first non-agent participant, or ``identity``) and return the identity.

        Raises ``RoomEndedError``.
        """

    async def open_speech(self, sample_rate: int) -> None:
        """Publish the agent's audio track; ``play`` takes PCM at ``sample_rate`` from now on."""

    def caller_audio(self) -> AsyncIterator[bytes]:
        """The caller's audio at 16 kHz in blocks of 10 to 60 ms, in real time, until the caller leaves.

        While the caller has no track or is muted nothing comes.
        """

    def text_input(self) -> AsyncIterator[str]:
        """What the caller types (``lk.chat``), message by message, until the caller leaves. For one reader."""

    async def play(self, pcm: bytes) -> None:
        """Queue the agent's speech. Returns when at most ~200 ms wait to be heard: this paces the player."""

    def clear(self) -> None:
        """Silence now: drop what is queued and not heard yet."""

    def heard_samples(self) -> int:
        """How many samples given to ``play`` have been heard so far (dropped ones do not count)."""

    async def wait_for_playout(self) -> None:
        """Return when everything queued has been heard."""

    async def set_agent_state(self, state: AgentState) -> None:
        """Show the caller's client what the agent does."""

    async def publish_transcript(self, side: Side, segment: str, text: str, *, final: bool) -> None:
        """Publish the text so far of one segment of speech, of either side (topic ``lk.transcription``).

        ``text`` is always the whole text of the segment. Of the agent's it is what was heard.
        """

    async def publish_metrics(self, report: TurnReport) -> None:
        """Send ``metrics_message`` of a turn to everybody in the room, topic ``roomful.metrics``."""

    async def wait_closed(self) -> str:
        """Return the reason when the caller has left or the room has ended."""

    async def leave(self) -> None:
        """Leave and give everything back. Safe to call twice and before ``connect``."""


def metrics_message(report: TurnReport) -> str:
    """What was measured of a turn, as JSON: the numbers of ``TurnReport``, null where it did not come to that.

    The words are in the transcripts.
    """
    measured = {
        field.name: value
        for field in dataclasses.fields(report)
        if field.name not in _NOT_IN_METRICS and not isinstance(value := getattr(report, field.name), str)
    }
    return json.dumps({name: _rounded(value) for name, value in measured.items()})


def _rounded(value: object) -> object:
    """Without digits that nothing here is measured to."""
    if not isinstance(value, float):
        return value
    return round(value, 4) if value >= 0 else None
