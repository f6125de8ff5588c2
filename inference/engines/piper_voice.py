"""What a Piper voice is asked and what it gives: sentences of phonemes in, blocks of samples out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import Audio, EngineError

STEP_S: Final = 0.04
"""What one step should take at most, in seconds, so that the device is soon free for others."""


@dataclass(frozen=True, slots=True)
class Order:
    """A sentence to speak: phoneme ids, and how long a phoneme lasts against the voice's own pace.

    ``noise`` 0 makes it repeatable; ``speaker`` counts from 0. None is the voice's own.
    """

    ids: Sequence[int]
    length_scale: float = 1.0
    noise: float | None = None
    speaker: int | None = None


class Sentence(Protocol):
    """A sentence on its way."""

    @property
    def finished(self) -> bool:
        """Whether all of its audio has been made."""


class Voice(Protocol):
    """Makes audio of phonemes. One thread at a time. What fails is an ``EngineError`` in its place."""

    def encode(self, orders: Sequence[Order]) -> Sequence[Sentence | EngineError]:
        """Begin a sentence for each order."""

    def decode(self, sentences: Sequence[Sentence]) -> list[Audio | EngineError]:
        """The next block of each, float32 at the voice's own level."""

    def encode_s(self, order: Order) -> float:
        """How much of a step it takes to encode this beside others, in seconds."""

    def decode_s(self, sentence: Sentence | None) -> float:
        """As ``encode_s``, for a sentence's next block; None is a sentence that is not encoded yet."""

    def close(self) -> None:
        """End its threads."""


@dataclass(frozen=True, slots=True)
class Scales:
    """What a voice's settings say, and Piper passes to its graph. ``speaker`` is None where there is one only."""

    noise: float
    noise_w: float
    speaker: int | None

    def feeds(self, order: Order) -> dict[str, NDArray[Any]]:
        """The graph's inputs for one sentence."""
        noise, noise_w = (self.noise, self.noise_w) if order.noise is None else (order.noise, order.noise)
        feeds: dict[str, NDArray[Any]] = {
            "input": np.array([order.ids], np.int64),
            "input_lengths": np.array([len(order.ids)], np.int64),
            "scales": np.array([noise, order.length_scale, noise_w], np.float32),
        }
        if self.speaker is not None:
            feeds["sid"] = np.array([self.speaker if order.speaker is None else order.speaker], np.int64)
        return feeds
