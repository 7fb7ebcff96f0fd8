"""Tallies: how many rows of each language fall into which bin of what is measured, small enough for a manifest.

A tally is a flat count, `"<measure>|<language>|<bin>" -> rows`, so that tallies of units add up key by key. Quantiles
and histograms of billions of rows are read from it without reading a row again. Bins are half open, [low, high).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of each row and how it is cut into bins: bin b holds scale(b) <= value < scale(b + 1)."""

    unit: str
    value: Callable[[pa.Table], Any]
    """Column of the value, null where unknown."""
    above: float = -math.inf
    """Values at or below this count as missing: they have no logarithm."""
    number: Callable[[Any], Any]
    """Values -> bin numbers before rounding down (NumPy)."""
    edge: Callable[[int], float]
    """The lower edge of a bin: the inverse of `number`."""


def _linear(name: str, width: float, unit: str) -> Measure:
    per_unit = round(1 / width)  # the reciprocal is whole: an edge is then the float nearest to its decimal form
    return Measure(
        unit=unit,
        value=lambda table: table[name],
        # Scores are stored as float32: what is just below an edge in decimal may be that edge.
        number=lambda values: np.round(values * per_unit, 4),
        edge=lambda bin: bin / per_unit,
    )


def _short(table: pa.Table) -> Any:
    return pc.min_element_wise(table["width"], table["height"], skip_nulls=False)


def _aspect(table: pa.Table) -> Any:
    long = pc.max_element_wise(table["width"], table["height"], skip_nulls=False)
    return pc.divide(long.cast(pa.float64()), _short(table).cast(pa.float64()))


MEASURES: dict[str, Measure] = {
    "similarity": _linear("similarity", 0.005, ""),
    "aesthetic": _linear("aesthetic", 0.1, ""),
    "punsafe": _linear("punsafe", 0.02, ""),
    "pwatermark": _linear("pwatermark", 0.02, ""),
    "language_score": _linear("language_score", 0.02, ""),
    "short_side": Measure(
        unit="px",
        value=_short,
        above=0.0,
        number=lambda v: np.round(np.log2(v) * 4, 6),
        edge=lambda bin: 2.0 ** (bin / 4),
    ),
    "aspect": Measure(
        unit="",
        value=_aspect,
        above=0.0,
        number=lambda v: np.round(np.log2(v) * 8, 6),
        edge=lambda bin: 2.0 ** (bin / 8),
    ),
}


def tally(table: pa.Table) -> dict[str, int]:
    """Return counts of a LINKS table by measure, language and bin; rows without a value are in bin `null`."""
    counts: dict[str, int] = {}
    languages = table["language"].combine_chunks().dictionary_encode()
    if isinstance(languages, pa.ChunkedArray):
        languages = languages.combine_chunks()
    names, index = languages.dictionary.to_pylist(), languages.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    for measure, how in MEASURES.items():
        values = how.value(table)
        numbers = pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        known = np.isfinite(numbers) & (numbers > how.above)
        bins = np.floor(how.number(np.where(known, numbers, 1.0))).astype(np.int64)
        for (language, bin), count in _pairs(index[known], bins[known]):
            counts[f"{measure}|{names[language]}|{bin}"] = count
        for language, count in zip(*np.unique(index[~known], return_counts=True), strict=True):
            counts[f"{measure}|{names[language]}|null"] = int(count)
    return dict(sorted(counts.items()))


def tally_images(table: pa.Table) -> dict[str, int]:
    """Count images by language and what became of the colours they state; those that state none are not counted.

    Args:
        table: columns `language` and `color_profile` of IMAGES; nothing is counted where an older version lacks it.
    """
    if "color_profile" not in table.column_names:
        return {}
    keys = ["language", "color_profile"]
    groups = table.select(keys).group_by(keys).aggregate([([], "count_all")]).to_pylist()
    counts = {
        f"color_profile|{group['language']}|{group['color_profile']}": int(group["count_all"])
        for group in groups
        if group["color_profile"] is not None
    }
    return dict(sorted(counts.items()))


def _pairs(first: Any, second: Any) -> list[tuple[tuple[int, int], int]]:
    pairs, counts = np.unique(np.stack([first, second]), axis=1, return_counts=True)
    return [((int(a), int(b)), int(n)) for a, b, n in zip(*pairs, counts, strict=True)]


def bins(tally: Mapping[str, int], measure: str, language: str | None = None) -> dict[int, int]:
    """Return the rows by bin number, ascending, of one language or of all; rows without a value are left out."""
    rows: dict[int, int] = {}
    for key, count in tally.items():
        name, spoken, bin = key.split("|")
        if name == measure and language in (None, spoken) and bin != "null":
            rows[int(bin)] = rows.get(int(bin), 0) + count
    return dict(sorted(rows.items()))


def histogram(tally: Mapping[str, int], measure: str, language: str | None = None) -> list[tuple[float, float, int]]:
    """Return (low, high, rows) for every bin from the first filled one to the last, in the measure's own unit."""
    counts = bins(tally, measure, language)
    if not counts:
        return []
    edge = MEASURES[measure].edge
    return [(edge(b), edge(b + 1), counts.get(b, 0)) for b in range(min(counts), max(counts) + 1)]


def quantile(tally: Mapping[str, int], measure: str, language: str, q: float) -> float | None:
    """Return the lower edge of the bin that holds the q-quantile: at least a share of 1 - q of the rows is not below.

    None where no row of the language has a value.
    """
    counts = bins(tally, measure, language)
    below, wanted = 0, math.floor(q * sum(counts.values()))
    for bin, count in counts.items():
        below += count
        if below > wanted:
            return MEASURES[measure].edge(bin)
    return MEASURES[measure].edge(max(counts)) if counts else None


TALLIES: Mapping[str, Callable[[pa.Table], dict[str, int]]] = {"links": tally, "images": tally_images}
"""What counts the rows of a kind, for the kinds whose manifests may have a tally."""
