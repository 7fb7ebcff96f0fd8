"""Fréchet distance between two sets of features, each taken as a Gaussian: FID where the features are Inception's.

    d^2 = |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

Dowson & Landau: "The Fréchet distance between multivariate normal distributions", 1982; as a measure of generated
images by Heusel et al.: "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017.
The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric and
similar to C_a C_b. That is exact and stays real, where a general matrix root of a near-singular product does not.

Shapes: F features.
"""

from __future__ import annotations

import numpy as np

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures.moments import Array, Moments


def check_rows(what: str, rows: int, width: int) -> None:
    """Refuse a set with too few rows for its covariance to have full rank.

    Args:
        what: names the set.
        rows: its number of rows.
        width: number of features.

    Raises:
        AltDiffusionError: n <= F; the error names both.
    """
    if rows <= width:
        raise AltDiffusionError(
            what,
            f"has {rows:,} images, and FID over {width:,} features needs more than {width:,}, because its covariance "
            "is singular otherwise",
            "use more images, or leave FID out and measure KID or CMMD, which suit small sets",
        )


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the squared Fréchet distance d^2 of two Gaussians, which is never negative.

    Raises:
        ValueError: a set has fewer than two rows, or the widths differ.
    """
    if min(first.rows, second.rows) < 2 or first.mean.shape != second.mean.shape:
        raise ValueError(f"cannot compare {first.rows} x {first.mean.shape} with {second.rows} x {second.mean.shape}")
    delta = first.mean - second.mean
    root = _root(first.covariance)
    eigenvalues = np.linalg.eigvalsh(_symmetric(root @ second.covariance @ root))
    trace = np.sqrt(eigenvalues.clip(min=0)).sum()  # those below zero are rounding
    distance = delta @ delta + np.trace(first.covariance) + np.trace(second.covariance) - 2 * trace
    return max(float(distance), 0.0)


def _root(covariance: Array) -> Array:
    """Return the symmetric root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(_symmetric(covariance))
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def _symmetric(matrix: Array) -> Array:
    half: Array = (matrix + matrix.T) / 2
    return half
