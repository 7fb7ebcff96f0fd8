"""`dataset export`: what stock readers of img2dataset's output find is every row of the version, in its order."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.image_files.image_export import export_images
from altdiffusion.records import LINKS, SCHEMAS, Kind
from altdiffusion.storage.dataset import Lake, Version
from tests.image_lake import ROWS, body, publish
from tests.lineage_lake import publish as publish_rows


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def check_meta(meta: dict[str, Any], row: int, key: str) -> None:
    assert (meta["key"], meta["status"], meta["error_message"]) == (key, "success", None)
    assert (meta["width"], meta["height"], meta["original_width"]) == (6, 4, 100 + row)
    assert (meta["source_width"], meta["source_height"]) == (1000, None)
    assert (meta["sha256"], meta["sample_id"], meta["phash"]) == (f"{row:064x}", row - 5, -row)
    assert meta["caption"] == f"제목 {row}\n\"'" and meta["url"] == f"url {row}"
    assert "image" not in meta and "image_format" not in meta


def check_shards(folder: Path, counts: list[int]) -> None:
    for shard, count in enumerate(counts):
        stats = json.loads((folder / f"{shard:05}_stats.json").read_text())
        assert (stats["count"], stats["successes"], stats["status_dict"]) == (count, count, {"success": count})
        assert stats["failed_to_download"] == stats["failed_to_resize"] == 0
        rows = pq.read_table(folder / f"{shard:05}.parquet").to_pylist()
        assert len(rows) == count
        for at, meta in enumerate(rows):
            check_meta({k: v for k, v in meta.items() if k != "png"}, shard * 10 + at, f"{shard:05}{at}")


def test_webdataset_is_read_by_webdataset_and_by_tar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import webdataset

    version = publish(str(tmp_path / "lake"))
    out = tmp_path / "out"
    command = ["dataset", "export", f"images@{version.ref.digest[:12]}", "--format", "webdataset", "--output", str(out)]
    assert main([*command, "--rows-per-shard", "10", "--lake", str(tmp_path / "lake")]) == 0
    assert capsys.readouterr().out == f"{version.ref.short} -> {out}: 23 rows, 3 shards of webdataset\n"
    assert names(out) == [f"0000{n}{end}" for n in range(3) for end in (".parquet", ".tar", "_stats.json")]
    check_shards(out, [10, 10, 3])
    samples = list(
        webdataset.WebDataset([str(out / f"0000{n}.tar") for n in range(3)], shardshuffle=False).decode("pil")
    )
    assert [sample["__key__"] for sample in samples] == [f"{n:06}" for n in range(ROWS)]
    for row, sample in enumerate(samples):
        assert sample["txt"] == f"제목 {row}\n\"'" and sample["png"].getpixel((0, 0)) == (row * 9,) * 3
        check_meta(sample["json"], row, f"{row:06}")
    with tarfile.open(out / "00002.tar") as tar:
        assert sorted(tar.getnames()) == [f"00002{n}.{end}" for n in range(3) for end in ("json", "png", "txt")]
        stored = tar.extractfile("000020.png")
        assert stored is not None and stored.read() == body(20)


def test_files_are_one_folder_per_shard(tmp_path: Path) -> None:
    version = publish(str(tmp_path / "lake"))
    out = tmp_path / "out"
    assert export_images(version, str(out), "files", rows_per_shard=10).rows == ROWS
    check_shards(out, [10, 10, 3])
    for row in range(ROWS):
        path = out / f"{row // 10:05}" / f"{row:06}.png"
        assert path.read_bytes() == body(row)
        assert path.with_suffix(".txt").read_text(encoding="utf-8") == f"제목 {row}\n\"'"
        check_meta(json.loads(path.with_suffix(".json").read_text()), row, f"{row:06}")
    assert len(names(out)) == 3 * ROWS + 2 * 3


def test_parquet_holds_the_images(tmp_path: Path) -> None:
    version = publish(str(tmp_path / "lake"))
    out = tmp_path / "out"
    assert export_images(version, f"{out}/", "parquet", rows_per_shard=10).shards == 3
    check_shards(out, [10, 10, 3])
    tables = [pq.read_table(out / f"0000{n}.parquet", columns=["png"]) for n in range(3)]
    assert pa.concat_tables(tables)["png"].to_pylist() == [body(row) for row in range(ROWS)]
    assert len(names(out)) == 6


def test_an_image_folder_is_read_by_datasets(tmp_path: Path) -> None:
    version = publish(str(tmp_path / "lake"))
    out = tmp_path / "out"
    assert export_images(version, str(out), "imagefolder", rows_per_shard=10).shards == 3
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert [line["file_name"] for line in lines] == [f"{n // 10:05}/{n:06}.png" for n in range(ROWS)]
    for row, line in enumerate(lines):
        assert (out / line["file_name"]).read_bytes() == body(row) and "image" not in line
        check_meta({**line, "key": "", "status": "success", "error_message": None}, row, "")
    import datasets

    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert [(one["caption"], one["phash"]) for one in loaded] == [(f"제목 {n}\n\"'", -n) for n in range(ROWS)]
    assert [one["image"].getpixel((0, 0)) for one in loaded] == [(n * 9,) * 3 for n in range(ROWS)]


def test_an_image_folder_may_hold_several_formats(tmp_path: Path) -> None:
    version = publish(str(tmp_path / "lake"), formats=("png", "jpg"))
    assert export_images(version, str(tmp_path / "out"), "imagefolder").rows == ROWS
    assert [name[-3:] for name in names(tmp_path / "out")[:2]] == ["png", "jpg"]


def test_parquet_is_read_by_pandas_and_duckdb(tmp_path: Path) -> None:
    import pandas

    version = publish(str(tmp_path / "lake"))
    export_images(version, str(tmp_path / "out"), "parquet", rows_per_shard=10)
    frame = pandas.concat([pandas.read_parquet(path) for path in sorted((tmp_path / "out").glob("*.parquet"))])
    assert list(frame["phash"]) == [-row for row in range(ROWS)] and frame["png"].iloc[3] == body(3)
    import duckdb

    query = f"SELECT count(*), max(phash) FROM '{tmp_path}/out/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(ROWS, 0)]


def test_any_address_of_fsspec_will_do(tmp_path: Path) -> None:
    import fsspec

    version = publish(str(tmp_path / "lake"))
    memory = fsspec.filesystem("memory")
    for format in ("webdataset", "files", "parquet", "imagefolder"):
        if format == "imagefolder":
            assert export_images(version, f"memory://export/{format}", format).rows == ROWS
            assert memory.cat_file(f"/export/{format}/metadata.jsonl").count(b"\n") == ROWS
            continue
        assert export_images(version, f"memory://export/{format}", format).shards == 1  # type: ignore[arg-type]
        stats = json.loads(memory.cat_file(f"/export/{format}/00000_stats.json"))
        assert stats["successes"] == ROWS
    with tarfile.open(fileobj=io.BytesIO(memory.cat_file("/export/webdataset/00000.tar"))) as tar:
        assert len(tar.getnames()) == 3 * ROWS


def test_what_cannot_be_exported_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    mixed = publish(str(tmp_path / "mixed"), formats=("png", "jpg"))
    with pytest.raises(AltDiffusionError, match="is jpg, the first one of its shard is png"):
        export_images(mixed, str(tmp_path / "a"), "files")
    assert not (tmp_path / "a" / "00000_stats.json").exists()  # so that no reader takes the shard for complete
    version = publish(str(tmp_path / "lake"))
    for place, problem in (("a", "is not empty"), ("lake", "is in the lake"), ("lake/datasets/x", "is in the lake")):
        with pytest.raises(AltDiffusionError, match=problem):
            export_images(version, str(tmp_path / place), "files")
    (tmp_path / "file").write_text("x")
    with pytest.raises(AltDiffusionError, match="is a file"):
        export_images(version, str(tmp_path / "file"), "parquet")
    with pytest.raises(AltDiffusionError, match="--rows-per-shard"):
        export_images(version, str(tmp_path / "b"), "files", rows_per_shard=0)
    assert not (tmp_path / "b").exists()
    links = Lake(str(tmp_path / "lake")).dataset("links").publish(
        kind="links", records=[], parents=[], config={}, fingerprint="f"
    )  # fmt: skip
    with pytest.raises(AltDiffusionError, match=r"(?s)is of kind links.*--format parquet.*images or generations"):
        export_images(links, str(tmp_path / "b"), "files")
    assert export_images(links, str(tmp_path / "b"), "parquet").rows == 0
    assert pq.read_table(tmp_path / "b/00000.parquet").schema.equals(LINKS)


def small_rows() -> list[dict[str, Any]]:
    return [
        {"language": ("uk", "hi")[row % 2], "sample_id": row, "id": f"p{row}", "caption": "кіт"} for row in range(7)
    ]


@pytest.mark.parametrize("kind", ["links", "latents", "prompts", "scores", "kept"])
def test_other_kinds_are_parquet_for_any_reader(tmp_path: Path, kind: Kind) -> None:
    import datasets
    import duckdb
    import pandas

    lake, out = Lake(str(tmp_path / "lake")), tmp_path / "out"
    rows = [{name: value for name, value in row.items() if name in SCHEMAS[kind].names} for row in small_rows()]
    version = publish_rows(lake, "rows", kind, rows, [])
    line = ["dataset", "export", "rows", "--format", "parquet", "--output", str(out), "--rows-per-shard", "3"]
    assert main([*line, "--lake", lake.uri]) == 0
    assert names(out) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    stored = version.read()
    assert pq.read_table(out).equals(stored) and pq.read_schema(out / "00000.parquet").field(0).metadata
    key = "id" if "id" in stored.column_names else "sample_id"
    assert list(pandas.read_parquet(out)[key]) == stored[key].to_pylist()
    assert [row[0] for row in duckdb.sql(f"SELECT {key} FROM '{out}/*.parquet' ORDER BY 1").fetchall()] == sorted(
        stored[key].to_pylist()
    )
    loaded = datasets.load_dataset("parquet", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(loaded[key]) == stored[key].to_pylist()


def test_a_manifest_that_states_other_rows_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(str(tmp_path / "lake"))
    monkeypatch.setattr(Version, "rows", ROWS + 1)
    with pytest.raises(AltDiffusionError, match="holds 23 rows, its manifest states 24"):
        export_images(version, str(tmp_path / "out"), "webdataset")
