"""Text vectors of captions that are repeated, computed once per process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Encode = Callable[[Tensor], Tensor]


class TextCache:
    """A cache of the frozen text encoder's vectors by token ids.

    Every caption is encoded alone, in a batch of one. So its vectors are a function of its token ids, not of the
    captions that happened to come with it first, and a resumed run computes exactly what an uninterrupted one does.
    That costs more per new caption than a batch would: it pays where captions are repeated often.

    Args:
        encode: int64 [1, T] -> [1, T, D], without gradients.
        max_bytes: memory of the vectors; captions that come after it is full are encoded every time.
    """

    def __init__(self, encode: Encode, max_bytes: int) -> None:
        self._encode, self._max_bytes = encode, max_bytes
        self._slots: dict[bytes, int] = {}
        self._table: Tensor | None = None
        self.misses = 0

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Return the vectors [B, T, D] of int64 [B, T] (on the CPU)."""
        keys = [row.tobytes() for row in token_ids.numpy()]
        extra: list[Tensor] = []
        slots = []
        for number, key in enumerate(keys):
            slot = self._slots.get(key)
            if slot is None:
                self.misses += 1
                value = self._encode(token_ids[number : number + 1])
                slot = self._store(key, value)
                if slot is None:
                    slot = -1 - len(extra)
                    extra.append(value)
            slots.append(slot)
        if not extra:
            assert self._table is not None
            return self._table.index_select(0, torch.tensor(slots))
        kept = self._table
        rows = [extra[-1 - slot][0] if slot < 0 or kept is None else kept[slot] for slot in slots]
        return torch.stack(rows)

    def _store(self, key: bytes, value: Tensor) -> int | None:
        """Keep a value and return its slot; None if there is no room."""
        used, capacity = len(self._slots), 0 if self._table is None else self._table.shape[0]
        if used == capacity:
            larger = min(max(256, 2 * capacity), self._max_bytes // value.nbytes)
            if larger <= used:
                return None
            table = value.new_empty((larger, *value.shape[1:]))
            if self._table is not None:
                table[:used] = self._table
            self._table = table
        assert self._table is not None
        self._table[used] = value[0]
        self._slots[key] = used
        return used
