"""A published text encoder as a start point, from the config to the export; and the command that converts one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from altdiffusion.cli import main
from altdiffusion.diffusion import models
from altdiffusion.diffusion.text_encoder import load_text_encoder
from altdiffusion.training.export import export_checkpoint
from altdiffusion.training.local import run_local
from altdiffusion.training.resolve import resolve
from tests.training_lake import Recorder, config, tokenizer

CONFIG = {
    "architectures": ["RobertaSeriesModelWithTransformation"],
    "model_type": "xlm-roberta",
    "has_pre_transformation": True,
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 80,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "project_dim": 16,
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """AltDiffusion-m18's layout with a few thousand weights: `text_encoder` with a pickled state dict, `tokenizer`."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(11)
    plain = {key: value for key, value in CONFIG.items() if isinstance(value, (int, float)) and key != "project_dim"}
    parts = {
        "roberta": XLMRobertaModel(XLMRobertaConfig(**plain), add_pooling_layer=False),
        "pre_LN": nn.LayerNorm(16),
        "transformation": nn.Linear(16, 16),
        "transformation_pre": nn.Linear(16, 16),
    }
    weights = {f"{part}.{name}": tensor for part, net in parts.items() for name, tensor in net.state_dict().items()}
    folder = tmp_path / "AltDiffusion-m18"
    (folder / "text_encoder").mkdir(parents=True)
    (folder / "text_encoder" / "config.json").write_text(json.dumps(CONFIG))
    torch.save(weights, folder / "text_encoder" / "pytorch_model.bin")
    tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    return folder


def test_a_published_encoder_is_converted_once_and_trained_with(lake: str, published: Path) -> None:
    from diffusers import DiffusionPipeline

    start = {"base": f"{lake}/models/base", "text_encoder": str(published)}
    settings = config(lake, steps=2, checkpoint_every=2, trainable="kv", start=start)
    run = resolve(settings, lake)
    encoder = Path(str(run.text_encoder))
    assert encoder.parent == Path(lake) / "models" and encoder.name.startswith("AltDiffusion-m18--")
    lineage = json.loads((encoder / "lineage.json").read_text())
    assert lineage["converted_from"].startswith("model:AltDiffusion-m18@")
    assert lineage["licence"] == "creativeml-openrail-m"
    before = (encoder / "text_encoder" / "model.safetensors").stat().st_mtime_ns
    assert resolve(settings, lake).fingerprint == run.fingerprint
    assert (encoder / "text_encoder" / "model.safetensors").stat().st_mtime_ns == before

    run_local(settings, lake, reporter=Recorder())
    folder = export_checkpoint(lake, "align")
    weights = torch.load(published / "text_encoder" / "pytorch_model.bin")
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    exported = pipeline.text_encoder.state_dict()
    assert torch.equal(exported["transformation.weight"], weights["transformation_pre.weight"])
    assert type(pipeline.text_encoder).__name__ == "AltCLIPTextModel"
    assert models.load_bundle(folder).text_encoder.config.use_attention_mask is True


def test_the_command_converts(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "encoder"
    assert main(["convert", str(published), str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    encoder, _ = load_text_encoder(target)
    assert len(encoder.roberta.encoder.layers) == 1
    assert main(["convert", str(published), str(target)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["convert", str(target), str(tmp_path / "again")]) == 2
    assert "is no published text encoder" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "again")]) == 2
    assert "is missing or empty" in capsys.readouterr().err
