"""Published shapes and counts, what each stage trains, and model folders that stock diffusers opens and runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from altdiffusion.curation.encoding.caption_tokens import open_tokenizer
from altdiffusion.diffusion import models
from altdiffusion.diffusion.autoencoder import load_autoencoder
from altdiffusion.diffusion.convert import convert_text_encoder, is_published, read_tokenizer
from altdiffusion.diffusion.licence import licence_of
from altdiffusion.diffusion.text_encoder import encode_text, load_text_encoder, save_text_encoder, tokenize
from altdiffusion.errors import AltDiffusionError
from tests import training_lake


def count(named: list[tuple[str, torch.nn.Parameter]]) -> tuple[int, int]:
    return len(named), sum(parameter.numel() for _, parameter in named)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import XLMRobertaTokenizer

    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [(piece, -3.0) for piece in ("▁", "▁red", "▁apple", "り", "ん", "ご", "a", "p", "l", "e", "r", "d")]
    return XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)], model_max_length=32)


@pytest.fixture(scope="module")
def bundle(tokenizer: Any) -> models.ModelBundle:
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    return models.ModelBundle(
        unet=models.build_unet(models.unet_config_demo()),
        vae=models.build_vae(models.vae_config_demo()),
        text_encoder=models.build_text_encoder(models.text_config_demo(len(tokenizer))),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**models.scheduler_config()),
    )


def test_published_unet_has_the_published_counts() -> None:
    unet = models.build_unet(models.unet_config_sd21(), device="meta")
    assert count(models.trainable_parameters(unet, "all"))[1] == 865_910_724
    assert count(models.trainable_parameters(unet, "attn2")) == (80, 50_352_320)
    assert count(models.trainable_parameters(unet, "kv")) == (32, 25_559_040)
    assert all(parameter.is_meta for parameter in unet.parameters())


def test_published_vae_has_the_published_count() -> None:
    vae = models.build_vae(models.vae_config_sd21(), "meta")
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_653_863


def test_published_text_encoder_is_xlm_r_large_without_its_last_layer() -> None:
    encoder = models.build_text_encoder(models.text_config_m18(), device="meta")
    width, inner, vocabulary, positions = 1024, 4096, 250_002, 514
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    embeddings = (vocabulary + positions + 1) * width + 2 * width
    head = width * width + width + 2 * width
    assert sum(parameter.numel() for parameter in encoder.parameters()) == embeddings + 23 * layer + head
    assert encoder.config.use_attention_mask is True


def test_the_switch_freezes_everything_else() -> None:
    unet = models.build_unet(models.unet_config_demo())
    chosen = models.trainable_parameters(unet, "kv")
    names = {name for name, _ in chosen}
    assert names == {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert len(names) == 8  # four cross-attentions
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in names)
    assert count(models.trainable_parameters(unet, "all"))[0] == len(list(unet.parameters()))
    with pytest.raises(AltDiffusionError, match=r"'nothing'.*kv, attn2, all"):
        models.trainable_parameters(unet, "nothing")  # type: ignore[arg-type]


def test_context_is_what_the_stock_pipeline_computes(bundle: models.ModelBundle, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    models.save_bundle(bundle, tmp_path / "model")
    pipeline = DiffusionPipeline.from_pretrained(str(tmp_path / "model"), local_files_only=True)
    prompts = ["red apple", "りんご", ""]
    theirs, empty = pipeline.encode_prompt(prompts, "cpu", 1, True)
    ids = tokenize(bundle.tokenizer, prompts)
    assert ids.shape == (3, 32) and ids.dtype == torch.int64
    assert ids[2].tolist() == [0, 2] + [1] * 30
    with torch.no_grad():
        ours = encode_text(bundle.text_encoder, ids, bundle.tokenizer.pad_token_id)
    assert ours.shape == (3, 32, 128)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[2], empty[0])


def test_a_saved_folder_runs_in_stock_diffusers_and_comes_back(bundle: models.ModelBundle, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    models.save_bundle(bundle, tmp_path / "model")
    kinds = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}
    pipeline = DiffusionPipeline.from_pretrained(str(tmp_path / "model"), local_files_only=True)
    assert isinstance(pipeline, StableDiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("red apple", height=32, width=32, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 32, 32, 3) and np.isfinite(image).all()
    again = models.load_bundle(tmp_path / "model")
    for part in ("unet", "vae", "text_encoder"):
        before, after = getattr(bundle, part).state_dict(), getattr(again, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not getattr(again, part).training
    assert again.vae.config.scaling_factor == bundle.vae.config.scaling_factor
    assert again.tokenizer("red apple").input_ids == bundle.tokenizer("red apple").input_ids
    assert again.scheduler.config.prediction_type == "epsilon"


def test_another_text_encoder_must_fit(bundle: models.ModelBundle, tokenizer: Any) -> None:
    narrow = models.text_config_demo(len(tokenizer)) | {"project_dim": 64}
    with pytest.raises(AltDiffusionError, match=r"width 64.*width 128"):
        bundle.with_text_encoder(models.build_text_encoder(narrow), tokenizer)
    english = models.build_english_text_encoder(models.english_text_config_demo(len(tokenizer)))
    swapped = bundle.with_text_encoder(english, tokenizer)
    assert swapped.text_encoder is english and swapped.unet is bundle.unet
    with torch.no_grad():
        assert encode_text(english, tokenize(tokenizer, ["red"]), 1).shape == (1, 32, 128)


def test_text_encoder_folder_comes_back_exactly(bundle: models.ModelBundle, tmp_path: Path) -> None:
    save_text_encoder(bundle.text_encoder, bundle.tokenizer, tmp_path)
    encoder, tokenizer = load_text_encoder(tmp_path)
    ids = tokenize(tokenizer, ["red apple", "りんご"])
    with torch.no_grad():
        assert torch.equal(encode_text(encoder, ids, 1), encode_text(bundle.text_encoder, ids, 1))
    assert encoder.config.use_attention_mask is True


@pytest.mark.parametrize("damage", ["no index", "no weights", "cut weights"])
def test_a_damaged_folder_is_named(bundle: models.ModelBundle, tmp_path: Path, damage: str) -> None:
    models.save_bundle(bundle, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "no index":
        (tmp_path / "model" / "model_index.json").unlink()
    elif damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AltDiffusionError, match=r"model folder .*model"):
        models.load_bundle(tmp_path / "model")


def test_an_encoder_of_another_form_is_refused(bundle: models.ModelBundle, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_text_encoder(bundle.text_encoder, bundle.tokenizer, tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights["transformation_pre.weight"] = weights.pop("transformation.weight")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(AltDiffusionError, match=r"transformation(_pre)?\.weight"):
        load_text_encoder(tmp_path)


def test_a_remote_folder_is_opened_too(bundle: models.ModelBundle, tmp_path: Path) -> None:
    import fsspec

    models.save_bundle(bundle, tmp_path / "model")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/model/", "memory://models-test/base/", recursive=True)
    again = models.load_bundle("memory://models-test/base")
    assert torch.equal(again.unet.conv_in.weight, bundle.unet.conv_in.weight)


def test_the_shipped_base_unpacks_to_stock_folders(tmp_path: Path) -> None:
    from demo import base

    english, multilingual = base.unpack(tmp_path)
    bundle = models.load_bundle(english)
    assert is_published(str(multilingual))  # both heads, under the published names: a run converts it, as the real one
    encoder, tokenizer = convert_text_encoder(multilingual / "text_encoder"), read_tokenizer(multilingual / "tokenizer")
    assert type(bundle.text_encoder).__name__ == "CLIPTextModel"
    assert [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert tokenizer.unk_token_id == 3 and tokenizer.model_max_length == 32
    assert tokenizer("🐘 слон").input_ids == bundle.tokenizer("🐘 слон").input_ids
    swapped = bundle.with_text_encoder(encoder, tokenizer)
    assert encode_text(swapped.text_encoder, tokenize(tokenizer, ["слон"]), 1).shape == (1, 32, 128)
    assert {licence_of(str(folder)) for folder in (english, multilingual)} == {"apache-2.0"}
    stamp = (english / "model_index.json").stat().st_mtime_ns
    assert base.unpack(tmp_path) == (english, multilingual)
    assert (english / "model_index.json").stat().st_mtime_ns == stamp  # nothing is written twice
    assert base.FILE.stat().st_size < 25_000_000


def test_another_base_file_is_refused(tmp_path: Path) -> None:
    from demo import base

    data = bytearray(base.FILE.read_bytes())
    data[-1] ^= 1
    (tmp_path / "base.safetensors").write_bytes(data)
    with pytest.raises(AltDiffusionError, match="SHA-256"):
        base.unpack(tmp_path / "out", tmp_path / "base.safetensors")
    assert not (tmp_path / "out").exists()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["altdiffusion"]
    assert "demo.base train" in json.loads(header)["command"]


def edited(path: Path, change: str) -> str:
    """Take a key out of a file of weights, or put one more in; return its name."""
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    key = sorted(weights)[0] if change == "missing" else "head_of_another.weight"
    if change == "missing":
        del weights[key]
    else:
        weights[key] = torch.ones(2)
    save_file(weights, path, {"format": "pt"})
    return key


@pytest.mark.parametrize("change", ["missing", "extra"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "shards"])
def test_a_key_that_is_missing_or_left_over_is_named_with_its_file(
    bundle: models.ModelBundle, tmp_path: Path, part: str, change: str
) -> None:
    """In every part of a model folder, also in shards, in an English encoder, and in an encoder's own folder."""
    models.save_bundle(bundle, tmp_path / "model")
    file = "model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors"
    folder = tmp_path / "model" / ("unet" if part == "shards" else part)
    if part == "shards":
        (folder / file).unlink()
        bundle.unet.save_pretrained(folder, max_shard_size="2MB", safe_serialization=True)
        models.load_bundle(tmp_path / "model")
        shard = sorted(folder.glob("*-of-*.safetensors"))[0]
        key, file = edited(shard, change), f"{file}.index.json"
        index = json.loads((folder / file).read_text())
        if change == "missing":
            del index["weight_map"][key]
        else:
            index["weight_map"][key] = shard.name
        (folder / file).write_text(json.dumps(index))
    else:
        key = edited(folder / file, change)
    problem = rf"{file}: (lacks|holds) the key {re.escape(key)}"
    with pytest.raises(AltDiffusionError, match=problem):
        models.load_bundle(tmp_path / "model")
    if part == "text_encoder":
        with pytest.raises(AltDiffusionError, match=problem):
            load_text_encoder(tmp_path / "model")
    if part == "vae":
        with pytest.raises(AltDiffusionError, match=problem):
            load_autoencoder(folder)


def test_old_constant_buffers_are_not_left_over_keys(
    bundle: models.ModelBundle, tokenizer: Any, tmp_path: Path
) -> None:
    """Stable Diffusion 2.1's published text encoder holds `position_ids`; so do exports of earlier transformers."""
    from safetensors.torch import load_file, save_file

    english = models.build_english_text_encoder(models.english_text_config_demo(len(tokenizer)))
    models.save_bundle(bundle.with_text_encoder(english, tokenizer), tmp_path / "model")
    path = tmp_path / "model/text_encoder/model.safetensors"
    weights = load_file(path)
    prefix = "text_model." if any(name.startswith("text_model.") for name in weights) else ""
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(32)[None]
    save_file(weights, path, {"format": "pt"})
    assert models.load_bundle(tmp_path / "model").text_encoder.config.model_type == "clip_text_model"
    key = edited(path, "extra")
    with pytest.raises(AltDiffusionError, match=f"holds the key {key}, which nothing uses"):
        models.load_bundle(tmp_path / "model")


def retouched(path: Path, change: str) -> None:
    """Turn a file of weights into what a broken copy, a failed training or a foreign tool leaves."""
    from safetensors.torch import load_file, save_file

    weights, data = load_file(path), path.read_bytes()
    key = sorted(weights)[0]
    changed = {
        "nan": {key: weights[key].index_fill(0, torch.tensor([0]), float("nan"))},
        "inf": {key: weights[key].index_fill(0, torch.tensor([0]), float("-inf"))},
        "whole numbers": {key: torch.ones(weights[key].shape, dtype=torch.int32)},
        "8 bits": {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()},
        "another shape": {key: torch.zeros(3)},
    }.get(change, {})
    save_file(weights | changed, path, {"format": "pt"})
    if change in ("cut in its tensors", "cut in its head", "empty"):
        path.write_bytes(data[: {"cut in its tensors": -8, "cut in its head": 100, "empty": 0}[change]])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("nan", r"not finite as float32 in the key \w+"),
        ("inf", r"not finite as float32 in the key \w+"),
        ("whole numbers", r"type that is not read: \w+.* \(I32\)"),
        ("8 bits", r"type that is not read: \w+.* \(F8_E4M3\)"),
        ("another shape", r"shape.*\w+\.|\w+\..*shape"),
        ("cut in its tensors", r"bytes, its header requires"),
        ("cut in its head", r"ends within its header"),
        ("empty", r"ends within its header"),
    ],
)
def test_weights_that_are_not_those_of_a_network_are_named(tmp_path: Path, change: str, problem: str) -> None:
    """In every part; whether a dry run or a job opens it, the same loader reports it."""
    tiny = training_lake.bundle()
    for part in ("unet", "vae", "text_encoder"):
        folder, file = tmp_path / part, "model" if part == "text_encoder" else "diffusion_pytorch_model"
        models.save_bundle(tiny, folder)
        retouched(folder / part / f"{file}.safetensors", change)
        with pytest.raises(AltDiffusionError, match=rf"{part}, file {file}.safetensors: .*{problem}"):
            models.load_bundle(folder)


def test_values_that_a_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    models.save_bundle(training_lake.bundle(), tmp_path)
    path = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"][0] = 1e6
    save_file(weights, path, {"format": "pt"})
    models.load_bundle(tmp_path)
    with pytest.raises(AltDiffusionError, match=r"not finite as float16 in the key conv_in.bias"):
        models.load_bundle(tmp_path, dtype=torch.float16)


@pytest.mark.parametrize("change", ["missing", "outside", "no index"])
def test_an_index_names_files_of_its_own_folder(tmp_path: Path, change: str) -> None:
    tiny = training_lake.bundle()
    models.save_bundle(tiny, tmp_path / "model")
    folder, file = tmp_path / "model/unet", "diffusion_pytorch_model.safetensors"
    (folder / file).unlink()
    tiny.unet.save_pretrained(folder, max_shard_size="100KB", safe_serialization=True)
    index = folder / f"{file}.index.json"
    models.load_bundle(tmp_path / "model")
    last = sorted(folder.glob("*-of-*.safetensors"))[-1]
    if change == "outside":
        index.write_text(index.read_text().replace(last.name, f"../{last.name}"))
        problem = rf"names the shard '\.\./{last.name}', which is not a file in the same folder"
        last.rename(folder.parent / last.name)
    elif change == "missing":
        last.unlink()
        problem = f"names the shard {last.name}, which is missing"
    else:
        index.write_text("{}")
        problem = "has no weight_map"
    with pytest.raises(AltDiffusionError, match=problem):
        models.load_bundle(tmp_path / "model")


def test_a_tokenizer_without_its_vocabulary_or_of_another_encoder_is_refused(tmp_path: Path) -> None:
    """Stock transformers silently makes an empty vocabulary, and every caption reads the same."""
    tiny = training_lake.bundle()
    models.save_bundle(tiny, tmp_path)
    folder = tmp_path / "tokenizer"
    settings = folder / "tokenizer_config.json"
    original = settings.read_text()
    for length in (512, None):
        settings.write_text(json.dumps({**json.loads(original), "model_max_length": length}))
        for load in (models.load_bundle, load_text_encoder):
            with pytest.raises(AltDiffusionError, match=r"tokenizer: pads to \d+ positions, its text encoder has 8"):
                load(tmp_path)
    settings.write_text(original)
    narrow = models.build_text_encoder({**tiny.text_encoder.config.to_dict(), "vocab_size": 20})
    narrow.save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(AltDiffusionError, match=r"token ids up to 31, its text encoder has a vocabulary of 20"):
        models.load_bundle(tmp_path)
    tiny.text_encoder.save_pretrained(tmp_path / "text_encoder")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(AltDiffusionError, match=r"tokenizer: holds no tokenizer.json"):
        models.load_bundle(tmp_path)
    with pytest.raises(AltDiffusionError, match=r"holds no .*tokenizer.json"):
        open_tokenizer(str(folder), "of the encode job")
    shutil.rmtree(folder)
    with pytest.raises(AltDiffusionError, match=r"tokenizer: is missing"):
        models.load_bundle(tmp_path)


@pytest.mark.parametrize("file", ["unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"])
def test_a_config_that_is_not_a_mapping_is_named(tmp_path: Path, file: str) -> None:
    models.save_bundle(training_lake.bundle(), tmp_path)
    for text, problem in (("[]", "is not a mapping"), ('{"a":', "is not JSON"), (None, "is missing")):
        (tmp_path / file).unlink() if text is None else (tmp_path / file).write_text(text)
        with pytest.raises(AltDiffusionError, match=rf"{Path(file).name}: {problem}"):
            models.load_bundle(tmp_path)


def test_two_sets_of_weights_in_one_folder_are_refused(bundle: models.ModelBundle, tmp_path: Path) -> None:
    models.save_bundle(bundle, tmp_path / "model")
    bundle.unet.save_pretrained(tmp_path / "sharded", max_shard_size="2MB", safe_serialization=True)
    for path in (tmp_path / "sharded").glob("*safetensors*"):
        shutil.copy(path, tmp_path / "model" / "unet" / path.name)
    with pytest.raises(AltDiffusionError, match=r"holds .*safetensors and .*index\.json.*keep only one"):
        models.load_bundle(tmp_path / "model")


def test_the_published_names_of_a_vaes_attention_are_known(tmp_path: Path) -> None:
    """Stable Diffusion's published VAE names them query, key, value and proj_attn; diffusers renames them."""
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file, save_file

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    vae.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in load_file(path).items():
        for now, published in names.items():
            name = name.replace(now, published)
        renamed[name] = tensor
    assert sum(".query." in name for name in renamed) == 4
    save_file(renamed, path, {"format": "pt"})
    found = load_autoencoder(tmp_path).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in vae.state_dict().items())
