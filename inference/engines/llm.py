"""llama.cpp through its C interface: all rooms decode in one batch, and every room keeps its KV cache.

One context holds one sequence per slot in a unified KV cache, plus one more that keeps the last
system prompt, so a room that joins copies it (``llama_memory_seq_cp`` moves no data in a unified
cache) instead of computing it; rooms that join together wait until the first of them has computed it.
For each sequence the engine remembers which tokens lie in the cache; a new prompt is decoded only
from the first token that differs. Two things would make it differ for nothing:

* the text of a reply, tokenised, need not give the tokens that the model chose when it wrote it: what
  was said is remembered as those tokens, and a prompt that holds the same text gets them;
* when a conversation outgrows the context, the caller leaves its oldest turns out: those are cut out
  of the cache, and what follows is moved up to the system prompt (``llama_memory_seq_add``), not
  computed again. Its numbers still remember the turns that are gone, as in every such shift.

A step is one ``llama_decode``: one token of every generation that has begun to answer, and at most
``PREFILL_CHUNK`` prompt tokens of those that have not.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

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
from inference.engines.prompt import CHATML, ChatTemplate, TextStream
from inference.engines.reuse import SaidMessages, common_prefix, left_out

PREFILL_CHUNK: Final = 128
"""Prompt tokens in one step, over all generations: what bounds the time the others wait for their next token."""

CONTEXT_MARGIN: Final = 8
"""Tokens kept free in a room's context beyond prompt and reply (the template's own closing tokens)."""

_PENALTY_WINDOW: Final = 64
"""How many of the last tokens the repeat penalty looks at (llama.cpp's own default)."""

_TOP_K: Final = 40
"""Candidates that ``top_p`` looks at (llama.cpp's own default): sorting a whole vocabulary takes several
times as long."""

_RANDOM_SEED: Final = 0xFFFFFFFF
"""``LLAMA_DEFAULT_SEED``: the sampler draws a seed itself."""

_NO_KV_ROOM: Final = 1
"""``llama_decode`` found no free KV cells and changed nothing."""

_log = logging.getLogger("inference.llm")

_keep_log_callback: Any = None
"""llama.cpp holds the callback for the life of the process, so it must never be collected."""

_native_errors: deque[str] = deque(maxlen=4)
"""llama.cpp's last error lines: its functions return only a code, the reason is in the log."""


class LlamaLanguageModel:
    """``LanguageModelEngine`` on llama.cpp."""

    def __init__(self) -> None:
        self._lib: Any = None
        self._model: Any = None
        self._context: Any = None
        self._memory: Any = None
        self._vocab: Any = None
        self._batch: _Batch | None = None
        self._template: ChatTemplate | None = None
        self._context_tokens = 0
        self._can_share = False
        self._can_shift = False
        self._cached: list[list[int]] = []  # per sequence, the tokens that lie in its KV cache
        self._said: list[SaidMessages] = []  # per slot
        self._system: tuple[str, list[int]] = ("", [])  # the last system text and the tokens it begins a prompt with
        self._generations: dict[int, _Generation] = {}
        self._pieces: dict[int, bytes] = {}
        self._end_tokens: frozenset[int] = frozenset()
        self._control_tokens: frozenset[int] = frozenset()
        self._default_stop: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"LlamaLanguageModel(slots={self._slots}, running={len(self._generations)})"

    @property
    def _slots(self) -> int:
        return max(0, len(self._cached) - 1)

    @property
    def _shared(self) -> int:
        """The sequence that keeps the last system prompt: the one after the slots."""
        return self._slots

    # --- life ---------------------------------------------------------------------------------

    def load(self, model: Path, options: EngineOptions) -> None:
        """Load the GGUF file ``model``; all KV memory for ``options.max_rooms`` slots is taken here.

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
        _redirect_log(llama_cpp)
        _native_errors.clear()
        llama_cpp.llama_backend_init()
        on_gpu = options.device == "cuda"
        if on_gpu and not llama_cpp.llama_supports_gpu_offload():
            raise EngineError("language model: this build of llama_cpp has no GPU support (device is cuda)")
        largest = llama_cpp.llama_max_parallel_sequences() - 1
        if not 1 <= options.max_rooms <= largest:
            raise EngineError(f"language model: max_rooms is {options.max_rooms}, llama.cpp allows 1..{largest}")

        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 999 if on_gpu else 0
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), model_params)
        if not self._model:
            self._fail_load(f"cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = options.max_rooms * options.context_tokens
        params.n_seq_max = options.max_rooms + 1
        params.n_batch = params.n_ubatch = PREFILL_CHUNK + options.max_rooms
        params.n_threads = params.n_threads_batch = options.threads
        params.kv_unified = True  # sharing the system prompt without copying needs one buffer for all
        params.swa_full = True  # a sliding-window cache could not be cut back to an earlier token
        params.offload_kqv = params.op_offload = on_gpu
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            self._fail_load(f"no memory for {options.max_rooms} rooms of {options.context_tokens} tokens")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._context_tokens = options.context_tokens
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        if options.context_tokens > trained:
            _log.warning("context_tokens is %d, the model was trained on %d", options.context_tokens, trained)
        # A recurrent state cannot be cut at a token, so it cannot be shared up to one either.
        self._can_share = not (
            llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model)
        )
        self._can_shift = self._can_share and bool(llama_cpp.llama_memory_can_shift(self._memory))
        self._cached = [[] for _ in range(options.max_rooms + 1)]
        self._batch = _Batch(llama_cpp, PREFILL_CHUNK + options.max_rooms)
        self._read_vocabulary()
        self._said = [SaidMessages(self._piece, self._control_tokens) for _ in range(options.max_rooms)]

    def close(self) -> None:
        """Free model, context and samplers."""
        for generation in self._generations.values():
            self._lib.llama_sampler_free(generation.sampler)
        self._generations.clear()
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = self._memory = self._vocab = None
        self._batch = self._template = None
        self._cached = []
        self._said = []
        self._system = ("", [])
        self._pieces = {}

    def _fail_load(self, what: str) -> NoReturn:
        reason = "; ".join(_native_errors) or "llama.cpp gave no reason"
        self.close()
        raise EngineError(f"language model: {what}: {reason}")

    def _read_vocabulary(self) -> None:
        lib, vocab = self._lib, self._vocab

        def text_of(token: int) -> str:
            return str(lib.llama_vocab_get_text(vocab, token).decode("utf-8", "replace")) if token >= 0 else ""

        tokens = range(lib.llama_vocab_n_tokens(vocab))
        self._end_tokens = frozenset(t for t in tokens if lib.llama_vocab_is_eog(vocab, t))
        self._control_tokens = frozenset(t for t in tokens if lib.llama_vocab_is_control(vocab, t))
        control = [text_of(t) for t in sorted(self._control_tokens)]
        source = lib.llama_model_chat_template(self._model, None)
        self._default_stop = ()
        if not source:
            _log.warning("the model file has no chat template; using ChatML")
            self._default_stop = ("<|im_end|>",)
            control += ["<|im_start|>", "<|im_end|>"]
        self._template = ChatTemplate(
            source.decode("utf-8") if source else CHATML,
            bos=text_of(lib.llama_vocab_bos(vocab)),
            eos=text_of(lib.llama_vocab_eos(vocab)),
            control=[text for text in control if text],
        )

    # --- requests -----------------------------------------------------------------------------

    def start(self, request: int, slot: int, messages: Sequence[Message], sampling: Sampling) -> None:
        """Queue a generation that answers ``messages``; with ``max_tokens`` 0 they are only decoded.

        A system message alone, with ``max_tokens`` 0, is what any conversation under it begins with.

        Raises ``EngineError`` for a prompt that cannot fit beside ``sampling.max_tokens`` in the
        room's context, for messages the model's template refuses, and for a slot or id in use.
        """
        self._check_slot(slot)
        if request in self._generations:
            raise EngineError(f"language model: request {request} is already running")
        if any(running.slot == slot for running in self._generations.values()):
            raise EngineError(f"language model: slot {slot} is already answering")
        check_sampling(sampling)
        if not messages:
            raise EngineError("language model: no messages to answer")
        prompt, system = self._prompt(slot, messages, sampling)
        room = self._context_tokens - sampling.max_tokens - CONTEXT_MARGIN
        if len(prompt) > room:
            raise PromptTooLongError(
                f"language model: the prompt has {len(prompt)} tokens, only {max(room, 0)} fit "
                f"(context {self._context_tokens} less max_tokens {sampling.max_tokens} and {CONTEXT_MARGIN})"
            )
        # The last token is decoded again for what follows it, unless nothing is to follow.
        reusable = len(prompt) - (sampling.max_tokens > 0)
        done = self._reuse(slot, prompt, system, reusable)
        generation = self._generations[request] = _Generation(
            request=request,
            slot=slot,
            prompt=prompt,
            system=system,
            reusable=reusable,
            done=done,
            cached=done,
            max_tokens=sampling.max_tokens,
            sampler=self._sampler(sampling),
            text=TextStream(sampling.stop + self._default_stop),
        )
        self._take_system(generation)

    def step(self, urgent: frozenset[int] | None = None) -> list[TokensOut | GenerationFailed]:
        """One ``llama_decode``: up to ``PREFILL_CHUNK`` prompt tokens and one token of every answering generation.

        ``urgent``: when given, only these requests take part. The result has an entry for each
        request that got text, finished or failed; a token that gave no text yet gives no entry.
        """
        chosen = [g for g in self._generations.values() if urgent is None or g.request in urgent]
        batch = self._batch
        if not chosen or batch is None:
            return []
        out: list[TokensOut | GenerationFailed] = []
        # Slots in one order every time: a batch of the same shape reuses llama.cpp's compute graph.
        answering = sorted((g for g in chosen if g.next_token is not None), key=lambda g: g.slot)
        batch.clear()
        rows: list[tuple[_Generation, int]] = []  # (generation, batch row of its logits)
        taking: list[tuple[_Generation, list[int]]] = []
        for generation in answering:
            token = generation.next_token
            assert token is not None
            taking.append((generation, [token]))
            rows.append((generation, batch.add([token], len(self._cached[generation.slot]), generation.slot, True)))
        budget = PREFILL_CHUNK
        computing: list[list[int]] = []  # system prompts that are in this batch
        for generation in chosen:  # oldest first: the one that has waited longest
            if generation.next_token is not None or budget == 0:
                continue
            if generation.done < generation.system:
                self._take_system(generation)
            if generation.is_prefilled():
                out.append(self._end(generation, "length"))
                continue
            wanted = generation.prompt[: generation.system]
            if self._can_share and generation.done < generation.system:
                if wanted in computing:
                    continue  # another room computes it in this very step
                computing.append(wanted)
            chunk = generation.prompt[generation.done : generation.done + budget]
            budget -= len(chunk)
            last = generation.max_tokens > 0 and generation.done + len(chunk) == len(generation.prompt)
            taking.append((generation, chunk))
            row = batch.add(chunk, generation.done, generation.slot, last)
            if last:
                rows.append((generation, row))
        if not taking:
            return out
        code = self._decode(batch)
        if code != 0:
            return out + self._fail([generation for generation, _ in taking], code)
        for generation, tokens in taking:
            self._cached[generation.slot] += tokens
            if generation.next_token is None:
                generation.done += len(tokens)
                if generation.done == len(generation.prompt):
                    self._keep_system(generation)
                if generation.is_prefilled():
                    out.append(self._end(generation, "length"))
        for generation, row in rows:
            token = int(self._lib.llama_sampler_sample(generation.sampler, self._context, row))
            result = self._advance(generation, token)
            if result is not None:
                out.append(result)
        return out

    def cancel(self, request: int) -> None:
        """Stop a generation; its KV stays, so a later prompt reuses what it shares. Unknown ids are ignored."""
        generation = self._generations.pop(request, None)
        if generation is not None:
            self._lib.llama_sampler_free(generation.sampler)
            if generation.completion:
                tokens = self._cached[generation.slot]
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

    def _decode(self, batch: _Batch) -> int:
        code = int(self._lib.llama_decode(self._context, batch.native))
        if code == _NO_KV_ROOM and self._cached[self._shared]:
            # The shared system prompt is only a convenience; its cells belong to the rooms.
            self._forget(self._shared)
            code = int(self._lib.llama_decode(self._context, batch.native))
        return code

    def _fail(self, generations: list[_Generation], code: int) -> list[TokensOut | GenerationFailed]:
        reason = "; ".join(_native_errors) or "no reason given"
        error = EngineError(f"language model: llama_decode returned {code}: {reason}")
        for generation in generations:
            self.cancel(generation.request)
            self._forget(generation.slot)  # what the cache holds after a failed decode is not known
        return [GenerationFailed(generation.request, error) for generation in generations]

    def _advance(self, generation: _Generation, token: int) -> TokensOut | None:
        finish: FinishReason | None = None
        text = ""
        generation.completion += 1
        if token in self._end_tokens:
            finish = "stop"
            generation.next_token = None
        else:
            generation.next_token = token
            text = generation.text.feed(self._piece(token))
            # The new token is not in the cache yet, but a further one would need its place.
            used = len(self._cached[generation.slot]) + 1
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
        )

    # --- KV cache -----------------------------------------------------------------------------

    def _reuse(self, slot: int, prompt: list[int], system: int, most: int) -> int:
        """Cut the slot's cache to what it shares with ``prompt``; returns how many of it need no decoding."""
        cached = self._cached[slot]
        keep = min(common_prefix(cached, prompt), most)
        # Behind the system prompt: its cells are other rooms' too, and must stay where they are.
        if self._can_shift and system <= keep < len(cached):
            gap = left_out(cached, prompt, keep)
            if gap and self._lib.llama_memory_seq_rm(self._memory, slot, keep, keep + gap):
                self._lib.llama_memory_seq_add(self._memory, slot, keep + gap, -1, -gap)
                del cached[keep : keep + gap]
                keep = min(common_prefix(cached, prompt), most)
        if keep < len(self._cached[slot]):
            if self._lib.llama_memory_seq_rm(self._memory, slot, keep, -1):
                del self._cached[slot][keep:]
            else:
                self._forget(slot)
                keep = 0
        return keep

    def _take_system(self, generation: _Generation) -> None:
        """Copy the system prompt from a sequence that has it, if there is one by now."""
        share = min(generation.system, generation.reusable)
        if not self._can_share or generation.done >= share:
            return
        slot, wanted = generation.slot, generation.prompt[:share]
        for donor, cached in enumerate(self._cached):
            if donor != slot and cached[:share] == wanted:
                self._lib.llama_memory_seq_cp(self._memory, donor, slot, generation.done, share)
                self._cached[slot] += wanted[generation.done :]
                generation.done = generation.cached = share
                return

    def _keep_system(self, generation: _Generation) -> None:
        """Keep the system prompt of a prompt just decoded for rooms that join after this one has left."""
        wanted = generation.prompt[: generation.system]
        if not wanted or not self._can_share or self._cached[self._shared] == wanted:
            return
        self._forget(self._shared)
        self._lib.llama_memory_seq_cp(self._memory, generation.slot, self._shared, 0, generation.system)
        self._cached[self._shared] = wanted

    def _forget(self, sequence: int) -> None:
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._cached[sequence] = []
        if sequence < self._slots:
            self._said[sequence] = SaidMessages(self._piece, self._control_tokens)

    # --- text and tokens ----------------------------------------------------------------------

    def _prompt(self, slot: int, messages: Sequence[Message], sampling: Sampling) -> tuple[list[int], int]:
        """The tokens of ``messages``, and how many of them are the system prompt's."""
        if messages[0].role != "system" or (len(messages) == 1 and sampling.max_tokens):
            return self._said[slot].put_into(self._tokenize(messages)), 0
        system = self._system_tokens(messages[0])
        if len(messages) == 1:
            return system, len(system)
        prompt = self._said[slot].put_into(self._tokenize(messages))
        return prompt, common_prefix(system, prompt)

    def _system_tokens(self, system: Message) -> list[int]:
        """What any conversation with this system message begins with."""
        if self._system[0] != system.content:
            one = self._tokenize([system, Message("user", "a")])
            other = self._tokenize([system, Message("user", "1")])
            self._system = (system.content, one[: common_prefix(one, other)])
        return self._system[1]

    def _tokenize(self, messages: Sequence[Message]) -> list[int]:
        assert self._template is not None
        text = self._template.render(messages)
        data = text.encode("utf-8", "replace")
        # A template that writes the begin token itself must not get a second one.
        add_special = not (self._template.bos and text.startswith(self._template.bos))
        size = len(data) + 8
        tokens = (ctypes.c_int32 * size)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, size, add_special, True)
        if count <= 0:
            raise EngineError(f"language model: the prompt ({len(data)} bytes) cannot be tokenised")
        return tokens[:count]

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            size = 256
            while True:
                buffer = ctypes.create_string_buffer(size)
                count = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
                if count >= 0:
                    break
                size = -count
            piece = self._pieces[token] = buffer.raw[:count]
        return piece

    def _sampler(self, sampling: Sampling) -> Any:
        lib = self._lib
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = lib.llama_sampler_chain_init(params)

        def add(sampler: Any) -> None:
            lib.llama_sampler_chain_add(chain, sampler)

        if sampling.repeat_penalty != 1.0:
            vocabulary = lib.llama_vocab_n_tokens(self._vocab)
            add(lib.llama_sampler_init_penalties(vocabulary, _PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0))
        if sampling.temperature <= 0.0:
            add(lib.llama_sampler_init_greedy())
            return chain
        add(lib.llama_sampler_init_top_k(_TOP_K))
        if sampling.top_p < 1.0:
            add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        add(lib.llama_sampler_init_temp(sampling.temperature))
        add(lib.llama_sampler_init_dist(_RANDOM_SEED if sampling.seed < 0 else sampling.seed & 0x7FFFFFFF))
        return chain

    def _check_slot(self, slot: int) -> None:
        if self._context is None:
            raise EngineError("language model: not loaded")
        if not 0 <= slot < self._slots:
            raise EngineError(f"language model: slot {slot} is not in 0..{self._slots - 1}")


@dataclass(slots=True)
class _Generation:
    request: int
    slot: int
    prompt: list[int]
    system: int  # how many prompt tokens are the system prompt's
    reusable: int  # how many prompt tokens need no decoding when they are in the cache
    done: int  # how many prompt tokens are in the cache
    cached: int  # how many of them were there before
    max_tokens: int
    sampler: Any
    text: TextStream
    next_token: int | None = None  # sampled, not decoded yet; None while the prompt is decoded
    completion: int = 0

    def is_prefilled(self) -> bool:
        """Whether nothing was asked for but the prompt, and it is in the cache."""
        return self.max_tokens == 0 and self.done == len(self.prompt)


@dataclass(slots=True)
class _Batch:
    """A ``llama_batch`` whose arrays are numpy's, so that a chunk is written in one assignment.

    One row is one token: its id, its position, the one sequence it belongs to and whether its logits
    are wanted. ``native`` points into the arrays, which live as long as this object.
    """

    lib: Any
    size: int
    native: Any = field(init=False)
    _arrays: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        token = np.zeros(self.size, np.int32)
        position = np.zeros(self.size, np.int32)
        count = np.ones(self.size, np.int32)  # every token belongs to exactly one sequence
        sequence = np.zeros(self.size, np.int32)
        pointers = (sequence.ctypes.data + 4 * np.arange(self.size, dtype=np.uintp)).astype(np.uintp)
        logits = np.zeros(self.size, np.int8)
        self._arrays = (token, position, sequence, logits, count, pointers)
        fields: dict[str, Callable[[], Any]] = {
            "token": lambda: token,
            "pos": lambda: position,
            "n_seq_id": lambda: count,
            "seq_id": lambda: pointers,
            "logits": lambda: logits,
        }
        types = dict(self.lib.llama_batch._fields_)
        self.native = self.lib.llama_batch(n_tokens=0)
        for name, array in fields.items():
            setattr(self.native, name, ctypes.cast(array().ctypes.data, types[name]))

    def clear(self) -> None:
        self.native.n_tokens = 0

    def add(self, tokens: Sequence[int], position: int, sequence: int, logits: bool) -> int:
        """Append ``tokens`` from ``position`` on; ``logits`` asks for the last one's. Returns the last row."""
        start = self.native.n_tokens
        end = start + len(tokens)
        token, positions, sequences, wanted, _, _ = self._arrays
        token[start:end] = tokens
        positions[start:end] = np.arange(position, position + len(tokens))
        sequences[start:end] = sequence
        wanted[start:end] = 0
        wanted[end - 1] = logits
        self.native.n_tokens = end
        return int(end) - 1


def _redirect_log(lib: Any) -> None:
    """Send llama.cpp's log to Python's at debug level; it would go to stderr."""
    global _keep_log_callback
    if _keep_log_callback is None:
        error_level, continued = 4, 5  # enum ggml_log_level: debug 1, info 2, warn 3, error 4, cont 5

        def receive(level: int, text: bytes, _data: object) -> None:
            line = text.decode("utf-8", "replace").rstrip()
            if not line or line == "." or level == continued:
                return
            if level == error_level:
                _native_errors.append(line)
            _log.debug("llama.cpp: %s", line)

        _keep_log_callback = lib.llama_log_callback(receive)
    lib.llama_log_set(_keep_log_callback, ctypes.c_void_p(0))
