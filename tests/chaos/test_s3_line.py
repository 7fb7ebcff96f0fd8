"""From latents to lineage with the lake on an S3 server: train, export, draw, verify, gc; all as in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from altdiffusion import cli
from altdiffusion.storage import files
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.exports.export import export_checkpoint
from altdiffusion.training.launch_local import run_local
from tests import generation_lake
from tests.s3_lake import bucket, counts
from tests.training_lake import Recorder, config, make_lake

LAST = 12


def line(lake: str, base: str, prompts: str) -> dict[str, Any]:
    """Train, export and draw; return what must not depend on where the lake is."""
    torch.set_num_threads(1)
    run_local(config(lake, start={"base": base}), lake, reporter=Recorder())
    export_checkpoint(lake, "align", step=LAST)
    settings = generation_lake.config(lake, model={"run": "align"}, prompts={"file": prompts})
    drawn = generation_lake.generate(lake, settings)
    step = files.join(lake, "checkpoints", "align", checkpoints.step_name(LAST))
    return {
        "unet": files.sha256_hex(files.read_bytes(files.join(step, checkpoints.UNET))),
        "ema": files.sha256_hex(files.read_bytes(files.join(step, checkpoints.EMA))),
        "images": sorted(drawn.read(["image_sha256"])["image_sha256"].to_pylist()),
        "digest": drawn.ref.digest,
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_line_on_an_object_store_is_that_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = make_lake(tmp_path)
    rows = [
        {"id": f"p{n}", "language": "de", "prompt": f"word {n}", "seed": n, "width": 16, "height": 16} for n in range(6)
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with bucket(tmp_path / "s3") as address:
        remote = "s3://bucket/lake"
        files.copy_tree(files.join(local, "datasets"), files.join(remote, "datasets"))
        base = f"{local}/models/base"
        before = counts(address)
        assert line(remote, base, str(prompts)) == line(local, base, str(prompts))
        asked = counts(address) - before
        print(dict(asked))
        for verb in (
            ["lineage", "up", "dataset:drawn", "--lake", remote],
            ["lineage", "verify", "dataset:drawn", "--lake", remote],
            ["dataset", "verify", "drawn", "--lake", remote],
            ["gc", "--lake", remote],
        ):
            assert cli.main(verb) == 0, capsys.readouterr()
            printed = capsys.readouterr().out
            assert verb[1] != "up" or ("checkpoint align" in printed and "latents" in printed), printed
        assert asked.total() < 1200, asked
