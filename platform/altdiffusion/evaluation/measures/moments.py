"""Mean and scatter of features, gathered in pieces that can be merged in any order.

    delta = mean_b - mean_a
    mean  = mean_a + delta n_b / n
    M2    = M2_a + M2_b + (delta outer delta) n_a n_b / n

Chan, Golub, LeVeque: "Updating formulae and a pairwise algorithm for computing sample variances", Stanford
STAN-CS-79-773, 1979, formulae 1.5 in several dimensions. All in float64; the order changes a result only in its
rounding.

Shapes: n rows, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """The sufficient statistics of a Gaussian fit."""

    rows: int
    """Number of rows, n."""
    mean: Array
    """Mean of the rows, [F]; zeros where there are none."""
    scatter: Array
    """M2 [F, F]: the sum over rows of the outer product of (row - mean) with itself."""

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Return the moments of no rows of F = width features."""
        return cls(rows=0, mean=np.zeros(width), scatter=np.zeros((width, width)))

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Moments:
        """Return the moments of features [n, F]."""
        values = np.asarray(features, np.float64)
        if not len(values):
            return cls.empty(values.shape[1])
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(rows=len(values), mean=mean, scatter=centred.T @ centred)

    def merged(self, other: Moments) -> Moments:
        """Return the moments of the rows of both."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        rows = self.rows + other.rows
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.rows * other.rows / rows)
        return Moments(rows=rows, mean=self.mean + delta * (other.rows / rows), scatter=scatter)

    @property
    def covariance(self) -> Array:
        """Covariance [F, F] with the denominator n - 1, as `numpy.cov` gives it."""
        return self.scatter / (self.rows - 1)
