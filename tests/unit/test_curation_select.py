"""Every row stays or has one reason, the first in a fixed order; score comparisons are strict and nulls drop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.curation.links.filters import REASONS
from altdiffusion.curation.links.select_work import SelectWork, buckets_of, by_bucket
from altdiffusion.curation.links.sources import plan_sources, scan_source
from altdiffusion.records import LINKS, REJECTS
from altdiffusion.storage.dataset import Lake
from altdiffusion.urls import url_keys
from tests.source_rows import GOOD, reasons, split, table

V1 = SelectConfig(similarity_above=0.28, aesthetic_above=7.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"url": "HTTPS://a.example/"}, ""),
        ({"url": None}, "url_scheme"),
        ({"url": "file:///etc/passwd"}, "url_scheme"),
        ({"url": "a.example/1.jpg"}, "url_scheme"),
        ({"url": "http://"}, "url_scheme"),
        ({"url": "\ufeff\u00a0 HTTP://a.example/1.jpg\r\n"}, ""),
        ({"caption": None}, "caption"),
        ({"caption": ""}, "caption"),
        ({"caption": "20130714 184502"}, "caption"),
        ({"caption": "a" * 4097}, "caption"),
        ({"caption": "a" * 4096}, ""),
        ({"width": 255}, "size"),
        ({"width": 256, "height": 256}, ""),
        ({"width": None}, "size"),
        ({"height": 0}, "size"),
        ({"width": 1440, "height": 480}, ""),
        ({"width": 1441, "height": 480}, "aspect"),
        ({"width": 256, "height": 800}, "aspect"),
        ({"similarity": 0.28}, "similarity"),
        ({"similarity": None}, "similarity"),
        ({"punsafe": 0.5}, "punsafe"),
        ({"punsafe": 0.4999999999}, ""),
        ({"punsafe": None}, "punsafe"),
        ({"pwatermark": 0.8}, "pwatermark"),
        ({"pwatermark": float("nan")}, "pwatermark"),
        ({"aesthetic": 7.0}, "aesthetic"),
        ({"aesthetic": 7.0000001}, ""),
        ({"aesthetic": None}, "aesthetic"),
    ],
)
def test_each_filter_at_its_edge(change: dict[str, Any], reason: str) -> None:
    assert reasons(V1, change) == [reason]


def test_a_threshold_of_null_switches_its_filter_off_and_keep_null_keeps_nulls() -> None:
    bare = {"width": None, "height": None, "similarity": None, "punsafe": None, "pwatermark": None, "aesthetic": None}
    off = SelectConfig(min_side=None, max_aspect=None, punsafe_below=None, pwatermark_below=None)
    assert reasons(off, bare) == [""]
    keep = SelectConfig(
        similarity_above=0.2,
        aesthetic_above=7.0,
        keep_null=("size", "similarity", "punsafe", "pwatermark", "aesthetic"),
    )
    assert reasons(keep, bare, {"punsafe": 0.9}, {"similarity": 0.1}, {"width": 10}) == [
        "", "punsafe", "similarity", "size",
    ]  # fmt: skip


BAD = {
    "url_scheme": {"url": "ftp://a/"},
    "caption": {"caption": "1"},
    "size": {"width": 9},
    "similarity": {"similarity": 0.0},
    "punsafe": {"punsafe": 1.0},
    "pwatermark": {"pwatermark": 1.0},
    "aesthetic": {"aesthetic": 1.0},
}


@given(st.lists(st.sampled_from(sorted(BAD)), max_size=5))
def test_the_first_reason_in_the_order_wins(names: list[str]) -> None:
    change = {key: value for name in names for key, value in BAD[name].items()}
    expected = min(names, key=REASONS.index) if names else ""
    assert reasons(V1, change) == [expected]


@pytest.fixture(scope="module")
def work() -> SelectWork:
    source = SourceConfig(name="crawl", uri="unused", preset="laion-aesthetic")
    work = SelectWork(lake="memory://unused", dataset="x", source=source, select=V1, language=LanguageConfig())
    work.setup()
    return work


def test_accepted_rows_have_the_links_schema_and_rejects_their_story(work: SelectWork) -> None:
    rows = table(
        {"punsafe": 0.75, "sample_id": 5},
        {"caption": "Une bicyclette rouge appuyée contre le mur\tfr", "source_language": "fr", "sample_id": 6},
        {"caption": "En röd cykel står lutad mot väggen på ett gammalt hus", "sample_id": 7},
        {"url": None, "sample_id": 8},
    )
    accepted, rejects = split(work, rows, "unit")
    assert accepted.schema == LINKS and rejects.schema == REJECTS
    (kept,) = accepted.to_pylist()
    assert kept["sample_id"] == 6 and kept["language"] == "fr" and kept["source_language"] == "fr"
    assert kept["caption"] == "Une bicyclette rouge appuyée contre le mur" and kept["source"] == "crawl"
    assert [(r["row"], r["sample_id"], r["reason"], r["language"], r["detail"]) for r in rejects.to_pylist()] == [
        (0, 5, "punsafe", None, "0.75"),
        (2, 7, "language", "sv", "En röd cykel står lutad mot väggen på ett gammalt hus"),
        (3, 8, "url_scheme", None, None),
    ]


def test_captions_are_cleaned_before_anything_looks_at_them_and_kept_as_published(work: SelectWork) -> None:
    published = [
        "Une bicyclette <b>rouge</b> appuyée contre le mur d&#39;une maison",
        "Une bicyclette rouge appuyÃ©e contre le mur d’une vieille maison",
        "Une bicyclette rouge appuyée contre le mur d'une maison",
        "<p>&nbsp;</p>",
        f"<b>{('En röd cykel står lutad mot väggen ' * 117)[:4094]}</b>",
    ]
    rows = table(*({"caption": text, "source_language": "fr", "sample_id": n} for n, text in enumerate(published)))
    accepted, rejects = split(work, rows, "unit")
    assert accepted["caption"].to_pylist() == [
        "Une bicyclette rouge appuyée contre le mur d'une maison",
        "Une bicyclette rouge appuyée contre le mur d’une vieille maison",
        "Une bicyclette rouge appuyée contre le mur d'une maison",
    ]
    assert accepted["original_caption"].to_pylist() == [*published[:2], None]
    assert accepted["sample_id"].to_pylist() == [0, 1, 2]  # ids are of what was published
    assert rejects["reason"].to_pylist() == ["caption", "language"]  # empty; and no longer too long

    config = dataclasses.replace(V1, clean_captions=False)
    plain = SelectWork(lake="memory://u", dataset="x", source=work.source, select=config, language=LanguageConfig())
    plain.setup()
    accepted, _ = split(plain, rows, "unit")
    assert accepted["caption"].to_pylist() == published[:3] and accepted["original_caption"].null_count == 3


def test_nothing_in_is_nothing_out(work: SelectWork) -> None:
    accepted, rejects = split(work, table({}).slice(0, 0), "unit")
    assert accepted.num_rows == rejects.num_rows == 0 and accepted.schema == LINKS
    accepted, rejects = split(work, table({"punsafe": 1.0}), "unit")
    assert accepted.num_rows == 0 and rejects.num_rows == 1


def write_source(folder: Path, rows: int) -> SourceConfig:
    folder.mkdir(exist_ok=True)
    captions = [GOOD["caption"], "Ein rotes Fahrrad lehnt an der Mauer eines alten Hauses", "En röd cykel i en by"]
    columns = {
        "URL": [f"http://site{i % 7}.example/{i}.jpg" for i in range(rows)],
        "TEXT": [captions[i % 3] for i in range(rows)],
        "WIDTH": [640] * rows,
        "HEIGHT": [100 + i for i in range(rows)],
        "similarity": [0.35] * rows,
    }
    pq.write_table(pa.table(columns), folder / "part-0.parquet", row_group_size=100)
    return SourceConfig(name="crawl", uri=str(folder / "*.parquet"), rows_per_unit=150)


def test_units_account_for_every_row_and_running_again_writes_the_same_bytes(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 500)
    select = SelectConfig(punsafe_below=None, pwatermark_below=None, buckets=3)
    digests = []
    for lake in ("one", "two"):
        work = SelectWork(
            lake=str(tmp_path / lake), dataset="candidates", source=source, select=select, language=LanguageConfig()
        )
        work.setup()
        units = plan_sources([scan_source(source)])
        assert len(units) == 5
        records = [work.run(unit) for unit in (units if lake == "one" else reversed(units))]
        assert sum(record.rows_in for record in records) == 500
        version = (
            Lake(str(tmp_path / lake))
            .dataset("candidates")
            .publish(kind="links", records=records, parents=[], config={}, fingerprint="f")
        )
        digests.append(version.ref.digest)
        assert len(version.shards) == 3 * len(units)
    assert digests[0] == digests[1]
    table = version.read()
    assert set(table["language"].to_pylist()) == {"en", "de"}
    assert version.manifest.rejects_by_reason["size"] == 156  # heights 100 to 255
    assert version.rows + sum(version.manifest.rejects_by_reason.values()) == 500
    for index in range(len(version.shards)):
        assert set(buckets_of(url_keys(version.read_shard(index, ["url"])["url"]), 3).tolist()) <= {index % 3}


@given(st.lists(st.text(max_size=8), max_size=60), st.integers(1, 9))
def test_buckets_hold_every_row_once_in_order_and_equal_keys_together(keys: list[str], buckets: int) -> None:
    column = pa.array(keys, pa.string())
    rows = pa.table({"key": column, "row": pa.array(range(len(keys)), pa.int64())})
    parts = by_bucket(rows, buckets_of(column, buckets), buckets)
    assert len(parts) == buckets
    assert sorted(row for part in parts for row in part["row"].to_pylist()) == list(range(len(keys)))
    assert all(part["row"].to_pylist() == sorted(part["row"].to_pylist()) for part in parts)
    assert sum(len(set(part["key"].to_pylist())) for part in parts) == len(set(keys))
