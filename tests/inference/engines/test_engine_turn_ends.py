"""Whether a caller has finished, read from what the real model expects after the last word."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from inference.engines import turn_end_examples
from inference.engines.base import EngineError, EngineOptions, GenerationFailed, Message, Sampling, TokensOut
from inference.engines.llm import LlamaLanguageModel
from inference.engines.turn_end_examples import EXAMPLES, cut_points
from inference.engines.turn_ends import TurnEnds, calibrate, end_of_words, log_odds_of_ending, separation
from inference.engines.vocabulary import Vocabulary

SYSTEM = Message("system", "You are a friendly voice assistant. Answer in one short sentence.")
PREFILL = Sampling(max_tokens=0)
GREEDY = Sampling(temperature=0.0, max_tokens=8)

# None of them is one of the examples that the engine is calibrated with.
COMPLETE = (
    "I want to cancel my subscription",
    "How long does the delivery take",
    "My flight was delayed by three hours",
    "Could you repeat the last part",
    "The door to the office was locked",
    "Is there a doctor in the village",
    "I bought a new car last week",
    "Which platform does the train leave from",
)
CUT = (
    "I want to cancel my",
    "How long does the",
    "My flight was delayed by",
    "Could you repeat the",
    "The door to the",
    "Is there a doctor in the",
    "I bought a new",
    "Which platform does the train",
)


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("...", ""),
        ("yes", "yes"),
        ("Yes.", "Yes"),
        ("so what?!  ", "so what"),
        ("to my-", "to my"),
        ('he said "no."', 'he said "no'),
    ],
)
def test_what_stands_behind_the_last_word_does_not_count(text: str, words: str) -> None:
    assert text[: end_of_words(text)] == words


def test_an_examples_cuts() -> None:
    assert cut_points("I | am | here") == ("I am here", (1, 4, 9))


def test_every_example_is_cut_inside() -> None:
    for example in EXAMPLES:
        text, cuts = cut_points(example)
        assert len(cuts) >= 2, text
        assert cuts[-1] == len(text) == end_of_words(text)
        assert all(text[at] == " " for at in cuts[:-1])
        assert "  " not in text


def test_the_mass_of_the_tokens_that_end_a_message() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32)) + 7
    assert log_odds_of_ending(logits, np.array([0, 3])) == pytest.approx(0.0, abs=1e-6)
    assert log_odds_of_ending(logits, np.array([0])) == pytest.approx(math.log(1 / 9), abs=1e-6)
    certain = log_odds_of_ending(np.array([0.0, -400.0], np.float32), np.array([1]))
    assert math.isfinite(certain)
    assert certain < -20


def test_separation_is_the_area_under_the_curve() -> None:
    assert separation([1.0, 2.0], [0.0, -1.0]) == 1.0
    assert separation([0.0], [0.0]) == 0.5
    assert separation([1.0, 3.0], [2.0, 2.0]) == 0.5


def test_what_a_models_mass_means_is_learned() -> None:
    """A model that is sure of every end and one that never is: both say about a half between their two kinds."""
    for middle in (-6.0, 1.0):
        fitted = calibrate([middle + 1 + 0.2 * n for n in range(20)], [middle - 1 - 0.2 * n for n in range(40)])
        assert fitted is not None
        assert fitted.slope > 0
        assert fitted.separation == 1.0
        assert 0.4 < fitted.probability(middle) < 0.6
        assert fitted.probability(middle + 3) > 0.9
        assert fitted.probability(middle - 3) < 0.1
        assert 0.0 < fitted.probability(-1e9) < fitted.probability(1e9) < 1.0


def test_a_model_that_does_not_know_says_nothing() -> None:
    assert calibrate([0.0, 1.0, 2.0], [0.0, 1.0, 2.0]) is None
    assert calibrate([1.0], [0.0, -1.0]) is None
    ends = TurnEnds([1])
    assert ends.probability(np.zeros(4, np.float32)) == -1.0
    ends.calibration = calibrate([1.0, 2.0], [-1.0, -2.0])
    assert 0.0 < ends.probability(np.zeros(4, np.float32)) < 0.5


# --- the real model -------------------------------------------------------------------------------


class Watched:
    """An engine, and how many tokens it has decoded since ``count`` was asked."""

    def __init__(self, engine: LlamaLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        import llama_cpp

        self.engine = engine
        self._numbers = itertools.count(1)
        self._decoded = 0
        decode = llama_cpp.llama_decode

        def counting(context: Any, batch: Any) -> int:
            self._decoded += batch.n_tokens
            return int(decode(context, batch))

        monkeypatch.setattr(llama_cpp, "llama_decode", counting)

    def count(self) -> int:
        decoded, self._decoded = self._decoded, 0
        return decoded

    def run(self, chat: list[Message], sampling: Sampling, *, slot: int = 0, ask: bool = True) -> list[TokensOut]:
        """Everything that comes out."""
        number = next(self._numbers)
        self.engine.start(number, slot, chat, sampling, end_of_turn=ask)
        outs = []
        while self.engine.running():
            for out in self.engine.step():
                assert not isinstance(out, GenerationFailed), out.error
                outs.append(out)
        return outs

    def probability(self, text: str, *, slot: int = 0) -> float:
        (out,) = self.run([SYSTEM, Message("user", text)], PREFILL, slot=slot)
        return out.end_of_turn


@pytest.fixture(scope="module")
def loaded(language_model_file: Path, options: EngineOptions) -> Iterator[LlamaLanguageModel]:
    engine = LlamaLanguageModel()
    engine.load(language_model_file, options)
    yield engine
    engine.close()


@pytest.fixture
def llm(loaded: LlamaLanguageModel, monkeypatch: pytest.MonkeyPatch) -> Watched:
    for slot in range(4):
        loaded.release(slot)
    return Watched(loaded, monkeypatch)


@pytest.mark.models
@pytest.mark.parametrize(
    "written", [str, str.lower, "{}.".format, "{}...".format], ids=["plain", "lower", "stop", "dots"]
)
def test_whole_sentences_are_told_from_cut_ones_however_they_are_written(llm: Watched, written: Any) -> None:
    complete = [llm.probability(written(text)) for text in COMPLETE]
    cut = [llm.probability(written(text)) for text in CUT]
    assert all(0.0 <= value <= 1.0 for value in complete + cut)
    assert separation(complete, cut) > 0.85
    assert sum(complete) / len(complete) > sum(cut) / len(cut) + 0.25


@pytest.mark.models
def test_punctuation_changes_nothing(llm: Watched) -> None:
    plain = llm.probability("What time is it")
    for text in ("What time is it?", "What time is it.", "What time is it...", "What time is it ?!"):
        assert llm.probability(text, slot=1) == pytest.approx(plain, abs=0.02)
        llm.engine.release(1)


@pytest.mark.models
def test_the_prefill_says_it_without_decoding_anything_more(llm: Watched) -> None:
    chat = [SYSTEM, Message("user", "How long does the delivery take?")]
    (out,) = llm.run(chat, PREFILL, slot=1, ask=False)
    assert out.end_of_turn == -1.0
    llm.engine.release(1)
    without = llm.count()
    (out,) = llm.run(chat, PREFILL)
    assert out.finish == "length"
    assert 0.0 <= out.end_of_turn <= 1.0
    # The system prompt was still there the second time.
    assert llm.count() <= without
    again = llm.run(chat, PREFILL)
    assert [one.end_of_turn for one in again] == [out.end_of_turn]
    assert llm.count() == 0, "it was decided before"
    first, *rest = llm.run(chat, GREEDY)
    assert (first.end_of_turn, first.text, first.finish) == (out.end_of_turn, "", None)
    assert rest[-1].finish is not None
    assert rest[-1].cached_tokens == rest[-1].prompt_tokens - 1
    # The prompt's last token, for what follows it, and those that were written but the last.
    assert llm.count() == rest[-1].completion_tokens


@pytest.mark.models
def test_what_was_decoded_before_anybody_asked_is_looked_at_again_from_the_last_word(llm: Watched) -> None:
    chat = [SYSTEM, Message("user", "How long does the delivery take?")]
    llm.run(chat, PREFILL, ask=False)
    llm.count()
    (out,) = llm.run(chat, PREFILL)
    # The word's last token, the question mark, and what the template writes behind a message.
    assert llm.count() == out.prompt_tokens - out.cached_tokens < 10
    assert out.end_of_turn == pytest.approx(llm.probability("How long does the delivery take?", slot=1), abs=0.02)


@pytest.mark.models
def test_a_caller_who_goes_on_is_asked_about_again_and_only_the_new_words_are_decoded(llm: Watched) -> None:
    cut = llm.probability("I want to cancel my")
    llm.count()
    (out,) = llm.run([SYSTEM, Message("user", "I want to cancel my subscription")], PREFILL)
    assert out.end_of_turn > cut
    # The word, and what the template writes behind a message.
    assert llm.count() == out.prompt_tokens - out.cached_tokens < 12


@pytest.mark.models
def test_an_answer_says_it_before_its_first_word(llm: Watched) -> None:
    outs = llm.run([SYSTEM, Message("user", "Could you repeat the")], GREEDY)
    assert outs[0].end_of_turn >= 0.0
    assert outs[0].text == ""
    assert all(out.end_of_turn == -1.0 for out in outs[1:])
    assert "".join(out.text for out in outs).strip()


@pytest.mark.models
def test_rooms_that_ask_together_hear_what_they_hear_alone(llm: Watched) -> None:
    alone = [llm.probability(text, slot=slot) for slot, text in enumerate((*COMPLETE[:2], *CUT[:2]))]
    for slot in range(4):
        llm.engine.release(slot)
    for slot, text in enumerate((*COMPLETE[:2], *CUT[:2])):
        llm.engine.start(slot, slot, [SYSTEM, Message("user", text)], PREFILL, end_of_turn=True)
    together: dict[int, float] = {}
    while llm.engine.running():
        for out in llm.engine.step():
            assert isinstance(out, TokensOut)
            together[out.request] = out.end_of_turn
    assert [together[slot] for slot in range(4)] == pytest.approx(alone, abs=0.05)


@pytest.mark.models
@pytest.mark.parametrize(
    "last",
    [Message("user", "..."), Message("user", ""), Message("assistant", "I can do that"), Message("tool", "42")],
    ids=["only punctuation", "nothing", "the assistant's", "a tool's"],
)
def test_where_no_user_speaks_nothing_is_known(llm: Watched, last: Message) -> None:
    (out,) = llm.run([SYSTEM, Message("user", "Hello."), Message("assistant", "Hi."), last], PREFILL)
    assert out.end_of_turn == -1.0
    outs = llm.run([SYSTEM, Message("user", "Hello."), Message("assistant", "Hi."), last], GREEDY)
    assert all(out.end_of_turn == -1.0 for out in outs)


@pytest.mark.models
def test_a_long_message_whose_end_lies_in_another_step(llm: Watched) -> None:
    """More than one chunk of the prompt: the last word in the second, and the template's own tokens perhaps behind."""
    text = "I told him " + "again and again " * 40 + "that the shop was closed on"
    assert llm.probability(text) < 0.5 < llm.probability(f"{text} Sunday")


@pytest.mark.models
def test_a_template_that_refuses_the_examples_does_not_keep_the_model_from_loading(
    language_model_file: Path, options: EngineOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Vocabulary) -> NoReturn:
        raise EngineError("no")

    monkeypatch.setattr(turn_end_examples, "_tokenized", refuse)
    engine = LlamaLanguageModel()
    engine.load(language_model_file, options)
    watched = Watched(engine, monkeypatch)
    assert watched.probability("I am here") == -1.0
    engine.close()
    assert "cannot tell whether a caller has finished" in caplog.text


@pytest.mark.models
def test_a_pool_too_small_for_the_examples_still_serves(language_model_file: Path) -> None:
    engine = LlamaLanguageModel()
    engine.load(language_model_file, EngineOptions(device="cpu", threads=2, max_rooms=1, context_tokens=64))
    engine.start(1, 0, [Message("user", "Hello.")], Sampling(temperature=0.0, max_tokens=4), end_of_turn=True)
    outs = []
    while engine.running():
        outs += engine.step()
    engine.close()
    assert isinstance(outs[-1], TokensOut)
    assert outs[-1].finish is not None
