#!/usr/bin/env python3
"""What rooms do to each other at full load, on the real models: cancelling, flooding, poison.

    python scripts/bench/load.py [--speech DIR] [--callers 4] [--turns 4] [--rounds 2] [--cancels 100]

* Cancel: every room transcribes, generates and speaks without end. Time from a cancel to the end of a phrase; from
  then on nothing of it is written into the room's ring, which is looked at again after the next quanta.
* Flood: callers hold conversations, by turns without and with one more room that asks for everything at once: eight
  transcriptions at a time, a long answer, long phrases, none of which it listens to.
* Poison: requests that are wrong or too much, while others are answered as ever. (Audio that is no numbers cannot
  come through a ring of int16; ``tests/inference/test_poison.py`` hands it to the lane directly.)

The last line is one JSON object; ``bars`` are what must hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from callers import Caller, Inference, inference
from report import Bar, console, finish, hardware, percentile, table, warn_if_busy
from speech import DEFAULT_FOLDER, Recording, read_recordings

from inference.client import InferenceRoom, RequestFailedError
from inference.wire import messages as m

CANCEL_P99_MS = 50.0
FLOOD_RAISES_P95 = 20.0
LOOK_AGAIN_S = 0.3
PASSAGE = (
    "The harbour is quiet in the morning, and the boats come in one after the other while the market opens, "
    "and whoever wants the best fish has to be there before the church clock strikes seven."
)
CHAT = (m.ChatMessage("user", "Tell me a long story about the sea."),)


# --- what goes on without end ---------------------------------------------------------------------


async def transcribing(room: InferenceRoom, samples: int) -> None:
    while True:
        await room.transcribe(0, samples, language="en")


async def generating(room: InferenceRoom) -> None:
    while True:
        async for _ in room.generate(CHAT, max_tokens=400, temperature=0.0):
            pass


async def speaking(room: InferenceRoom) -> None:
    while True:
        await room.speak(PASSAGE).wait()


async def taking(room: InferenceRoom) -> None:
    """Takes all speech at once: a room that is never ahead of its listener."""
    while True:
        await room.wait_speech()
        room.read_speech(1 << 20)


@asynccontextmanager
async def going_on(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """The work goes on as long as the block lasts."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
        yield
        for task in tasks:
            task.cancel()


def everything(room: InferenceRoom, samples: int, transcriptions: int) -> list[Coroutine[Any, Any, None]]:
    return [
        *(transcribing(room, samples) for _ in range(transcriptions)),
        generating(room),
        speaking(room),
        taking(room),
    ]


# --- the three parts --------------------------------------------------------------------------------


async def cancels(running: Inference, recording: Recording, callers: int, count: int) -> list[Bar]:
    pcm = (recording.audio * 32_767).astype("int16").tobytes()
    took_ms, late = [], 0
    async with running.rooms(callers + 1) as (room, *others):
        for one in others:
            one.push(pcm)
        async with going_on(*(work for one in others for work in everything(one, len(pcm) // 2, 2))):
            for number in range(count):
                phrases = [room.speak(PASSAGE), room.speak(PASSAGE)]
                await phrases[0].wait_started()
                # At another moment of the lane's work each time.
                await asyncio.sleep(0.001 * (number * 37 % 100))
                began = time.perf_counter()
                for phrase in phrases:
                    phrase.cancel()
                for phrase in phrases:
                    try:
                        await phrase.wait()
                    except RequestFailedError:
                        continue
                    raise SystemExit("a phrase of many seconds was spoken to its end within a tenth of one")
                took_ms.append(1000 * (time.perf_counter() - began))
                silent_at = room.skip_speech()
                if number % 5 == 0:
                    await asyncio.sleep(LOOK_AGAIN_S)
                    late += room.skip_speech() != silent_at
    p50, p99 = percentile(took_ms, 0.5), percentile(took_ms, 0.99)
    console.print(f"cancel to silence: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {max(took_ms):.1f} ms")
    return [
        Bar("cancel to silence at full load, p99", p99, "ms", CANCEL_P99_MS),
        Bar("phrases of which something was written after their end", late, "phrases", 0),
    ]


async def flood(running: Inference, recordings: Sequence[Recording], arguments: argparse.Namespace) -> list[Bar]:
    quiet: list[float] = []
    flooded: list[float] = []
    number = arguments.callers
    pcm = (recordings[-1].audio * 32_767).astype("int16").tobytes()
    for _ in range(arguments.rounds):
        for responses, floods in ((quiet, False), (flooded, True)):
            async with running.rooms(number + 1) as (flooder, *rooms):
                flooder.push(pcm)
                work = everything(flooder, len(pcm) // 2, 8) if floods else []
                async with going_on(*work):
                    # What it is like has to be known first: its first second is a room's like any other.
                    await asyncio.sleep(2.0)
                    callers = [
                        Caller(room, recordings[n:] or recordings, arguments.cycle) for n, room in enumerate(rooms)
                    ]
                    offset = arguments.cycle / number
                    await asyncio.gather(
                        *(caller.converse(arguments.turns, n * offset) for n, caller in enumerate(callers))
                    )
                responses += [response for caller in callers for response in caller.responses_s]
    rows = [
        (name, len(responses), percentile(responses, 0.5), percentile(responses, 0.95), max(responses))
        for name, responses in (("without", quiet), ("with a room that floods", flooded))
    ]
    table(f"{number} callers, last sound … first audio", ("", "turns", "p50 s", "p95 s", "longest s"), rows)
    raised = 100 * (percentile(flooded, 0.95) / percentile(quiet, 0.95) - 1)
    return [Bar("a flooding room raises the others' p95 by", raised, "%", FLOOD_RAISES_P95)]


async def poison(running: Inference, recording: Recording, trace: Path) -> list[Bar]:
    pcm = (recording.audio * 32_767).astype("int16").tobytes()
    samples = len(pcm) // 2
    spoilt: list[str] = []

    async def is_refused(what: str, request: Coroutine[Any, Any, object], *codes: str) -> None:
        try:
            await request
        except RequestFailedError as exc:
            if exc.code not in codes:
                spoilt.append(f"{what}: {exc}")
        else:
            if codes:
                spoilt.append(f"{what} was served")

    async def text_of(room: InferenceRoom, *messages: m.ChatMessage, max_tokens: int = 32) -> str:
        generation = room.generate(messages, max_tokens=max_tokens, temperature=0.0)
        return "".join([piece async for piece in generation])

    async def is_well(room: InferenceRoom, expected: str) -> None:
        heard = await room.transcribe(0, samples, language="en")
        if heard.text != expected:
            spoilt.append(f"{room} heard {heard.text!r}")
        if not await text_of(room, *CHAT):
            spoilt.append(f"{room} has no answer")
        phrase = room.speak("All is well.")
        await phrase.wait()
        if phrase.start is None or phrase.end is None or phrase.end <= phrase.start:
            spoilt.append(f"{room} is silent")
        room.skip_speech()

    async with running.rooms(4) as (bad, *others):
        for room in (bad, *others):
            room.push(pcm)
        expected = (await others[0].transcribe(0, samples, language="en")).text
        megabyte = [m.ChatMessage("user", "word " * 38_000)] * 5
        poisons = (
            ("an utterance of no length", bad.transcribe(100, 100), ("invalid",)),
            ("audio that is gone", bad.transcribe(10_000_000, 10_016_000), ("invalid",)),
            ("a language nobody speaks", bad.transcribe(0, samples, language="xx"), ("engine",)),
            ("a prompt of a megabyte", text_of(bad, *megabyte), ("too_long",)),
            ("no text", text_of(bad, m.ChatMessage("user", "")), ()),
            ("a grammar that is none", _grammar(bad), ("engine",)),
            ("a phrase of nothing", bad.speak("").wait(), ()),
            ("a phrase of marks", bad.speak("?!… 🙂" * 200).wait(), ()),
            ("an endless answer", text_of(bad, *CHAT, max_tokens=1500), ()),
        )
        for what, request, codes in poisons:
            await asyncio.gather(is_refused(what, request, *codes), *(is_well(room, expected) for room in others))
            bad.skip_speech()
        await is_well(bad, expected)
        began = time.monotonic()
        await is_refused("a prompt of a megabyte", text_of(bad, *megabyte), "too_long")
        refused_ms = 1000 * (time.monotonic() - began)
        # The trace is written every half second.
        await asyncio.sleep(1.0)
    for one in spoilt:
        console.print(f"[red]{one}")
    text = trace.read_text()
    events = json.loads(text[: text.rindex("\n")].rstrip().rstrip(",") + "]")
    blocked_ms = max(
        event["dur"] / 1000
        for event in events
        if event["ph"] == "X" and event["name"].startswith("prefill") and event["ts"] / 1e6 >= began
    )
    console.print(f"a prompt of a megabyte is refused in {refused_ms:.1f} ms, of the lane's time {blocked_ms:.2f} ms")
    return [
        Bar("what poison spoils besides itself", len(spoilt), "requests", 0),
        Bar("the lane's time for a prompt of a megabyte", blocked_ms, "ms", 10.0),
    ]


async def _grammar(room: InferenceRoom) -> None:
    async for _ in room.generate(CHAT, grammar="root ::= ("):
        pass


async def measure(arguments: argparse.Namespace) -> list[Bar]:
    recordings = read_recordings(arguments.speech)
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory(prefix="roomful-bench-") as name:
        trace = Path(name) / "trace.json"
        async with inference(Path(name), arguments.callers + 1, trace) as running:
            if "poison" in arguments.parts:
                bars += await poison(running, recordings[0], trace)
            if "cancel" in arguments.parts:
                bars += await cancels(running, recordings[0], arguments.callers, arguments.cancels)
            if "flood" in arguments.parts:
                bars += await flood(running, recordings, arguments)
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, default=DEFAULT_FOLDER, help="folder with a transcripts.tsv")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4, help="of each caller, in each round")
    parser.add_argument("--rounds", type=int, default=2, help="without and with a flood")
    parser.add_argument("--cycle", type=float, default=10.0, help="seconds from one turn to the next")
    parser.add_argument("--cancels", type=int, default=100)
    parser.add_argument("--parts", nargs="+", default=["poison", "cancel", "flood"], help="poison, cancel, flood")
    arguments = parser.parse_args()
    console.print(hardware())
    warn_if_busy()
    return finish("load", asyncio.run(measure(arguments)))


if __name__ == "__main__":
    sys.exit(main())
