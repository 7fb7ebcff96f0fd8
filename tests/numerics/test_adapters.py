"""Adapters by setting: every layout against diffusers' own loader, and what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from altdiffusion.diffusion import models
from altdiffusion.diffusion.hub import ADAPTER_FILE
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.adapters import merge, resolve_adapters
from altdiffusion.generation.model import resolve_model
from altdiffusion.generation.settings import AdapterConfig
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.config import LoraConfig
from altdiffusion.training.model.lora import target_layers, write_stock_file
from pipelines.generate import model_lines
from tests import generation_lake, training_lake
from tests.hub_server import REVISION, Hub, serve

Tensors = dict[str, Tensor]
TEXT_LAYERS = [f"encoder.layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
CONV = "unet.conv_in.lora_A.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a model folder with CLIP's text encoder, which diffusers' loader of adapters knows."""
    bundle = training_lake.bundle()
    text = models.english_text_config_demo(32) | {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": training_lake.TOKENS, "projection_dim": 16,
    }  # fmt: skip
    encoder = models.build_english_text_encoder(text)
    models.save_bundle(bundle.with_text_encoder(encoder, bundle.tokenizer), tmp_path / "base")
    return tmp_path / "base"


def pairs(network: nn.Module, layers: list[str], rank: int = 2, seed: int = 4) -> Tensors:
    """Return random adapters of some layers, by peft's names."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for layer in layers:
        weight = network.get_submodule(layer).weight
        down = (rank, *weight.shape[1:])
        up = (weight.shape[0], rank, *[1] * (weight.dim() - 2))
        found[f"{layer}.lora_A.weight"] = torch.randn(down, generator=generator)
        found[f"{layer}.lora_B.weight"] = torch.randn(up, generator=generator)
    return found


def kohya(prefix: str, tensors: Mapping[str, Tensor], alpha: float) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.removesuffix(".weight").rpartition(".")
        stem = f"{prefix}_{layer.replace('.', '_')}"
        found[f"{stem}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = tensor
        found[f"{stem}.alpha"] = torch.tensor(alpha)
    return found


def adapter_file(base: Path, layout: str, folder: Path) -> Path:
    """Write adapters of the UNet, and of the text encoder where the layout has them."""
    bundle = models.load_bundle(base)
    tensors = pairs(bundle.unet, target_layers(bundle.unet, LoraConfig(), "all"))
    folder.mkdir()
    path = folder / ADAPTER_FILE
    if layout == "ours":
        write_stock_file(folder, tensors, LoraConfig(rank=2, alpha=5.0))
    elif layout == "peft":
        save_file({f"unet.{name}": tensor for name, tensor in tensors.items()}, path)
    elif layout == "old":
        named = {}
        for name, tensor in tensors.items():
            owner, _, rest = name.replace(".to_out.0.", ".to_out.").rpartition(".to_")
            own, kind = rest.split(".")[0], "down" if "lora_A" in name else "up"
            named[f"unet.{owner}.processor.to_{own}_lora.{kind}.weight"] = tensor
        save_file(named, path)
    else:
        text = {f"text_model.{name}": one for name, one in pairs(bundle.text_encoder, TEXT_LAYERS).items()}
        save_file(kohya("lora_unet", tensors, 1.5) | kohya("lora_te", text, 1.5), path)
    return path


def merged(base: Path, *adapters: tuple[Path, float]) -> models.ModelBundle:
    configs = [AdapterConfig(folder=str(path), scale=scale) for path, scale in adapters]
    bundle = models.load_bundle(base)
    merge(bundle, resolve_adapters(configs, str(base.parent), str(base)))
    return bundle


def states(bundle: Any) -> Tensors:
    return {
        f"{name}.{key}": tensor
        for name in ("unet", "text_encoder")
        for key, tensor in getattr(bundle, name).state_dict().items()
    }


@pytest.mark.parametrize("layout", ["ours", "peft", "old", "kohya"])
def test_it_is_what_diffusers_fuses(base: Path, tmp_path: Path, layout: str) -> None:
    """Up to 1e-6 of each weight: they add in another order of float32's operations."""
    from diffusers import DiffusionPipeline

    file = adapter_file(base, layout, tmp_path / "adapter")
    pipeline = DiffusionPipeline.from_pretrained(base, use_safetensors=True, local_files_only=True)
    pipeline.load_lora_weights(file.parent)
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    theirs, ours, plain = states(pipeline), states(merged(base, (file, 0.7))), states(models.load_bundle(base))
    moved = {name for name in plain if not torch.equal(ours[name], plain[name])}
    assert len(moved) >= 16
    assert any(name.startswith("text_encoder.") for name in moved) == (layout == "kohya")
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6)


def test_scale_0_is_the_base_and_two_add_up(base: Path, tmp_path: Path) -> None:
    one, two = adapter_file(base, "peft", tmp_path / "one"), adapter_file(base, "kohya", tmp_path / "two")
    plain, both = states(models.load_bundle(base)), states(merged(base, (one, 0.5), (two, 2.0)))
    nothing = states(merged(base, (one, 0.0)))
    assert all(torch.equal(nothing[name], plain[name]) for name in plain)
    first, second = states(merged(base, (one, 0.5))), states(merged(base, (two, 2.0)))
    for name, tensor in both.items():
        wanted = first[name] + second[name] - plain[name]
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-5)


def test_convolutions_have_adapters_too(base: Path, tmp_path: Path) -> None:
    layer, bundle = "down_blocks.0.resnets.0.conv1", models.load_bundle(base)
    tensors = pairs(bundle.unet, [layer])
    save_file(kohya("lora_unet", tensors, 2.0), tmp_path / "conv.safetensors")
    ours = merged(base, (tmp_path / "conv.safetensors", 1.0)).unet.get_submodule(layer).weight
    wanted = torch.einsum(
        "or,rihw->oihw", tensors[f"{layer}.lora_B.weight"][:, :, 0, 0], tensors[f"{layer}.lora_A.weight"]
    )
    torch.testing.assert_close(ours - bundle.unet.get_submodule(layer).weight, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"unet.other.lora_A.weight": torch.ones(2, 8)}, r"holds 1 keys that are of no layer.*unet\.other\.lora_A"),
        ({"text_encoder.other.lora_A.weight": torch.ones(2, 8)}, r"\(text_encoder\.other\.lora_A\.weight\)"),
        ({CONV: torch.ones(2, 4, 3, 3)}, r"unet\.conv_in: has only unet\.conv_in\.lora_A"),
        (
            {
                "unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3),
                "unet.conv_in.lora_B.weight": torch.ones(8, 3, 1, 1),
            },
            r"has the shapes \[2, 4, 3, 3\] and \[8, 3, 1, 1\], and the weight has \[8, 4, 3, 3\]",
        ),
        ({CONV: torch.full((2, 4, 3, 3), torch.nan)}, "not finite"),
        ({"unet.conv_in.dora_scale": torch.ones(8)}, r"unet\.conv_in\.dora_scale.*no DoRA"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(base: Path, tmp_path: Path, change: Tensors, problem: str) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file(change, file)
    with pytest.raises(AltDiffusionError, match=problem):
        resolve_adapters([AdapterConfig(folder=str(file))], str(tmp_path), str(base))


def test_files_that_are_not_one_adapter_are_refused(base: Path, tmp_path: Path) -> None:
    def refused(folder: Path, problem: str, **settings: Any) -> None:
        with pytest.raises(AltDiffusionError, match=problem):
            resolve_adapters([AdapterConfig(folder=str(folder), **settings)], str(tmp_path), str(base))

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "pytorch_lora_weights.bin").write_bytes(b"pickle")
    refused(folder, "is a pickle")
    refused(folder / "pytorch_lora_weights.bin", "is a pickle")
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").write_bytes(b"")
    refused(folder, "is a folder with 2 files in safetensors")
    refused(folder / "a.safetensors", "is not safetensors")
    refused(folder / "c.safetensors", "does not exist")
    refused(adapter_file(base, "peft", tmp_path / "good"), "has content .*, not 00000000 as the config", digest="0" * 8)


def test_the_job_draws_with_adapters_and_records_them(base: Path, tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=3)
    lora = [{"folder": str(adapter_file(Path(lake) / "models/base", "peft", tmp_path / "style")), "scale": 0.5}]
    plain, config = (generation_lake.config(lake, file_record=False, lora=some) for some in ([], lora))
    model = resolve_model(config.model, lake, config.lora)
    assert [ref.name for ref in model.refs] == ["base", "style"]
    before = generation_lake.generate(lake, plain).read().to_pylist()
    after = generation_lake.generate(lake, config).read().to_pylist()
    assert all(one["image"] != other["image"] for one, other in zip(before, after, strict=True))
    assert len({row["row_key"] for row in [*before, *after]}) == 6
    whole = generation_lake.config(lake, lora=[lora[0] | {"scale": 1.0}])
    other = generation_lake.generate(lake, whole).read(["row_key"])["row_key"].to_pylist()
    assert not set(other) & {row["row_key"] for row in [*before, *after]}
    lines = model_lines(config, lake, None)
    assert lines[1].startswith("adapter  model:style@") and "scale 0.5: 32 layers, rank 2, SHA-256 " in lines[1]
    parents = [str(ref) for ref in Lake(lake).version("drawn").manifest.parents]
    assert set(parents) >= {str(ref) for ref in model.refs} and len(parents) == 3


def test_an_adapter_of_the_hub_is_fetched_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    file = adapter_file(base, "kohya", tmp_path / "repository")
    file.rename(file.with_name("style.safetensors"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    lake, config = str(tmp_path / "lake"), AdapterConfig(folder=f"hf://someone/style@{REVISION}")
    with serve(Hub(file.parent, repo="someone/style")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        (found,) = resolve_adapters([config], lake, str(base))
        assert found.uri.startswith(lake) and found.layers == 36
        asked = len(hub.requests)
        assert resolve_adapters([config], lake, str(base)) == (found,) and len(hub.requests) == asked
