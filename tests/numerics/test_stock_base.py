"""Bases as people have them: single files, AltDiffusion's own folder of pickles; and wrong files that look alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from altdiffusion.diffusion import models
from altdiffusion.diffusion.single_file import single_file_tensors
from altdiffusion.diffusion.stock_base import stock_base, stock_base_at_hand
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.model import resolve_model
from altdiffusion.generation.settings import ModelConfig
from altdiffusion.training.exports.export import export_checkpoint
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.rehearse import rehearse
from altdiffusion.training.run.resolve import resolve
from tests.hub_server import REVISION, Hub, serve
from tests.training_lake import Recorder, bundle, config, english_bundle, file_hashes, tokenizer

Tensors = dict[str, Tensor]


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """Write a single file in half precision, with averages and buffers of its training, and a folder of configs."""
    whole = english_bundle()
    models.save_configs(whole, tmp_path / "configs")
    tensors = {name: tensor.half() for name, tensor in single_file_tensors(whole, "model").items()}
    others = {
        "model_ema.decay": torch.ones(1),
        "betas": torch.ones(3),
        "cond_stage_model.model.logit_scale": torch.ones(1),
    }
    save_file(tensors | others, tmp_path / "dream.safetensors")
    return tmp_path / "dream.safetensors"


def same(folder: str, wanted: models.ModelBundle) -> bool:
    found = models.load_bundle(folder)
    return all(
        torch.equal(tensor, getattr(wanted, part).state_dict()[name].half().float())
        for part in ("unet", "vae", "text_encoder")
        for name, tensor in getattr(found, part).state_dict().items()
        if tensor.is_floating_point()
    )


def test_a_single_file_is_converted_once_and_is_a_model_to_draw_with(lake: str, single: Path) -> None:
    settings = ModelConfig(folder=str(single), base_configs=str(single.parent / "configs"))
    model = resolve_model(settings, lake)
    assert model.uri.startswith(f"{lake}/models/dream--") and model.uri.endswith("--base")
    assert same(model.uri, english_bundle())
    assert json.loads(Path(model.uri, "lineage.json").read_text())["converted_from"].startswith("model:dream@")
    before = {path: path.stat().st_mtime_ns for path in Path(model.uri).rglob("*")}
    assert resolve_model(settings, lake) == model
    assert {path: path.stat().st_mtime_ns for path in Path(model.uri).rglob("*")} == before
    with pytest.raises(AltDiffusionError, match=r"single file of Stable Diffusion \(text of width 16\).*base_configs"):
        resolve_model(ModelConfig(folder=str(single)), lake)


def test_an_exported_single_file_is_a_base_with_nothing_else(lake: str, tmp_path: Path) -> None:
    """Its folder brings configs and the multilingual encoder; a dry run tries the conversion and changes nothing."""
    run_local(config(lake, steps=2), lake, reporter=Recorder())
    folder = export_checkpoint(lake, "align", format="single-file")
    settings = config(lake, run="again", start={"base": folder})
    before = file_hashes(lake)
    _, noising, missing = rehearse(settings, lake)
    assert noising.prediction == "epsilon" and missing == [f"{folder} (it is fetched or converted when the run starts)"]
    assert file_hashes(lake) == before
    base = resolve(settings, lake).base
    ours, theirs = models.load_bundle(base), models.load_bundle(export_checkpoint(lake, "align"))
    for part in ("unet", "vae", "text_encoder"):
        state = getattr(theirs, part).state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in getattr(ours, part).state_dict().items())
    assert rehearse(settings, lake)[2] == []


def renamed(prefix: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(prefix, new, 1): tensor for name, tensor in tensors.items()}


def only(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


CONTEXT = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "SDXL": (renamed("cond_stage_model.", "conditioner.embedders.0."), "is a checkpoint of Stable Diffusion XL"),
    "Flux": (lambda _: {"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}, "Stable Diffusion 3 or Flux"),
    "LoRA": (lambda _: {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, r"adapters \(LoRA\).*start\.lora"),
    "VAE": (only("first_stage_model."), "holds a VAE and no UNet"),
    "bare VAE": (
        lambda tensors: renamed("first_stage_model.", "")(only("first_stage_model.")(tensors)), "a VAE and no UNet"
    ),
    "UNet alone": (only("model.diffusion_model."), "holds a UNet and no VAE"),
    "network": (lambda _: {"down_blocks.0.resnets.0.conv1.weight": torch.ones(2, 2)}, "one network of a model folder"),
    "nothing": (lambda _: {"x.weight": torch.ones(2)}, "holds no UNet"),
    "another width": (
        lambda tensors: tensors | {CONTEXT: torch.ones(16, 24)}, r"has the shape \[16, 24\].*requires \[16, 16\]"
    ),
    "a key less": (
        lambda tensors: {name: one for name, one in tensors.items() if name != CONTEXT}, f"lacks the key {CONTEXT}"
    ),
    "a key more": (lambda tensors: tensors | {"control_model.x": torch.ones(1)}, "holds the key control_model.x"),
    "8 bits": (
        lambda tensors: tensors | {CONTEXT: tensors[CONTEXT].to(torch.float8_e4m3fn)}, "of a type that is not read"
    ),
    "NaN": (lambda tensors: tensors | {CONTEXT: torch.full((16, 16), torch.nan)}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_named_and_leaves_nothing(lake: str, single: Path, kind: str) -> None:
    change, message = WRONG[kind]
    save_file({name: one.contiguous() for name, one in change(load_file(single)).items()}, single)
    before = sorted(os.listdir(f"{lake}/models"))
    with pytest.raises(AltDiffusionError, match=f"(?s){message}"):
        stock_base(str(single), lake, str(single.parent / "configs"))
    assert sorted(os.listdir(f"{lake}/models")) == before


def test_a_file_that_is_cut_off_or_a_pickle_or_missing_is_named(lake: str, single: Path) -> None:
    single.write_bytes(single.read_bytes()[:-10])
    with pytest.raises(AltDiffusionError, match="its header requires"):
        stock_base(str(single), lake, str(single.parent / "configs"))
    with pytest.raises(AltDiffusionError, match=r"is a pickle.*use its \.safetensors"):
        rehearse(config(lake, start={"base": "/models/dream.ckpt"}), lake)
    with pytest.raises(AltDiffusionError, match=r"gone\.safetensors: does not exist"):
        stock_base("/models/gone.safetensors", lake)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Write AltDiffusion-m18's whole folder, small: every network a pickle, the encoder of FlagAI's class."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    folder, plain = tmp_path / "AltDiffusion-m18", bundle(seed=3)
    models.save_bundle(plain, folder)
    for part in ("unet", "vae"):
        file = folder / part / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    shape = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 80, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    parts = {
        "roberta": XLMRobertaModel(XLMRobertaConfig(**shape), add_pooling_layer=False),
        "pre_LN": nn.LayerNorm(16),
        "transformation": nn.Linear(16, 16),
        "transformation_pre": nn.Linear(16, 16),
    }
    weights = {f"{part}.{name}": tensor for part, net in parts.items() for name, tensor in net.state_dict().items()}
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save(weights, folder / "text_encoder" / "pytorch_model.bin")
    settings = shape | {"model_type": "xlm-roberta", "has_pre_transformation": True, "project_dim": 16}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(settings))
    index = json.loads((folder / "model_index.json").read_text()) | {
        "_class_name": "AltDiffusionPipeline",
        "text_encoder": ["alt_diffusion", "RobertaSeriesModelWithTransformation"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    return folder


def test_the_published_model_is_a_base_as_a_whole(lake: str, published: Path) -> None:
    from diffusers import DiffusionPipeline

    settings = config(lake, steps=2, checkpoint_every=2, trainable="kv", start={"base": str(published)})
    assert rehearse(settings, lake)[2] == [f"{published} (it is fetched or converted when the run starts)"]
    run = resolve(settings, lake)
    assert json.loads(Path(run.base, "lineage.json").read_text())["licence"] == "creativeml-openrail-m"
    assert stock_base_at_hand(str(published), lake) and not list(Path(run.base).rglob("*.bin"))
    run_local(settings, lake, reporter=Recorder())
    pipeline = DiffusionPipeline.from_pretrained(export_checkpoint(lake, "align"), local_files_only=True)
    weights = torch.load(published / "text_encoder" / "pytorch_model.bin")
    vae = torch.load(published / "vae" / "diffusion_pytorch_model.bin")
    assert torch.equal(
        pipeline.text_encoder.state_dict()["transformation.weight"], weights["transformation_pre.weight"]
    )
    assert all(torch.equal(tensor, vae[name]) for name, tensor in pipeline.vae.state_dict().items())
    assert resolve_model(ModelConfig(folder=str(published)), lake).uri == run.base


class Evil:
    """A pickle that would make a folder where it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(lake: str, published: Path, tmp_path: Path) -> None:
    file = published / "vae" / "diffusion_pytorch_model.bin"
    torch.save({**torch.load(file), "more": Evil(tmp_path / "ran")}, file)
    for attempt in (rehearse, resolve):
        with pytest.raises(AltDiffusionError, match="holds more than tensors and plain values is not opened"):
            attempt(config(lake, start={"base": str(published)}), lake)
    assert not (tmp_path / "ran").exists() and sorted(os.listdir(f"{lake}/models")) == ["base"]


def test_all_of_them_come_from_the_hub(
    lake: str, single: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    repository = tmp_path / "repository"
    (repository / "fp16").mkdir(parents=True)
    single.rename(repository / "fp16" / "dream.safetensors")
    (repository / "other.safetensors").write_bytes(b"another")
    for path in (single.parent / "configs").iterdir():
        path.rename(repository / path.name)
    (repository / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"never fetched")
    with serve(Hub(repository)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        name = f"hf://someone/small-diffusion@{REVISION}"
        assert not stock_base_at_hand(f"{name}/fp16/dream.safetensors", lake, name)
        found = stock_base(f"{name}/fp16/dream.safetensors", lake, name)
        assert same(found, english_bundle())
        assert not any("unet/diffusion" in request or "other" in request for request in hub.requests)
        asked = len(hub.requests)
        assert stock_base(f"{name}/fp16/dream.safetensors", lake, name) == found and len(hub.requests) == asked
        with pytest.raises(AltDiffusionError, match=r"holds no file absent\.safetensors"):
            stock_base(f"{name}/absent.safetensors", lake, name)
    with serve(Hub(published, repo="BAAI/AltDiffusion-m18")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        found = stock_base(f"hf://BAAI/AltDiffusion-m18@{REVISION}", lake)
        assert models.load_bundle(found).text_encoder.config.num_hidden_layers == 1
