"""An agent without models that does what the job's metadata orders, an order and its argument.

"return"        ends at once, without the room
"visit"         joins the room and leaves it
"raise TEXT"    fails
"stay"          plays a tone to the caller until the caller leaves
"until PATH"    joins and stays until the file is there
"linger PATH"   the same, and is in no hurry: its shutdown callback waits for the file, too
"talk"          a conversation with the host's engines
"publish"       joins and publishes a track, or logs why it may not
"hoard"         takes memory without end, some 50 MB a second
"pause SECONDS" blocks its event loop for a while
"block"         never gives its event loop back
"""

from __future__ import annotations

import asyncio
import logging
import math
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from host import JobContext, VoiceAgent

RATE = 22_050
GREETING = "Hello there, caller, how are you today?"

logger = logging.getLogger("orders")


async def entrypoint(ctx: JobContext) -> None:
    order, _, argument = ctx.job.metadata.partition(" ")
    await ORDERS[order](ctx, argument)


async def return_at_once(ctx: JobContext, _: str) -> None:
    """Not even the room is joined."""


async def visit(ctx: JobContext, _: str) -> None:
    await ctx.connect()


async def fail(_: JobContext, text: str) -> None:
    raise ValueError(text)


async def stay(ctx: JobContext, _: str) -> None:
    await ctx.connect()
    await ctx.room.open_speech(RATE)
    await ctx.wait_for_participant("caller")
    tone = [int(8_000 * math.sin(2 * math.pi * 440 * n / RATE)) for n in range(RATE)]
    playing = asyncio.create_task(play(ctx, struct.pack(f"<{RATE}h", *tone)))
    await ctx.room.wait_closed()
    playing.cancel()


async def play(ctx: JobContext, pcm: bytes) -> None:
    while True:
        await ctx.room.play(pcm)


async def until(ctx: JobContext, path: str) -> None:
    await ctx.connect()
    await there(path)


async def linger(ctx: JobContext, path: str) -> None:
    async def callback(reason: str) -> None:
        logger.info("ending because %s", reason)
        await there(path)
        logger.info("ended in order")

    ctx.add_shutdown_callback(callback)
    await until(ctx, path)


async def there(path: str) -> None:
    while not Path(path).exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.05)


async def talk(ctx: JobContext, _: str) -> None:
    session = await ctx.start_session(VoiceAgent(instructions="Be kind.", greeting=GREETING))
    await session.wait_closed()


async def publish(ctx: JobContext, _: str) -> None:
    await ctx.connect()
    try:
        await ctx.room.open_speech(RATE)
    except Exception as exc:
        logger.info("cannot publish: %s", exc)
        raise
    logger.info("published")
    await ctx.room.wait_closed()


async def hoard(ctx: JobContext, _: str) -> None:
    await ctx.connect()
    hoarded = []
    while True:
        hoarded.append(bytearray(b"\1" * 10_000_000))
        await asyncio.sleep(0.2)


async def pause(ctx: JobContext, seconds: str) -> None:
    await ctx.connect()
    time.sleep(float(seconds))  # noqa: ASYNC251 - that is what is ordered
    # The answer to the ping that came meanwhile goes out before the end.
    await asyncio.sleep(1.0)


async def block(ctx: JobContext, _: str) -> None:
    await ctx.connect()
    asyncio.create_task(a_task_that_waits(), name="bystander")  # noqa: RUF006 - only its stack is wanted
    await asyncio.sleep(0.2)
    never_gives_the_loop_back()


async def a_task_that_waits() -> None:
    await asyncio.sleep(3600)


def never_gives_the_loop_back() -> None:
    while True:
        time.sleep(0.1)


ORDERS: dict[str, Callable[[JobContext, str], Awaitable[None]]] = {
    "return": return_at_once,
    "visit": visit,
    "raise": fail,
    "stay": stay,
    "until": until,
    "linger": linger,
    "talk": talk,
    "publish": publish,
    "hoard": hoard,
    "pause": pause,
    "block": block,
}
