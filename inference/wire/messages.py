"""What a job and the inference process say to each other. One connection carries one room.

Positions are samples since the room's ring was made: the *up clock* (caller's audio, 16 kHz) or the
*down clock* (agent's speech, at the sample rate of ``Welcome``). They never restart and never wrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inference.wire.tlv import Message, Struct, declare, message, tag

PROTOCOL_VERSION = 1
MAX_CHAT_CHARS = 200_000
MAX_PHRASE_CHARS = 2_000
MAX_GRAMMAR_CHARS = 20_000

Role = Literal["system", "user", "assistant", "tool"]
FailureCode = Literal["cancelled", "invalid", "overloaded", "engine", "too_long"]
CloseCode = Literal["version", "token", "protocol", "draining", "internal"]


# --- greeting -----------------------------------------------------------------------------------


@message(1)
@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Job → inference, first. ``token`` is the secret that the supervisor handed to both."""

    token: str = tag(1, maximum=128)
    name: str = tag(2, maximum=256)
    version: int = tag(3, default=PROTOCOL_VERSION)


@message(2)
@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Inference → job. ``speech_rate``: sample rate of the down ring, in Hz."""

    version: int = tag(1)
    device: str = tag(2)
    speech_rate: int = tag(3, minimum=8_000, maximum=96_000)
    context_tokens: int = tag(4, minimum=1)
    max_rooms: int = tag(5, minimum=1)
    stt_model: str = tag(6)
    llm_model: str = tag(7)
    tts_model: str = tag(8)


@message(3)
@dataclass(frozen=True, slots=True)
class Goodbye(Message):
    """Inference → job, last: why the connection ends."""

    code: CloseCode = tag(1)
    reason: str = tag(2)


# --- the room -----------------------------------------------------------------------------------


@message(10, descriptors=2)
@dataclass(frozen=True, slots=True)
class OpenRoom(Message):
    """Job → inference: take a slot. Travels with the sealed memfd of both rings and the doorbell eventfd."""

    room: str = tag(1, maximum=256)


@message(11)
@dataclass(frozen=True, slots=True)
class RoomOpened(Message):
    """Inference → job: the room has a slot (its KV cache, its voice-activity state)."""

    slot: int = tag(1, minimum=0)


@message(12)
@dataclass(frozen=True, slots=True)
class RoomRefused(Message):
    """Inference → job: no slot is free, or the shared memory is not acceptable. The job may try again."""

    reason: str = tag(1)


# --- voice activity -----------------------------------------------------------------------------


@message(20)
@dataclass(frozen=True, slots=True)
class Listen(Message):
    """Job → inference: start (or stop) voice activity detection on the up ring.

    ``activation``: speech probability at which speech starts (silence below ``activation - 0.15``).
    ``min_speech_ms``: speech shorter than this is not reported. ``pause_ms``: silence after which
    ``SpeechPaused`` is sent. ``min_silence_ms``: silence after which ``SpeechEnded`` is sent. ``start``:
    where detection begins (up clock), for a room that attaches again; -1 is with what comes from now on.
    """

    enabled: bool = tag(1)
    activation: float = tag(2, default=0.5, minimum=0.05, maximum=0.99)
    min_speech_ms: int = tag(3, default=64, minimum=0, maximum=5_000)
    pause_ms: int = tag(4, default=96, minimum=32, maximum=5_000)
    min_silence_ms: int = tag(5, default=256, minimum=32, maximum=10_000)
    start: int = tag(6, default=-1, minimum=-1)


@message(21)
@dataclass(frozen=True, slots=True)
class SpeechStarted(Message):
    """Inference → job: the caller speaks, since ``start`` (up clock)."""

    start: int = tag(1, minimum=0)


@message(22)
@dataclass(frozen=True, slots=True)
class SpeechPaused(Message):
    """Inference → job: silence since ``end`` (up clock); the caller may have finished."""

    start: int = tag(1, minimum=0)
    end: int = tag(2, minimum=0)


@message(23)
@dataclass(frozen=True, slots=True)
class SpeechResumed(Message):
    """Inference → job: the pause is over, the caller goes on at ``at`` (up clock)."""

    at: int = tag(1, minimum=0)


@message(24)
@dataclass(frozen=True, slots=True)
class SpeechEnded(Message):
    """Inference → job: speech from ``start`` to ``end`` (up clock, last voiced sample)."""

    start: int = tag(1, minimum=0)
    end: int = tag(2, minimum=0)


@message(25)
@dataclass(frozen=True, slots=True)
class AudioLost(Message):
    """Inference → job: the up ring was overwritten before it was read; detection goes on at ``resumed``."""

    lost_samples: int = tag(1, minimum=0)
    resumed: int = tag(2, minimum=0)


# --- requests -----------------------------------------------------------------------------------


@message(30)
@dataclass(frozen=True, slots=True)
class Transcribe(Message):
    """Job → inference: transcribe the up ring from ``start`` to ``end`` (up clock).

    ``speculative``: the caller may go on. ``partial``: the caller does; the text is only shown, and only
    spare time is for it.
    """

    request: int = tag(1, minimum=1)
    start: int = tag(2, minimum=0)
    end: int = tag(3, minimum=0)
    language: str = tag(4, default="", maximum=8)
    speculative: bool = tag(5, default=False)
    partial: bool = tag(6, default=False)


@message(31)
@dataclass(frozen=True, slots=True)
class Transcript(Message):
    """Inference → job, ends a ``Transcribe``. ``text`` is "" where no words were heard. ``stt_ms``: device time."""

    request: int = tag(1, minimum=1)
    text: str = tag(2)
    language: str = tag(3)
    avg_logprob: float = tag(4)
    no_speech_prob: float = tag(5)
    stt_ms: float = tag(6)


@declare
@dataclass(frozen=True, slots=True)
class ChatMessage(Struct):
    """One message of the conversation. A "tool" says what a tool returned; a model whose template has no such role
    reads it as the user's."""

    role: Role = tag(1)
    content: str = tag(2, maximum=MAX_CHAT_CHARS)


@message(40)
@dataclass(frozen=True, slots=True)
class Generate(Message):
    """Job → inference: answer ``messages`` (the whole conversation, oldest first).

    What the room's KV cache shares with it is not decoded again. ``temperature`` 0 is greedy.
    ``max_tokens`` 0: the prompt is only decoded into the KV cache, and ``GenerateDone`` says "length".
    ``speculative``: the answer may never be asked for, so it is worth spare time only. ``grammar`` (GBNF) or
    ``json_schema`` (its text): the answer obeys it; not both. With ``stop`` or too few ``max_tokens`` it may
    end before it is whole. ``end_of_turn``: say how likely it is that the last message, the user's, is complete, as
    soon as it is decoded.
    """

    request: int = tag(1, minimum=1)
    messages: tuple[ChatMessage, ...] = tag(2)
    max_tokens: int = tag(3, default=256, minimum=0, maximum=32_768)
    temperature: float = tag(4, default=0.7, minimum=0.0, maximum=5.0)
    top_p: float = tag(5, default=0.95, minimum=0.0, maximum=1.0)
    repeat_penalty: float = tag(6, default=1.0, minimum=0.5, maximum=2.0)
    seed: int = tag(7, default=-1)
    stop: tuple[str, ...] = tag(8, default=(), maximum=256)
    speculative: bool = tag(9, default=False)
    grammar: str = tag(10, default="", maximum=MAX_GRAMMAR_CHARS)
    json_schema: str = tag(11, default="", maximum=MAX_GRAMMAR_CHARS)
    end_of_turn: bool = tag(12, default=False)


@message(41)
@dataclass(frozen=True, slots=True)
class TextDelta(Message):
    """Inference → job: text that the model has just written."""

    request: int = tag(1, minimum=1)
    text: str = tag(2)


@message(42)
@dataclass(frozen=True, slots=True)
class GenerateDone(Message):
    """Inference → job, ends a ``Generate``. ``end_of_turn``: as in ``EndOfTurn``, when that was not sent; else -1."""

    request: int = tag(1, minimum=1)
    finish: Literal["stop", "length"] = tag(2)
    prompt_tokens: int = tag(3, minimum=0)
    cached_tokens: int = tag(4, minimum=0)
    completion_tokens: int = tag(5, minimum=0)
    end_of_turn: float = tag(6, default=-1.0, minimum=-1.0, maximum=1.0)


@message(43)
@dataclass(frozen=True, slots=True)
class EndOfTurn(Message):
    """Inference → job: how likely the user's last message is complete, before anything is written in answer to it."""

    request: int = tag(1, minimum=1)
    probability: float = tag(2, minimum=0.0, maximum=1.0)


@message(50)
@dataclass(frozen=True, slots=True)
class Speak(Message):
    """Job → inference: speak one phrase into the down ring, after the phrases asked for before it.

    ``speculative``: it may never be heard, so it is worth spare time only; a phrase that is not, behind it, promotes
    it. ``speaker``: of a voice with several, counted from 0; -1 is the voice's own choice.
    """

    request: int = tag(1, minimum=1)
    text: str = tag(2, maximum=MAX_PHRASE_CHARS)
    speed: float = tag(3, default=1.0, minimum=0.25, maximum=4.0)
    volume: float = tag(4, default=1.0, minimum=0.0, maximum=4.0)
    speculative: bool = tag(5, default=False)
    speaker: int = tag(6, default=-1, minimum=-1)


@message(51)
@dataclass(frozen=True, slots=True)
class SpeakStarted(Message):
    """Inference → job: the phrase's first sample is the one at ``start`` (down clock)."""

    request: int = tag(1, minimum=1)
    start: int = tag(2, minimum=0)


@message(52)
@dataclass(frozen=True, slots=True)
class SpeakDone(Message):
    """Inference → job, ends a ``Speak``: the phrase lies from ``start`` to ``end`` (down clock)."""

    request: int = tag(1, minimum=1)
    start: int = tag(2, minimum=0)
    end: int = tag(3, minimum=0)


@message(60)
@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """Job → inference: drop a request. It still ends, with its result or with ``RequestFailed("cancelled")``."""

    target: int = tag(1, minimum=1)


@message(61)
@dataclass(frozen=True, slots=True)
class RequestFailed(Message):
    """Inference → job, ends any request."""

    request: int = tag(1, minimum=1)
    code: FailureCode = tag(2)
    reason: str = tag(3)


@message(62)
@dataclass(frozen=True, slots=True)
class Promote(Message):
    """Job → inference: a request is not speculative any more; somebody waits for it. Nothing answers this."""

    target: int = tag(1, minimum=1)


# --- seeing it ----------------------------------------------------------------------------------


@message(70)
@dataclass(frozen=True, slots=True)
class GetStats(Message):
    """Job (or supervisor) → inference."""

    request: int = tag(1, minimum=1)


@message(71)
@dataclass(frozen=True, slots=True)
class Stats(Message):
    """Inference → asker. ``busy``: share of the device lane's time spent working since the last ask, 0 to 1."""

    request: int = tag(1, minimum=1)
    rooms: int = tag(2)
    max_rooms: int = tag(3)
    waiting_stt: int = tag(4)
    running_llm: int = tag(5)
    running_tts: int = tag(6)
    busy: float = tag(7)
