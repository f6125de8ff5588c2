"""How much memory the inference process will take: from facts of the model files and the options. Pure.

Every part is what stays for the life of the process (``resident``), a share of it for every room (``room``), and
what it needs on top while it works (``working``). One lane does one thing at a time, so of what the engines need while
they work only the largest counts.

Sources of the formulas, with sizes in bytes:

* Keys and values of the language model: ``cells * layers * (key + value width of the KV heads) * 2`` for float16
  (``llama_kv_cache`` in llama.cpp allocates exactly that, rounded up to 256 cells).
* Its output buffer, ``vocabulary * sequences * 4`` (``llama_context::output_reserve``), and its compute buffer: logits
  of every token of a batch, or the mask (float16, cells by tokens) with the widest layer's activations, whichever is
  more (``sched_reserve``; within 6 % of what llama.cpp logs from 1 room of 256 tokens to 255 rooms of 1,024).
* Whisper's encoder: one layer's attention scores, ``heads * positions^2``, and about eight arrays of ``positions *
  width`` beside them; the decoder: keys and values of what was heard, ``2 * layers * positions * width``, for every
  row of its batch, and one layer's twice, while the heads are split (CTranslate2's ``MultiHeadAttention``).
* What no formula says (libraries, the allocator, a voice's windows) are constants, measured on a CPU with the
  default profile and named so; ``scripts/bench/memory.py`` measures them again. Those of a GPU are estimates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

Device = Literal["cpu", "cuda"]

MOST_ROOMS: Final = 255
"""llama.cpp's 256 sequences, less the one that keeps the system prompt."""
CONTEXT_STEP: Final = 256
"""Tokens; llama.cpp rounds the cells of a cache up to a multiple of it."""

MB: Final = 1_000_000
"""Memory is told in MB of 10^6 bytes everywhere."""

_PREFILL_CHUNK: Final = 128
"""Prompt tokens in one step (``inference/engines/llm.py``)."""
_POSITIONS: Final = 1500
"""Of Whisper's encoder in its full window of 30 s, in which what looked wrong is transcribed again."""
_HEAD: Final = 64
"""Width of a head in every Whisper."""
_UTTERANCES: Final[dict[Device, int]] = {"cpu": 4, "cuda": 16}
"""That are decoded together (``inference/engines/stt.py``)."""
_ENCODED_TOGETHER: Final[dict[Device, int]] = {"cpu": 1, "cuda": 16}

_LIBRARIES: Final[dict[Device, int]] = {"cpu": 615 * MB, "cuda": 700 * MB}
"""On a CPU: Python and the imported libraries, 510 MB of it PyTorch in its build for CUDA (the build for CPUs is a
third of that). On a GPU: what the libraries' kernels and workspaces take beside the driver's context; an estimate."""
_SILERO: Final[dict[Device, int]] = {"cpu": 34 * MB, "cuda": 60 * MB}
"""Measured (the network is 2 MB; the rest is what runs TorchScript). An estimate on a GPU."""
_PER_TOKEN_OF_VOCABULARY: Final = 180
"""Text, score, type and merges of a token in llama.cpp's tables. Measured."""
_WHISPER_TABLES: Final = 36 * MB
"""Tokenizer, log-mel filters, and what CTranslate2 begins with. Measured."""
_WHISPER_KEPT: Final[dict[Device, int]] = {"cpu": 76 * MB, "cuda": 200 * MB}
"""Workspaces of the first utterance (31 MB), and what the allocator keeps of blocks below 32 MB, the most that
glibc ever keeps (measured). On a GPU CTranslate2 caches at most 200 MB by default."""
_VOICE_COPIES: Final = 2.0
"""Of a voice's file: its weights, and the same packed for the convolutions. Measured."""
_VOICE_TABLES: Final = 36 * MB
"""espeak's data and onnxruntime. Measured."""
_VOICE_WINDOWS: Final = 20 * MB, 50 * MB
"""What windows take in a voice of 63 MB: once, and for each one that is made at the same time. Measured."""
_VOICE_MEASURED: Final = 63_201_294
_GPU_VOICE_ROWS: Final = 16
_GPU_VOICE_FRAMES: Final = 128
"""64 frames of a window with what the layers see on both sides."""


@dataclass(frozen=True, slots=True)
class LanguageModelFacts:
    """Of a GGUF file. ``weights``: bytes of its tensors. ``cell``: bytes of one token's keys and values, float16.

    ``vocabulary`` in tokens, ``width`` and ``inner_width`` in numbers (embedding, feed-forward); ``context``: the
    tokens that the model was trained on, 0 for unknown.
    """

    weights: int
    cell: int
    vocabulary: int
    width: int
    inner_width: int
    context: int = 0


@dataclass(frozen=True, slots=True)
class TranscriberFacts:
    """Of a Whisper model in CTranslate2's form.

    ``matrices``: numbers in the weights that are held as int8 on a CPU; ``others``: all other numbers.
    """

    matrices: int
    others: int
    width: int
    decoder_layers: int


@dataclass(frozen=True, slots=True)
class VoiceFacts:
    """Of a Piper voice: ``file``, its size in bytes."""

    file: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Of the three models whose size depends on the profile."""

    llm: LanguageModelFacts
    stt: TranscriberFacts
    tts: VoiceFacts


@dataclass(frozen=True, slots=True)
class Sizes:
    """The options that decide about memory, as in ``EngineOptions``."""

    device: Device
    max_rooms: int
    context_tokens: int
    threads: int
    resident_rooms: int = 0

    @property
    def conversations(self) -> int:
        """Rooms whose keys and values lie in this memory: on a CPU those that are put aside do, too."""
        return min(self.resident_rooms or self.max_rooms, self.max_rooms) if self.device == "cuda" else self.max_rooms


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes: ``resident`` for the life of the process, ``room`` of them for every room, ``working`` on top at times."""

    name: str
    resident: int
    working: int = 0
    room: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """What all of it takes. On a GPU this is the device's memory, on a CPU that of the process."""

    sizes: Sizes
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        return sum(part.resident for part in self.parts) + max(part.working for part in self.parts)

    @property
    def room(self) -> int:
        """Bytes that one room adds."""
        return sum(part.room for part in self.parts)


@dataclass(frozen=True, slots=True)
class Fit:
    """What ``available`` bytes are enough for; 0 where not even the least fits."""

    budget: Budget
    available: int
    rooms: int
    """Of ``context_tokens`` each."""
    context_tokens: int
    """For each of ``max_rooms``."""
    least: int
    """Bytes of one room of the shortest context."""

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.budget.total <= self.available

    @property
    def more_rooms(self) -> int:
        """How many more than ``max_rooms`` would fit."""
        return max(0, self.rooms - self.budget.sizes.max_rooms)

    def __str__(self) -> str:
        sizes, kind = self.budget.sizes, "GPU memory" if self.budget.sizes.device == "cuda" else "memory"
        asked = f"{_rooms(sizes.max_rooms)} of {sizes.context_tokens} tokens"
        need = f"{asked} take {megabytes(self.budget.total)} of {kind}, {megabytes(self.available)} are available"
        if self.fits:
            if sizes.max_rooms >= MOST_ROOMS:
                return need
            return f"{need}: {self.more_rooms or 'no'} more {'room' if self.more_rooms == 1 else 'rooms'} would fit"
        would = []
        if self.rooms:
            would.append(f"{_rooms(self.rooms)} of {sizes.context_tokens} tokens (inference.max_rooms = {self.rooms})")
        if self.context_tokens:
            would.append(
                f"{_rooms(sizes.max_rooms)} of {self.context_tokens} tokens"
                f" (inference.context_tokens = {self.context_tokens})"
            )
        if would:
            return f"{need}; what would fit: {', or '.join(would)}"
        return f"{need}; even 1 room of {CONTEXT_STEP} tokens takes {megabytes(self.least)}: take a smaller profile"


def estimate(facts: Facts, sizes: Sizes) -> Budget:
    """The memory of a process with these models and options."""
    return Budget(
        sizes,
        (
            Part("libraries", _LIBRARIES[sizes.device]),
            Part("voice activity", _SILERO[sizes.device]),
            _transcriber(facts.stt, sizes),
            *_language_model(facts.llm, sizes),
            _voice(facts.tts, sizes),
        ),
    )


def fit(facts: Facts, sizes: Sizes, available: int) -> Fit:
    """Whether that fits into ``available`` bytes, and what would."""

    def fits(changed: Sizes) -> bool:
        return estimate(facts, changed).total <= available

    rooms = _most(MOST_ROOMS, lambda count: fits(replace(sizes, max_rooms=count)))
    longest = max(sizes.context_tokens, facts.llm.context) // CONTEXT_STEP
    steps = _most(longest, lambda count: fits(replace(sizes, context_tokens=count * CONTEXT_STEP)))
    least = estimate(facts, replace(sizes, max_rooms=1, context_tokens=CONTEXT_STEP)).total
    return Fit(estimate(facts, sizes), available, rooms, steps * CONTEXT_STEP, least)


def megabytes(size: int) -> str:
    """``310 MB``, ``4.71 GB``, ``67.3 GB``."""
    if size < 999.5 * MB:
        return f"{size / MB:.0f} MB"
    gigabytes = size / (1000 * MB)
    return f"{gigabytes:.2f} GB" if gigabytes < 9.995 else f"{gigabytes:.1f} GB"


def _rooms(count: int) -> str:
    return f"{count} room" if count == 1 else f"{count} rooms"


def _most(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest number from 0 to ``limit`` for which ``holds``, which is true up to some number."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _language_model(facts: LanguageModelFacts, sizes: Sizes) -> tuple[Part, ...]:
    cells = _up(sizes.conversations * sizes.context_tokens, CONTEXT_STEP)
    sequences = sizes.max_rooms + 1
    tokens = _up(_PREFILL_CHUNK + sizes.max_rooms, sequences)
    # A CPU has pages only for the rows that are written: those of the tokens whose logits are wanted.
    logits = facts.vocabulary * 4 * (tokens if sizes.device == "cuda" else sequences)
    layer = tokens * (2 * facts.inner_width + 7 * facts.width) * 4
    compute = max(logits, 2 * cells * tokens + layer)
    tables = 0 if sizes.device == "cuda" else _PER_TOKEN_OF_VOCABULARY * facts.vocabulary
    output = facts.vocabulary * 4
    room = 0 if sizes.conversations < sizes.max_rooms else _up(sizes.context_tokens, CONTEXT_STEP) * facts.cell
    return (
        Part("language model", facts.weights + tables + compute + output * sequences, room=output),
        Part("its conversations", cells * facts.cell, room=room),
    )


def _transcriber(facts: TranscriberFacts, sizes: Sizes) -> Part:
    device = sizes.device
    if device == "cuda":
        number, weights = 2, 2 * (facts.matrices + facts.others)
    else:
        number, weights = 4, facts.matrices + 4 * facts.others + _WHISPER_TABLES
    rows, together = (min(most[device], sizes.max_rooms) for most in (_UTTERANCES, _ENCODED_TOGETHER))
    states = number * _POSITIONS * facts.width
    scores = number * (facts.width // _HEAD) * _POSITIONS**2
    encode = together * (scores + 8 * states)
    decode = rows * states * (2 * facts.decoder_layers + 2 + 3)
    return Part(
        "speech to text",
        weights + _WHISPER_KEPT[device] + sizes.max_rooms * states,
        working=max(encode, decode),
        # What was encoded of an utterance waits to be decoded.
        room=states,
    )


def _voice(facts: VoiceFacts, sizes: Sizes) -> Part:
    if sizes.device == "cuda":
        # The widest layers of a HiFi-GAN hold 32 channels at the rate of the samples, 256 a frame.
        windows = _GPU_VOICE_ROWS * _GPU_VOICE_FRAMES * 256 * 32 * 4
        return Part("voice", facts.file + 6 * windows)
    once, each = _VOICE_WINDOWS
    windows = once + each * min(sizes.threads, sizes.max_rooms)
    return Part("voice", round(_VOICE_COPIES * facts.file + windows * facts.file / _VOICE_MEASURED) + _VOICE_TABLES)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
