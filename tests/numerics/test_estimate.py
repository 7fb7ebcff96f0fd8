"""The estimate against counts made in another way: real tensors, published numbers, closed forms."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import yaml
from hypothesis import strategies as st

from altdiffusion.config import from_dict, load_config
from altdiffusion.diffusion import models
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.config import ComputeConfig, OnlineConfig, Precision, TrainConfig
from altdiffusion.training.estimate.cost import (
    GIB,
    EstimateConfig,
    Shapes,
    epochs_line,
    estimate,
    kept_bytes,
    kept_steps,
    lines,
    shapes_of,
)
from altdiffusion.training.estimate.online_cost import vae_bytes
from altdiffusion.training.estimate.student_cost import estimate_student
from altdiffusion.training.model import prepare_network
from pipelines.train import TrainJobConfig
from tests import training_lake
from tests.kept_for_backward import kept_for_backward, total_bytes


@pytest.mark.parametrize("which", ["kv", "all"])
def test_kept_bytes_are_those_of_a_real_pass(which: models.Trains) -> None:
    """On the CPU the same storages are kept, where attention is asked to keep what fused kernels keep."""
    config = training_lake.bundle().unet.config
    meta = models.build_unet(dict(config), "meta").train()
    models.trainable_parameters(meta, which)
    one, two = (kept_bytes(meta, batch, 4, 16, tokens=8) for batch in (1, 2))
    assert 0 < one < two < 2.1 * one

    real = models.build_unet(dict(config)).train()
    models.trainable_parameters(real, which)
    with kept_for_backward(real) as kept_storages:
        out = real(torch.randn(2, 4, 4, 4), torch.zeros(2, dtype=torch.int64), torch.randn(2, 8, 16), return_dict=False)
    del out
    assert math.isclose(total_bytes(kept_storages), two, rel_tol=0.05)


PUBLISHED = Shapes(unet=models.unet_config_sd21(), text=models.text_config_m18(), resolution=256)


def settings(tmp_path: Path, **changes: Any) -> TrainConfig:
    return training_lake.config(str(tmp_path), **({"trainable": "kv", "precision": "bf16"} | changes))


def test_published_counts(tmp_path: Path) -> None:
    cost = estimate(settings(tmp_path), PUBLISHED)
    assert (cost.parameters, cost.trained) == (865_910_724, 25_559_040)
    assert cost.checkpoint == 4 * 865_910_724 + 12 * 25_559_040
    assert cost.training_state == 16 * 25_559_040
    encoder = sum(p.numel() for p in models.build_text_encoder(models.text_config_m18(), "meta").parameters())
    assert cost.weights == 2 * (865_910_724 - 25_559_040 + encoder) + 4 * 25_559_040  # bf16 but for what is trained
    whole = estimate(settings(tmp_path, trainable="all"), replace(PUBLISHED, resolution=512))
    assert whole.trained == whole.parameters and whole.activations > 4 * cost.activations
    assert whole.weights == 4 * 865_910_724 + 2 * encoder


@pytest.mark.parametrize("which", ["kv", "all"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_those_of_the_network_as_the_loop_prepares_it(
    tmp_path: Path, which: models.Trains, precision: Precision
) -> None:
    """Counted without data, against what a real pass of the prepared network keeps: bf16, frozen convolutions that save
    activations."""
    shapes = Shapes(unet=dict(training_lake.bundle().unet.config), text=models.text_config_demo(32), resolution=64)
    found = estimate(settings(tmp_path, precision=precision, trainable=which, micro_batch=8), shapes)
    real = models.build_unet(shapes.unet).train()
    models.trainable_parameters(real, which)
    dtype = prepare_network(real, precision=precision, compute=ComputeConfig(), device=torch.device("cpu"))
    text = torch.randn(8, shapes.tokens, 16).to(dtype)
    with kept_for_backward(real) as kept_storages:
        out = real(torch.randn(8, 4, 8, 8).to(dtype), torch.zeros(8, dtype=torch.int64), text, return_dict=False)
    kept = total_bytes(kept_storages)
    del out
    assert math.isclose(found.activations, kept, rel_tol=0.05)
    encoder = models.build_text_encoder(shapes.text, "meta").parameters()
    each = 2 if precision == "bf16" else 4
    own = sum(weight.nbytes for weight in real.parameters())
    assert found.weights == own + each * sum(weight.numel() for weight in encoder)


def test_8_bit_moments_are_counted(tmp_path: Path) -> None:
    plain = estimate(settings(tmp_path), PUBLISHED)
    eight = estimate(settings(tmp_path, optimizer={"kind": "adamw_8bit"}), PUBLISHED)
    saved = plain.training_state - eight.training_state
    assert saved == plain.checkpoint - eight.checkpoint
    assert math.isclose(saved, (8 - 2 - 2 * 4 / 256) * 25_559_040, rel_tol=1e-6)


def test_checkpointing_is_counted_as_a_real_pass_keeps_it(tmp_path: Path) -> None:
    """The inputs of the blocks, as a real pass on the CPU keeps them, and one block more; far less than without."""
    shapes = Shapes(unet=dict(training_lake.bundle().unet.config), text=models.text_config_demo(32), resolution=64)
    plain = estimate(settings(tmp_path, precision="fp32", trainable="all", micro_batch=8), shapes).activations
    compute = {"gradient_checkpointing": True}
    switched = settings(tmp_path, precision="fp32", trainable="all", micro_batch=8, compute=compute)
    found = estimate(switched, shapes).activations
    real = models.build_unet(shapes.unet).train()
    models.trainable_parameters(real, "all")
    real.enable_gradient_checkpointing()
    inputs = torch.randn(8, 4, 8, 8), torch.zeros(8, dtype=torch.int64), torch.randn(8, shapes.tokens, 16)
    with kept_for_backward(real) as kept_storages:
        out = real(*inputs, return_dict=False)
    kept = total_bytes(kept_storages)
    del out
    assert kept < found < plain
    assert found - kept < plain / 2  # one block, not all


def test_adapters_are_counted(tmp_path: Path) -> None:
    lora = {"rank": 16}
    cost = estimate(settings(tmp_path, trainable="all", lora=lora), PUBLISHED)
    widths = {320: 5, 640: 5, 1280: 6}  # transformer blocks by width
    own = sum(count * 4 * 16 * (width + width) for width, count in widths.items())
    cross = sum(count * 16 * (2 * (width + width) + 2 * (1024 + width)) for width, count in widths.items())
    assert cost.trained == own + cross
    assert cost.checkpoint == 16 * cost.trained
    assert cost.parameters == 865_910_724
    assert cost.activations < estimate(settings(tmp_path, trainable="all"), PUBLISHED).activations


def test_what_is_at_hand_is_read_and_the_rest_is_stated(tmp_path: Path) -> None:
    lake = training_lake.make_lake(tmp_path)
    shapes = shapes_of(training_lake.config(lake), lake, look=True)
    assert shapes.unet["block_out_channels"] == [8, 16] and shapes.text["hidden_size"] == 16
    assert (shapes.latent_factor, shapes.tokens) == (4, 8)
    assert shapes.assumed == ("latents of the published resolution (their dataset is not here yet)",)
    encoder = Path(lake) / "models" / "encoder"
    shutil.copytree(Path(lake) / "models" / "base" / "text_encoder", encoder / "text_encoder")
    start = {"base": f"hf://someone/small@{'ab' * 20}", "text_encoder": str(encoder)}
    config = training_lake.config(lake, start=start)
    missing = shapes_of(config, lake, look=True)
    assert "the UNet of Stable Diffusion 2.1 (what the run starts from is not here yet)" in missing.assumed
    assert missing.text["hidden_size"] == 16
    fetched = Path(lake) / "models" / f"someone--small--{'ab' * 6}"
    shutil.copytree(Path(lake) / "models" / "base", fetched)
    assert shapes_of(config, lake, look=True).unet["block_out_channels"] == [8, 16]
    later = training_lake.config(lake, run="later", start={"checkpoint": "nothing"})
    assert len(shapes_of(later, lake, look=True).assumed) == 3
    printed = lines(later, EstimateConfig(), estimate(later, PUBLISHED), shapes_of(later, lake, look=True))
    assert printed[-1].startswith("assumed     the UNet of Stable Diffusion 2.1")


def stages() -> list[Path]:
    folder = Path(__file__).parents[2] / "jobs" / "configs" / "m18"
    return sorted(path for path in folder.glob("*.yaml") if "train" in yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", stages(), ids=lambda path: path.stem)
def test_a_published_stage_fits_64_workers_of_40_gb(path: Path) -> None:
    job = load_config(TrainJobConfig, str(path))
    train = job.train
    assert train.workers.count == 64 and train.workers.gpus == 1
    assert train.micro_batch * train.accumulation * 64 == train.global_batch
    shapes = shapes_of(train, job.lake, look=False)
    cost = estimate_student(train, shapes) if train.stage == "distillation" else estimate(train, shapes)
    assert cost.total + 3 * GIB < 40e9  # the kernels' workspace and the allocator's slack on top
    if train.stage != "distillation":
        assert train.global_batch == (3072 if train.stage == "alignment" else 3840)
        assert {"alignment": 330_000, "quality": 270_000, "guidance": 150_000}[train.stage] == train.steps


def test_epochs_of_a_mixture_are_counted_by_source(tmp_path: Path) -> None:
    lake = training_lake.make_lake(tmp_path)
    training_lake.write_latents(lake, "more", 60, seed=2)
    datasets = [{"name": "latents", "weight": 3.0}, {"name": "more", "weight": 1.0}]
    versions = [Lake(lake).version(name) for name in ("latents", "more")]
    line = epochs_line(training_lake.config(lake, datasets=datasets, steps=90), versions)
    assert line == "epochs      3.00 of latents, 3.00 of more"


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(every=st.integers(1, 40), factor=st.integers(0, 5), last=st.integers(2, 6), steps=st.integers(1, 400))
def test_kept_steps_are_those_that_pruning_leaves(every: int, factor: int, last: int, steps: int) -> None:
    """As `checkpoints.prune` does it after every checkpoint."""
    config = training_lake.config(
        "/none", steps=steps, checkpoint_every=every, keep_last=last, keep_every=every * factor
    )
    here: list[int] = []
    for step in range(1, steps + 1):
        if step % every == 0 or step == steps:
            here.append(step)
            old = here[: max(0, len(here) - last)]
            here = [one for one in here if one not in old or (factor and one % (every * factor) == 0)]
    assert kept_steps(config) == here


def test_disk_counts_checkpoints_for_good_the_averages_and_exports() -> None:
    """Count for quality.yaml: 31 checkpoints and one in the making, 32 exports; counted from shapes alone."""
    path = Path(__file__).parents[2] / "jobs/configs/m18/quality.yaml"
    train = from_dict(TrainConfig, yaml.safe_load(path.read_text())["train"])
    cost = estimate(train, PUBLISHED)
    unet, vae = 865_910_724, 83_653_863
    assert cost.checkpoint == 16 * unet  # weights, averages, two moments
    encoder = models.build_text_encoder(models.text_config_m18(), "meta")
    assert cost.export == 4 * (unet + vae + sum(one.numel() for one in encoder.parameters()))
    assert kept_steps(train) == [*range(10_000, 270_000, 10_000), 268_000, 268_500, 269_000, 269_500, 270_000]
    printed = "\n".join(lines(train, EstimateConfig(), cost, PUBLISHED))
    assert "31 kept, the last 5 and every 10,000 steps; with the one that is being written 443.3 GB" in printed
    assert f"disk        {32 * (cost.checkpoint + cost.export) / 1e9:,.1f} GB in total" in printed


def test_a_vae_in_the_loop_is_counted(tmp_path: Path) -> None:
    """Stable Diffusion's encoder: 34,163,592 weights, 72 of `quant_conv`; the widest layers hold 128 channels at full
    size, input and output, in bf16."""
    online = OnlineConfig(resolution=512, dtype="bfloat16")
    weights, encoding = vae_bytes(models.vae_config_sd21(), online, 2)
    assert weights == 2 * (34_163_592 + 72)
    assert encoding == 2 * (2 * 128 * 512 * 512) * 2
    lake = training_lake.make_lake(tmp_path)
    stored = training_lake.config(lake)
    shapes = shapes_of(stored, lake, True)
    images = replace(stored, online=OnlineConfig(resolution=16))
    added = estimate(images, shapes).total - estimate(stored, shapes).total
    assert added >= vae_bytes(shapes.vae, images.online or online, stored.micro_batch)[0] > 0
