"""A published text encoder as a start point, from the config to the export; and the command that converts one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from altdiffusion.cli import main
from altdiffusion.diffusion import models
from altdiffusion.diffusion.convert import convert_folder, read_tokenizer
from altdiffusion.diffusion.text_encoder import load_text_encoder
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.exports.export import export_checkpoint
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.run.resolve import resolve
from tests.hub_server import REVISION, Hub, serve
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
    """Write AltDiffusion-m18's layout, small: `text_encoder` with a pickled state dict, `tokenizer`."""
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


def test_published_encoders_come_from_the_hub_as_well(
    lake: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the encoder and its tokenizer is fetched; it is converted as a folder would be."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (published / "unet").mkdir()
    (published / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not wanted")
    with serve(Hub(published, repo="BAAI/AltDiffusion-m18")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        start = {"base": f"{lake}/models/base", "text_encoder": f"hf://BAAI/AltDiffusion-m18@{REVISION}"}
        run = resolve(config(lake, start=start), lake)
        asked = len(hub.requests)
        assert resolve(config(lake, start=start), lake).fingerprint == run.fingerprint
        assert len(hub.requests) == asked and not any("unet" in request for request in hub.requests)
        (published / "text_encoder" / "pytorch_model.bin").unlink()
        hub.revision = "f" * 40
        with pytest.raises(AltDiffusionError, match="holds no text encoder with its tokenizer"):
            resolve(config(lake, start=start | {"text_encoder": f"hf://BAAI/AltDiffusion-m18@{'f' * 40}"}), lake)
    by_folder = tmp_path / "by hand"
    shutil.copytree(str(run.text_encoder), by_folder)
    again = resolve(config(lake, start=start | {"text_encoder": str(by_folder)}), lake)
    assert again.fingerprint == run.fingerprint
    assert load_text_encoder(str(run.text_encoder))[0].config.num_hidden_layers == 1


def test_a_tokenizer_of_sentencepiece_alone_is_read_with_xlm_rs_ids(tmp_path: Path) -> None:
    """Without tokenizer.json and without the sentencepiece package; `<pad>` shifts the pieces by one."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    letters = [(letter, -2.0 - i / 100, 1) for i, letter in enumerate("abc")]
    for text, score, kind in (("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁", -1.0, 1), *letters):
        piece = model.pieces.add()
        piece.piece, piece.score, piece.type = text, score, kind
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    words = read_tokenizer(tmp_path)
    assert words("ab cx").input_ids == [0, 4, 5, 6, 4, 7, 3, 2]  # <s> _ a b _ c <unk> </s>
    assert (words.pad_token_id, words.mask_token_id, len(words), words.model_max_length) == (1, 8, 9, 512)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"something else")
    with pytest.raises(AltDiffusionError, match="cannot be opened"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(published: Path, tmp_path: Path) -> None:
    config = published / "text_encoder" / "config.json"
    weights = torch.load(published / "text_encoder" / "pytorch_model.bin")
    key = "roberta.embeddings.word_embeddings.weight"
    weights[key] = weights[key][:31].clone()
    torch.save(weights, published / "text_encoder" / "pytorch_model.bin")
    config.write_text(json.dumps(CONFIG | {"vocab_size": 31}))
    with pytest.raises(AltDiffusionError, match="has a vocabulary of 32, its text encoder one of 31"):
        convert_folder(published, tmp_path / "encoder")


def test_the_command_converts(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "encoder"
    assert main(["convert", str(published), str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    encoder, _ = load_text_encoder(target)
    assert len(encoder.roberta.encoder.layers) == 1
    assert main(["convert", str(published), str(target)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["convert", str(target), str(tmp_path / "again")]) == 2
    assert "is not a published text encoder" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "again")]) == 2
    assert "is missing or empty" in capsys.readouterr().err
    assert main(["convert", f"hf://BAAI/AltDiffusion-m18@{REVISION}", str(tmp_path / "again")]) == 2
    assert "start.text_encoder" in capsys.readouterr().err
