"""Inception Score: how sure a classifier is of each image, and how varied its classes are.

    IS = exp(mean_x KL(p(y|x) || p(y))) = exp(mean_x sum_y p(y|x) log p(y|x) - sum_y p(y) log p(y))

Salimans et al.: "Improved techniques for training GANs", 2016. It is computed on S splits of the images, and its mean
over them is reported. The second form needs only sums, so that images can be seen in any order and pieces merged.

Shapes: n images, C classes, S splits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassSums:
    """The sufficient statistics of the Inception Score, by split."""

    rows: NDArray[np.int64]
    """Number of images, [S]."""
    probabilities: Array
    """Sum of p(y|x) over images, [S, C]."""
    negentropy: Array
    """Sum over images of sum_y p log p, [S]."""

    @classmethod
    def of(cls, probabilities: NDArray[np.floating], split: NDArray[np.int64], splits: int) -> ClassSums:
        """Return the sums of images with class probabilities [n, C], each in one split [n]."""
        p = np.asarray(probabilities, np.float64)
        logs = np.log(np.where(p > 0, p, 1.0))  # 0 log 0 is 0
        sums, negentropy = np.zeros((splits, p.shape[1])), np.zeros(splits)
        np.add.at(sums, split, p)
        np.add.at(negentropy, split, (p * logs).sum(axis=1))
        return cls(
            rows=np.bincount(split, minlength=splits),
            probabilities=sums,
            negentropy=negentropy,
        )

    def merged(self, other: ClassSums) -> ClassSums:
        """Return the sums of the images of both."""
        return ClassSums(
            rows=self.rows + other.rows,
            probabilities=self.probabilities + other.probabilities,
            negentropy=self.negentropy + other.negentropy,
        )

    def scores(self) -> Array:
        """Return the Inception Score of each split that has an image, at most [S]."""
        there = self.rows > 0
        marginal = self.probabilities[there] / self.rows[there, None]
        entropy = -(marginal * np.log(np.where(marginal > 0, marginal, 1.0))).sum(axis=1)
        scores: Array = np.exp(self.negentropy[there] / self.rows[there] + entropy)
        return scores
