"""The inference process with fake engines that cost what a small CPU's do, and that some requests poison."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from inference import main
from inference.engines import fake
from inference.engines.base import Message, SpeechFailed, SpeechOut
from inference.runner import Engines

ENCODE_S = DECODE_S = 0.075
TOKEN_S = 0.008
SPEECH_BLOCK_S = 0.03
POISON = "poison"


def answer(messages: Sequence[Message]) -> str:
    if POISON in messages[-1].content:
        raise RuntimeError("a library's own error")
    return fake.echo(messages)


class PoisonedVoice(fake.FakeTextToSpeech):
    """Fails as a whole, as a library would, when one text of its batch is poison."""

    def __init__(self) -> None:
        super().__init__(cost_s=SPEECH_BLOCK_S)
        self._poisoned: set[int] = set()

    def start(self, request: int, text: str, speed: float = 1.0, volume: float = 1.0, speaker: int = -1) -> None:
        super().start(request, text, speed, volume, speaker)
        if POISON in text:
            self._poisoned.add(request)

    def step(self, requests: Sequence[int]) -> list[SpeechOut | SpeechFailed]:
        if self._poisoned & set(requests):
            raise RuntimeError("a library's own error")
        return super().step(requests)

    def cancel(self, request: int) -> None:
        super().cancel(request)
        self._poisoned.discard(request)


def make_engines(kind: str) -> Engines:
    return Engines(
        fake.FakeVoiceActivity(),
        fake.FakeSpeechToText(cost_s=DECODE_S, encode_cost_s=ENCODE_S),
        fake.FakeLanguageModel(answer, cost_s=TOKEN_S),
        PoisonedVoice(),
    )


if __name__ == "__main__":
    main.make_engines = make_engines
    sys.exit(main.main())
