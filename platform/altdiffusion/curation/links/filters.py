"""The filters by number: which rows fail them, and what a row group's statistics already prove.

A filter's order is its place in `REASONS`: the first that fails is a row's one reason. The filters by number come
first, so that neither URL nor caption is read where they leave nothing over (`curation.links.reader`).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import SelectConfig
from altdiffusion.curation.rejects import (
    AESTHETIC,
    ASPECT,
    BAD_URL,
    BLOCKLIST,
    CAPTION,
    CAPTION_BYTES,
    LANGUAGE,
    PUNSAFE,
    PWATERMARK,
    SIMILARITY,
    SIZE,
    URL_SCHEME,
)
from altdiffusion.execution.reject_reasons import Reason

REASONS = (
    SIZE, ASPECT, SIMILARITY, PUNSAFE, PWATERMARK, AESTHETIC, BAD_URL, CAPTION_BYTES, URL_SCHEME, BLOCKLIST, CAPTION,
    LANGUAGE,
)  # fmt: skip
CODES: dict[Reason, int] = {reason: number for number, reason in enumerate(REASONS, 1)}
"""A reason in a column of bytes; 0 means none."""

Codes = npt.NDArray[np.uint8]
Columns = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a row group's footer states about a column. Both ends are None where every value is null."""

    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class NumberFilter:
    """One filter; null counts as failing unless the config keeps it."""

    reason: Reason
    columns: tuple[str, ...]
    fails: Callable[[Columns], Any]
    """Normalised columns -> boolean, whether each row fails; null where a value is null."""
    keeps_null: bool
    proves: Callable[[Mapping[str, Bounds]], str | None]
    """Bounds of columns, where the footer has them -> why every row fails, or None if that is not sure."""

    def failing(self, columns: Columns) -> npt.NDArray[np.bool_]:
        """Return whether each row fails, [N]."""
        return np.asarray(pc.fill_null(self.fails(columns), not self.keeps_null), bool)


def number_filters(config: SelectConfig) -> tuple[NumberFilter, ...]:
    """Return the filters that the config switches on, in the order of REASONS."""
    filters = []
    keeps_size = "size" in config.keep_null
    if config.min_side is not None:
        filters.append(
            NumberFilter(
                reason=SIZE,
                columns=("width", "height"),
                fails=functools.partial(_too_small, least=config.min_side),
                keeps_null=keeps_size,
                proves=_never if keeps_size else functools.partial(_all_small, least=config.min_side),
            )
        )
    if config.max_aspect is not None:
        filters.append(
            NumberFilter(
                reason=ASPECT,
                columns=("width", "height"),
                fails=functools.partial(_too_long, most=config.max_aspect),
                keeps_null=keeps_size,
                proves=_never,
            )
        )
    for reason, threshold, above in (
        (SIMILARITY, config.similarity_above, True),
        (PUNSAFE, config.punsafe_below, False),
        (PWATERMARK, config.pwatermark_below, False),
        (AESTHETIC, config.aesthetic_above, True),
    ):
        if threshold is None:
            continue
        keeps, name = reason in config.keep_null, str(reason)  # a score and its column have the reason's name
        filters.append(
            NumberFilter(
                reason=reason,
                columns=(name,),
                fails=functools.partial(_not_beyond, name=name, threshold=threshold, above=above),
                keeps_null=keeps,
                proves=_never if keeps else functools.partial(_all_within, name=name, threshold=threshold, above=above),
            )
        )
    return tuple(filters)


def columns_of(filters: Sequence[NumberFilter]) -> list[str]:
    """Return the columns that filters need, each once."""
    return list(dict.fromkeys(name for one in filters for name in one.columns))


def judge(filters: Sequence[NumberFilter], columns: Columns, rows: int) -> Codes:
    """Return the code of the first filter that each row fails, 0 where it passes all."""
    codes = np.zeros(rows, np.uint8)
    for one in filters:
        codes[one.failing(columns) & (codes == 0)] = CODES[one.reason]
    return codes


def first_proved(filters: Sequence[NumberFilter], bounds: Mapping[str, Bounds]) -> tuple[int, str] | None:
    """Return the first filter that every row of a row group must fail: its place among `filters`, and why.

    The filters before it still have to be asked: a row's reason is the first it fails.
    """
    for place, one in enumerate(filters):
        why = one.proves(bounds)
        if why is not None:
            return place, why
    return None


def _too_small(columns: Columns, *, least: int) -> Any:
    return pc.less(pc.min_element_wise(columns["width"], columns["height"], skip_nulls=False), least)


def _too_long(columns: Columns, *, most: float) -> Any:
    short = pc.min_element_wise(columns["width"], columns["height"], skip_nulls=False)
    long = pc.max_element_wise(columns["width"], columns["height"], skip_nulls=False)
    return pc.greater(pc.divide(long.cast(pa.float64()), short.cast(pa.float64())), most)


def _not_beyond(columns: Columns, *, name: str, threshold: float, above: bool) -> Any:
    """Return whether each row fails; the comparison is strict, as LAION's own thresholds are."""
    compare = pc.less_equal if above else pc.greater_equal
    return compare(columns[name], threshold)


def _never(bounds: Mapping[str, Bounds]) -> str | None:
    """Prove nothing: statistics leave NaN out, which a filter that keeps nulls lets pass."""
    return None


def _all_small(bounds: Mapping[str, Bounds], *, least: int) -> str | None:
    for name in ("width", "height"):
        if name in bounds:
            high = bounds[name].high
            if high is None:
                return f"no {name}"
            if high < least:
                return f"{name} at most {high:g}"
    return None


def _all_within(bounds: Mapping[str, Bounds], *, name: str, threshold: float, above: bool) -> str | None:
    if name not in bounds:
        return None
    edge = bounds[name].high if above else bounds[name].low
    if edge is None:
        return f"no {name}"
    outside = operator.le(edge, threshold) if above else operator.ge(edge, threshold)
    return f"{name} {'at most' if above else 'at least'} {edge:g}" if outside and not math.isnan(edge) else None
