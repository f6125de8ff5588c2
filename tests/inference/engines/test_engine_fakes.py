from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from inference.engines.base import (
    EngineError,
    EngineOptions,
    GenerationFailed,
    LanguageModelEngine,
    Message,
    Sampling,
    SpeechToTextEngine,
    TextToSpeechEngine,
    TokensOut,
    Transcription,
    TranscriptOut,
    Utterance,
    VoiceActivityEngine,
)
from inference.engines.fake import (
    FakeLanguageModel,
    FakeSpeechToText,
    FakeTextToSpeech,
    FakeVoiceActivity,
)

OPTIONS = EngineOptions(device="cpu", threads=1, max_rooms=2, context_tokens=320)
NOWHERE = Path("no-such-model")


def generate(model: LanguageModelEngine, limit: int = 500) -> dict[int, list[TokensOut | GenerationFailed]]:
    """Step until nothing runs; what every request got."""
    got: dict[int, list[TokensOut | GenerationFailed]] = {}
    for _ in range(limit):
        if not model.running():
            return got
        for out in model.step():
            got.setdefault(out.request, []).append(out)
    raise AssertionError(f"still running after {limit} steps: {model.running()}")


def text_of(outs: list[TokensOut | GenerationFailed]) -> str:
    return "".join(out.text for out in outs if isinstance(out, TokensOut))


def test_the_fakes_fit_the_protocols() -> None:
    vad: VoiceActivityEngine = FakeVoiceActivity()
    stt: SpeechToTextEngine = FakeSpeechToText()
    llm: LanguageModelEngine = FakeLanguageModel()
    tts: TextToSpeechEngine = FakeTextToSpeech()
    vad.load(OPTIONS)
    stt.load(NOWHERE, OPTIONS)
    llm.load(NOWHERE, OPTIONS)
    tts.load(NOWHERE, OPTIONS)
    for engine in (vad, stt, llm, tts):
        engine.close()


def test_loud_windows_are_speech_and_quiet_ones_are_not() -> None:
    vad = FakeVoiceActivity()
    vad.load(OPTIONS)
    windows = np.stack([np.full(512, 0.3, np.float32), np.zeros(512, np.float32)])
    loud, quiet = vad.probabilities([1, 0], windows)
    assert loud > 0.9
    assert quiet == 0.0
    assert vad.heard == [1, 1]
    vad.reset(1)
    assert vad.heard == [1, 0]


@pytest.mark.parametrize(("slots", "rows"), [([0], 2), ([0, 0], 2), ([2], 1), ([-1], 1)])
def test_the_fake_vad_refuses_what_the_real_one_refuses(slots: list[int], rows: int) -> None:
    vad = FakeVoiceActivity()
    vad.load(OPTIONS)
    with pytest.raises(EngineError):
        vad.probabilities(slots, np.zeros((rows, 512), np.float32))


def test_speech_to_text_says_how_long_it_heard_someone() -> None:
    stt = FakeSpeechToText(texts={8_000: "half a second"})
    tone = np.full(16_000, 0.1, np.float32)
    first, second, silent, bad = stt.transcribe(
        [Utterance(tone), Utterance(tone[:8_000], "de"), Utterance(np.zeros(99, np.float32)), Utterance(tone[:0])]
    )
    assert not isinstance(first, EngineError)
    assert not isinstance(second, EngineError)
    assert not isinstance(silent, EngineError)
    assert (first.text, first.language) == ("heard 1000 ms", "en")
    assert (second.text, second.language) == ("half a second", "de")
    assert silent.text == ""
    assert isinstance(bad, EngineError)


def test_speech_to_text_encodes_one_and_decodes_all() -> None:
    stt = FakeSpeechToText()
    tone = np.full(16_000, 0.1, np.float32)
    for request in (1, 2, 3):
        stt.start(request, Utterance(tone))
    with pytest.raises(EngineError, match="already running"):
        stt.start(1, Utterance(tone))
    with pytest.raises(EngineError, match="bad audio"):
        stt.start(4, Utterance(np.full(10, np.nan, np.float32)))
    assert stt.step([2, 1, 3]) == []
    assert [stt.next_step(request) for request in (1, 2, 3)] == ["encode", "decode", "encode"]
    with pytest.raises(EngineError, match="same next step"):
        stt.step([1, 2])
    stt.step([1])
    stt.cancel(3)
    stt.cancel(9)
    said = Transcription("heard 1000 ms", "en", -0.1, 0.0)
    assert stt.step([9, 1, 2]) == [TranscriptOut(1, said), TranscriptOut(2, said)]
    assert not stt.running()
    with pytest.raises(EngineError, match="no request 1"):
        stt.next_step(1)


def test_the_language_model_answers_one_word_a_step() -> None:
    llm = FakeLanguageModel()
    llm.load(NOWHERE, OPTIONS)
    llm.start(7, 0, [Message("user", "hello there")], Sampling())
    outs = generate(llm)[7]
    assert [out.text for out in outs if isinstance(out, TokensOut)] == ["You", " said:", " hello", " there"]
    assert outs[-1] == TokensOut(7, " there", "stop", prompt_tokens=3, cached_tokens=0, completion_tokens=4)


def test_a_slot_keeps_what_its_next_prompt_shares() -> None:
    llm = FakeLanguageModel(answer=lambda messages: "fine thanks")
    llm.load(NOWHERE, OPTIONS)
    history = [Message("user", "how are you")]
    llm.start(1, 0, history, Sampling())
    generate(llm)
    history += [Message("assistant", "fine thanks"), Message("user", "good")]
    llm.start(2, 0, history, Sampling())
    last = generate(llm)[2][-1]
    assert isinstance(last, TokensOut)
    assert (last.prompt_tokens, last.cached_tokens) == (9, 7)
    llm.release(0)
    llm.start(3, 0, history, Sampling())
    last = generate(llm)[3][-1]
    assert isinstance(last, TokensOut)
    assert last.cached_tokens == 0


def test_with_no_tokens_to_write_the_prompt_is_only_cached() -> None:
    llm = FakeLanguageModel()
    llm.load(NOWHERE, OPTIONS)
    history = [Message("user", "hello there")]
    llm.start(1, 0, history, Sampling(max_tokens=0))
    assert generate(llm)[1] == [TokensOut(1, "", "length", 3, 0, 0)]
    llm.start(2, 0, history, Sampling())
    assert generate(llm)[2][-1] == TokensOut(2, " there", "stop", 3, 2, 4)
    with pytest.raises(EngineError, match="max_tokens is -1"):
        llm.start(1, 0, history, Sampling(max_tokens=-1))


def test_long_prompts_take_several_steps_and_urgent_ones_go_alone() -> None:
    llm = FakeLanguageModel(prefill_chunk=4)
    llm.load(NOWHERE, OPTIONS)
    llm.start(1, 0, [Message("user", "a b c d e f g")], Sampling(max_tokens=2))
    llm.start(2, 1, [Message("user", "hi")], Sampling(max_tokens=2))
    assert [out.request for out in llm.step(urgent=frozenset({2}))] == [2]
    assert [out.request for out in llm.step(urgent=frozenset({1}))] == []
    assert [out.request for out in llm.step(urgent=frozenset({1}))] == [1]
    last = generate(llm)[1][-1]
    assert isinstance(last, TokensOut)
    assert last.finish == "length"


def test_one_poisoned_answer_fails_alone() -> None:
    def answer(messages: object) -> str:
        if "poison" in str(messages):
            raise EngineError("poisoned")
        return "fine"

    llm = FakeLanguageModel(answer=answer)
    llm.load(NOWHERE, OPTIONS)
    llm.start(1, 0, [Message("user", "poison")], Sampling(max_tokens=9))
    llm.start(2, 1, [Message("user", "hello")], Sampling(max_tokens=9))
    got = generate(llm)
    assert isinstance(got[1][-1], GenerationFailed)
    assert text_of(got[2]) == "fine"


def test_the_language_model_refuses_what_cannot_work() -> None:
    llm = FakeLanguageModel()
    llm.load(NOWHERE, OPTIONS)
    llm.start(1, 0, [Message("user", "hello")], Sampling(max_tokens=9))
    with pytest.raises(EngineError, match="request 1 is already running"):
        llm.start(1, 1, [Message("user", "hello")], Sampling(max_tokens=9))
    with pytest.raises(EngineError, match="slot 0 is already answering"):
        llm.start(2, 0, [Message("user", "hello")], Sampling(max_tokens=9))
    with pytest.raises(EngineError, match="slot 2 is not in"):
        llm.start(2, 2, [Message("user", "hello")], Sampling(max_tokens=9))
    with pytest.raises(EngineError, match="has 401 tokens, only 311 fit"):
        llm.start(2, 1, [Message("user", "word " * 400)], Sampling(max_tokens=9))
    llm.cancel(1)
    llm.cancel(99)
    assert llm.running() == frozenset()


def test_a_tone_is_as_long_as_the_words_and_comes_in_blocks() -> None:
    tts = FakeTextToSpeech(sample_rate=16_000, block_s=0.5)
    tts.start(1, "one two, three!")
    tts.start(2, "one two three", speed=2.0)
    tts.start(3, "... 😀")
    outs = []
    while tts.running():
        outs += tts.step(sorted(tts.running()))
    lengths = {request: sum(o.audio.size for o in outs if o.request == request) for request in (1, 2, 3)}
    assert lengths == {1: 14_400, 2: 7_200, 3: 0}
    assert [o.last for o in outs if o.request == 1] == [False, True]
    assert [o.last for o in outs if o.request == 3] == [True]
    assert tts.step([1]) == []


def test_a_quantum_takes_its_time() -> None:
    stt = FakeSpeechToText(cost_s=0.05)
    began = time.perf_counter()
    stt.transcribe([Utterance(np.ones(10, np.float32))])
    assert time.perf_counter() - began >= 0.05
