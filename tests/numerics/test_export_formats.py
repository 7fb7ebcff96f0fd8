"""Exports for other programs: a single file and adapters that stock loaders read without a difference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from altdiffusion.cli import main
from altdiffusion.diffusion import models
from altdiffusion.diffusion.original_names import clip_names, open_clip_names, unet_names, vae_names
from altdiffusion.diffusion.single_file import single_file_tensors
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.adapters import merge, resolve_adapters
from altdiffusion.generation.settings import AdapterConfig
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.exports.export import export_checkpoint
from altdiffusion.training.launch_local import run_local
from tests.training_lake import Recorder, config, english_bundle, file_hashes

LORA = {"lora": {"rank": 3, "alpha": 6.0}, "optimizer": {"lr": 1e-2, "warmup_steps": 2, "ema_decay": 0.9}}


def draw(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return pipeline(
        "cat", height=16, width=16, num_inference_steps=3, generator=generator, output_type="np"
    ).images  # fmt: skip


@pytest.mark.parametrize(
    ("linear", "width", "heads"), [(True, 1024, (5, 10, 20, 20)), (False, 768, 8)], ids=["SD 2", "SD 1"]
)
def test_the_names_are_those_of_the_published_checkpoints(linear: bool, width: int, heads: Any) -> None:
    """In the real shapes: diffusers' converters read our names back to exactly its own, tensor by tensor."""
    from diffusers.loaders import single_file_utils as stock

    config = models.unet_config_sd21() | {
        "cross_attention_dim": width, "attention_head_dim": heads, "use_linear_projection": linear,
    }  # fmt: skip
    unet, vae = models.build_unet(config, "meta"), models.build_vae(models.vae_config_sd21(), "meta")
    own = unet.state_dict()
    names = unet_names(own, 2)
    assert len(names) == 686 and "model.diffusion_model.output_blocks.5.2.conv.weight" in names
    marked = {name: torch.tensor(float(place)) for place, name in enumerate(names)}
    read = stock.convert_ldm_unet_checkpoint(marked, dict(unet.config))
    assert {name: (part,) for name, part in zip(names, read_back(names, marked, read), strict=True)} == names
    names = vae_names(vae.state_dict(), 4)
    assert len(names) == 248 and "first_stage_model.decoder.mid.attn_1.proj_out.weight" in names
    marked = {name: torch.full((1, 1, 1, 1), float(place)) for place, name in enumerate(names)}
    read = stock.convert_ldm_vae_checkpoint(marked, dict(vae.config))
    assert {name: (part,) for name, part in zip(names, read_back(names, marked, read), strict=True)} == names


def read_back(names: Any, marked: dict[str, torch.Tensor], read: dict[str, torch.Tensor]) -> list[str]:
    """Return diffusers' name of every tensor of the file, by the number that marks it."""
    by_mark = {float(tensor.flatten()[0]): name for name, tensor in read.items()}
    return [by_mark[float(marked[name].flatten()[0])] for name in names]


@pytest.mark.parametrize("linear", [True, False], ids=["SD 2", "SD 1"])
def test_stock_diffusers_opens_a_single_file_with_clips_encoder_in_it(tmp_path: Path, linear: bool) -> None:
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import save_file

    whole = english_bundle(linear)
    tensors = single_file_tensors(whole, "model")
    save_file(tensors, tmp_path / "model.safetensors")
    assert len(clip_names(whole.text_encoder.state_dict())) > len(open_clip_names(whole.text_encoder.state_dict()))
    prefix = "cond_stage_model.model." if linear else "cond_stage_model.transformer.text_model."
    assert any(name.startswith(prefix) for name in tensors)
    models.save_configs(whole, tmp_path / "config")
    models.save_bundle(whole, tmp_path / "folder")
    one = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(tmp_path / "config"), local_files_only=True
    )
    other = StableDiffusionPipeline.from_pretrained(str(tmp_path / "folder"), local_files_only=True)
    for part in ("unet", "vae", "text_encoder"):
        state = getattr(other, part).state_dict()
        assert state.keys() == getattr(one, part).state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in getattr(one, part).state_dict().items())
    assert np.array_equal(draw(one), draw(other))


def test_a_single_file_of_a_multilingual_run_draws_what_its_folder_draws(lake: str) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import AltCLIPTextModel

    run_local(config(lake, steps=3), lake, reporter=Recorder())
    folder = Path(export_checkpoint(lake, "align", format="single-file"))
    assert folder.name == "step-00000003-single-file"
    (file,) = folder.glob("*.safetensors")
    assert file.name == "align-step-00000003.safetensors"
    assert {name.partition(".")[0] for name in load_file(file)} == {"model", "first_stage_model"}
    encoder = AltCLIPTextModel.from_pretrained(folder / "text_encoder")
    one = StableDiffusionPipeline.from_single_file(
        str(file), config=str(folder), text_encoder=encoder, local_files_only=True
    )
    other = StableDiffusionPipeline.from_pretrained(export_checkpoint(lake, "align"), local_files_only=True)
    for part in ("unet", "vae", "text_encoder"):
        state = getattr(other, part).state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in getattr(one, part).state_dict().items())
    assert type(one.text_encoder).__name__ == "AltCLIPTextModel"
    assert np.abs(draw(one) - draw(other)).max() == 0.0
    card = ModelCard.load(folder / "README.md")
    assert f'f"{{folder}}/{file.name}", config=folder, text_encoder=encoder' in card.text
    lineage = json.loads((folder / "lineage.json").read_text())
    assert (lineage["format"], "dtype" in lineage) == ("single-file", False)


def test_half_precision_has_a_folder_of_its_own_and_refuses_what_overflows(
    lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    whole = models.load_bundle(export_checkpoint(lake, "align")).unet.state_dict()
    folder = export_checkpoint(lake, "align", dtype="fp16")
    assert folder.endswith("/step-00000003-fp16")
    half = load_file(f"{folder}/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, whole[name].half()) for name, tensor in half.items())
    assert json.loads(Path(folder, "lineage.json").read_text())["dtype"] == "fp16"
    single = Path(export_checkpoint(lake, "align", format="single-file", dtype="fp16"))
    assert {tensor.dtype for tensor in load_file(next(single.glob("*.safetensors"))).values()} == {torch.float16}
    found = checkpoints.open_step(lake, "align", 3)
    monkeypatch.setattr("altdiffusion.training.exports.export.load_weights", lambda lake, unet, *_: spoil(unet))
    with pytest.raises(AltDiffusionError, match=rf"(?s){found.ref.short}.*not finite as float16.*--dtype fp32"):
        export_checkpoint(lake, "align", weights="raw", dtype="fp16")
    assert not [path for path in Path(lake, "exports", "align").iterdir() if "raw" in path.name or "tmp" in path.name]


def spoil(unet: torch.nn.Module) -> None:
    with torch.no_grad():
        next(unet.parameters()).fill_(1e6)


def test_adapters_in_both_layouts_draw_the_fused_image(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By stock diffusers and by our own reader; the keys are those of diffusers' own conversion, the alpha is ours."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import convert_state_dict_to_kohya

    run_local(config(lake, steps=4, **LORA), lake, reporter=Recorder())
    open_stock: Callable[[str], Any] = lambda path: DiffusionPipeline.from_pretrained(path, local_files_only=True)  # noqa: E731
    fused = draw(open_stock(export_checkpoint(lake, "align")))
    base = f"{lake}/models/base"
    assert np.abs(draw(open_stock(base)) - fused).max() > 1e-3
    for kind, name in (
        ("lora-diffusers", "pytorch_lora_weights.safetensors"),
        ("lora-kohya", "align-step-00000004.safetensors"),
    ):
        assert main(["export", "align", "--format", kind, "--lake", lake]) == 0
        folder = capsys.readouterr().out.strip()
        assert sorted(path.name for path in Path(folder).iterdir()) == sorted(["README.md", "lineage.json", name])
        stock = open_stock(base)
        stock.load_lora_weights(folder, weight_name=name)
        np.testing.assert_allclose(draw(stock), fused, atol=1e-4)
        ours = models.load_bundle(base)
        merge(ours, resolve_adapters([AdapterConfig(folder=f"{folder}/{name}")], lake, base))
        wanted = models.load_bundle(export_checkpoint(lake, "align")).unet.state_dict()
        for key, tensor in ours.unet.state_dict().items():
            torch.testing.assert_close(tensor, wanted[key], rtol=0, atol=1e-6)
        head = ModelCard.load(f"{folder}/README.md").data.to_dict()
        assert {"lora", "diffusers"} <= set(head["tags"]) and head["library_name"] == "diffusers"
        before = file_hashes(folder)
        assert main(["export", "align", "--format", kind, "--lake", lake]) == 0
        assert file_hashes(capsys.readouterr().out.strip()) == before
    published = convert_state_dict_to_kohya(
        load_file(f"{lake}/exports/align/step-00000004/{'pytorch_lora_weights'}.safetensors")
    )
    written = load_file(f"{folder}/{name}")
    assert written.keys() == published.keys()
    assert all(torch.equal(tensor, written[key]) for key, tensor in published.items() if not key.endswith("alpha"))
    assert {float(tensor) for key, tensor in written.items() if key.endswith("alpha")} == {6.0}
    assert main(["export", "align", "--format", "lora-kohya", "--dtype", "fp16", "--lake", lake]) == 0
    half = load_file(f"{capsys.readouterr().out.strip()}/{name}")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}


def test_adapters_of_a_run_without_any_are_refused_before_work(
    lake: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    monkeypatch.setattr("altdiffusion.training.checkpoints.format.latest_verified", None)  # not even read
    assert main(["export", "align", "--format", "lora-kohya", "--lake", lake]) == 2
    assert "asks for adapters, and the run has none" in capsys.readouterr().err
    assert not Path(lake, "exports").exists()
