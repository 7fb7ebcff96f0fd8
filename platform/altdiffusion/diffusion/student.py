"""The text encoder that distillation trains: XLM-R with the heads of AltDiffusion-m18's encoder.

AltCLIP-m18 (arXiv 2211.06679; FlagAI `examples/AltDiffusion-m18`) reads one XLM-R at two depths:

    feature = transformation(pre_LN(hidden[-1]))[:, 0]        [B, F]     compared with the teacher's EOS vector
    context = transformation_pre(pre_LN(hidden[-2]))          [B, T, D]  read by the UNet

That is a student with two heads. A student with a single head computes both from its last layer,
`transformation(pre_LN(hidden[-1]))`; its CLS vector is the feature. In both cases an export is a stock
`AltCLIPTextModel` (`Student.reader`); that of a student with two heads has one layer fewer, like a converted published
encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altdiffusion.diffusion.models import build_text_encoder, local_folder
from altdiffusion.diffusion.published import XLMR_SHAPE, altclip_config
from altdiffusion.diffusion.published_files import read_weights
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage.documents import read_document

XLMR_POSITIONS = 512
"""A tokenizer that pads to this length or more has XLM-R's own length, not the UNet's."""

_HEADS = ("pre_LN.", "transformation.", "transformation_pre.")
_TOWER = "text_model."
_NOT_READ = ("roberta.pooler.", "lm_head.")
_BUFFERS = ("position_ids", "token_type_ids")


class Student(nn.Module):  # type: ignore[misc]
    """XLM-R with one head or two; its parameters have the published names.

    Args:
        config: the config of an `AltCLIPTextModel` with all layers and without dropout.
        context: width D of the UNet's context where a separate head computes it; None for a single head.
        device: "meta" takes no memory.
    """

    def __init__(self, config: dict[str, Any], context: int | None = None, device: str = "cpu") -> None:
        super().__init__()
        model = build_text_encoder(config, device)
        self.config, self.pad_id = dict(config), int(config["pad_token_id"])
        self.roberta, self.pre_LN, self.transformation = model.roberta, model.pre_LN, model.transformation
        self.two_heads = context is not None
        if context is not None:
            self.transformation_pre = nn.Linear(int(config["hidden_size"]), context, device=device)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (feature [B, F], context [B, T, D]) of int64 [B, T]; pads are masked, but have a context as well."""
        # A mask of four dimensions is used as it is; for one of two, transformers waits for the device to look whether
        # anything is masked.
        mask = (token_ids != self.pad_id)[:, None, None].expand(-1, 1, token_ids.shape[1], -1)
        if not self.two_heads:
            hidden = self.roberta(token_ids, attention_mask=mask).last_hidden_state
            context = self.transformation(self.pre_LN(hidden))
            return context[:, 0], context
        layers = self.roberta(token_ids, attention_mask=mask, output_hidden_states=True).hidden_states
        feature = self.transformation(self.pre_LN(layers[-1][:, 0]))
        return feature, self.transformation_pre(self.pre_LN(layers[-2]))

    def reader(self) -> Any:
        """Return the stock `AltCLIPTextModel` with the same context, in evaluation mode, for an export."""
        state = dict(self.state_dict())
        if not self.two_heads:
            encoder = build_text_encoder(self.config)
        else:
            layers = int(self.config["num_hidden_layers"]) - 1
            width = self.transformation_pre.out_features
            encoder = build_text_encoder(self.config | {"num_hidden_layers": layers, "project_dim": width})
            state = _without_feature(state, layers)
        encoder.load_state_dict(state, strict=True)
        return encoder.eval()


def load_student(
    folder: str | Path, *, context: int, feature: int | None, tokens: int, seed: int
) -> tuple[Student, Any]:
    """Return (student in float32 on the CPU, tokenizer) from a folder.

    The folder holds one of

    - XLM-R (`xlm-roberta-large`): its heads are new, drawn with `seed`;
    - a published AltDiffusion-m18 encoder: both heads are used, or only the one that the UNet reads;
    - a published AltCLIP-m18, a whole CLIP: its head computes the feature, the head for the context is new;
    - an `AltCLIPTextModel`, like an export of ours: one head.

    Weights and tokenizer are in the folder itself or, as in a model folder, in `text_encoder` and `tokenizer`.

    Args:
        context: width D that the UNet reads.
        feature: width F of the teacher's vectors for a student with two heads; None for one head.
        tokens: T, for a tokenizer that has XLM-R's own length only.

    Raises:
        AltDiffusionError: a part is missing, has another width, or is unused.
    """
    quiet_libraries()
    with local_folder(folder) as local:
        inner = local / "text_encoder"
        root = inner if inner.is_dir() else local
        weights, of_clip = _named(read_weights(root))
        config = _config(root, feature or context)
        tokenizer = _tokenizer(local / "tokenizer" if inner.is_dir() else local, tokens)
    what = f"text encoder folder {folder}"
    layers = int(config["num_hidden_layers"])
    fresh: tuple[str, ...] = () if any(name.startswith(_HEADS) for name in weights) else _HEADS
    if "transformation_pre.weight" in weights and feature is None:
        weights = _without_feature(weights, layers - 1)
        config["num_hidden_layers"] = layers - 1
    elif of_clip and feature is not None and "transformation_pre.weight" not in weights:
        fresh = ("transformation_pre.",)
    elif feature is not None and not fresh and "transformation_pre.weight" not in weights:
        raise AltDiffusionError(
            what,
            "has one head, but a separate teacher needs a second one for the feature",
            "leave distillation.teacher out, or start from XLM-R, a published encoder or a run of distillation",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Student(config, None if feature is None else context)
    _load(student, weights, what, fresh)
    return student, tokenizer


def _load(student: Student, weights: Mapping[str, Tensor], what: str, fresh: tuple[str, ...]) -> None:
    """Load the weights; heads whose names begin with one of `fresh` stay as they were drawn."""
    wanted = student.state_dict()
    given = {name: tensor.float() for name, tensor in weights.items()}
    given |= {name: tensor for name, tensor in wanted.items() if fresh and name.startswith(fresh)}
    wrong = sorted(wanted.keys() ^ given.keys())
    if wrong:
        raise AltDiffusionError(
            what,
            f"is not an XLM-R with the required heads: {len(wrong)} tensors are missing or unused, such as {wrong[0]}",
            "give XLM-R, a published AltDiffusion-m18 encoder or an export",
        )
    for name, tensor in wanted.items():
        if given[name].shape != tensor.shape:
            raise AltDiffusionError(
                f"{what}, key {name}",
                f"has shape {tuple(given[name].shape)}, this base and teacher require {tuple(tensor.shape)}",
                "use the base and the teacher that belong to this encoder",
            )
    student.load_state_dict(given, strict=True)


def _without_feature(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return the weights with only the head that the UNet reads, without the last layer and the feature's head."""
    last = f"roberta.encoder.layers.{layers}."
    kept = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith((last, "transformation.", "transformation_pre."))
    }
    for part in ("weight", "bias"):
        kept[f"transformation.{part}"] = state[f"transformation_pre.{part}"]
    return kept


def _named(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Return the weights of any of these folders under transformers' present names, without unused ones.

    The second value is whether they are from a whole CLIP, whose head computes the feature and not the context.
    """
    of_clip = any(key.startswith(_TOWER) for key in weights)
    if of_clip:
        weights = {key[len(_TOWER) :]: tensor for key, tensor in weights.items() if key.startswith(_TOWER)}
    renamed = {}
    for key, tensor in weights.items():
        name = key if key.startswith(("roberta.", "lm_head.", *_HEADS)) else f"roberta.{key}"
        name = name.replace("roberta.encoder.layer.", "roberta.encoder.layers.", 1)
        if not name.startswith(_NOT_READ) and not name.endswith(_BUFFERS):
            renamed[name] = tensor
    return renamed, of_clip


def _config(root: Path, width: int) -> dict[str, Any]:
    path = root / "config.json"
    if not path.is_file():
        raise AltDiffusionError(f"text encoder {root}", "holds no config.json", "give the folder with the weights")
    whole = read_document(str(path)).value
    known: dict[str, Any] = whole.get("text_config") or whole
    missing = [name for name in XLMR_SHAPE if name not in known]
    if missing:
        raise AltDiffusionError(f"config {path}", f"lacks {', '.join(missing)}", "give XLM-R's or the encoder's config")
    return altclip_config(known, width)


def _tokenizer(folder: Path, tokens: int) -> Any:
    from transformers import XLMRobertaTokenizer

    try:
        tokenizer = XLMRobertaTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise AltDiffusionError(
            f"tokenizer {folder}", f"cannot be opened ({first_line(error)})", "put the encoder's tokenizer there"
        ) from error
    if tokenizer.model_max_length >= XLMR_POSITIONS:
        tokenizer.model_max_length = tokens
    return tokenizer
