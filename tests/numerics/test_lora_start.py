"""A file of adapters as the start of a run of adapters: it begins exactly there, and what does not fit is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from altdiffusion.diffusion import models
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import LoraConfig, TrainConfig
from altdiffusion.training.exports.export import export_checkpoint, export_start
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.model.lora import target_layers, write_kohya_file
from altdiffusion.training.rehearse import rehearse
from altdiffusion.training.run.resolve import resolve
from tests.training_lake import Recorder, bundle, config

LORA = LoraConfig(rank=3, alpha=6.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a file of another person's, in kohya's layout."""
    unet, generator, found = bundle().unet, torch.Generator().manual_seed(4), {}
    for layer in target_layers(unet, LORA, "all"):
        rows, columns = unet.get_submodule(layer).weight.shape
        found[f"{layer}.lora_A.weight"] = torch.randn(3, columns, generator=generator) / 9
        found[f"{layer}.lora_B.weight"] = torch.randn(rows, 3, generator=generator) / 9
    write_kohya_file(tmp_path / "theirs.safetensors", found, LORA)
    return tmp_path / "theirs.safetensors"


def settings(lake: str, file: Path | str, **changes: Any) -> TrainConfig:
    start = {"base": f"{lake}/models/base", "lora": str(file)}
    return config(
        lake, **({"lora": {"rank": 3, "alpha": 6.0}, "start": start, "steps": 2, "checkpoint_every": 1} | changes)
    )


def test_a_run_begins_with_the_file_and_its_content_decides(lake: str, file: Path, tmp_path: Path) -> None:
    from altdiffusion.generation.adapters import merge, resolve_adapters
    from altdiffusion.generation.settings import AdapterConfig

    still = {"lr": 1e-30, "warmup_steps": 0, "ema_decay": 0.0}
    begun = settings(lake, file, optimizer=still)
    assert rehearse(begun, lake)[2] == []
    run = resolve(begun, lake)
    assert run.models[-1] == Ref("model", "theirs", str(run.lora_sha256))
    copy = shutil.copy(file, tmp_path / "copy.safetensors")
    assert resolve(settings(lake, copy, optimizer=still), lake).fingerprint == run.fingerprint
    plain = settings(lake, file, optimizer=still, start={"base": f"{lake}/models/base"})
    assert resolve(plain, lake).fingerprint != run.fingerprint
    found = run_local(begun, lake, reporter=Recorder())
    theirs, ours = load_file(file), found.tensors(checkpoints.LORA)
    for name, tensor in ours.items():
        layer, kind = name.removesuffix(".weight").rsplit(".", 1)
        key = f"lora_unet_{layer.replace('.', '_')}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"
        torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-7)
    assert len(ours) * 3 == len(theirs) * 2
    wanted = models.load_bundle(f"{lake}/models/base")
    merge(wanted, resolve_adapters([AdapterConfig(folder=str(file))], lake, f"{lake}/models/base"))
    first = models.load_bundle(export_start(run)).unet.state_dict()
    for name, tensor in wanted.unet.state_dict().items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-6)
    card = Path(export_checkpoint(lake, "align"), "README.md").read_text()
    assert "base, unchanged;" in card and "theirs" not in card.partition("## Use")[2].partition("## Made")[0]


def test_what_does_not_fit_is_named_with_both_values(lake: str, file: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"lora": {"rank": 4, "alpha": 6.0}}, r"has rank 3, lora\.rank is 4.*set lora\.rank: 3"),
        ({"lora": {"rank": 3}}, r"has alpha 6, lora\.alpha is 3.*set lora\.alpha: 6"),
        ({"lora": {"rank": 3, "alpha": 6.0, "targets": ["to_q"]}}, r"has adapters of .*set lora\.targets"),
        ({"trainable": "kv"}, r"lora\.targets and trainable give"),
    ):
        for attempt in (rehearse, resolve):
            with pytest.raises(AltDiffusionError, match=f"(?s)start\\.lora.*{message}"):
                attempt(settings(lake, file, **changes), lake)
    tensors = load_file(file)
    down = next(name for name in tensors if name.endswith("attn2_to_k.lora_down.weight"))
    save_file(tensors | {down: torch.ones(3, 24)}, tmp_path / "wide.safetensors")
    with pytest.raises(AltDiffusionError, match=r"\[3, 24\].*trained on this kind of base"):
        resolve(settings(lake, tmp_path / "wide.safetensors"), lake)
    save_file({f"{name}x": tensor for name, tensor in tensors.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(AltDiffusionError, match="keys that are of no layer of this model"):
        resolve(settings(lake, tmp_path / "odd.safetensors"), lake)
    for name, message in (("gone.safetensors", "does not exist"), ("theirs.pt", "is a pickle")):
        with pytest.raises(AltDiffusionError, match=message):
            resolve(settings(lake, tmp_path / name), lake)
    with pytest.raises(AltDiffusionError, match=r"key start\.lora: .*is given, and the run trains no adapters"):
        settings(lake, file, lora=None)
