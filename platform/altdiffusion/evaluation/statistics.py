"""Statistics of shares: intervals, paired differences, tests with a margin, and Holm's correction.

Shapes: N cases, K clusters. A case is one prompt; its value is the share of its images (seeds) and judges that were
right, 0 or 1 where there is one of each. Cases of one concept are correlated, in several languages above all, so
concepts are the clusters, and the number of independent observations is estimated, never taken from the number of
images. Everything is a closed form or an exact test: there is no random draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

LEVEL = 0.95
_FEW = 5
"""Fewer clusters with a failure (or a success) than this do not show how strongly the cases of a cluster agree."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of `total` images, or a ratio, with its interval."""

    value: float
    low: float
    high: float
    total: int

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "total": self.total}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second share minus the first one, on the same cases."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided p value of the exact test that the shares do not differ."""
    total: int
    """Number of images of each."""

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "p": self.p, "total": self.total}


@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """A share as measured."""

    value: float
    sums: NDArray[np.float64]
    """[K] what each cluster adds to the share; the sums add up to it."""
    parts: NDArray[np.float64]
    """[K] what each cluster adds to the error of the share; the parts add up to 0."""
    n: float
    """Effective sample size: the number of independent images that would leave the same uncertainty."""
    total: int
    """Number of images."""

    def limits(self, z: float) -> tuple[float, float]:
        """Return the limits of Wilson's interval of z standard errors."""
        return wilson(self.value, self.n, z)

    @property
    def rate(self) -> Rate:
        """The share with its interval of LEVEL."""
        low, high = self.limits(z_of(LEVEL))
        return Rate(value=self.value, low=low, high=high, total=self.total)


def z_of(level: float) -> float:
    """Return how many standard errors an interval of a level has on each side: 1.96 for 0.95."""
    return float(norm.ppf((1 + level) / 2))


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share of n observations.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927). Its limits are the shares p with (share - p)^2 = z^2 p (1 - p) / n.
    """
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if share == 0 else max(0.0, float(middle - half))
    high = 1.0 if share == 1 else min(1.0, float(middle + half))
    return low, high


def share_of(
    values: NDArray[Any],
    clusters: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
    images: NDArray[np.int64] | None = None,
    *,
    count: int | None = None,
) -> Share:
    """Return the mean of the cases' values, with the sample size that their agreement within clusters leaves.

    The variance is that of the linearised ratio estimator over clusters (W. G. Cochran, "Sampling Techniques", 1977,
    section 9A); the effective sample size is share (1 - share) / variance (E. L. Korn and B. I. Graubard, "Confidence
    intervals for proportions with small expected number of positive counts", Survey Methodology 24, 1998), at most
    the number of images. Near 0 and 1 the variance shows too little, and the size is at most that of clusters
    whose cases agree completely (L. Kish, "Survey Sampling", 1965, section 8.2). With one case of one image in each
    cluster the size is the number of cases.

    Args:
        values: [N] in 0..1.
        clusters: [N] cluster of each case, from 0.
        groups: [N] group (language) of each case, from 0; the share is the unweighted mean over the groups. None is
            one group.
        images: [N] images of each case; None is one each.
        count: K, where there are clusters without a case here.
    """
    values = np.asarray(values, np.float64)
    group = np.zeros(len(values), np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(group)
    means = np.bincount(group, weights=values) / sizes
    weights = 1 / (sizes[group] * len(sizes))
    clusters_there = int(clusters.max()) + 1 if count is None else count
    sums: NDArray[Any] = np.bincount(clusters, weights=weights * values, minlength=clusters_there)
    parts: NDArray[Any] = np.bincount(clusters, weights=weights * (values - means[group]), minlength=clusters_there)
    value = float(np.clip(means.mean(), 0.0, 1.0))
    total = len(values) if images is None else int(images.sum())
    variance = float(parts @ parts)
    size = value * (1 - value) / variance if variance > 1e-18 else float(total)
    if min(len(np.unique(clusters[values < 1])), len(np.unique(clusters[values > 0]))) < _FEW:
        held = np.bincount(clusters, weights=weights)
        size = min(size, 1 / float(held @ held))
    return Share(value=value, sums=sums, parts=parts, n=min(max(size, 1.0), float(total)), total=total)


def _correlation(first: Share, second: Share) -> float:
    """Return the correlation of two shares on the same clusters, with Newcombe's continuity correction.

    With one case of 0 or 1 in each cluster it is the corrected phi of the 2 x 2 table: a d - b c is reduced by n / 2,
    at most to 0. For clustered cases n is the effective sample size.
    """
    scale = float(np.sqrt((first.parts @ first.parts) * (second.parts @ second.parts)))
    if scale < 1e-18:
        return 0.0
    rho = float(np.clip(first.parts @ second.parts / scale, -1.0, 1.0))
    spread = np.sqrt(first.value * (1 - first.value) * second.value * (1 - second.value))
    step = 1 / (2 * np.sqrt(first.n * second.n) * spread)
    return max(rho - float(step), 0.0) if rho > 0 else rho


def _difference_limits(first: Share, second: Share, z: float) -> tuple[float, float]:
    """Return the limits of `second` minus `first`.

    Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17 (1998), method 10: Wilson's limits of both shares, squared and added with
    the correlation. For clustered cases it is the method of variance estimates recovery (G. Y. Zou and A. Donner,
    Statistics in Medicine 27, 2008), which has the same formula.
    """
    rho = _correlation(first, second)
    (l1, u1), (l2, u2) = first.limits(z), second.limits(z)
    p1, p2 = first.value, second.value
    below = (p2 - l2) ** 2 - 2 * rho * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    above = (u2 - p2) ** 2 - 2 * rho * (u2 - p2) * (p1 - l1) + (p1 - l1) ** 2
    value = p2 - p1
    return max(-1.0, value - float(np.sqrt(max(below, 0.0)))), min(1.0, value + float(np.sqrt(max(above, 0.0))))


def difference_of(first: Share, second: Share) -> Difference:
    """Return `second` minus `first`, which were measured on the same cases.

    The p value is that of the exact sign test over clusters, which is McNemar's exact test where each cluster is one
    case of 0 or 1 (Q. McNemar, Psychometrika 12, 1947): of the clusters that differ, half favour either share.
    """
    low, high = _difference_limits(first, second, z_of(LEVEL))
    value = second.value - first.value
    moved = second.sums - first.sums
    better, worse = int((moved > 1e-12).sum()), int((moved < -1e-12).sum())
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Difference(value=value, low=low, high=high, p=p, total=second.total)


def p_no_worse(first: Share, second: Share, margin: float) -> float:
    """Return the one-sided p value of the test that `second` is not worse than `first` by a margin or more.

    The null hypothesis is second - first <= -margin. The value is the level at which the lower limit of the paired
    interval (`_difference_limits`) reaches -margin, so the test and the interval never contradict each other.
    """
    value = second.value - first.value
    if value <= -margin:
        return 1.0 if value < -margin else 0.5

    def beyond(z: float) -> float:
        return _difference_limits(first, second, z)[0] + margin

    most = 10.0
    return float(norm.sf(most if beyond(most) > 0 else brentq(beyond, 0.0, most)))


def ratio_of(first: Share, second: Share) -> Rate:
    """Return `first` over `second`, which is above 0, with its interval.

    Source: A. Donner and G. Y. Zou, "Closed-form confidence intervals for functions of the normal mean and standard
    deviation", Statistical Methods in Medical Research 21 (2012), section 3: a limit R is where the limit of
    first - R x second, by variance estimates recovery, is 0.
    """
    z, rho = z_of(LEVEL), _correlation(first, second)
    (l1, u1), (l2, u2) = first.limits(z), second.limits(z)
    p1, p2 = first.value, second.value

    def spread(ratio: float, side1: float, side2: float) -> float:
        squared = side1**2 - 2 * rho * ratio * side1 * side2 + (ratio * side2) ** 2
        return float(np.sqrt(max(squared, 0.0)))

    value = p1 / p2
    low = brentq(lambda ratio: p1 - ratio * p2 - spread(ratio, p1 - l1, u2 - p2), 0.0, value) if l1 > 0 else 0.0
    high = brentq(lambda ratio: p1 - ratio * p2 + spread(ratio, u1 - p1, p2 - l2), value, (u1 + 1) / l2 + 1)
    return Rate(value=value, low=float(low), high=float(high), total=first.total)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for the number of comparisons, in the given order.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979): the k-th smallest of m is multiplied by m - k + 1, and none is below a smaller one's.
    """
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return [float(value) for value in corrected]
