"""The images that a model has learned from, as lineage knows them.

A checkpoint names its datasets and the checkpoints and models that its run began with. Those it has learned from are
the datasets of latents of all of them; their pixels and perceptual hashes are in the datasets of images above the
latents. A model without lineage has unknown training data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.lineage.graph import Graph, Node
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.shard_columns import read_columns


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What one model, with everything that it began with, has learned from."""

    latents: tuple[Version, ...]
    """Datasets of latents, nearest to the model first."""
    images: tuple[Version, ...]
    """Datasets of images that these latents were made from."""
    unknown: tuple[str, ...]
    """Models and datasets of which nothing is known, as references for people."""

    @property
    def rows(self) -> int:
        """Number of rows of the latents; an image may have several."""
        return sum(version.rows for version in self.latents)


def training_data(graph: Graph, origins: Sequence[str]) -> TrainingData:
    """Return what a model has learned from.

    Args:
        graph: the lake's lineage (`lineage.graph.scan`).
        origins: references of what the model was made from: its checkpoint, or its own reference where it has no
            lineage.
    """
    lake = Lake(graph.lake_uri)
    learned: list[Node] = []
    unknown: list[str] = []
    waiting, known = list(origins), set(origins)
    while waiting:
        ref = waiting.pop(0)
        node = graph.nodes.get(ref)
        if node is None or node.missing or (node.kind != "dataset" and not node.parents):
            unknown.append(node.label if node is not None else _short(ref))
        elif node.kind != "dataset":
            new = [parent for parent in graph.parents(ref) if parent not in known]
            known.update(new)
            waiting += new
        elif node.facts["holds"] == "latents":
            learned.append(node)
    above = {ref: node for latents in learned for ref, node in graph.up(latents.ref).nodes.items()}
    images = [node for node in above.values() if node.facts.get("holds") == "images" and not node.missing]
    gone = [node.label for node in above.values() if node.kind == "dataset" and node.missing]
    return TrainingData(
        latents=tuple(lake.version(node.ref) for node in learned),
        images=tuple(lake.version(node.ref) for node in images),
        unknown=tuple(dict.fromkeys([*unknown, *gone])),
    )


def _short(ref: str) -> str:
    name, at, digest = ref.partition("@")
    return f"{name}{at}{digest[:12]}"


def columns_of(version: Version, *names: str) -> Iterator[pa.Table]:
    """Yield some columns of a version, shard by shard; nothing else of the shards is read."""
    for info in version.shards:
        yield read_columns(files.join(version.folder_uri, "shards"), info, names)


def distinct_images(versions: Sequence[Version], at_most: int) -> pa.Array | None:
    """Return the SHA-256 of each distinct image of some versions; None if there are more than `at_most`."""
    found = pa.array([], pa.string())
    for version in versions:
        for table in columns_of(version, "image_sha256"):
            found = pc.unique(pa.chunked_array([found, *table["image_sha256"].chunks]))
            if len(found) > at_most:
                return None
    return found


def hashes_of(versions: Sequence[Version], images: pa.Array) -> pa.Table:
    """Return image_sha256 and phash of those of some images that versions of `images` hold, each image once."""
    parts = [pa.table({"image_sha256": pa.array([], pa.string()), "phash": pa.array([], pa.int64())})]
    for version in versions:
        for table in columns_of(version, "image_sha256", "phash"):
            parts.append(table.filter(pc.is_in(table["image_sha256"], value_set=images)))
    found = pa.concat_tables([part.cast(parts[0].schema) for part in parts])
    first = np.unique(found["image_sha256"].to_numpy(), return_index=True)[1]
    return found.take(pa.array(np.sort(first)))
