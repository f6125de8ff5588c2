"""What is said, and why: the agent's side of the seam. It owns the history, and asks the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from host.job.asking import LanguageModel
from host.job.chat import ChatHistory
from host.job.dialogue import Source, UserState
from host.job.reply import AnsweredTurn, Reply
from host.job.room import AgentState
from host.job.transcripts import UserTranscript
from inference.wire.messages import ChatMessage
from inference.wire.supervision import TurnReport

logger = logging.getLogger(__name__)


class Answering:
    """A ``Dialogue``: every turn of the caller is answered by the model. ``report`` is called with each that is over."""

    def __init__(self, history: ChatHistory, model: LanguageModel, report: Callable[[TurnReport], None]) -> None:
        self._history = history
        self._model = model
        self._report = report
        self._tasks: asyncio.TaskGroup | None = None
        self._noted: tuple[Reply, str] | None = None
        self._transcript_callbacks: list[Callable[[UserTranscript], None]] = []

    def begin(self, tasks: asyncio.TaskGroup, greeting: str) -> None:
        """What every conversation begins with is read while the caller is greeted; what takes time is one of ``tasks``."""
        self._tasks = tasks
        self._model.prepare(tasks, *([ChatMessage("assistant", greeting)] if greeting else []))

    def add_transcript_callback(self, callback: Callable[[UserTranscript], None]) -> None:
        """Have ``callback`` called with each transcript of the caller."""
        self._transcript_callbacks.append(callback)

    # --- asked ----------------------------------------------------------------------------------------

    def prepare(self, ticket: int, text: str) -> None:
        """The caller may have finished with ``text``."""
        assert self._tasks is not None
        self._model.prepare(self._tasks, *([ChatMessage("user", text)] if text else []))

    def drop_preparation(self) -> None:
        """The caller goes on."""
        self._model.drop_preparation()

    def guess(self, ticket: int, text: str) -> Reply | None:
        """An answer cannot be begun before the turn is over."""
        return None

    def answer(self, turn: AnsweredTurn, guess: Reply | None = None) -> Reply:
        """The model's answer."""
        self._history.add_user(turn.text)
        return Reply(lambda: self._model.answer(turn), turn)

    def take_back(self, reply: Reply) -> None:
        """The caller goes on: nothing of ``reply`` was heard."""
        self._history.take_back_user()

    # --- told -----------------------------------------------------------------------------------------

    def begun(self, reply: Reply) -> None:
        """The first of ``reply`` was heard."""

    def heard(self, reply: Reply, *, over: bool) -> None:
        """What was heard of an attempt joins the history, once."""
        if self._noted != (reply, reply.said):
            self._noted = (reply, reply.said)
            self._history.add_assistant(reply.shown.strip())

    def resumed(self, reply: Reply) -> None:
        """The interruption was none."""

    def transcribed(self, transcript: UserTranscript) -> None:
        """What the caller said, or has said so far."""
        for callback in self._transcript_callbacks:
            try:
                callback(transcript)
            except Exception:
                logger.exception("a transcript callback failed")

    def state_changed(self, user: UserState, agent: AgentState) -> None:
        """At least one of them is another one than before."""

    def measured(self, report: TurnReport) -> None:
        """A turn is over."""
        self._report(report)

    def failed(self, source: Source, error: Exception) -> None:
        """Something failed."""

    # --- filters --------------------------------------------------------------------------------------

    def filter_transcript(self, text: str) -> str:
        """All of it."""
        return text

    def pronounce(self, text: str) -> str:
        """As it is written."""
        return text

    def filter_speech(self, pcm: bytes, sample_rate: int) -> bytes:
        """As it is spoken."""
        return pcm
