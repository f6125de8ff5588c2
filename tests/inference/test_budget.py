from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from inference.budget import (
    MB,
    MOST_ROOMS,
    Facts,
    LanguageModelFacts,
    Sizes,
    TranscriberFacts,
    VoiceFacts,
    estimate,
    fit,
    megabytes,
)

SMALL = Facts(
    LanguageModelFacts(96_576_768, cell=23_040, vocabulary=49_152, width=576, inner_width=1536, context=8192),
    TranscriberFacts(matrices=70_595_072, others=2_008_073, width=512, decoder_layers=6),
    VoiceFacts(63_201_294),
)
"""The default profile."""
LARGE = Facts(
    LanguageModelFacts(
        4_920_000_000, cell=131_072, vocabulary=128_256, width=4096, inner_width=14_336, context=131_072
    ),
    TranscriberFacts(matrices=800_000_000, others=9_000_000, width=1280, decoder_layers=4),
    VoiceFacts(114_199_011),
)
"""The shape of Llama-3.1-8B in Q4 and of Whisper large-v3-turbo."""
OPTIONS = Sizes("cpu", max_rooms=4, context_tokens=2048, threads=2)

MIB = 1 << 20


def part(facts: Facts, sizes: Sizes, name: str) -> int:
    return next(part.resident for part in estimate(facts, sizes).parts if part.name == name)


@pytest.mark.parametrize(
    ("rooms", "context", "kv_mib", "buffers_mib"),
    [
        (1, 256, 5.62, 24.76 + 0.38),
        (1, 2048, 45.0, 25.84 + 0.38),
        (4, 2048, 180.0, 25.34 + 0.94),
        (4, 4096, 360.0, 25.34 + 0.94),
        (16, 2048, 720.0, 27.65 + 3.19),
        (64, 1024, 1440.0, 36.85 + 12.19),
        (64, 2048, 2880.0, 53.90 + 12.19),
        (255, 512, 2868.75, 141.01 + 48.0),
        (255, 1024, 5737.5, 268.51 + 48.0),
    ],
)
def test_what_llama_cpp_says_that_it_allocates(rooms: int, context: int, kv_mib: float, buffers_mib: float) -> None:
    """The sizes are from its log, for SmolLM2-135M-Instruct in Q4_1. A GPU holds all that is allocated."""
    sizes = Sizes("cuda", rooms, context, threads=2)
    assert part(SMALL, sizes, "its conversations") == pytest.approx(kv_mib * MIB, rel=0.002)
    buffers = part(SMALL, sizes, "language model") - SMALL.llm.weights
    assert buffers == pytest.approx(buffers_mib * MIB, rel=0.06)


def test_keys_and_values_of_a_large_model() -> None:
    """32 layers of 8 KV heads of 128: 131,072 bytes a token."""
    sizes = Sizes("cuda", 125, 4096, threads=8)
    assert part(LARGE, sizes, "its conversations") == 125 * 4096 * 131_072


def test_rooms_whose_conversations_lie_in_host_memory() -> None:
    sizes = replace(OPTIONS, device="cuda", max_rooms=100, resident_rooms=25)
    assert part(LARGE, sizes, "its conversations") == 25 * 2048 * 131_072
    # On a CPU both are the same memory.
    assert part(LARGE, replace(sizes, device="cpu"), "its conversations") == 100 * 2048 * 131_072


def test_only_one_engine_works_at_a_time() -> None:
    budget = estimate(SMALL, OPTIONS)
    assert budget.total == sum(part.resident for part in budget.parts) + max(part.working for part in budget.parts)


def test_every_room_and_every_token_takes_memory() -> None:
    totals = [estimate(SMALL, replace(OPTIONS, max_rooms=rooms)).total for rooms in range(1, MOST_ROOMS + 1)]
    # llama.cpp rounds the tokens of a batch, so that a buffer may be smaller for one room more: by next to nothing.
    assert all(more > 0.995 * less for less, more in itertools.pairwise(totals))
    longer = [estimate(SMALL, replace(OPTIONS, context_tokens=tokens)).total for tokens in range(256, 8192, 256)]
    assert longer == sorted(set(longer))
    # About what one more of many rooms adds.
    assert (totals[200] - totals[100]) / 100 == pytest.approx(estimate(SMALL, OPTIONS).room, rel=0.05)


@pytest.mark.parametrize("facts", [SMALL, LARGE])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_would_fit_fits_and_one_more_does_not(facts: Facts, device: str) -> None:
    for total_mb in (8_000, 12_000, 24_000, 48_000):
        sizes = replace(OPTIONS, device=device, max_rooms=64, context_tokens=4096)  # type: ignore[arg-type]
        found = fit(facts, sizes, total_mb * MB)
        assert found.fits == (found.rooms >= 64)
        if found.rooms:
            assert estimate(facts, replace(sizes, max_rooms=found.rooms)).total <= total_mb * MB
        if found.rooms < MOST_ROOMS:
            assert estimate(facts, replace(sizes, max_rooms=found.rooms + 1)).total > total_mb * MB
        if found.context_tokens:
            assert estimate(facts, replace(sizes, context_tokens=found.context_tokens)).total <= total_mb * MB


def test_enough() -> None:
    found = fit(SMALL, OPTIONS, 4000 * MB)
    assert found.fits
    assert found.more_rooms == found.rooms - 4 > 10
    assert str(found) == (
        f"4 rooms of 2048 tokens take {megabytes(found.budget.total)} of memory, 4.00 GB are available:"
        f" {found.more_rooms} more rooms would fit"
    )


def test_too_little_says_what_would_fit() -> None:
    total = estimate(SMALL, replace(OPTIONS, max_rooms=3)).total
    found = fit(SMALL, OPTIONS, total)
    assert not found.fits
    assert found.rooms == 3
    assert found.more_rooms == 0
    assert 256 <= found.context_tokens < 2048
    assert found.context_tokens % 256 == 0
    assert str(found).endswith(
        "; what would fit: 3 rooms of 2048 tokens (inference.max_rooms = 3), "
        f"or 4 rooms of {found.context_tokens} tokens (inference.context_tokens = {found.context_tokens})"
    )


def test_too_little_for_the_models() -> None:
    found = fit(LARGE, replace(OPTIONS, device="cuda"), 4000 * MB)
    assert (found.rooms, found.context_tokens) == (0, 0)
    assert "of GPU memory, 4.00 GB are available; even 1 room of 256 tokens takes " in str(found)
    assert str(found).endswith(": take a smaller profile")


@pytest.mark.parametrize(
    ("size", "shown"), [(310 * MB, "310 MB"), (999_400_000, "999 MB"), (4710 * MB, "4.71 GB"), (67_340 * MB, "67.3 GB")]
)
def test_megabytes(size: int, shown: str) -> None:
    assert megabytes(size) == shown
