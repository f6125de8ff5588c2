"""The restaurant of the examples, over a real livekit-server, with the default models: asked and booked by voice."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from caller import RATE, Caller, call, until
from host_process import HostProcess, host_serve
from listening import normal, word_error_rate, words_in
from livekit_server import LiveKitServer
from records import endings
from speaking import spoken

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.e2e, pytest.mark.models]

AGENT = Path(__file__).parents[2] / "examples" / "restaurant.py"

CONFIG = """
[inference]
device = "cpu"
"""
MISHEARD = 0.34
"""Word error rate of one short sentence that the judge may cause."""


@pytest.fixture(scope="module")
def host(livekit: LiveKitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with host_serve(livekit, tmp_path_factory.mktemp("host"), str(AGENT), config=CONFIG) as host:
        host.wait_registered(120)
        yield host


async def ask(caller: Caller, agent: str, question: bytes) -> tuple[str, str]:
    """What the agent's transcript says to ``question``, and what was heard of it."""
    answers, heard_from = len(caller.texts(agent)), len(caller.heard)
    await caller.say(question)
    await caller.wait(lambda: len(caller.texts(agent)) > answers, 60, "the answer's transcript")
    await caller.wait_for_silence()
    heard = words_in(bytes(caller.heard[heard_from:]))
    (answer,) = caller.texts(agent)[answers:]
    logger.info("asked %r: answer %r, heard %r", caller.texts("caller")[-1], answer, heard)
    assert word_error_rate(answer, heard) <= MISHEARD, (answer, heard)
    return answer, heard


async def test_a_caller_asks_when_it_is_open_and_books_a_table(
    livekit: LiveKitServer, host: HostProcess, room_name: str
) -> None:
    when, book = spoken("When are you open on Friday?", "Please book a table for four people on Friday.")
    async with call(livekit.url, livekit.token(room_name, "caller")) as caller:
        await caller.wait_for_speech(30)
        (agent,) = (participant.identity for participant in caller.agents())
        await caller.wait(lambda: len(caller.texts(agent)) == 1, 30, "the greeting")
        await caller.wait_for_silence()
        assert len(caller.heard) > 2 * RATE

        answer, heard = await ask(caller, agent, when)
        assert normal(answer) == "on fridays we are open from noon to eleven in the evening"
        assert "noon" in normal(heard)

        answer, _ = await ask(caller, agent, book)
        assert normal(answer) == "a table for 4 on friday is booked"
        assert [record["message"] for record in host.records("booked: ")] == ["booked: friday, 4"]
        assert len(caller.texts("caller")) == 2
        await caller.hang_up()
    await until(lambda: bool(endings(livekit, room_name)), 10, "the job's end")
    assert endings(livekit, room_name) == [("JS_SUCCESS", "")]
