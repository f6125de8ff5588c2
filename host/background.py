"""What would block the event loop, in a thread of its own that nobody has to wait for at the end.

The threads of ``asyncio.to_thread`` are waited for when the program ends, however long they take; these are not.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


async def in_thread(name: str, work: Callable[[], T], abandoned: Callable[[T], None] | None = None) -> T:
    """Run ``work`` in a thread called ``name`` and return what it returns.

    Cancelled, this returns at once and the thread goes on; what it then returns is given to ``abandoned``,
    in the thread.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    lock = threading.Lock()
    given_up = False

    def deliver(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001 (it is raised where it is waited for)
            error = exc
        with lock:
            if not given_up:
                loop.call_soon_threadsafe(deliver, result, error)
                return
        if error is None and abandoned is not None:
            abandoned(result)  # type: ignore[arg-type]

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        return await done
    except asyncio.CancelledError:
        with lock:
            given_up = True
        raise


@asynccontextmanager
async def entered_in_thread(name: str, manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """``async with`` a manager whose beginning and end take their time."""

    def leave() -> None:
        manager.__exit__(None, None, None)

    value = await in_thread(name, manager.__enter__, lambda _: leave())
    try:
        yield value
    finally:
        await in_thread(name, leave)
