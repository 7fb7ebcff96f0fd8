"""Files of low-rank adapters (LoRA): found, read, and compared with the layers of a model.

Read are the layouts that people have, all as safetensors. Their keys are compared with the names of the model's own
layers, and a key that is none of them is an error:

    unet.<layer>.lora_A.weight                  peft's, as diffusers and our exports write `pytorch_lora_weights`
    unet.<layer>.lora.down.weight               diffusers' before peft; `<attention>.processor.to_q_lora.down.weight`
    lora_unet_<layer>.lora_down.weight, .alpha  kohya's, where `_` takes the place of each `.` in the layer's name

and `text_encoder.` or `lora_te_` where an adapter also changes the text encoder. The rank r is that of the tensors;
alpha is the file's own, in its metadata or as a tensor, else r.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from altdiffusion.diffusion.hub import ADAPTER_FILE, located
from altdiffusion.diffusion.models import build_unet, text_encoder_class
from altdiffusion.diffusion.weight_files import check_finite
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_ENDINGS = {
    "down": ("lora_A", "lora_down", "lora.down", "lora_linear_layer.down"),
    "up": ("lora_B", "lora_up", "lora.up", "lora_linear_layer.up"),
}
_REFUSED = ("use_rslora", "use_dora")
_SHOWN = 3


@dataclass(kw_only=True)
class Pair:
    """What a file holds for one layer."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None
    keys: list[str] = field(default_factory=list)


def networks_of_folder(model_uri: str) -> dict[str, nn.Module]:
    """Return the UNet and the text encoder of a model folder without their weights."""
    configs = {part: files.read_json(files.join(model_uri, part, "config.json")) for part in ("unet", "text_encoder")}
    index = files.read_json(files.join(model_uri, "model_index.json"))
    kind = text_encoder_class(index, f"model folder {model_uri}")
    with torch.device("meta"):
        encoder: nn.Module = kind(kind.config_class(**configs["text_encoder"]))
    return {"unet": build_unet(configs["unet"], "meta"), "text_encoder": encoder}


def adapter_file(folder: str, lake_uri: str) -> str:
    """Return the URI of the safetensors file of an adapter."""
    if folder.endswith(_PICKLES):
        raise _pickled(folder, posixpath.basename(folder))
    uri = located(folder, lake_uri, "lora")
    if uri.endswith(".safetensors"):
        return uri
    names = files.list_names(uri)
    found = [name for name in names if name.endswith(".safetensors")]
    if ADAPTER_FILE in found:
        return files.join(uri, ADAPTER_FILE)
    if len(found) == 1:
        return files.join(uri, found[0])
    pickled = [name for name in names if name.endswith(_PICKLES)]
    if pickled and not found:
        raise _pickled(uri, pickled[0])
    raise AltDiffusionError(
        f"adapter {uri}",
        f"is a folder with {len(found)} files in safetensors" + (f" ({', '.join(found[:_SHOWN])})" if found else ""),
        f"give one file, or a folder with {ADAPTER_FILE}",
    )


def _pickled(uri: str, name: str) -> AltDiffusionError:
    return AltDiffusionError(
        f"adapter {uri}",
        f"is a pickle ({name}), which is never opened: it can run any code",
        "use its safetensors, or convert it where its publisher is trusted",
    )


def read_adapter(uri: str) -> bytes:
    try:
        return files.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise AltDiffusionError(f"adapter {uri}", "does not exist", "check the path") from error


def adapter_pairs(data: bytes, networks: Mapping[str, nn.Module], uri: str) -> list[tuple[str, str, Pair]]:
    """Return (network, layer, pair) of every layer that an adapter changes, each of which fits."""
    what = f"adapter {uri}"
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise AltDiffusionError(what, f"is not safetensors ({first_line(error)})", "copy it again") from error
    check_finite(tensors, what, "train or export it again")
    settings = _settings(header.get("__metadata__") or {}, what)
    aliases = {alias: place for name, network in networks.items() for alias, place in _aliases(name, network)}
    found: dict[tuple[str, str], Pair] = {}
    unknown = []
    for key, tensor in sorted(tensors.items()):
        place, role = _place(key, aliases)
        if place is None:
            unknown.append(key)
            continue
        pair = found.setdefault(place, Pair())
        if getattr(pair, role) is not None:
            raise AltDiffusionError(what, f"holds {role} of {'.'.join(place)} twice, as {key} too", "give one of them")
        setattr(pair, role, float(tensor) if role == "alpha" else tensor)
        pair.keys.append(key)
    if unknown or not found:
        shown = ", ".join(unknown[:_SHOWN]) or "no tensors"
        layers = [name for name, module in networks["unet"].named_modules() if _takes(module)]
        raise AltDiffusionError(
            what,
            f"holds {len(unknown)} keys that are of no layer of this model ({shown}); the UNet has {len(layers)} "
            f"layers, like {layers[len(layers) // 2]}",
            "use an adapter that was trained on this kind of base, and only LoRA (no DoRA, LoHa or LoKr)",
        )
    for (network, layer), pair in found.items():
        _check_pair(networks[network].get_submodule(layer), pair, f"{what}, {network}.{layer}")
        if pair.alpha is None:
            pair.alpha = _alpha(settings, network, layer)
    return [(network, layer, pair) for (network, layer), pair in found.items()]


def _check_pair(module: Any, pair: Pair, what: str) -> None:
    """Refuse tensors that are not both there, or not of a layer's shape."""
    if pair.down is None or pair.up is None:
        raise AltDiffusionError(what, f"has only {', '.join(pair.keys)}", "use a file as it was written")
    down, up = pair.down.flatten(1), pair.up.flatten(1)
    weight = module.weight.shape
    rows, columns = weight[0], weight[1:].numel()
    fits = up.shape[0] == rows and down.shape[1] == columns and up.shape[1] == down.shape[0]
    if not fits:
        raise AltDiffusionError(
            what,
            f"has the shapes {list(pair.down.shape)} and {list(pair.up.shape)}, and the weight has {list(weight)}",
            "use an adapter that was trained on this kind of base",
        )


def _takes(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d))


def _aliases(name: str, network: nn.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the names of every layer of a network in the layouts, with (network, layer)."""
    for layer, module in network.named_modules():
        if not _takes(module):
            continue
        place = name, layer
        if name == "unet":
            owner, _, own = layer.removesuffix(".0").rpartition(".")
            short = ("unet.", "")
            old = [f"{prefix}{owner}.processor.{own}" for prefix in short]
            names = [*(f"{prefix}{layer}" for prefix in short), *old, f"lora_unet_{layer.replace('.', '_')}"]
        else:  # transformers 5 names CLIP's layers without their former prefix
            full = [layer, f"text_model.{layer}"]
            names = [f"text_encoder.{one}" for one in full]
            names += [f"{prefix}{one.replace('.', '_')}" for one in full for prefix in ("lora_te_", "lora_te1_")]
            for own, old_name in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
                names += [f"text_encoder.{one.removesuffix(own)}{old_name}" for one in full if one.endswith(own)]
        yield from ((alias, place) for alias in names)


def _place(key: str, aliases: Mapping[str, tuple[str, str]]) -> tuple[tuple[str, str] | None, str]:
    """Return the layer that a key names, None where it names none, and what of it the key holds."""
    for role, endings in _ENDINGS.items():
        for ending in endings:
            stem = key.removesuffix(f"{ending}.weight")
            if stem != key and (place := aliases.get(stem[:-1])) is not None:  # before it is a dot, or an underscore
                return place, role
    return aliases.get(key.removesuffix(".alpha")) if key.endswith(".alpha") else None, "alpha"


def _settings(metadata: Mapping[str, str], what: str) -> dict[str, Any]:
    """Return peft's settings in a file's metadata."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise AltDiffusionError(what, "has metadata that are not JSON", "export it again") from error
    for name, value in settings.items():
        if name.rpartition(".")[2] in _REFUSED and value:
            raise AltDiffusionError(what, f"sets {name}, which is another formula", "use an adapter without it")
    return dict(settings)


def _alpha(settings: Mapping[str, Any], network: str, layer: str) -> float | None:
    """Return the alpha that the metadata give a layer; None where they give none, and the rank holds."""
    for pattern, alpha in (settings.get(f"{network}.alpha_pattern") or {}).items():
        if f".{layer}".endswith(f".{pattern}"):
            return float(alpha)
    alpha = settings.get(f"{network}.lora_alpha")
    return None if alpha is None else float(alpha)
