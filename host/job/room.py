"""What a conversation needs of a room, whatever carries it: a LiveKit room or a local one.

Audio is mono int16 little-endian PCM: the caller's at 16 kHz, the agent's at the rate given to
``open_speech``. Everything is called from the job's event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

AgentState = Literal["initializing", "listening", "thinking", "speaking"]
"""The values of the participant attribute ``lk.agent.state`` that LiveKit clients show."""

Side = Literal["user", "agent"]


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
        """Publish the text so far of one segment of speech, of either side (topic ``lk.transcription``)."""

    async def wait_closed(self) -> str:
        """Return the reason when the caller has left or the room has ended."""

    async def leave(self) -> None:
        """Leave and give everything back. Safe to call twice and before ``connect``."""
