"""Small random networks in the form of the published ones: a feature network as TorchScript, and judges."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH, CLASSES, SIDE = 6, 5, 8


class SmallInception(torch.nn.Module):
    """A network that is called as inception-2015-12-05.pt is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = torch.nn.Conv2d(3, WIDTH, 3, stride=2)
        self.output = torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        x = (img.float() - 128) / 128
        features = torch.nn.functional.relu(self.conv(x)).mean(dim=[2, 3])
        if return_features:
            return features
        logits = torch.nn.functional.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(dim=1)


class Plain(torch.nn.Module):
    def forward(self, img: Tensor) -> Tensor:
        return img.mean(dim=[2, 3])


def save_network(path: Path, network: torch.nn.Module | None = None) -> dict[str, Any]:
    """Save a network as TorchScript and return its settings."""
    torch.jit.script(network or SmallInception()).save(str(path))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": str(path), "sha256": sha256, "resize": "clean", "side": SIDE, "width": WIDTH}


def save_judge(folder: Path, words: Sequence[str], *, kind: str = "clip", width: int = 12) -> dict[str, Any]:
    """Save a CLIP or AltCLIP of one layer for 8-pixel images that knows some words, and return its settings."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    from altdiffusion.diffusion.pinned_files import folder_digest

    vocabulary = {word: place for place, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(4)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(vocabulary), "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    vision = {**small, "image_size": 8, "patch_size": 4}
    if kind == "clip":
        text = {**small, **ids, "max_position_embeddings": 16}
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
    else:
        text = {**small, **ids, "max_position_embeddings": 20, "project_dim": 16}
        model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
    model.save_pretrained(folder)
    return {"folder": str(folder), "digest": folder_digest(str(folder)), "languages": ["en"], "text_tokens": 10}
