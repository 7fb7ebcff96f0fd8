"""Networks are loaded only from weights that are exactly theirs.

A key that is missing, unused, of another shape or not finite is an error that names the key and the file. The
libraries' own loaders only mention it in a report that is easily overlooked: a missing tensor stays uninitialised, and
one that no layer uses is silently dropped. A dropped head once gave users images unrelated to their prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altdiffusion.errors import AltDiffusionError, first_line

_STEMS = ("diffusion_pytorch_model", "model")
_PRECISIONS = ("fp32", "bf16", "fp16")
"""Variants that hold the same weights in another precision; others (`non_ema`) hold other weights."""
_PICKLED = re.compile(r"(?:diffusion_pytorch_model|pytorch_model)[\w.\-]*\.(?:bin|ckpt|pt|pth)(?:\.index\.json)?")
_BUFFERS = (".position_ids", ".token_type_ids")
"""Constant buffers that earlier versions of transformers wrote; every network computes its own."""
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""Accepted weight types of safetensors; 8-bit weights are meaningless without scales that are stored elsewhere."""
_SHOWN = 3


def load_network(kind: Any, folder: Path, what: str, *, remedy: str, unused: tuple[str, ...] = (), **given: Any) -> Any:
    """Return a network of diffusers or transformers from a folder of safetensors, in evaluation mode.

    Args:
        kind: class with `from_pretrained`.
        folder: holds config.json and the weights, in one file or in shards with their index; in full precision or,
            where there is nothing else, as a variant (`model.fp16.safetensors`).
        what: names the folder in errors.
        remedy: the errors' remedy where a key is missing or unused.
        unused: prefixes of keys in the file that belong to another network.
        given: further arguments of `from_pretrained`.

    Raises:
        AltDiffusionError: the folder cannot be opened, or its weights are not exactly the network's.
    """
    file = weights_file(folder, what)
    if "config" not in given:
        read_settings(folder / "config.json", what)
    stored = _stored_types(file, what)
    if kind.__module__.startswith("transformers."):  # diffusers' networks never run code from a folder
        given["trust_remote_code"] = False
        given["ignore_mismatched_sizes"] = True  # they are named below; the library's own error does not name them
    try:
        network, report = kind.from_pretrained(
            folder,
            use_safetensors=True,
            variant=_variant(file),
            local_files_only=True,
            output_loading_info=True,
            **given,
        )
    except Exception as error:  # every kind of damage raises its own class
        raise AltDiffusionError(
            f"{what}, file {file.name}", f"cannot be opened ({first_line(error)})", "write or export it again"
        ) from error
    check_keys(report["missing_keys"], report["unexpected_keys"], f"{what}, file {file.name}", remedy, unused)
    odd = [
        str(entry[0] if isinstance(entry, (list, tuple)) else entry) for entry in report.get("mismatched_keys") or ()
    ]
    if odd:
        raise AltDiffusionError(
            f"{what}, file {file.name}", f"has keys of another shape than config.json gives: {_named(odd)}", remedy
        )
    state = network.state_dict()
    odd = [
        f"{name} ({stored[name]})"
        for name, tensor in state.items()
        if tensor.is_floating_point() and stored.get(name, "F32") not in _FLOATS
    ]
    if odd:
        raise AltDiffusionError(
            f"{what}, file {file.name}",
            f"holds weights of a type that is not read: {_named(odd)}",
            "give the weights in float32, bfloat16 or float16",
        )
    check_finite(state, f"{what}, file {file.name}", remedy)
    return network.eval()


def check_finite(tensors: Mapping[str, Tensor], what: str, remedy: str) -> None:
    """Refuse weights that hold a NaN or an infinity, which would silently spread through every result.

    Args:
        what: names the file.

    Raises:
        AltDiffusionError: a value is not finite; the error names the first few keys.
    """
    odd = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if odd:
        types = sorted({str(tensors[name].dtype).removeprefix("torch.") for name in odd})
        raise AltDiffusionError(
            what, f"has values that are not finite as {' or '.join(types)} in {_keys(sorted(odd))}", remedy
        )


def read_settings(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a JSON file of a model folder.

    Args:
        what: names the folder in errors.

    Raises:
        AltDiffusionError: it is missing, is not JSON, or is not a mapping.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AltDiffusionError(f"{what}, file {path.name}", "is missing", "copy the folder as published") from error
    except (ValueError, OSError) as error:
        raise AltDiffusionError(
            f"{what}, file {path.name}", f"is not JSON ({first_line(error)})", "copy it as published"
        ) from error
    if not isinstance(settings, dict):
        raise AltDiffusionError(f"{what}, file {path.name}", "is not a mapping", "copy it as published")
    return settings


def _stored_types(file: Path, what: str) -> dict[str, str]:
    """Return the types of the tensors by name, from the headers; a file must hold all that its header lists."""
    files = [file]
    if file.suffix == ".json":
        shards = read_settings(file, what).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise AltDiffusionError(f"{what}, file {file.name}", "has no weight_map", "copy it as published")
        for name in sorted({str(shard) for shard in shards.values()}):
            if Path(name).name != name or name in (".", ".."):
                raise AltDiffusionError(
                    f"{what}, file {file.name}",
                    f"names the shard {name!r}, which is not a file in the same folder",
                    "give the folder as published",
                )
            if not (file.parent / name).is_file():
                raise AltDiffusionError(
                    f"{what}, file {file.name}", f"names the shard {name}, which is missing", "copy that file as well"
                )
        files = [file.parent / name for name in sorted(set(shards.values()))]
    return {name: kind for path in files for name, kind in _header(path, what).items()}


def _header(path: Path, what: str) -> dict[str, str]:
    """Return the types by name in one safetensors file."""
    return {name: str(entry["dtype"]) for name, entry in _entries(path, what).items()}


def stored_shapes(path: Path, what: str) -> dict[str, list[int]]:
    """Return the shapes by name in one safetensors file, from its header alone.

    Args:
        what: names the file in errors.

    Raises:
        AltDiffusionError: it is not safetensors, or does not hold all that its header lists.
    """
    return {name: [int(side) for side in entry["shape"]] for name, entry in _entries(path, what).items()}


def _entries(path: Path, what: str) -> dict[str, dict[str, Any]]:
    """Return the header of a safetensors file: 8 bytes of length, that much JSON, then the tensors."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 0 < length <= size - 8 else None
        if not isinstance(header, dict):
            raise ValueError("no header")
        entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        wanted = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        for entry in entries.values():
            entry["dtype"], [int(side) for side in entry["shape"]]
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise AltDiffusionError(
            f"{what}, file {path.name}", "is not safetensors, or ends within its header", "copy it again"
        ) from error
    if wanted != size:
        raise AltDiffusionError(
            f"{what}, file {path.name}", f"has {size:,} bytes, its header requires {wanted:,}", "copy it again"
        )
    return entries


def open_tokenizer(kind: Any, folder: Path, what: str, *, remedy: str) -> Any:
    """Return a tokenizer from a folder that holds its vocabulary.

    Without a vocabulary file, transformers silently makes an empty vocabulary, and every caption becomes a row of
    unknown tokens.

    Args:
        kind: class with `from_pretrained`.
        what: names the folder in errors.

    Raises:
        AltDiffusionError: the tokenizer cannot be opened, or a file of its vocabulary is missing.
    """
    if not folder.is_dir():
        raise AltDiffusionError(what, "is missing", remedy)
    tokenizer = open_stock(kind, folder, what, remedy=remedy)
    names = dict(type(tokenizer).vocab_files_names)
    whole = names.pop("tokenizer_file", "tokenizer.json")
    lacking = [name for name in names.values() if not (folder / name).is_file()]
    if not (folder / whole).is_file() and (lacking or not names):
        raise AltDiffusionError(what, f"holds no {' or '.join([whole, *lacking])}", remedy)
    return tokenizer


def open_stock(kind: Any, folder: str | Path, what: str, *, remedy: str) -> Any:
    """Return a tokenizer, config or processor of transformers from a folder, without fetching or running its code.

    Args:
        kind: class with `from_pretrained`.
        what: names the folder in errors.
        remedy: what to give instead.

    Raises:
        AltDiffusionError: it cannot be opened with transformers' own classes.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # every kind of damage raises its own class
        if "trust_remote_code" in str(error):
            raise AltDiffusionError(
                what,
                "requires code of its own to run (`auto_map` in its config), and such code is never run",
                "give a folder that transformers' own classes open",
            ) from error
        raise AltDiffusionError(what, f"cannot be opened ({first_line(error)})", remedy) from error


def check_keys(
    missing: Iterable[Any], left_over: Iterable[Any], what: str, remedy: str, unused: tuple[str, ...] = ()
) -> None:
    """Refuse weights that lack a key or hold one that nothing uses.

    Args:
        what: names the file.
        unused: prefixes of keys that may be left over.

    Raises:
        AltDiffusionError: a key is missing or unused; the error names the first few.
    """
    lacking = sorted(str(name) for name in missing if not str(name).endswith(_BUFFERS))
    extra = sorted(
        str(name)
        for name in left_over
        if not str(name).endswith(_BUFFERS) and not (unused and str(name).startswith(unused))
    )
    if lacking or extra:
        problems = [f"lacks {_keys(lacking)}"] if lacking else []
        if extra:
            problems.append(f"holds {_keys(extra)}{' that' if len(extra) > 1 else ', which'} nothing uses")
        raise AltDiffusionError(what, " and ".join(problems), remedy)


def weights_file(folder: Path, what: str) -> Path:
    """Return the safetensors file of a network's folder, or the index of its shards.

    Weights in full precision come before variants in another one, as in the libraries.

    Raises:
        AltDiffusionError: there is none, or there are several, of which the libraries could take either.
    """
    for variants in ((None,), _PRECISIONS):
        names = [name for variant in variants for stem in _STEMS for name in _weight_names(stem, variant)]
        present = [folder / name for name in names if (folder / name).is_file()]
        if len(present) > 1:
            raise AltDiffusionError(
                what,
                f"holds {' and '.join(path.name for path in present)}",
                "keep only one of them, the one that is meant",
            )
        if present:
            return present[0]
    pickled = sorted(path.name for path in folder.glob("*") if _PICKLED.fullmatch(path.name))
    if pickled:
        raise AltDiffusionError(
            what,
            f"holds its weights only as pickles ({_named(pickled)}), which are never opened: they can run any code",
            "use a revision with safetensors, or convert the folder where its publisher is trusted: "
            "DiffusionPipeline.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    raise AltDiffusionError(
        what,
        f"holds no weights in safetensors ({' or '.join(f'{stem}.safetensors' for stem in _STEMS)})"
        + (f", only {_named(others)}" if others else ""),
        "give a folder with its weights",
    )


def _weight_names(stem: str, variant: str | None) -> list[str]:
    """Return the names that the libraries give a file of weights or the index of its shards."""
    if variant is None:
        return [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    return [f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json"]


def _variant(file: Path) -> str | None:
    """Return the variant in the name of a file of weights; None for full precision."""
    return next((part for part in file.name.split(".") if part in _PRECISIONS), None)


def _keys(names: list[str]) -> str:
    return f"the key {names[0]}" if len(names) == 1 else f"{len(names)} keys ({_named(names)})"


def _named(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
