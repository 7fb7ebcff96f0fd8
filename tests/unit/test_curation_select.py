"""Every row stays or has one reason, the first in a fixed order; score comparisons are strict and nulls drop."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.curation.blocklist import load_blocklist
from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.curation.select import REASONS, SelectWork, bucket_of, failures, first_reason, split_by_bucket
from altdiffusion.curation.source import normalise, plan_select, scan_source
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import LINKS, REJECTS
from altdiffusion.storage.dataset import Lake

GOOD = {
    "url": "http://a.example/1.jpg",
    "caption": "A red bicycle leans against the wall of an old house in the village",
    "width": 640,
    "height": 480,
    "similarity": 0.35,
    "punsafe": 0.1,
    "pwatermark": 0.1,
    "aesthetic": 7.5,
    "source_language": "en",
    "sample_id": 1,
}
V1 = SelectConfig(similarity_above=0.28, aesthetic_above=7.0)


def table(*changes: dict[str, Any]) -> pa.Table:
    rows = [{**GOOD, **change} for change in changes]
    columns = {name: [row[name] for row in rows] for name in GOOD}
    types = {"sample_id": pa.int64(), "width": pa.int64(), "height": pa.int64(), "url": pa.string()}
    types |= {"caption": pa.string(), "source_language": pa.string()}
    return normalise(
        pa.table({name: pa.array(values, types.get(name, pa.float64())) for name, values in columns.items()}),
        swapped_sizes=False,
    )


def reasons(config: SelectConfig, *changes: dict[str, Any]) -> list[str]:
    rows = table(*changes)
    found: list[str] = first_reason(failures(rows, config), rows.num_rows).tolist()
    return found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"url": "HTTPS://a.example/"}, ""),
        ({"url": None}, "url_scheme"),
        ({"url": "file:///etc/passwd"}, "url_scheme"),
        ({"url": "a.example/1.jpg"}, "url_scheme"),
        ({"url": "http://"}, "url_scheme"),
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
    accepted, rejects = work.split(rows, "unit")
    assert accepted.schema == LINKS and rejects.schema == REJECTS
    (kept,) = accepted.to_pylist()
    assert kept["sample_id"] == 6 and kept["language"] == "fr" and kept["source_language"] == "fr"
    assert kept["caption"] == "Une bicyclette rouge appuyée contre le mur" and kept["source"] == "crawl"
    assert [(r["row"], r["sample_id"], r["reason"], r["language"], r["detail"]) for r in rejects.to_pylist()] == [
        (0, 5, "punsafe", None, "0.75"),
        (2, 7, "language", "sv", "En röd cykel står lutad mot väggen på ett gammalt hus"),
        (3, 8, "url_scheme", None, None),
    ]


def test_nothing_in_is_nothing_out(work: SelectWork) -> None:
    accepted, rejects = work.split(table({}).slice(0, 0), "unit")
    assert accepted.num_rows == rejects.num_rows == 0 and accepted.schema == LINKS
    accepted, rejects = work.split(table({"punsafe": 1.0}), "unit")
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
        units = plan_select(scan_source(source))
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
        assert {bucket_of(url, 3) for url in version.read_shard(index, ["url"])["url"].to_pylist()} <= {index % 3}


@given(st.lists(st.text(max_size=8), max_size=60), st.integers(1, 9))
def test_buckets_hold_every_row_once_in_order_and_equal_urls_together(urls: list[str], buckets: int) -> None:
    rows = pa.table({"url": pa.array(urls, pa.string()), "row": pa.array(range(len(urls)), pa.int64())})
    parts = split_by_bucket(rows, buckets)
    assert len(parts) == buckets
    assert sorted(row for part in parts for row in part["row"].to_pylist()) == list(range(len(urls)))
    assert all(part["row"].to_pylist() == sorted(part["row"].to_pylist()) for part in parts)
    seen = [set(part["url"].to_pylist()) for part in parts]
    assert sum(map(len, seen)) == len(set(urls))


def blocklist(folder: Path, text: str) -> dict[str, str]:
    path = folder / "blocked.txt"
    path.write_text(text)
    return {"blocklist": str(path), "blocklist_sha256": hashlib.sha256(text.encode()).hexdigest()}


def test_a_blocklist_drops_links_domains_and_hashes(tmp_path: Path) -> None:
    text = "# removals\nurl:http://a.example/bad.jpg\n\ndomain:Evil.example\nhash:-77\n"
    given = blocklist(tmp_path, text)
    found = load_blocklist(given["blocklist"], given["blocklist_sha256"])
    rows = table(
        {"url": "http://a.example/bad.jpg"},
        {"url": "http://a.example/bad.jpg?x"},
        {"url": "https://IMG.deep.evil.example:8080/x"},
        {"url": "http://evil.example"},
        {"url": "http://notevil.example/evil.example"},
        {"url": "http://me@evil.example/x"},
        {"sample_id": -77},
        {"url": None},
    )
    assert found.blocks(rows).to_pylist() == [True, False, True, True, False, True, True, False]
    assert first_reason(failures(rows, V1, found.blocks(rows)), 8).tolist() == [
        "blocklist", "", "blocklist", "blocklist", "", "blocklist", "blocklist", "url_scheme",
    ]  # fmt: skip


def test_a_blocklist_that_is_another_or_broken_is_an_error(tmp_path: Path) -> None:
    for text in ("hash:abc\n", "host:a.example\n", "url:\n", "http://a.example/\n"):
        given = blocklist(tmp_path, "# first\n" + text)
        with pytest.raises(AltDiffusionError, match=r"blocked\.txt, line 2"):
            load_blocklist(given["blocklist"], given["blocklist_sha256"])
    with pytest.raises(AltDiffusionError, match="has SHA-256"):
        load_blocklist(given["blocklist"], "0" * 64)
