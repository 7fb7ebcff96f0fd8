"""Deduplication through buckets equals the obvious loop over all rows at once, whatever the order they come in."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import fsspec
import mmh3
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.curation.links import dedup
from altdiffusion.curation.links.dedup import DedupWork, duplicates
from altdiffusion.curation.links.select_work import buckets_of, by_bucket
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import plan_buckets
from altdiffusion.records import LINKS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.tally import histogram
from altdiffusion.urls import url_key, url_keys

LAKE = "memory://dedup"
SOURCES = ("first", "second")


class Row(NamedTuple):
    url: str
    text: str = "x"
    similarity: float | None = 0.3
    source: str = "first"
    hash: int | None = None  # what a source with wrong hashes states

    @property
    def sample_id(self) -> int:
        return mmh3.hash64(self.url + self.text)[0] if self.hash is None else self.hash


def links(rows: Sequence[Row], first: int = 0) -> pa.Table:
    """Return the rows, in order; width is the row's number."""
    columns: dict[str, Any] = {
        "sample_id": [row.sample_id for row in rows],
        "url": [row.url for row in rows],
        "caption": [row.text for row in rows],
        "language": ["en" if number % 2 else "de" for number in range(first, first + len(rows))],
        "language_score": [0.5] * len(rows),
        "width": list(range(first, first + len(rows))),
        "similarity": [row.similarity for row in rows],
        "source": [row.source for row in rows],
    }
    return pa.table(
        [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(rows), field.type)
            for field in LINKS
        ],
        schema=LINKS,
    )


def units_of(rows: Sequence[Row], size: int) -> list[pa.Table]:
    """Cut into units as select does: source by source, in the config's order."""
    tables = []
    number = 0
    for source in SOURCES:
        mine = [row for row in rows if row.source == source]
        for start in range(0, len(mine), size):
            tables.append(links(mine[start : start + size], number))
            number += tables[-1].num_rows
    return tables or [links([])]


def candidates(lake: str, tables: Sequence[pa.Table], buckets: int, done: Sequence[int] | None = None) -> Version:
    """Publish the version that select units leave, done in the order `done`."""
    dataset = Lake(lake).dataset("candidates")
    records = []
    for index in range(len(tables)) if done is None else done:
        table = tables[index]
        parts = by_bucket(table, buckets_of(url_keys(table["url"]), buckets), buckets)
        shards = tuple(dataset.write_shard(piece) for piece in parts)
        records.append(
            UnitRecord(unit_id=f"u{index}", index=index, input_digest="d", rows_in=table.num_rows, shards=shards)
        )
    return dataset.publish(kind="links", records=records, parents=[], config={}, fingerprint="f")


def run(lake: str, version: Version, buckets: int, done: Sequence[int] | None = None) -> Version:
    units = plan_buckets(version, buckets)
    records = []
    for index in range(buckets) if done is None else done:
        work = DedupWork(lake=lake, dataset="links")  # a worker of its own for every unit
        work.setup()
        records.append(work.run(units[index]))
    dataset = Lake(lake).dataset("links")
    return dataset.publish(kind="links", records=records, parents=[version.ref], config={}, fingerprint="f")


def everything(rows: Sequence[Row], size: int, buckets: int) -> Version:
    fsspec.filesystem("memory").store.clear()
    return run(LAKE, candidates(LAKE, units_of(rows, size), buckets), buckets)


def priority(row: Row) -> tuple[Any, ...]:
    """Return the rank of a row, smaller is better: the rule as the module states it."""
    similarity = None if row.similarity is None else float(np.float32(row.similarity))
    return SOURCES.index(row.source), similarity is None, -(similarity or 0.0), row.sample_id


def brute_force(rows: Sequence[Row], buckets: int) -> tuple[list[int], dict[str, int]]:
    """Return the rows that stay (numbers), and how many are dropped for what, row by row in the order of the rule."""
    bucket = buckets_of(pa.array([url_key(row.url) for row in rows], pa.string()), buckets)
    ids: set[tuple[int, int]] = set()
    urls: set[str] = set()
    stay, dropped = [], Counter[str]()
    for number in sorted(range(len(rows)), key=lambda n: (*priority(rows[n]), url_key(rows[n].url), n)):
        row, key = rows[number], url_key(rows[number].url)
        again = (int(bucket[number]), row.sample_id) in ids  # ids are compared within a bucket
        ids.add((int(bucket[number]), row.sample_id))
        if again:
            dropped["duplicate_hash"] += 1
        elif key in urls:
            dropped["duplicate_url"] += 1
        else:
            stay.append(number)
            urls.add(key)
    return sorted(stay), dict(dropped)


URLS = [spelling for i in range(7) for spelling in (f"http://a/{i}", f"https://A:443/{i}#x", f"http://a./{i}?utm_a=b")]
ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from(URLS),
        st.sampled_from("xyz"),
        st.sampled_from([None, 0.1, 0.2, 0.25]),
        st.sampled_from(SOURCES),
        st.sampled_from([None, None, None, 1, 2]),
    ),
    max_size=60,
).map(lambda rows: sorted(rows, key=lambda row: SOURCES.index(row.source)))


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 20), st.integers(1, 5))
def test_buckets_and_units_do_not_change_what_stays(rows: list[Row], size: int, buckets: int) -> None:
    version = everything(rows, size, buckets)
    stay, dropped = brute_force(rows, buckets)
    assert sorted(version.read(["width"])["width"].to_pylist()) == stay
    assert dict(version.manifest.rejects_by_reason) == dropped
    assert sum(version.manifest.rows_by_language.values()) == len(stay)
    assert sum(rows for _, _, rows in histogram(version.manifest.tally, "short_side")) == 0
    with_similarity = sum(rows[number].similarity is not None for number in stay)
    assert sum(count for _, _, count in histogram(version.manifest.tally, "similarity")) == with_similarity
    rejects = list(version.iter_rejects())
    if rejects:
        gone = pa.concat_tables(rejects)
        assert gone["language"].null_count == 0 and gone["url"].null_count == 0
        assert gone.num_rows == sum(dropped.values())


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 20), st.integers(1, 20), st.randoms(use_true_random=False))
def test_the_survivor_does_not_depend_on_any_order(
    rows: list[Row], size: int, other: int, chance: random.Random
) -> None:
    """Shuffled rows, cut into other units, done in any order by any worker: the same rows stay."""
    buckets = 3
    names = ["sample_id", "source", "similarity"]
    plain = everything(rows, size, buckets)
    stayed = Counter(map(str, plain.read(names).to_pylist()))
    again = rows.copy()
    chance.shuffle(again)
    tables = units_of(again, other)
    fsspec.filesystem("memory").store.clear()
    version = candidates(LAKE, tables, buckets, chance.sample(range(len(tables)), len(tables)))
    shuffled = run(LAKE, version, buckets, chance.sample(range(buckets), buckets))
    assert Counter(map(str, shuffled.read(names).to_pylist())) == stayed
    assert plain.manifest.rejects_by_reason == shuffled.manifest.rejects_by_reason


@settings(max_examples=20, deadline=None)
@given(ROWS, st.integers(1, 20), st.randoms(use_true_random=False))
def test_the_order_of_work_does_not_change_the_digest(rows: list[Row], size: int, chance: random.Random) -> None:
    tables = units_of(rows, size)
    digests = set()
    for shuffle in (False, True):
        fsspec.filesystem("memory").store.clear()
        order, last = list(range(len(tables))), list(range(4))
        if shuffle:
            chance.shuffle(order)
            chance.shuffle(last)
        digests.add(run(LAKE, candidates(LAKE, tables, 4, order), 4, last).ref.digest)
    assert len(digests) == 1


def test_the_rule_in_words(tmp_path: Any) -> None:
    rows = [
        Row("http://a/1", "x", 0.1), Row("http://a/1", "y", 0.4), Row("http://a/1", "z", None),  # the more similar one
        Row("http://a/2", "x", None), Row("https://a/2", "x", 0.01),  # a null comes last
        Row("http://a/3", "x", 0.1), Row("http://a/3", "x", 0.9, "second"),  # the source that the config names first
        Row("http://a/4", "x", 0.3, "second"), Row("http://a/4", "y", 0.3, "second"),  # the smaller id
    ]  # fmt: skip
    version = run(str(tmp_path), candidates(str(tmp_path), units_of(rows, 3), 2), 2)
    kept = {(row["url"], row["caption"], row["source"]) for row in version.read().to_pylist()}
    smaller = min("x", "y", key=lambda text: Row("http://a/4", text).sample_id)
    assert kept == {
        ("http://a/1", "y", "first"), ("https://a/2", "x", "first"), ("http://a/3", "x", "first"),
        ("http://a/4", smaller, "second"),
    }  # fmt: skip


def test_rejects_name_their_own_row(tmp_path: Any) -> None:
    rows = [Row("http://a/1"), Row("http://a/2", similarity=0.5), Row("http://a/1"), Row("http://a/2", "y", 0.4)]
    version = run(str(tmp_path), candidates(str(tmp_path), units_of(rows, 2), 1), 1)
    found = pa.concat_tables(version.iter_rejects()).to_pylist()
    assert [(r["row"], r["reason"], r["sample_id"], r["language"]) for r in found] == [
        (2, "duplicate_hash", rows[2].sample_id, "de"),
        (3, "duplicate_url", rows[3].sample_id, "en"),
    ]


def test_large_buckets_are_written_in_even_shards_in_input_order(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "SHARD_ROWS", 10)
    rows = [Row(f"http://a/{i % 33}") for i in range(40)]
    version = run(str(tmp_path), candidates(str(tmp_path), units_of(rows, 7), 1), 1)
    assert [shard.rows for shard in version.shards] == [10, 10, 10, 3]
    assert version.read(["width"])["width"].to_pylist() == list(range(33))


def test_the_same_rows_in_other_units_give_the_same_shards(tmp_path: Any) -> None:
    rows = [Row(f"http://a/{i % 50}", str(i % 3)) for i in range(200)]
    versions = [
        run(str(tmp_path / str(size)), candidates(str(tmp_path / str(size)), units_of(rows, size), 4), 4)
        for size in (7, 64)
    ]
    assert versions[0].shards == versions[1].shards


def test_keys_whose_hashes_are_equal_are_distinguished(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(dedup, "hash64", lambda keys: np.zeros(len(keys), np.uint64))
    rows = [Row(f"http://a/{i % 5}", str(i)) for i in range(20)]
    version = run(str(tmp_path), candidates(str(tmp_path), units_of(rows, 6), 2), 2)
    assert sorted(version.read(["url"])["url"].to_pylist()) == [f"http://a/{i}" for i in range(5)]


def test_the_better_of_two_stays() -> None:
    ids, keys = np.array([1, 1, 2, 3]), np.array([7, 8, 8, 7])
    assert duplicates(ids, keys).tolist() == [0, 1, 0, 2]
    assert len(duplicates(ids[:0], keys[:0])) == 0


def test_a_version_of_other_buckets_is_refused(tmp_path: Any) -> None:
    version = candidates(str(tmp_path), units_of([Row("http://a/1")] * 3, 1), 4)
    with pytest.raises(AltDiffusionError, match="has 12 shards, which are not 5 buckets"):
        plan_buckets(version, 5)
    assert np.array_equal([unit.index for unit in plan_buckets(version, 4)], range(4))
