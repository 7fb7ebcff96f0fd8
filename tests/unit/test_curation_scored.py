"""Scores are joined to images by row id and image hash; thresholds are strict and nulls drop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from altdiffusion.curation.config import SCORE_NAMES, FilterConfig
from altdiffusion.curation.scoring.scored import Scored, check_scores, failing, row_detail
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import plan_ranges
from altdiffusion.records import SCORES
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from tests.curation_lake import write_images

ROWS, PER_SHARD = 23, 9


def write_scores(
    lake: str,
    images: Version,
    rows_per_unit: int,
    *,
    lost: Sequence[int] = (),
    values: dict[str, list[float | None]] | None = None,
    order: list[int] | None = None,
    sha256: dict[int, str] | None = None,
) -> Version:
    """Publish scores as jobs.score does, one shard per unit; `aesthetic_v1` is the row's number where not given."""
    table = images.read(["sample_id", "image_sha256", "language"]).take(order or list(range(images.rows)))
    hashes = [(sha256 or {}).get(row, value) for row, value in enumerate(table["image_sha256"].to_pylist())]
    columns: dict[str, Any] = {name: table[name] for name in table.column_names} | {"image_sha256": pa.array(hashes)}
    given = values or {"aesthetic_v1": [float(row) for row in range(images.rows)]}
    for field in SCORES:
        if field.name not in columns:
            column = given.get(field.name)
            columns[field.name] = pa.nulls(images.rows, field.type) if column is None else pa.array(column, field.type)
    whole = pa.table([columns[field.name] for field in SCORES], schema=SCORES)
    dataset, shards, first = Lake(lake).dataset("scores"), [], 0
    for unit in plan_ranges(images, rows_per_unit):
        stop = first + unit.payload["stop"] - unit.payload["start"]
        kept = [row for row in range(first, stop) if row not in lost]
        shards.append(dataset.write_shard(whole.take(pa.array(kept, pa.int64()))))
        first = stop
    record = UnitRecord(unit_id="u", index=0, input_digest="d", rows_in=images.rows - len(lost), shards=tuple(shards))
    settings = {"rows_per_unit": rows_per_unit} | {name: {} if name in given else None for name in SCORE_NAMES}
    return dataset.publish(
        kind="scores", records=[record], parents=[images.ref], config={"score": settings}, fingerprint="f"
    )


@pytest.fixture
def images(tmp_path: Path) -> Version:
    return write_images(str(tmp_path), range(ROWS), rows_per_shard=PER_SHARD)


def joined(scores: Version, images: Version, rows_per_unit: int) -> list[float | None]:
    """Return `aesthetic_v1` of every images row, read in units of another size."""
    scored, found = Scored(scores, images), []
    for unit in plan_ranges(images, rows_per_unit):
        shard, start = unit.payload["shard"], unit.payload["start"]
        rows = images.read_shard(shard).slice(start, unit.payload["stop"] - start)
        part = scored.of_rows(rows, shard, start)
        assert part.num_rows == rows.num_rows and part.column_names == ["aesthetic_v1"]
        found += part["aesthetic_v1"].to_pylist()
    return found


@pytest.mark.parametrize("scored_by", [1, 4, 5, 100])
@pytest.mark.parametrize("read_by", [1, 3, 5, 100])
def test_every_row_finds_its_scores_whatever_the_units(
    images: Version, tmp_path: Path, scored_by: int, read_by: int
) -> None:
    lost = [0, 3, 4, 5, 6, 7, 22]
    scores = write_scores(str(tmp_path), images, scored_by, lost=lost)
    expected = [None if row in lost else float(row) for row in range(ROWS)]
    assert joined(scores, images, read_by) == expected


def test_scores_of_other_images_or_in_another_order_are_refused(images: Version, tmp_path: Path) -> None:
    lake = str(tmp_path)
    swapped = [1, 0, *range(2, ROWS)]
    elsewhere = [8, *range(1, 8), 0, *range(9, ROWS)]  # rows 0 and 8 are in other units of 4
    for wrong in (
        write_scores(lake, images, 4, sha256={2: "f" * 64}),
        write_scores(lake, images, 4, order=swapped),
        write_scores(lake, images, 4, order=elsewhere),
    ):
        check_scores(wrong, images, [])
        with pytest.raises(AltDiffusionError, match=r"its rows are not those of dataset:images@.*shard 0, rows from 0"):
            joined(wrong, images, 4)


def test_scores_of_another_version_or_kind_or_without_what_a_filter_asks_are_refused(
    images: Version, tmp_path: Path
) -> None:
    lake = str(tmp_path)
    scores = write_scores(lake, images, 5)
    check_scores(scores, images, [FilterConfig(aesthetic_v1_above=7.0)])
    with pytest.raises(AltDiffusionError, match="holds no nsfw, but a filter has a threshold for it"):
        check_scores(scores, images, [FilterConfig(), FilterConfig(nsfw_below=0.5)])
    other = write_images(lake, range(3))
    with pytest.raises(AltDiffusionError, match=f"was not made from {other.ref}"):
        check_scores(scores, other, [])
    with pytest.raises(AltDiffusionError, match="holds images, not scores"):
        check_scores(images, images, [])
    more = write_images(lake, range(ROWS), rows_per_shard=2)
    with pytest.raises(AltDiffusionError, match="has 5 shards, not the 12 that"):
        Scored(scores, more)


def test_comparisons_are_strict_and_a_null_drops_unless_it_is_kept() -> None:
    scores = pa.table(
        {
            "aesthetic_v1": pa.array([7.0, 7.000001, None, 6.0, float("nan")], pa.float32()),
            "aesthetic_v2": pa.array([5.0, 6.0, 7.0, None, 7.0], pa.float32()),
            "nsfw": pa.array([0.5, 0.25, None, 0.75, float("nan")], pa.float32()),
            "watermark": pa.array([0.0, None, 1.0, 0.9, 0.9], pa.float32()),
        }
    )

    def drops(**settings: Any) -> dict[str, list[int]]:
        return {name: np.flatnonzero(fails).tolist() for name, fails in failing(scores, FilterConfig(**settings))}

    assert drops() == {}
    assert drops(aesthetic_v1_above=7.0) == {"aesthetic_v1": [0, 2, 3, 4]}
    assert drops(aesthetic_v1_above=7.0, keep_null=("aesthetic_v1",)) == {"aesthetic_v1": [0, 3, 4]}
    assert drops(nsfw_below=0.5) == {"nsfw": [0, 2, 3, 4]}
    assert drops(aesthetic_v2_above=5.0, watermark_below=0.9, keep_null=("watermark",)) == {
        "aesthetic_v2": [0, 3],
        "watermark": [2, 3, 4],
    }
    assert row_detail(scores, "aesthetic_v1", 3) == "aesthetic_v1 6" and row_detail(scores, "nsfw", 2) == "nsfw null"
