"""Latents are a function of the picture, the row id and the config: of no neighbour, unit or order."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from altdiffusion.curation.assets import folder_digest
from altdiffusion.curation.config import EncodeConfig
from altdiffusion.curation.encode import LATENT_SAMPLE, EncodeWork, plan_encode, square, token_ids
from altdiffusion.diffusion.noise import keyed_normal
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import IMAGES, LATENTS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord

RESOLUTION = 32
ROWS = 11


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small autoencoder (factor 4) and a word tokenizer, saved as their libraries save them."""
    from diffusers import AutoencoderKL
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    root = tmp_path_factory.mktemp("models")
    vae.save_pretrained(root / "vae")
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *(f"w{i}" for i in range(50))])}
    plain = Tokenizer(WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>").save_pretrained(root / "tok")
    return {"vae": str(root / "vae"), "tokenizer": str(root / "tok")}


def body(seed: int, size: tuple[int, int]) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def images(lake: str, order: list[int], sizes: dict[int, tuple[int, int]] | None = None) -> Version:
    """Row k is always the same row, wherever it stands."""
    found = [(sizes or {}).get(k, (40 + k, 36)) for k in order]
    columns: dict[str, list[Any]] = {
        "sample_id": [1000 - 7 * k for k in order],
        "url": [f"http://a/{k}" for k in order],
        "caption": [f"w{k} w{k + 1}" for k in order],
        "language": ["de" for _ in order],
        "language_score": [0.5 for _ in order],
        "source": ["s" for _ in order],
        "aesthetic": [7.0 for _ in order],
        "aesthetic_score": [8.0 if k % 2 else None for k in order],
        "image": [body(k, size) for k, size in zip(order, found, strict=True)],
        "image_format": ["png" for _ in order],
        "image_sha256": [f"{k:064x}" for k in order],
        "phash": list(order),
    }
    for side, at in (("width", 0), ("height", 1)):
        for name in (f"original_{side}", f"stored_{side}"):
            columns[name] = [size[at] for size in found]
    table = pa.table(
        [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(order), field.type)
            for field in IMAGES
        ],
        schema=IMAGES,
    )
    dataset = Lake(lake).dataset("images")
    record = UnitRecord(
        unit_id="u", index=0, input_digest="d", rows_in=len(order), shards=(dataset.write_shard(table),)
    )
    return dataset.publish(kind="images", records=[record], parents=[], config={}, fingerprint="f")


def encode(lake: str, version: Version, models: dict[str, str], rows_per_unit: int = 100, **given: Any) -> pa.Table:
    config = EncodeConfig(**{**models, "resolution": RESOLUTION, "max_length": 6, "micro_batch": 4, **given})
    work = EncodeWork(lake=lake, dataset="latents", config=config)
    work.setup()
    dataset = Lake(lake).dataset("latents")
    records = [work.run(unit) for unit in plan_encode(version, rows_per_unit)]
    return dataset.publish(kind="latents", records=records, parents=[version.ref], config={}, fingerprint="f").read()


def test_rows_carry_scaled_latents_tokens_and_their_crop(tmp_path: Path, models: dict[str, str]) -> None:
    from diffusers import AutoencoderKL

    lake = str(tmp_path)
    version = images(lake, list(range(ROWS)))
    table = encode(lake, version, models)
    assert table.schema.equals(LATENTS) and table.num_rows == ROWS
    row = table.to_pylist()[3]
    assert (row["channels"], row["height"], row["width"], row["resolution"]) == (4, 8, 8, 32)
    assert row["token_ids"] == [5, 6, 0, 0, 0, 0]
    assert row["aesthetic"] == 8.0 and table["aesthetic"][2].as_py() == 7.0
    picture = Image.open(io.BytesIO(body(3, (43, 36)))).resize((38, 32), Image.Resampling.BILINEAR)
    left, top = row["crop_left"], row["crop_top"]
    assert 0 <= left <= 6 and top == 0
    pixels = np.asarray(picture.crop((left, top, left + 32, top + 32)), np.float32).transpose(2, 0, 1) / 127.5 - 1
    vae: Any = AutoencoderKL.from_pretrained(models["vae"]).eval()
    with torch.no_grad():
        mean = vae.encode(torch.from_numpy(pixels)[None]).latent_dist.mean[0]
    stored = np.frombuffer(row["latent"], "<f2").reshape(4, 8, 8)
    expected = ((mean - 0.25) * 0.5).numpy()
    assert np.abs(stored - expected).max() <= 2**-10 * max(1.0, np.abs(expected).max())


def test_a_row_is_encoded_the_same_in_any_order_and_unit(tmp_path: Path, models: dict[str, str]) -> None:
    order = list(range(ROWS))
    first = encode(str(tmp_path / "a"), images(str(tmp_path / "a"), order), models)
    mixed = order[::-1]
    second = encode(str(tmp_path / "b"), images(str(tmp_path / "b"), mixed), models, rows_per_unit=3)
    by_id = [pa.Table.sort_by(table, "sample_id") for table in (first, second)]
    assert by_id[0].equals(by_id[1])


def test_crops_are_spread_over_the_free_pixels_and_keyed_by_the_seed(tmp_path: Path, models: dict[str, str]) -> None:
    sizes = dict.fromkeys(range(30), (64, 32))
    version = images(str(tmp_path), list(range(30)), sizes)
    lefts = [encode(str(tmp_path), version, models, seed=seed)["crop_left"].to_pylist() for seed in (0, 1)]
    assert lefts[0] != lefts[1]
    assert min(lefts[0]) < 8 and max(lefts[0]) > 24 and all(0 <= left <= 32 for left in lefts[0])


def test_a_square_at_the_edges_of_its_range() -> None:
    picture = body(1, (50, 32))
    assert square(picture, 32, np.array([0.0, 0.0], np.float32))[1] == (0, 0)
    assert square(picture, 32, np.array([1 - 2**-24] * 2, np.float32))[1] == (0, 18)
    pixels, _ = square(picture, 32, np.array([0.5, 0.5], np.float32))
    assert pixels.shape == (3, 32, 32) and pixels.min() >= -1 and pixels.max() <= 1


def test_a_sampled_latent_is_mean_plus_std_times_keyed_noise(tmp_path: Path, models: dict[str, str]) -> None:
    version = images(str(tmp_path), [0, 1])
    mode, sample = (encode(str(tmp_path), version, models, latent=kind) for kind in ("mode", "sample"))
    assert sample.equals(encode(str(tmp_path), version, models, latent="sample"))
    means, samples = (
        np.stack([np.frombuffer(x, "<f2").reshape(4, 8, 8) for x in t["latent"].to_pylist()]).astype(float)
        for t in (mode, sample)
    )
    noise = keyed_normal(0, torch.tensor(mode["sample_id"].to_pylist()), LATENT_SAMPLE, (4, 8, 8)).numpy()
    std = (samples - means) / noise / 0.5  # what the noise was multiplied by: positive, as a deviation is
    assert (np.median(std) > 0) and np.mean(std[np.abs(noise) > 0.5] > 0) > 0.99


def test_small_pictures_are_rejected_not_enlarged(tmp_path: Path, models: dict[str, str]) -> None:
    version = images(str(tmp_path), [0, 1, 2], {1: (31, 60)})
    table = encode(str(tmp_path), version, models)
    assert table["sample_id"].to_pylist() == [1000, 986]
    (reject,) = pa.concat_tables(Lake(str(tmp_path)).version("latents").iter_rejects()).to_pylist()
    assert (reject["row"], reject["reason"], reject["detail"]) == (1, "resolution", "31 px")
    nothing = images(str(tmp_path / "b"), [1], {1: (31, 60)})
    assert encode(str(tmp_path / "b"), nothing, models).num_rows == 0


def test_captions_with_a_language_suffix_never_reach_the_tokenizer(models: dict[str, str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["tokenizer"])
    with pytest.raises(AltDiffusionError, match="language suffix would reach the text encoder"):
        token_ids(tokenizer, ["w1", "w2\tde"], 6)
    long = token_ids(tokenizer, [" ".join(["w3"] * 20)], 6)
    assert long.to_pylist() == [[5] * 6]


def test_other_models_than_those_pinned_are_refused_and_make_other_units(
    tmp_path: Path, models: dict[str, str]
) -> None:
    with pytest.raises(AltDiffusionError, match="has digest"):
        EncodeWork(
            lake=str(tmp_path), dataset="x", config=EncodeConfig(**models, vae_digest="0" * 64, resolution=32)
        ).setup()
    EncodeWork(
        lake=str(tmp_path), dataset="x", config=EncodeConfig(**models, vae_digest=folder_digest(models["vae"]))
    ).setup()
    version = images(str(tmp_path), [0])
    assert plan_encode(version, 10, "a")[0].id != plan_encode(version, 10, "b")[0].id
    with pytest.raises(AltDiffusionError, match="is missing or empty"):
        folder_digest(str(tmp_path / "none"))
