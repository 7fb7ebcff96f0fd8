"""LAION's variants become one shape, units cover every row once, and a bad part is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.curation.config import SourceConfig
from altdiffusion.curation.source import hash_id, normalise, plan_select, read_rows, scan_source
from altdiffusion.curation.sources import plan_sources
from altdiffusion.errors import AltDiffusionError

BASE = {
    "URL": ["http://a/1", "http://a/2", None],
    "TEXT": ["one", None, "drei"],
    "WIDTH": [640, 320, 100],
    "HEIGHT": [480, 240, 90],
    "similarity": [0.3, 0.31, 0.32],
}


def config(path: Path, **given: Any) -> SourceConfig:
    return SourceConfig(**{"name": "crawl", "uri": str(path / "*.parquet"), **given})


def write(path: Path, table: pa.Table | dict[str, Any], name: str = "part-0.parquet", **save: Any) -> Path:
    path.mkdir(exist_ok=True, parents=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path / name, **save)
    return path / name


def read_all(source: SourceConfig) -> pa.Table:
    units = plan_select(scan_source(source))
    return pa.concat_tables(
        read_rows(unit.payload["uri"], unit.payload["start"], unit.payload["stop"], source) for unit in units
    )


def test_the_base_release_has_its_sizes_swapped_and_its_hash_computed(tmp_path: Path) -> None:
    write(tmp_path, BASE)
    rows = read_all(config(tmp_path))
    assert rows["width"].to_pylist() == [480, 240, 90] and rows["height"].to_pylist() == [640, 320, 100]
    assert rows["sample_id"].to_pylist() == [
        mmh3.hash64("http://a/1one")[0], mmh3.hash64("http://a/2")[0], mmh3.hash64("drei")[0],
    ]  # fmt: skip
    assert rows["punsafe"].null_count == 3
    straight = read_all(config(tmp_path, swapped_sizes=False))
    assert straight["width"].to_pylist() == [640, 320, 100]


@pytest.mark.parametrize("sizes", [pa.int32(), pa.int64(), pa.float64(), pa.float32(), pa.uint16()])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_published_type_and_spelling_gives_the_same_rows(
    tmp_path: Path, sizes: pa.DataType, text: pa.DataType
) -> None:
    table = pa.table(
        {
            "url": pa.array(["http://a/1", "http://a/2"]).cast(text),
            "Caption": pa.array(["eins", "zwei"]).cast(text),
            "Width": pa.array([5, 6], sizes),
            "height": pa.array([7, 8], sizes),
            "SIMILARITY": pa.array([0.25, None], pa.float64()),
            "hash": pa.array([-7, 2**62], pa.int64()),
            "pWatermark": pa.array([None, 0.5], pa.float32()),
            "PUNSAFE": pa.array([0.5, math.nan], pa.float32()),
            "LANGUAGE": ["iw", "ru-Latn"],
            "NSFW": ["UNLIKELY", None],
        }
    )
    write(tmp_path, table)
    rows = read_all(config(tmp_path, preset="laion-joined"))
    assert rows.select(["url", "caption", "width", "height", "similarity", "sample_id"]).to_pylist() == [
        {"url": "http://a/1", "caption": "eins", "width": 5, "height": 7, "similarity": 0.25, "sample_id": -7},
        {"url": "http://a/2", "caption": "zwei", "width": 6, "height": 8, "similarity": None, "sample_id": 2**62},
    ]
    assert rows["punsafe"].to_pylist() == [0.5, None] and rows["pwatermark"].to_pylist() == [None, 0.5]
    assert rows["source_language"].to_pylist() == ["he", "ru"]


def test_a_row_without_a_label_gets_the_sources(tmp_path: Path) -> None:
    write(tmp_path, {**BASE, "LANGUAGE": ["de", None, ""]})
    assert read_all(config(tmp_path))["source_language"].to_pylist() == ["de", None, None]
    assert read_all(config(tmp_path, language="en"))["source_language"].to_pylist() == ["de", "en", "en"]


def size_oracle(value: float | None) -> int | None:
    return None if value is None or math.isnan(value) or not 1 <= value < 2**31 else math.floor(value)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(), st.integers(-5, 10000).map(float)),
            st.one_of(st.none(), st.floats()),
            st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
            st.one_of(st.none(), st.text(max_size=20)),
        ),
        max_size=20,
    )
)
def test_normalisation_agrees_with_a_row_by_row_oracle(rows: list[tuple[Any, Any, Any, Any]]) -> None:
    sizes, scores, ids, texts = ([row[i] for row in rows] for i in range(4))
    table = pa.table(
        {
            "url": pa.array(texts, pa.string()),
            "caption": pa.array(texts, pa.string()),
            "width": pa.array(sizes, pa.float64()),
            "height": pa.array(sizes, pa.float64()),
            "similarity": pa.array(scores, pa.float64()),
            "sample_id": pa.array(ids, pa.int64()),
        }
    )
    found = normalise(table, swapped_sizes=False)
    assert found["width"].to_pylist() == [size_oracle(size) for size in sizes]
    assert found["similarity"].to_pylist() == [None if s is None or math.isnan(s) else s for s in scores]
    assert found["sample_id"].to_pylist() == [
        hash_id(text or "", text or "") if given is None else given for given, text in zip(ids, texts, strict=True)
    ]


def test_invalid_utf8_is_replaced_not_fatal(tmp_path: Path) -> None:
    raw = pa.array([b"gut", b"b\xffse", None], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    write(tmp_path, {**BASE, "TEXT": broken})
    assert read_all(config(tmp_path))["caption"].to_pylist() == ["gut", "b\ufffdse", None]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 30))
def test_units_cover_every_row_once_in_order(groups: list[int], limit: int) -> None:
    from altdiffusion.curation.source import Part, SourceScan

    part = Part(uri="x", name="x", digest="d", group_rows=tuple(groups))
    source = SourceConfig(name="s", uri="x", rows_per_unit=limit)
    units = plan_select(SourceScan(config=source, parts=(part, part)))
    ranges = [(unit.payload["start"], unit.payload["stop"]) for unit in units]
    rows = [row for start, stop in ranges for row in range(start, stop)]
    assert rows == [*range(sum(groups)), *range(sum(groups))]
    assert all(0 < stop - start <= limit for start, stop in ranges)
    assert [unit.index for unit in units] == list(range(len(units)))


def test_every_cut_of_a_part_reads_the_same_rows(tmp_path: Path) -> None:
    rows = 1000
    table = pa.table(
        {
            "URL": [f"http://a/{i}" for i in range(rows)],
            "TEXT": [str(i) for i in range(rows)],
            "WIDTH": np.arange(1, rows + 1),
            "HEIGHT": np.arange(1, rows + 1),
            "similarity": np.zeros(rows),
        }
    )
    write(tmp_path, table, row_group_size=150)
    whole = read_all(config(tmp_path))
    assert whole["caption"].to_pylist() == [str(i) for i in range(rows)]
    for limit in (1000, 450, 150, 99, 7):
        assert read_all(config(tmp_path, rows_per_unit=limit)).equals(whole)


def test_planning_reads_footers_only_and_identity_is_by_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a", BASE)
    first = scan_source(config(tmp_path / "a"))
    write(tmp_path / "b", BASE)
    second = scan_source(config(tmp_path / "b"))
    assert first.ref == second.ref  # the folder is no part of it
    assert [unit.id for unit in plan_select(first)] == [unit.id for unit in plan_select(second)]
    write(tmp_path / "b", {**BASE, "TEXT": ["one", "two", "three"]})
    assert scan_source(config(tmp_path / "b")).ref != first.ref
    body = bytearray(path.read_bytes())
    body[4:40] = bytes(36)  # damage in the data, not in the footer: planning does not see it, reading does
    path.write_bytes(body)
    assert scan_source(config(tmp_path / "a")).ref == first.ref
    with pytest.raises(AltDiffusionError, match=r"part-0\.parquet.*cannot be read.*Remedy: fetch this part again"):
        read_all(config(tmp_path / "a"))


def test_several_sources_follow_each_other_with_ids_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "a", BASE)
    write(tmp_path / "b", BASE)
    scans = [scan_source(config(tmp_path / name, name=name)) for name in ("a", "b")]
    units = plan_sources(scans)
    assert [unit.payload["source"] for unit in units] == ["a", "b"]
    assert len({unit.id for unit in units}) == 2 and [unit.index for unit in units] == [0, 1]


def test_a_source_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path) -> None:
    def problem(**given: Any) -> str:
        with pytest.raises(AltDiffusionError) as caught:
            scan_source(config(tmp_path, **given))
        return str(caught.value)

    assert "matches no file" in problem()
    path = write(tmp_path, BASE, "part-7.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert "part-7.parquet: is truncated" in problem()
    path.write_bytes(b"PAR1")
    assert "part-7.parquet: is no Parquet file (4 bytes)" in problem()
    path.write_bytes(b"")
    assert "0 bytes" in problem()
    footer = int.from_bytes(whole[-8:-4], "little")
    path.write_bytes(whole[: -8 - footer] + b"\xff" * footer + whole[-8:])
    assert "part-7.parquet: has a damaged footer" in problem()
    path.write_bytes(whole)
    missing = problem(preset="laion-joined")
    assert "part-7.parquet: lacks column 'HASH'; it has URL, TEXT" in missing and "preset" in missing
    write(tmp_path, {**BASE, "url": ["a", "b", "c"]}, "part-7.parquet")
    assert "two columns for url: 'URL', 'url'" in problem()
    write(tmp_path, {**BASE, "WIDTH": ["a", "b", "c"]}, "part-7.parquet")
    assert "column 'WIDTH' is string, not a number" in problem()
    write(tmp_path, {**BASE, "TEXT": [["a"], ["b"], ["c"]]}, "part-7.parquet")
    assert "column 'TEXT' is list" in problem()
    write(tmp_path, pa.table(BASE).slice(0, 0), "part-7.parquet")
    assert "has no rows" in problem()


def test_a_part_that_vanished_or_shrank_since_planning_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    source = config(tmp_path)
    (unit,) = plan_select(scan_source(source))
    write(tmp_path, pa.table(BASE).slice(0, 2))
    with pytest.raises(AltDiffusionError, match=r"has 2 of the rows 0\.\.3.*changed since planning"):
        read_rows(unit.payload["uri"], 0, 3, source)
    path.unlink()
    with pytest.raises(AltDiffusionError, match=r"part-0\.parquet: cannot be read"):
        read_rows(unit.payload["uri"], 0, 3, source)
