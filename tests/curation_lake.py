"""A small lake for curation's tests: an images version of real rows, and models as their libraries save them."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from altdiffusion.records import IMAGES
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord

Size = tuple[int, int]


def image(seed: int, size: Size, image_format: str = "PNG") -> bytes:
    """Return a smooth image, encoded."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(out, image_format)
    return out.getvalue()


def write_images(
    lake: str,
    order: Sequence[int],
    sizes: Mapping[int, Size] | None = None,
    *,
    bodies: Mapping[int, bytes] | None = None,
    captions: Mapping[int, str] | None = None,
    originals: Mapping[int, Size] | None = None,
    rows_per_shard: int = 10**6,
    config: Mapping[str, Any] | None = None,
    parents: Sequence[Version] = (),
) -> Version:
    """Publish `images`. Row k is always the same row, wherever it is."""
    given = {k: (sizes or {}).get(k, (40 + k % 20, 36)) for k in order}
    columns: dict[str, list[Any]] = {
        "sample_id": [1000 - 7 * k for k in order],
        "url": [f"http://a/{k}" for k in order],
        "caption": [(captions or {}).get(k, f"w{k} w{k + 1}") for k in order],
        "language": ["de" if k % 3 else "fr" for k in order],
        "language_score": [0.5 for _ in order],
        "source": ["s" for _ in order],
        "aesthetic": [7.0 for _ in order],
        "aesthetic_score": [8.0 if k % 2 else None for k in order],
        "image": [bodies[k] if bodies and k in bodies else image(k, given[k]) for k in order],
        "image_format": ["png" for _ in order],
        "image_sha256": [f"{k:064x}" for k in order],
        "phash": list(order),
    }
    for number, side in enumerate(("width", "height")):
        columns[f"stored_{side}"] = [given[k][number] for k in order]
        columns[f"original_{side}"] = [(originals or {}).get(k, given[k])[number] for k in order]
    table = pa.table(
        [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(order), field.type)
            for field in IMAGES
        ],
        schema=IMAGES,
    )
    dataset = Lake(lake).dataset("images")
    shards = tuple(
        dataset.write_shard(table.slice(start, rows_per_shard)) for start in range(0, len(order), rows_per_shard)
    )
    record = UnitRecord(
        unit_id="u",
        index=0,
        input_digest="d",
        rows_in=len(order),
        shards=shards,
        rows_by_language=dict(Counter(columns["language"])),
    )
    return dataset.publish(
        kind="images",
        records=[record],
        parents=[parent.ref for parent in parents],
        config=config or {},
        fingerprint="f",
    )


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_clip(folder: Path, width: int = 768) -> str:
    """Save a CLIP of two layers for 28-pixel images; return its folder."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 100, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 28, "patch_size": 14},
        projection_dim=width,
    )
    CLIPModel(config).save_pretrained(folder)
    return str(folder)


def save_head(path: Path, width: int = 768) -> tuple[str, str]:
    """Save a linear head that reads the first component and adds 3; return its path and SHA-256."""
    weight = torch.zeros(1, width)
    weight[0, 0] = 1.0
    torch.save({"weight": weight, "bias": torch.tensor([3.0])}, path)
    return str(path), sha256_of(path)


def save_classifier(folder: Path, labels: Sequence[str] = ("clear", "watermark")) -> str:
    """Save a vision transformer of one layer for 32-pixel images, with its preprocessor; return its folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(1)
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def save_vae(folder: Path) -> str:
    """Save an autoencoder of factor 4 with 4 latent channels; return its folder."""
    from diffusers import AutoencoderKL

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
    vae.save_pretrained(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> str:
    """Save a tokenizer of the words w0 to w49; return its folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *(f"w{i}" for i in range(50))])}
    plain = Tokenizer(WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return str(folder)
