"""The inference process with fake engines that take their time, so that a test can meet it at work."""

from __future__ import annotations

import sys

from inference import main
from inference.engines import fake
from inference.runner import Engines

TRANSCRIPTION_S = 0.8
TOKEN_S = 0.1
SPEECH_BLOCK_S = 0.02


def make_engines(kind: str) -> Engines:
    return Engines(
        fake.FakeVoiceActivity(),
        fake.FakeSpeechToText(cost_s=TRANSCRIPTION_S),
        fake.FakeLanguageModel(cost_s=TOKEN_S),
        fake.FakeTextToSpeech(cost_s=SPEECH_BLOCK_S),
    )


if __name__ == "__main__":
    main.make_engines = make_engines
    sys.exit(main.main())
