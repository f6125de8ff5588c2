"""What runs in the jobs of a load test: an agent with a name of its own, and the check of what was heard.

Loaded by job processes: the standard library, numpy and ours.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from host.job.agent import VoiceAgent
from host.job.builtin_agent import INSTRUCTIONS
from host.job.context import JobContext
from host.job.line import CALLER_RATE
from host.job.resample import resample
from inference.client import InferenceClient, InferenceError, InferenceRoom, RoomRefusedError

CHECK = "check "
"""The metadata of a job that checks: this, and the file that says what (``check_answers``)."""

_LONGEST_S = 28.0
"""What is longer is checked up to here: Whisper's window is 30 s."""
_SLOT_COMES_S, _LOOK_S = 30.0, 0.2
_LEAD = bytes(2 * CALLER_RATE // 4)


async def entrypoint(ctx: JobContext) -> None:
    """Hold a conversation under the name that the room's name ends with, or check what was heard."""
    if ctx.job.metadata.startswith(CHECK):
        await check_answers(ctx, Path(ctx.job.metadata.removeprefix(CHECK)))
        return
    name = name_of(ctx.room.name)
    agent = VoiceAgent(
        instructions=f"Your name is {name}. {INSTRUCTIONS}",
        greeting=f"Hello, this is {name}. How can I help you?",
    )
    await ctx.connect()
    session = await ctx.start_session(agent)
    await session.wait_closed()


def room_name(run: str, seat: int, call: int, name: str) -> str:
    """Of a room whose agent is called ``name``.

    >>> room_name("ab12", 3, 1, "Amber Badger")
    'loadtest-ab12-3-1-amber-badger'
    """
    return f"loadtest-{run}-{seat}-{call}-{name.lower().replace(' ', '-')}"


def name_of(room: str) -> str:
    """The inverse, for the name.

    >>> name_of("loadtest-ab12-3-1-amber-badger")
    'Amber Badger'
    """
    return " ".join(room.split("-")[-2:]).title()


async def check_answers(ctx: JobContext, file: Path) -> None:
    """Transcribe answers as they were heard. ``file``: a JSON array of ``{"file", "rate"}``, int16 PCM each.

    The texts go beside it, to ``file`` with the suffix ``.heard``: a JSON array in the same order, null where
    that failed.
    """
    items = json.loads(await asyncio.to_thread(file.read_text))
    client = await ctx.connect_inference()
    room = await _room(client, ctx.room.name)
    texts = [await _transcribe(room, Path(item["file"]), item["rate"]) for item in items]
    await asyncio.to_thread(file.with_suffix(".heard").write_text, json.dumps(texts))


async def _room(client: InferenceClient, name: str) -> InferenceRoom:
    """A slot, as soon as one is given back: the device may be busy with what the rooms before asked for last.

    Raises ``RoomRefusedError`` when none is for ``_SLOT_COMES_S``.
    """
    deadline_s = time.monotonic() + _SLOT_COMES_S
    while True:
        try:
            return await client.open_room(name)
        except RoomRefusedError:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(_LOOK_S)


async def _transcribe(room: InferenceRoom, file: Path, rate: int) -> str | None:
    pcm = await asyncio.to_thread(file.read_bytes)
    speech = resample(pcm[: round(2 * rate * _LONGEST_S) // 2 * 2], rate, CALLER_RATE)
    start = room.position
    room.push(_LEAD + speech + _LEAD)
    try:
        return (await room.transcribe(start, room.position, language="en")).text
    except InferenceError:
        return None
