"""Which datasets, in which shares and order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from altdiffusion.constraints import Checked, Constraint, at_least

_WEIGHT = Constraint(
    lambda value: 0 < value < math.inf, "must be positive and finite", "leave the dataset out instead of weighting it 0"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig(Checked):
    """One dataset of latents in the training mixture."""

    name: str
    """`name` (its head), or `name@digest` to pin a version."""
    weight: Annotated[float | None, _WEIGHT] = None
    """Share of the samples, relative to the other weights. Null for all datasets: one row after the other, exact
    epochs."""
    mirrored: str | None = None
    """The dataset of mirrored latents, for `flip`: the encode job makes it together with this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderConfig(Checked):
    """How the samples are shuffled (see training.order.batches)."""

    chunk_rows: Annotated[int, at_least(1, "use the datasets' rows per row group")] = 1024
    """Rows in a row that are shuffled as one piece before they are mixed within a window."""
    window_chunks: Annotated[int, at_least(1, "more mixes better and needs more memory")] = 32
    """Chunks whose rows are mixed with each other; all of them should fit the cache."""
    language_temperature: Annotated[
        float | None, at_least(1, "1 keeps natural shares, 5 lifts small languages, null is off")
    ] = None
    """T: languages are drawn in shares proportional to rows ** (1 / T), each with its own epochs. 1 keeps their
    natural shares, a larger T lifts the small ones, towards equal shares. Null draws rows, whatever their language."""
    buckets: bool = False
    """Every global batch comes from one dataset: they may differ in shape. Shares by weight, else by rows."""
