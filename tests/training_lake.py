"""A small lake to train in: a tiny base model, latents of keyed noise, a config. Seconds, not minutes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models, noise
from altdiffusion.records import LATENTS
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.reporting.progress import Progress
from altdiffusion.training.reporting.reporter import Measured

SHAPE = (4, 4, 4)
TOKENS = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer() -> Any:
    """Return an XLM-R tokenizer of 32 pieces: every letter is a token."""
    from transformers import XLMRobertaTokenizer

    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    letters = [(letter, -2.0 - 0.01 * i) for i, letter in enumerate(LETTERS)]
    return XLMRobertaTokenizer(vocab=[*special, *letters, ("<mask>", 0.0)], model_max_length=TOKENS)


def bundle(seed: int = 0, vocabulary: int = 32) -> models.ModelBundle:
    """Return the classes of the product with a few thousand weights each.

    `vocabulary` are the rows of the text encoder's table of tokens, of which the tokenizer's 32 pieces are used.
    """
    from diffusers import DDIMScheduler

    torch.manual_seed(seed)
    unet = models.unet_config_demo() | {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "cross_attention_dim": 16,
        "attention_head_dim": (1, 2),
        "norm_num_groups": 4,
    }
    vae = models.vae_config_demo() | {"latent_channels": 4, "block_out_channels": (4, 4, 4), "norm_num_groups": 2}
    text = models.text_config_demo(vocabulary) | {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS + 2,
        "project_dim": 16,
    }
    return models.ModelBundle(
        unet=models.build_unet(unet),
        vae=models.build_vae(vae),
        text_encoder=models.build_text_encoder(text),
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(**models.scheduler_config()),
    )


def english_bundle(linear: bool = True) -> models.ModelBundle:
    """Return the tiny base behind CLIP's text encoder; `linear` is Stable Diffusion 2's kind of attention."""
    plain = bundle()
    text = models.english_text_config_demo(32) | {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": TOKENS, "projection_dim": 16,
    }  # fmt: skip
    encoder = models.build_english_text_encoder(text)
    found = plain.with_text_encoder(encoder, plain.tokenizer)
    if not linear:
        unet = models.build_unet(dict(found.unet.config) | {"use_linear_projection": False})
        found = models.ModelBundle(**(vars(found) | {"unet": unet}))
    return found


def write_latents(
    lake: str,
    name: str,
    rows: int,
    *,
    seed: int = 0,
    shard_rows: int = 50,
    group_rows: int = 16,
    spoiled: Sequence[int] = (),
    loud: Sequence[int] = (),
    shape: tuple[int, int, int] = SHAPE,
    languages: Sequence[str] = ("en",),
    mirrored: bool = False,
    made_by: Sequence[Ref] = (),
) -> Version:
    """Publish a version of `latents`: sample i has the latent keyed by i and a caption of letters.

    The latent is NaN if spoiled, 30 times as large if loud.

    The languages of the samples are `languages`, over and over. `mirrored` gives mirrored images' latents: the same
    ones plus 1, so that no code can take them for the latents turned round. `made_by`, VAE and tokenizer, makes the
    version one of the encode job's, as its manifest states.
    """
    from altdiffusion.diffusion.text_encoder import tokenize

    dataset = Lake(lake).dataset(name)
    reader, records = tokenizer(), []
    latents = noise.keyed_normal(seed, torch.arange(rows), 7, shape).to(torch.float16).numpy()
    latents[list(spoiled)] = np.nan
    latents += int(mirrored)
    latents[list(loud)] *= 30
    captions = [LETTERS[i % 26] + LETTERS[i // 26 % 26] for i in range(rows)]
    spoken = [languages[i % len(languages)] for i in range(rows)]
    ids = tokenize(reader, captions).tolist() if captions else []
    for index, first in enumerate(range(0, rows, shard_rows)):
        chosen = range(first, min(rows, first + shard_rows))
        table = pa.Table.from_pylist(
            [
                {
                    "sample_id": i, "image_sha256": hashlib.sha256(b"%d" % i).hexdigest(), "caption": captions[i],
                    "language": spoken[i], "latent": latents[i].tobytes(), "channels": shape[0],
                    "height": shape[1], "width": shape[2], "resolution": 16, "crop_top": 0, "crop_left": 0,
                    "token_ids": ids[i], "aesthetic": None,
                }
                for i in chosen
            ],
            schema=LATENTS,
        )  # fmt: skip
        shard = dataset.write_shard(table, group_rows)
        records.append(
            UnitRecord(
                unit_id=f"u{index}", index=index, input_digest="0" * 64, rows_in=len(chosen), shards=(shard,),
                rejects=(), rejects_by_reason={}, rows_by_language=dict(Counter(spoken[i] for i in chosen)),
            )
        )  # fmt: skip
    settings: dict[str, Any] = {"seed": seed, **({"mirrored": True} if mirrored else {})}
    if made_by:
        settings["encode"] = {"resolution": 4 * shape[1], "max_length": TOKENS}
    return dataset.publish(kind="latents", records=records, parents=made_by, config=settings, fingerprint="f")


def make_lake(root: Path, rows: int = 180) -> str:
    """Make <root>/lake with the dataset `latents` and models/base; return it."""
    lake = str(root / "lake")
    write_latents(lake, "latents", rows)
    models.save_bundle(bundle(), Path(lake) / "models" / "base")
    return lake


def config(lake: str, **changes: Any) -> TrainConfig:
    """Return the config of a run of 12 updates that begins from the base; `changes` are top-level keys.

    Whatever their names, runs have one key, so that they can be compared.
    """
    tree: dict[str, Any] = {
        "run": "align", "stage": "alignment", "trainable": "all", "start": {"base": f"{lake}/models/base"},
        "datasets": [{"name": "latents"}], "seed": 5, "key": "tests", "steps": 12, "global_batch": 8, "micro_batch": 4,
        "caption_drop": 0.25, "optimizer": {"lr": 1e-3, "warmup_steps": 4, "ema_decay": 0.9},
        "order": {"chunk_rows": 16, "window_chunks": 4}, "checkpoint_every": 3, "keep_last": 2, "log_every": 4,
    }  # fmt: skip
    return from_dict(TrainConfig, tree | changes)


@dataclass
class Recorder:
    """A reporter that keeps what is reported."""

    reports: list[Progress] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    measurements: list[Measured] = field(default_factory=list)

    def progress(self, progress: Progress) -> None:
        self.reports.append(progress)

    def measured(self, measured: Measured) -> None:
        self.measurements.append(measured)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def flush(self) -> None:
        pass


def file_hashes(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def replace(settings: TrainConfig, **changes: Any) -> TrainConfig:
    return dataclasses.replace(settings, **changes)
