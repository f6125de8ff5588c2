#!/usr/bin/env python3
"""What the rooms' conversations cost the language model.

    python scripts/bench/llm.py [--rooms 8] [--turns 6] [--repeats 3] [--profile cpu-small] [--device cpu]
    python scripts/bench/llm.py --kv | --parking | --grammar        other tables, see llm_parts.py

Every room has a conversation of its own, and all ask at the same moment, the worst case. Compared are

* our engine: all rooms in one batch, each with its KV cache, the system prompt decoded once;
* a bare loop: each of our engine's steps is repeated at once in a second context of the same model and size, as
  nothing but its calls of ``llama_decode`` and its cuts and copies of the KV cache: the same tokens at the same
  places, no sampling, no text, no Python that is not the calls' own. The two take turns step by step, some
  milliseconds apart, so both see the same machine. The share is that of the bare step's time in ours (without
  the time that taking notes for it cost), the median over the steps of all repeats. Most steps are one token a
  room, where our own work weighs most;
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

import llm_parts
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

    steps: list[tuple[int, float, float]] = field(default_factory=list)
    """Of each step: rows of its batch, seconds that ours took, seconds that the bare one took."""
    tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    extra_prefill: list[int] = field(default_factory=list)
    """Per turn: prompt tokens decoded beyond those that were not in the room's cache before."""
    prefill: list[int] = field(default_factory=list)


def converse(engine: LlamaLanguageModel, rooms: int, turns: int, shadow: Shadow) -> Run:
    """All rooms ask at once and are answered; then all ask again. ``shadow`` repeats each step."""
    for room in range(rooms):
        engine.release(room)
    shadow.repeat()
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
        taken = time.perf_counter() - began - shadow.noting_s()
        waited = 0.0
        while engine.running():
            began = time.perf_counter()
            outs = engine.step()
            taken += time.perf_counter() - began - shadow.noting_s()
            waited += taken
            rows = shadow.rows()
            run.steps.append((rows, taken, shadow.repeat()))
            taken = 0.0
            for out in outs:
                if isinstance(out, GenerationFailed):
                    raise SystemExit(f"room {out.request}: {out.error}")
                if out.text and not replies[out.request]:
                    run.first_token_s.append(waited)
                replies[out.request] += out.text
                if out.finish is not None:
                    room = out.request
                    run.tokens += out.completion_tokens
                    run.prefill.append(out.prompt_tokens - out.cached_tokens)
                    if turn:
                        run.extra_prefill.append(in_cache[room] - out.cached_tokens)
                    # The last token is sampled and not decoded.
                    in_cache[room] = out.prompt_tokens + out.completion_tokens - 1
        for room, chat in enumerate(chats):
            chat.append(Message("assistant", replies[room]))
    return run


# --- the bare loop --------------------------------------------------------------------------------


class Shadow:
    """A second context that does what the engine's did, in nothing but the calls that did it.

    While it is ``watching`` every call that changes the engine's context is noted, with copies of its arguments.
    """

    NAMES = ("llama_decode", "llama_memory_seq_rm", "llama_memory_seq_cp", "llama_memory_seq_add")

    def __init__(self, lib: Any, model: Any, parameters: Any) -> None:
        self._lib = lib
        self._context = lib.llama_init_from_model(model, parameters)
        self._memory = lib.llama_get_memory(self._context)
        self._real: dict[str, Callable[..., Any]] = {name: getattr(lib, name) for name in self.NAMES}
        self._calls: list[Callable[[], Any]] = []
        self._batches: list[Any] = []
        self._noting_s = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the calls made through the binding."""
        try:
            for name in self.NAMES:
                setattr(self._lib, name, functools.partial(self._note, name))
            yield
        finally:
            for name, function in self._real.items():
                setattr(self._lib, name, function)

    def _note(self, name: str, owner: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        real = self._real[name]
        if name == "llama_decode":
            batch = self._copy(arguments[0])
            self._batches.append(batch)
            self._calls.append(functools.partial(real, self._context, batch))
        else:
            self._calls.append(functools.partial(real, self._memory, *arguments))
        self._noting_s += time.perf_counter() - began
        result = real(owner, *arguments)
        if name == "llama_decode":
            # On a GPU llama_decode returns early; the engine would wait in its sampler.
            self._lib.llama_synchronize(owner)
        return result

    def _copy(self, given: Any) -> Any:
        batch = self._lib.llama_batch_init(given.n_tokens, 0, 1)
        batch.n_tokens = given.n_tokens
        for row in range(given.n_tokens):
            batch.token[row], batch.pos[row], batch.logits[row] = given.token[row], given.pos[row], given.logits[row]
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, given.seq_id[row][0]
        return batch

    def noting_s(self) -> float:
        """Seconds spent on noting since the last time this was asked."""
        noting, self._noting_s = self._noting_s, 0.0
        return noting

    def rows(self) -> int:
        """Tokens in the batches that wait to be repeated."""
        return sum(batch.n_tokens for batch in self._batches)

    def repeat(self) -> float:
        """Make the noted calls; returns the seconds that they took."""
        began = time.perf_counter()
        for call in self._calls:
            call()
        self._lib.llama_synchronize(self._context)
        taken = time.perf_counter() - began
        for batch in self._batches:
            self._lib.llama_batch_free(batch)
        self._calls, self._batches = [], []
        return taken

    def close(self) -> None:
        """Free the context."""
        self._lib.llama_free(self._context)


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


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Our engine and the bare loop, in turns, so that both see the same machine."""
    import llama_cpp

    engine = LlamaLanguageModel()
    shadow = Shadow(llama_cpp, *load(engine, arguments))
    with shadow.watching():
        cold = converse(engine, arguments.rooms, arguments.turns, shadow)
        runs = [converse(engine, arguments.rooms, arguments.turns, shadow) for _ in range(arguments.repeats)]
    shadow.close()
    engine.close()
    return {
        "tokens": [run.tokens for run in runs],
        "steps": [run.steps for run in runs],
        "first_token_s": [value for run in runs for value in run.first_token_s],
        "extra_prefill": [value for run in runs for value in run.extra_prefill],
        "prefill": runs[0].prefill,
        "cold_prefill": cold.prefill,
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
    parser.add_argument("--kv", action="store_true", help="instead: one KV cache for all rooms, or one each")
    parser.add_argument("--parking", action="store_true", help="instead: idle rooms in host memory and back")
    parser.add_argument("--grammar", action="store_true", help="instead: answers that obey a JSON schema")
    parser.add_argument("--side", choices=("ours", "stock", "kv", "parking", "grammar"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.threads:
        arguments.threads = len(os.sched_getaffinity(0))
    if arguments.side:
        sides = {"ours": ours, "stock": stock, **llm_parts.SIDES}
        give_back(sides[arguments.side](arguments))
        return 0

    console.print(hardware())
    console.print(versions("llama-cpp-python"), f"{resolve(arguments.profile).llm.model.name},", end=" ")
    console.print(f"{arguments.rooms} rooms × {arguments.turns} turns, {arguments.threads} threads")
    warn_if_busy()
    given = [
        f"--{key}={getattr(arguments, key)}" for key in ("rooms", "turns", "repeats", "threads", "profile", "device")
    ]
    for part, show in llm_parts.TABLES.items():
        if getattr(arguments, part):
            return finish("llm", show(in_process(__file__, *given, f"--side={part}", ours=True)))
    return compare(arguments, given)


def compare(arguments: argparse.Namespace, given: list[str]) -> int:
    """Ours, the bare loop and the stock way."""
    theirs = in_process(__file__, *given, "--side=stock", ours=False)
    us = in_process(__file__, *given, "--side=ours", ours=True)

    steps = [step for run in us["steps"] for step in run]
    share = statistics.median(bare / ours for _, ours, bare in steps)
    first, stock_first = percentile(us["first_token_s"], 0.95), percentile(theirs["first_token_s"], 0.95)
    quickest = []
    for side in (2, 1):
        seconds = [sum(step[side] for step in run) for run in us["steps"]]
        quickest.append(max((tokens / taken, taken) for tokens, taken in zip(us["tokens"], seconds, strict=True)))
    (bare_rate, bare_s), (our_rate, our_s) = quickest
    table(
        "Conversations of all rooms, with their prompts; the quickest repeat of each",
        ("", "tokens/s", "first token p50 ms", "first token p95 ms", "seconds"),
        [
            ("bare loop", bare_rate, "", "", bare_s),
            ("ours", our_rate, 1e3 * percentile(us["first_token_s"], 0.5), 1e3 * first, our_s),
            (
                "stock, in turn",
                theirs["tokens"] / theirs["seconds"],
                1e3 * percentile(theirs["first_token_s"], 0.5),
                1e3 * stock_first,
                theirs["seconds"],
            ),
        ],
    )
    kinds = {
        "one token a room": [step for step in steps if step[0] == arguments.rooms],
        "with prompts": [step for step in steps if step[0] > arguments.rooms],
    }
    table(
        f"Steps of all {arguments.repeats} repeats, medians",
        ("", "steps", "ours ms", "bare ms", "beyond ms", "share", "p10", "p90"),
        [
            (
                name,
                len(some),
                1e3 * statistics.median(ours for _, ours, _ in some),
                1e3 * statistics.median(bare for _, _, bare in some),
                1e3 * statistics.median(ours - bare for _, ours, bare in some),
                *(percentile([bare / ours for _, ours, bare in some], at) for at in (0.5, 0.1, 0.9)),
            )
            for name, some in kinds.items()
            if some
        ],
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
