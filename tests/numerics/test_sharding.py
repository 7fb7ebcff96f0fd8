"""Two workers that share the weights out between them train what one worker trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import ComputeConfig
from altdiffusion.training.launch_local import run_local
from tests.ranks import train_by_two
from tests.training_lake import Recorder, config, replace

OPTIMIZER = {"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4}


@pytest.mark.parametrize("trainable", ["kv", "all"])
def test_sharded_workers_equal_one(lake: str, tmp_path: Path, trainable: str) -> None:
    """With accumulation, through a checkpoint and a resume; the checkpoint is whole, and one worker continues it."""
    settings = config(lake, trainable=trainable, steps=6, micro_batch=2, optimizer=OPTIMIZER)
    one = run_local(settings, lake, reporter=Recorder())
    sharded = replace(
        settings,
        run="sharded",
        workers=replace(settings.workers, count=2),
        compute=ComputeConfig(sharding="fsdp"),
    )
    runs = [replace(sharded, steps=2), replace(sharded, steps=4)]
    train_by_two(lake, tmp_path / "store", *runs)
    alone = replace(sharded, workers=replace(settings.workers, count=1), compute=ComputeConfig())
    last = run_local(alone, lake, reporter=Recorder())
    four = checkpoints.open_step(lake, "sharded", 4)
    assert four.state()["updates"] == 4
    assert last.state()["metrics"]["train/loss"] == pytest.approx(one.state()["metrics"]["train/loss"], rel=1e-5)
    for file in (checkpoints.UNET, checkpoints.EMA, checkpoints.OPTIMIZER):
        expected, found = one.tensors(file), last.tensors(file)
        assert expected.keys() == found.keys() == four.tensors(file).keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_what_does_not_go_together_is_refused(lake: str) -> None:
    with pytest.raises(AltDiffusionError, match=r"sharding.*adamw"):
        config(lake, compute={"sharding": "fsdp"}, optimizer={"kind": "adamw_8bit"})
    with pytest.raises(ValueError, match=r"sharding.*compile"):
        ComputeConfig(sharding="fsdp", compile=True)
