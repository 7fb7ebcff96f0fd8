"""`altdiffusion generate`: one line draws, writes and records; what is wrong is found before anything is drawn."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.generation.by_hand import DATASET
from altdiffusion.generation.sampler import Sampler
from altdiffusion.storage.dataset import Lake
from tests import generation_lake


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"{generation_lake.make_lake(tmp_path_factory.mktemp('generate'))}/models/base"


def test_one_line_gives_images_a_sheet_and_their_lineage(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [
        "generate", "a red cat", "кошка", "--model", model, "--size", "24x16", "--count", "2", "--seed", "7",
        "--steps", "2", "--lake", str(tmp_path / "lake"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(line) == 0
    shown = capsys.readouterr().out
    names = ["01-a-red-cat-7.png", "01-a-red-cat-8.png", "02-7.png", "02-8.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("0*.png")) == names
    assert [Image.open(tmp_path / "out" / name).size for name in names] == [(24, 16)] * 4
    (sheet,) = (tmp_path / "out").glob("sheet-*.png")
    assert Image.open(sheet).width > 100
    assert 'und "a red cat", seed 7' in shown and "model base @" in shown and str(sheet) in shown
    rows = Lake(str(tmp_path / "lake")).version(DATASET).read(["id", "seed", "image"]).to_pylist()
    assert {f"{row['id']}-{row['seed']}.png": row["image"] for row in rows} == {
        name: (tmp_path / "out" / name).read_bytes() for name in names
    }

    monkeypatch.setattr(Sampler, "draw_rows", None)  # the same line again draws nothing
    assert main(line) == 0
    assert main(["lineage", "up", str(tmp_path / "out" / names[3]), "--lake", str(tmp_path / "lake")]) == 0
    assert 'und "кошка", seed 8' in capsys.readouterr().out


def test_a_file_with_other_content_is_not_replaced(tmp_path: Path, model: str) -> None:
    line = [
        "generate",
        "cat",
        "--model",
        model,
        "--seed",
        "1",
        "--size",
        "16",
        "--no-sheet",
        "--out",
        f"{tmp_path}/out",
    ]
    line += ["--lake", f"{tmp_path}/lake"]
    assert main([*line, "--steps", "2"]) == 0
    first = (tmp_path / "out" / "01-cat-1.png").read_bytes()
    assert main([*line, "--steps", "1"]) == 0
    assert (tmp_path / "out" / "01-cat-1.png").read_bytes() == first
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_prompts_come_from_standard_input(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("cat\n\n  dog \n"))
    line = ["generate", "-", "--model", model, "--steps", "1", "--size", "16", "--lake", f"{tmp_path}/lake"]
    assert main([*line, "--no-sheet", "--out", f"{tmp_path}/out"]) == 0
    assert [path.name[:6] for path in sorted((tmp_path / "out").iterdir())] == ["01-cat", "02-dog"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "33"], "--size 33x33: has a side of 33 pixels; this model draws multiples of 8 up to 2048"),
        (["--size", "4096x512"], "has a side of 4096 pixels"),
        (["--size", "large"], "--size large: is not a width and a height"),
        (["--steps", "1000"], "would visit timestep"),
        (["--count", "0"], "value 0 must be at least 1"),
        (["--device", "cuda"], "PyTorch finds no GPU"),
        (["--dtype", "float16", "--device", "cpu"], "float16 does not run on a CPU"),
        (["--fonts", "/nowhere"], "fonts folder /nowhere: does not exist"),
        (["--model", "hf://owner/name"], "is a hub id without its commit"),
        (["--model", "nothing"], "is neither a folder with a model_index.json nor a run of the lake"),
        (["--model", "nothing/step-3"], "is neither a folder with a model_index.json nor a run of the lake"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_drawn(
    tmp_path: Path, model: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in options and __import__("torch").cuda.is_available():
        pytest.skip("there is a GPU")
    line = ["generate", "cat", "--model", model, "--lake", f"{tmp_path}/lake", "--out", f"{tmp_path}/out", *options]
    assert main(line) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "lake").exists()
