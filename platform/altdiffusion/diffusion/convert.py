"""Conversion of a published AltDiffusion or AltCLIP text encoder to transformers' own `AltCLIPTextModel`.

`AltCLIPTextModel` computes `transformation(pre_LN(last hidden state))`. The conversion depends on the head that the
UNet reads (`diffusion.published`):

- m18, `transformation_pre(pre_LN(hidden_states[-2]))`: the result has one layer fewer, and its `transformation` is the
  published `transformation_pre`. The last layer and the published `transformation` serve the CLIP feature only and are
  left out by name. The conversion is exact.
- AltCLIP-m18 without `transformation_pre`: the tensors stay as they are; the UNet gets the CLIP feature's head at every
  position. The conversion is exact.
- m9 and the first model, `transformation(last hidden state)`: the last layer ends in a layer norm, and a second layer
  norm does not change values of mean 0 and variance 1. So the last layer's scale and shift move to `pre_LN`, and 1 and
  0 take their place. The result is equal up to 5e-6 of the value, because `layer_norm_eps` is added to a variance of 1
  a second time. Each conversion is checked against the published formula.

Any other key that is missing or unused is an error: a silently dropped head once gave users images unrelated to their
prompts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from altdiffusion.diffusion import published as forms
from altdiffusion.diffusion.folder import publish
from altdiffusion.diffusion.licence import licence_of
from altdiffusion.diffusion.models import build_text_encoder, local_folder
from altdiffusion.diffusion.published import CLIP, LAYER, NOT_READ, Head, Published
from altdiffusion.diffusion.published_files import CHECKPOINT, read_weights, weights_file
from altdiffusion.diffusion.text_encoder import save_text_encoder
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.documents import optional_document

POSITIONS = 77
"""Positions of a caption, as the published UNet was trained."""
_STOCK = ("altclip_text_model", "clip_text_model")
_TOLERANCE = 1e-3
"""Largest error of a folded layer norm against the published formula, as a share of the largest value."""


def convert_text_encoder(folder: str | Path) -> Any:
    """Return the stock encoder, an `AltCLIPTextModel` with `use_attention_mask`, for a published text encoder.

    Args:
        folder: holds the weights in one of the layouts of `weights_file`, and `config.json` (optional with model.ckpt).

    Raises:
        AltDiffusionError: there are no weights, a shard is missing, a key is missing or unused, or a shape is wrong.
    """
    return _convert(_open(Path(folder)))


def _open(folder: Path) -> Published:
    file = weights_file(folder)
    if not (folder / "config.json").is_file() and (file is None or file.name != CHECKPOINT):
        raise AltDiffusionError(
            f"text encoder {folder}", "holds no config.json", "give the folder with config and weights"
        )
    return forms.describe(folder, read_weights(folder))


def _convert(published: Published) -> Any:
    encoder = build_text_encoder(forms.stock_config(published))
    sources = {name: _published_name(name, published) for name in encoder.state_dict()}
    renamed = {name: _named(published, sources[name], tensor) for name, tensor in encoder.state_dict().items()}
    _check_left_over(published, published.weights.keys() - set(sources.values()))
    if published.head is Head.LAST:
        _fold_last_norm(renamed, published.layers - 1)
    kinds = {tensor.dtype for tensor in renamed.values()}
    encoder.to(kinds.pop() if len(kinds) == 1 else torch.float32)
    encoder.load_state_dict(renamed, strict=True)
    if published.head is Head.LAST:
        _check_folding(encoder, published)
    return encoder


def _named(published: Published, source: str, wanted: torch.Tensor) -> torch.Tensor:
    """Return the published tensor of this name, which must have the shape of `wanted`."""
    weights = published.weights
    if source not in weights:
        raise AltDiffusionError(
            f"text encoder {published.folder}", f"lacks the key {source}", "give the published weights"
        )
    if weights[source].shape != wanted.shape:
        raise AltDiffusionError(
            f"text encoder {published.folder}, key {source}",
            f"has shape {tuple(weights[source].shape)}, its config requires {tuple(wanted.shape)}",
            "give weights and config.json of one model",
        )
    return weights[source]


def _published_name(name: str, published: Published) -> str:
    """Return the published key for a key of `AltCLIPTextModel`; both keys of a folded layer norm have the same one."""
    if published.head is Head.PRE and name.startswith("transformation."):
        return name.replace("transformation.", "transformation_pre.", 1)
    if published.head is Head.LAST and name.startswith("pre_LN."):
        return name.replace("pre_LN.", f"{LAYER}{published.layers - 1}.output.LayerNorm.", 1)
    return name.replace("roberta.encoder.layers.", LAYER, 1)


def _check_left_over(published: Published, weights: Set[str]) -> None:
    """Refuse keys that are neither used nor known to serve another purpose."""
    known: tuple[str, ...] = ("pre_LN.",)  # used, except with the head LAST, where it serves the CLIP feature
    last = f"{LAYER}{published.layers - 1}."
    if published.head is Head.PRE:
        known += (last, "transformation.weight", "transformation.bias")
        if not any(name.startswith(last) for name in weights):
            raise AltDiffusionError(
                f"text encoder {published.folder}",
                f"lacks the keys {last}*",
                "give the published m18 weights with all layers",
            )
    for name in sorted(weights):
        if not name.startswith(known) and name not in NOT_READ:
            raise AltDiffusionError(
                f"text encoder {published.folder}",
                f"holds the key {name}, which nothing uses",
                "give the published weights",
            )


def _fold_last_norm(renamed: dict[str, torch.Tensor], last: int) -> None:
    """Set the last layer norm's scale to 1 and its shift to 0, since `pre_LN` has the published ones now."""
    for part, value in (("weight", 1.0), ("bias", 0.0)):
        name = f"roberta.encoder.layers.{last}.output.LayerNorm.{part}"
        renamed[name] = torch.full_like(renamed[name], value)


def _check_folding(encoder: Any, published: Published) -> None:
    """Compare the folded encoder with the published formula on a few random texts."""
    norm = encoder.roberta.encoder.layers[-1].output.LayerNorm
    before: list[torch.Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, arguments: before.append(arguments[0]))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, int(published.config["vocab_size"]), (4, 16), generator=generator)
    encoder.eval()
    try:
        with torch.no_grad():
            ours = encoder(ids)[0]
            weight, bias = encoder.pre_LN.weight, encoder.pre_LN.bias
            last = functional.layer_norm(before[0], norm.normalized_shape, weight=weight, bias=bias, eps=norm.eps)
            theirs = functional.linear(last, encoder.transformation.weight, encoder.transformation.bias)
    finally:
        handle.remove()
    limit = _TOLERANCE if ours.dtype == torch.float32 else 30 * _TOLERANCE  # half precision rounds more coarsely
    off = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
    if not off <= limit:
        raise AltDiffusionError(
            f"text encoder {published.folder}",
            f"cannot be folded into AltCLIPTextModel: it would be off by {off:.1e} of the largest value",
            "give the published weights in float32",
        )


def is_published(folder: str) -> bool:
    """Return whether a folder (any URI) holds a text encoder in its published form, which has to be converted."""
    nested = optional_document(files.join(folder, "text_encoder", "config.json"))
    if nested is not None:
        return nested.value.get("model_type") not in _STOCK
    config = optional_document(files.join(folder, "config.json"))
    if config is not None:
        return CLIP in config.value or config.value.get("model_type") not in _STOCK
    return files.exists(files.join(folder, CHECKPOINT))


def publish_converted(source: str, target: str, origin: Ref) -> str:
    """Write the stock form of a published text encoder to a folder, with its lineage.

    Args:
        source: URI of the published folder.
        target: URI of the folder to write.
        origin: reference to the published folder, which becomes the parent of the new one.

    Returns:
        A readable description of what else the source holds; empty where it is a text encoder alone.

    Raises:
        AltDiffusionError: `convert_folder` fails.
    """
    rest: list[str] = []
    with _local_source(source) as local:
        publish(
            target,
            lambda staging: rest.append(convert_folder(local, staging)),
            {"converted_from": str(origin), "licence": licence_of(source), "parents": [str(origin)]},
        )
    return rest[0]


@contextlib.contextmanager
def _local_source(folder: str) -> Iterator[Path]:
    """Yield the `local_folder` of a source for `convert_folder`, with the tokenizer next to a bare text encoder."""
    with local_folder(folder) as local:
        if not files.is_local(folder) and not _holds_tokenizer(local) and not _holds_tokenizer(local / "tokenizer"):
            fs, path = files.filesystem(f"{folder.rstrip('/').rpartition('/')[0]}/tokenizer")
            if fs.isdir(path):
                fs.get(path.rstrip("/") + "/", f"{local}/tokenizer/", recursive=True)
        yield local


def convert_folder(source: str | Path, target: str | Path) -> str:
    """Write a published model folder as one that `load_text_encoder` opens.

    Args:
        source: AltDiffusion's (`text_encoder`, `tokenizer`), its bare `text_encoder` (the tokenizer in it, or next to
            it), AltCLIP's with everything at the top, or FlagAI's `model.ckpt` with the tokenizer next to it.

    Returns:
        A readable description of what else the source holds; empty where it is a text encoder alone.

    Raises:
        AltDiffusionError: `convert_text_encoder` fails, or there is no tokenizer.
    """
    root = Path(source)
    nested = (root / "text_encoder").is_dir()
    encoder = root / "text_encoder" if nested else root
    tokenizer_folder = _tokenizer_folder(root)
    published = _open(encoder)
    tokenizer, stock = read_tokenizer(tokenizer_folder), _convert(published)
    if len(tokenizer) > stock.config.vocab_size:
        raise AltDiffusionError(
            f"tokenizer {tokenizer_folder}",
            f"has a vocabulary of {len(tokenizer)}, its text encoder one of {stock.config.vocab_size}",
            "give tokenizer and weights of one model",
        )
    if tokenizer.model_max_length > POSITIONS:  # XLM-R's own is 512
        tokenizer.model_max_length = POSITIONS
    save_text_encoder(stock, tokenizer, target)
    return published.rest


def _tokenizer_folder(root: Path) -> Path:
    """Return the folder of the tokenizer: its own, that of the weights, or the one next to a bare `text_encoder`."""
    for folder in (root / "tokenizer", root, root.parent / "tokenizer"):
        if _holds_tokenizer(folder):
            return folder
    raise AltDiffusionError(
        f"folder {root}",
        "has no tokenizer in it or next to it (tokenizer.json, sentencepiece.bpe.model)",
        "copy the published tokenizer/ folder next to the text encoder; XLM-R's own is the same",
    )


def _holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "sentencepiece.bpe.model"))


def read_tokenizer(folder: str | Path) -> Any:
    """Return XLM-R's tokenizer from `tokenizer.json`, or from `sentencepiece.bpe.model` where that is all there is.

    XLM-R's ids are not SentencePiece's own (fairseq put `<pad>` among the special ones): `<s>` 0, `<pad>` 1, `</s>` 2,
    `<unk>` 3, the pieces after SentencePiece's first three, `<mask>` last. They are assigned here, since transformers 5
    reads such a file only where the sentencepiece package is installed.

    Raises:
        AltDiffusionError: there is no tokenizer, or it cannot be read.
    """
    from transformers import XLMRobertaTokenizer

    root, settings = Path(folder), {}
    try:
        pieces = root / "sentencepiece.bpe.model"
        if (root / "tokenizer.json").is_file() or not pieces.is_file():
            return XLMRobertaTokenizer.from_pretrained(root, local_files_only=True)
        if (root / "tokenizer_config.json").is_file():
            settings = json.loads((root / "tokenizer_config.json").read_text())
        from transformers.convert_slow_tokenizer import import_protobuf

        model = import_protobuf().ModelProto()
        model.ParseFromString(pieces.read_bytes())
        special = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
        learned = [(piece.piece, piece.score) for piece in model.pieces][3:]
        return XLMRobertaTokenizer(
            vocab=[*special, *learned, ("<mask>", 0.0)],
            _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap or None,
            model_max_length=int(settings.get("model_max_length", POSITIONS)),
        )
    except Exception as error:  # each library raises its own classes
        raise AltDiffusionError(
            f"tokenizer {folder}",
            f"cannot be opened ({first_line(error)})",
            "give the published folder with its tokenizer",
        ) from error
