"""Memorisation and diversity of each state of a model, by what its lineage knows of its training images.

Shapes: J judges, M drawn images, D features, S = the judge's side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altdiffusion.evaluation.judge_images import RealImages, small_images
from altdiffusion.evaluation.labels import Use
from altdiffusion.evaluation.outcomes import Case
from altdiffusion.evaluation.training_data import TrainingData, distinct_images
from altdiffusion.evaluation.variety import (
    Variety,
    copies,
    copy_threshold,
    distances_within,
    diversity,
    nearest_distances,
)
from altdiffusion.storage.dataset import Version


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What judges found in the images of a state."""

    ids: Sequence[str]
    """[M] prompt's id of each image."""
    named: NDArray[Any]
    """[J, M] concept that each judge names."""
    features: NDArray[np.float32]
    """[M, D] of the first judge."""


class SpaceOfImages:
    """The real images in the space of a judge's features; those of each set of training data are read once.

    Args:
        features: returns the features [N, D] of pixels [N, S, S, 3] as they come out of the generator's VAE, since
            drawn images have come out of it too.
        side: S.
        real: the judge's images and the controls.
        at_most: distinct training images of a state; if there are more, memorisation is not measured.
    """

    def __init__(
        self,
        features: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        side: int,
        real: Mapping[Use, RealImages],
        at_most: int,
    ) -> None:
        self._features = features
        self._side = side
        self._at_most = at_most
        self._control = features(real["control"].pixels) if "control" in real else None
        self._real = _distances_of_real(
            {use: features(real[use].pixels) for use in ("judge", "control") if use in real},
            {use: one.shown for use, one in real.items()},
        )
        self._known: dict[tuple[str, ...], NDArray[np.float32] | str] = {}

    def variety(self, read: Read, asked: Sequence[Case], data: TrainingData) -> Variety:
        """Return memorisation and diversity of one state.

        Args:
            asked: [M] what each image was requested for.
            data: what the state has learned from.
        """
        if not len(read.ids):
            return Variety(near_copies=None, nearest=None, seeds=None, languages=None, absent=("it drew no image",))
        concepts = np.array([case.concept for case in asked])
        languages = np.array([case.language for case in asked])
        absent: list[str] = []
        near_copies, nearest = None, None
        learned = self._training(data)
        if isinstance(learned, str):
            absent.append(f"memorisation: {learned}")
        else:
            distances = nearest_distances(read.features, learned)
            nearest = float(distances.mean())
            if self._control is None:
                absent.append("near copies: no image is labelled `control`, which would show what is near")
            else:
                threshold = copy_threshold(nearest_distances(self._control, learned))
                near_copies = copies(distances, threshold, concepts)
        by_seed = distances_within(read.features, np.array(read.ids), np.arange(len(read.ids)))
        by_language = distances_within(read.features, concepts, languages)
        if not len(self._real):
            absent.append("diversity: no concept has two real images")
        elif not len(by_seed):
            absent.append("diversity over seeds: one image per prompt (sampling.count is 1)")
        return Variety(
            near_copies=near_copies,
            nearest=nearest,
            seeds=diversity(by_seed, self._real),
            languages=diversity(by_language, self._real),
            absent=tuple(absent),
        )

    def _training(self, data: TrainingData) -> NDArray[np.float32] | str:
        """Return the features [N, D] of the training images, or why there are none."""
        key = tuple(str(version.ref) for version in data.latents)
        if key not in self._known:
            self._known[key] = self._read(data)
        return self._known[key]

    def _read(self, data: TrainingData) -> NDArray[np.float32] | str:
        if not data.latents:
            return "lineage names no dataset that it learned from"
        known = distinct_images(data.latents, self._at_most)
        if known is None:
            return f"it learned from more than {self._at_most:,} images (judge.compared_at_most)"
        waiting = set(known.to_pylist())
        parts = [part for version in data.images for part in self._of_version(version, waiting)]
        if waiting:
            return f"{len(waiting):,} of its {len(known):,} training images are not in this lake"
        return np.concatenate(parts)

    def _of_version(self, version: Version, waiting: set[str]) -> list[NDArray[np.float32]]:
        """Return the features of the waiting images that a version holds, shard by shard; they wait no longer."""
        parts = []
        for shard in version.iter_tables(["image", "image_sha256"]) if waiting else ():
            bodies = []
            for sha256, body in zip(shard["image_sha256"].to_pylist(), shard["image"], strict=True):
                if sha256 in waiting:
                    waiting.remove(sha256)
                    bodies.append(body.as_py())
            parts.append(self._features(small_images(bodies, self._side)))
        return parts


def _distances_of_real(
    features: Mapping[Use, NDArray[np.float32]], shown: Mapping[Use, NDArray[np.str_]]
) -> NDArray[np.float64]:
    """Return the mean distance of two real images of each concept, one of them a control where there are controls."""
    vectors = np.concatenate(list(features.values()))
    concepts = np.concatenate([shown[use] for use in features])
    each = np.arange(len(concepts))
    if "control" in features:
        each[: len(features["judge"])] = 0
        found = distances_within(vectors, concepts, each)
        if len(found):
            return found
    return distances_within(vectors, concepts, np.arange(len(concepts)))
