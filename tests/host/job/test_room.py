"""What a room is told by a session, for the clients that show it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

from host.job.room import metrics_message
from host.job.settings import SessionSettings
from inference.wire.supervision import TurnReport
from tests.host.job.fakes import SAMPLES_PER_CHAR, until
from tests.host.job.test_session import Talk, talking

REPORT = TurnReport(
    job_id="AJ_1",
    turn=3,
    transcript="What time is it?",
    reply="Noon.",
    interrupted=False,
    audio_s=1.25,
    endpointing_ms=500.0,
    stt_ms=0.0,
    ttft_ms=81.23456,
    ttfa_ms=150.5,
    response_ms=680.0,
    reply_audio_s=0.5,
    out_start_s=1.0,
    out_end_s=1.5,
)


def of_agent(talk: Talk) -> list[tuple[str, bool]]:
    return [(text, final) for side, _, text, final in talk.room.transcripts if side == "agent"]


async def test_an_answer_is_shown_word_by_word_as_it_is_heard() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was a cat. ")
        generation.finish()
        for heard in ("Once", "Once upon", "Once upon a time"):
            await talk.hears(len(heard) * SAMPLES_PER_CHAR + SAMPLES_PER_CHAR // 2 - talk.room.heard_samples())
            await until(lambda heard=heard: of_agent(talk)[-1:] == [(heard, False)])
        await talk.hears_everything()
    shown = of_agent(talk)
    assert shown[-1] == ("Once upon a time there was a cat.", True)
    assert not any(final for _, final in shown[:-1])
    assert all(later.startswith(text) for (text, _), (later, _) in itertools.pairwise(shown))


async def test_an_interrupted_answer_is_final_when_it_is_clear_that_it_is_not_resumed() -> None:
    async with talking() as talk:
        generation = await talk.asks("Tell me a story.")
        generation.write("Once upon a time there was. And then")
        await talk.hears(16 * SAMPLES_PER_CHAR)
        await talk.starts()
        await until(lambda: generation.cancelled)
        await until(lambda: of_agent(talk)[-1:] == [("Once upon a time", False)])
        await talk.stops("Stop.")
        await until(lambda: len(talk.inference.generations) == 2)
        await until(lambda: of_agent(talk)[-1:] == [("Once upon a time", True)])
        assert [final for _, final in of_agent(talk)].count(True) == 1


async def test_metrics_are_sent_only_where_they_are_switched_on() -> None:
    for settings, count in ((SessionSettings(), 0), (SessionSettings(publish_metrics=True), 1)):
        async with talking(settings=settings) as talk:
            generation = await talk.asks("Hello?")
            generation.write("Hello.")
            generation.finish()
            await talk.hears_everything()
            await until(lambda talk=talk: talk.reports)
            await until(lambda talk=talk, count=count: len(talk.room.metrics) == count)
        assert talk.room.metrics == talk.reports[:count]


def test_metrics_are_the_numbers_of_a_report() -> None:
    measured = json.loads(metrics_message(REPORT))
    assert measured["turn"] == 3
    assert measured["interrupted"] is False
    assert (measured["audio_s"], measured["ttft_ms"], measured["response_ms"]) == (1.25, 81.2346, 680.0)
    # It was not interrupted, so there is no time to silence.
    assert measured["barge_in_ms"] is None
    # The words are in the transcripts; which job it was, and where it lies in a recording, is not the caller's.
    assert not {"transcript", "reply", "job_id", "out_start_s", "out_end_s"} & measured.keys()
    assert json.loads(metrics_message(replace(REPORT, interrupted=True, barge_in_ms=48.0)))["barge_in_ms"] == 48.0
