"""Replies on their way from who writes them to the voice: phrase by phrase, of a guess no more than may be needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from host.job.audio import Player, Utterance
from host.job.dialogue import Dialogue
from host.job.reply import Reply
from host.job.settings import SessionSettings
from host.job.speech import PhraseCutter, SpeakablePhrase


@dataclass(eq=False, slots=True)
class Guess:
    """An answer that was begun before its turn was over: ``ticket`` is that of ``AnswerAhead``. Times are monotonic.

    ``committed``: the turn is over, and this is its answer.
    """

    ticket: int
    reply: Reply
    asked: float
    first_text: float | None = None
    committed: asyncio.Event = field(default_factory=asyncio.Event)


async def write_and_speak(
    reply: Reply,
    utterance: Utterance,
    guess: Guess | None,
    player: Player,
    settings: SessionSettings,
    dialogue: Dialogue,
    now: Callable[[], float],
) -> None:
    """Ask for every phrase of ``reply`` as soon as it is written; of a guess for the first alone until it holds."""
    cutter = PhraseCutter(
        settings.first_phrase_chars, settings.phrase_chars, language=settings.language, before=reply.before
    )

    def speak(phrases: list[SpeakablePhrase]) -> None:
        for phrase in phrases:
            player.speak(
                utterance,
                phrase,
                speed=settings.speed,
                volume=settings.volume,
                speaker=settings.speaker,
                pronounced=dialogue.pronounce(phrase.spoken),
            )

    async with aclosing(reply.begin()) as pieces:
        async for text in pieces:
            if guess is not None and guess.first_text is None:
                guess.first_text = now()
            if reply.turn is not None and reply.turn.first_text is None:
                reply.turn.first_text = now()
            reply.text += text
            speak(cutter.push(text))
            if guess is not None and utterance.phrases:
                await guess.committed.wait()
    reply.complete = True
    speak(cutter.finish())
