"""Low-rank adapters that are added to a model's weights before it draws: W + scale alpha / r B A (arXiv 2106.09685).

What is read of a file, and what is refused, is in diffusion.adapter_files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from altdiffusion.diffusion.adapter_files import adapter_file, adapter_pairs, networks_of_folder, read_adapter
from altdiffusion.diffusion.folder import read_lineage
from altdiffusion.diffusion.hub import ADAPTER_FILE
from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.settings import AdapterConfig
from altdiffusion.refs import Ref
from altdiffusion.storage import files


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A reference to an adapter's file. It is small and is sent to the workers, which check the digest again."""

    uri: str
    scale: float
    content: str
    """SHA-256 (hex) of the file."""
    ref: Ref
    """Its reference in lineage."""
    layers: int
    rank: int
    """Largest rank of its layers."""


def resolve_adapters(configs: Sequence[AdapterConfig], lake_uri: str, model_uri: str) -> tuple[Adapter, ...]:
    """Locate adapters, fetched from the hub first where an id is given, and check that they fit a model.

    Raises:
        AltDiffusionError: a file is missing, is a pickle, has another digest, or holds keys or shapes that are not
            those of the model's layers.
    """
    if not configs:
        return ()
    networks = networks_of_folder(model_uri)
    adapters = []
    for config in configs:
        uri = adapter_file(config.folder, lake_uri)
        data = read_adapter(uri)
        content = files.sha256_hex(data)
        if config.digest is not None and not content.startswith(config.digest):
            raise AltDiffusionError(
                f"adapter {uri}",
                f"has content {content[:12]}, not {config.digest[:12]} as the config requires",
                "name the right file, or take the digest out of the config to accept this one",
            )
        pairs = adapter_pairs(data, networks, uri)
        ranks = [pair.down.shape[0] for _, _, pair in pairs if pair.down is not None]
        adapters.append(
            Adapter(
                uri=uri, scale=config.scale, content=content, ref=_ref(uri, content), layers=len(pairs), rank=max(ranks)
            )
        )
    return tuple(adapters)


def merge(bundle: ModelBundle, adapters: Sequence[Adapter]) -> None:
    """Add adapters to a model's weights, in place: computed in float32, and rounded to the weights' type.

    Raises:
        AltDiffusionError: a file is not what it was when the job was planned, or does not fit.
    """
    networks = {"unet": bundle.unet, "text_encoder": bundle.text_encoder}
    for adapter in adapters:
        data = read_adapter(adapter.uri)
        content = files.sha256_hex(data)
        if content != adapter.content:
            raise AltDiffusionError(
                f"adapter {adapter.uri}",
                f"changed while images were drawn: its content is {content[:12]}, was {adapter.content[:12]}",
                "run the same command again, which starts a new set with the changed adapter",
            )
        with torch.no_grad():
            for network, layer, pair in adapter_pairs(data, networks, adapter.uri):
                if pair.down is None or pair.up is None:
                    continue  # never: `adapter_pairs` refuses it
                weight = networks[network].get_submodule(layer).weight
                rank = pair.down.shape[0]
                down, up = (one.to(weight.device, torch.float32).flatten(1) for one in (pair.down, pair.up))
                scale = adapter.scale * (1.0 if pair.alpha is None else pair.alpha / rank)
                weight.copy_(weight.float().add_((up @ down).view(weight.shape), alpha=scale))


def _ref(uri: str, content: str) -> Ref:
    """Return the checkpoint that an export was made from, else the file by name and content."""
    folder, _, name = uri.rpartition("/")
    parents = [str(parent) for parent in (read_lineage(folder) or {}).get("parents") or []]
    checkpoints = [parent for parent in parents if parent.startswith("checkpoint:")]
    if len(checkpoints) == 1:
        return Ref.parse(checkpoints[0])
    stem = posixpath.basename(folder) if name == ADAPTER_FILE else name.removesuffix(".safetensors")
    return Ref("model", re.sub(r"[^A-Za-z0-9._\-]", "-", stem) or "adapter", content)
