"""Medians of ratios that were measured in turns, and how far they can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Return how many times as fast `of` is as `to` in each turn; both are seconds."""
    return [b / a for a, b in zip(of, to, strict=True)]


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the interval of order statistics that holds the median with at least this probability, if so many values
    allow it. It assumes no distribution."""
    ordered, count = sorted(values), len(values)
    outside, below = 0, 0.0
    while outside < count // 2:
        below += math.comb(count, outside) / 2**count
        if 2 * below > 1 - level:
            break
        outside += 1
    first = max(0, outside - 1)
    return ordered[first], ordered[count - 1 - first]


def shown(values: Sequence[float]) -> str:
    """Return the median and its interval as text."""
    low, high = interval(values)
    return f"{statistics.median(values):.3f} [{low:.3f}, {high:.3f}]"
