"""Images that a judge or a control shares with what a model has learned from: the same file, or one that looks alike.

Files are compared by SHA-256, whatever their number: the training data's column is read once, shard by shard, and only
the labelled images are held. Looks are compared by the perceptual hash that curation has stored, each training image
with each labelled one, up to a number of distinct training images; above it, files alone are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from altdiffusion.evaluation.training_data import TrainingData, columns_of, distinct_images, hashes_of
from altdiffusion.image_files.phash import is_plain
from altdiffusion.storage.dataset import Version

_PAIRS = 1 << 22
"""Pairs of hashes that are compared at once: 32 MiB."""
_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What some labelled images have in common with training data."""

    same: tuple[int, ...]
    """Sample ids of labelled images whose file was trained on."""
    alike: tuple[int, ...]
    """Sample ids of the other labelled images that look like one that was trained on."""
    files_only: bool
    """Whether looks were not compared, because there are too many training images."""
    without_hash: int = 0
    """Training images whose looks were not compared, because the lake does not hold them."""

    def __str__(self) -> str:
        parts = [
            f"{len(ids):,} {what} (samples {', '.join(map(str, ids[:_EXAMPLES]))}{', ...' * (len(ids) > _EXAMPLES)})"
            for ids, what in ((self.same, "of the same file"), (self.alike, "that look alike"))
            if ids
        ]
        return " and ".join(parts)


def find_shared(labelled: pa.Table, data: TrainingData, *, bits: int | None, at_most: int) -> Shared:
    """Return which labelled images a model has learned from.

    Args:
        labelled: images with sample_id, image_sha256 and phash, as `LabelledImages.of` returns.
        bits: of 64, in which the perceptual hashes of two images that look alike differ at most; None compares files
            alone.
        at_most: distinct training images whose looks are compared; if there are more, files alone are.
    """
    ids = labelled["sample_id"].to_numpy()
    same = _same_files(labelled["image_sha256"], data.latents)
    known = distinct_images(data.latents, at_most) if bits is not None else None
    alike, without_hash = np.zeros(len(ids), np.bool_), 0
    if known is not None and bits is not None:
        learned = hashes_of(data.images, known)["phash"].to_numpy()
        alike, without_hash = near(labelled["phash"].to_numpy(), learned, bits) & ~same, len(known) - len(learned)
    return Shared(
        same=tuple(ids[same].tolist()),
        alike=tuple(ids[alike].tolist()),
        files_only=known is None,
        without_hash=without_hash,
    )


def _same_files(images: pa.ChunkedArray, versions: Sequence[Version]) -> NDArray[np.bool_]:
    found = np.zeros(len(images), np.bool_)
    for version in versions:
        for table in columns_of(version, "image_sha256"):
            found |= np.asarray(pc.is_in(images, value_set=table["image_sha256"].combine_chunks()).to_numpy(), np.bool_)
    return found


def near(hashes: NDArray[np.int64], others: NDArray[np.int64], bits: int) -> NDArray[np.bool_]:
    """Return for each hash [N] whether one of the others [M] differs in at most so many bits.

    Hashes of images with hardly any structure resemble too many, and are near to none.
    """
    others = np.unique(_structured(np.asarray(others, np.int64)).view(np.uint64))
    found = np.zeros(len(hashes), np.bool_)
    structured = np.array([not is_plain(int(value)) for value in hashes], np.bool_)
    mine = np.asarray(hashes, np.int64).view(np.uint64)
    step = max(1, _PAIRS // max(1, len(mine)))
    for first in range(0, len(others), step):
        differing = np.bitwise_count(mine[:, None] ^ others[None, first : first + step])
        found |= (differing <= bits).any(axis=1)
    return np.asarray(found & structured, np.bool_)


def _structured(hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    return hashes[np.array([not is_plain(int(value)) for value in hashes], np.bool_)]


def summary(shared: Mapping[str, Shared]) -> str:
    """Return what the states share, as one sentence part per state."""
    return "; ".join(f"{state}: {one}" for state, one in shared.items() if one.same or one.alike)
