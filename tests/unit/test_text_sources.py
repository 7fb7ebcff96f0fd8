"""Links in CSV, TSV, JSON lines and plain lines, packed or not: the rows are those of the same table in Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from altdiffusion.curation.config import SourceConfig
from altdiffusion.curation.config.select import every_row
from altdiffusion.curation.links import text_parts
from altdiffusion.curation.links.sources import plan_sources, scan_source
from altdiffusion.errors import AltDiffusionError
from tests.source_rows import read_all

ROWS: list[dict[str, Any]] = [
    {
        "URL": f"http://a/{number}.jpg",
        "TEXT": ['рудий кіт, "Мурчик"', "two\nlines", '5" nails', "ein Haus"][number % 4],
        "WIDTH": 600 + number, "HEIGHT": 400, "similarity": None if number == 3 else 0.25, "LANGUAGE": "uk",
    }
    for number in range(11)
]  # fmt: skip


def delimited(separator: str) -> Callable[[], str]:
    def write() -> str:
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(ROWS[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(ROWS)
        return out.getvalue()

    return write


def json_lines() -> str:
    return "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


WRITERS: dict[str, Callable[[], str]] = {"csv": delimited(","), "tsv": delimited("\t"), "jsonl": json_lines}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def source(path: Path, **given: Any) -> SourceConfig:
    return SourceConfig(**{"name": "s", "uri": str(path), "preset": "own", "rows_per_unit": 4, **given})


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", WRITERS)
def test_rows_of_text_parts(kind: str, packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_parts, "BLOCK_ROWS", 3)
    path = tmp_path / f"links.{kind}{packed}"
    path.write_bytes(PACKED[packed](b"\xef\xbb\xbf" + WRITERS[kind]().encode()))
    config = source(path)
    rows = read_all(config)
    assert rows["url"].to_pylist() == [row["URL"] for row in ROWS]
    assert rows["caption"].to_pylist() == [row["TEXT"] for row in ROWS]
    assert rows["width"].to_pylist() == [row["WIDTH"] for row in ROWS]
    assert rows["similarity"].to_pylist() == [row["similarity"] for row in ROWS]
    assert rows["source_language"].to_pylist() == ["uk"] * 11
    assert [unit.payload["stop"] for unit in plan_sources([scan_source(config)])] == [3, 6, 9, 11]


def test_the_digest_is_of_the_lines_and_a_change_is_noticed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.csv", tmp_path / "b" / "a.csv.gz"
    packed.parent.mkdir()
    plain.write_text(WRITERS["csv"](), newline="")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert scan_source(source(plain)).parts[0].digest == scan_source(source(packed)).parts[0].digest
    units = plan_sources([scan_source(source(plain))])
    plain.write_text(WRITERS["csv"]().replace("600", "601"), newline="")
    from tests.source_rows import read_unit

    with pytest.raises(AltDiffusionError, match="changed since planning"):
        read_unit(units[0], source(plain))


def test_lines_of_addresses(tmp_path: Path) -> None:
    path = tmp_path / "links.txt"
    path.write_text("http://a/1.jpg\tein Haus am See\r\n\r\nhttp://a/2.jpg  zwei Wörter\nhttp://a/3.jpg\n")
    rows = read_all(source(path))
    assert rows["url"].to_pylist() == ["http://a/1.jpg", "http://a/2.jpg", "http://a/3.jpg"]
    assert rows["caption"].to_pylist() == ["ein Haus am See", "zwei Wörter", None]


@pytest.mark.parametrize(
    ("name", "body", "why"),
    [
        ("a.txt", b"http://a/1.jpg\nhttp://a/2.jpg\n", "holds addresses alone"),
        ("a.csv", "url,text\n".encode("utf-16"), "is UTF-16"),
        ("a.csv", "url,caption\nhttp://a/1,a\nhttp://a/2,café\n".encode("latin-1"), "is not UTF-8 in line 3.*iconv"),
        ("a.txt", "http://a/1 кіт\n".encode("cp1251"), "is not UTF-8 in line 1"),
        ("a.csv", b"url,caption\nhttp://a/1,a,b\n", "row of 3 cells near line 2, for 2 columns"),
        ("a.csv", b"link,caption\nhttp://a/1,a\n", "lacks column 'URL'; it has link, caption"),
        ("a.csv", b"url,url\n", "two columns of one name"),
        ("a.csv", b"url,caption\n", "holds no row"),
        ("a.jsonl", b'{"url": "http://a/1", "caption": "a"}\n{"url": \n', "a line that is not JSON"),
        ("a.jsonl", b"[1]\n", "a line that is not an object"),
        ("a.csv.gz", gzip.compress(b"url,caption\n" + b"http://a/1,abc\n" * 999, mtime=0)[:-20], "cannot be read"),
        ("a.csv.gz", b"url,caption\nhttp://a/1,abc\n", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(name: str, body: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(AltDiffusionError, match=why):
        scan_source(source(tmp_path / name), every_row())


@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        ("a.csv", b"", "holds no row"),
        ("a.csv", b"url,caption\n", "holds no row"),
        ("a.jpg", b"x", "is an image"),
        ("a.csv.gz", gzip.compress(b"url,caption\nhttp://a/1,x\n" * 50, mtime=0)[:30], "cannot be read"),
        ("a.jsonl", b'[{"url": "http://a/1", "text": "x"}]', "not an object"),
    ],
)
def test_what_is_no_list_of_links(tmp_path: Path, name: str, body: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(AltDiffusionError, match=problem):
        scan_source(source(tmp_path / name))
