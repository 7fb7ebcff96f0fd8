"""A published AltDiffusion-m18 or AltCLIP-m18 text encoder -> transformers' own `AltCLIPTextModel`, exactly.

AltDiffusion-m18 (FlagAI `examples/AltDiffusion-m18`; the class `RobertaSeriesModelWithTransformation`) is XLM-R with
N layers, `pre_LN`, `transformation` and `transformation_pre`; the UNet reads
`transformation_pre(pre_LN(hidden_states[-2]))`. `AltCLIPTextModel` computes
`transformation(pre_LN(last hidden state))`. Hence: one layer fewer, and `transformation := transformation_pre`. The
last layer and the published `transformation` serve the CLIP feature only and are left out by name.

AltCLIP-m18 is a CLIP model whose text tower stands below `text_model.` (transformers' `AltCLIPModel`). With
`transformation_pre` it is read as above. Without, its only trained head is the CLIP feature's: all N layers are kept
and the UNet gets `transformation(pre_LN(last hidden state))` of every position, as the earlier AltDiffusion models do.

Any other key that is missing or left over is an error: a silently dropped head once gave users images unrelated to
their prompts.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from altdiffusion.diffusion.models import build_text_encoder
from altdiffusion.diffusion.text_encoder import save_text_encoder
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files

# Never read on the way to the UNet's context: constant buffers, the pooler that XLM-R's class may carry, and the
# temperature of the contrastive loss.
_NOT_READ = (
    "roberta.embeddings.position_ids",
    "roberta.embeddings.token_type_ids",
    "roberta.pooler.dense.weight",
    "roberta.pooler.dense.bias",
    "logit_scale",
)
_TOWER = "text_model."
"""Where the text encoder stands in a CLIP model; beside it are the picture's tower and the two projections."""
_BESIDE_TOWER = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
_SPELLED_OUT = "roberta.encoder.layers."
_CLIP = "text_config"
"""Key of a CLIP model's config that holds the text encoder's."""
POSITIONS = 77
"""Of a caption, as the published UNet was trained."""
_COPIED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "max_position_embeddings",
    "type_vocab_size",
)
_DEFAULTS: dict[str, Any] = {
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def convert_text_encoder(folder: str | Path) -> Any:
    """The stock encoder, an `AltCLIPTextModel` with `use_attention_mask`, from a published text encoder's folder.

    Args:
        folder: holds `config.json` and the weights: safetensors or torch .bin (read with `weights_only=True`), one
            file or shards with their index.

    Raises:
        AltDiffusionError: no config, no weights, a shard missing, a key missing or unused, or a wrong shape.
    """
    published = _read_config(Path(folder))
    weights = _text_tower(read_weights(folder), folder)
    pre = "transformation_pre.weight" in weights or not published.get(_CLIP)
    layers = int(published["num_hidden_layers"]) - (1 if pre else 0)
    config = {name: published[name] for name in _COPIED} | {
        name: published.get(name, default) for name, default in _DEFAULTS.items()
    }
    config |= {
        "num_hidden_layers": layers,
        "project_dim": int(published.get("project_dim", published["hidden_size"])),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "use_attention_mask": True,
    }
    encoder = build_text_encoder(config)
    last_layer = f"roberta.encoder.layer.{layers}."
    wanted = encoder.state_dict()
    renamed: dict[str, torch.Tensor] = {}
    for name in wanted:
        source = _published_name(name, pre)
        if source not in weights:
            raise AltDiffusionError(
                f"text encoder {folder}", f"lacks the key {source}", "give the published m18 weights"
            )
        if weights[source].shape != wanted[name].shape:
            raise AltDiffusionError(
                f"text encoder {folder}, key {source}",
                f"has shape {tuple(weights[source].shape)}, its config asks for {tuple(wanted[name].shape)}",
                "give weights and config.json of one model",
            )
        renamed[name] = weights.pop(source)
    for name in sorted(weights):
        clip_feature = pre and (name.startswith(last_layer) or name in ("transformation.weight", "transformation.bias"))
        if not clip_feature and name not in _NOT_READ:
            raise AltDiffusionError(
                f"text encoder {folder}",
                f"holds the key {name}, which nothing uses",
                "give the published m18 weights",
            )
    if pre and not any(name.startswith(last_layer) for name in weights):
        raise AltDiffusionError(
            f"text encoder {folder}",
            f"lacks the keys {last_layer}*",
            "give the published m18 weights, all layers of them",
        )
    kinds = {tensor.dtype for tensor in renamed.values()}
    encoder.to(kinds.pop() if len(kinds) == 1 else torch.float32)
    encoder.load_state_dict(renamed, strict=True)
    return encoder


def _published_name(name: str, pre: bool) -> str:
    """The published key of a key of `AltCLIPTextModel`."""
    if pre and name.startswith("transformation."):
        return name.replace("transformation.", "transformation_pre.", 1)
    return name.replace("roberta.encoder.layers.", "roberta.encoder.layer.", 1)


def _text_tower(weights: dict[str, torch.Tensor], folder: str | Path) -> dict[str, torch.Tensor]:
    """The text encoder's own weights, under the published names, of an encoder or of a whole CLIP model."""
    if any(name.startswith(_TOWER) for name in weights):
        for name in weights:
            if not name.startswith((_TOWER, *_BESIDE_TOWER)):
                raise AltDiffusionError(
                    f"text encoder {folder}",
                    f"holds the key {name}, which nothing uses",
                    "give the published m18 weights",
                )
        weights = {name[len(_TOWER) :]: tensor for name, tensor in weights.items() if name.startswith(_TOWER)}
    # transformers 5 writes the layers as `encoder.layers`, the published files say `encoder.layer`
    return {name.replace(_SPELLED_OUT, "roberta.encoder.layer.", 1): tensor for name, tensor in weights.items()}


def is_published(folder: str) -> bool:
    """Whether a folder (any URI) holds a text encoder as it was published, which has to be converted."""
    with contextlib.suppress(FileNotFoundError):
        config = files.read_json(files.join(folder, "text_encoder", "config.json"))
        return config.get("model_type") not in ("altclip_text_model", "clip_text_model")
    with contextlib.suppress(FileNotFoundError):
        return _CLIP in files.read_json(files.join(folder, "config.json"))
    return False


def convert_folder(source: str | Path, target: str | Path) -> None:
    """A published model folder -> one that `load_text_encoder` opens.

    Args:
        source: AltDiffusion's (`text_encoder`, `tokenizer`), or AltCLIP's with everything at the top.

    Raises:
        AltDiffusionError: as `convert_text_encoder`, or there is no tokenizer.
    """
    nested = (Path(source) / "text_encoder").is_dir()
    encoder, words = (Path(source) / "text_encoder", Path(source) / "tokenizer") if nested else (Path(source),) * 2
    tokenizer, stock = read_tokenizer(words), convert_text_encoder(encoder)
    if len(tokenizer) > stock.config.vocab_size:
        raise AltDiffusionError(
            f"tokenizer {words}",
            f"knows {len(tokenizer)} words, its text encoder {stock.config.vocab_size}",
            "give tokenizer and weights of one model",
        )
    if tokenizer.model_max_length > POSITIONS:  # XLM-R's own is 512
        tokenizer.model_max_length = POSITIONS
    save_text_encoder(stock, tokenizer, target)


def read_tokenizer(folder: str | Path) -> Any:
    """XLM-R's tokenizer from `tokenizer.json`, or from `sentencepiece.bpe.model` where a publisher gives nothing else.

    XLM-R's ids are not SentencePiece's own (fairseq put `<pad>` among the special ones): `<s>` 0, `<pad>` 1, `</s>` 2,
    `<unk>` 3, the pieces after SentencePiece's first three, `<mask>` last. They are laid out here, since transformers 5
    reads such a file only where the sentencepiece package is installed.

    Raises:
        AltDiffusionError: there is none, or it cannot be read.
    """
    from transformers import XLMRobertaTokenizer

    root, told = Path(folder), {}
    try:
        pieces = root / "sentencepiece.bpe.model"
        if (root / "tokenizer.json").is_file() or not pieces.is_file():
            return XLMRobertaTokenizer.from_pretrained(root, local_files_only=True)
        if (root / "tokenizer_config.json").is_file():
            told = json.loads((root / "tokenizer_config.json").read_text())
        from transformers.convert_slow_tokenizer import import_protobuf

        model = import_protobuf().ModelProto()
        model.ParseFromString(pieces.read_bytes())
        special = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
        learned = [(piece.piece, piece.score) for piece in model.pieces][3:]
        return XLMRobertaTokenizer(
            vocab=[*special, *learned, ("<mask>", 0.0)],
            _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap or None,
            model_max_length=int(told.get("model_max_length", POSITIONS)),
        )
    except Exception as error:  # each library has its own
        raise AltDiffusionError(
            f"tokenizer {folder}",
            f"cannot be opened ({(str(error).splitlines() or ['no message'])[0][:200]})",
            "give the published folder with its tokenizer",
        ) from error


def read_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Every tensor of a transformers weights folder, in any of its four layouts; never runs code from a file.

    Raises:
        AltDiffusionError: no weights, or a file is missing, damaged or holds more than tensors.
    """
    root = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (root / name).is_file():
            return _read_file(root / name)
        index = root / f"{name}.index.json"
        if index.is_file():
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
            merged: dict[str, torch.Tensor] = {}
            for part in sorted(set(weight_map.values())):
                if Path(part).name != part or not (root / part).is_file():
                    raise AltDiffusionError(f"weights {index}", f"name {part}, which is not there", "copy every shard")
                merged |= _read_file(root / part)
            for key in weight_map:
                if key not in merged:
                    raise AltDiffusionError(
                        f"weights {index}", f"name the key {key}, which no shard holds", "copy again"
                    )
            return merged
    raise AltDiffusionError(
        f"text encoder {folder}",
        "holds no model.safetensors and no pytorch_model.bin",
        "give the folder with the weights",
    )


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AltDiffusionError(
            f"weights {path}",
            f"cannot be read ({(str(error).splitlines() or ['no message'])[0][:200]})",
            "copy them again",
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise AltDiffusionError(f"weights {path}", "are not a plain table of tensors", "give a state dict")
    return {str(name): tensor for name, tensor in loaded.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json of an encoder; of a CLIP model its text part, which still says that it is one (`text_config`)."""
    path = folder / "config.json"
    if not path.is_file():
        raise AltDiffusionError(
            f"text encoder {folder}", "holds no config.json", "give the folder with config and weights"
        )
    config: dict[str, Any] = files.read_json(str(path))
    if isinstance(config.get(_CLIP), dict):
        config = {**config[_CLIP], _CLIP: True}
    for name in (*_COPIED, "num_hidden_layers"):
        if name not in config:
            raise AltDiffusionError(f"config {path}", f"lacks {name}", "give the published config.json")
    return config
