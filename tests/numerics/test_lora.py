"""Adapters: the formula, fused and apart in stock diffusers, small checkpoints, exact resume, stages on top of them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from altdiffusion.diffusion import models
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.sampler import Sampler
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import LoraConfig, TrainConfig
from altdiffusion.training.exports.export import export_checkpoint, export_start
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.model.lora import STOCK_FILE, adapters, add_adapters, fuse, target_layers
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.weights import load_weights
from tests.ranks import train_by_two
from tests.training_lake import Recorder, bundle, config, file_hashes, replace


def lora_config(lake: str, **changes: Any) -> TrainConfig:
    settings = {"lora": {"rank": 3, "alpha": 6.0}, "optimizer": {"lr": 1e-2, "warmup_steps": 2, "ema_decay": 0.9}}
    return config(lake, **(settings | changes))


def some_adapters(unet: torch.nn.Module, layers: list[str], rank: int) -> dict[str, Tensor]:
    generator, named = torch.Generator().manual_seed(4), dict(unet.named_parameters())
    found = {}
    for layer in layers:
        out, width = named[f"{layer}.weight"].shape
        found[f"{layer}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        found[f"{layer}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return found


def test_fusing_is_the_formula() -> None:
    """W + alpha / r B A, element by element, and nothing else moves."""
    unet = bundle().unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    layers = target_layers(unet, LoraConfig(), "kv")
    assert layers and all(layer.endswith(("attn2.to_k", "attn2.to_v")) for layer in layers)
    tensors = some_adapters(unet, layers, rank=2)
    fuse(unet, tensors, LoraConfig(rank=2, alpha=5.0))
    after = unet.state_dict()
    for layer in layers:
        down, up = tensors[f"{layer}.lora_A.weight"].tolist(), tensors[f"{layer}.lora_B.weight"].tolist()
        old, new = before.pop(f"{layer}.weight").tolist(), after[f"{layer}.weight"].tolist()
        for row in range(len(old)):
            for column in range(len(old[0])):
                wanted = old[row][column] + 5.0 / 2 * sum(up[row][k] * down[k][column] for k in range(2))
                assert abs(new[row][column] - wanted) < 1e-5
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_targets_are_what_both_settings_name() -> None:
    unet = bundle().unet
    everything = target_layers(unet, LoraConfig(), "all")
    assert {name.rpartition("attn")[2] for name in everything} == {
        f"{number}.{part}" for number in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert set(target_layers(unet, LoraConfig(), "attn2")) == {name for name in everything if "attn2" in name}
    with pytest.raises(AltDiffusionError, match="name no linear layer"):
        target_layers(unet, LoraConfig(targets=("to_q",)), "kv")
    with pytest.raises(AltDiffusionError, match="name no linear layer"):
        target_layers(unet, LoraConfig(targets=("o_q",)), "all")


def test_fresh_adapters_change_nothing_and_depend_on_the_seed_alone() -> None:
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([3, 700]), torch.randn(2, 8, 16)
    plain = bundle().unet
    with torch.no_grad():
        wanted = plain(*inputs, return_dict=False)[0]
    drawn = []
    for seed in (1, 1, 2):
        unet = bundle().unet
        add_adapters(unet, LoraConfig(rank=2), "all", seed)
        with torch.no_grad():
            torch.testing.assert_close(unet(*inputs, return_dict=False)[0], wanted, rtol=1e-6, atol=1e-6)
        found = adapters(unet)
        assert {parameter.requires_grad for _, parameter in found} == {True}
        assert sum(p.requires_grad for p in unet.parameters()) == len(found)
        drawn.append(torch.cat([p.detach().flatten() for name, p in found if "lora_A" in name]))
        for name, parameter in found:
            if "lora_A" in name:
                assert float(parameter.detach().abs().max()) <= parameter.shape[1] ** -0.5
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_fused_folder_and_the_adapters_apart_draw_the_same(lake: str) -> None:
    """Stock diffusers with the fused folder, and with the base and `load_lora_weights`."""
    from diffusers import DiffusionPipeline

    found = run_local(lora_config(lake), lake, reporter=Recorder())
    names = {path.name for path in Path(found.folder).iterdir()}
    assert checkpoints.LORA in names and checkpoints.UNET not in names
    folder = export_checkpoint(lake, "align")
    assert (Path(folder) / STOCK_FILE).is_file()
    with safe_open(Path(folder) / STOCK_FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        assert (metadata["unet.r"], metadata["unet.lora_alpha"]) == (3, 6.0)

    fused = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    apart = DiffusionPipeline.from_pretrained(f"{lake}/models/base", use_safetensors=True, local_files_only=True)
    plain = DiffusionPipeline.from_pretrained(f"{lake}/models/base", use_safetensors=True, local_files_only=True)
    apart.load_lora_weights(folder)
    assert not any("lora" in name for name in fused.unet.state_dict())
    drawn = []
    for pipeline in (fused, apart, plain):
        pipeline.set_progress_bar_config(disable=True)
        drawn.append(
            pipeline(
                "cat", height=16, width=16, num_inference_steps=4, output_type="np",
                generator=torch.Generator().manual_seed(1),
            ).images[0]
        )  # fmt: skip
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-4)
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3  # the adapters do something
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([3, 700]), torch.randn(2, 8, 16)
    with torch.no_grad():
        one, other = (pipeline.unet(*inputs, return_dict=False)[0] for pipeline in (fused, apart))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_only_adapters_train_and_resume_is_bit_exact(lake: str) -> None:
    whole = run_local(lora_config(lake, run="whole"), lake, reporter=Recorder())
    stopped = lora_config(lake, run="stopped")
    run_local(replace(stopped, steps=7), lake, reporter=Recorder())
    again = run_local(stopped, lake, reporter=Recorder())
    for file in (checkpoints.LORA, checkpoints.EMA, checkpoints.OPTIMIZER):
        one, other = whole.tensors(file), again.tensors(file)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    layers = target_layers(bundle().unet, LoraConfig(), "all")
    assert whole.tensors(checkpoints.LORA).keys() == {
        f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"
    }
    raw = models.load_bundle(export_checkpoint(lake, "whole", weights="raw")).unet.state_dict()
    base = bundle().unet.state_dict()
    moved = {name for name in base if not torch.equal(base[name], raw[name])}
    assert moved == {f"{layer}.weight" for layer in layers}


def test_two_workers_train_the_adapters_of_one(lake: str, tmp_path: Path) -> None:
    settings = lora_config(
        lake, steps=4, checkpoint_every=4, micro_batch=2, optimizer={"lr": 1e-2, "warmup_steps": 2, "eps": 1e-4}
    )
    one = run_local(settings, lake, reporter=Recorder())
    two_settings = replace(settings, run="two", workers=dataclasses.replace(settings.workers, count=2))
    train_by_two(lake, tmp_path / "store", two_settings)
    two = checkpoints.open_step(lake, "two", 4)
    for file in (checkpoints.LORA, checkpoints.EMA):
        for name, tensor in one.tensors(file).items():
            torch.testing.assert_close(two.tensors(file)[name], tensor, rtol=0, atol=1e-5)


def test_a_stage_goes_on_from_fused_adapters(lake: str) -> None:
    """Whole weights, then adapters on them, then whole weights again: each begins with what the one before was."""
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    second = lora_config(lake, run="adapt", stage="quality", steps=3, start={"checkpoint": "align"})
    found = run_local(second, lake, reporter=Recorder())
    exported = models.load_bundle(export_checkpoint(lake, "adapt")).unet
    by_hand = models.load_bundle(f"{lake}/models/base").unet
    load_weights(lake, by_hand, checkpoints.open_step(lake, "align", 3), "ema")
    first = {name: tensor.clone() for name, tensor in by_hand.state_dict().items()}
    fuse(by_hand, found.tensors(checkpoints.EMA), LoraConfig(rank=3, alpha=6.0))
    for name, tensor in exported.state_dict().items():
        assert torch.equal(tensor, by_hand.state_dict()[name])
    assert any(not torch.equal(tensor, first[name]) for name, tensor in exported.state_dict().items())

    third = config(lake, run="guide", stage="guidance", steps=1, checkpoint_every=1, start={"checkpoint": "adapt"},
                   optimizer={"lr": 1e-30, "warmup_steps": 0, "ema_decay": 0.0})  # fmt: skip
    run_local(third, lake, reporter=Recorder())
    raw = models.load_bundle(export_checkpoint(lake, "guide", weights="raw")).unet.state_dict()
    assert all(torch.equal(tensor, raw[name]) for name, tensor in exported.state_dict().items())


def test_adapters_in_bf16_with_checkpointing_and_8_bit_moments(lake: str) -> None:
    """The options meet: all of them on, the loss falls and the adapters stay float32."""
    recorder = Recorder()
    settings = lora_config(
        lake, steps=30, checkpoint_every=30, log_every=10, precision="bf16", caption_drop=0.0,
        compute={"gradient_checkpointing": True},
        optimizer={"kind": "adamw_8bit", "lr": 1e-2, "warmup_steps": 2, "ema_decay": 0.9},
    )  # fmt: skip
    found = run_local(settings, lake, reporter=recorder)
    assert {tensor.dtype for tensor in found.tensors(checkpoints.LORA).values()} == {torch.float32}
    assert recorder.reports[-1].loss < recorder.reports[0].loss


def test_without_peft_the_remedy_is_given_before_anything_runs(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AltDiffusionError, match=r"(?s)lora: needs the package peft.*\[lora\]"):
        resolve(lora_config(lake), lake)
    assert not (Path(lake) / "checkpoints").exists()


def test_step_0_is_a_stock_folder_that_draws_what_the_run_starts_from(lake: str) -> None:
    """Step 0 of a base and of a run, as `samples:` draws it: adapters begin at 0, no wrapped name reaches a file."""
    from diffusers import DiffusionPipeline

    run_local(config(lake, steps=3), lake, reporter=Recorder())
    first = export_checkpoint(lake, "align")
    for name, changes, source in (
        ("on-base", {}, f"{lake}/models/base"),
        ("on-run", {"stage": "quality", "start": {"checkpoint": "align"}}, first),
    ):
        run = resolve(lora_config(lake, run=name, **changes), lake)
        folder = export_start(run)
        with safe_open(f"{folder}/unet/diffusion_pytorch_model.safetensors", "pt") as file:
            assert not [key for key in file.keys() if "lora" in key or "base_layer" in key]  # noqa: SIM118
        drawn = []
        for path in (folder, source):
            pipeline = DiffusionPipeline.from_pretrained(path, use_safetensors=True, local_files_only=True)
            pipeline.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(3)
            drawn.append(
                pipeline("cat", height=16, width=16, num_inference_steps=3, generator=generator, output_type="np")
            )
        assert np.array_equal(drawn[0].images, drawn[1].images)
        ours = [Sampler(models.load_bundle(path), sampler="ddim", steps=2, guidance_scale=2.0, batch_rows=1)
                .draw(["cat"], [1], 16, 16) for path in (folder, source)]  # fmt: skip
        assert np.array_equal(*ours)
        before = file_hashes(folder)
        lineage = json.loads((Path(folder) / "lineage.json").read_text())
        del lineage["adapters"], lineage["checksum"]  # as an earlier version left it, whose folder no loader could open
        (Path(folder) / "lineage.json").write_text(json.dumps(lineage))
        assert export_start(run) == folder and file_hashes(folder) == before


def test_adapters_on_a_runs_export_draw_the_fused_image_and_the_card_names_it(lake: str) -> None:
    from diffusers import DiffusionPipeline

    run_local(config(lake, steps=3), lake, reporter=Recorder())
    first = export_checkpoint(lake, "align")
    run_local(
        lora_config(lake, run="adapt", stage="quality", steps=6, start={"checkpoint": "align"}),
        lake,
        reporter=Recorder(),
    )
    folder = export_checkpoint(lake, "adapt")
    card = (Path(folder) / "README.md").read_text()
    assert "do not load `pytorch_lora_weights.safetensors` on this folder" in card
    assert "an export of checkpoint:align/step-00000003@" in card and "(ema weights)" in card

    def draw(path: str, *adapters_: str) -> Any:
        pipeline = DiffusionPipeline.from_pretrained(path, use_safetensors=True, local_files_only=True)
        for one in adapters_:
            pipeline.load_lora_weights(one)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        return pipeline("cat", height=16, width=16, num_inference_steps=3, generator=generator, output_type="np").images

    fused, apart, twice, without = draw(folder), draw(first, folder), draw(folder, folder), draw(first)
    np.testing.assert_allclose(fused, apart, atol=2e-5)
    assert np.abs(fused - without).max() > 1e-3 and np.abs(fused - twice).max() > 1e-3


def test_an_adapter_without_its_other_half_is_named() -> None:
    unet = bundle().unet
    tensors = some_adapters(unet, target_layers(unet, LoraConfig(), "kv"), rank=2)
    up = next(name for name in tensors if ".lora_B." in name)
    one = {name: tensor for name, tensor in tensors.items() if name != up}
    with pytest.raises(AltDiffusionError, match=f"lacks the key {up}"):
        fuse(unet, one, LoraConfig(rank=2))
    with pytest.raises(AltDiffusionError, match=r"holds the key stray\.alpha, which nothing uses"):
        fuse(unet, tensors | {"stray.alpha": torch.ones(1)}, LoraConfig(rank=2))
