"""What the caller's client shows: transcripts of both sides and the agent's state, in order. Nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from host.job.room import AgentState, Room
from host.job.transcripts import UserTranscript
from host.job.turn import TurnTaking
from host.job.turn_events import State

_AGENT_STATES: dict[State, AgentState] = {
    State.LISTENING: "listening",
    State.USER_SPEAKING: "listening",
    State.ENDPOINTING: "listening",
    State.TRANSCRIBING: "listening",
    State.THINKING: "thinking",
    State.SPEAKING: "speaking",
    State.OVERLAP: "speaking",
    State.OVERLAP_PAUSED: "speaking",
    State.HELD: "listening",
}


def agent_state(turns: TurnTaking, *, is_silent: bool) -> AgentState:
    """What the agent does. ``is_silent``: nothing of what it says can be heard yet."""
    if turns.is_decided:
        return "thinking"
    state = _AGENT_STATES[turns.state]
    return "thinking" if is_silent and state == "speaking" else state


class Display:
    """``transcribed`` is told each transcript of the caller, too."""

    def __init__(self, room: Room, transcribed: Callable[[UserTranscript], None]) -> None:
        self._room = room
        self._transcribed = transcribed
        self._partial_segment = ""
        self._notes: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue()

    async def run(self) -> None:
        """Send notes until cancelled."""
        while True:
            await (await self._notes.get())

    def close(self) -> None:
        """What was not sent is not sent any more."""
        while not self._notes.empty():
            self._notes.get_nowait().close()

    def note(self, note: Coroutine[Any, Any, None]) -> None:
        """Send ``note`` after those before it."""
        self._notes.put_nowait(note)

    def agent_said(self, segment: str, text: str, *, final: bool) -> None:
        """All that was heard of ``segment`` so far."""
        self.note(self._room.publish_transcript("agent", segment, text, final=final))

    def user_said(self, turn: int, text: str, *, final: bool) -> None:
        """All that the caller has said in ``turn`` so far."""
        self._show(UserTranscript(f"user-{turn}", text, final))

    def withdraw_partial(self) -> None:
        """There were no words in what was taken for some."""
        if self._partial_segment:
            self._show(UserTranscript(self._partial_segment, "", final=True))

    def _show(self, transcript: UserTranscript) -> None:
        self._partial_segment = "" if transcript.final else transcript.segment
        self.note(self._room.publish_transcript("user", transcript.segment, transcript.text, final=transcript.final))
        self._transcribed(transcript)
