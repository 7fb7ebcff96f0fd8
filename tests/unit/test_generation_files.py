"""Image files with readable names, and generations in the formats of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altdiffusion.cli import main
from altdiffusion.config import from_dict, semantic
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.named_files import check_ids, write_named
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.image_files.extract import read_carried
from altdiffusion.image_files.image_export import export_images
from altdiffusion.image_files.names import file_stem, sample_key
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.erasure import erase
from pipelines.generate import GenerateJobConfig, check, write_files
from tests import generation_lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    return generation_lake.make_lake(tmp_path_factory.mktemp("files"), prompts=9)


@pytest.fixture(scope="module")
def version(lake: str) -> Version:
    return generation_lake.generate(lake, generation_lake.config(lake))


@pytest.mark.parametrize(
    ("name", "seed", "stem"),
    [
        ("p1", 5, "p1-5"), ("p1", -5, "p1-m5"), ("p1-m5", 5, "p1-m5-5"), ("a-", 5, "a--5"), ("a.b", 0, "a.b-0"),
        ("con", 1, "con-1"), ("CON.x", 1, "~CON.x-1"), ("com1.", 2, "~com1.-2"), ("_con.x", 1, "_con.x-1"),
    ],
)  # fmt: skip
def test_a_name_is_readable_and_a_name_everywhere(name: str, seed: int, stem: str) -> None:
    assert file_stem({"id": name, "seed": seed}) == stem
    assert "." not in sample_key({"id": name, "seed": seed})


def test_names_of_different_images_are_different_and_short() -> None:
    ids = ("a", "a-", "a-m", "a-m5", "a-5", "a.", "a~"[:1] + ".m", "con.a", "_con.a")
    rows = [{"id": name, "seed": seed} for name in ids for seed in (5, -5, 0, 55, -(2**63), 2**63 - 1)]
    for make in (file_stem, sample_key):
        assert len({make(row) for row in rows}) == len(rows)
    assert len(file_stem({"id": "con." + "x" * 196, "seed": -(2**63)}) + ".webp") <= 255


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".a", "-a", "x" * 201, "a\0", None, 5])
def test_an_id_that_was_forged_is_no_name(name: Any) -> None:
    with pytest.raises(AltDiffusionError, match="cannot be the name of a file"):
        file_stem({"id": name, "seed": 1})


def test_ids_that_differ_in_case_only_are_refused_before_drawing(lake: str, tmp_path: Path) -> None:
    check_ids(pa.array(["a", "b", "A1"]))
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": name, "prompt": "x"}) + "\n" for name in ("Dog", "cat", "dog")))
    tree = {"lake": lake, "generate": {"model": {"folder": "x"}, "prompts": {"file": str(file)}}}
    check(from_dict(GenerateJobConfig, tree))
    tree["generate"]["image_files"] = "by_name"  # type: ignore[index]
    with pytest.raises(AltDiffusionError, match="ids Dog and dog: differ only in case"):
        check(from_dict(GenerateJobConfig, tree))


def test_old_and_new_settings_load_and_decide_no_byte(lake: str) -> None:
    naming = {value: generation_lake.config(lake, image_files=value) for value in (True, False, "none", "by_name")}
    assert [one.file_naming for one in naming.values()] == ["by_hash", "none", "none", "by_name"]
    assert len({json.dumps(semantic(one)) for one in naming.values()}) == 1
    assert generation_lake.config(lake).file_naming == "by_hash"
    with pytest.raises(AltDiffusionError, match="by_nam"):
        from_dict(GenerateConfig, {"model": {"folder": "x"}, "prompts": {"file": "x"}, "image_files": "by_nam"})


def test_a_folder_holds_the_images_of_one_version(lake: str, version: Version) -> None:
    """Also where another version has other images of the same names."""
    other = generation_lake.generate(lake, generation_lake.config(lake, steps=3))
    for one in (version, other):
        folder, written = write_named(one)
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        assert found == {f"{row['id']}-{row['seed']}.png": row["image"] for row in one.read().to_pylist()}
        assert written == 9 and write_named(one) == (folder, 0)
        assert read_carried(found["p0-0.png"]).marked
    (Path(folder) / "p3-3.png").unlink()
    assert write_named(other)[1] == 1
    erase(Lake(lake).dataset("drawn"), version)
    assert not Path(write_named(other)[0]).with_name(version.ref.digest).exists() and Path(folder).exists()


def test_the_job_writes_them_even_if_the_version_was_there(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = generation_lake.generate(lake, generation_lake.config(lake, image_files="none"), dataset="later")
    assert not Path(drawn.folder_uri, "images").exists()
    generate = {"model": {"folder": "x"}, "prompts": {"file": "x"}, "image_files": "by_name"}
    write_files(from_dict(GenerateJobConfig, {"lake": lake, "generations": "later", "generate": generate}), Lake(lake))
    assert "9 image files in" in capsys.readouterr().out
    assert len(list(Path(drawn.folder_uri, "named", drawn.ref.digest).iterdir())) == 9


def test_webdataset_has_readable_keys_captions_and_records(lake: str, tmp_path: Path) -> None:
    import webdataset

    drawn = generation_lake.generate(lake, generation_lake.config(lake), dataset="exported")
    out = tmp_path / "out"
    assert main(["dataset", "export", "exported", "--format", "webdataset", "--output", str(out), "--lake", lake]) == 0
    samples = list(webdataset.WebDataset([str(out / "00000.tar")], shardshuffle=False))
    rows = drawn.read().to_pylist()
    assert [sample["__key__"] for sample in samples] == [f"{row['id']}-{row['seed']}" for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        assert sample["png"] == row["image"] and sample["txt"].decode() == row["prompt"]
        meta = json.loads(sample["json"])
        assert (meta["caption"], meta["seed"], meta["sha256"]) == (row["prompt"], row["seed"], row["image_sha256"])
        assert json.loads(meta["record"])["row_key"] == meta["row_key"] == row["row_key"]
    for format in ("files", "parquet"):
        assert export_images(drawn, str(tmp_path / format), format).rows == 9  # type: ignore[arg-type]
    assert (tmp_path / "files" / "00000" / "p4-4.png").read_bytes() == rows[4]["image"]
    table = pq.read_table(tmp_path / "parquet" / "00000.parquet")
    assert table["png"].to_pylist() == [row["image"] for row in rows] and table["key"][4].as_py() == "p4-4"
