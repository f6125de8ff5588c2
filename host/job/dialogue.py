"""The seam between the agent and the conversation it is in.

    VoiceSession, Answering  ── Outlet ──>    Conversation (in sound), or one in writing
      (agent, history,       <── Dialogue ──    (whose turn it is, what is heard)
       model, tools)

A ``Dialogue`` knows what is said and why, an ``Outlet`` when, and how much of it was heard. What they hand
each other is a ``Reply``: one thing that the agent says. All of it is called from the job's event loop; what
does not return a coroutine does not block.
"""

from __future__ import annotations

from typing import Literal, Protocol

from host.job.reply import AnsweredTurn, Reply
from host.job.room import AgentState
from host.job.settings import SessionSettings
from host.job.transcripts import UserTranscript
from inference.wire.supervision import TurnReport

UserState = Literal["speaking", "listening", "away"]
"""What the caller does; "away" is neither heard nor spoken to for a while."""

Source = Literal["stt", "llm", "tts", "inference"]
"""What failed."""


class Dialogue(Protocol):
    """The agent's side: what the conversation asks it, and tells it."""

    # --- asked ---

    def prepare(self, ticket: int, text: str) -> None:
        """The caller may have finished with ``text`` ("" is nothing yet): the model reads it beforehand.

        ``Outlet.end_of_turn`` is called with ``ticket`` (not with 0) when the model has said how likely it is that this
        was all, unless ``drop_preparation`` comes first.
        """

    def drop_preparation(self) -> None:
        """The caller goes on: what was prepared, or guessed, is of no use."""

    def guess(self, ticket: int, text: str) -> Reply | None:
        """An answer to what may be all: it may be written and spoken into the ring, and nobody may hear it yet.

        It is ``prepare`` besides. None where an answer cannot be begun before the turn is over. Nothing is committed:
        no history, no hook, no tool; it waits where it would need that. ``drop_preparation`` ends it; who speaks it
        stops first.
        """

    def answer(self, turn: AnsweredTurn, guess: Reply | None = None) -> Reply:
        """The caller's turn is over: what is said to it. Its text joins the history.

        ``guess`` is returned as the reply, and goes on, where it still holds; else it was in vain, and its writing
        has ended when this returns (its speaker cancels what was spoken of it).
        """

    def take_back(self, reply: Reply) -> None:
        """The caller goes on: ``reply``, of which nothing was heard, and the turn that it answers are taken back."""

    # --- told ---

    def begun(self, reply: Reply) -> None:
        """The first of ``reply`` was heard: it, and the turn that it answers, stay."""

    def heard(self, reply: Reply, *, over: bool) -> None:
        """``reply.shown`` is what was heard of this attempt, which has ended; ``over``: nothing more comes.

        It may be called again for the same attempt, with ``over``, when it is clear that it is not resumed.
        """

    def resumed(self, reply: Reply) -> None:
        """The interruption was none: ``reply`` is gone on with."""

    def transcribed(self, transcript: UserTranscript) -> None:
        """What the caller said, or has said so far."""

    def state_changed(self, user: UserState, agent: AgentState) -> None:
        """At least one of them is another one than before."""

    def measured(self, report: TurnReport) -> None:
        """A turn is over."""

    def failed(self, source: Source, error: Exception) -> None:
        """Something failed; the conversation goes on as well as it can."""

    # --- filters ---

    def filter_transcript(self, text: str) -> str:
        """What is taken for said, of what was transcribed of the caller; "" is nothing."""

    def pronounce(self, text: str) -> str:
        """What the voice is given for a phrase; what is shown stays."""

    def filter_speech(self, pcm: bytes, sample_rate: int) -> bytes:
        """What is played of a block of speech (mono int16), as many samples."""


class Outlet(Protocol):
    """The conversation's side, as the agent's uses it."""

    def say(self, reply: Reply, *, interrupt: bool = False) -> None:
        """Queue ``reply``; it begins when the agent may speak. ``interrupt``: at once, after silence."""

    def interrupt(self, *, force: bool = False) -> bool:
        """Silence: what is being said, or thought about, is over. False where that may not be interrupted.

        ``force``: also that. What is queued stays so, and begins next.
        """

    def withdraw(self, reply: Reply) -> bool:
        """``reply`` is over if it has not begun, or was interrupted and may be resumed; False: it is being said."""

    def keep(self, reply: Reply) -> None:
        """What is being done for ``reply`` cannot be undone: it, and the turn that it answers, stay.

        The caller who goes on interrupts it, and begins a turn of its own. (As if the first of it had been heard.)
        """

    def end_of_turn(self, ticket: int, probability: float) -> None:
        """So likely is what ``Dialogue.prepare`` was given with ``ticket`` all that the caller says.

        0 to 1, or -1, which is not known.
        """

    def commit_user_turn(self) -> None:
        """The caller's turn is over, whatever the pause."""

    def clear_user_turn(self) -> None:
        """What the caller has said and was not answered yet is forgotten."""

    def configure(self, settings: SessionSettings) -> None:
        """Hold the conversation so from here on: language, voice, turn taking."""

    async def run(self) -> None:
        """Hold the conversation until ``aclose``. Raises the ``InferenceError`` that ended it."""

    async def aclose(self) -> None:
        """End the conversation: silence. Every reply is over when this returns."""
