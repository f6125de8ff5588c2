from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from workers import until

from host.background import entered_in_thread, in_thread


async def test_it_returns_and_raises_what_the_work_does() -> None:
    assert await in_thread("worker-bee", lambda: threading.current_thread().name) == "worker-bee"
    with pytest.raises(ZeroDivisionError):
        await in_thread("worker-bee", lambda: 1 / 0)


async def test_nobody_waits_for_abandoned_work_and_its_result_is_given_back() -> None:
    go_on = threading.Event()
    returned: list[int] = []

    def work() -> int:
        go_on.wait(30)
        return 7

    task = asyncio.create_task(in_thread("slow", work, returned.append))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not returned
    go_on.set()
    await until(lambda: returned == [7])


async def test_a_manager_is_left_however_it_was_entered() -> None:
    go_on = threading.Event()
    went: list[str] = []

    @contextmanager
    def manager() -> Iterator[int]:
        go_on.wait(30)
        went.append("in")
        try:
            yield 7
        finally:
            went.append("out")

    async def use() -> None:
        async with entered_in_thread("slow", manager()) as value:
            assert value == 7
            raise KeyError(value)

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert went == []
    go_on.set()
    await until(lambda: went == ["in", "out"])
    with pytest.raises(KeyError):
        await use()
    assert went == ["in", "out"] * 2
