"""Deduplication through buckets equals the obvious loop over all rows at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.curation import dedup
from altdiffusion.curation.dedup import DedupWork, duplicates, plan_dedup
from altdiffusion.curation.select import split_by_bucket
from altdiffusion.curation.source import hash_id
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import LINKS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord


def links(pairs: list[tuple[str, str]]) -> pa.Table:
    """Rows of (url, text), in order; width is the row's number."""
    columns: dict[str, Any] = {
        "sample_id": [hash_id(url, text) for url, text in pairs],
        "url": [url for url, _ in pairs],
        "caption": [text for _, text in pairs],
        "language": ["en" if i % 2 else "de" for i in range(len(pairs))],
        "language_score": [0.5] * len(pairs),
        "width": list(range(len(pairs))),
        "source": ["s"] * len(pairs),
    }
    return pa.table(
        [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(pairs), field.type)
            for field in LINKS
        ],
        schema=LINKS,
    )


def candidates(lake: str, table: pa.Table, unit_rows: int, buckets: int) -> Version:
    dataset = Lake(lake).dataset("candidates")
    records = []
    for index, start in enumerate(range(0, max(table.num_rows, 1), unit_rows)):
        part = table.slice(start, unit_rows)
        shards = tuple(dataset.write_shard(piece) for piece in split_by_bucket(part, buckets))
        records.append(
            UnitRecord(unit_id=f"u{index}", index=index, input_digest="d", rows_in=part.num_rows, shards=shards)
        )
    return dataset.publish(kind="links", records=records, parents=[], config={}, fingerprint="f")


def run(lake: str, version: Version, buckets: int) -> Version:
    work = DedupWork(lake=lake, dataset="links")
    work.setup()
    records = [work.run(unit) for unit in plan_dedup(version, buckets)]
    dataset = Lake(lake).dataset("links")
    return dataset.publish(kind="links", records=records, parents=[version.ref], config={}, fingerprint="f")


def brute_force(pairs: list[tuple[str, str]]) -> tuple[list[int], dict[str, int]]:
    """Rows that stay, and how many are dropped for what."""
    ids: set[int] = set()
    urls: set[str] = set()
    stay, dropped = [], {"duplicate_hash": 0, "duplicate_url": 0}
    for row, (url, text) in enumerate(pairs):
        if hash_id(url, text) in ids:
            dropped["duplicate_hash"] += 1
        elif url in urls:
            dropped["duplicate_url"] += 1
        else:
            stay.append(row)
        ids.add(hash_id(url, text))
        urls.add(url)
    return stay, {reason: count for reason, count in dropped.items() if count}


PAIRS = st.lists(st.tuples(st.sampled_from([f"http://a/{i}" for i in range(12)]), st.sampled_from("xyz")), max_size=50)


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.integers(1, 20), st.integers(1, 5))
def test_buckets_and_units_do_not_change_what_stays(pairs: list[tuple[str, str]], unit_rows: int, buckets: int) -> None:
    import fsspec

    fsspec.filesystem("memory").store.clear()
    lake = "memory://dedup"
    version = run(lake, candidates(lake, links(pairs), unit_rows, buckets), buckets)
    stay, dropped = brute_force(pairs)
    assert sorted(version.read(["width"])["width"].to_pylist()) == stay
    assert dict(version.manifest.rejects_by_reason) == dropped
    by_language = version.manifest.rows_by_language
    assert sum(by_language.values()) == len(stay)
    rejects = list(version.iter_rejects())
    if rejects:
        gone = pa.concat_tables(rejects)
        assert gone["language"].null_count == 0 and gone["url"].null_count == 0
        assert gone.num_rows == sum(dropped.values())


def test_rejects_name_their_own_row(tmp_path: Any) -> None:
    pairs = [("http://a/1", "x"), ("http://a/2", "x"), ("http://a/1", "x"), ("http://a/2", "y"), ("http://a/1", "z")]
    version = run(str(tmp_path), candidates(str(tmp_path), links(pairs), 2, 1), 1)
    rows = pa.concat_tables(version.iter_rejects()).to_pylist()
    assert [(r["row"], r["reason"], r["sample_id"], r["language"]) for r in rows] == [
        (2, "duplicate_hash", hash_id("http://a/1", "x"), "de"),
        (3, "duplicate_url", hash_id("http://a/2", "y"), "en"),
        (4, "duplicate_url", hash_id("http://a/1", "z"), "de"),
    ]


def test_large_buckets_are_written_in_even_shards_in_input_order(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "SHARD_ROWS", 10)
    pairs = [(f"http://a/{i % 33}", "x") for i in range(40)]
    version = run(str(tmp_path), candidates(str(tmp_path), links(pairs), 7, 1), 1)
    assert [shard.rows for shard in version.shards] == [10, 10, 10, 3]
    assert version.read(["width"])["width"].to_pylist() == list(range(33))


def test_the_same_rows_in_other_units_give_the_same_shards(tmp_path: Any) -> None:
    pairs = [(f"http://a/{i % 50}", str(i % 3)) for i in range(200)]
    versions = [
        run(str(tmp_path / str(rows)), candidates(str(tmp_path / str(rows)), links(pairs), rows, 4), 4)
        for rows in (7, 64)
    ]
    assert versions[0].shards == versions[1].shards


def test_first_occurrences_with_ids_that_are_not_hashes() -> None:
    ids, urls = pa.chunked_array([[1, 1, 2, 3]]), pa.chunked_array([["a", "b", "b", "a"]])
    assert duplicates(ids, urls).tolist() == ["", "duplicate_hash", "", "duplicate_url"]
    assert len(duplicates(pa.chunked_array([], pa.int64()), pa.chunked_array([], pa.string()))) == 0


def test_a_version_of_other_buckets_is_refused(tmp_path: Any) -> None:
    version = candidates(str(tmp_path), links([("http://a/1", "x")] * 3), 1, 4)
    with pytest.raises(AltDiffusionError, match="has 12 shards, which are not 5 buckets"):
        plan_dedup(version, 5)
    assert np.array_equal([unit.index for unit in plan_dedup(version, 4)], range(4))
