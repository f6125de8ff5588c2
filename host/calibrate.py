"""Measures what this device takes for everything that a room needs, as a table for ``host plan``."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import json
import platform
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from host.agent_file import AgentFunctions
from host.child import InitializationError
from host.config import Config, worker_options
from host.description import version
from host.device_table import FORMAT, DeviceTable, Hardware, Phrase
from host.errors import InferenceError
from host.job.speech import PhraseCutter
from host.load import gpu
from host.prepare import prepared
from host.process import Process, execute
from host.residents import inference_error
from host.supervisor import INFERENCE_COMMAND
from inference.model_files import read_facts
from inference.wire import supervision as s
from inference.wire.connection import SUPERVISION, Role
from inference.wire.stream import MessageStream

ROOMS = 16
"""The largest batch that is measured, unless more is asked for."""
_SILENT_S = 300.0
"""A process that says nothing for so long does not get any further."""
ASSUMED_JOB_CORES = 0.03
"""For a table without a measurement: a job in a local room took 0.012 to 0.02 of a core, and WebRTC takes more."""


async def calibrate(
    config: Config,
    *,
    name: str,
    rooms: int = ROOMS,
    job_cores: float = ASSUMED_JOB_CORES,
    note: str = "",
    command: Sequence[str] = INFERENCE_COMMAND,
    on_progress: Callable[[str], None] = lambda _: None,
) -> DeviceTable:
    """The table of this machine and the configured profile. Raises a ``HostError``."""
    config = msgspec.structs.replace(config, inference=msgspec.structs.replace(config.inference, max_rooms=rooms))
    options = worker_options(config, AgentFunctions()).resolved(config.cores())
    with contextlib.ExitStack() as stack:
        prepared_options = await asyncio.to_thread(stack.enter_context, prepared(config, options))
        asked = dataclasses.replace(prepared_options.inference, calibrate=True)
        device, measured = await _measured(command, prepared_options.inference_environment, asked, on_progress)
        facts = await asyncio.to_thread(read_facts, Path(asked.stt_path), Path(asked.llm_path), Path(asked.tts_path))
    return DeviceTable(
        format=FORMAT,
        name=name,
        device=device,
        hardware=hardware(config, device),
        profile=config.models.profile,
        models={"stt": asked.stt_name, "llm": asked.llm_name, "tts": asked.tts_name},
        threads=asked.threads,
        llm_threads=asked.llm_threads,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        roomful=version(),
        stages={stage: _by_number(sizes) for stage, sizes in measured["stages"].items()},
        ticks=_by_number(measured["ticks"]),
        answers=answers_of(measured, config),
        first_block_s=measured["first_block_s"],
        block_s=measured["block_s"],
        job_cores=job_cores,
        facts=facts,
        note=note,
    )


def answers_of(measured: Mapping[str, Any], config: Config) -> tuple[tuple[Phrase, ...], ...]:
    """The model's answers, cut into phrases as a job cuts them, with what their speech takes."""
    chars = sum(len(text) for text, _ in measured["spoken"])
    per_char_s = sum(seconds for _, seconds in measured["spoken"]) / max(1, chars)
    session = config.session
    answers = []
    for pieces in measured["answers"]:
        cutter = PhraseCutter(session.first_phrase_chars, session.phrase_chars)
        phrases: list[Phrase] = []
        waiting = 0
        for piece in pieces:
            waiting += 1
            for phrase in cutter.push(piece):
                phrases.append(Phrase(waiting, per_char_s * len(phrase.spoken)))
                waiting = 0
        for phrase in cutter.finish():
            if phrase.spoken:
                phrases.append(Phrase(waiting, per_char_s * len(phrase.spoken)))
                waiting = 0
        # Two phrases that end with the same token are one.
        if answer := tuple(_joined(phrases)):
            answers.append(answer)
    return tuple(answers)


def _joined(phrases: Sequence[Phrase]) -> list[Phrase]:
    joined: list[Phrase] = []
    for phrase in phrases:
        if joined and not phrase.tokens:
            joined[-1] = Phrase(joined[-1].tokens, joined[-1].speech_s + phrase.speech_s)
        else:
            joined.append(phrase)
    return joined


def hardware(config: Config, device: Literal["cpu", "cuda"]) -> Hardware:
    """This machine."""
    gpu_name, gpu_memory = gpu() if device == "cuda" else ("", 0)
    return Hardware(
        cpu=_cpu(),
        cores=config.num_cpus or float(config.cores()),
        memory=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        gpu=gpu_name,
        gpu_memory=gpu_memory,
    )


async def _measured(
    command: Sequence[str],
    environment: Mapping[str, str],
    asked: s.InitializeInference,
    on_progress: Callable[[str], None],
) -> tuple[Literal["cpu", "cuda"], dict[str, Any]]:
    """From the inference process: its device, and what it measured."""
    found: dict[str, Any] = {}
    async with _process(command, environment) as (_, control):
        control.send(asked)
        while True:
            async with asyncio.timeout(_SILENT_S):
                received = await control.receive()
            match received.message if received is not None else None:
                case s.Progress(text=text):
                    on_progress(text)
                case s.Calibrated(measured=measured):
                    found = json.loads(measured)
                case s.Ready(detail=detail):
                    return ("cuda" if detail.startswith("cuda") else "cpu"), found
                case s.InitializeFailed(reason=reason, exit_code=code):
                    raise inference_error(InitializationError(reason, code, refused=True))
                case None | s.Exiting():
                    raise InferenceError("the inference process ended before it had measured everything")


@contextlib.asynccontextmanager
async def _process(
    command: Sequence[str], environment: Mapping[str, str]
) -> AsyncIterator[tuple[Process, MessageStream]]:
    process, socket = execute(command, environment)
    control = MessageStream(socket, Role.CLIENT, SUPERVISION)
    try:
        yield process, control
    finally:
        process.kill()
        control.close()
        await process.wait()
        process.close()


def _by_number(sizes: Mapping[str, float]) -> dict[int, float]:
    return {int(size): seconds for size, seconds in sizes.items()}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
