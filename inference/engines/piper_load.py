"""From a voice's file to a voice that speaks: in parts where its graph can be cut, else whole."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import Audio, EngineError, EngineOptions
from inference.engines.piper_graph import Stage, VoiceParts, split_file
from inference.engines.piper_voice import STEP_S, Order, Scales, Sentence, Voice
from inference.engines.piper_windows import RunningStage, SplitVoice, Values, Windows, Workers

_GPU_WINDOW: Final = 64
_GPU_ROWS: Final = (1, 2, 4, 8, 16)

_ENCODER_TEAM: Final = 4
"""Threads for one sentence: its layers are small, more would wait for each other."""

_log = logging.getLogger("inference.tts")


def load_voice(model: Path, scales: Scales, options: EngineOptions, example: Sequence[int]) -> tuple[Voice, Audio]:
    """The voice in the file ``model``, and how it says ``example`` (phonemes) without noise.

    A voice that cannot be split, or whose windows are not what one pass gives, works whole, which is said
    as a warning. Raises whatever onnxruntime raises for a model that it cannot load or run.
    """
    order = Order(example, noise=0.0)
    try:
        return _load_split(model, scales, options, order)
    except Exception as exc:  # noqa: BLE001 - of three libraries, and the whole voice can do without any part
        _log.warning("the voice %s works a sentence at a time, so that audio comes late: %s", model.name, exc)
    whole = WholeVoice(_session(str(model), options.threads), scales)
    (spoken,) = whole.decode(whole.encode([order]))
    if isinstance(spoken, EngineError):
        raise spoken
    return whole, spoken


def _trim() -> None:
    """Give back what the graphs took while they were cut: as much as the voice itself (glibc keeps it otherwise)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _load_split(model: Path, scales: Scales, options: EngineOptions, order: Order) -> tuple[Voice, Audio]:
    on_gpu = options.device != "cpu"
    parts = split_file(model, wide=not on_gpu)
    reference = split_voice(parts, scales, options.threads)
    voice = split_voice(parts, scales, options.threads, torch_device=options.device) if on_gpu else reference
    del parts
    try:
        spoken = voice.verify(order, reference)
    except BaseException:
        voice.close()
        raise
    finally:
        if voice is not reference:
            reference.close()
    _trim()
    return voice, spoken


def split_voice(parts: VoiceParts, scales: Scales, threads: int, torch_device: str = "") -> SplitVoice:
    """Run ``parts`` on ``threads`` CPU threads; with a ``torch_device`` all but the encoder runs there."""
    encoder = _session(parts.encoder, min(threads, _ENCODER_TEAM))
    if torch_device:
        from inference.engines.piper_torch import TorchStage

        stages = [RunningStage(stage, TorchStage(stage, torch_device)) for stage in parts.stages]
        windows = Windows(_GPU_WINDOW, _GPU_ROWS)
    else:
        stages = [RunningStage(stage, _OnnxStage(stage)) for stage in parts.stages]
        windows = Windows()
    return SplitVoice(encoder, stages, scales, windows, Workers(threads))


def _session(model: str | bytes, threads: int) -> Any:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # keeps the most that was ever needed, and is no faster
    options.log_severity_level = 4  # its errors are raised, too
    # Idle worker threads that spin take the cores from the other engines.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _OnnxStage:
    """A stage on onnxruntime, on the thread that calls."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._session = _session(stage.model, 1)

    def __call__(self, feeds: Values) -> Audio:
        if self._stage.rank == 4:
            feeds = {name: value[:, :, None, :] for name, value in feeds.items()}
        (made,) = self._session.run([self._stage.output], dict(feeds))
        result: Audio = made.reshape(made.shape[0], -1, made.shape[-1])
        return result


@dataclass(slots=True)
class _WholeSentence:
    feeds: dict[str, NDArray[Any]]
    finished: bool = False


class WholeVoice:
    """The graph as it came: one sentence is one block, and a step."""

    def __init__(self, session: Any, scales: Scales) -> None:
        self._session = session
        self._scales = scales

    def __repr__(self) -> str:
        return "WholeVoice()"

    def encode(self, orders: Sequence[Order]) -> list[_WholeSentence]:
        """Keep what the graph is asked."""
        return [_WholeSentence(self._scales.feeds(order)) for order in orders]

    def decode(self, sentences: Sequence[Sentence]) -> list[Audio | EngineError]:
        """All of each sentence."""
        return [self._speak(sentence) for sentence in sentences if isinstance(sentence, _WholeSentence)]

    def _speak(self, sentence: _WholeSentence) -> Audio | EngineError:
        sentence.finished = True
        try:
            audio: Audio = np.asarray(self._session.run(None, sentence.feeds)[0], np.float32).reshape(-1)
        except Exception as exc:  # noqa: BLE001 - onnxruntime's errors have no base class of their own
            return EngineError(f"synthesis failed: {exc}")
        return audio

    def encode_s(self, order: Order) -> float:  # noqa: ARG002 - its length makes no difference
        """Nothing: the work is in ``decode``."""
        return 0.0

    def decode_s(self, sentence: Sentence | None) -> float:  # noqa: ARG002
        """Always a whole step."""
        return STEP_S

    def close(self) -> None:
        """It has no threads of its own."""
