"""What Whisper's answers say, and what is tried next: the searches of one utterance, one after the other.

An utterance is a row of pieces, each short enough for a window. A piece is searched greedily; a text
Whisper is unsure of is searched again with a beam, and one that looks wrong is made again in the full
window (where faster-whisper would draw at random, with rising temperature). Loud audio after the last
timestamp was left out and is one more piece. A draft is searched greedily, once.

Needs no model: ``Transcribing`` says what to encode and how to search, and is told what was found.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import SAMPLE_RATE, Audio, SttStep, Transcription, Utterance
from inference.engines.whisper_audio import (
    FULL_WINDOW_S,
    is_audible,
    loud_seconds,
    loudness,
    split_at_pauses,
    window_s,
)

RETRY_BEAM: Final = 5
"""Width of the search after a greedy one whose text is unsure or looks wrong."""

UNSURE_LOGPROB: Final = -0.6
"""Greedy texts below this are searched again. Searching every text with a beam would save hardly one error more."""

LEFT_OUT_S: Final = 1.2
"""Loud audio after the last timestamp that is more than a timestamp set too early (up to 1 s in noise)."""

SLOWEST_TOKENS_PER_S: Final = 2.0
"""Fewer tokens than this in a second of loud audio (people: 3 to 5) mean that a sentence may have been skipped."""

TOKENS_PER_SECOND: Final = 8.0
"""About twice what people speak: a text that wants more is looping, or in a script that is spelled in bytes."""

SPARE_TOKENS: Final = 16

MAX_TOKENS: Final = 224
"""Half of Whisper's text context: its own limit for one window."""

SILENCE_LOGPROB: Final = -0.6
"""Texts below this, if Whisper doubts that anyone spoke, were made up of noise. (OpenAI's -1.0 is for text without
timestamps, which are easy to guess and raise the mean. 8 of 60 clips of noise came out as "Thank you." with it.)"""

# The thresholds below are those of OpenAI's transcribe() and of faster-whisper.
NO_SPEECH_THRESHOLD: Final = 0.6
LOGPROB_THRESHOLD: Final = -1.0
COMPRESSION_THRESHOLD: Final = 2.4

LOOP_NGRAM: Final = 4
"""A loop that survives the full window is broken by force; whoever really said the same four tokens again and again
loses some of them."""

TIMESTAMP_S: Final = 0.02
"""Between two of Whisper's timestamp tokens."""


@dataclass(frozen=True, slots=True)
class Text:
    """What one search found. ``logprob``: mean over the tokens; ``no_speech``: probability that nobody spoke.

    ``tokens``: of the words, without timestamps; ``length``: with them. ``end_s``: where the last sentence
    ends, in seconds of the piece, or None if Whisper did not say.
    """

    tokens: list[int]
    text: str
    logprob: float
    no_speech: float
    length: int = 0
    end_s: float | None = None

    def is_silence(self) -> bool:
        """Whisper itself doubts that anyone spoke, and is unsure of the words."""
        return self.no_speech > NO_SPEECH_THRESHOLD and self.logprob < SILENCE_LOGPROB

    def loops(self) -> bool:
        """The text repeats itself far beyond what people say."""
        data = self.text.encode()
        return bool(data) and (
            len(data) / len(zlib.compress(data)) > COMPRESSION_THRESHOLD or ends_in_loop(self.tokens)
        )


NOTHING: Final = Text([], "", logprob=0.0, no_speech=1.0)


@dataclass(frozen=True, slots=True)
class Search:
    """One way to look at a piece. ``window_s``: of the encoder; ``budget``: most tokens; ``no_repeat``: of n-grams."""

    window_s: float
    budget: int
    beam: int = 1
    no_repeat: int = 0


class Piece:
    """A stretch of an utterance that fits a window, the best that was found in it, and how to look next.

    ``search``: the next one, None when the piece is done. ``encoded``: the encoder's output for it, shape
    (1, frames, width), None until there is one.
    """

    def __init__(self, audio: Audio, *, draft: bool = False) -> None:
        self.audio = audio
        self.seconds = len(audio) / SAMPLE_RATE
        self.draft = draft
        self.found = NOTHING
        self.encoded: NDArray[np.generic] | None = None
        budget = min(MAX_TOKENS, round(self.seconds * TOKENS_PER_SECOND) + SPARE_TOKENS)
        self.search: Search | None = Search(window_s(self.seconds), budget) if is_audible(audio) else None

    def learn(self, text: Text) -> None:
        """Take what ``search`` found and choose the next one."""
        search = self.search
        assert search is not None
        self.search = self._next(search, text)
        if self.search is None or self.search.window_s != search.window_s:
            self.encoded = None

    def _next(self, search: Search, text: Text) -> Search | None:
        if search.no_repeat:
            self.found = text
            return None
        if search.window_s == FULL_WINDOW_S and search.beam > 1:
            if self._skips() and len(text.tokens) < len(self.found.tokens):
                return None
            self.found = text
            return replace(search, no_repeat=LOOP_NGRAM) if text.loops() else None
        if search.beam == 1:
            self.found = text
            if self.draft:
                return None
            if text.logprob < UNSURE_LOGPROB and not text.is_silence():
                return replace(search, beam=RETRY_BEAM)
        elif text.logprob > self.found.logprob:
            self.found = text
        return Search(FULL_WINDOW_S, MAX_TOKENS, RETRY_BEAM) if self._doubtful(search.budget) else None

    def left_out(self) -> Piece | None:
        """The end of the audio, if something was said there that is not in the text."""
        if self.draft or not self.found.text or self.found.end_s is None:
            return None
        rest = self.audio[round(self.found.end_s * SAMPLE_RATE) :]
        if len(rest) == len(self.audio) or loud_seconds(rest, loudness(self.audio)) < LEFT_OUT_S:
            return None
        return Piece(rest)

    def _skips(self) -> bool:
        """Whether the text is too short for so much loud audio."""
        loud = loud_seconds(self.audio, loudness(self.audio))
        return loud > 4.0 and len(self.found.tokens) < SLOWEST_TOKENS_PER_S * loud

    def _doubtful(self, budget: int) -> bool:
        """Whether the text is worth a second, slower look."""
        found = self.found
        if found.is_silence():
            return False
        return (
            found.length >= budget
            or found.logprob < LOGPROB_THRESHOLD
            or (not found.text and found.no_speech < NO_SPEECH_THRESHOLD)
            or is_repetition(found.text)
            or found.loops()
            or self._skips()
        )


class Transcribing:
    """One utterance on its way to a text. ``language``: "" until it is known."""

    def __init__(self, request: int, utterance: Utterance) -> None:
        self.request = request
        self.language = utterance.language
        self._utterance = utterance
        self._waiting: list[Piece] | None = None
        self._done: list[Piece] = []

    def piece(self) -> Piece | None:
        """The piece that is to be worked on, None when there is none left. Cuts the audio when it is first asked."""
        if self._waiting is None:
            audio = np.clip(self._utterance.audio, -1.0, 1.0)
            self._waiting = [Piece(part, draft=self._utterance.draft) for part in split_at_pauses(audio)]
        while self._waiting and self._waiting[0].search is None:
            piece = self._waiting.pop(0)
            self._done.append(piece)
            rest = piece.left_out()
            if rest is not None:
                self._waiting.insert(0, rest)
        return self._waiting[0] if self._waiting else None

    def next_step(self) -> SttStep:
        """What is to be done next; audio that nobody has looked at yet is to be encoded."""
        piece = self.piece() if self._waiting is not None else None
        return "encode" if piece is None or piece.encoded is None else "decode"

    def result(self) -> Transcription:
        """The texts of all pieces."""
        heard = [piece for piece in self._done if piece.found.text and not piece.found.is_silence()]
        best = heard or self._done
        tokens = sum(len(piece.found.tokens) for piece in heard)
        total = sum(piece.found.logprob * len(piece.found.tokens) for piece in heard)
        return Transcription(
            text=" ".join(piece.found.text for piece in heard),
            language=self.language,
            avg_logprob=total / tokens if tokens else best[0].found.logprob,
            no_speech_prob=min(piece.found.no_speech for piece in best),
        )


def spoken(tokens: Sequence[int], timestamp_begin: int, seconds: float) -> tuple[list[int], float | None]:
    """The words of the sentences that begin within ``seconds``, and when the last of them ends (None: not said).

    ``tokens`` is Whisper's ``<|0.00|> words <|2.40|><|2.40|> words <|3.10|>``, with ids from ``timestamp_begin``.
    """
    words: list[int] = []
    sentence: list[int] = []
    start_s, end_s = 0.0, None
    for token in tokens:
        if token < timestamp_begin:
            sentence.append(token)
            continue
        at_s = (token - timestamp_begin) * TIMESTAMP_S
        if sentence:
            if start_s < seconds:
                words += sentence
                end_s = at_s
            sentence = []
        start_s = at_s
    if sentence and start_s < seconds:
        words += sentence
        end_s = None
    return words, end_s


def is_repetition(text: str) -> bool:
    """Whether ``text`` is one passage said two or more times, whatever its case and punctuation."""
    letters = "".join(char for char in text.casefold() if char.isalnum())
    return re.fullmatch(r"(.{2,}?)\1+", letters) is not None


def ends_in_loop(tokens: Sequence[int], longest: int = 8, times: int = 4) -> bool:
    """Whether ``tokens`` end in at most ``longest`` tokens said ``times`` times in a row."""
    for period in range(1, longest + 1):
        tail = list(tokens[-period * times :])
        if len(tail) == period * times and tail == tail[:period] * times:
            return True
    return False
