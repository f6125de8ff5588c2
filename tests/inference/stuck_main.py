"""The inference process with an engine that never returns: while it loads (``STUCK_AT=loading``), or at half a second
of speech."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from inference import main, runner
from inference.engines import fake
from inference.engines.base import EngineOptions, TranscriptFailed, TranscriptOut, Utterance
from inference.runner import Engines

LIMIT_S = 1.0


class StuckVoiceActivity(fake.FakeVoiceActivity):
    def load(self, options: EngineOptions) -> None:
        if os.environ.get("STUCK_AT") == "loading":
            time.sleep(3600)
        super().load(options)


class StuckSpeechToText(fake.FakeSpeechToText):
    def start(self, request: int, utterance: Utterance) -> None:
        super().start(request, utterance)
        self.sticks = len(utterance.audio) == 8_000

    def step(self, requests: Sequence[int]) -> list[TranscriptOut | TranscriptFailed]:
        if self.sticks:
            time.sleep(3600)
        return super().step(requests)


def make_engines(_kind: str) -> Engines:
    return Engines(StuckVoiceActivity(), StuckSpeechToText(), fake.FakeLanguageModel(), fake.FakeTextToSpeech())


if __name__ == "__main__":
    main.make_engines = make_engines
    runner._STUCK_S = LIMIT_S
    sys.exit(main.main())
