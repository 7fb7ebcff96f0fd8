"""A measured value with its interval, and the intervals that the measures use.

- `of_parts`: the mean of independent parts with Student's t interval.
- `of_jackknife`: a value with the delete-a-group jackknife (Efron & Tibshirani, "An Introduction to the Bootstrap",
  1993, chapter 11) and Student's t interval.
- `of_groups`: a mean over rows in groups, with a percentile bootstrap over the groups (ibid., chapter 13). The draws
  are keyed, so the interval is the same whenever it is made.
- `of_share`: a share of successes with Wilson's interval ("Probable inference, the law of succession, and statistical
  inference", 1927), which does not collapse at 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
"""Coverage of every interval."""
DRAWS = 1000
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value of a measure."""

    value: float
    low: float | None
    """Lower end of the interval; None where the measure has none."""
    high: float | None
    rows: int
    """Number of images that it was measured on."""

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "rows": self.rows}


def of_parts(values: Array, rows: int) -> Estimate:
    """Return the mean of independent parts' values [B]; a single part has no interval."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return _student(float(values.mean()), error, len(values) - 1, rows)


def of_jackknife(value: float, without: Array, rows: int) -> Estimate:
    """Return a value with the jackknife's interval.

    Args:
        value: the measure on all rows.
        without: the measure without each of G groups, [G].
    """
    groups, error = len(without), None
    if groups > 1:
        error = math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))
    return _student(value, error, groups - 1, rows)


def of_groups(values: Array, groups: Sequence[str], *, weights: Array | None = None, seed: int = 0) -> Estimate:
    """Return the mean of values [n] with its bootstrap interval over the groups [n] that the rows belong to.

    Rows of one group, such as the same prompt in several languages or with several seeds, are drawn together. A single
    group has no interval.

    Args:
        weights: weight of each row, [n]; None weighs all the same.
    """
    names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    weights = np.ones(len(values)) if weights is None else weights
    totals = np.bincount(group_of, weights=values * weights, minlength=len(names))
    counts = np.bincount(group_of, weights=weights, minlength=len(names))
    mean = float(totals.sum() / counts.sum())
    if len(names) < 2:
        return Estimate(value=mean, low=None, high=None, rows=len(values))
    random = np.random.Generator(np.random.Philox(key=seed))
    means = np.empty(DRAWS)
    for draw in range(DRAWS):
        picked = random.integers(0, len(names), len(names))
        means[draw] = totals[picked].sum() / counts[picked].sum()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=mean, low=float(low), high=float(high), rows=len(values))


def of_share(share: float, trials: int, rows: int) -> Estimate:
    """Return a share with Wilson's interval.

    Args:
        share: observed share of successes, 0 to 1.
        trials: number of independent trials that it rests on, which may be fewer than the rows.
    """
    z = float(ndtri((1 + LEVEL) / 2))
    denominator = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Estimate(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half), rows=rows)


def _student(value: float, error: float | None, freedom: int, rows: int) -> Estimate:
    if error is None:
        return Estimate(value=value, low=None, high=None, rows=rows)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Estimate(value=value, low=value - half, high=value + half, rows=rows)
