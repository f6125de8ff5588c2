#!/usr/bin/env python3
"""What the rooms' conversations cost the language model.

    python scripts/bench/llm.py [--rooms 8] [--turns 6] [--repeats 3] [--profile cpu-small] [--device cpu]

Every room has a conversation of its own, and all ask at the same moment, the worst case. Compared are

* our engine: all rooms in one batch, each with its KV cache, the system prompt decoded once;
* a bare loop: the very same batches (recorded from our engine, with its cuts and copies of the KV cache)
  through ``llama_decode`` and nothing else: no sampling, no text, no Python between the calls that is not the
  call's own. What our engine loses against it is its overhead;
* the stock way: one ``Llama``, ``create_chat_completion``, the rooms served in turn.

The last line is one JSON object; ``bars`` are what must hold.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import Bar, console, finish, hardware, percentile, table, versions, warn_if_busy
from sides import give_back, in_process

from inference.engines.base import EngineOptions, GenerationFailed, Message, Sampling
from inference.engines.llm import LlamaLanguageModel
from models.catalog import resolve

THROUGHPUT_SHARE = 0.95
EXTRA_PREFILL = 2
FIRST_TOKEN_SHARE = 0.25
REPLY_TOKENS = 32
CONTEXT_TOKENS = 2048
SYSTEM = (
    "You are the voice assistant of a small hotel by the sea. You answer questions about rooms, breakfast, the "
    "town and how to get here. You speak, so you answer in one or two short sentences, without lists or symbols. "
    "When you do not know something, say so and offer to ask the front desk."
)
OPENINGS = ("Hello, ", "Excuse me, ", "One more thing, ", "Good to know, and ", "All right, ", "Thanks, ")
QUESTIONS = (
    "when is breakfast served?",
    "is there a room with a view of the harbour for two nights?",
    "how do I get to you from the railway station?",
    "can I bring my dog?",
    "what could we do with the children when it rains?",
    "do you have a place where I can leave my bicycle over night?",
    "which restaurant in the town would you recommend for tonight?",
    "how late can I check out on Sunday?",
)
SAMPLING = Sampling(temperature=0.7, top_p=0.95, seed=7, max_tokens=REPLY_TOKENS)


def question(room: int, turn: int) -> str:
    """What the caller in ``room`` says in ``turn``."""
    return OPENINGS[turn % len(OPENINGS)] + QUESTIONS[(room + 3 * turn) % len(QUESTIONS)]


# --- ours -----------------------------------------------------------------------------------------


@dataclass
class Run:
    """One run of all conversations, in seconds and tokens."""

    seconds: float = 0.0
    tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    extra_prefill: list[int] = field(default_factory=list)
    """Per turn: prompt tokens decoded beyond those that were not in the room's cache before."""
    prefill: list[int] = field(default_factory=list)


def converse(engine: LlamaLanguageModel, rooms: int, turns: int) -> Run:
    """All rooms ask at once and are answered; then all ask again."""
    for room in range(rooms):
        engine.release(room)
    run = Run()
    chats = [[Message("system", SYSTEM)] for _ in range(rooms)]
    in_cache = [0] * rooms
    for turn in range(turns):
        for room, chat in enumerate(chats):
            chat.append(Message("user", question(room, turn)))
        replies = [""] * rooms
        began = time.perf_counter()
        for room, chat in enumerate(chats):
            engine.start(room, room, chat, SAMPLING)
        while engine.running():
            for out in engine.step():
                if isinstance(out, GenerationFailed):
                    raise SystemExit(f"room {out.request}: {out.error}")
                if out.text and not replies[out.request]:
                    run.first_token_s.append(time.perf_counter() - began)
                replies[out.request] += out.text
                if out.finish is not None:
                    room = out.request
                    run.tokens += out.completion_tokens
                    run.prefill.append(out.prompt_tokens - out.cached_tokens)
                    if turn:
                        run.extra_prefill.append(in_cache[room] - out.cached_tokens)
                    # The last token is sampled and not decoded.
                    in_cache[room] = out.prompt_tokens + out.completion_tokens - 1
        run.seconds += time.perf_counter() - began
        for room, chat in enumerate(chats):
            chat.append(Message("assistant", replies[room]))
    return run


# --- the bare loop --------------------------------------------------------------------------------


Operation = tuple[str, Any]


@contextmanager
def recorded(lib: Any) -> Iterator[list[Operation]]:
    """Everything that is done to the context while it lasts: batches, and cuts and copies of the KV cache."""
    operations: list[Operation] = []
    names = ("llama_decode", "llama_memory_seq_rm", "llama_memory_seq_cp", "llama_memory_seq_add")
    real: dict[str, Callable[..., Any]] = {name: getattr(lib, name) for name in names}

    def decode(context: Any, batch: Any) -> Any:
        count = batch.n_tokens
        sequences = [batch.seq_id[row][0] for row in range(count)]
        operations.append(
            ("llama_decode", (batch.token[:count], batch.pos[:count], sequences, bytes(batch.logits[:count])))
        )
        return real["llama_decode"](context, batch)

    def other(name: str) -> Callable[..., Any]:
        def call(memory: Any, *arguments: int) -> Any:
            operations.append((name, arguments))
            return real[name](memory, *arguments)

        return call

    try:
        lib.llama_decode = decode
        for name in names[1:]:
            setattr(lib, name, other(name))
        yield operations
    finally:
        for name, function in real.items():
            setattr(lib, name, function)


def load(engine: LlamaLanguageModel, arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Load the engine's model; returns llama.cpp's model and the parameters of the context that was made."""
    import llama_cpp

    made: list[tuple[Any, Any]] = []
    real = llama_cpp.llama_init_from_model

    def make(model: Any, parameters: Any) -> Any:
        made.append((model, parameters))
        return real(model, parameters)

    llama_cpp.llama_init_from_model = make
    try:
        options = EngineOptions(arguments.device, arguments.threads, arguments.rooms, CONTEXT_TOKENS)
        engine.load(resolve(arguments.profile).llm.path, options)
    finally:
        llama_cpp.llama_init_from_model = real
    return made[-1]


class BareLoop:
    """A context like our engine's, and recorded operations, ready to be called one after the other.

    ``before``: what led to the state of the KV cache that ``operations`` begin with.
    """

    def __init__(self, model: Any, parameters: Any, before: list[Operation], operations: list[Operation]) -> None:
        import llama_cpp

        self._lib = llama_cpp
        self._context = llama_cpp.llama_init_from_model(model, parameters)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._keep: list[Any] = []
        for call in self._prepared(before):
            call()
        self._calls = self._prepared(operations)

    def _prepared(self, operations: list[Operation]) -> list[Callable[[], Any]]:
        calls: list[Callable[[], Any]] = []
        for name, arguments in operations:
            if name == "llama_decode":
                calls.append(functools.partial(self._lib.llama_decode, self._context, self._batch(*arguments)))
            else:
                calls.append(functools.partial(getattr(self._lib, name), self._memory, *arguments))
        return calls

    def _batch(self, tokens: list[int], positions: list[int], sequences: list[int], logits: bytes) -> Any:
        batch = self._lib.llama_batch_init(len(tokens), 0, 1)
        self._keep.append(batch)
        batch.n_tokens = len(tokens)
        for row, (token, position, sequence) in enumerate(zip(tokens, positions, sequences, strict=True)):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, logits[row]
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        return batch

    def run(self) -> float:
        """Seconds for all of it; it begins with emptying the rooms' KV caches, so it can be run again."""
        began = time.perf_counter()
        for call in self._calls:
            call()
        # llama_decode returns before a GPU has finished.
        self._lib.llama_synchronize(self._context)
        return time.perf_counter() - began

    def close(self) -> None:
        """Free batches and context."""
        for batch in self._keep:
            self._lib.llama_batch_free(batch)
        self._lib.llama_free(self._context)


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Our engine and the bare loop, in turns, so that both see the same machine."""
    import llama_cpp

    engine = LlamaLanguageModel()
    model, parameters = load(engine, arguments)
    with recorded(llama_cpp) as before:
        cold = converse(engine, arguments.rooms, arguments.turns)
    with recorded(llama_cpp) as operations:
        converse(engine, arguments.rooms, arguments.turns)
    bare = BareLoop(model, parameters, before, operations)
    bare.run()
    runs, bare_s = [], []
    for _ in range(arguments.repeats):
        runs.append(converse(engine, arguments.rooms, arguments.turns))
        bare_s.append(bare.run())
    bare.close()
    engine.close()
    rows = [len(given[0]) for name, given in operations if name == "llama_decode"]
    return {
        "tokens": runs[0].tokens,
        "seconds": [run.seconds for run in runs],
        "bare_seconds": bare_s,
        "first_token_s": [value for run in runs for value in run.first_token_s],
        "extra_prefill": runs[0].extra_prefill,
        "prefill": runs[0].prefill,
        "cold_prefill": cold.prefill,
        "decodes": len(rows),
        "rows": sum(rows),
    }


# --- stock ----------------------------------------------------------------------------------------


def stock(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rooms ask at once and are served one after the other."""
    from stock import StockLanguageModel

    model = StockLanguageModel(resolve(arguments.profile).llm.path, arguments.device, arguments.threads, CONTEXT_TOKENS)
    model.answer([{"role": "user", "content": "Say hello."}], 8)
    chats = [[{"role": "system", "content": SYSTEM}] for _ in range(arguments.rooms)]
    first_token_s, seconds, tokens = [], 0.0, 0
    for turn in range(arguments.turns):
        waited = 0.0
        for room, chat in enumerate(chats):
            chat.append({"role": "user", "content": question(room, turn)})
            first_s, taken_s, text, count = model.answer(chat, REPLY_TOKENS)
            first_token_s.append(waited + first_s)
            waited += taken_s
            tokens += count
            chat.append({"role": "assistant", "content": text})
        seconds += waited
    model.close()
    return {"tokens": tokens, "seconds": seconds, "first_token_s": first_token_s}


# --- what is shown --------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of both sides; 0: as many as there are cores")
    parser.add_argument("--profile", default="cpu-small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--speech", type=Path, help="taken as by the other benches; text needs no recordings")
    parser.add_argument("--side", choices=("ours", "stock"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.threads:
        arguments.threads = len(os.sched_getaffinity(0))
    if arguments.side:
        give_back(ours(arguments) if arguments.side == "ours" else stock(arguments))
        return 0

    console.print(hardware())
    console.print(versions("llama-cpp-python"), f"{resolve(arguments.profile).llm.model.name},", end=" ")
    console.print(f"{arguments.rooms} rooms × {arguments.turns} turns, {arguments.threads} threads")
    warn_if_busy()
    given = [
        f"--{key}={getattr(arguments, key)}" for key in ("rooms", "turns", "repeats", "threads", "profile", "device")
    ]
    theirs = in_process(__file__, *given, "--side=stock", ours=False)
    us = in_process(__file__, *given, "--side=ours", ours=True)

    our_s, bare_s = statistics.median(us["seconds"]), statistics.median(us["bare_seconds"])
    share = statistics.median(bare / ours for bare, ours in zip(us["bare_seconds"], us["seconds"], strict=True))
    first, stock_first = percentile(us["first_token_s"], 0.95), percentile(theirs["first_token_s"], 0.95)
    table(
        "Conversations of all rooms, with their prompts",
        ("", "tokens/s", "first token p50 ms", "first token p95 ms", "seconds"),
        [
            ("bare loop", us["tokens"] / bare_s, "", "", bare_s),
            ("ours", us["tokens"] / our_s, 1e3 * percentile(us["first_token_s"], 0.5), 1e3 * first, our_s),
            (
                "stock, in turn",
                theirs["tokens"] / theirs["seconds"],
                1e3 * percentile(theirs["first_token_s"], 0.5),
                1e3 * stock_first,
                theirs["seconds"],
            ),
        ],
        f"{us['decodes']} calls of llama_decode with {us['rows']} tokens; {us['tokens']} tokens answered",
    )
    for name, prefill in (("for the first time", us["cold_prefill"]), ("when others have gone before", us["prefill"])):
        turns = [sum(prefill[start : start + arguments.rooms]) for start in range(0, len(prefill), arguments.rooms)]
        console.print(f"prompt tokens decoded a turn, all rooms, {name}:", ", ".join(map(str, turns)))
    return finish(
        "llm",
        [
            Bar("tokens per second against the bare loop's", share, "×", THROUGHPUT_SHARE, at_least=True),
            Bar("prompt tokens decoded again in a turn, most", max(us["extra_prefill"], default=0), "", EXTRA_PREFILL),
            Bar("time to first token p95 against stock's", first / stock_first, "×", FIRST_TOKEN_SHARE),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
