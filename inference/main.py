"""The inference process: load, warm with a real example, report READY, serve until told to stop.

Started by the supervisor as ``python -m inference.main --control FD --parent PID``.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from inference.calibration import calibrate
from inference.costs import CostTable
from inference.device import NoDeviceError, choose_device
from inference.engines.base import (
    SAMPLE_RATE,
    VAD_WINDOW,
    Audio,
    EngineError,
    EngineOptions,
    Message,
    Sampling,
    SpeechFailed,
    TokensOut,
    Utterance,
)
from inference.measuring import measure
from inference.memory import NotEnoughMemoryError, check_memory, report_of
from inference.runner import DeviceLane, Engines
from inference.server import InferenceServer
from inference.supervised import Supervisor, prepare_process, write_stacks_to
from inference.trace import Trace
from inference.vad_lane import VadLane
from inference.wire import messages as m
from inference.wire import supervision as s

logger = logging.getLogger(__name__)

EXIT_FAILED = 5
EXIT_NO_DEVICE = 4
"""As in the host's table of exit codes: they travel in ``InitializeFailed``."""

REPORT_S = 1.0
"""Between two reports of how the process does."""

WARM_UP_TEXT = "Every room can hear me now."
_WARM_UP_TOKENS = 8


class WarmUpError(Exception):
    """An engine loaded, but could not do its work once."""


class LaneError(Exception):
    """The device lane serves nobody any more; the process must be replaced."""


def make_engines(kind: str) -> Engines:
    """The real engines, the stock ones (for comparison), or the shipped fakes."""
    if kind == "fake":
        from inference.engines import fake

        return Engines(
            fake.FakeVoiceActivity(), fake.FakeSpeechToText(), fake.FakeLanguageModel(), fake.FakeTextToSpeech()
        )
    from inference.engines.llm import LlamaLanguageModel
    from inference.engines.stt import WhisperSpeechToText
    from inference.engines.tts import PiperTextToSpeech
    from inference.engines.vad import SileroVoiceActivity

    if kind == "stock":
        from inference.engines import stock

        return Engines(
            SileroVoiceActivity(), stock.StockSpeechToText(), stock.StockLanguageModel(), stock.StockTextToSpeech()
        )
    return Engines(SileroVoiceActivity(), WhisperSpeechToText(), LlamaLanguageModel(), PiperTextToSpeech())


def load(engines: Engines, settings: s.InitializeInference, options: EngineOptions, say: Callable[[str], None]) -> None:
    """Load the four models, saying which. Raises ``EngineError``."""
    say(f"loading voice activity detection on {options.device}")
    engines.vad.load(options)
    say(f"loading speech to text: {settings.stt_name} on {options.device}")
    engines.stt.load(Path(settings.stt_path), options)
    say(f"loading language model: {settings.llm_name} on {options.device}")
    teams = dataclasses.replace(options, threads=settings.llm_threads, batch_threads=settings.threads)
    engines.llm.load(Path(settings.llm_path), teams)
    say(f"loading voice: {settings.tts_name} on {options.device}")
    engines.tts.load(Path(settings.tts_path), options)


def warm_up(engines: Engines, max_rooms: int) -> tuple[str, CostTable]:
    """One sentence spoken, heard, transcribed and answered, and then what it costs for several rooms at once.

    Returns the transcript and the costs; raises ``WarmUpError``.
    """
    speech = _speak(engines)
    _listen(engines, speech)
    transcription = engines.stt.transcribe([Utterance(speech, "en")])[0]
    if isinstance(transcription, EngineError):
        raise WarmUpError(f"speech to text: {transcription}") from transcription
    if not transcription.text:
        raise WarmUpError("speech to text heard no words in the voice's own sentence")
    _answer(engines)
    return transcription.text, measure(engines, speech, max_rooms)


def _speak(engines: Engines) -> Audio:
    tts = engines.tts
    tts.start(0, WARM_UP_TEXT)
    blocks = []
    while tts.running():
        for out in tts.step([0]):
            if isinstance(out, SpeechFailed):
                raise WarmUpError(f"voice: {out.error}") from out.error
            blocks.append(out.audio)
    samples = np.concatenate(blocks).astype(np.float32) / 32768.0
    if not len(samples) or float(np.abs(samples).max()) < 0.01:
        raise WarmUpError("the voice is silent")
    # Straight-line interpolation is good enough to hear whether words come out.
    positions = np.arange(0, len(samples), tts.sample_rate / SAMPLE_RATE)
    resampled: Audio = np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)
    return resampled


def _listen(engines: Engines, speech: Audio) -> None:
    windows = speech[: len(speech) // VAD_WINDOW * VAD_WINDOW].reshape(-1, VAD_WINDOW)
    highest = max(float(engines.vad.probabilities([0], window[None])[0]) for window in windows)
    engines.vad.reset(0)
    if highest < 0.5:
        raise WarmUpError(f"voice activity detection hears no speech in the voice's own sentence ({highest:.2f})")


def _answer(engines: Engines) -> None:
    llm = engines.llm
    llm.start(0, 0, [Message("user", "Say hello.")], Sampling(temperature=0.0, max_tokens=_WARM_UP_TOKENS))
    text = ""
    while llm.running():
        for out in llm.step():
            if not isinstance(out, TokensOut):
                raise WarmUpError(f"language model: {out.error}") from out.error
            text += out.text
    llm.release(0)
    if not text.strip():
        raise WarmUpError("the language model answers with nothing")


async def serve(supervisor: Supervisor, settings: s.InitializeInference) -> int:
    """From the settings to the end of the process; returns the exit code."""
    loop = asyncio.get_running_loop()
    began = time.monotonic()

    def say(text: str) -> None:
        loop.call_soon_threadsafe(supervisor.send, s.Progress(text))

    try:
        device = choose_device(settings.device)
    except NoDeviceError as exc:
        return await _fail(supervisor, str(exc), EXIT_NO_DEVICE)
    options = EngineOptions(
        device, settings.threads, settings.max_rooms, settings.context_tokens, settings.resident_rooms
    )
    memory = s.MemoryReport()
    if settings.engines == "real":
        try:
            found = check_memory(settings, device)
        except (NotEnoughMemoryError, NoDeviceError) as exc:
            return await _fail(supervisor, str(exc), EXIT_NO_DEVICE)
        except EngineError as exc:
            return await _fail(supervisor, str(exc), EXIT_FAILED)
        logger.info("memory: %s", found)
        memory = report_of(found)

    def come_up() -> tuple[Engines, str, CostTable]:
        engines = make_engines(settings.engines)
        load(engines, settings, options, say)
        say("warming up")
        warm = warm_up(engines, settings.max_rooms)
        if settings.calibrate:
            measured = calibrate(engines, settings.max_rooms, say).to_json()
            loop.call_soon_threadsafe(supervisor.send, s.Calibrated(measured))
        return engines, *warm

    stopping = asyncio.create_task(supervisor.stopping.wait(), name="stopping")
    try:
        coming_up = asyncio.create_task(asyncio.to_thread(come_up), name="come-up")
        await asyncio.wait({coming_up, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not coming_up.done():
            await _leave(supervisor, 0)
        engines, heard, costs = coming_up.result()
    except (EngineError, WarmUpError) as exc:
        return await _fail(supervisor, str(exc), EXIT_FAILED)
    except Exception as exc:
        logger.exception("start-up failed")
        return await _fail(supervisor, f"{type(exc).__name__}: {exc}", EXIT_FAILED)
    logger.debug("warm-up heard %r; %r", heard, costs)

    trace = _trace(settings.trace_file)
    device_lane = DeviceLane(engines, costs, trace, context_tokens=settings.context_tokens)
    vad_lane = VadLane(engines.vad, trace)
    welcome = m.Welcome(
        version=m.PROTOCOL_VERSION,
        device=device,
        speech_rate=engines.tts.sample_rate,
        context_tokens=settings.context_tokens,
        max_rooms=settings.max_rooms,
        stt_model=settings.stt_name,
        llm_model=settings.llm_name,
        tts_model=settings.tts_name,
    )
    server = InferenceServer(settings.socket_path, settings.token, welcome, device_lane, vad_lane)
    device_lane.start()
    vad_lane.start()
    serving = asyncio.create_task(server.serve(), name="server")
    working: set[asyncio.Task[None]] = {serving}
    try:
        # One turn of the loop, in which the server binds its socket or fails to.
        await asyncio.sleep(0)
        if not serving.done():
            supervisor.send(s.Ready(f"{device}, {settings.max_rooms} rooms, {time.monotonic() - began:.1f} s"))
            working.add(asyncio.create_task(_report(supervisor, server, device_lane, welcome, memory), name="report"))
        await asyncio.wait({*working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in working:
            if task.done() and (error := task.exception()) is not None:
                logger.error("%s ended: %s", task.get_name(), error)
                if isinstance(error, LaneError):
                    await _leave(supervisor, EXIT_FAILED)
                return EXIT_FAILED
        return 0
    finally:
        stopping.cancel()
        for task in working:
            task.cancel()
        await asyncio.wait(working)
        vad_lane.stop()
        device_lane.stop()
        if trace is not None:
            trace.close()
        supervisor.send(s.Exiting(supervisor.reason))
        await supervisor.drain()


def _trace(path: str) -> Trace | None:
    if not path:
        return None
    try:
        return Trace(Path(path))
    except OSError as exc:
        logger.warning("there is no trace: %s: %s", path, exc)
        return None


async def _report(
    supervisor: Supervisor, server: InferenceServer, lane: DeviceLane, welcome: m.Welcome, memory: s.MemoryReport
) -> None:
    """Tell the supervisor how it goes, at once and then every second. Raises ``LaneError``."""
    while True:
        if failure := lane.failure():
            raise LaneError(failure)
        report = lane.report(welcome.device, server.rooms, welcome.max_rooms)
        supervisor.send(dataclasses.replace(report, memory=memory))
        await asyncio.sleep(REPORT_S)


async def _leave(supervisor: Supervisor, exit_code: int) -> NoReturn:
    """End now, whatever a thread is doing that cannot be interrupted."""
    supervisor.send(s.Exiting(supervisor.reason))
    await supervisor.drain()
    os._exit(exit_code)


async def _fail(supervisor: Supervisor, reason: str, exit_code: int) -> int:
    supervisor.send(s.InitializeFailed(reason, exit_code))
    await supervisor.drain()
    return exit_code


async def run(control: socket.socket) -> int:
    """The process's life on its event loop."""
    async with Supervisor(control) as supervisor:
        settings = await supervisor.receive(s.InitializeInference)
        if settings is None:
            return 0
        write_stacks_to(settings.stacks_file)
        supervisor.forward_logs(settings.log_level)
        return await serve(supervisor, settings)


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m inference.main")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the supervisor's socket")
    parser.add_argument("--parent", type=int, required=True, help="process id of the supervisor")
    arguments = parser.parse_args()
    prepare_process(arguments.parent)
    control = socket.socket(fileno=arguments.control)
    start: Callable[..., int] = asyncio.run
    try:
        import uvloop

        start = functools.partial(uvloop.run)
    except ImportError:
        logger.debug("uvloop is not installed; asyncio's own loop serves")
    return start(run(control))


if __name__ == "__main__":
    sys.exit(main())
