"""Scores next to images: which row of a scores version belongs to which row of the images it was made from, and which
rows a filter drops for their scores.

A scores version holds one shard for each unit of its images (`score.ScoreWork`), in order, without the rows that
could not be read. So the shards that hold an image row's scores follow from its place; that they are its own is then
checked by row id and image hash, and never assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import SCORE_NAMES, FilterConfig
from altdiffusion.curation.rejects import AESTHETIC, NSFW, WATERMARK
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import SCORES
from altdiffusion.storage.dataset import Version

REASONS = {"aesthetic_v1": AESTHETIC, "aesthetic_v2": AESTHETIC, "nsfw": NSFW, "watermark": WATERMARK}
"""Reject reason by score."""
_REMEDY = "run jobs.score on these images, or name their scores as scores: <name>@<digest>"


def check_scores(scores: Version, images: Version, filters: Sequence[FilterConfig]) -> None:
    """Return whether a scores version is that of these images and holds what the filters ask for.

    Raises:
        AltDiffusionError: it does not; names both versions, or the score that was not measured.
    """
    if scores.manifest.kind != "scores":
        raise AltDiffusionError(str(scores.ref), f"holds {scores.manifest.kind}, not scores", _REMEDY)
    if str(images.ref) not in scores.manifest.parents:
        raise AltDiffusionError(str(scores.ref), f"was not made from {images.ref}", _REMEDY)
    Scored(scores, images)
    for name in sorted({name for chosen in filters for name in chosen.thresholds}):
        if name not in measured(scores):
            raise AltDiffusionError(
                str(scores.ref), f"holds no {name}, but a filter has a threshold for it", f"score with score.{name} set"
            )


def measured(scores: Version) -> list[str]:
    """Return the names of the scores that were measured."""
    return [name for name in SCORE_NAMES if scores.manifest.config["score"][name] is not None]


class Scored:
    """The scores of an images version, found by place."""

    def __init__(self, scores: Version, images: Version) -> None:
        """Compare both manifests.

        Raises:
            AltDiffusionError: the scores have not one shard for each unit of the images.
        """
        self.scores, self._images = scores, images
        self._measured = measured(scores)
        self._rows_per_unit = int(scores.manifest.config["score"]["rows_per_unit"])
        units = np.array([-(-shard.rows // self._rows_per_unit) for shard in images.shards], np.int64)
        self._first = np.concatenate([[0], np.cumsum(units)])
        if len(scores.shards) != self._first[-1]:
            problem = f"has {len(scores.shards)} shards, not the {self._first[-1]} that {images.ref} asks for"
            raise AltDiffusionError(str(scores.ref), problem, _REMEDY)

    def of_rows(self, rows: pa.Table, shard: int, start: int) -> pa.Table:
        """Return the scores of images rows `start` and following of a shard.

        Args:
            rows: those rows; their `sample_id` and `image_sha256` are what is compared.

        Returns:
            One row for each of them with the scores that were measured, null where the image has none.

        Raises:
            AltDiffusionError: scores belong to another image, or are in another order.
        """
        names = ["sample_id", "image_sha256", *self._measured]
        schema = pa.schema([SCORES.field(name) for name in names])
        size, stop = self._rows_per_unit, start + rows.num_rows
        wanted = range(start // size, -(-stop // size))
        tables = [self.scores.read_shard(int(self._first[shard]) + unit, names) for unit in wanted]
        scores = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
        at = pc.index_in(rows["sample_id"], value_set=scores["sample_id"].combine_chunks())
        other = pc.not_equal(scores["image_sha256"].take(at), rows["image_sha256"])
        places = np.asarray(at.drop_null())
        around = min(wanted.stop * size, self._images.shards[shard].rows) - wanted.start * size - rows.num_rows
        unclaimed = scores.num_rows - len(places)
        if pc.any(other).as_py() or np.any(np.diff(places) <= 0) or unclaimed > around:
            problem = f"its rows are not those of {self._images.ref}, shard {shard}, rows from {start}"
            raise AltDiffusionError(str(self.scores.ref), problem, _REMEDY)
        return scores.select(self._measured).take(at)


def failing(scores: pa.Table, chosen: FilterConfig) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Return each score with a threshold and the rows that it drops.

    Comparisons are strict; a null or a NaN drops the row, unless nulls are kept.
    """
    dropping = []
    for name, threshold in chosen.thresholds.items():
        compare: Any = pc.greater if name.startswith("aesthetic") else pc.less
        limit = pa.scalar(threshold, pa.float32())  # as the scores are: 0.9 is not below 0.9
        passes = pc.fill_null(compare(scores[name], limit), name in chosen.keep_null)
        dropping.append((name, ~np.asarray(passes)))
    return dropping


def row_detail(scores: pa.Table, name: str, row: int) -> str:
    """Return the detail of a reject by its score: `aesthetic_v1 6.3`."""
    value = scores[name][row].as_py()
    return f"{name} {'null' if value is None else format(value, '.4g')}"
