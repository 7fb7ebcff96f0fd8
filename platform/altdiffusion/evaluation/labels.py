"""Labels of real images: the concept that each shows, and what each is for.

A labelled image teaches the judge, or is kept from the judge and the generator as a control, or is one that the
generator has learned from. No image has two uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.judges import ROWS
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.tombstones import read_tombstones

Use = Literal["judge", "control", "generator"]
USES: tuple[Use, ...] = get_args(Use)
_READ = ("sample_id", "image_sha256", "phash", "stored_width", "stored_height")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """The distinct labelled images of one or several versions, in the order of their first rows, without pixels."""

    versions: Sequence[Version]
    table: pa.Table
    """One row per image: sample_id (of its first row), image_sha256, phash, side (pixels, the shorter one), concept,
    use."""
    teaching: pa.Table
    """sample_id and image_sha256 of the labelled rows that teach the judge; an image may have several rows, with
    different captions."""

    @property
    def rows(self) -> int:
        """Number of labelled rows that teach the judge."""
        return int(self.teaching.num_rows)

    def of(self, *uses: Use) -> pa.Table:
        """Return the images of these uses."""
        return self.table.filter(pc.is_in(self.table["use"], value_set=pa.array(uses)))

    def concepts(self, use: Use) -> dict[str, int]:
        """Return the number of images of a use by the concept that they show."""
        counts = pc.value_counts(self.of(use)["concept"].combine_chunks())
        return {entry["values"]: entry["counts"] for entry in counts.to_pylist()}

    @property
    def side(self) -> int:
        """The shortest side of all these images, in pixels."""
        return int(pc.min(self.table["side"]).as_py())


def find_labelled(versions: Sequence[Version], labels_uri: str) -> LabelledImages:
    """Return which images of some versions are labelled; of each shard only the columns that identify are read.

    Rows that were taken down from the lake count as not labelled, in versions that still hold them too.

    Args:
        labels_uri: Parquet with sample_id (int64), concept (string) and, optionally, use (a name of USES; null is
            `judge`, and so is a file without this column).

    Raises:
        AltDiffusionError: the labels are not readable, name no image for the judge, or give one image two uses.
    """
    labels = _read_labels(labels_uri)
    parts = []
    for version in versions:
        if version.manifest.kind != "images":
            raise AltDiffusionError(
                f"dataset {version.ref.short}", f"is of the kind {version.manifest.kind}", "give datasets of images"
            )
        gone = read_tombstones(version.lake_uri)
        for info in version.shards:
            rows = read_columns(files.join(version.folder_uri, "shards"), info, _READ)
            rows = rows.filter(pa.array(~gone.names(rows)))
            place = pc.index_in(rows["sample_id"], value_set=labels["sample_id"])
            rows, place = rows.filter(place.is_valid()), place.drop_null()
            for name in ("concept", "use"):
                rows = rows.append_column(name, labels[name].take(place))
            parts.append(rows)
    found = pa.concat_tables(parts) if parts else pa.table({"use": pa.array([], pa.string())})
    teaching = found.filter(pc.equal(found["use"], "judge"))
    if not teaching.num_rows:
        named = ", ".join(version.ref.short for version in versions)
        for_judge = " for the judge" if found.num_rows else ""
        raise AltDiffusionError(
            f"labels {labels_uri}",
            f"do not name an image of {named}{for_judge}",
            "give the labels of these datasets" if not for_judge else "give rows the use `judge`",
        )
    return LabelledImages(versions=versions, table=_distinct(found, labels_uri), teaching=teaching.select(ROWS.names))


def _distinct(found: pa.Table, labels_uri: str) -> pa.Table:
    uses = found.group_by("image_sha256").aggregate([("use", "count_distinct"), ("use", "min"), ("use", "max")])
    wrong = uses.filter(pc.greater(uses["use_count_distinct"], 1))
    if wrong.num_rows:
        first = wrong.slice(0, 1).to_pylist()[0]
        raise AltDiffusionError(
            f"labels {labels_uri}",
            f"give image {first['image_sha256'][:12]} the uses {first['use_min']} and {first['use_max']}, and "
            f"{wrong.num_rows - 1:,} other images two uses",
            "give all rows of an image one use",
        )
    first_rows = np.sort(np.unique(found["image_sha256"].to_numpy(), return_index=True)[1])
    images = found.take(pa.array(first_rows))
    side = pc.min_element_wise(images["stored_width"], images["stored_height"])
    return images.append_column("side", side).select(["sample_id", "image_sha256", "phash", "side", "concept", "use"])


def _read_labels(uri: str) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(files.read_bytes(uri)))
        use = (
            pc.fill_null(table["use"].cast(pa.string()), "judge")
            if "use" in table.column_names
            else pa.repeat("judge", table.num_rows)
        )
        labels = pa.table(
            {
                "sample_id": table["sample_id"].cast(pa.int64()),
                "concept": table["concept"].cast(pa.string()),
                "use": use,
            }
        )
    except (*UNREADABLE, KeyError) as error:
        raise AltDiffusionError(
            f"labels {uri}", f"cannot be used ({error})", "give a Parquet file with the columns sample_id and concept"
        ) from error
    labels = labels.filter(labels["concept"].is_valid())
    unknown = labels.filter(pc.invert(pc.is_in(labels["use"], value_set=pa.array(USES))))
    if unknown.num_rows:
        raise AltDiffusionError(
            f"labels {uri}",
            f"have the use {unknown['use'][0].as_py()!r} for sample {unknown['sample_id'][0].as_py()}",
            f"use {', '.join(USES)} or null",
        )
    once = labels.group_by(labels.column_names).aggregate([]).group_by("sample_id").aggregate([("use", "count")])
    twice = once.filter(pc.greater(once["use_count"], 1))
    if twice.num_rows:
        raise AltDiffusionError(
            f"labels {uri}",
            f"label sample {twice['sample_id'][0].as_py()} and {twice.num_rows - 1:,} others twice, differently",
            "label each once",
        )
    return labels
