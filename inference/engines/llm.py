"""llama.cpp through its C interface: all rooms decode in one batch, and every room keeps its KV cache.

One context holds one sequence per slot (``kv_cache.py``), plus one more that keeps the last system prompt, so
a room that joins copies it instead of computing it; rooms that join together wait until the first of them has
computed it. For each sequence it is known which tokens lie in the cache; a new prompt is decoded only from
the first token that differs. Two things would make it differ for nothing:

* the text of a reply, tokenised, need not give the tokens that the model chose when it wrote it: what
  was said is remembered as those tokens, and a prompt that holds the same text gets them;
* when a conversation outgrows the context, the caller leaves its oldest turns out: those are cut out
  of the cache, and what follows is moved up to the system prompt (``llama_memory_seq_add``), not
  computed again. Its numbers still remember the turns that are gone, as in every such shift.

A step is one ``llama_decode``: one token of every generation that has begun to answer, and at most
``PREFILL_CHUNK`` prompt tokens of those that have not. The pool of KV cells may be smaller than all rooms'
contexts (``resident_rooms``): who takes part in a step is in it, and who has no place waits for one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from inference.engines.base import (
    EngineError,
    EngineOptions,
    FinishReason,
    GenerationFailed,
    Message,
    PromptTooLongError,
    Sampling,
    TokensOut,
    check_sampling,
)
from inference.engines.kv_cache import KvCache
from inference.engines.llama_batch import Batch, native_errors, redirect_log
from inference.engines.prompt import TextStream
from inference.engines.reuse import SaidMessages, common_prefix
from inference.engines.sampler import Candidates, Sampler, logits_of
from inference.engines.turn_end_examples import ExampleReader, learn_turn_ends
from inference.engines.turn_ends import TurnEnds, end_of_words
from inference.engines.vocabulary import Vocabulary

PREFILL_CHUNK: Final = 128
"""Prompt tokens in one step, over all generations: what bounds the time the others wait for their next token."""

CONTEXT_MARGIN: Final = 8
"""Tokens kept free in a room's context beyond prompt and reply (the template's own closing tokens)."""

_PLAUSIBLE_CHARS: Final = 6
"""Characters a token, in the mean over a prompt: one with more is counted piece by piece before it is tokenised."""

_PIECE_CHARS: Final = 4_096

_NO_KV_ROOM: Final = 1
"""``llama_decode`` found no free KV cells and changed nothing."""

_log = logging.getLogger("inference.llm")


class LlamaLanguageModel:
    """``LanguageModelEngine`` on llama.cpp."""

    def __init__(self) -> None:
        self._lib: Any = None
        self._model: Any = None
        self._context: Any = None
        self._vocabulary: Vocabulary | None = None
        self._cache: KvCache | None = None
        self._batch: Batch | None = None
        self._candidates: Candidates | None = None
        self._context_tokens = 0
        self._slots = 0
        self._said: list[SaidMessages] = []  # per slot
        self._system: tuple[str, list[int]] = ("", [])  # the last system text and the tokens it begins a prompt with
        self._generations: dict[int, _Generation] = {}  # the oldest first
        self._ended = 0  # generations: who waits for KV cells tries again when one has
        self._turn_ends = TurnEnds(())
        self._decided: dict[int, tuple[list[int], float]] = {}  # slot: a prompt up to its last word, and what it said

    def __repr__(self) -> str:
        return f"LlamaLanguageModel(slots={self._slots}, running={len(self._generations)})"

    # --- life ---------------------------------------------------------------------------------

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the GGUF file ``model``; all memory for the KV caches of ``options.max_rooms`` slots is taken here.

        Raises ``EngineError`` when the package, the file, its chat template or the memory is unusable.
        """
        self.close()
        try:
            import llama_cpp
        except (ImportError, OSError, RuntimeError) as exc:
            raise EngineError(f"language model: cannot load llama_cpp: {exc}") from exc
        if not model.is_file():
            raise EngineError(f"language model: no such file: {model}")
        self._lib = llama_cpp
        redirect_log(llama_cpp)
        native_errors.clear()
        llama_cpp.llama_backend_init()
        on_gpu = options.device == "cuda"
        if on_gpu and not llama_cpp.llama_supports_gpu_offload():
            raise EngineError("language model: this build of llama_cpp has no GPU support (device is cuda)")
        largest = llama_cpp.llama_max_parallel_sequences() - 1
        if not 1 <= options.max_rooms <= largest:
            raise EngineError(f"language model: max_rooms is {options.max_rooms}, llama.cpp allows 1..{largest}")
        if not 0 <= options.resident_rooms <= options.max_rooms:
            raise EngineError(
                f"language model: resident_rooms is {options.resident_rooms}, allowed: 0..{options.max_rooms}"
            )
        resident = options.resident_rooms or options.max_rooms

        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 999 if on_gpu else 0
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), model_params)
        if not self._model:
            self._fail_load(f"cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = resident * options.context_tokens
        params.n_seq_max = options.max_rooms + 1
        params.n_batch = params.n_ubatch = PREFILL_CHUNK + options.max_rooms
        params.n_threads = options.threads
        params.n_threads_batch = options.batch_threads or options.threads
        params.kv_unified = True  # sharing the system prompt without copying needs one buffer for all
        params.swa_full = True  # a sliding-window cache could not be cut back to an earlier token
        params.offload_kqv = params.op_offload = on_gpu
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            self._fail_load(f"no memory for {resident} rooms of {options.context_tokens} tokens")
        self._context_tokens = options.context_tokens
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        if options.context_tokens > trained:
            _log.warning("context_tokens is %d, the model was trained on %d", options.context_tokens, trained)
        spare = options.max_rooms - resident
        self._cache = KvCache(llama_cpp, self._model, self._context, options.max_rooms, options.context_tokens, spare)
        self._slots = options.max_rooms
        self._batch = Batch(llama_cpp, PREFILL_CHUNK + options.max_rooms)
        self._vocabulary = vocabulary = Vocabulary(llama_cpp, self._model)
        self._candidates = Candidates(llama_cpp, vocabulary.size)
        self._said = [SaidMessages(vocabulary.piece, vocabulary.control) for _ in range(options.max_rooms)]
        reader = ExampleReader(llama_cpp, self._context, self._batch, self._slots, PREFILL_CHUNK)
        self._turn_ends = learn_turn_ends(vocabulary, reader)

    def close(self) -> None:
        """Free model, context and samplers."""
        for generation in self._generations.values():
            generation.sampler.close()
        self._generations.clear()
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = self._vocabulary = None
        self._cache = self._batch = self._candidates = None
        self._slots = 0
        self._said = []
        self._system = ("", [])
        self._decided = {}

    def _fail_load(self, what: str) -> NoReturn:
        reason = "; ".join(native_errors) or "llama.cpp gave no reason"
        self.close()
        raise EngineError(f"language model: {what}: {reason}")

    # --- requests -----------------------------------------------------------------------------

    def start(
        self, request: int, slot: int, messages: Sequence[Message], sampling: Sampling, *, end_of_turn: bool = False
    ) -> None:
        """Queue a generation that answers ``messages``; with ``max_tokens`` 0 they are only decoded.

        A system message alone, with ``max_tokens`` 0, is what any conversation under it begins with.

        Raises ``EngineError`` for a prompt that cannot fit beside ``sampling.max_tokens`` in the
        room's context, for messages the model's template refuses, and for a slot or id in use.
        """
        vocabulary = self._check_slot(slot)
        if request in self._generations:
            raise EngineError(f"language model: request {request} is already running")
        if any(running.slot == slot for running in self._generations.values()):
            raise EngineError(f"language model: slot {slot} is already answering")
        check_sampling(sampling)
        if not messages:
            raise EngineError("language model: no messages to answer")
        room = self._context_tokens - sampling.max_tokens - CONTEXT_MARGIN
        self._refuse_longer(vocabulary, messages, room)
        prompt, system, behind = self._prompt(vocabulary, slot, messages, sampling)
        if len(prompt) > room:
            self._too_long(f"has {len(prompt)} tokens", room)
        # The last token is decoded again for what follows it, unless nothing is to follow.
        reusable = len(prompt) - (sampling.max_tokens > 0)
        last_word, known = -1, -1.0
        if end_of_turn and behind and self._turn_ends.calibration is not None:
            last_word = len(prompt) - behind - 1
            decided, probability = self._decided.get(slot, ([], -1.0))
            if decided == prompt[: last_word + 1]:
                known = probability
            else:
                reusable = min(reusable, last_word)
        assert self._candidates is not None
        self._generations[request] = _Generation(
            request=request,
            slot=slot,
            prompt=prompt,
            system=system,
            reusable=reusable,
            max_tokens=sampling.max_tokens,
            sampler=Sampler(self._lib, vocabulary.native, sampling, self._candidates),
            text=TextStream(sampling.stop + vocabulary.default_stop),
            last_word=last_word,
            end_of_turn=known,
        )

    def step(self, urgent: frozenset[int] | None = None) -> list[TokensOut | GenerationFailed]:
        """One ``llama_decode``: up to ``PREFILL_CHUNK`` prompt tokens and one token of every answering generation.

        ``urgent``: when given, only these requests take part. The result has an entry for each
        request that got text, finished or failed, or whose end of turn is known; a token that gave no text yet
        gives no entry.
        """
        chosen = [g for g in self._generations.values() if urgent is None or g.request in urgent]
        if not chosen or self._cache is None or self._batch is None or self._vocabulary is None:
            return []
        out: list[TokensOut | GenerationFailed] = []
        ready = self._resident(chosen, self._cache, out)
        while True:
            parts = self._fill(self._batch, ready, self._cache, out)
            if not parts:
                return out
            code = int(self._lib.llama_decode(self._context, self._batch.native))
            if code != _NO_KV_ROOM or not self._make_room(ready, self._cache):
                break
        if code != 0:
            reason = "; ".join(native_errors) or "no reason given"
            error = EngineError(f"language model: llama_decode returned {code}: {reason}")
            for part in parts:
                self._forget(part.generation.slot)  # what the cache holds after a failed decode is not known
            return out + [self._failed(part.generation, error) for part in parts]
        for part in parts:
            generation = part.generation
            self._cache.append(generation.slot, part.tokens)
            if part.last_word_row >= 0:
                logits = logits_of(self._lib, self._context, part.last_word_row, self._vocabulary.size)
                self._decide(generation, self._turn_ends.probability(logits), out)
            if generation.next_token is None:
                generation.done += len(part.tokens)
                if generation.done == len(generation.prompt):
                    self._cache.keep(generation.slot, generation.prompt[: generation.system])
                if generation.is_prefilled():
                    out.append(self._end(generation, "length"))
        for part in parts:
            if part.row >= 0:
                result = self._advance(part.generation, part.row, self._cache, self._vocabulary)
                if result is not None:
                    out.append(result)
        return out

    def cancel(self, request: int) -> None:
        """Stop a generation; its KV stays, so a later prompt reuses what it shares. Unknown ids are ignored."""
        generation = self._generations.pop(request, None)
        if generation is not None:
            self._ended += 1
            generation.sampler.close()
            if generation.completion:
                assert self._cache is not None
                tokens = self._cache.tokens(generation.slot)
                if generation.next_token is not None:
                    tokens = [*tokens, generation.next_token]
                self._said[generation.slot].remember(tokens, len(generation.prompt))

    def release(self, slot: int) -> None:
        """The room is gone: cancel its generation and forget its KV cache."""
        self._check_slot(slot)
        for request in [g.request for g in self._generations.values() if g.slot == slot]:
            self.cancel(request)
        self._forget(slot)

    def running(self) -> frozenset[int]:
        """Request ids that still need steps."""
        return frozenset(self._generations)

    # --- inside a step ------------------------------------------------------------------------

    def _resident(
        self, chosen: list[_Generation], cache: KvCache, out: list[TokensOut | GenerationFailed]
    ) -> list[_Generation]:
        """Those of ``chosen`` whose KV cache is in the pool, cut to their prompts."""
        now = (self._ended, frozenset(g.request for g in chosen))
        ready = []
        for generation in chosen:
            slot = generation.slot
            if generation.waits == now:
                continue
            generation.waits = None
            while cache.is_parked(slot) and not cache.restore(slot, generation.system):
                if not cache.park_one(self._idle(), self._running_but(chosen)) and not cache.forget_system():
                    generation.waits = now
                    break
            if generation.waits is not None:
                continue
            if not generation.begun:
                generation.begun = True
                generation.done = cache.reuse(slot, generation.prompt, generation.system, generation.reusable)
                generation.cached = generation.done
                self._take_system(generation, cache)
                if generation.end_of_turn >= 0 and generation.max_tokens > 0:
                    out.append(TokensOut(generation.request, "", end_of_turn=generation.end_of_turn))
            elif generation.done and not cache.tokens(slot):
                out.append(self._failed(generation, EngineError("language model: the room's KV cache was lost")))
                continue
            ready.append(generation)
        if not ready and not out:
            # Alone in the pool, and still no room: it would wait for ever.
            out.append(self._failed(chosen[0], EngineError("language model: no room in the KV cache")))
        return ready

    def _fill(
        self, batch: Batch, ready: list[_Generation], cache: KvCache, out: list[TokensOut | GenerationFailed]
    ) -> list[_Part]:
        """Make the step's batch: who takes part in it, and with what."""
        batch.clear()
        parts: list[_Part] = []
        # Slots in one order every time: a batch of the same shape reuses llama.cpp's compute graph.
        for generation in sorted((g for g in ready if g.next_token is not None), key=lambda g: g.slot):
            assert generation.next_token is not None
            tokens = [generation.next_token]
            row = batch.add(tokens, len(cache.tokens(generation.slot)), generation.slot, True)
            parts.append(_Part(generation, tokens, row))
        budget = PREFILL_CHUNK
        computing: list[list[int]] = []  # system prompts that are in this batch
        for generation in list(ready):  # oldest first: the one that has waited longest
            if generation.next_token is not None or budget == 0:
                continue
            self._take_system(generation, cache)
            if generation.is_prefilled():
                ready.remove(generation)
                out.append(self._end(generation, "length"))
                continue
            wanted = generation.prompt[: generation.system]
            if cache.can_share and generation.done < generation.system:
                if wanted in computing:
                    continue  # another room computes it in this very step
                computing.append(wanted)
            chunk = generation.prompt[generation.done : generation.done + budget]
            budget -= len(chunk)
            last = generation.max_tokens > 0 and generation.done + len(chunk) == len(generation.prompt)
            word = generation.last_word - generation.done if generation.end_of_turn < 0 else -1
            has_word = 0 <= word < len(chunk)
            row = batch.add(chunk, generation.done, generation.slot, last, [word] if has_word else ())
            word_row = row - len(chunk) + 1 + word if has_word else -1
            parts.append(_Part(generation, chunk, row if last else -1, word_row))
        return parts

    def _decide(self, generation: _Generation, probability: float, out: list[TokensOut | GenerationFailed]) -> None:
        """The user's message is complete with ``probability``: say so at once if more is to come."""
        generation.end_of_turn = probability
        self._decided[generation.slot] = (generation.prompt[: generation.last_word + 1], probability)
        if generation.max_tokens > 0:
            out.append(TokensOut(generation.request, "", end_of_turn=probability))

    def _make_room(self, ready: list[_Generation], cache: KvCache) -> bool:
        """Give back KV cells for the step of ``ready``; its youngest waits when nobody else can. False: no cells."""
        if cache.park_one(self._idle(), self._running_but(ready)) or cache.forget_system():
            return True
        if len(ready) == 1:
            return False
        youngest = ready.pop()
        youngest.waits = (self._ended, frozenset(g.request for g in [*ready, youngest]))
        cache.park(youngest.slot)
        return True

    def _idle(self) -> frozenset[int]:
        return frozenset(range(self._slots)) - {g.slot for g in self._generations.values()}

    def _running_but(self, chosen: Sequence[_Generation]) -> frozenset[int]:
        return frozenset(g.slot for g in self._generations.values()) - {g.slot for g in chosen}

    def _take_system(self, generation: _Generation, cache: KvCache) -> None:
        """Copy the system prompt from a sequence that has it, if there is one by now."""
        share = min(generation.system, generation.reusable)
        if generation.done < share and cache.take(generation.slot, generation.prompt[:share]):
            generation.done = generation.cached = share

    def _advance(
        self, generation: _Generation, row: int, cache: KvCache, vocabulary: Vocabulary
    ) -> TokensOut | GenerationFailed | None:
        try:
            token = generation.sampler.choose(self._context, row)
        except EngineError as exc:
            return self._failed(generation, exc)
        finish: FinishReason | None = None
        text = ""
        generation.completion += 1
        if token in vocabulary.ends:
            finish = "stop"
            generation.next_token = None
        else:
            generation.next_token = token
            text = generation.text.feed(vocabulary.piece(token))
            # The new token is not in the cache yet, but a further one would need its place.
            used = len(cache.tokens(generation.slot)) + 1
            if generation.text.stopped:
                finish = "stop"
            elif generation.completion >= generation.max_tokens or used >= self._context_tokens:
                finish = "length"
        if finish is None:
            return TokensOut(generation.request, text) if text else None
        return self._end(generation, finish, text + generation.text.finish())

    def _end(self, generation: _Generation, finish: FinishReason, text: str = "") -> TokensOut:
        self.cancel(generation.request)
        return TokensOut(
            generation.request,
            text,
            finish,
            prompt_tokens=len(generation.prompt),
            cached_tokens=generation.cached,
            completion_tokens=generation.completion,
            end_of_turn=generation.end_of_turn if generation.max_tokens == 0 else -1.0,
        )

    def _failed(self, generation: _Generation, error: EngineError) -> GenerationFailed:
        self.cancel(generation.request)
        return GenerationFailed(generation.request, error)

    def _forget(self, slot: int) -> None:
        assert self._cache is not None
        self._cache.forget(slot)
        self._decided.pop(slot, None)
        self._said[slot].forget()

    # --- text and tokens ----------------------------------------------------------------------

    def _refuse_longer(self, vocabulary: Vocabulary, messages: Sequence[Message], room: int) -> None:
        """Refuse what cannot fit for no more than what fits would cost: a megabyte takes long to tokenise."""
        chars = sum(len(message.content) for message in messages)
        if chars > max(room, 0) * vocabulary.longest_piece or len(messages) > max(room, 0):
            self._too_long(f"has {chars} characters in {len(messages)} messages", room)
        if chars <= max(room, 0) * _PLAUSIBLE_CHARS:
            return
        count = 0
        for message in messages:
            for start in range(0, len(message.content), _PIECE_CHARS):
                count += len(vocabulary.tokens(message.content[start : start + _PIECE_CHARS], special=False))
                # A cut through a word makes at most a few tokens of it.
                if count > room + 4 * (1 + chars // _PIECE_CHARS):
                    self._too_long(f"has more than {count} tokens", room)

    def _too_long(self, what: str, room: int) -> NoReturn:
        raise PromptTooLongError(
            f"language model: the prompt {what}, only {max(room, 0)} fit (context {self._context_tokens} "
            f"less max_tokens {self._context_tokens - CONTEXT_MARGIN - room} and {CONTEXT_MARGIN})"
        )

    def _prompt(
        self, vocabulary: Vocabulary, slot: int, messages: Sequence[Message], sampling: Sampling
    ) -> tuple[list[int], int, int]:
        """The tokens of ``messages``; how many of them are the system prompt's, and how many lie behind the last word
        of the user's message, if that is the last (else 0)."""
        system: list[int] = []
        if messages[0].role == "system":
            if len(messages) == 1 and not sampling.max_tokens:
                system = self._system_tokens(vocabulary, messages[0])
                return system, len(system), 0
            if len(messages) > 1:
                system = self._system_tokens(vocabulary, messages[0])
        text, tokens = vocabulary.prompt(messages)
        prompt = self._said[slot].put_into(tokens)
        last = messages[-1]
        is_users = last.role == "user" and end_of_words(last.content) > 0
        return prompt, common_prefix(system, prompt), vocabulary.behind_words(text, tokens) if is_users else 0

    def _system_tokens(self, vocabulary: Vocabulary, system: Message) -> list[int]:
        """What any conversation with this system message begins with."""
        if self._system[0] != system.content:
            _, one = vocabulary.prompt([system, Message("user", "a")])
            _, other = vocabulary.prompt([system, Message("user", "1")])
            self._system = (system.content, one[: common_prefix(one, other)])
        return self._system[1]

    def _check_slot(self, slot: int) -> Vocabulary:
        if self._vocabulary is None:
            raise EngineError("language model: not loaded")
        if not 0 <= slot < self._slots:
            raise EngineError(f"language model: slot {slot} is not in 0..{self._slots - 1}")
        return self._vocabulary


@dataclass(slots=True)
class _Generation:
    request: int
    slot: int
    prompt: list[int]
    system: int  # how many prompt tokens are the system prompt's
    reusable: int  # how many prompt tokens need no decoding when they are in the cache
    max_tokens: int
    sampler: Sampler
    text: TextStream
    last_word: int  # where in the prompt the user's last word ends, if it is asked whether that was all; else -1
    end_of_turn: float  # how likely it was; -1 while it is not known
    begun: bool = False  # the cache is cut to the prompt
    done: int = 0  # how many prompt tokens are in the cache
    cached: int = 0  # how many of them were there before
    next_token: int | None = None  # sampled, not decoded yet; None while the prompt is decoded
    completion: int = 0
    waits: tuple[int, frozenset[int]] | None = None  # for KV cells: what was running when there were none

    def is_prefilled(self) -> bool:
        """Whether nothing was asked for but the prompt, and it is in the cache."""
        return self.max_tokens == 0 and self.done == len(self.prompt)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one generation has in a batch. ``row``: whose logits it samples from; ``last_word_row``: whose logits say
    whether the user's message is complete. -1 is none in this step."""

    generation: _Generation
    tokens: list[int]
    row: int
    last_word_row: int = -1
