"""A Piper voice in parts: the encoder once a sentence, flow and decoder in windows of frames.

Every window has as much context as the layers can see (``piper_graph``), so that the windows together are the
same samples as one pass over the sentence. The first window is short, since somebody waits for it, and each one
after it twice as long, up to what fits into one step: context is work done twice, and long windows have less
of it.

On a CPU every worker thread runs one window at a time with one thread of onnxruntime. On two cores, with a medium
voice, four windows of 80 frames take two workers 65 ms; one after the other with a team of two threads inside
each layer they take 78 ms, and as one batch 107 ms, since the batch does not fit into the caches. The encoder has
a team: somebody waits for it. On a GPU the flow and the decoder are torch modules, and windows of many rooms
are one batch of a fixed shape.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import Audio, EngineError
from inference.engines.piper_graph import CannotSplitError, Stage
from inference.engines.piper_voice import STEP_S, Order, Scales, Sentence

FIRST_FRAMES: Final = 16
"""Frames in a sentence's first window: 0.19 s of audio, at 256 samples a frame and 22,050 Hz."""

EXACT: Final = 1e-4
"""Samples of windows and of one pass may differ by this much (float32 rounding is a tenth of it)."""

_LONGEST_WINDOW: Final = 128
_SHORTEST_SHARE: Final = 24
"""Frames that a part of a window must have to be worth a context of its own, for a worker that has nothing to do."""

Values = Mapping[str, NDArray[Any]]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Threads that do independent things at the same time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "tts") if count > 1 else None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``function`` of each, in order. Raises what the first one to fail raised."""
        if self._pool is None or len(items) < 2:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))

    def close(self) -> None:
        """End them; nothing may be mapped after it."""
        if self._pool is not None:
            self._pool.shutdown()


class Runner(Protocol):
    """Runs one stage."""

    def __call__(self, feeds: Values) -> Audio:
        """Arrays (rows, channels, frames) by name in, (rows, channels, frames * hop) out."""


@dataclass(frozen=True, slots=True)
class RunningStage:
    """A stage, and what computes it."""

    stage: Stage
    run: Runner


@dataclass(frozen=True, slots=True)
class Windows:
    """``longest``: frames in every window; 0 is a short first one, and later what fits into a step by measurement.

    ``rows``: sizes of batches. With more than one size, smaller batches are filled up.
    """

    longest: int = 0
    rows: tuple[int, ...] = (1,)


@dataclass(slots=True)
class _SplitSentence:
    """``values``: what the encoder and the stages have made, by tensor; the frames are the last axis.

    ``made``: frames that each stage has made. ``window``: frames of its next block. ``error``: why it ended.
    """

    frames: int
    values: dict[str, NDArray[Any]] = field(repr=False)
    made: list[int]
    window: int
    error: EngineError | None = None

    @property
    def finished(self) -> bool:
        """Whether all of its audio has been made."""
        return self.made[-1] >= self.frames


@dataclass(frozen=True, slots=True)
class _Span:
    """Frames ``start`` to ``stop`` of a sentence, to be made from ``low`` to ``high`` of what a stage reads."""

    sentence: _SplitSentence
    start: int
    stop: int
    low: int = 0
    high: int = 0


class SplitVoice:
    """Encoder, flow and decoder apart."""

    def __init__(
        self, encoder: Any, stages: Sequence[RunningStage], scales: Scales, windows: Windows, workers: Workers
    ) -> None:
        self._encoder = encoder
        self._stages = tuple(stages)
        self._scales = scales
        self._workers = workers
        self._names = [info.name for info in encoder.get_outputs()]
        self._fixed = windows.longest > 0
        self._longest = windows.longest or _LONGEST_WINDOW
        self._rows = windows.rows
        self._s_per_id = 0.0
        self._s_per_frame = 0.0

    def __repr__(self) -> str:
        return (
            f"SplitVoice(stages={len(self._stages)}, longest={self._longest}, threads={self._workers.count}, "
            f"ms_per_frame={1000 * self._s_per_frame:.2f}, ms_per_phoneme={1000 * self._s_per_id:.2f})"
        )

    def encode(self, orders: Sequence[Order]) -> list[_SplitSentence | EngineError]:
        """The encoder's pass over each sentence."""
        return [self._encode(order) for order in orders]

    def decode(self, sentences: Sequence[Sentence]) -> list[Audio | EngineError]:
        """The next window of each."""
        ours = [sentence for sentence in sentences if isinstance(sentence, _SplitSentence)]
        return self._decode(ours, [self._end_of_window(one) for one in ours])

    def encode_s(self, order: Order) -> float:
        """Measured at load."""
        return len(order.ids) * self._s_per_id

    def decode_s(self, sentence: Sentence | None) -> float:
        """Measured at load; the workers share it."""
        frames = FIRST_FRAMES
        if isinstance(sentence, _SplitSentence):
            frames = min(sentence.window, sentence.frames - sentence.made[-1])
        return (frames + self._context()) * self._s_per_frame / self._workers.count

    def verify(self, order: Order, reference: SplitVoice) -> Audio:
        """Compare windows with one pass of ``reference``, and measure. Returns the pass, as float32 samples.

        Raises ``CannotSplitError`` when they differ.
        """
        at_once = reference.in_one_pass(order)
        sentence = self._measure(order)
        blocks = []
        while not sentence.finished:
            (block,) = self.decode([sentence])
            if isinstance(block, EngineError):
                raise CannotSplitError(f"a window fails: {block}") from block
            blocks.append(block)
        joined = np.concatenate(blocks)
        if joined.shape != at_once.shape:
            raise CannotSplitError(f"its windows have {joined.size} samples, one pass has {at_once.size}")
        difference = float(np.abs(joined - at_once).max())
        if not difference <= EXACT:
            raise CannotSplitError(f"its windows differ from one pass by {difference:.2g}")
        return at_once

    def in_one_pass(self, order: Order) -> Audio:
        """The whole sentence in one window. Raises ``EngineError``."""
        sentence = self._encoded(order)
        (audio,) = self._decode([sentence], [sentence.frames], whole=True)
        if isinstance(audio, EngineError):
            raise audio
        return audio

    def close(self) -> None:
        """End its threads."""
        self._workers.close()

    # --- one sentence -----------------------------------------------------------------------------

    def _encode(self, order: Order) -> _SplitSentence | EngineError:
        try:
            results = self._encoder.run(self._names, self._scales.feeds(order))
        except Exception as exc:  # noqa: BLE001 - onnxruntime's errors have no base class of their own
            return EngineError(f"encoding {len(order.ids)} phonemes failed: {exc}")
        values: dict[str, NDArray[Any]] = dict(zip(self._names, results, strict=True))
        frames = values[self._stages[0].stage.latent].shape[-1]
        for one in self._stages[:-1]:
            # The stages in between keep the number of channels.
            values[one.stage.output] = np.zeros_like(values[one.stage.latent])
        first = self._longest if self._fixed else min(FIRST_FRAMES, self._longest)
        return _SplitSentence(frames, values, [0] * len(self._stages), first)

    def _measure(self, order: Order) -> _SplitSentence:
        """Time the encoder, and one worker; the best of three since the machine may be busy. The sentence, encoded."""
        encoding, decoding = [], []
        for _ in range(3):
            began = time.perf_counter()
            sentence = self._encoded(order)
            encoding.append(time.perf_counter() - began)
            began = time.perf_counter()
            self._decode([sentence], [sentence.frames], whole=True)
            decoding.append((time.perf_counter() - began) / sentence.frames)
        self._s_per_id = min(encoding) / len(order.ids)
        self._s_per_frame = min(decoding)
        if not self._fixed:
            fitting = int(STEP_S / self._s_per_frame) - self._context()
            # Shorter than twice its context a window is mostly context.
            self._longest = max(2 * self._context(), min(_LONGEST_WINDOW, fitting)) // 16 * 16
        return self._encoded(order)

    def _encoded(self, order: Order) -> _SplitSentence:
        (sentence,) = self.encode([order])
        if isinstance(sentence, EngineError):
            raise sentence
        return sentence

    def _end_of_window(self, one: _SplitSentence) -> int:
        end = one.made[-1] + one.window
        # What is left over and shorter than a first window is not worth a context of its own.
        return one.frames if one.frames - end < (0 if self._fixed else FIRST_FRAMES) else end

    def _context(self) -> int:
        decoder = self._stages[-1].stage
        return decoder.before + decoder.after

    # --- windows ----------------------------------------------------------------------------------

    def _decode(
        self, sentences: Sequence[_SplitSentence], ends: Sequence[int], *, whole: bool = False
    ) -> list[Audio | EngineError]:
        """Audio of each sentence up to the frame in ``ends``. ``whole``: what is missing is one window."""
        for index in range(len(self._stages) - 1):
            later = sum(other.stage.after for other in self._stages[index + 1 :])
            self._prepare(index, sentences, [end + later for end in ends], whole=whole)
        going_on = [(one, end) for one, end in zip(sentences, ends, strict=True) if one.error is None]
        spans = [span for one, end in going_on for span in self._shared(one, one.made[-1], end, len(going_on), whole)]
        pieces: dict[int, list[Audio]] = {}
        for span, piece in zip(spans, self._run(self._stages[-1], spans, whole=whole), strict=True):
            if piece is not None:
                pieces.setdefault(id(span.sentence), []).append(piece.reshape(-1))
        out: list[Audio | EngineError] = []
        for one, end in zip(sentences, ends, strict=True):
            one.made[-1] = end
            one.window = min(2 * one.window, self._longest)
            out.append(one.error or np.concatenate(pieces[id(one)]))
        return out

    def _prepare(self, index: int, sentences: Sequence[_SplitSentence], ends: Sequence[int], *, whole: bool) -> None:
        """Have a stage in front of the decoder made at least ``ends`` frames of each sentence."""
        running = self._stages[index]
        while True:
            wanted = []
            for one, end in zip(sentences, ends, strict=True):
                start, needed = one.made[index], min(end, one.frames)
                if start >= needed or one.error is not None:
                    continue
                # For the first window only what it needs; later as much at once as the windows are long.
                stop = needed if start == 0 and not self._fixed else max(needed, start + self._longest)
                stop = one.frames if whole else start + self._longest if self._fixed else stop
                wanted.append((one, start, min(stop, one.frames)))
            if not wanted:
                return
            spans = [span for one, start, stop in wanted for span in self._shared(one, start, stop, len(wanted), whole)]
            for span, piece in zip(spans, self._run(running, spans, whole=whole), strict=True):
                if piece is not None:
                    span.sentence.values[running.stage.output][0, :, span.start : span.stop] = piece
            for one, _, stop in wanted:
                one.made[index] = stop

    def _shared(self, sentence: _SplitSentence, start: int, stop: int, others: int, whole: bool) -> list[_Span]:
        """A long window as several, when there are workers that would have nothing to do."""
        parts = max(1, min(self._workers.count // others, (stop - start) // _SHORTEST_SHARE))
        if whole or self._fixed:
            parts = 1
        edges = [start + (stop - start) * part // parts for part in range(parts + 1)]
        return [_Span(sentence, low, high) for low, high in itertools.pairwise(edges)]

    def _run(self, running: RunningStage, spans: Sequence[_Span], *, whole: bool) -> list[Audio | None]:
        """What a stage makes of each span: (channels, frames * hop); None where it fails, which ends the sentence."""
        spans = [self._with_context(running.stage, span, whole=whole) for span in spans]
        batches = []
        for width in sorted({span.high - span.low for span in spans}):
            same = [index for index, span in enumerate(spans) if span.high - span.low == width]
            batches += [same[at : at + self._rows[-1]] for at in range(0, len(same), self._rows[-1])]
        at_once = self._workers if not self._fixed else Workers(1)  # a GPU works on one batch at a time
        made = at_once.map(lambda batch: self._run_batch(running, [spans[index] for index in batch]), batches)
        by_index = {
            index: piece
            for batch, pieces in zip(batches, made, strict=True)
            for index, piece in zip(batch, pieces, strict=True)
        }
        return [by_index[index] for index in range(len(spans))]

    def _run_batch(self, running: RunningStage, spans: Sequence[_Span]) -> list[Audio | None]:
        stage = running.stage
        try:
            rows = running.run(self._feeds(stage, spans))
        except Exception as exc:  # noqa: BLE001 - neither onnxruntime's nor torch's errors have a common base
            if len(spans) > 1:
                # One of them poisoned the batch: each alone, so that only that one fails.
                return [piece for span in spans for piece in self._run_batch(running, [span])]
            spans[0].sentence.error = EngineError(f"decoding failed: {exc}")
            return [None]
        return [
            row[:, (span.start - span.low) * stage.hop : (span.stop - span.low) * stage.hop]
            for row, span in zip(rows, spans, strict=False)
        ]

    def _with_context(self, stage: Stage, span: _Span, *, whole: bool) -> _Span:
        """The frames that a span needs. Beyond a sentence's ends the layers see zeros, as in one pass."""
        frames = span.sentence.frames
        if self._fixed and not whole:
            width = min(frames, self._longest + stage.before + stage.after)
            low = max(0, min(span.start - stage.before, frames - width))
            high = low + width
        else:
            low, high = max(0, span.start - stage.before), min(frames, span.stop + stage.after)
        return _Span(span.sentence, span.start, span.stop, low, high)

    def _feeds(self, stage: Stage, spans: Sequence[_Span]) -> dict[str, NDArray[Any]]:
        size = next(size for size in self._rows if size >= len(spans))
        # A batch of a fixed size is filled up with its last row; the copies' results are dropped.
        filled = [*spans, *[spans[-1]] * (size - len(spans))]
        feeds = {
            name: np.concatenate([span.sentence.values[name][:, :, span.low : span.high] for span in filled])
            for name in (stage.latent, *stage.masks)
        }
        feeds.update(
            (name, np.concatenate([span.sentence.values[name] for span in filled])) for name in stage.conditions
        )
        return feeds
