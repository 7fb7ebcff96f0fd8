"""What a language's images come to: one pass over a version of kind `features` gathers what its measures are made of.

Moments, class sums and cosines cover all images. Features and embeddings are kept only of a keyed sample: of those
images whose keys are smallest, which does not depend on the order in which they are seen.

Shapes: n images, k of them in the sample, F features, D width of embeddings.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from altdiffusion.evaluation.measures.inception_score import ClassSums
from altdiffusion.evaluation.measures.moments import Moments
from altdiffusion.evaluation.measures.settings import MeasuresConfig
from altdiffusion.evaluation.measures.text_fit import cosines
from altdiffusion.records import FEATURES
from altdiffusion.storage.binary_columns import rows_of_binary
from altdiffusion.storage.dataset import Version

Floats = NDArray[np.float32]
_SAMPLED = ("features", "image_embedding", "text_embedding")


@dataclass(kw_only=True)
class Gathered:
    """The images of one language, or of all."""

    rows: int = 0
    moments: Moments | None = None
    classes: ClassSums | None = None
    cosines: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    """Cosine of image and text, `native` and `english`, [n] in pieces."""
    concepts: list[str] = field(default_factory=list)
    """Concept of each image, [n]."""
    sample: pa.Table | None = None
    """The sample with its keys, ordered by key."""

    def sampled(self, column: str) -> Floats:
        """Return a binary column of the sample, [k, F] or [k, D]."""
        if self.sample is None:
            raise ValueError("no image was gathered")
        return rows_of_binary(self.sample[column], np.float32)

    def one_per_prompt(self) -> tuple[Floats, Floats]:
        """Return the embeddings of the texts and of one image each, [prompts, D]: no prompt occurs twice."""
        if self.sample is None:
            raise ValueError("no image was gathered")
        _, first = np.unique(self.sample["id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
        return self.sampled("text_embedding")[first], self.sampled("image_embedding")[first]


def gather(version: Version, config: MeasuresConfig, *, language: str | None, distinct: bool = False) -> Gathered:
    """Return what the images of a version come to.

    Args:
        language: of the images; None for all.
        distinct: whether an image that occurs several times is counted once.
    """
    found, seen = Gathered(), set[str]()
    for table in version.iter_tables():
        if language is not None:
            table = table.filter(pc.equal(table["language"], language))
        if distinct:
            table = _unseen(table, seen)
        if table.num_rows:
            _add(found, table, config)
    return found


def _unseen(table: pa.Table, seen: set[str]) -> pa.Table:
    keep = []
    for row, digest in enumerate(table["image_sha256"].to_pylist()):
        if digest not in seen:
            seen.add(digest)
            keep.append(row)
    return table.take(pa.array(keep, pa.int64()))


def _add(found: Gathered, table: pa.Table, config: MeasuresConfig) -> None:
    present = {name for name in FEATURES.names if table[name].null_count == 0}
    keys = _keys(table, config.seed)
    found.rows += table.num_rows
    if "fid" in config.measures and "features" in present:
        moments = Moments.of(rows_of_binary(table["features"], np.float32))
        found.moments = moments if found.moments is None else found.moments.merged(moments)
    if "probabilities" in present:
        split = (keys % np.uint64(config.splits)).astype(np.int64)
        classes = ClassSums.of(rows_of_binary(table["probabilities"], np.float32), split, config.splits)
        found.classes = classes if found.classes is None else found.classes.merged(classes)
    if "concept" in present:
        found.concepts += table["concept"].to_pylist()
    for name, column in (("native", "text_embedding"), ("english", "english_embedding")):
        if column in present:
            images, texts = (rows_of_binary(table[wanted], np.float32) for wanted in ("image_embedding", column))
            found.cosines.setdefault(name, []).append(cosines(images, texts))
    if {"kid", "cmmd", "retrieval"} & set(config.measures):
        found.sample = _smallest(found.sample, table, keys, config.sample)


def _keys(table: pa.Table, seed: int) -> NDArray[np.uint64]:
    """Return the key of each image, uint64 [n], from its id and seed."""
    texts = (
        f"{seed}|{name}|{noise}" for name, noise in zip(*(table[c].to_pylist() for c in ("id", "seed")), strict=True)
    )
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.frombuffer(digests, "<u8")


def _smallest(sample: pa.Table | None, table: pa.Table, keys: NDArray[np.uint64], size: int) -> pa.Table:
    """Return the rows with the smallest keys of a sample and a table, at most `size`."""
    given = table.select(["id", "image_sha256", *_SAMPLED]).append_column("key", pa.array(keys, pa.uint64()))
    both = given if sample is None else pa.concat_tables([sample, given])
    order = pc.sort_indices(both, sort_keys=[("key", "ascending"), ("image_sha256", "ascending")])
    return both.take(order[:size]).combine_chunks()
