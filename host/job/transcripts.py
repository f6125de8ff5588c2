"""What the caller said: transcripts as the turns ask for them, and partial ones while the caller speaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from host.job import turn_events as t
from host.job.settings import SessionSettings
from host.job.turn_rules import SAMPLE_RATE
from host.job.user_turn import Unfinished
from inference.client import InferenceError, InferenceRoom, InferenceUnavailableError, Listening
from inference.wire.messages import Transcript

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""What is asked for so often, and the inference process went away each time, may be why it did."""
PARTIAL_EVERY = 1 * SAMPLE_RATE
"""Samples of speech between two partial transcripts."""
_NO_SPEECH_PROB, _NO_SPEECH_LOGPROB = 0.6, -1.0
"""Whisper's own rule for a transcript of no speech."""


@dataclass(frozen=True, slots=True)
class UserTranscript:
    """What the caller said (``final``), or has said so far. ``segment`` names the turn to the caller's client."""

    segment: str
    text: str
    final: bool


class Transcriptions:
    """The requests of one conversation.

    ``arrived`` is told the result of each that the turns asked for; ``partly`` the text of an unfinished turn.
    ``filter_transcript`` makes of what was transcribed what is taken for said.
    """

    def __init__(
        self,
        inference: InferenceRoom,
        settings: SessionSettings,
        arrived: Callable[[t.TranscriptArrived | t.TranscriptFailed], None],
        partly: Callable[[str], None],
        filter_transcript: Callable[[str], str] = lambda text: text,
    ) -> None:
        self._inference = inference
        self._filter = filter_transcript
        self._language = settings.language
        self._partial_transcripts = settings.partial_transcripts
        self._arrived = arrived
        self._partly = partly
        self._asked: dict[int, asyncio.Task[None]] = {}
        self._listening: dict[int, Listening] = {}
        self._needed: set[int] = set()
        self._partial: asyncio.Task[None] | None = None
        self._partial_end = 0

    def ask(self, ask: t.Transcribe, tasks: asyncio.TaskGroup) -> None:
        """Perform ``ask`` as one of ``tasks``."""
        self._asked[ask.ticket] = tasks.create_task(self._transcribe(ask), name=f"transcribe-{ask.ticket}")

    def promote(self, ticket: int) -> None:
        """Somebody waits for ``ticket``, which was asked for on speculation."""
        self._needed.add(ticket)
        if (listening := self._listening.get(ticket)) is not None:
            listening.promote()

    def configure(self, settings: SessionSettings) -> None:
        """Transcribe so from here on."""
        self._language = settings.language
        self._partial_transcripts = settings.partial_transcripts

    def drop(self, ticket: int) -> None:
        """Nobody waits for ``ticket`` any more."""
        if (dropped := self._asked.pop(ticket, None)) is not None:
            dropped.cancel()

    def follow(self, speech: Unfinished | None, tasks: asyncio.TaskGroup) -> None:
        """The caller speaks (None: does not): ask for a partial transcript where it is time, one at a time."""
        if not self._partial_transcripts:
            return
        if speech is None:
            # The transcript of the pause overtakes it.
            if self._partial is not None:
                self._partial.cancel()
                self._partial = None
        elif self._partial is None and speech.end - max(speech.start, self._partial_end) >= PARTIAL_EVERY:
            self._partial_end = speech.end
            self._partial = tasks.create_task(self._transcribe_partly(speech), name="transcribe-partly")

    async def _transcribe(self, ask: t.Transcribe) -> None:
        try:
            result = await self._transcript(ask)
        except InferenceError as exc:
            logger.log(logging.WARNING if ask.speculative else logging.ERROR, "transcription failed: %s", exc)
            self._arrived(t.TranscriptFailed(ask.ticket))
        else:
            self._arrived(t.TranscriptArrived(ask.ticket, self._filter(_words(result))))
        finally:
            self._asked.pop(ask.ticket, None)
            self._listening.pop(ask.ticket, None)
            self._needed.discard(ask.ticket)

    async def _transcript(self, ask: t.Transcribe) -> Transcript:
        """Asked for again when the inference process went away meanwhile: the audio is still there."""
        attempt = 1
        while True:
            await self._inference.wait_attached()
            try:
                speculative = ask.speculative and ask.ticket not in self._needed
                listening = self._inference.listen_to(
                    ask.start, ask.end, language=self._language, speculative=speculative
                )
                self._listening[ask.ticket] = listening
                return await listening.wait()
            except InferenceUnavailableError:
                if attempt == MAX_ATTEMPTS:
                    raise
                attempt += 1

    async def _transcribe_partly(self, speech: Unfinished) -> None:
        try:
            result = await self._inference.transcribe(speech.start, speech.end, language=self._language, partial=True)
        except InferenceError as exc:
            # The next one may come; the transcript of the turn does not depend on it.
            logger.debug("no partial transcript: %s", exc)
        else:
            if text := " ".join(part for part in (speech.said, self._filter(_words(result))) if part):
                self._partly(text)
        finally:
            if self._partial is asyncio.current_task():
                self._partial = None


def _words(result: Transcript) -> str:
    if result.no_speech_prob > _NO_SPEECH_PROB and result.avg_logprob < _NO_SPEECH_LOGPROB:
        return ""
    return result.text.strip()
