from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from rich.cells import cell_len
from rich.console import Console

from host.errors import ConnectionFailedError
from host.health import HealthServer
from host.status import bar, duration, fetch, memory, percent, render, round_trip, watch
from tests.host.seeing.describe import description, process

DEADLINE_S = 30.0


def shown(described: dict[str, Any], width: int = 80, **options: Any) -> str:
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    console.print(render(described, **options))
    return console.export_text()


# --- the table ------------------------------------------------------------------------------------


def test_at_80_columns() -> None:
    assert [line.rstrip() for line in shown(description()).splitlines()] == [
        " Roomful 0.1.0  AW_kc8PbgQ3vLkZ  registered, available",
        " agent reception, production, up 2 h 3 min",
        "",
        " load        ████████░░░░░░░░░░░░   42 %  of 70 % at most",
        "   cpu       ████████░░░░░░░░░░░░   42 %",
        "   memory    ░░░░░░░░░░░░░░░░░░░░    0 %  of what was left at start",
        "   pressure  ██░░░░░░░░░░░░░░░░░░   12 %  of the latest requests were late",
        "   jobs      █████░░░░░░░░░░░░░░░   25 %  2 of 8 rooms",
        " takes another room",
        "",
        " inference  on cpu  2 of 8 rooms  busy 37 %  pressure 12 %  1 restart",
        "   memory planned 1.8 GB of 21.4 GB, 50 MB a room: 247 more rooms would fit",
        "   stage  waiting  requests     late  batches",
        "   stt          1       120  3 (2 %)      118",
        "   llm          2        98  0 (0 %)    5,021",
        "   tts          0       240  7 (3 %)      312",
        "",
        " process     state          pid  room                 memory    ping        age",
        " ──────────────────────────────────────────────────────────────────────────────",
        " inference   running       4101  -                    1.8 GB  1.2 ms  2 h 3 min",
        " forkserver  ready         4102  -                     38 MB       -  2 h 3 min",
        " job-7       running       4377  kitchen               61 MB  0.4 ms     12 min",
        " job-8       running       4379  front-desk-of-the-…   41 MB  0.4 ms     12 min",
        " job-9       initializing  4412  -                         -       -        0 s",
        "",
    ]


def test_at_120_columns_kinds_and_jobs_are_shown_and_rooms_in_full() -> None:
    lines = shown(description(), width=120).splitlines()
    assert re.search(r"process +kind +state +pid +room +job +memory +ping +age", lines[17])
    assert re.search(r"job-8 +job +running +4379 +front-desk-of-the-hotel +AJ_99zzV2Xr9b +41 MB", lines[22])


def busy() -> dict[str, Any]:
    """Everything as long as it gets."""
    room = "日本語の部屋" * 9
    return description(
        worker_status="WS_FULL",
        admission={"accepts": False, "reason": "CPU load 0.93 is not below 0.70 " * 4},
        processes=[
            process("inference", "inference", 4_194_304, memory_mb=123_456.0, ping_ms=54_321.0, age_s=86_400 * 400),
            *(
                process(f"job-{4000 + i}", "job", 4_194_000 + i, "initializing", room=room, job_id="AJ_" + "x" * 13)
                for i in range(50)
            ),
        ],
    )


@pytest.mark.parametrize("width", [80, 99, 100, 120, 200])
def test_no_line_is_too_long_and_no_number_is_cut(width: int) -> None:
    text = shown(busy(), width=width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    rows = [line for line in text.splitlines() if "job-4" in line]
    assert len(rows) == 50
    assert all(re.search(r"initializing +41940\d\d +日本.* 41 MB +0\.4 ms +12 min", row) for row in rows)
    assert re.search(r"4194304 .* 123\.5 GB +54\.3 s +400 d", text)
    assert "takes no room: CPU load 0.93" in text
    assert "registered, full" in text


def test_a_host_that_serves_nobody() -> None:
    inference = description()["inference"] | {"ready": False, "restarts": 3, "stages": []}
    text = shown(
        description(
            worker_id="",
            worker_status="",
            agent_name="",
            dev=True,
            draining=True,
            load_threshold=None,
            admission={"accepts": False, "reason": "draining"},
            inference=inference,
            processes=[],
        )
    )
    assert "Roomful 0.1.0  not registered, draining\n" in re.sub(" +\n", "\n", text)
    assert "every room, development, up 2 h 3 min" in text
    assert "no threshold" in text
    assert "takes no room: draining" in text
    assert "inference  not serving  3 restarts" in text
    assert "on cpu" not in text


def test_strangers_names_do_nothing_to_the_terminal() -> None:
    room = "[bold]x[/] \x1b[31m\x07\r\nend"
    text = shown(description(processes=[process("job-1", "job", 1, room=room)]), width=120)
    assert "[bold]x[/] \N{REPLACEMENT CHARACTER}[31m" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)


def test_a_terminal_without_unicode() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(width=80, file=file).print(render(description()))
    file.flush()
    text = file.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "########............   42 %" in text
    assert "front-desk-of-the" in text


def test_a_problem_stands_on_top_where_no_terminal_cuts_it_off() -> None:
    assert shown(description(), problem="no host answers").startswith(" no host answers ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (memory(0), "-"),
        (memory(41.3), "41 MB"),
        (memory(999.4), "999 MB"),
        (memory(999.6), "1.0 GB"),
        (round_trip(-1), "-"),
        (round_trip(0.44), "0.4 ms"),
        (round_trip(9.96), "10 ms"),
        (round_trip(999.6), "1.0 s"),
        (duration(-3), "0 s"),
        (duration(59.9), "59 s"),
        (duration(60), "1 min"),
        (duration(125), "2 min 5 s"),
        (duration(754), "12 min"),
        (duration(3600), "1 h"),
        (duration(7384), "2 h 3 min"),
        (duration(86_400 * 3 + 3600 * 4), "3 d 4 h"),
        (duration(86_400 * 400), "400 d"),
        (percent(0.005), "0 %"),
        (percent(1.0), "100 %"),
        (bar(0.0, width=4).plain, "░░░░"),
        (bar(0.01, width=4).plain, "█░░░"),
        (bar(1.0, width=4).plain, "████"),
        (bar(7.0, width=4, ascii_only=True).plain, "####"),
    ],
)
def test_values(value: str, text: str) -> None:
    assert value == text


# --- asking ---------------------------------------------------------------------------------------


@asynccontextmanager
async def host(describe: Callable[[], dict[str, Any]] = description) -> AsyncIterator[str]:
    health = HealthServer("127.0.0.1", 0, problem=lambda: "", describe=describe)
    await health.start()
    try:
        yield f"http://127.0.0.1:{health.port}"
    finally:
        await health.aclose()


@asynccontextmanager
async def stranger(answer: Callable[[], web.StreamResponse]) -> AsyncIterator[str]:
    async def handle(_: web.Request) -> web.StreamResponse:
        return answer()

    app = web.Application()
    app.router.add_get("/worker", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_host_is_asked_and_shown() -> None:
    async with asyncio.timeout(DEADLINE_S), host() as url:
        assert await asyncio.to_thread(fetch, url) == description()
        assert await asyncio.to_thread(fetch, url.removeprefix("http://") + "/") == description()
        console = Console(width=80, color_system=None, file=io.StringIO())
        await asyncio.to_thread(watch, url, once=True, console=console)
        assert "AW_kc8PbgQ3vLkZ" in console.file.getvalue()  # type: ignore[attr-defined]


async def test_once_as_json_is_one_object_on_one_line() -> None:
    async with asyncio.timeout(DEADLINE_S), host() as url:
        file = io.StringIO()
        await asyncio.to_thread(watch, url, once=True, as_json=True, console=Console(file=file))
        assert json.loads(file.getvalue()) == description()
        assert file.getvalue().count("\n") == 1


async def test_json_goes_on_until_the_host_is_gone() -> None:
    async with asyncio.timeout(DEADLINE_S):
        file = io.StringIO()
        asked = asyncio.Event()
        answers = 0

        def describe() -> dict[str, Any]:
            nonlocal answers
            answers += 1
            if answers == 3:
                asked.set()
            return description(active_jobs=answers)

        async with host(describe) as url:
            watching = asyncio.create_task(
                asyncio.to_thread(watch, url, 0.01, as_json=True, console=Console(file=file))
            )
            await asked.wait()
        with pytest.raises(ConnectionFailedError, match=re.escape(url)):
            await watching
        assert [json.loads(line)["active_jobs"] for line in file.getvalue().splitlines()][:3] == [1, 2, 3]


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionFailedError) as caught:
        watch(f"http://127.0.0.1:{port}")
    assert str(caught.value) == f"no host answers at http://127.0.0.1:{port}: connection refused"
    with pytest.raises(ConnectionFailedError, match="no host answers at ftp2://x: unknown url type: ftp2"):
        fetch("ftp2://x")
    with pytest.raises(ConnectionFailedError, match="no host answers at http://x:port: "):
        fetch("http://x:port")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda: web.Response(status=404), "no Roomful host (HTTP status 404)"),
        (lambda: web.Response(text="<html>"), "no Roomful host (no JSON)"),
        (lambda: web.Response(body=b"\xff\xfe\x00"), "no Roomful host (no JSON)"),
        (lambda: web.json_response([1]), "no Roomful host, or one of another version"),
        (lambda: web.json_response({"worker_id": ""}), "no Roomful host, or one of another version"),
    ],
)
async def test_somebody_else_answers(answer: Callable[[], web.Response], says: str) -> None:
    async with asyncio.timeout(DEADLINE_S), stranger(answer) as url:
        with pytest.raises(ConnectionFailedError) as caught:
            await asyncio.to_thread(fetch, url)
        assert str(caught.value) == f"what answers at {url} is {says}"


async def test_something_that_speaks_no_http_answers() -> None:
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail ready\r\n")
        writer.close()

    async with asyncio.timeout(DEADLINE_S), await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionFailedError, match=f"127.0.0.1:{port}"):
            await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}")


@pytest.mark.processes
async def test_the_live_table_outlives_its_host_and_ends_with_ctrl_c() -> None:
    """A real process, as on a terminal, for ``watch`` ends only with a signal."""
    program = (
        # A shell starts its background jobs with Ctrl-C ignored, and that is inherited.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys\nfrom rich.console import Console\nfrom host.status import watch\n"
        "watch(sys.argv[1], 0.05, console=Console(width=80, force_terminal=True))"
    )
    async with asyncio.timeout(DEADLINE_S):
        async with host() as url:
            watching = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            assert watching.stdout is not None
            try:
                seen = await _read_until(watching.stdout, b"AW_kc8PbgQ3vLkZ")
                assert b"takes another room" in seen + await _read_until(watching.stdout, b"takes another room")
            except BaseException:
                watching.kill()
                raise
        try:
            await _read_until(watching.stdout, b"no host answers at")
            watching.send_signal(signal.SIGINT)
            _, errors = await watching.communicate()
        except BaseException:
            watching.kill()
            raise
    assert (watching.returncode, errors) == (0, b"")


async def _read_until(stream: asyncio.StreamReader, what: bytes) -> bytes:
    seen = b""
    while what not in seen:
        piece = await stream.read(4096)
        assert piece, seen.decode()
        seen += piece
    return seen
