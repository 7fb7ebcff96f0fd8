"""What select does not read changes nothing: reasons and accepted rows are the same as if it read everything."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.curation.links import reader
from altdiffusion.curation.links.filters import Bounds, first_proved, number_filters
from altdiffusion.curation.links.reader import UnitReader, open_unit
from altdiffusion.curation.links.row_groups import RowGroup
from altdiffusion.curation.links.select_work import Decided, SelectWork
from altdiffusion.curation.links.sources import plan_sources, scan_source
from altdiffusion.execution.units import Unit
from tests.source_rows import read_unit, split

URI = "memory://pushdown/part.parquet"
BEAUTIFUL = SelectConfig(similarity_above=0.28, aesthetic_above=7.0, pwatermark_below=None)


class Believer:
    """Replaces the language model: captions with an `x` are believed."""

    def identify(self, captions: pa.Array, _: pa.Array) -> tuple[pa.Array, pa.Array, pa.Array]:
        mask = pa.compute.match_substring(captions, "x")
        language = pa.compute.if_else(mask, pa.scalar("en"), pa.scalar(None, pa.string()))
        return (
            language,
            pa.repeat(pa.scalar(0.5, pa.float32()), len(captions)),
            pa.repeat(pa.scalar("en"), len(captions)),
        )


def store(table: pa.Table, **how: Any) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    fsspec.filesystem("memory").pipe_file("/pushdown/part.parquet", sink.getvalue())


def source(rows_per_unit: int = 100_000) -> SourceConfig:
    return SourceConfig(name="crawl", uri=URI, preset="laion-base", swapped_sizes=False, rows_per_unit=rows_per_unit)


def units(config: SourceConfig) -> list[Unit]:
    return plan_sources([scan_source(config)])


def work(select: SelectConfig, config: SourceConfig) -> SelectWork:
    made = SelectWork(lake="memory://x", dataset="x", source=config, select=select, language=LanguageConfig())
    made._identifier = Believer()  # type: ignore[assignment]
    return made


def decided(made: SelectWork, unit: Unit) -> list[Decided]:
    place = unit.payload
    with open_unit(place["uri"], place["part"], place["start"], place["stop"], made.source) as part:
        return list(made.decide(part, unit.id))


SIZE = st.one_of(st.none(), st.sampled_from([0, 1, 255, 256, 257, 300, 767, 768, 769, 2000, -5, 1 << 40]))
SCORE = st.one_of(
    st.none(), st.just(math.nan), st.sampled_from([0.0, 0.27, 0.28, 0.29, 0.5, 0.51, 6.9, 7.0, 7.1]), st.floats(-1, 9)
)
ROW = st.tuples(
    st.sampled_from(["http://a.example/1", "https://b.example/?q=2", "ftp://c/", None]),
    st.sampled_from(["an x", "a y", "12", None]),
    SIZE, SIZE, SCORE, SCORE, SCORE,
)  # fmt: skip
NULLS = st.sets(st.sampled_from(["size", "similarity", "punsafe", "aesthetic"]))
CONFIG = st.builds(
    lambda side, aspect, similarity, punsafe, aesthetic, nulls: SelectConfig(
        min_side=side, max_aspect=aspect, similarity_above=similarity, punsafe_below=punsafe, pwatermark_below=None,
        aesthetic_above=aesthetic, keep_null=tuple(sorted(nulls)), buckets=3,
    ),
    st.sampled_from([None, 256]),
    st.sampled_from([None, 3.0]),
    st.sampled_from([None, 0.28]),
    st.sampled_from([None, 0.5]),
    st.sampled_from([None, 7.0]),
    NULLS,
)  # fmt: skip


def as_table(rows: Sequence[tuple[Any, ...]], size: pa.DataType, score: pa.DataType) -> pa.Table:
    types = [pa.string(), pa.string(), size, size, score, score, score]
    names = ["url", "caption", "width", "height", "similarity", "punsafe", "aesthetic"]
    return pa.table(
        {
            name: pa.array([row[i] for row in rows], pa.float64() if i > 1 else kind).cast(kind)
            for i, (name, kind) in enumerate(zip(names, types, strict=True))
        }
    )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ROW, min_size=1, max_size=40),
    CONFIG,
    st.integers(1, 9),
    st.integers(1, 25),
    st.sampled_from([pa.float64(), pa.int64()]),
    st.sampled_from([pa.float64(), pa.float32()]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([2, reader.BATCH_ROWS]),
)
def test_pushed_down_equals_all_at_once(
    rows: list[Any],
    select: SelectConfig,
    group: int,
    limit: int,
    size: pa.DataType,
    score: pa.DataType,
    statistics: bool,
    ordered: bool,
    batch: int,
) -> None:
    if ordered:  # so that whole row groups fail together
        rows = sorted(rows, key=lambda row: tuple(-1.0 if v is None or v != v else v for v in row[2:]))
    store(as_table(rows, size, score), row_group_size=group, write_statistics=statistics)
    config = source(limit)
    made = work(select, config)
    done = 0
    for unit in units(config):
        with mock.patch.object(reader, "BATCH_ROWS", batch):
            pieces = decided(made, unit)
        accepted = pa.concat_tables([piece.accepted for piece in pieces])
        rejects = pa.concat_tables([piece.rejects for piece in pieces]).sort_by("row")
        whole_accepted, whole_rejects = split(made, read_unit(unit, config), unit.id)
        assert accepted.equals(whole_accepted)
        assert rejects.select(["row", "reason"]).equals(whole_rejects.select(["row", "reason"]))
        for found, whole in zip(rejects.to_pylist(), whole_rejects.to_pylist(), strict=True):
            assert (found["sample_id"] is None) <= (found["url"] is None)
            if found["sample_id"] is not None:
                assert found == whole
        assert accepted.num_rows + rejects.num_rows == unit.payload["stop"] - unit.payload["start"]
        assert [len(piece.bucket) for piece in pieces] == [piece.accepted.num_rows for piece in pieces]
        done += unit.payload["stop"] - unit.payload["start"]
    assert done == len(rows)


@given(CONFIG, st.lists(st.floats(-1, 9), min_size=1, max_size=8))
def test_a_proof_is_never_wrong(select: SelectConfig, values: list[float]) -> None:
    """Any values within the bounds that proved it do fail, and so does null."""
    filters = number_filters(select)
    bounds = {
        name: Bounds(low=min(values), high=max(values)) for name in ("width", "similarity", "punsafe", "aesthetic")
    }
    proved = first_proved(filters, bounds)
    if proved is None:
        return
    last = filters[proved[0]]
    column = pa.array([*values, None], pa.float64())
    assert last.failing(dict.fromkeys(("width", "height", *last.columns), column)).all()


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[str]]]:
    asked: list[tuple[list[int], list[str]]] = []
    read = UnitReader._read

    def spy(self: UnitReader, numbers: list[int], columns: list[str]) -> Any:
        asked.append((numbers, sorted(columns)))
        return read(self, numbers, columns)

    monkeypatch.setattr(UnitReader, "_read", spy)
    return asked


def test_only_row_groups_with_candidates_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group 0: all too small; 1: all ugly, which statistics show; 2: half ugly, half unlike; 3: one good row."""
    good = ("http://a.example/1", "an x", 300, 300, 0.3, 0.1, 8.0)
    small, ugly, unlike = (*good[:2], 9, *good[3:]), (*good[:6], 5.0), (*good[:4], 0.1, *good[5:])
    rows = [*[small] * 4, *[ugly, (*ugly[:4], 0.2, *ugly[5:])] * 2, ugly, unlike, ugly, unlike, good, *[ugly] * 3]
    store(as_table(rows, pa.int32(), pa.float32()), row_group_size=4)
    config = source()
    (unit,) = units(config)
    asked = spied(monkeypatch)
    pieces = decided(work(BEAUTIFUL, config), unit)
    numbers = ["height", "punsafe", "similarity", "width"]
    assert asked == [([1], numbers), ([2, 3], sorted([*numbers, "aesthetic"])), ([3], ["caption", "url"])]
    rejects = pa.concat_tables([piece.rejects for piece in pieces]).sort_by("row").to_pylist()
    rejected = [(reject["row"], reject["reason"], reject["detail"], reject["url"] is None) for reject in rejects]
    assert rejected == [
        *[(row, "size", "width at most 9", True) for row in range(4)],
        (4, "aesthetic", "aesthetic at most 5", True),
        (5, "similarity", "0.20000000298023224", True),
        (6, "aesthetic", "aesthetic at most 5", True),
        (7, "similarity", "0.20000000298023224", True),
        *[(8 + i, ("aesthetic", "similarity")[i % 2], ("5", "0.10000000149011612")[i % 2], True) for i in range(4)],
        *[(row, "aesthetic", "5", False) for row in (13, 14, 15)],
    ]


def test_filters_that_are_off_and_columns_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").write_text("hash:1")
    store(pa.table({"url": ["http://a.example/"], "caption": ["an x"], "aesthetic": [6.5]}))
    config = SourceConfig(
        name="crawl", uri=URI, preset="columns", blocklist=str(tmp_path / "list"),
        blocklist_sha256=hashlib.sha256(b"hash:1").hexdigest(),
        columns={"url": "url", "caption": "caption", "aesthetic": "aesthetic"},
    )  # fmt: skip
    off = SelectConfig(min_side=None, max_aspect=None, punsafe_below=None, pwatermark_below=None)
    (unit,) = units(config)
    asked = spied(monkeypatch)
    pieces = decided(work(off, config), unit)
    (row,) = pa.concat_tables([piece.accepted for piece in pieces]).to_pylist()
    assert row["aesthetic"] == 6.5 and row["width"] is None and row["punsafe"] is None
    assert asked == [([0], ["aesthetic", "caption", "url"])]


def test_batches_give_the_units_rows_and_no_others() -> None:
    rows = 50
    table = as_table([("http://a/", str(i), i + 1, 1, 0.1, 0.1, 0.1) for i in range(rows)], pa.int32(), pa.float64())
    store(table, row_group_size=7)
    config = source(rows_per_unit=rows)
    (whole,) = units(config)
    for start, stop in ((0, 50), (3, 50), (0, 7), (8, 9), (13, 40), (49, 50)):
        with open_unit(URI, whole.payload["part"], start, stop, config) as part:
            seen = [(number, column) for number, column in part.batches(part.groups, ["width"])]
            assert np.concatenate([number for number, _ in seen]).tolist() == list(range(stop - start))
            widths = [value for _, given in seen for value in given["width"].to_pylist()]
            assert widths == list(range(start + 1, stop + 1))
            every_other: list[RowGroup] = list(part.groups[::2])
            for number, given in part.batches(every_other, ["width"]):
                assert (number + start + 1).tolist() == given["width"].to_pylist()
