"""The Python API: each example of docs/python.md runs, and every reader returns each row once, verified."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from torch.utils.data import DataLoader

import altdiffusion
from altdiffusion.api.duckdb_rows import arrow_dataset
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.sampler import Sampler
from altdiffusion.storage import shard_rows as shard_rows_module
from altdiffusion.storage.shard_rows import shard_rows
from altdiffusion.storage.tombstones import EMPTY, add_tombstones
from tests import generation_lake
from tests.image_lake import ROWS, body, publish

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
EXAMPLES = dict(re.findall(r"\n## ([^\n]+)\n+```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S))


@pytest.fixture
def lake(tmp_path: Path) -> str:
    publish(str(tmp_path / "lake"))
    return str(tmp_path / "lake")


def damage(lake: str) -> None:
    """Change one byte of an image in every shard; statistics hold the first and the last image, unverified."""
    for path in (Path(lake) / "datasets" / "images" / "shards").iterdir():
        data = bytearray(path.read_bytes())
        places = [found.start() for found in re.finditer(b"IDAT", data)]
        data[places[len(places) // 2] + 6] ^= 1
        path.write_bytes(data)


def take_down(lake: str, sample_id: int) -> None:
    import numpy as np

    none = np.zeros(0, np.int64)
    add_tombstones(lake, sample_ids=np.array([sample_id]), of_images=none, of_final_urls=none)


def run_example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(EXAMPLES[name], names)
    return names


def test_the_package_alone_is_light() -> None:
    code = "import sys, altdiffusion; print([m for m in ('torch', 'ray', 'pyarrow', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    code = code.replace("altdiffusion;", "altdiffusion; altdiffusion.Lake;").replace(", 'pyarrow', 'numpy'", "")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_examples_are_those_that_run_here() -> None:
    assert list(EXAMPLES) == ["Arrow", "DuckDB", "Ray", "PyTorch", "Draw"]


@pytest.mark.parametrize("name", ["Arrow", "PyTorch"])
def test_examples_run(name: str, lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run_example(name, tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert sum(int(line.split()[0]) for line in lines if line[0].isdigit()) == ROWS


def test_the_example_of_duckdb_runs(lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    names = run_example("DuckDB", tmp_path, monkeypatch)
    assert capsys.readouterr().out == "[('ko', 12), ('uk', 11)]\n"
    images = names["images"]
    assert images.filter("sample_id = 3").project("image").fetchall() == [(body(8),)]  # the relation can be read again
    damage(lake)
    with pytest.raises(AltDiffusionError, match="is damaged"):
        altdiffusion.Lake(lake).version("images").to_duckdb()


def test_what_duckdb_scans_is_every_row_by_pages(lake: str) -> None:
    """The scanner that DuckDB is given, without DuckDB."""
    version = altdiffusion.Lake(lake).version("images")
    shards = shard_rows(version, ["sample_id", "image"], "pages")
    scanned = arrow_dataset(shards, shards[0].schema)
    assert scanned.to_table().equals(version.read(["sample_id", "image"]))
    damage(lake)
    with pytest.raises(OSError, match=r"checksum|CRC"):
        scanned.to_table()


def test_the_example_of_drawing_runs_and_draws_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = generation_lake.make_lake(tmp_path / "made")
    shutil.copytree(f"{made}/models/base", tmp_path / "models" / "m18")
    names = run_example("Draw", tmp_path, monkeypatch)
    drawn = names["drawn"]
    assert [(one.id, one.prompt, one.seed) for one in drawn] == [
        ("01-a-red-cat", "a red cat", 7),
        ("02", "рудий кіт", 7),
    ]
    assert (tmp_path / "02-7.png").read_bytes() == drawn[1].data and drawn[1].image.mode == "RGB"
    monkeypatch.setattr(Sampler, "draw_rows", None)
    again = altdiffusion.generate(["a red cat", "рудий кіт"], model="models/m18", lake=tmp_path / "lake", seed=7)
    assert again == drawn
    with pytest.raises(AltDiffusionError, match="size 33x16: has a side of 33 pixels"):
        altdiffusion.generate("cat", model="models/m18", lake="lake", size=(33, 16))
    with pytest.raises(AltDiffusionError, match=r"let it end in \.png"):
        drawn[0].save("cat.jpg")


def test_arrow_streams_every_row_in_order(lake: str) -> None:
    version = altdiffusion.Lake(lake).version("images")
    reader = version.to_arrow(columns=["image", "sample_id"], batch_rows=3)
    batches = list(reader)
    assert max(batch.num_rows for batch in batches) == 3 and reader.schema.names == ["image", "sample_id"]
    table = pa.Table.from_batches(batches)
    assert table["image"].to_pylist() == [body(row) for row in range(ROWS)]
    assert version.to_arrow(verify="pages").read_all().equals(version.read())


@pytest.mark.parametrize("workers", [0, 3])
def test_torch_gives_each_row_once_over_ranks_and_workers(lake: str, workers: int) -> None:
    version = altdiffusion.Lake(lake).version("images")
    seen: list[int] = []
    for rank in range(2):
        rows = version.to_torch(columns=["sample_id"], transform=_sample_id, rank=rank, ranks=2)
        for batch in DataLoader(rows, batch_size=4, num_workers=workers, collate_fn=list):
            seen += batch
    assert sorted(seen) == [row - 5 for row in range(ROWS)]


def _sample_id(row: Any) -> int:
    return int(row["sample_id"])


@pytest.mark.parametrize("verify", ["shards", "pages"])
def test_damage_is_an_error_of_every_reader(lake: str, verify: Any) -> None:
    damage(lake)
    version = altdiffusion.Lake(lake).version("images")
    with pytest.raises(AltDiffusionError, match="is damaged"):
        version.to_arrow(columns=["image"], verify=verify).read_all()
    with pytest.raises(AltDiffusionError, match="is damaged"):
        list(version.to_torch(columns=["image"], verify=verify))


@pytest.mark.parametrize("columns", [None, ["caption"]])
def test_rows_that_were_taken_down_are_left_out(lake: str, columns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    take_down(lake, 3)
    version = altdiffusion.Lake(lake).version("images")
    table = version.to_arrow(columns).read_all()
    assert table.num_rows == ROWS - 1 and body(8) not in table.column(0).to_pylist()
    assert len(list(version.to_torch(["caption"]))) == ROWS - 1
    with pytest.raises(AltDiffusionError, match="taken down"):
        version.to_duckdb()
    monkeypatch.setattr(shard_rows_module, "read_tombstones", lambda lake: EMPTY)
    assert version.to_arrow(columns).read_all().num_rows == ROWS


def test_what_cannot_be_read_is_an_error_with_a_remedy(lake: str) -> None:
    version = altdiffusion.Lake(lake).version("images")
    with pytest.raises(AltDiffusionError, match=r"has no column captoin.*caption"):
        version.to_arrow(["captoin"])
    with pytest.raises(AltDiffusionError, match="verify 'none'"):
        version.to_torch(verify="none")  # type: ignore[arg-type]
    with pytest.raises(AltDiffusionError, match="rank 2 of 2"):
        version.to_torch(rank=2, ranks=2)
    with pytest.raises(AltDiffusionError, match="datasets here: images"):
        altdiffusion.Lake(lake).version("pictures")
