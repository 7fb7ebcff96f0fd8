"""Description of a published text encoder: its place among other tensors, the head that the UNet reads, its shapes.

| published as | other tensors | the UNet reads |
|---|---|---|
| AltDiffusion-m18 | `transformation` | `transformation_pre(pre_LN(hidden_states[-2]))` |
| AltCLIP-m18 | towers and projections of a CLIP model | the same; without `transformation_pre` the feature's head |
| AltDiffusion, AltDiffusion-m9 | - | `transformation(last hidden state)`, no layer norm |
| AltCLIP, AltCLIP-m9 | `pre_LN` of the CLIP feature, towers, projections | the same |

Sources: diffusers `modeling_roberta_series.py`, FlagAI `examples/AltDiffusion-m18` and `modeling_berts.py`. The models
of 2 and 9 languages project 1024 to 768 (the width of Stable Diffusion 1's text), those of 18 keep 1024. Where there is
no `transformation_pre`, this width distinguishes them.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files

CLIP = "text_config"
"""Key of a CLIP model's config that holds the text encoder's config."""
_WORDS = "roberta.embeddings.word_embeddings.weight"
_ANY_LAYER = "roberta.encoder.layer"
_SPELLED_OUT, LAYER = "roberta.encoder.layers.", "roberta.encoder.layer."
_CLIP_TOWER = "text_model."
_OTHER_PARTS_OF_CLIP = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
_OTHER_NETWORKS = {
    "model.diffusion_model.": "the UNet",
    "first_stage_model.": "the VAE",
    "model_ema.": "averages of the UNet",
    "vision_model.": "an image encoder",
}
# Constant buffers, the pooler that XLM-R's class may carry, and the temperature of the contrastive loss.
NOT_READ = (
    "roberta.embeddings.position_ids",
    "roberta.embeddings.token_type_ids",
    "roberta.pooler.dense.weight",
    "roberta.pooler.dense.bias",
    "logit_scale",
)
XLMR_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "type_vocab_size",
)
"""Keys that the config of an XLM-R must have."""
_DEFAULTS: dict[str, Any] = {
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_HEAD_WIDTH = 64
"""Width of an attention head of XLM-R, base and large. It cannot be read from a tensor's shape."""


class Head(enum.Enum):
    """The head that the UNet reads."""

    PRE = "transformation_pre(pre_LN(hidden_states[-2]))"
    FEATURE = "transformation(pre_LN(last hidden state))"
    """The CLIP feature's head at every position, for an AltCLIP-m18 that has no other."""
    LAST = "transformation(last hidden state)"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published text encoder in memory."""

    folder: Path
    weights: dict[str, torch.Tensor]
    """The text encoder's tensors alone, under the published names."""
    config: Mapping[str, Any]
    head: Head
    rest: str
    """A readable description of what else the files hold; empty for an encoder alone."""

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])


def describe(folder: Path, weights: dict[str, torch.Tensor]) -> Published:
    """Return the text encoder that the tensors of a folder hold.

    Raises:
        AltDiffusionError: there is no XLM-R among them, a key is unknown, or config and shapes do not match.
    """
    tower, rest = _text_tower(weights, folder)
    path = folder / "config.json"
    config = _read_config(path, tower) if path.is_file() else _of_shapes(tower)
    width, out = config["hidden_size"], config.get("project_dim")
    if "transformation.weight" in tower:
        out = tower["transformation.weight"].shape[0]
    if any(name.startswith("transformation_pre.") for name in tower):
        head = Head.PRE
    elif "transformation.weight" not in tower:
        raise AltDiffusionError(
            f"text encoder {folder}",
            "holds neither transformation_pre.weight nor transformation.weight: it has no head",
            "give a published AltDiffusion or AltCLIP text encoder; plain XLM-R is the student of a distillation run",
        )
    elif "pre_LN.weight" in tower and out == width:
        head = Head.FEATURE
    else:
        head = Head.LAST
    if config.get("has_pre_transformation") and head is not Head.PRE:
        raise AltDiffusionError(
            f"text encoder {folder}",
            "lacks the key transformation_pre.weight, which its config declares (has_pre_transformation)",
            "give the published m18 weights",
        )
    return Published(folder=folder, weights=tower, config=config, head=head, rest=rest)


def _text_tower(weights: dict[str, torch.Tensor], folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Return the text encoder's own tensors, and a description of the others."""
    prefixes = sorted({name.partition(_ANY_LAYER)[0] for name in weights if _ANY_LAYER in name})
    others = {name for name in weights if not prefixes or not name.startswith(prefixes[0])}
    if len(prefixes) != 1:
        networks = _networks(others)
        raise AltDiffusionError(
            f"text encoder {folder}",
            f"holds {'no' if not prefixes else 'more than one'} XLM-R text encoder"
            + (f": it holds {networks}" if networks else ""),
            "give the folder of the text encoder; FlagAI's model.ckpt may hold the other networks only",
        )
    (prefix,) = prefixes
    if prefix == _CLIP_TOWER:
        others = {name for name in others if not name.startswith(_OTHER_PARTS_OF_CLIP)}
    elif any(name.startswith(tuple(_OTHER_NETWORKS)) for name in others):
        others = set()  # the checkpoint of a whole pipeline, which includes the buffers of its schedule
    if others and prefix:
        raise AltDiffusionError(
            f"text encoder {folder}",
            f"holds the key {min(others)}, which nothing uses",
            "give the published weights",
        )
    rest = _networks({name for name in weights if not name.startswith(prefix)}) if prefix else ""
    # transformers 5 names the layers `encoder.layers`, the published files name them `encoder.layer`
    tower = {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return {name.replace(_SPELLED_OUT, LAYER, 1): tensor for name, tensor in tower.items()}, rest


def _networks(names: set[str]) -> str:
    """Return a readable list of the networks to which these keys belong, with the number of tensors."""
    counts: Counter[str] = Counter()
    for name in names:
        kind = next((what for prefix, what in _OTHER_NETWORKS.items() if name.startswith(prefix)), "other tensors")
        counts[kind] += 1
    return ", ".join(f"{what} ({count} tensors)" for what, count in sorted(counts.items()))


def _read_config(path: Path, tower: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the config.json of an encoder, or the text part of a CLIP model's."""
    config: dict[str, Any] = files.read_json(str(path))
    if isinstance(config.get(CLIP), dict):
        config = config[CLIP]
    for name in XLMR_SHAPE:
        if name not in config:
            raise AltDiffusionError(f"config {path}", f"lacks {name}", "give the published config.json")
    return config


def _of_shapes(tower: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the config that follows from the tensors themselves, for a checkpoint without config.json."""
    vocabulary, width = tower[_WORDS].shape
    layers = {int(name[len(LAYER) :].partition(".")[0]) for name in tower if name.startswith(LAYER)}
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": tower[f"{LAYER}0.intermediate.dense.weight"].shape[0],
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": tower["roberta.embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": tower["roberta.embeddings.token_type_embeddings.weight"].shape[0],
        "num_hidden_layers": max(layers) + 1,
    }


def stock_config(published: Published) -> dict[str, Any]:
    """Return the config of the `AltCLIPTextModel` that computes what the UNet reads."""
    config = published.config
    head = "transformation_pre" if published.head is Head.PRE else "transformation"
    out = published.weights.get(f"{head}.weight")
    width = int(config.get("project_dim", config["hidden_size"]) if out is None else out.shape[0])
    layers = published.layers - (1 if published.head is Head.PRE else 0)
    return altclip_config(config, width) | {"num_hidden_layers": layers}


def altclip_config(xlmr: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Return the config of an `AltCLIPTextModel` without dropout, with the shapes of an XLM-R.

    Args:
        xlmr: config with the keys of `XLMR_SHAPE`; other settings have XLM-R's defaults where it leaves them out.
        width: D of the vectors that the model returns.
    """
    return {
        **{name: xlmr[name] for name in XLMR_SHAPE},
        **{name: xlmr.get(name) if xlmr.get(name) is not None else value for name, value in _DEFAULTS.items()},
        "project_dim": width,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "use_attention_mask": True,
    }
