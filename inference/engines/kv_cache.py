"""The rooms' KV caches: which tokens lie in which sequence, what a prompt can use again, and where it lies.

One sequence per slot and one more that keeps the last system prompt, in one pool of cells (a *unified*
cache): a copy from one sequence to another moves no data. When the pool is full, the least recently used
sequence that nobody computes with is *parked*: copied to host memory, and back when it is needed, so nothing
is computed twice. Host memory for it is taken at load.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.reuse import common_prefix, left_out

_STATE_BYTES: Final = 65_536
"""Of a parked sequence, beside its cells and what llama.cpp keeps of each: its header, a recurrent model's remains."""

_CELL_BYTES: Final = 64
"""What llama.cpp keeps of a cell beside its keys and values."""

_log = logging.getLogger("inference.llm")

State = NDArray[np.uint8]


class KvCache:
    """The sequences of one llama.cpp context. ``spare``: how many parked slots memory is taken for now."""

    def __init__(self, lib: Any, model: Any, context: Any, slots: int, context_tokens: int, spare: int) -> None:
        self._lib = lib
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self._shared = slots
        self._tokens: list[list[int]] = [[] for _ in range(slots + 1)]
        self._parked: dict[int, tuple[State, int]] = {}  # slot: its state, and how many bytes of it
        self._used: dict[int, None] = dict.fromkeys(range(slots))  # slots, the least recently used first
        # A recurrent state cannot be cut at a token, so it cannot be shared up to one either.
        self.can_share = not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))
        self._can_shift = self.can_share and bool(lib.llama_memory_can_shift(self._memory))
        heads = lib.llama_model_n_head_kv(model) * lib.llama_model_n_layer(model)
        size = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model)
        self.cell_bytes = 4 * heads * size + _CELL_BYTES  # keys and values, float16 each
        self._state_bytes = context_tokens * self.cell_bytes + _STATE_BYTES
        # Written once here: the first touch of a page costs more than the copy.
        self._free: list[State] = [np.full(self._state_bytes, 1, np.uint8) for _ in range(spare)]

    def __repr__(self) -> str:
        return f"KvCache(slots={self._shared}, tokens={[len(t) for t in self._tokens]}, parked={sorted(self._parked)})"

    # --- what is there --------------------------------------------------------------------------

    def tokens(self, slot: int) -> Sequence[int]:
        """The tokens of ``slot``, parked or not."""
        return self._tokens[slot]

    def is_parked(self, slot: int) -> bool:
        """Whether the slot's state lies in host memory."""
        return slot in self._parked

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """``tokens`` were decoded behind those that are there."""
        self._tokens[slot] += tokens
        self._touch(slot)

    def forget(self, slot: int) -> None:
        """The slot is empty."""
        self._unpark(slot)
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self._tokens[slot] = []

    def reuse(self, slot: int, prompt: list[int], system: int, most: int) -> int:
        """Cut a slot that is not parked to what it shares with ``prompt``; returns how many tokens that are.

        ``system``: tokens of the prompt whose cells are other rooms', too. ``most``: keep no more than so many.
        """
        cached = self._tokens[slot]
        self._touch(slot)
        keep = min(common_prefix(cached, prompt), most)
        # Behind the system prompt: its cells are other rooms' too, and must stay where they are.
        if self._can_shift and system <= keep < len(cached):
            gap = left_out(cached, prompt, keep)
            if gap and self._lib.llama_memory_seq_rm(self._memory, slot, keep, keep + gap):
                self._lib.llama_memory_seq_add(self._memory, slot, keep + gap, -1, -gap)
                del cached[keep : keep + gap]
                keep = min(common_prefix(cached, prompt), most)
        if keep < len(cached):
            if self._lib.llama_memory_seq_rm(self._memory, slot, keep, -1):
                del cached[keep:]
            else:
                self.forget(slot)
                keep = 0
        return keep

    # --- the shared system prompt -----------------------------------------------------------------

    def take(self, slot: int, wanted: list[int]) -> bool:
        """Copy ``wanted`` from a sequence that begins with it, behind what the slot has of it; False: nobody has."""
        done = len(self._tokens[slot])
        donor = self._donor(slot, wanted) if self.can_share and done < len(wanted) else None
        if donor is None:
            return False
        self._lib.llama_memory_seq_cp(self._memory, donor, slot, done, len(wanted))
        self._tokens[slot] += wanted[done:]
        return True

    def keep(self, slot: int, system: list[int]) -> None:
        """Keep the system prompt that ``slot`` begins with for rooms that join after it has left."""
        if system and self.can_share and self._tokens[self._shared] != system:
            self.forget_system()
            self._lib.llama_memory_seq_cp(self._memory, slot, self._shared, 0, len(system))
            self._tokens[self._shared] = list(system)

    def forget_system(self) -> bool:
        """Give up the kept system prompt, which is only a convenience; False: there was none."""
        had = bool(self._tokens[self._shared])
        self.forget(self._shared)
        return had

    def _donor(self, slot: int, wanted: list[int]) -> int | None:
        for donor, tokens in enumerate(self._tokens):
            if donor != slot and donor not in self._parked and tokens[: len(wanted)] == wanted:
                return donor
        return None

    # --- parking ----------------------------------------------------------------------------------

    def park_one(self, idle: Collection[int], busy: Collection[int]) -> bool:
        """Park the least recently used of ``idle``, or else of ``busy``; False: none of them has anything."""
        for slots in (idle, busy):
            for slot in self._used:
                if slot in slots and self._tokens[slot] and slot not in self._parked:
                    self.park(slot)
                    return True
        return False

    def park(self, slot: int) -> None:
        """Copy the slot's state to host memory and give its cells back."""
        size = self._lib.llama_state_seq_get_size(self._context, slot)
        state = self._free.pop() if self._free else np.empty(max(size, self._state_bytes), np.uint8)
        if size > len(state):
            state = np.empty(size, np.uint8)
        written = self._lib.llama_state_seq_get_data(self._context, _pointer(state), size, slot)
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        if written == size:
            self._parked[slot] = (state, size)
            _log.debug("slot %d parked: %d tokens, %.1f MB", slot, len(self._tokens[slot]), size / 1e6)
        else:
            _log.warning("slot %d could not be parked; it will be computed again", slot)
            self._free.append(state)
            self._tokens[slot] = []

    def restore(self, slot: int, system: int) -> bool:
        """Bring a parked slot back; False: the pool has no room for it. ``system``: tokens others may have as well."""
        state, size = self._parked[slot]
        if self._lib.llama_state_seq_set_data(self._context, _pointer(state), size, slot) != size:
            return False
        self._unpark(slot)
        self._touch(slot)
        # The copy has cells of its own for the system prompt: share them again.
        prefix = self._tokens[slot][:system]
        donor = self._donor(slot, prefix) if prefix and self.can_share else None
        if donor is not None and self._lib.llama_memory_seq_rm(self._memory, slot, 0, len(prefix)):
            self._lib.llama_memory_seq_cp(self._memory, donor, slot, 0, len(prefix))
        return True

    def _unpark(self, slot: int) -> None:
        parked = self._parked.pop(slot, None)
        if parked is not None:
            self._free.append(parked[0])

    def _touch(self, slot: int) -> None:
        if slot != self._shared:
            del self._used[slot]
            self._used[slot] = None


def _pointer(state: State) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
