"""A file of adapters as the start of a run of adapters: found, and checked to be of the run's shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from altdiffusion.diffusion.adapter_files import Pair, adapter_file, adapter_pairs, read_adapter
from altdiffusion.diffusion.models import Trains, build_unet
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.training.config.lora import LoraConfig
from altdiffusion.training.model.lora import target_layers

_SHOWN = 3


def located_adapters(uri: str, lake: str) -> tuple[str, str]:
    """Return (URI, SHA-256 in hex) of the file that `start.lora` names, fetched from the hub first where that is
    needed.

    Raises:
        AltDiffusionError: it is missing, is a pickle, or the folder holds several.
    """
    file = adapter_file(uri, lake)
    return file, files.sha256_hex(read_adapter(file))


def start_adapters(uri: str, sha256: str, base: str, config: LoraConfig, trainable: Trains) -> dict[str, Tensor]:
    """Return the adapters of a file by their names in a checkpoint, in float32, checked to be of a run's shape.

    Args:
        uri: as `located_adapters` returns it.
        sha256: what the file had when the run was planned.
        base: URI of the model folder of the UNet.

    Raises:
        AltDiffusionError: the file was changed, belongs to another UNet, or has other layers, another rank or another
            alpha than the config; the error states both.
    """
    what = f"adapter {uri}, named by start.lora"
    data = read_adapter(uri)
    if files.sha256_hex(data) != sha256:
        raise AltDiffusionError(what, "was changed since the run was planned", "run the same command again")
    unet = build_unet(files.read_json(files.join(base, "unet", "config.json")), "meta")
    pairs = {layer: pair for _, layer, pair in adapter_pairs(data, {"unet": unet}, uri)}
    _check_layers(list(pairs), target_layers(unet, config, trainable), what)
    found = {}
    for layer, pair in pairs.items():
        assert pair.down is not None and pair.up is not None  # `adapter_pairs` refuses a half
        _check_size(pair, config, f"{what}, layer {layer}")
        found[f"{layer}.lora_A.weight"] = pair.down.flatten(1).float()
        found[f"{layer}.lora_B.weight"] = pair.up.flatten(1).float()
    return found


def _check_layers(given: Sequence[str], wanted: Sequence[str], what: str) -> None:
    for problem, layers in (
        ("lacks adapters of", sorted(set(wanted) - set(given))),
        ("has adapters of", sorted(set(given) - set(wanted))),
    ):
        if layers:
            raise AltDiffusionError(
                what,
                f"has adapters of {len(given)} layers, lora.targets and trainable give {len(wanted)}: it {problem} "
                f"{', '.join(layers[:_SHOWN])}",
                f"set lora.targets and trainable to the layers of the file ({', '.join(_kinds(given))})",
            )


def _kinds(layers: Sequence[str]) -> list[str]:
    """Return the layers' names as `lora.targets` takes them."""
    parts = [layer.split(".") for layer in layers]
    return sorted({".".join(names[-2:] if names[-1].isdigit() else names[-1:]) for names in parts})


def _check_size(pair: Pair, config: LoraConfig, what: str) -> None:
    assert pair.down is not None
    rank = pair.down.shape[0]
    if rank != config.rank:
        raise AltDiffusionError(what, f"has rank {rank}, lora.rank is {config.rank}", f"set lora.rank: {rank}")
    alpha, own = float(rank if pair.alpha is None else pair.alpha), config.scale * config.rank
    if abs(alpha - own) > 1e-6 * max(alpha, own):
        raise AltDiffusionError(what, f"has alpha {alpha:g}, lora.alpha is {own:g}", f"set lora.alpha: {alpha:g}")
