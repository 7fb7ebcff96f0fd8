"""Which datasets, in which shares and order."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """One dataset of latents in the training mixture."""

    name: str
    """`name` (its head), or `name@digest` to pin a version."""
    weight: float | None = None
    """Share of the samples, relative to the other weights. Null for all datasets: one row after the other, exact
    epochs."""

    mirrored: str | None = None
    """The dataset of mirrored latents, for `flip`: the encode job makes it together with this one."""

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ValueError("weight: must be positive and finite; leave the dataset out instead of weighing it 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderConfig:
    """How the samples are shuffled (see training.order.batches)."""

    chunk_rows: int = 1024
    window_chunks: int = 32
    language_temperature: float | None = None
    """T: languages are drawn in shares proportional to rows ** (1 / T), each with its own epochs. 1 keeps their
    natural shares, a larger T lifts the small ones, towards equal shares. Null draws rows, whatever their language."""
    buckets: bool = False
    """Every global batch comes from one dataset: they may differ in shape. Shares by weight, else by rows."""

    def __post_init__(self) -> None:
        if self.chunk_rows < 1:
            raise ValueError("chunk_rows: must be positive; use the datasets' rows per row group")
        if self.window_chunks < 1:
            raise ValueError("window_chunks: must be positive; more mixes better and needs more memory")
        if self.language_temperature is not None and not self.language_temperature >= 1:
            raise ValueError(
                "language_temperature: must be at least 1 (natural shares); 5 lifts small languages, null is off"
            )
