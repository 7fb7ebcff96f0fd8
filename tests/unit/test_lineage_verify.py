"""`lineage verify` and rows as references: every damage on the way is found, wherever it is, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.cli import main
from altdiffusion.storage import files
from altdiffusion.storage.seals import with_checksum
from tests.flipped import flip
from tests.lineage_lake import SOURCE, SmallLake


@pytest.fixture
def small(tmp_path: Path) -> SmallLake:
    small = SmallLake(tmp_path / "lake")
    folder = tmp_path / "lake/exports/quality/step-00000100"
    (folder / "unet.bin").write_bytes(b"weights")
    listing = {"unet.bin": files.sha256_hex(b"weights")}
    content = files.sha256_hex(files.canonical_json(listing))
    lineage = {"parents": [str(small.quality)], "stage": "quality", "content": content}
    (folder / "lineage.json").write_bytes(files.canonical_json(with_checksum(lineage)))
    return small


def verify(small: SmallLake, capsys: pytest.CaptureFixture[str], ref: object, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    status = main(["lineage", "verify", str(ref), "--lake", small.uri, "--json", *options])
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert status == (1 if value["damaged"] else 0)
    return value


def test_every_file_on_the_way_is_read_and_each_damage_is_found(
    small: SmallLake, capsys: pytest.CaptureFixture[str]
) -> None:
    export = "export:quality/step-00000100"
    whole = verify(small, capsys, export)
    assert whole["damaged"] == []
    unchecked = {one["ref"] for one in whole["things"] if not one["files"]}
    assert {ref.partition("@")[0] for ref in unchecked} == {"source:crawl", "model:base"}
    lake = Path(small.uri)
    names = ("links", "images", "latents")
    wanted = [path for name in names for path in (lake / "datasets" / name).rglob("*.parquet")]
    wanted += [path for name in names for path in (lake / "datasets" / name / "versions").rglob("manifest.json")]
    wanted += (lake / "checkpoints").glob("alignment/step-*/*.json")
    wanted += (lake / "checkpoints").glob("quality/step-00000100/*.json")
    wanted += (lake / "exports").rglob("*.*")
    wanted = [path for path in wanted if path.is_file()]
    assert (whole["files"], whole["bytes"]) == (len(wanted), sum(path.stat().st_size for path in wanted))
    for path in wanted:
        kept = path.read_bytes()
        flip(path)
        assert verify(small, capsys, export)["damaged"], path
        path.unlink()
        if path.name not in ("COMPLETE.json", "lineage.json") or "quality" not in str(path):  # else it is not there
            assert verify(small, capsys, export)["damaged"], path
        path.write_bytes(kept)
    assert verify(small, capsys, export)["damaged"] == []


def test_a_shallow_proof_reads_no_shard(small: SmallLake, capsys: pytest.CaptureFixture[str]) -> None:
    flip(next(Path(small.uri, "datasets/links/shards").iterdir()))
    assert verify(small, capsys, small.quality, "--shallow")["damaged"] == []
    (damage,) = verify(small, capsys, small.quality)["damaged"]
    assert "links/shards" in damage
    assert main(["lineage", "verify", "quality", "--lake", small.uri]) == 1
    out = capsys.readouterr().out
    assert "damaged     dataset:links@" in out and "1 damaged or missing; 2 things not" in out
    assert main(["lineage", "verify", "no-such-thing", "--lake", small.uri]) == 2


LINK = "http://pictures.example/de.png"


@pytest.mark.parametrize("ref", ["row:101", "hash:101", "101", LINK, "url:HTTP://Pictures.example/de.png#x"])
def test_a_row_is_a_reference(small: SmallLake, capsys: pytest.CaptureFixture[str], ref: str) -> None:
    capsys.readouterr()
    assert main(["lineage", "up", ref, "--lake", small.uri, "--json"]) == 0
    nodes = {node["ref"]: node for node in json.loads(capsys.readouterr().out)["nodes"]}
    root = next(node for node in nodes.values() if node["kind"] == "row")
    assert (root["sample_id"], root["language"], root["url"]) == (101, "de", LINK)
    assert {str(SOURCE), *(str(v.ref) for v in (small.links, small.images, small.latents))} <= nodes.keys()
    assert str(small.quality) not in nodes
    assert main(["lineage", "down", ref, "--lake", small.uri]) == 0
    text = capsys.readouterr().out
    assert "checkpoint quality/step-00000100" in text and "dataset generations" in text and "roter Apfel" in text


def test_a_row_that_is_not_there_is_an_error_and_a_taken_down_one_is_named(
    small: SmallLake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lineage", "down", "row:5", "--lake", small.uri]) == 2
    assert "is in no version" in capsys.readouterr().err
    listed = tmp_path / "list.txt"
    listed.write_text("hash:101\n")
    old = small.links.ref.digest
    for name in ("links", "images", "latents"):
        assert main(["dataset", "remove", name, "--hashes", str(listed), "--lake", small.uri]) == 0
    for name, digest in (("links", old), ("images", small.images.ref.digest), ("latents", small.latents.ref.digest)):
        assert main(["dataset", "erase", f"{name}@{digest}", "--lake", small.uri]) == 0
    capsys.readouterr()
    for ref in ("row:101", LINK):
        assert main(["lineage", "up", ref, "--lake", small.uri]) == 2
        assert "was taken down" in capsys.readouterr().err
