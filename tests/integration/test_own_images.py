"""The commands of docs/own-pictures.md, with small images and a base of a few thousand weights."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from altdiffusion import cli
from altdiffusion.diffusion import models
from altdiffusion.storage.dataset import Lake
from jobs.harness import main
from tests import training_lake
from tests.documented import ROOT, commands, run
from tests.download_lake import image

TEXTS = {"uk": "рудий кіт спить на старому дивані", "hi": "लाल साड़ी पहने एक महिला बाज़ार में"}
SMALL = {
    "import": ["images.uri=own/photos", "images.keep=[uid]"],
    "encode": ["encode.resolution=16", "encode.max_length=8", "encode.device=cpu", "workers.gpus=0"],
    "train": [
        "train.steps=2", "train.optimizer.warmup_steps=1", "train.checkpoint_every=2", "train.precision=fp32",
        "train.workers.gpus=0", "train.global_batch=4", "train.lora.rank=2",
    ],
    "generate": [
        "generate.steps=2", "generate.device=cpu", "generate.dtype=float32", "workers.gpus=0",
        "generate.prompts.default_size=16",
    ],
}  # fmt: skip
"""What makes the documented commands small."""


@pytest.fixture()
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a folder with `own/photos` and `own/base`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    photos = tmp_path / "own/photos"
    for number in range(12):
        language = ("uk", "hi")[number % 2]
        path = photos / language / f"img {number:02d}.{('png', 'JPG')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number, format=("PNG", "JPEG")[number % 2]))
        path.with_suffix(".txt").write_text(f"{TEXTS[language]} {number}\r\n", encoding="utf-8-sig")
    (photos / "uk/img 00.json").write_text('{"uid": 7}')
    (photos / "uk/alone.png").write_bytes(image(99))
    (photos / "uk/broken.png").write_bytes(image(98)[:-20])
    (photos / "uk/broken.txt").write_text(TEXTS["uk"])
    models.save_bundle(training_lake.bundle(), tmp_path / "own/base")
    return tmp_path


def test_the_commands_of_the_page(workspace: Path, capsys: Any) -> None:
    given = commands("docs/own-pictures.md")
    assert len(given) <= 6
    for words in given:
        assert run(words, SMALL, lambda words: 1) == 0, capsys.readouterr().err[-3000:]
    whole = ["--config", "jobs/configs/own/whole.yaml", "--dry-run", "train.precision=fp32", "train.workers.gpus=0"]
    assert main(importlib.import_module("jobs.train").JOB, whole) == 0, capsys.readouterr().err
    lake = Lake("own/lake")
    images = lake.version("own-images")
    assert images.manifest.rows_by_language == {"uk": 6, "hi": 6}
    assert dict(images.manifest.rejects_by_reason) == {"no_caption": 1, "truncated": 1}
    kept = Counter(lake.version("own-images-kept").read(["kept"])["kept"].to_pylist())
    assert kept == {'{"uid": 7}': 1, '{"uid": null}': 11}
    assert Counter(lake.version("own-latents").read(["language"])["language"].to_pylist()) == {"uk": 6, "hi": 6}
    drawn = lake.version("own-generations").read(["language", "image"])
    assert (
        drawn["language"].to_pylist() == ["uk", "hi"]
        and pa.compute.min(pa.compute.binary_length(drawn["image"])).as_py() > 50
    )


def test_one_line(workspace: Path, capsys: Any) -> None:
    line = ["import", "own/photos", "--dataset", "mine", "--lake", "own/lake", "--language"]
    assert cli.main([*line, "uk-UA"]) == 2
    assert "did you mean uk?" in capsys.readouterr().err
    assert cli.main([*line, "uk", "--dry-run"]) == 0
    assert not (workspace / "own/lake").exists()
    assert cli.main([*line, "uk"]) == 0
    printed = capsys.readouterr().out
    assert (
        "12 rows (uk 12)" in printed
        and "no_caption 1 (the image has no caption), e.g. own://own/uk/alone.png" in printed
    )
    assert cli.main([*line, "uk"]) == 0
    assert "already there: dataset:mine@" in capsys.readouterr().out
    links = workspace / "links.csv"
    links.write_text(
        f"url,caption\nhttp://a/1.jpg,{TEXTS['uk']}\nhttp://a/1.jpg,{TEXTS['uk']}\nftp://a,{TEXTS['uk']}\n"
    )
    assert cli.main(["import", str(links), "--dataset", "mine-links", "--kind", "links", "--lake", "own/lake"]) == 0
    printed = capsys.readouterr().out
    assert "mine-links@" in printed and "duplicate_hash 1" in printed and "url_scheme 1" in printed
    assert cli.main(["import", str(links), "--dataset", "mine", "--kind", "links", "--lake", "own/lake"]) == 2
    assert "dataset mine: holds images, not links" in capsys.readouterr().err
