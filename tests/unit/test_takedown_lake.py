"""A takedown from all datasets of a lake at once: the plan, its order, a kill in the middle, and judges."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from altdiffusion.cli import main
from altdiffusion.lineage.takedown_record import read_records
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.judges import ROWS, record_rows
from tests.takedown_rows import Corpus, run


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus.draw(Lake(str(tmp_path / "lake")), random.Random(3))


def listed(folder: Path, row: dict[str, Any]) -> str:
    path = folder / "list.txt"
    path.write_text(f"url:{row['url']}\nsha256:{row['image_sha256']}\n")
    return str(path)


def tree(root: Path) -> dict[str, bytes]:
    """Return every file, but of records of takedowns only what is not their time."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        data, name = path.read_bytes(), str(path.relative_to(root))
        if name.endswith(".record.json"):
            record = json.loads(data)
            name = "record"
            data = json.dumps({key: record[key] for key in record if key not in ("when", "of")}).encode()
        found[name] = data
    return found


def test_without_yes_only_a_plan_is_printed(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row, before = corpus.rows["latents"][0], tree(tmp_path / "lake")
    command = ["dataset", "remove", "--hashes", listed(tmp_path, row), "--lake", corpus.lake.uri]
    plain = run(capsys, *command)
    assert tree(tmp_path / "lake") == before
    assert run(capsys, *command, "--all") == plain
    steps = [line.split()[1].partition("@")[0] for line in plain.splitlines() if line.strip()[:2] in ("1.", "2.", "3.")]
    assert steps == ["dataset:links", "dataset:images", "dataset:latents"]
    assert f"3. {corpus.versions['latents'].ref.short}: " in plain and "shards rewritten" in plain
    assert "checkpoint:alignment/step-00000001" in plain and "nothing was changed" in plain
    assert main([*command, "--all", "images"]) == 2
    assert "names one dataset and all of them" in capsys.readouterr().err
    nothing = tmp_path / "none.txt"
    nothing.write_text("hash:1\n")
    assert "the head of no dataset holds these rows" in run(
        capsys, "dataset", "remove", "--hashes", str(nothing), "--lake", corpus.lake.uri
    )


def test_a_killed_takedown_of_a_lake_that_is_run_again_is_as_if_it_was_never_killed(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, row = tmp_path / "lake", corpus.rows["latents"][0]
    hashes = listed(tmp_path, row)
    write, places = files.write_atomic, [0]

    def take_down(lake: Path) -> None:
        assert main(["dataset", "remove", "--hashes", hashes, "--yes", "--lake", str(lake)]) == 0
        capsys.readouterr()

    def counted(limit: int) -> Any:
        def write_atomic(uri: str, data: bytes) -> None:
            places[0] += 1
            if places[0] > limit:
                raise KeyboardInterrupt
            write(uri, data)

        return write_atomic

    kept = tmp_path / "kept"
    shutil.copytree(lake, kept)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomic", counted(10**9))
        take_down(lake)
    whole, writes = tree(lake), places[0]
    assert writes > 8
    for limit in (1, writes // 2, writes - 2):
        shutil.rmtree(lake)
        shutil.copytree(kept, lake)
        places[0] = 0
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(files, "write_atomic", counted(limit))
            take_down(lake)
        take_down(lake)
        assert tree(lake) == whole, limit
    take_down(lake)
    assert tree(lake) == whole
    (record,) = read_records(str(lake))
    for name in ("links", "images", "latents"):
        assert f"dataset:{name}@" in json.dumps(sorted(record.held))
        held = [str(ref) for ref in corpus.lake.version(name).manifest.parents]
        assert held[0] == str(corpus.versions[name].ref) and held[1].startswith("blocklist:takedown@")


def test_one_damaged_shard_does_not_keep_the_rows_of_other_datasets(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = corpus.rows["latents"][0]
    version = corpus.versions["images"]
    shard = Path(version.shard_uri(0))
    shard.write_bytes(shard.read_bytes()[:-9])
    command = ["dataset", "remove", "--hashes", listed(tmp_path, row), "--lake", corpus.lake.uri]
    for options in ([], ["--yes"]):
        assert main([*command, *options]) == 3
        assert shard.name in capsys.readouterr().err
    assert corpus.lake.version("latents").ref != corpus.versions["latents"].ref
    assert corpus.lake.version("images").ref == version.ref


def judge(lake: str, digest: str, rows: list[dict[str, Any]] | None) -> Path:
    """Write a judge's file, which no takedown opens, and what taught it."""
    if rows is not None:
        record_rows(lake, digest, pa.Table.from_pylist(rows, schema=ROWS))
    path = Path(lake) / "judges" / f"{digest}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"weights")
    return path


@pytest.mark.parametrize("form", ["one", "all", "erase"])
def test_judges_that_learned_from_a_removed_row_are_named_and_deleted(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    lake, rows = corpus.lake.uri, corpus.rows["latents"]
    row = rows[0]
    taught = [{name: one[name] for name in ROWS.names} for one in rows]
    others = [one for one in taught if one["image_sha256"] != row["image_sha256"]]
    bystander = judge(lake, "b" * 64, others)
    by_id = judge(lake, "a" * 64, [{**taught[0], "image_sha256": "0" * 64}])  # its link is listed
    by_image = judge(lake, "c" * 64, [{"sample_id": 5, "image_sha256": row["image_sha256"]}])
    unknown, damaged = judge(lake, "d" * 64, None), judge(lake, "e" * 64, others)
    record = damaged.with_name(f"{'e' * 64}.rows.json")
    record.write_bytes(record.read_bytes().replace(b"0", b"1", 1))
    hashes = listed(tmp_path, row)
    found = json.loads(run(capsys, "lineage", "impact", "--hashes", hashes, "--json", "--lake", lake))
    expected = {str(by_id): 1, str(by_image): 1, str(unknown): None, str(damaged): None}
    assert {one["uri"]: one["rows"] for one in found["judges"]} == expected
    if form == "erase":  # a judge that came after the removal
        run(capsys, "dataset", "remove", "latents", "--hashes", hashes, "--lake", lake)
        judge(lake, "a" * 64, taught)
    assert main(["dataset", "verify", "--takedowns", "--lake", lake]) == (1 if form == "erase" else 0)
    error = capsys.readouterr().err
    assert ("aaaa.safetensors: was trained on" in error) == (form == "erase")
    command = {"one": ["remove", "latents"], "all": ["remove", "--yes"]}.get(form)
    if command is not None:
        printed = run(capsys, "dataset", *command, "--hashes", hashes, "--lake", lake)
        assert printed.count("deleted judge") == 4 and f"{by_image}: was trained on 1 of the rows" in printed
    else:
        printed = run(capsys, "dataset", "erase", str(corpus.versions["latents"].ref), "--lake", lake)
        assert printed.count("deleted judge") == 1
    left = {path.name for path in bystander.parent.iterdir()}
    assert left == {bystander.name, f"{'b' * 64}.rows.json"}


def test_the_rows_of_a_judge_add_up(tmp_path: Path) -> None:
    lake = str(tmp_path)
    for number in (7, 5, 7):
        row = {"sample_id": number, "image_sha256": "a" * 64}
        record_rows(lake, "f" * 64, pa.Table.from_pylist([row, row], schema=ROWS))
    document = json.loads((tmp_path / "judges" / f"{'f' * 64}.rows.json").read_text())
    assert document["sample_id"] == [5, 7] and document["image_sha256"] == ["a" * 64] * 2
