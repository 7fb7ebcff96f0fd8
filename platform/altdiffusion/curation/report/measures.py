"""Distributions of what is measured, as bins: of links from the manifest's tally, of images from a sample of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.tally import MEASURES, Measure, bins

QUANTILES = (0.05, 0.5, 0.95)
_SHARES = frozenset({"punsafe", "pwatermark", "language_score"})  # measures that end at 1
MAX_BINS = 120  # per chart; values farther out are counted next to it


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Rows by bin of one measure."""

    name: str
    measure: Measure
    counts: Mapping[int, int]
    """Rows by bin number, ascending."""
    unknown: int
    """Rows without a value."""
    low: float = 0.0
    """The value that a twentieth of the values is below; read from a tally, values are evenly spread within a bin."""
    median: float = 0.0
    high: float = 0.0
    """The value that a twentieth of the values is above."""
    outside: int = 0
    """Rows in bins beyond those in `counts`."""

    @property
    def rows(self) -> int:
        """Rows with a value."""
        return sum(self.counts.values()) + self.outside

    @property
    def logarithmic(self) -> bool:
        return _is_logarithmic(self.measure)


def _is_logarithmic(how: Measure) -> bool:
    return how.edge(0) == 1.0  # bin 0 of a logarithmic scale begins at 2 ** 0


def _linear(name: str, per_unit: int) -> Measure:
    return Measure(
        unit="",
        value=lambda table: table[name],
        number=lambda values: np.round(values * per_unit, 4),
        edge=lambda bin: bin / per_unit,
    )


def _octaves(value: Callable[[pa.Table], Any], per_octave: int, unit: str) -> Measure:
    return Measure(
        unit=unit,
        value=value,
        number=lambda values: np.round(np.log2(values) * per_octave, 6),
        edge=lambda bin: 2.0 ** (bin / per_octave),
    )


def _shorter(kind: str) -> Callable[[pa.Table], Any]:
    return lambda table: pc.min_element_wise(table[f"{kind}_width"], table[f"{kind}_height"], skip_nulls=False)


IMAGES: dict[str, Measure] = {
    "original_short_side": _octaves(_shorter("original"), 4, "px"),
    "stored_short_side": _octaves(_shorter("stored"), 4, "px"),
    "aesthetic_score": _linear("aesthetic_score", 10),
}
IMAGE_COLUMNS = ("original_width", "original_height", "stored_width", "stored_height", "aesthetic_score")
STORED_BYTES = _octaves(lambda table: table["bytes"], 4, "B")
SCORES: dict[str, Measure] = {
    "aesthetic_v1": _linear("aesthetic_v1", 10),
    "aesthetic_v2": _linear("aesthetic_v2", 10),
    "nsfw": _linear("nsfw", 50),
    "watermark": _linear("watermark", 50),
}


def of_tally(counts: Mapping[str, int]) -> list[Distribution]:
    """Return the distributions of a tally, over all languages."""
    unknown: dict[str, int] = {}
    for key, rows in counts.items():
        measure, _, bin = key.split("|")
        if bin == "null":
            unknown[measure] = unknown.get(measure, 0) + rows
    found = []
    for name, how in MEASURES.items():
        by_bin = bins(counts, name)
        quantiles = [_quantile(by_bin, how, q) for q in QUANTILES] if by_bin else [0.0] * len(QUANTILES)
        if name in _SHARES:
            quantiles = [min(value, 1.0) for value in quantiles]  # 1 itself is in a bin that begins there
        found.append(_cut(name, how, by_bin, unknown.get(name, 0), quantiles))
    return found


def of_rows(table: pa.Table, measures: Mapping[str, Measure]) -> list[Distribution]:
    """Return the distributions of rows that were read, with exact quantiles."""
    return [_of_values(name, how, how.value(table)) for name, how in measures.items()]


def _of_values(name: str, how: Measure, column: Any) -> Distribution:
    values = pc.fill_null(column.cast(pa.float64()), math.nan).to_numpy(zero_copy_only=False)
    least = 0.0 if _is_logarithmic(how) else -math.inf  # a logarithm needs more than zero
    known = values[np.isfinite(values) & (values > least)]
    numbers, counts = np.unique(np.floor(how.number(known)).astype(np.int64), return_counts=True)
    quantiles = np.quantile(known, QUANTILES, method="inverted_cdf").tolist() if len(known) else [0.0] * len(QUANTILES)
    by_bin = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return _cut(name, how, by_bin, len(values) - len(known), quantiles)


def _quantile(by_bin: Mapping[int, int], how: Measure, q: float) -> float:
    """Return the value that a share q is below, values being evenly spread within a bin (on the scale of the bins)."""
    wanted, passed = q * sum(by_bin.values()), 0
    number = max(by_bin)
    for bin, count in by_bin.items():
        if passed + count >= wanted:
            number = bin
            break
        passed += count
    low, high = how.edge(number), how.edge(number + 1)
    share = max(wanted - passed, 0.0) / by_bin[number]
    return float(low * (high / low) ** share if _is_logarithmic(how) else low + (high - low) * share)


def _cut(name: str, how: Measure, counts: Mapping[int, int], unknown: int, quantiles: list[float]) -> Distribution:
    """Keep at most MAX_BINS bins: the emptier end goes first, so that one strange value does not flatten all others."""
    left = sorted(counts)
    first, last, outside = 0, len(left) - 1, 0
    while last > first and left[last] - left[first] >= MAX_BINS:
        if counts[left[first]] <= counts[left[last]]:
            outside, first = outside + counts[left[first]], first + 1
        else:
            outside, last = outside + counts[left[last]], last - 1
    kept = {number: counts[number] for number in left[first : last + 1]}
    low, median, high = quantiles
    return Distribution(
        name=name, measure=how, counts=kept, unknown=unknown, low=low, median=median, high=high, outside=outside
    )
