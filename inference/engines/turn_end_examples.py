"""What people say to a voice agent, whole and cut, and how a model reads it, to know what its expectations mean."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from inference.engines.base import EngineError, Message
from inference.engines.llama_batch import Batch
from inference.engines.reuse import common_prefix
from inference.engines.sampler import logits_of
from inference.engines.turn_ends import ENDINGS, TurnEnds, calibrate
from inference.engines.vocabulary import Vocabulary

EXAMPLES: Final = (
    "What time do | you close on | Sunday",
    "Can you tell me | where the nearest | pharmacy is",
    "I'd like to | book a table for | four people",
    "Could you | please speak a little | slower",
    "How much | does it cost to | send a parcel to France",
    "I think the | meeting was moved | to Thursday",
    "No, I | haven't received the | invoice yet",
    "Turn off the | lights in | the kitchen",
    "Do you have any | rooms with | a sea view",
    "He said that | he would call me | back tomorrow",
    "The printer on the | second floor isn't | working",
    "Yes, that | would be | great",
    "Please send it | to my | home address",
    "It was raining when | we left the | house",
    "Play some | music from the | nineties",
    "What's the | weather going to | be like",
    "Who is | responsible for | this",
    "Remind me to | water the | plants",
    "There is something | wrong with my | account",
    "When does the next | bus | leave",
)
"""What people say to a voice agent, each cut at places where nobody would think that it is all."""


SYSTEM: Final = Message("system", "You are a voice assistant.")

LONGEST_S: Final = 2.0
"""Seconds for reading, of the clock and of the processor: a large model on a CPU makes do with the first examples.

The smallest needs 0.8; other processes that take the time make no difference to what it learns.
"""

SIDE_BY_SIDE: Final = 8
"""Examples in one batch: llama.cpp keeps memory for the logits of as many places as it was ever asked for at once."""

_log = logging.getLogger("inference.llm")


@dataclass(frozen=True, slots=True)
class Example:
    """The tokens of a prompt whose last message is an example's; how many of them there are up to each cut, and to
    the end."""

    tokens: list[int]
    places: tuple[int, ...]


def cut_points(example: str) -> tuple[str, tuple[int, ...]]:
    """An example's text, and where in it (characters) it is cut; the last place is its end."""
    parts = [part.strip() for part in example.split("|")]
    ends = [len(" ".join(parts[: count + 1])) for count in range(len(parts))]
    return " ".join(parts), tuple(ends)


class ExampleReader:
    """Decodes examples in a context that nobody uses yet, and leaves it empty.

    ``most``: tokens that go into the batch at once. What the examples begin with is decoded once.
    """

    def __init__(self, lib: Any, context: Any, batch: Batch, slots: int, most: int) -> None:
        self._lib = lib
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self._batch = batch
        self._slots = slots
        self._most = most

    def read(self, vocabulary: Vocabulary, turn_ends: TurnEnds) -> tuple[list[float], list[float]]:
        """Log odds of ending at the ends of the examples and at their cuts, as far as the time allows."""
        examples, shared = _tokenized(vocabulary)
        finished: list[float] = []
        cut: list[float] = []
        head = self._slots  # the sequence that no room has
        try:
            for start in range(0, shared, self._most):
                self._batch.clear()
                self._batch.add(examples[0].tokens[start : min(shared, start + self._most)], start, head, False)
                if not self._decode():
                    return [], []
            began, spent = time.perf_counter(), time.process_time()
            while examples and min(time.perf_counter() - began, time.process_time() - spent) < LONGEST_S:
                group = self._group(examples, shared)
                del examples[: len(group)]
                rows = self._add(group, shared, head)
                if not group or not self._decode():
                    break
                for places in rows:
                    *cuts, end = (turn_ends.log_odds(self._logits(row, vocabulary)) for row in places)
                    finished.append(end)
                    cut += cuts
                for sequence in range(len(group)):
                    self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        finally:
            self._lib.llama_memory_clear(self._memory, True)
        return finished, cut

    def _group(self, examples: Sequence[Example], shared: int) -> list[Example]:
        """As many as fit into one batch."""
        group: list[Example] = []
        size = 0
        for example in examples[: min(self._slots, SIDE_BY_SIDE)]:
            size += len(example.tokens) - shared
            if size > self._most:
                break
            group.append(example)
        return group

    def _add(self, group: Sequence[Example], shared: int, head: int) -> list[list[int]]:
        """Put them into the batch, each in a sequence of its own; the rows of their places."""
        self._batch.clear()
        rows = []
        for sequence, example in enumerate(group):
            self._lib.llama_memory_seq_cp(self._memory, head, sequence, 0, shared)
            indexes = [place - shared - 1 for place in example.places]
            last = self._batch.add(example.tokens[shared:], shared, sequence, True, indexes)
            first = last + 1 - (len(example.tokens) - shared)
            rows.append([first + index for index in indexes])
        return rows

    def _decode(self) -> bool:
        return int(self._lib.llama_decode(self._context, self._batch.native)) == 0

    def _logits(self, row: int, vocabulary: Vocabulary) -> Any:
        return logits_of(self._lib, self._context, row, vocabulary.size)


def learn_turn_ends(vocabulary: Vocabulary, reader: ExampleReader) -> TurnEnds:
    """What a model's logits say about ends of turns; without a calibration if they say nothing."""
    endings = set(vocabulary.ends)
    endings.update(vocabulary.tokens(vocabulary.behind_user, special=True)[:1])
    for ending in ENDINGS:
        tokens = vocabulary.tokens(ending, special=False)
        if len(tokens) == 1:
            endings.add(tokens[0])
    turn_ends = TurnEnds(endings)
    began = time.perf_counter()
    finished: list[float] = []
    cut: list[float] = []
    try:
        finished, cut = reader.read(vocabulary, turn_ends)
    except EngineError as exc:
        _log.debug("the examples of ends of turns cannot be read: %s", exc)
    turn_ends.calibration = calibrate(finished, cut)
    _log.debug("ends of turns, from %d examples in %.2f s: %r", len(finished), time.perf_counter() - began, turn_ends)
    if turn_ends.calibration is None:
        _log.warning("the language model cannot tell whether a caller has finished: only pauses will")
    return turn_ends


def _tokenized(vocabulary: Vocabulary) -> tuple[list[Example], int]:
    """The examples, and how many tokens they all begin with."""
    before, _ = vocabulary.around_user([SYSTEM])
    examples = []
    shared = len(vocabulary.tokens_of_prompt(before))
    for written in EXAMPLES:
        text, cuts = cut_points(written)
        tokens = vocabulary.tokens_of_prompt(before + text)
        places = [common_prefix(tokens, vocabulary.tokens_of_prompt(before + text[:at])) for at in cuts]
        examples.append(Example(tokens, tuple(places)))
    for example in examples[1:]:
        shared = min(shared, common_prefix(examples[0].tokens, example.tokens))
    return examples, shared
