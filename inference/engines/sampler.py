"""How one generation's next token is chosen: a chain of llama.cpp's samplers, and a grammar if it has one.

llama.cpp's grammar takes each candidate through its states, which is dear for a whole vocabulary and cheap for one
token. So a token is drawn without it first, and looked at; only one that the grammar refuses is drawn again, from
what it allows. A refused draw costs the distribution nothing: what is drawn then is drawn from the allowed tokens'
share of it.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import EngineError, Sampling
from inference.engines.grammar import check_grammar
from inference.engines.json_schema import put_schemas, schema_to_grammar
from inference.engines.llama_batch import native_errors

PENALTY_WINDOW: Final = 64
"""How many of the last tokens the repeat penalty looks at (llama.cpp's own default)."""

TOP_K: Final = 40
"""Candidates that ``top_p`` looks at (llama.cpp's own default): sorting a whole vocabulary takes several
times as long."""

RANDOM_SEED: Final = 0xFFFFFFFF
"""``LLAMA_DEFAULT_SEED``: the sampler draws a seed itself."""

FIRST_LOOK: Final = 512
"""The likeliest tokens, among which what the grammar allows is looked for before it is in all."""

LONGEST_S: Final = 0.1
"""Processor time for one token: a grammar that is ambiguous enough has states without end, and everybody waits."""


def logits_of(lib: Any, context: Any, row: int, vocabulary: int) -> NDArray[np.float32]:
    """The logits of batch row ``row``, shape (vocabulary,): llama.cpp's own memory, until the next decode."""
    return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, row), (vocabulary,))


class Candidates:
    """llama.cpp's array of candidates for a vocabulary, filled from logits; one for all samplers."""

    def __init__(self, lib: Any, vocabulary: int) -> None:
        self._rows = np.zeros(vocabulary, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._all = np.arange(vocabulary, dtype=np.int32)
        self.native = lib.llama_token_data_array()
        self._data = ctypes.cast(self._rows.ctypes.data, type(self.native.data))

    def __len__(self) -> int:
        return len(self._rows)

    def fill(self, logits: np.ndarray[Any, np.dtype[np.float32]], ids: Any = None) -> None:
        """All tokens with their ``logits``, or only ``ids``."""
        ids = self._all if ids is None else ids
        rows = self._rows[: len(ids)]
        rows["id"] = ids
        rows["logit"] = logits if len(ids) == len(logits) else logits[ids]
        self.native.data = self._data
        self.native.size = len(ids)
        self.native.selected = -1
        self.native.sorted = False

    def allowed(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Ids of those that a sampler has not ruled out."""
        rows = self._rows[: self.native.size]
        return rows["id"][rows["logit"] > -np.inf].copy()

    def selected(self) -> int:
        """The token that the last sampler of a chain has chosen."""
        return int(self.native.data[self.native.selected].id)


class Sampler:
    """Chooses the tokens of one generation. Raises ``EngineError`` for a grammar or a schema that is unusable."""

    def __init__(self, lib: Any, vocab: Any, sampling: Sampling, candidates: Candidates) -> None:
        self._lib = lib
        self._candidates = candidates
        self._grammar: Any = None
        grammar = sampling.grammar
        if grammar:
            grammar = put_schemas(grammar)
            check_grammar(grammar)
        elif sampling.json_schema:
            grammar = schema_to_grammar(sampling.json_schema)
        if grammar:
            native_errors.clear()
            self._grammar = lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
            if not self._grammar:
                what = "grammar" if sampling.grammar else "json_schema"
                reason = "; ".join(native_errors) or "no reason given"
                raise EngineError(f"language model: llama.cpp refuses the {what}: {reason}")
        self._chain = _chain(lib, vocab, sampling)

    def choose(self, context: Any, row: int) -> int:
        """The next token, from the logits of batch row ``row``. Raises ``EngineError`` when the grammar allows none."""
        if self._grammar is None:
            # Finding the likeliest tokens first, with numpy, gives the same tokens and takes longer.
            return int(self._lib.llama_sampler_sample(self._chain, context, row))
        began = time.thread_time()
        logits = logits_of(self._lib, context, row, len(self._candidates))
        token = self._draw(logits)
        if not self._allows(token, logits):
            token = self._draw(logits, self._among_allowed(logits))
        self._lib.llama_sampler_accept(self._grammar, token)
        self._lib.llama_sampler_accept(self._chain, token)
        if time.thread_time() - began > LONGEST_S:
            raise EngineError(f"language model: the grammar is too ambiguous: one token took more than {LONGEST_S} s")
        return token

    def close(self) -> None:
        """Free it all; no other method may follow."""
        self._lib.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._lib.llama_sampler_free(self._grammar)

    def _draw(self, logits: Any, ids: Any = None) -> int:
        self._candidates.fill(logits, ids)
        self._lib.llama_sampler_apply(self._chain, self._candidates.native)
        return self._candidates.selected()

    def _allows(self, token: int, logits: Any) -> bool:
        return bool(len(self._look_at(logits, np.array([token], np.int32))))

    def _among_allowed(self, logits: Any) -> Any:
        if len(logits) > FIRST_LOOK:
            allowed = self._look_at(logits, np.argpartition(logits, -FIRST_LOOK)[-FIRST_LOOK:])
            if len(allowed):
                return allowed
        allowed = self._look_at(logits, None)
        if not len(allowed):
            raise EngineError("language model: the grammar allows none of the model's tokens here")
        return allowed

    def _look_at(self, logits: Any, ids: Any) -> Any:
        self._candidates.fill(logits, ids)
        self._lib.llama_sampler_apply(self._grammar, self._candidates.native)
        return self._candidates.allowed()


def _chain(lib: Any, vocab: Any, sampling: Sampling) -> Any:
    params = lib.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = lib.llama_sampler_chain_init(params)

    def add(sampler: Any) -> None:
        lib.llama_sampler_chain_add(chain, sampler)

    if sampling.repeat_penalty != 1.0:
        vocabulary = lib.llama_vocab_n_tokens(vocab)
        add(lib.llama_sampler_init_penalties(vocabulary, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0))
    if sampling.temperature <= 0.0:
        add(lib.llama_sampler_init_greedy())
        return chain
    add(lib.llama_sampler_init_top_k(TOP_K))
    if sampling.top_p < 1.0:
        add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    add(lib.llama_sampler_init_temp(sampling.temperature))
    add(lib.llama_sampler_init_dist(RANDOM_SEED if sampling.seed < 0 else sampling.seed & 0x7FFFFFFF))
    return chain
