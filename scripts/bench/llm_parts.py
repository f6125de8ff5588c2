"""Parts of the language-model engine, measured alone: ``llm.py --kv``, ``--parking`` and ``--grammar``."""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from report import Bar, table

from inference.engines.base import EngineOptions, GenerationFailed, Message, Sampling
from inference.engines.llama_batch import Batch, redirect_log
from inference.engines.llm import LlamaLanguageModel
from models.catalog import resolve

# --- one KV cache for all rooms, or one each ---------------------------------------------------------

KV_SEQUENCES = (8, 32, 64)
KV_DEPTHS = (128, 512)
"""Tokens that each sequence has in its cache."""
KV_SYSTEM = 96
"""How many of them are the system prompt, which all share in a unified cache."""
KV_CONTEXT = 1024
KV_CHUNK = 128
KV_STEPS = 5


class _Context:
    """``sequences`` rooms with ``depth`` tokens each, in one cache or in one each."""

    def __init__(self, lib: Any, model: Any, sequences: int, depth: int, threads: int, unified: bool) -> None:
        self._lib = lib
        params = lib.llama_context_default_params()
        params.n_ctx = sequences * KV_CONTEXT
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = KV_CHUNK + sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = unified
        params.no_perf = True
        self._context = lib.llama_init_from_model(model, params)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = Batch(lib, KV_CHUNK + sequences)
        self._sequences = sequences
        self._depth = depth
        for start in range(0, depth, KV_CHUNK):
            self._decode([(0, start, min(KV_CHUNK, depth - start))])
        # The other sequences are copies, made quickly: what the tokens are does not matter to the time.
        size = lib.llama_state_seq_get_size(self._context, 0)
        state = np.empty(size, np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        lib.llama_state_seq_get_data(self._context, pointer, size, 0)
        for sequence in range(1, sequences):
            lib.llama_state_seq_set_data(self._context, pointer, size, sequence)
            if unified:
                lib.llama_memory_seq_rm(self._memory, sequence, 0, KV_SYSTEM)
                lib.llama_memory_seq_cp(self._memory, 0, sequence, 0, KV_SYSTEM)

    def _decode(self, parts: list[tuple[int, int, int]]) -> float:
        """Seconds for a batch of (sequence, position, tokens)."""
        self._batch.clear()
        for sequence, position, count in parts:
            self._batch.add([1000 + (position + i) % 4000 for i in range(count)], position, sequence, True)
        began = time.perf_counter()
        code = self._lib.llama_decode(self._context, self._batch.native)
        self._lib.llama_synchronize(self._context)
        taken = time.perf_counter() - began
        if code != 0:
            raise SystemExit(f"llama_decode returned {code}")
        return taken

    def step(self, stride: int = 1) -> float:
        """One token of each sequence, or of every second, as in a conversation not everybody is answered at once."""
        return self._cut(self._decode([(sequence, self._depth, 1) for sequence in range(0, self._sequences, stride)]))

    def prefill(self) -> float:
        """A chunk of one sequence's prompt beside one token of each of the others."""
        parts = [(sequence, self._depth, 1) for sequence in range(1, self._sequences)]
        return self._cut(self._decode([*parts, (0, self._depth, KV_CHUNK)]))

    def _cut(self, taken: float) -> float:
        for sequence in range(self._sequences):
            self._lib.llama_memory_seq_rm(self._memory, sequence, self._depth, -1)
        return taken

    def close(self) -> None:
        """Free the context."""
        self._lib.llama_free(self._context)


def measure_kv(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Median seconds of a step and of a step with a chunk of a prompt, both ways in turns."""
    import llama_cpp

    redirect_log(llama_cpp)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 999 if arguments.device == "cuda" else 0
    model = llama_cpp.llama_model_load_from_file(str(resolve(arguments.profile).llm.path).encode(), params)
    found = []
    for sequences in KV_SEQUENCES:
        for depth in KV_DEPTHS:
            both = [
                _Context(llama_cpp, model, sequences, depth, arguments.threads, unified) for unified in (True, False)
            ]
            times: dict[str, list[list[float]]] = {"step": [[], []], "half": [[], []], "prefill": [[], []]}
            for _ in range(KV_STEPS):
                for side, context in enumerate(both):
                    times["step"][side].append(context.step())
                    times["half"][side].append(context.step(2))
                    times["prefill"][side].append(context.prefill())
            for context in both:
                context.close()
            found.append(
                {
                    "sequences": sequences,
                    "depth": depth,
                    # The first step makes the graph.
                    **{name: [statistics.median(side[1:]) for side in sides] for name, sides in times.items()},
                }
            )
    llama_cpp.llama_model_free(model)
    return found


def show_kv(found: list[dict[str, Any]]) -> list[Bar]:
    """A table; there is nothing that must hold."""
    table(
        "One KV cache for all sequences (unified) against one each (split), ms, medians",
        (
            "sequences",
            "tokens",
            "all",
            "split",
            "",
            "every second",
            "split",
            "",
            f"+ {KV_CHUNK} of a prompt",
            "split",
            "",
        ),
        [
            (
                str(row["sequences"]),
                row["depth"],
                *(
                    cell
                    for name in ("step", "half", "prefill")
                    for cell in (*(1e3 * value for value in row[name]), f"{row[name][0] / row[name][1]:.2f} ×")
                ),
            )
            for row in found
        ],
        "a token of all sequences, of every second one, and of all but one beside a part of its prompt; "
        f"in the unified cache the first {KV_SYSTEM} tokens are one copy that all share",
    )
    return []


# --- idle rooms in host memory -------------------------------------------------------------------------

PARKING_TOKENS = (400, 900, 1600)


def measure_parking(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Of two rooms with place for one: a turn of the parked one, and the same computed again."""
    import llama_cpp

    engine = LlamaLanguageModel()
    found = []
    for tokens in PARKING_TOKENS:
        # A context in which one room has place, and not two.
        options = EngineOptions(arguments.device, arguments.threads, 2, tokens + 64, 1)
        engine.load(resolve(arguments.profile).llm.path, options)
        chats = [
            [
                Message("system", "You help."),
                Message("user", f"Room {room}. " + "We like the sea. " * ((tokens - 40) // 5)),
            ]
            for room in range(2)
        ]
        sizes: list[int] = []
        with _timed(llama_cpp, "llama_state_seq_get_data", "llama_state_seq_set_data", sizes=sizes) as calls:
            turns: dict[str, list[float]] = {"parked": [], "again": []}
            for repeat in range(3):
                for room in range(2):
                    taken, decoded, length = _turn(engine, room, chats[room])
                    if repeat:
                        assert decoded == 1, decoded
                        turns["parked"].append(taken)
        for _ in range(2):
            engine.release(0)
            turns["again"].append(_turn(engine, 0, chats[0])[0])
            engine.release(0)
        engine.release(1)
        found.append(
            {
                "tokens": length,
                "megabytes": sizes[-1] / 1e6,
                # The first copy of each direction touches memory for the first time.
                "out": statistics.median(calls["llama_state_seq_get_data"][1:]),
                "in": statistics.median(calls["llama_state_seq_set_data"]),
                **{name: min(some) for name, some in turns.items()},
            }
        )
    engine.close()
    return found


def _turn(engine: LlamaLanguageModel, room: int, chat: list[Message]) -> tuple[float, int, int]:
    """Seconds to the first token, prompt tokens decoded, prompt tokens."""
    began = time.perf_counter()
    engine.start(room, room, chat, Sampling(temperature=0.0, max_tokens=1))
    while engine.running():
        for out in engine.step():
            if isinstance(out, GenerationFailed):
                raise SystemExit(str(out.error))
            last = out
    return time.perf_counter() - began, last.prompt_tokens - last.cached_tokens, last.prompt_tokens


@contextmanager
def _timed(lib: Any, *names: str, sizes: list[int] | None = None) -> Iterator[dict[str, list[float]]]:
    """Seconds of each call of ``names``; ``sizes``: what they returned."""
    calls: dict[str, list[float]] = {name: [] for name in names}
    real = {name: getattr(lib, name) for name in names}

    def timed(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = real[name](*arguments)
            calls[name].append(time.perf_counter() - began)
            if sizes is not None:
                sizes.append(int(result))
            return result

        return call

    try:
        for name in names:
            setattr(lib, name, timed(name))
        yield calls
    finally:
        for name, function in real.items():
            setattr(lib, name, function)


def show_parking(found: list[dict[str, Any]]) -> list[Bar]:
    """A table, and that parking is worth it."""
    table(
        "A turn of a room whose KV cache was in host memory, against one that is computed again",
        ("tokens", "MB", "out ms", "out ms/MB", "back ms", "back ms/MB", "first token ms", "computed again ms"),
        [
            (
                str(row["tokens"]),
                row["megabytes"],
                1e3 * row["out"],
                1e3 * row["out"] / row["megabytes"],
                1e3 * row["in"],
                1e3 * row["in"] / row["megabytes"],
                1e3 * row["parked"],
                1e3 * row["again"],
            )
            for row in found
        ],
        "first token: another room's copy out, this one's back, one token decoded",
    )
    return [
        Bar(
            "first token of a parked room against computing it again",
            found[-1]["parked"] / found[-1]["again"],
            "×",
            0.5,
        )
    ]


# --- grammar -------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "nights": {"type": "integer", "minimum": 1, "maximum": 14},
        "breakfast": {"type": "boolean"},
        "wishes": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 4},
    },
    "required": ["name", "nights", "breakfast", "wishes"],
}


def measure_grammar(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rooms answer, with and without a schema: what a step costs, and what of it is not ``llama_decode``."""
    import llama_cpp

    engine = LlamaLanguageModel()
    engine.load(
        resolve(arguments.profile).llm.path, EngineOptions(arguments.device, arguments.threads, arguments.rooms, 512)
    )
    chat = [
        Message("system", "You take bookings."),
        Message("user", "Book two nights with breakfast for Ada Lovelace."),
    ]
    found = []
    for name, schema in (("free text", ""), ("JSON schema", json.dumps(SCHEMA))):
        tokens, starts, beyond, valid = 0, [], [], 0
        for repeat in range(arguments.repeats):
            texts = [""] * arguments.rooms
            for room in range(arguments.rooms):
                engine.release(room)
                began = time.perf_counter()
                engine.start(
                    room, room, chat, Sampling(0.8, seed=repeat + 9 * room, max_tokens=120, json_schema=schema)
                )
                starts.append(time.perf_counter() - began)
            with _timed(llama_cpp, "llama_decode") as calls:
                while engine.running():
                    rooms = len(engine.running())
                    began = time.perf_counter()
                    outs = engine.step()
                    taken = time.perf_counter() - began - calls["llama_decode"][-1]
                    beyond.append(taken / rooms)
                    for out in outs:
                        if isinstance(out, GenerationFailed):
                            raise SystemExit(str(out.error))
                        texts[out.request] += out.text
                        tokens += out.completion_tokens
                        if schema and out.finish == "stop":
                            json.loads(texts[out.request])
                            valid += 1
        found.append(
            {
                "name": name,
                "tokens": tokens,
                "start": statistics.median(starts),
                "beyond": [statistics.median(beyond), statistics.mean(beyond), max(beyond)],
                "valid": valid,
                "answers": arguments.rooms * arguments.repeats,
            }
        )
    engine.close()
    return found


def show_grammar(found: list[dict[str, Any]]) -> list[Bar]:
    """A table, and that every answer is JSON."""
    table(
        "What a token costs beyond llama_decode, us a token and room",
        ("", "tokens", "median", "mean", "most", "start ms"),
        [(row["name"], row["tokens"], *(1e6 * value for value in row["beyond"]), 1e3 * row["start"]) for row in found],
    )
    last = found[-1]
    return [Bar("answers that obey their schema", last["valid"] / last["answers"], "of all", 1.0, at_least=True)]


SIDES: dict[str, Callable[[argparse.Namespace], Any]] = {
    "kv": measure_kv,
    "parking": measure_parking,
    "grammar": measure_grammar,
}
TABLES: dict[str, Callable[[Any], list[Bar]]] = {"kv": show_kv, "parking": show_parking, "grammar": show_grammar}
