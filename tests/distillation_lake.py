"""A small lake to distil in: a base that reads English, a student, pairs in languages that are ciphers of English."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import mmh3
import pyarrow as pa
import torch

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models
from altdiffusion.diffusion.text_encoder import save_text_encoder, tokenize
from altdiffusion.records import PARALLEL
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.training.config import TrainConfig
from tests import training_lake

LETTERS, TOKENS = training_lake.LETTERS, training_lake.TOKENS
SHIFTS = {"en": 0, "de": 7, "fr": 13}
"""How far each language's letters are behind the English ones in the alphabet."""


def base(seed: int = 0) -> models.ModelBundle:
    """Return `training_lake.bundle` behind an English encoder of CLIP's class."""
    made = training_lake.bundle(seed)
    config = models.english_text_config_demo(32) | {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
    }
    torch.manual_seed(seed + 1)
    english = models.build_english_text_encoder(config)
    with torch.no_grad():  # fresh CLIP weights hardly distinguish captions
        for parameter in english.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return made.with_text_encoder(english, made.tokenizer)


def student_config(layers: int = 2) -> dict[str, Any]:
    """Return the config of an AltCLIPTextModel as narrow as the base's context."""
    return models.text_config_m18() | {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
        "num_attention_heads": 2, "max_position_embeddings": TOKENS + 2, "project_dim": 16,
    }  # fmt: skip


def cipher(text: str, language: str) -> str:
    """Return the text in the language."""
    shift = SHIFTS[language]
    return "".join(LETTERS[(LETTERS.index(letter) + shift) % 26] for letter in text)


def write_parallel(lake: str, name: str, captions: list[str]) -> Version:
    """Publish a version of kind `parallel`: every caption in every language of SHIFTS."""
    rows = [(caption, cipher(caption, language), language) for caption in captions for language in SHIFTS]
    return write_pairs(lake, name, rows, training_lake.tokenizer(), group_rows=16, shard_rows=50)


def write_pairs(
    lake: str, name: str, rows: list[tuple[str, str, str]], reader: Any, *, group_rows: int, shard_rows: int
) -> Version:
    """Publish a version of kind `parallel` of (caption, translation, language) rows; one tokenizer reads both."""
    dataset, records = Lake(lake).dataset(name), []
    theirs = tokenize(reader, [translation for _, translation, _ in rows]).tolist()
    ours = tokenize(reader, [caption for caption, _, _ in rows]).tolist()
    for index, first in enumerate(range(0, len(rows), shard_rows)):
        chosen = range(first, min(len(rows), first + shard_rows))
        table = pa.Table.from_pylist(
            [
                {
                    "sample_id": mmh3.hash64("\t".join(rows[i][:2]))[0], "caption": rows[i][0],
                    "translation": rows[i][1], "language": rows[i][2], "language_score": 1.0, "score": None,
                    "source": "cipher", "token_ids": theirs[i], "teacher_ids": ours[i],
                }
                for i in chosen
            ],
            schema=PARALLEL,
        )  # fmt: skip
        counts = Counter(rows[i][2] for i in chosen)
        records.append(
            UnitRecord(
                unit_id=f"u{index}", index=index, input_digest="0" * 64, rows_in=len(chosen),
                shards=(dataset.write_shard(table, group_rows),), rejects=(), rejects_by_reason={},
                rows_by_language=dict(sorted(counts.items())),
            )
        )  # fmt: skip
    return dataset.publish(kind="parallel", records=records, parents=[], config={}, fingerprint="f")


def words(count: int, start: int = 0) -> list[str]:
    """Return different words of three letters."""
    return [LETTERS[i % 26] + LETTERS[i * 7 // 26 % 26] + LETTERS[i * 3 % 26] for i in range(start, start + count)]


def make_lake(root: Path) -> str:
    """Make <root>/lake with `pairs`, `pairs-held-out`, and models/{base,student}; return it."""
    lake = str(root / "lake")
    write_parallel(lake, "pairs", words(60))
    write_parallel(lake, "pairs-held-out", words(10, 60))
    models.save_bundle(base(), Path(lake) / "models" / "base")
    torch.manual_seed(3)
    student = models.build_text_encoder(student_config())
    save_text_encoder(student, training_lake.tokenizer(), Path(lake) / "models" / "student")
    return lake


def save_tower(lake: str) -> str:
    """Save <lake>/models/tower, a text tower with a projection to 12; return it."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = base().text_encoder.config.to_dict() | {"num_hidden_layers": 3, "projection_dim": 12}
    torch.manual_seed(5)
    folder = Path(lake) / "models" / "tower"
    CLIPTextModelWithProjection(CLIPTextConfig(**config)).save_pretrained(folder)
    return str(folder)


def save_xlmr(lake: str, layers: int = 3) -> str:
    """Save <lake>/models/xlmr, XLM-R as it is published: with a language model's head, without ours; return it."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    shape = student_config(layers)
    torch.manual_seed(6)
    folder = Path(lake) / "models" / "xlmr"
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(**{k: v for k, v in shape.items() if k != "project_dim"}))
    model.save_pretrained(folder)
    training_lake.tokenizer().save_pretrained(folder)
    return str(folder)


def config(lake: str, **changes: Any) -> TrainConfig:
    """Return the config of a run of 12 updates; `changes` are top-level keys. All runs have one key."""
    tree: dict[str, Any] = {
        "run": "distil", "stage": "distillation", "trainable": "all",
        "start": {"base": f"{lake}/models/base", "text_encoder": f"{lake}/models/student"},
        "distillation": {"token_term": "readout", "queries": 4}, "datasets": [{"name": "pairs"}], "seed": 5,
        "key": "tests", "steps": 12, "global_batch": 8, "micro_batch": 4,
        "optimizer": {"lr": 1e-3, "warmup_steps": 4, "ema_decay": 0.9},
        "order": {"chunk_rows": 16, "window_chunks": 4}, "checkpoint_every": 3, "keep_last": 2, "log_every": 4,
    }  # fmt: skip
    return from_dict(TrainConfig, tree | changes)
