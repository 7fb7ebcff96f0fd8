"""LAION's variants become one shape, units cover every row once, and a bad part is named."""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.curation.config import PRESETS, SelectConfig, SourceConfig
from altdiffusion.curation.config.select import every_row
from altdiffusion.curation.links import sources as module
from altdiffusion.curation.links.source_columns import ALIASES, resolve_columns
from altdiffusion.curation.links.sources import Part, SourceScan, describe_sources, plan_sources, scan_source
from altdiffusion.curation.parts import find_parts
from altdiffusion.errors import AltDiffusionError
from tests.source_rows import believing, normalised, read_all, read_unit, split, unchecked

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


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1.5e18, 2.0], pa.float64()), pa.array(["12", "-7"]), pa.array([b"\0" * 8] * 2),
        pa.array([7, 8]).cast(pa.decimal128(20, 0)), pa.array([True, False]),
    ],
    ids=lambda ids: str(ids.type),
)  # fmt: skip
def test_row_ids_of_another_type_are_refused_or_ignored(tmp_path: Path, ids: pa.Array) -> None:
    base = {name: values[:2] for name, values in BASE.items()}
    write(tmp_path, {**base, "hash": ids})
    with pytest.raises(
        AltDiffusionError,
        match=rf"column 'hash' is {re.escape(str(ids.type))}.*not a whole number.*ignore: \[sample_id\]",
    ) as e:
        scan_source(config(tmp_path))
    assert "part-0.parquet" in str(e.value)
    found = read_all(config(tmp_path, ignore=("sample_id",)))["sample_id"].to_pylist()
    assert found == [mmh3.hash64("http://a/1one")[0], mmh3.hash64("http://a/2")[0]]
    joined = {**base, "hash": ids, "pwatermark": [0.1, 0.2], "punsafe": [0.1, 0.2]}
    write(tmp_path, joined)
    assert read_all(config(tmp_path, preset="laion-joined", ignore=("sample_id",)))["sample_id"].to_pylist() == found


def test_whole_row_ids_of_any_width_are_the_same_64_bits(tmp_path: Path) -> None:
    base = {name: values[:2] for name, values in BASE.items()}
    coded = pa.array([3, 5]).dictionary_encode()
    for ids in (
        coded,
        pa.array([3, 5], pa.uint32()),
        pa.array([3, 5], pa.int32()),
        pa.array([2**64 - 7, 5], pa.uint64()),
    ):
        write(tmp_path, {**base, "hash": ids})
        assert read_all(config(tmp_path))["sample_id"].to_pylist() == [-7 if ids.type == pa.uint64() else 3, 5]


def test_columns_can_be_ignored_that_nothing_needs(tmp_path: Path) -> None:
    write(tmp_path, {**BASE, "LANGUAGE": [1, 2, 3], "lang": ["de", "fr", "it"]})
    with pytest.raises(AltDiffusionError, match="two columns for source_language"):
        scan_source(config(tmp_path))
    assert read_all(config(tmp_path, ignore=("source_language",)))["source_language"].null_count == 3
    write(tmp_path, {**BASE, "punsafe": ["a", "b", "c"]})
    with pytest.raises(AltDiffusionError, match=r"'punsafe' is string, not a number.*ignore: \[punsafe\]"):
        scan_source(config(tmp_path))
    assert read_all(config(tmp_path, ignore=("punsafe",)))["punsafe"].null_count == 3
    for wrong, why in ((("hash",), "not one of the choices"), (("url",), "promises")):
        with pytest.raises(ValueError, match=f"ignore.*{why}"):
            config(tmp_path, ignore=wrong)
    with pytest.raises(ValueError, match="ignore: contains punsafe, which `columns` maps"):
        config(tmp_path, ignore=("punsafe",), columns={"punsafe": "p"})


@pytest.mark.parametrize("name", ["WIDTH", "HEIGHT"])
def test_a_missing_size_is_named_as_published(tmp_path: Path, name: str) -> None:
    write(tmp_path, {column: values for column, values in BASE.items() if column != name})
    with pytest.raises(AltDiffusionError, match=f"lacks column '{name}' or 'ORIGINAL_{name}'; it has URL"):
        scan_source(config(tmp_path))


def spark_folder(path: Path, parts: int = 3) -> Path:
    """Write a folder as Spark leaves it: parts, their checksums, and marks of the writer."""
    for number in range(parts):
        rows = {name: [f"http://a/{number}" if name == "URL" else values[0]] for name, values in BASE.items()}
        write(path, rows, f"part-0000{number}-a1b2-c000.snappy.parquet", compression="snappy")
        (path / f".part-0000{number}-a1b2-c000.snappy.parquet.crc").write_bytes(b"crc\0")
    for mark in ("_SUCCESS", "_committed_123", "_started_123", "._SUCCESS.crc"):
        (path / mark).write_text("")
    return path


def test_a_folder_that_is_named_like_a_file_stands_for_its_parts(tmp_path: Path) -> None:
    spark_folder(tmp_path / "links.parquet")
    write(tmp_path, BASE, "more.parquet")
    urls = [f"http://a/{number}" for number in range(3)]
    for uri, expected in (
        ("*.parquet", [*urls, *BASE["URL"]]), ("links.parquet", urls), ("links.parquet/", urls),
        ("links.parquet/*", urls), ("links.parquet/*.parquet", urls), ("*/part-*", urls),
    ):  # fmt: skip
        assert read_all(config(tmp_path, uri=str(tmp_path) + "/" + uri))["url"].to_pylist() == expected
    assert [part.name for part in scan_source(config(tmp_path)).parts][:1] == ["part-00000-a1b2-c000.snappy.parquet"]


def hive_folder(path: Path) -> Path:
    for label in ("de", "pt-BR", "__HIVE_DEFAULT_PARTITION__"):
        spark_folder(path / f"lang={label}", parts=1)
    (path / "_SUCCESS").write_text("")
    return path


def test_columns_in_the_names_of_folders_are_read(tmp_path: Path) -> None:
    hive_folder(tmp_path / "hive.parquet")
    scan = scan_source(config(tmp_path))
    assert [part.partition for part in scan.parts] == [{"lang": None}, {"lang": "de"}, {"lang": "pt-BR"}]
    assert len({part.identity for part in scan.parts}) == 3  # the same rows, in other folders
    assert read_all(config(tmp_path))["source_language"].to_pylist() == [None, "de", "pt-br"]
    moved = tmp_path / "elsewhere"
    (tmp_path / "hive.parquet").rename(moved)
    assert scan_source(config(tmp_path, uri=str(moved))).ref.digest == scan.ref.digest


def test_a_folder_that_is_not_a_finished_table_is_an_error(tmp_path: Path) -> None:
    folder = spark_folder(tmp_path / "a.parquet")
    (folder / "_temporary" / "0").mkdir(parents=True)
    with pytest.raises(AltDiffusionError, match=r"a\.parquet: is still being written"):
        scan_source(config(tmp_path))
    (folder / "_temporary" / "0").rmdir()
    (folder / "_temporary").rmdir()
    spark_folder(folder / "deutsch")
    with pytest.raises(AltDiffusionError, match=r"holds a folder, 'deutsch', that is not column=value"):
        scan_source(config(tmp_path))
    with pytest.raises(AltDiffusionError, match=r"is partitioned by 'lang', whose values .* would be lost"):
        find_parts(str(hive_folder(tmp_path / "hive.parquet")), "corpus c")
    empty = tmp_path / "empty"
    (empty / "b.parquet").mkdir(parents=True)
    spark_folder(empty / "b.parquet", parts=0)
    with pytest.raises(AltDiffusionError, match=r"b\.parquet: holds no part"):
        scan_source(config(empty))
    (empty / "b.parquet" / "part-0.orc").write_text("url,text\n")
    with pytest.raises(AltDiffusionError, match=r"part-0\.orc: is not a Parquet file"):
        scan_source(config(empty))


def test_a_row_without_a_label_gets_the_sources(tmp_path: Path) -> None:
    write(tmp_path, {**BASE, "LANGUAGE": ["de", None, ""]})
    assert read_all(config(tmp_path))["source_language"].to_pylist() == ["de", None, None]
    assert read_all(config(tmp_path, language="en"))["source_language"].to_pylist() == ["de", "en", "en"]


@pytest.mark.parametrize(
    ("label", "code"),
    [("iw", "he"), ("ru-Latn", "ru"), ("bg-latn", "bg"), ("zh_CN", "zh"), ("zh-TW", "zh"), (" DE ", "de"), ("jw", "jv"),
     ("in", "id"), ("ji", "yi"), ("", None), ("unknown", None), ("und", None), ("nolang", None), (None, None),
     ("pt-BR", "pt-br")],
)  # fmt: skip
def test_labels_become_plain_codes(label: str | None, code: str | None) -> None:
    found = normalised(
        {"url": pa.array(["x"]), "caption": pa.array(["y"]), "source_language": pa.array([label], pa.string())}
    )
    assert found["source_language"].to_pylist() == [code]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_asks_for_its_columns_and_knows_its_sizes_and_labels(preset: str, tmp_path: Path) -> None:
    """A part with exactly what the preset promises is read; without any one of these it is refused by name."""
    shape = PRESETS[preset]
    mapped = {"url": "link", "caption": "alt"}
    given: dict[str, Any] = {"columns": mapped} if preset == "columns" else {}
    (tmp_path / "list").write_text("hash:0")
    digest = hashlib.sha256(b"hash:0").hexdigest()
    if shape.published:
        given |= {"blocklist": str(tmp_path / "list"), "blocklist_sha256": digest}
    source = config(tmp_path, preset=preset, **given)
    values: dict[str, Any] = {
        "url": "http://a/1", "caption": "x", "width": 2, "height": 1, "similarity": 0.3, "source_language": "de",
        "sample_id": 7, "pwatermark": 0.1, "punsafe": 0.2, "aesthetic": 7.5,
    }  # fmt: skip
    names = {
        name: mapped.get(name, "") if preset == "columns" else ALIASES[name][-1].upper() for name in shape.requires
    }
    write(tmp_path, {column: [values[name]] for name, column in names.items()})
    (row,) = read_all(source).to_pylist()
    assert all(row[name] == values[name] for name in shape.requires if name not in ("width", "height"))
    if "width" in shape.requires:
        assert (row["width"], row["height"]) == ((1, 2) if shape.swapped_sizes else (2, 1))
    if "source_language" not in shape.requires:
        assert row["source_language"] == ("en" if "2b-en" in preset else None)
    assert shape.swapped_sizes == (preset in ("laion-base", "laion2b-en", "laion2b-multi", "laion1b-nolang"))
    for name, column in names.items():
        write(tmp_path, {other: [values[ours]] for ours, other in names.items() if ours != name})
        with pytest.raises(AltDiffusionError, match=f"lacks column '{column if preset == 'columns' else '.*'}'"):
            scan_source(source)


def test_the_names_of_published_sets() -> None:
    for name in ("2b-en", "2b-multi", "1b-nolang"):
        for kind in (f"laion{name}", f"laion{name}-joined", f"laion{name}-aesthetic", f"relaion{name}-research-safe"):
            assert PRESETS[kind].published
            assert ("source_language" in PRESETS[kind].requires) == (kind.startswith("laion2b-multi"))
            assert PRESETS[kind].safe == kind.endswith("-research-safe")


def test_any_parquet_is_read_by_a_column_map(tmp_path: Path) -> None:
    """COYO's columns, next to one of LAION's names that means something else here."""
    columns = {
        "url": "url", "caption": "text", "width": "width", "height": "height", "similarity": "clip_similarity_vitb32",
        "pwatermark": "watermark_score", "phash": "image_phash", "sha256": "sha",
    }  # fmt: skip
    table = {
        "url": ["http://a/1"] * 5, "text": ["x"] * 5, "width": [9] * 5, "height": [8] * 5,
        "clip_similarity_vitb32": pa.array([0.25] * 5, pa.float32()), "watermark_score": [0.5] * 5, "hash": ["?"] * 5,
        "image_phash": ["9F91e133b1924e4e", "9f91e133b1924e4", None, "9f91e133b1924e4e", "9f91e133b1924e4e"],
        "sha": ["", "AB" * 32, None, "zz" * 32, None],
    }  # fmt: skip
    (tmp_path / "list").write_text("hash:0")
    given = {"blocklist": str(tmp_path / "list"), "blocklist_sha256": hashlib.sha256(b"hash:0").hexdigest()}
    source = config(tmp_path, preset="columns", columns=columns, **given)
    write(tmp_path, table)
    rows = read_all(source)
    assert rows["similarity"].to_pylist() == [0.25] * 5 and rows["pwatermark"].to_pylist() == [0.5] * 5
    assert rows["sample_id"].to_pylist() == [mmh3.hash64("http://a/1x")[0]] * 5
    phash = "phash:9f91e133b1924e4e"
    assert rows["expected_hash"].to_pylist() == [phash, "sha256:" + "ab" * 32, None, phash, phash]
    with pytest.raises(AltDiffusionError, match=r"lacks column 'gone'.*correct `columns.width` of source crawl"):
        read_all(config(tmp_path, preset="columns", columns={**columns, "width": "gone"}, **given))
    with pytest.raises(AltDiffusionError, match="column 'sha' is int64, not text"):
        write(tmp_path, {**table, "sha": [1] * 5})
        scan_source(source)


def test_an_expected_hash_is_one_of_three_kinds(tmp_path: Path) -> None:
    given = [
        "sha256:" + "0" * 64,
        " MD5:" + "A" * 32,
        "phash:" + "f" * 16,
        "sha1:" + "0" * 40,
        "md5:" + "0" * 31,
        "",
        None,
    ]
    write(
        tmp_path,
        {name: (column * 3)[:7] for name, column in BASE.items()} | {"Expected_Hash": given, "sum": ["1" * 32] * 7},
    )
    found = read_all(config(tmp_path))["expected_hash"].to_pylist()
    assert found == ["sha256:" + "0" * 64, "md5:" + "a" * 32, "phash:" + "f" * 16, None, None, None, None]
    found = read_all(config(tmp_path, columns={"md5": "sum"}))["expected_hash"].to_pylist()
    assert found[:3] == ["sha256:" + "0" * 64, "md5:" + "a" * 32, "phash:" + "f" * 16] and found[3] == "md5:" + "1" * 32


def test_original_sizes_come_before_those_of_a_copy() -> None:
    schema = pa.schema(
        [(name, pa.string()) for name in ("url", "TEXT")]
        + [(name, pa.int32()) for name in ("width", "height", "original_width", "original_height")]
        + [("similarity", pa.float32())]
    )
    found = resolve_columns(schema, SourceConfig(name="s", uri="x", swapped_sizes=False), "part")
    assert (found["width"], found["height"]) == ("original_width", "original_height")
    found = resolve_columns(schema, SourceConfig(name="s", uri="x", columns={"width": "width"}), "part")
    assert (found["width"], found["height"]) == ("original_height", "width")  # swapped, as the base release is
    with pytest.raises(AltDiffusionError, match=r"two columns for caption: 'TEXT', 'caption'.*`columns: \{caption"):
        resolve_columns(pa.schema([*schema, ("caption", pa.string())]), SourceConfig(name="s", uri="x"), "part")


def test_a_filter_without_its_column_is_refused_before_any_row_is_read(tmp_path: Path) -> None:
    write(tmp_path, BASE, "part-0.parquet")
    write(tmp_path, {**BASE, "punsafe": [0.1] * 3}, "part-1.parquet")
    with pytest.raises(AltDiffusionError, match=r"part-0\.parquet: has no column for punsafe, which .* source crawl"):
        scan_source(config(tmp_path), SelectConfig(punsafe_below=0.5, pwatermark_below=None))
    assert scan_source(config(tmp_path), SelectConfig(punsafe_below=None, pwatermark_below=None)).rows == 6


def test_what_was_found_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "a", BASE, row_group_size=2)
    write(tmp_path / "b", BASE, write_statistics=["WIDTH"])
    scans = [
        scan_source(config(tmp_path / "a", name="a", rows_per_unit=1)),
        scan_source(config(tmp_path / "b", name="b")),
    ]
    assert describe_sources(scans) == [
        "source a: 3 rows in 1 parts and 2 row groups, 3 units; statistics: width, height, similarity; "
        "row groups of 2 rows are read once for each unit in them",
        "source b: 3 rows in 1 parts and 1 row groups, 1 units; statistics: height",  # the base release is swapped
    ]


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
    found = normalised(
        {
            "url": pa.array(texts, pa.string()),
            "caption": pa.array(texts, pa.string()),
            "width": pa.array(sizes, pa.float64()),
            "height": pa.array(sizes, pa.float64()),
            "similarity": pa.array(scores, pa.float64()),
            "sample_id": pa.array(ids, pa.int64()),
        }
    )
    assert found["width"].to_pylist() == [size_oracle(size) for size in sizes]
    assert found["similarity"].to_pylist() == [None if s is None or math.isnan(s) else s for s in scores]
    assert found["sample_id"].to_pylist() == [
        mmh3.hash64((text or "") * 2)[0] if given is None else given for given, text in zip(ids, texts, strict=True)
    ]


def test_text_that_is_not_utf8_rejects_its_row_and_is_never_changed(tmp_path: Path) -> None:
    broken = unchecked([b"gut", b"b\xffse", None])
    write(tmp_path, {**BASE, "TEXT": broken})
    rows = read_all(config(tmp_path))
    assert rows["caption"].to_pylist() == ["gut", None, None]
    accepted, rejects = split(believing(every_row()), rows, "unit")
    assert accepted["caption"].to_pylist() == ["gut"]
    assert rejects.select(["row", "reason", "detail"]).to_pylist() == [
        {"row": 1, "reason": "caption_bytes", "detail": "byte 1 is not UTF-8"},
        {"row": 2, "reason": "url_scheme", "detail": None},
    ]
    write(tmp_path, {**BASE, "URL": broken})
    _, rejects = split(believing(every_row()), read_all(config(tmp_path)), "unit")
    found = dict(zip(rejects["row"].to_pylist(), rejects["reason"].to_pylist(), strict=True))
    assert found[1] == "bad_url" and found[2] == "url_scheme"


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 30))
def test_units_cover_every_row_once_in_order(groups: list[int], limit: int) -> None:
    part = Part(uri="x", name="x", digest="d", group_rows=np.array(groups, np.int64))
    source = SourceConfig(name="s", uri="x", rows_per_unit=limit)
    scan = SourceScan(config=source, parts=(part, part))
    units = plan_sources([scan])
    assert scan.units == len(units) and scan.rows == 2 * sum(groups)
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
    assert first.ref == second.ref  # the folder is not part of it
    assert [unit.id for unit in plan_sources([first])] == [unit.id for unit in plan_sources([second])]
    write(tmp_path / "b", {**BASE, "TEXT": ["one", "two", "three"]})
    assert scan_source(config(tmp_path / "b")).ref != first.ref
    body = bytearray(path.read_bytes())
    assert body[:4] == b"PAR1"
    body[4:40] = bytes(36)  # damage in the data, not in the footer: planning does not see it, reading does
    path.write_bytes(body)
    assert scan_source(config(tmp_path / "a")).ref == first.ref
    with pytest.raises(AltDiffusionError, match=r"part-0\.parquet.*cannot be read.*Remedy: fetch this part again"):
        read_all(config(tmp_path / "a"))


def test_many_parts_come_in_the_order_of_their_names_each_footer_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in reversed(range(30)):
        write(tmp_path, pa.table(BASE).slice(0, number % 3), f"part-{number:03d}.parquet")
    fetched: list[str] = []
    fetch = module.fetch_footer
    monkeypatch.setattr(module, "fetch_footer", lambda file, uri: (fetched.append(uri), fetch(file, uri))[1])
    scan = scan_source(config(tmp_path))
    assert [part.name for part in scan.parts] == [f"part-{number:03d}.parquet" for number in range(30)]
    assert [part.rows for part in scan.parts] == [number % 3 for number in range(30)]
    assert sorted(fetched) == [part.uri for part in scan.parts]
    (tmp_path / "part-004.parquet").write_bytes(b"no Parquet")
    with pytest.raises(AltDiffusionError, match=r"part-004\.parquet: is not a Parquet file"):
        scan_source(config(tmp_path))


def test_a_footer_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    rows = 3_000
    table = pa.table({**{name: (values * rows)[:rows] for name, values in BASE.items()}, "note": ["x" * 100] * rows})
    path = write(tmp_path, table, row_group_size=2)
    raw = path.read_bytes()
    assert int.from_bytes(raw[-8:-4], "little") > 1 << 17
    assert scan_source(config(tmp_path)).parts[0].group_rows.tolist() == [2] * (rows // 2)
    assert read_all(config(tmp_path, rows_per_unit=1000)).num_rows == rows


@pytest.mark.parametrize("of", ["column", "schema", "a later column"])
def test_a_footer_that_ends_the_process_that_reads_it_is_named(of: str, tmp_path: Path) -> None:
    """pyarrow calls `abort` for it: a physical type in a column's statistics that is not the schema's."""
    write(tmp_path, BASE, "part-0.parquet")
    path = write(tmp_path, pa.table(BASE).cast(ints_of_32()), "part-1.parquet", store_schema=False, row_group_size=2)
    raw = bytearray(path.read_bytes())
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    # The compact protocol of Thrift: field 1 of a schema element is its type, as field 1 of a column's metadata is.
    pattern = {
        "schema": rb"\x15\x02(?=\x25\x02\x18\x05WIDTH)",
        "column": rb"\x1c\x15\x02(?=\x19.{3,5}\x19\x18\x05WIDTH)",
    }
    places = list(re.finditer(pattern[of.split()[-1]], bytes(raw[start:]), re.DOTALL))
    assert len(places) == (1 if of == "schema" else 2)  # of two row groups
    found = places[-1] if "later" in of else places[0]
    raw[start + found.end() - 1] = 4  # INT64 for INT32
    path.write_bytes(raw)
    code = (
        "from altdiffusion.curation.config import SourceConfig\n"
        "from altdiffusion.curation.links.reader import open_unit\n"
        "from altdiffusion.curation.links.sources import scan_source\n"
        f"config = SourceConfig(name='crawl', uri={config(tmp_path).uri!r})\n"
        "*_, part = scan_source(config).parts\n"
        "print('planned')\n"  # by the first row group of each part; a unit looks at its own
        "with open_unit(part.uri, part.digest, 0, part.rows, config) as unit:\n"
        "    print([unit.bounds(group) for group in unit.groups])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ("planned\n" if "later" in of else "")
    *_, last = ended.stderr.splitlines()
    assert last.startswith("error: source part ") and "part-1.parquet: has a footer that contradicts itself" in last
    assert "Remedy: fetch this part again" in last


def ints_of_32() -> pa.Schema:
    types = {name: pa.array(values).type for name, values in BASE.items()}
    return pa.schema([(name, pa.int32() if pa.types.is_integer(kind) else kind) for name, kind in types.items()])


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
    assert "part-7.parquet: is not a Parquet file (4 bytes)" in problem()
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
    (unit,) = plan_sources([scan_source(source)])
    write(tmp_path, pa.table(BASE).slice(0, 2))
    with pytest.raises(AltDiffusionError, match=r"part-0\.parquet: changed since planning.*run the job again"):
        read_unit(unit, source)
    path.unlink()
    with pytest.raises(AltDiffusionError, match=r"part-0\.parquet: cannot be read"):
        read_unit(unit, source)
