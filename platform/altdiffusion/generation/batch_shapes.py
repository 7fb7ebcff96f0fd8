"""Sizes of batches in which a row gets the bits that it gets in a full batch; measured, never assumed.

The kernels of a device split their sums by the shape of the batch, so that a row may round differently in a smaller
one; on a CPU few layers do, and `even_rows` fills those up. Which kernel runs depends on the shapes alone, never on the
values. So a size is proven by comparing every bit of the networks' output on random rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

PROOF_BATCHES = 4
"""Passes of a full batch that a proof may take; it is made only where drawing saves more."""

Probe = Callable[[slice], Tensor]
"""Returns the networks' output [n, ...] for n of B fixed random rows, computed as one batch of n."""


class BatchShapes:
    """The sizes that are proven for each form of a batch, besides the full one.

    Args:
        batch_rows: B, the size of a full batch.
    """

    def __init__(self, batch_rows: int) -> None:
        self._batch_rows = batch_rows
        self._full: dict[Hashable, Tensor] = {}
        self._proven: dict[tuple[Hashable, int], bool] = {}

    def candidates(self, count: int) -> list[int]:
        """Return 1, 2, 3, 4, 6, 8, 12 … below B that hold `count` rows, then B: at most a third is filling."""
        powers = [1 << power for power in range(self._batch_rows.bit_length())]
        sizes = sorted({*powers, *(3 * power for power in powers)})
        return [*(rows for rows in sizes if count <= rows < self._batch_rows), self._batch_rows]

    def smallest(self, count: int, steps: int, form: Hashable, probe: Probe) -> int:
        """Return the least size that holds `count` rows and gives them the bits of a full batch.

        Args:
            steps: passes that the rows will take; for a few of them a proof is not worth its time.
            form: what the networks' shapes depend on, besides the size of the batch.
        """
        for rows in self.candidates(count)[:-1]:
            known = self._proven.get((form, rows))
            if known is None and steps * (self._batch_rows - rows) <= PROOF_BATCHES * self._batch_rows:
                break
            if known or (known is None and self._prove(rows, form, probe)):
                return rows
        return self._batch_rows

    def _prove(self, rows: int, form: Hashable, probe: Probe) -> bool:
        if form not in self._full:
            self._full[form] = probe(slice(0, self._batch_rows))
        full = self._full[form]
        ends = (slice(0, rows), slice(self._batch_rows - rows, self._batch_rows))
        self._proven[form, rows] = all(torch.equal(probe(part), full[part]) for part in ends)
        return self._proven[form, rows]
