"""Tensors from published weight files, under any of the usual names; code in a file is never run.

model.safetensors, pytorch_model.bin            one file, or shards with `<name>.index.json`
model.fp16.safetensors, pytorch_model.fp16.bin  the same in half precision, used where there is nothing else
model.ckpt                                      a whole training checkpoint, as FlagAI publishes it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from altdiffusion.diffusion.weight_files import check_finite
from altdiffusion.errors import AltDiffusionError, first_line

CHECKPOINT = "model.ckpt"
_PLAIN = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which trainers keep the table of tensors, next to step counters and the like."""
_WRAPPED = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.")
"""Prefixes of every name, from DistributedDataParallel, torch.compile, Lightning's DeepSpeed and FSDP."""


def weights_file(folder: Path) -> Path | None:
    """Return the file, or the index of shards, that holds a folder's weights; None where there is none."""
    for variant in ("", ".fp16"):
        for name in _PLAIN:
            stem, suffix = name.rsplit(".", 1)
            one = folder / f"{stem}{variant}.{suffix}"
            # `model.safetensors.index.fp16.json` is diffusers' spelling, the other transformers'
            indices = (folder / f"{name}.index{variant}.json", folder / f"{stem}{variant}.{suffix}.index.json")
            for file in (one, *indices):
                if file.is_file():
                    return file
    checkpoint = folder / CHECKPOINT
    return checkpoint if checkpoint.is_file() else None


def read_weights(folder: str | Path, what: str = "text encoder") -> dict[str, torch.Tensor]:
    """Return every tensor of a weights folder, by name.

    Args:
        what: names the kind of the folder in errors.

    Raises:
        AltDiffusionError: there are no weights; a file is missing, damaged or holds more than tensors; or a value in
            it is not finite.
    """
    file = weights_file(Path(folder))
    if file is None:
        raise AltDiffusionError(
            f"{what} {folder}",
            f"holds none of {', '.join(_PLAIN)}, their fp16 variants, or {CHECKPOINT}",
            "give the folder with the weights",
        )
    tensors = _read_shards(file) if file.suffix == ".json" else _read_file(file)
    check_finite(tensors, f"weights {file}", "copy them again, or give another version of them")
    return tensors


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        named = {str(key): str(part) for key, part in weight_map.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise AltDiffusionError(f"weights {index}", f"is not an index of shards ({error})", "copy it again") from error
    merged: dict[str, torch.Tensor] = {}
    for part in sorted(set(named.values())):
        if Path(part).name != part or not (index.parent / part).is_file():
            raise AltDiffusionError(f"weights {index}", f"name {part}, which is not there", "copy every shard")
        merged |= _read_file(index.parent / part)
    for key in named:
        if key not in merged:
            raise AltDiffusionError(f"weights {index}", f"name the key {key}, which no shard holds", "copy again")
    return merged


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each library raises its own classes
        raise AltDiffusionError(
            f"weights {path}",
            f"cannot be read ({first_line(error)})",
            "copy them again; a file that holds more than tensors and plain values is not opened",
        ) from error
    table = _unwrapped(loaded)
    if table is None:
        raise AltDiffusionError(f"weights {path}", "are not a plain table of tensors", "give a state dict")
    return _unprefixed(table)


def _unprefixed(table: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the table without the prefixes that wrappers for several devices or compilers put before all keys."""
    while prefix := next((prefix for prefix in _WRAPPED if all(name.startswith(prefix) for name in table)), ""):
        table = {name.removeprefix(prefix): tensor for name, tensor in table.items()}
    return table


def _unwrapped(loaded: Any) -> dict[str, torch.Tensor] | None:
    """Return the table of tensors in an object that a trainer saved; None where there is none."""
    while isinstance(loaded, Mapping):
        if loaded and all(isinstance(value, torch.Tensor) for value in loaded.values()):
            return {str(name): tensor for name, tensor in loaded.items()}
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if len(inner) != 1:
            return None
        loaded = inner[0]
    return None
