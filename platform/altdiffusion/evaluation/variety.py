"""Memorisation and diversity of what a state draws, in the space of a judge's features.

Features are those of the judge's layer before the last, of length 1; the distance of two images is 1 minus their
cosine. Real images go through the generator's VAE first, as drawn ones have, so that what the VAE loses sets no image
apart. Shapes: M drawn images, N training images, R control images, D features.

**Near copy**: a drawn image that is nearer to its nearest training image than all but 1 % of the control images are to
theirs. Control images show the same concepts and neither the model nor the judge saw them, so at most 1 % of them count
as copies by construction, and a share above that is memorisation. With fewer than 100 control images, it has to be
nearer than each of them.

**Diversity**: the mean distance of two images of one prompt with different seeds, and of two images of one concept in
different languages, each over the mean distance of two real images of a concept: 1 is as varied as the real ones. The
judge's own training images of a concept are closer to each other than unseen ones, so where there are controls, at
least one image of each real pair is a control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altdiffusion.evaluation.statistics import LEVEL, Rate, share_of, z_of

COPIES = 0.01
"""Share of control images that count as near copies."""
_BLOCK = 1 << 22  # products of two feature vectors that are held at once


@dataclass(frozen=True, kw_only=True)
class Variety:
    """What was found for one state. What could not be measured is None, and `absent` states why."""

    near_copies: Rate | None
    """Share of the drawn images that are near copies."""
    nearest: float | None
    """Mean distance of a drawn image to its nearest training image."""
    seeds: Rate | None
    """Diversity over the seeds of a prompt, 1 for that of real images; `total` counts the prompts."""
    languages: Rate | None
    """Diversity over the languages of a concept, 1 for that of real images; `total` counts the concepts."""
    absent: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "near_copies": None if self.near_copies is None else self.near_copies.to_json(),
            "nearest": self.nearest,
            "seeds": None if self.seeds is None else self.seeds.to_json(),
            "languages": None if self.languages is None else self.languages.to_json(),
            "absent": list(self.absent),
        }

    def metrics(self) -> dict[str, float]:
        """Return the figures by name, for MLflow."""
        found: dict[str, float | None] = {
            name: None if rate is None else rate.value
            for name, rate in (
                ("near_copies", self.near_copies),
                ("diversity_seeds", self.seeds),
                ("diversity_languages", self.languages),
            )
        }
        found["nearest_training_image"] = self.nearest
        return {name: value for name, value in found.items() if value is not None}


def nearest_distances(features: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the distance [M] of each image to the nearest of the others [N >= 1]; features are [., D], of length 1."""
    best = np.full(len(features), -1.0)
    step = max(1, _BLOCK // max(1, len(features)))
    for first in range(0, len(others), step):
        cosines = features @ others[first : first + step].T
        best = np.maximum(best, cosines.max(axis=1))
    return np.clip(1.0 - best, 0.0, 2.0)


def copy_threshold(controls: NDArray[np.float64]) -> float:
    """Return the distance below which an image is a near copy, from the nearest distances [R >= 1] of the controls.

    It is the (k + 1)-th smallest of them, k being COPIES x R rounded down: at most k controls are below it.
    """
    ordered = np.sort(controls)
    return float(ordered[int(COPIES * len(ordered))])


def copies(distances: NDArray[np.float64], threshold: float, concepts: NDArray[Any]) -> Rate:
    """Return the share of images [M] below the threshold, with Wilson's interval; concepts [M] are the clusters."""
    return share_of(distances < threshold, np.unique(concepts, return_inverse=True)[1]).rate


def distances_within(features: NDArray[np.float32], groups: NDArray[Any], parts: NDArray[Any]) -> NDArray[np.float64]:
    """Return, for each group that has such a pair, the mean distance of two of its images from different parts.

    With s the sum of a group's vectors of length 1 and s_p that of a part's, the cosines of all such pairs add up to
    (|s|^2 - sum of |s_p|^2) / 2.

    Args:
        features: [M, D], of length 1.
        groups: [M], e.g. the concept.
        parts: [M] parts of each group, e.g. the language; a different one for each image takes all pairs.
    """
    group = np.unique(groups, return_inverse=True)[1]
    _, part = np.unique(np.stack([group, np.unique(parts, return_inverse=True)[1]]), axis=1, return_inverse=True)
    part = part.reshape(-1)
    owner = np.zeros(int(part.max(initial=-1)) + 1, np.int64)
    owner[part] = group
    sums_of_parts = _sums(features, part)
    sizes_of_parts = np.bincount(part, minlength=len(owner)).astype(np.float64)
    sums = _sums(features, group)
    sizes = np.bincount(group).astype(np.float64)
    inner = np.bincount(owner, weights=(sums_of_parts**2).sum(axis=1), minlength=len(sizes))
    pairs = (sizes**2 - np.bincount(owner, weights=sizes_of_parts**2, minlength=len(sizes))) / 2
    cosines = ((sums**2).sum(axis=1) - inner) / 2
    there = pairs > 0
    return np.asarray(1.0 - cosines[there] / pairs[there], np.float64)


def _sums(features: NDArray[np.float32], place: NDArray[np.int64]) -> NDArray[np.float64]:
    sums = np.zeros((int(place.max(initial=-1)) + 1, features.shape[1]))
    np.add.at(sums, place, features)
    return sums


def diversity(drawn: NDArray[np.float64], real: NDArray[np.float64]) -> Rate | None:
    """Return the mean of the groups' distances over that of the real ones; None where either has no pair.

    The interval is that of the mean over independent groups (normal), the real images being as they are.

    Args:
        drawn: one mean distance per group, as `distances_within` returns.
        real: the same of real images.
    """
    if not len(drawn) or not len(real) or real.mean() <= 0:
        return None
    value, scale = float(drawn.mean()), float(real.mean())
    half = z_of(LEVEL) * float(drawn.std(ddof=1)) / len(drawn) ** 0.5 if len(drawn) > 1 else value
    return Rate(value=value / scale, low=max(0.0, value - half) / scale, high=(value + half) / scale, total=len(drawn))
