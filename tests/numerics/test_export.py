"""An export is a folder that stock diffusers opens and runs, with the weights of its checkpoint and its lineage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from altdiffusion.diffusion import models
from altdiffusion.diffusion.objective import Schedule
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.sampler import Sampler
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import StartConfig
from altdiffusion.training.exports.export import export_checkpoint
from altdiffusion.training.launch_local import run_local
from tests.training_lake import Recorder, bundle, config, file_hashes, write_latents


def test_stock_diffusers_opens_and_runs_an_export(lake: str) -> None:
    from diffusers import DiffusionPipeline

    found = run_local(config(lake, trainable="kv"), lake, reporter=Recorder())
    folder = export_checkpoint(lake, "align")
    assert folder == f"{lake}/exports/align/step-00000012"
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    expected = found.tensors(checkpoints.UNET) | found.tensors(checkpoints.EMA)
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    image = pipeline("cat", height=16, width=16, num_inference_steps=2, generator=generator, output_type="np").images[0]
    assert image.shape == (16, 16, 3)
    assert np.isfinite(image).all()
    assert not list(Path(folder).rglob("*.bin"))


def test_non_ema_weights_and_any_step_can_be_exported(lake: str) -> None:
    run_local(config(lake), lake, reporter=Recorder())
    folder = export_checkpoint(lake, "align", step=9, weights="raw")
    assert folder.endswith("/align/step-00000009-raw")
    raw = checkpoints.open_step(lake, "align", 9).tensors(checkpoints.UNET)
    unet = models.load_bundle(folder).unet.state_dict()
    assert all(torch.equal(tensor, raw[name]) for name, tensor in unet.items())
    assert json.loads((Path(folder) / "lineage.json").read_text())["weights"] == "raw"


def test_one_line_draws_with_a_run_that_has_no_export_yet(lake: str, tmp_path: Path) -> None:
    from altdiffusion.cli import main

    run_local(config(lake, steps=3), lake, reporter=Recorder())
    line = ["generate", "cat", "--steps", "1", "--size", "16", "--no-sheet", "--lake", lake, "--out", f"{tmp_path}/out"]
    assert main([*line, "--model", "align"]) == 0
    checkpoint = checkpoints.open_step(lake, "align", 3)
    assert checkpoint is not None and Path(lake, "exports", "align", "step-00000003").is_dir()
    assert str(checkpoint.ref) in Lake(lake).version("drawn").manifest.parents
    assert main([*line, "--model", "align/step-3"]) == 0
    assert main([*line, "--model", "align/step-4"]) == 2


def test_an_export_is_made_once_and_repaired(lake: str) -> None:
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    folder = Path(export_checkpoint(lake, "align"))
    before, times = file_hashes(folder), {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    export_checkpoint(lake, "align")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == times
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    export_checkpoint(lake, "align")
    assert file_hashes(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000003"]


def test_another_text_encoder_travels_through_the_stages(lake: str, tmp_path: Path) -> None:
    from altdiffusion.diffusion.text_encoder import save_text_encoder

    other = bundle(seed=8)
    save_text_encoder(other.text_encoder, other.tokenizer, f"{lake}/models/encoder")
    write_latents(lake, "fine", 60, seed=4)
    start = StartConfig(base=f"{lake}/models/base", text_encoder=f"{lake}/models/encoder")
    first = run_local(replace(config(lake, steps=3), start=start), lake, reporter=Recorder())
    settings = config(lake, run="quality", stage="quality", steps=3, datasets=[{"name": "fine"}])
    second = run_local(replace(settings, start=StartConfig(checkpoint="align")), lake, reporter=Recorder())
    folder = export_checkpoint(lake, "quality")
    exported = models.load_bundle(folder)
    for name, tensor in other.text_encoder.state_dict().items():
        assert torch.equal(tensor, exported.text_encoder.state_dict()[name])
    lineage = json.loads((Path(folder) / "lineage.json").read_text())
    assert lineage["checkpoint"] == str(second.ref)
    assert lineage["datasets"] == [str(Lake(lake).version(name).ref) for name in ("fine", "latents")]
    assert [model.partition("@")[0] for model in lineage["models"]] == ["model:base", "model:encoder"]
    assert second.parents == (str(Lake(lake).version("fine").ref), str(first.ref))


@pytest.mark.parametrize("base", ["PNDMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("zero", [True, False])
def test_velocity_and_a_schedule_without_signal_reach_the_stock_pipeline(lake: str, base: str, zero: bool) -> None:
    """Trained on v, with or without signal in the last step: the export's own scheduler knows, whatever the base had
    (Stable Diffusion 2.1 ships PNDM, which has no such setting), and our sampler draws what the pipeline draws."""
    import diffusers

    kind = getattr(diffusers, base)
    scheduler = kind.from_config(models.scheduler_config(), skip_prk_steps=True)
    models.save_bundle(replace(bundle(), scheduler=scheduler), f"{lake}/models/base")
    objective = {"prediction": "v_prediction", "zero_terminal_snr": zero, "min_snr_gamma": 5.0, "relearn": True}
    run_local(config(lake, objective=objective, steps=6, caption_drop=0.1), lake, reporter=Recorder())
    folder = export_checkpoint(lake, "align")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    own = pipeline.scheduler.config
    assert own.prediction_type == "v_prediction"
    if not zero:
        assert type(pipeline.scheduler) is kind
        return
    assert type(pipeline.scheduler) is diffusers.DDIMScheduler
    assert (own.rescale_betas_zero_snr, own.timestep_spacing) == (True, "trailing")
    trained_on = Schedule.scaled_linear(zero_terminal_snr=True).signal ** 2
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, trained_on, rtol=2e-4, atol=1e-6)
    sampler = Sampler(models.load_bundle(folder), sampler="ddim", steps=5, guidance_scale=3.0, batch_rows=2)
    drawn = sampler.draw(["cat", "dog"], [1, 2], 16, 16)
    theirs = pipeline(
        ["cat", "dog"], latents=sampler.initial_latents([1, 2], 16, 16), num_inference_steps=5, guidance_scale=3.0,
        height=16, width=16, output_type="np",
    ).images  # fmt: skip
    np.testing.assert_array_equal(drawn, (theirs * 255).round().astype(np.uint8))
    assert int(pipeline.scheduler.timesteps[0]) == 999  # it begins where there is no signal
    assert drawn.std() > 0
    other = Sampler(models.load_bundle(folder), sampler="dpmpp", steps=5, guidance_scale=3.0, batch_rows=2)
    assert int(other._denoiser._scheduler.timesteps[0] if other.draw(["cat"], [1], 16, 16).std() > 0 else 0) == 999


def test_a_run_without_checkpoints_is_named(lake: str) -> None:
    with pytest.raises(AltDiffusionError, match="run nothing: has no checkpoint"):
        export_checkpoint(lake, "nothing")
