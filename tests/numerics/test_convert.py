"""A text encoder of the published form and its conversion compute the same numbers, and no key is lost silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from altdiffusion.cli import main
from altdiffusion.diffusion.convert import convert_folder, convert_text_encoder, is_published
from altdiffusion.diffusion.text_encoder import encode_text, load_text_encoder
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files

CONFIG: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "project_dim": 24,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Published(nn.Module):
    """The published form: XLM-R, `pre_LN`, `transformation`, `transformation_pre`."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import XLMRobertaConfig, XLMRobertaModel

        self.roberta = XLMRobertaModel(
            XLMRobertaConfig(**{k: v for k, v in CONFIG.items() if k != "project_dim"}), add_pooling_layer=False
        )
        self.pre_LN = nn.LayerNorm(CONFIG["hidden_size"], eps=CONFIG["layer_norm_eps"])
        self.transformation = nn.Linear(CONFIG["hidden_size"], CONFIG["project_dim"])
        self.transformation_pre = nn.Linear(CONFIG["hidden_size"], CONFIG["project_dim"])

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.roberta(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        context: torch.Tensor = self.transformation_pre(self.pre_LN(states[-2]))
        return context


@pytest.fixture
def published() -> Published:
    torch.manual_seed(0)
    model = Published().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that no part is an identity that could be dropped unseen
    return model


def write(folder: Path, weights: dict[str, torch.Tensor], layout: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    suffix, sharded = layout.split("-")
    name = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"

    def put(part: dict[str, torch.Tensor], path: Path) -> None:
        part = {key: tensor.contiguous() for key, tensor in part.items()}
        if suffix == "safetensors":
            save_file(part, path)
        else:
            torch.save(part, path)

    if sharded == "one":
        put(weights, folder / name)
        return folder
    keys = list(weights)
    where = {key: f"part-{i % 2}.{suffix}" for i, key in enumerate(keys)}
    for file in sorted(set(where.values())):
        put({key: weights[key] for key in keys if where[key] == file}, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.parametrize("layout", ["safetensors-one", "safetensors-shards", "bin-one", "bin-shards"])
def test_conversion_is_exact(published: Published, tmp_path: Path, layout: str) -> None:
    weights = published.state_dict() | {"roberta.embeddings.position_ids": torch.arange(34)[None]}
    encoder = convert_text_encoder(write(tmp_path / "m18", weights, layout))
    ids = torch.randint(3, 97, (5, 12), generator=torch.Generator().manual_seed(1))
    ids[1, 7:], ids[2, 2:], ids[3, 1:] = 1, 1, 1
    with torch.no_grad():
        theirs, ours = published(ids, (ids != 1).long()), encode_text(encoder, ids, pad_id=1)
    assert ours.shape == (5, 12, 24)
    assert float((theirs - ours).abs().max()) == 0.0
    assert len(encoder.roberta.encoder.layers) == 2
    with torch.no_grad():
        unmasked = encoder(ids)[0]
    assert float((theirs - unmasked).abs().max()) > 1e-3  # the mask does matter here


@pytest.mark.parametrize(
    "key",
    [
        "transformation_pre.weight",
        "pre_LN.bias",
        "roberta.encoder.layer.1.output.dense.weight",
        "roberta.embeddings.word_embeddings.weight",
    ],
)
def test_a_missing_key_is_named(published: Published, tmp_path: Path, key: str) -> None:
    weights = {name: tensor for name, tensor in published.state_dict().items() if name != key}
    with pytest.raises(AltDiffusionError, match=key.replace(".", r"\.")):
        convert_text_encoder(write(tmp_path / "m18", weights, "safetensors-one"))


def test_a_cut_off_last_layer_is_not_taken_for_another(published: Published, tmp_path: Path) -> None:
    weights = {k: v for k, v in published.state_dict().items() if not k.startswith("roberta.encoder.layer.2.")}
    with pytest.raises(AltDiffusionError, match=r"layer\.2"):
        convert_text_encoder(write(tmp_path / "m18", weights, "safetensors-one"))


def test_an_unused_key_is_named(published: Published, tmp_path: Path) -> None:
    weights = published.state_dict() | {"transformation_post.weight": torch.zeros(3)}
    with pytest.raises(AltDiffusionError, match=r"transformation_post\.weight"):
        convert_text_encoder(write(tmp_path / "m18", weights, "bin-one"))


def test_a_wrong_shape_is_named(published: Published, tmp_path: Path) -> None:
    weights = published.state_dict() | {"transformation_pre.weight": torch.zeros(24, 31)}
    with pytest.raises(AltDiffusionError, match=r"transformation_pre\.weight.*\(24, 31\)"):
        convert_text_encoder(write(tmp_path / "m18", weights, "safetensors-one"))


def test_a_missing_shard_is_named(published: Published, tmp_path: Path) -> None:
    folder = write(tmp_path / "m18", published.state_dict(), "safetensors-shards")
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(AltDiffusionError, match=r"part-1\.safetensors"):
        convert_text_encoder(folder)


def clip_model(published: Published, tmp_path: Path, head: bool) -> Path:
    """Write AltCLIP's layout: one folder, the text tower below `text_model.`, the tokenizer next to it."""
    from tests.training_lake import tokenizer

    tower = {name: tensor for name, tensor in published.state_dict().items() if head or "_pre." not in name}
    weights = {f"text_model.{name}": tensor for name, tensor in tower.items()}
    weights |= {
        "vision_model.embeddings.class_embedding": torch.zeros(8),
        "visual_projection.weight": torch.zeros(24, 8),
        "text_projection.weight": torch.zeros(24, 24),
        "logit_scale": torch.tensor(2.6),
    }
    folder = write(tmp_path / "AltCLIP-m18", weights, "bin-one")
    (folder / "config.json").write_text(json.dumps({"model_type": "altclip", "text_config": CONFIG}))
    words = tokenizer()
    words.model_max_length = 512
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", [True, False])
def test_a_clip_model_gives_its_text_tower(published: Published, tmp_path: Path, head: bool) -> None:
    """With the diffusion head it is AltDiffusion-m18's encoder; without, with 24 of 32 values, m9's: no layer norm."""
    folder = clip_model(published, tmp_path, head)
    assert is_published(str(folder))
    convert_folder(folder, tmp_path / "stock")
    assert not is_published(str(tmp_path / "stock"))
    encoder, words = load_text_encoder(tmp_path / "stock")
    assert words.model_max_length == 77
    ids, mask = some_ids()
    with torch.no_grad():
        ours = encode_text(encoder, ids, pad_id=1)
        last = published.roberta(ids, attention_mask=mask).last_hidden_state
        theirs = published(ids, mask) if head else published.transformation(last)
        wrong = published.transformation(published.pre_LN(last))
    assert len(encoder.roberta.encoder.layers) == (2 if head else 3)
    assert float((theirs - ours).abs().max()) <= (0.0 if head else 1e-4)
    assert float((theirs - wrong).abs().max()) > 0.1


def some_ids() -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids int64 [3, 12], the second text shorter, and their mask."""
    ids = torch.randint(3, 97, (3, 12), generator=torch.Generator().manual_seed(1))
    ids[1, 7:] = 1
    return ids, (ids != 1).long()


def test_altclip_m18_without_a_diffusion_head_gives_its_feature_at_every_position(
    published: Published, tmp_path: Path
) -> None:
    published.transformation = nn.Linear(32, 32)
    folder = clip_model(published, tmp_path, head=False)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "altclip", "text_config": CONFIG | {"project_dim": 32}})
    )
    encoder = convert_text_encoder(folder)
    ids, mask = some_ids()
    with torch.no_grad():
        last = published.roberta(ids, attention_mask=mask).last_hidden_state
        theirs = published.transformation(published.pre_LN(last))
        assert float((theirs - encode_text(encoder, ids, pad_id=1)).abs().max()) == 0.0


@pytest.mark.parametrize("pre", [True, False], ids=["m18", "m9"])
@pytest.mark.parametrize("form", ["nested", "bare", "fp16 names", "fp16 shards", "wrapped", "ckpt"])
def test_every_published_form_is_what_diffusers_own_class_computes(tmp_path: Path, form: str, pre: bool) -> None:
    """The reference is the class that AltDiffusion was published with, which diffusers still carries."""
    from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
        RobertaSeriesConfig,
        RobertaSeriesModelWithTransformation,
    )

    from tests.training_lake import tokenizer

    torch.manual_seed(0)
    heads = 2 if form == "ckpt" else 4  # a checkpoint does not state the heads: XLM-R's are 64 wide
    width = 128 if form == "ckpt" else 32
    config = CONFIG | {"num_attention_heads": heads, "hidden_size": width, "has_pre_transformation": pre}
    reference = RobertaSeriesModelWithTransformation(RobertaSeriesConfig(**config)).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    weights = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    root = tmp_path / "AltDiffusion"
    encoder_folder = root if form == "ckpt" else root / "text_encoder"
    encoder_folder.mkdir(parents=True)
    tokenizer().save_pretrained(root if form == "ckpt" else root / "tokenizer")
    if form == "ckpt":
        whole = {f"cond_stage_model.{name}": tensor for name, tensor in weights.items()}
        whole |= {
            "model.diffusion_model.w": torch.zeros(2),
            "first_stage_model.w": torch.zeros(2),
            "betas": torch.zeros(2),
        }
        whole = {f"_forward_module.module.{name}": tensor for name, tensor in whole.items()}
        torch.save({"state_dict": whole, "global_step": 7}, root / "model.ckpt")
        (root / "config.yaml").write_text("model: {}\n")
    else:
        (encoder_folder / "config.json").write_text(json.dumps(config | {"model_type": "xlm-roberta"}))
        name = {"fp16 names": "pytorch_model.fp16.bin", "wrapped": "pytorch_model.bin"}.get(form, "model.safetensors")
        if form == "fp16 shards":
            parts = {key: f"pytorch_model.fp16-0000{1 + at % 2}-of-00002.bin" for at, key in enumerate(weights)}
            for part in set(parts.values()):
                torch.save({key: weights[key] for key in weights if parts[key] == part}, encoder_folder / part)
            (encoder_folder / "pytorch_model.bin.index.fp16.json").write_text(json.dumps({"weight_map": parts}))
        elif name.endswith("bin"):
            torch.save({"state_dict": weights} if form == "wrapped" else weights, encoder_folder / name)
        else:
            save_file(weights, encoder_folder / name)
    source = encoder_folder if form == "bare" else root
    assert is_published(str(source))
    rest = convert_folder(source, tmp_path / "stock")
    assert rest == ("other tensors (1 tensors), the UNet (1 tensors), the VAE (1 tensors)" if form == "ckpt" else "")
    encoder, _ = load_text_encoder(tmp_path / "stock")
    ids, mask = some_ids()
    with torch.no_grad():
        theirs = reference(ids, attention_mask=mask).projection_state
        ours = encode_text(encoder, ids, pad_id=1)
    assert float((theirs - ours).abs().max()) <= (0.0 if pre else 1e-4 * float(theirs.abs().max()))


def test_the_command_takes_and_gives_folders_anywhere(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare encoder with a slash behind it, below ~, or on another file system with its tokenizer next to it."""
    from tests.training_lake import tokenizer

    weights = {f"module.{name}": tensor for name, tensor in published.state_dict().items()}
    encoder = write(tmp_path / "text_encoder", weights, "bin-one")
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    files.copy_tree(str(encoder), "memory://doors/m18/text_encoder")
    files.copy_tree(str(tmp_path / "tokenizer"), "memory://doors/m18/tokenizer")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    for source, target in (
        (f"{encoder}/", "~/first/"),
        ("~/text_encoder", f"file://{tmp_path}/second"),
        ("memory://doors/m18/text_encoder/", "memory://doors/stock/"),
    ):
        assert main(["convert", source, target]) == 0
        assert main(["convert", source, target]) == 2  # it is there already
        stock, _ = load_text_encoder(target.rstrip("/"))
        assert torch.equal(stock.transformation.weight, published.transformation_pre.weight)
    assert {path.name for path in tmp_path.iterdir()} - before == {"first", "second"}


def test_a_checkpoint_without_a_text_encoder_is_refused_with_its_contents(tmp_path: Path) -> None:
    tensors = {"model.diffusion_model.a": torch.zeros(1), "model.diffusion_model.b": torch.zeros(1)}
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    with pytest.raises(AltDiffusionError, match=r"it holds the UNet \(2 tensors\)"):
        convert_text_encoder(tmp_path)


def test_what_cannot_be_an_encoder_is_named(published: Published, tmp_path: Path) -> None:
    plain = {name: tensor for name, tensor in published.state_dict().items() if name.startswith("roberta.")}
    with pytest.raises(AltDiffusionError, match="has no head"):
        convert_text_encoder(write(tmp_path / "xlm-r", plain, "safetensors-one"))
    without = {name: tensor for name, tensor in published.state_dict().items() if "_pre." not in name}
    folder = write(tmp_path / "half", without, "safetensors-one")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"has_pre_transformation": True}))
    with pytest.raises(AltDiffusionError, match="has_pre_transformation"):
        convert_text_encoder(folder)
    with pytest.raises(AltDiffusionError, match="has no tokenizer"):
        convert_folder(folder, tmp_path / "stock")


def test_a_clip_model_of_another_kind_is_refused(published: Published, tmp_path: Path) -> None:
    folder = clip_model(published, tmp_path, head=True)
    torch.save(
        torch.load(folder / "pytorch_model.bin") | {"audio_model.w": torch.zeros(1)}, folder / "pytorch_model.bin"
    )
    with pytest.raises(AltDiffusionError, match=r"audio_model\.w, which nothing uses"):
        convert_text_encoder(folder)


class _Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_pickle_runs_no_code(published: Published, tmp_path: Path) -> None:
    folder = write(tmp_path / "m18", published.state_dict(), "bin-one")
    torch.save({"weight": _Trap(tmp_path / "touched")}, folder / "pytorch_model.bin")
    with pytest.raises(AltDiffusionError, match="cannot be read"):
        convert_text_encoder(folder)
    assert not (tmp_path / "touched").exists()
