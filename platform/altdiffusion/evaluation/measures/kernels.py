"""Kernel distances (maximum mean discrepancy) between two sets of features; they suit sets of any size.

KID, Binkowski et al.: "Demystifying MMD GANs", 2018: the unbiased estimate of MMD^2 (Gretton et al.: "A kernel
two-sample test", 2012, lemma 6) with the kernel (x . y / F + 1)^3 on Inception's features, averaged over blocks. The
blocks are disjoint here, so that their values are independent and their spread gives a valid standard error.

    MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 mean_ij k(x_i, y_j)

CMMD, Jayasumana et al.: "Rethinking FID: towards a better evaluation metric for image generation", 2024: MMD^2 with
the kernel exp(-|x - y|^2 / (2 sigma^2)), sigma = 10, on CLIP's embeddings of length 1, times 1,000. As in the
published code the sums include i = j (the biased estimate of Gretton et al., equation 5), so equal sets give 0 and no
value is negative.

Shapes: n, m rows, F features, G groups.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kernel = Callable[[Array, Array], Array]
SIGMA, SCALE = 10.0, 1000.0
GROUPS = 20
_ROWS = 1024
"""Rows of a kernel matrix that are in memory at a time."""


def polynomial(x: Array, y: Array) -> Array:
    """Return KID's kernel between rows [n, F] and [m, F]: [n, m]."""
    result: Array = (x @ y.T / x.shape[1] + 1.0) ** 3
    return result


def gaussian(x: Array, y: Array) -> Array:
    """Return CMMD's kernel between rows [n, F] and [m, F]: [n, m]."""
    squares = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None, :] - 2 * (x @ y.T)
    result: Array = np.exp(-squares.clip(min=0) / (2 * SIGMA * SIGMA))
    return result


def unbiased_mmd2(x: Array, y: Array, kernel: Kernel = polynomial) -> float:
    """Return the unbiased estimate of MMD^2 between rows [n, F] and [m, F]; it may be negative.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"needs two rows of each, not {len(x)} and {len(y)}")
    within = [(kernel(z, z).sum() - np.trace(kernel(z, z))) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return float(within[0] + within[1] - 2 * kernel(x, y).mean())


def kid_blocks(x: NDArray[np.floating], y: NDArray[np.floating], block: int, *, seed: int = 0) -> Array:
    """Return KID of each pair of disjoint blocks, [B], where B = min(n, m) // block, and 1 for smaller sets.

    The rows are permuted by a keyed draw before they are cut into blocks, because neighbours resemble each other.
    """
    x, y = (_permuted(np.asarray(z, np.float64), seed + place) for place, z in enumerate((x, y)))
    size = min(block, len(x), len(y))
    count = min(len(x), len(y)) // size
    parts = [slice(number * size, (number + 1) * size) for number in range(count)]
    return np.array([unbiased_mmd2(x[part], y[part]) for part in parts])


def cmmd(x: NDArray[np.floating], y: NDArray[np.floating], groups: int = GROUPS) -> tuple[float, Array]:
    """Return CMMD of embeddings [n, F] and [m, F], and its values without each of G groups of rows, [G] or none.

    Row i is in group i modulo G, in either set. G is smaller for sets of fewer rows than 2 G.
    """
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    groups = max(1, min(groups, len(x) // 2, len(y) // 2))
    sums = [_group_sums(a, b, groups) for a, b in ((first, first), (second, second), (first, second))]  # [G, G] each
    sizes = [np.bincount(np.arange(len(z)) % groups, minlength=groups) for z in (x, y)]
    value = _biased([s.sum() for s in sums], len(x), len(y))
    if groups == 1:
        return value, np.empty(0)
    without = [
        _biased([_without(s, g) for s in sums], len(x) - int(sizes[0][g]), len(y) - int(sizes[1][g]))
        for g in range(groups)
    ]
    return value, np.array(without)


def _biased(sums: list[float], n: int, m: int) -> float:
    within_x, within_y, between = sums
    return float(SCALE * (within_x / n**2 + within_y / m**2 - 2 * between / (n * m)))


def _without(sums: Array, group: int) -> float:
    return float(sums.sum() - sums[group].sum() - sums[:, group].sum() + sums[group, group])


def _group_sums(x: Array, y: Array, groups: int) -> Array:
    """Return the kernel's sums over pairs of groups, [G, G]."""
    sums = np.zeros((groups, groups))
    columns = np.eye(groups)[np.arange(len(y)) % groups]  # [m, G]
    for start in range(0, len(x), _ROWS):
        part = gaussian(x[start : start + _ROWS], y) @ columns
        np.add.at(sums, np.arange(start, start + len(part)) % groups, part)
    return sums


def _permuted(rows: Array, key: int) -> Array:
    return rows[np.random.Generator(np.random.Philox(key=key)).permutation(len(rows))]
