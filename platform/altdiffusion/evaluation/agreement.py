"""Agreement between judges who sort the same items into categories, beyond what chance gives.

Shapes: N items, J judges, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return Cohen's kappa of two judges [N]; None where both use one and the same category only.

    Source: J. Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20
    (1960): (observed - expected) / (1 - expected), with each judge's own shares of the categories.
    """
    names = sorted({*first, *second})
    table = np.zeros((len(names), len(names)))
    for mine, other in zip(first, second, strict=True):
        table[names.index(mine), names.index(other)] += 1
    table /= len(first)
    return _kappa(float(np.trace(table)), float(table.sum(axis=1) @ table.sum(axis=0)))


def fleiss_kappa(counts: NDArray[np.int64]) -> float | None:
    """Return Fleiss' kappa of J judges; None where all use one and the same category only.

    Source: J. L. Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76 (1971).

    Args:
        counts: [N, C] number of judges who chose each category for an item; each row has the same sum J > 1.
    """
    judges = int(counts[0].sum())
    if judges < 2 or (counts.sum(axis=1) != judges).any():
        raise ValueError("each item needs the same number of judges, at least two")
    agreeing = (counts * (counts - 1)).sum(axis=1) / (judges * (judges - 1))
    shares = counts.sum(axis=0) / counts.sum()
    return _kappa(float(agreeing.mean()), float(shares @ shares))


def _kappa(observed: float, expected: float) -> float | None:
    return None if expected > 1 - 1e-12 else (observed - expected) / (1 - expected)
