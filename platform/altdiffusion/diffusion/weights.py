"""Networks from folders whose weights are exactly theirs: a key that is missing, left over or of another shape is an
error that names the key and the file.

The libraries' own loaders say it in a report that is easily overlooked: a missing tensor stays without values, and one
that no layer takes is dropped without a word. A silently dropped head once gave users pictures that had nothing to do
with their prompts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError

_STEMS = ("diffusion_pytorch_model", "model")
_BUFFERS = (".position_ids", ".token_type_ids")
"""Constant buffers that earlier versions of transformers wrote; every network makes its own."""
_SHOWN = 3


def load_network(kind: Any, folder: Path, what: str, *, remedy: str, beside: tuple[str, ...] = (), **given: Any) -> Any:
    """Return a network of diffusers or transformers from a folder of safetensors, in evaluation mode.

    Args:
        kind: class with `from_pretrained`.
        folder: with config.json and the weights, in one file or in shards with their index.
        what: names the folder in errors.
        remedy: said where a key is missing or left over.
        beside: beginnings of keys that stand beside the network in its file and belong to another one.
        given: further arguments of `from_pretrained`.

    Raises:
        AltDiffusionError: the folder cannot be opened, or its weights are not exactly the network's.
    """
    file = weights_file(folder, what)
    if kind.__module__.startswith("transformers."):  # diffusers' networks know no code of a folder
        given["trust_remote_code"] = False
    try:
        network, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **given
        )
    except Exception as error:  # every kind of damage has its own class there
        raise AltDiffusionError(
            f"{what}, file {file.name}", f"cannot be opened ({first_line(error)})", "write or export it again"
        ) from error
    check_keys(report["missing_keys"], report["unexpected_keys"], f"{what}, file {file.name}", remedy, beside)
    odd = [
        str(entry[0] if isinstance(entry, (list, tuple)) else entry) for entry in report.get("mismatched_keys") or ()
    ]
    if odd:
        raise AltDiffusionError(
            f"{what}, file {file.name}", f"has keys of another shape than config.json says: {_named(odd)}", remedy
        )
    return network.eval()


def open_stock(kind: Any, folder: str | Path, what: str, *, remedy: str) -> Any:
    """Return a tokenizer, config or processor of transformers from a folder; nothing is fetched, none of its code runs.

    Args:
        kind: class with `from_pretrained`.
        what: names the folder in errors.
        remedy: what to give instead of what cannot be opened.

    Raises:
        AltDiffusionError: it cannot be opened with transformers' own classes.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # every kind of damage has its own class there
        if "trust_remote_code" in str(error):
            raise AltDiffusionError(
                what,
                "asks to run code that it brings (`auto_map` in its config), and no such code is run",
                "give a folder that transformers' own classes open",
            ) from error
        raise AltDiffusionError(what, f"cannot be opened ({first_line(error)})", remedy) from error


def check_keys(
    missing: Iterable[Any], left_over: Iterable[Any], what: str, remedy: str, beside: tuple[str, ...] = ()
) -> None:
    """Refuse weights that lack a key or hold one that nothing uses.

    Args:
        what: names the file.
        beside: beginnings of keys that may be left over.

    Raises:
        AltDiffusionError: names the keys, the first few of many.
    """
    lacking = sorted(str(name) for name in missing if not str(name).endswith(_BUFFERS))
    extra = sorted(
        str(name)
        for name in left_over
        if not str(name).endswith(_BUFFERS) and not (beside and str(name).startswith(beside))
    )
    if lacking or extra:
        told = ([f"lacks {_keys(lacking)}"] if lacking else []) + (
            [
                f"holds {_keys(extra)} that nothing uses"
                if len(extra) > 1
                else f"holds {_keys(extra)}, which nothing uses"
            ]
            if extra
            else []
        )
        raise AltDiffusionError(what, " and ".join(told), remedy)


def weights_file(folder: Path, what: str) -> Path:
    """Return the safetensors file of a network's folder, or the index of its shards.

    Raises:
        AltDiffusionError: there is none, or there are several of which the libraries would take one or the other.
    """
    names = [f"{stem}.safetensors{suffix}" for stem in _STEMS for suffix in ("", ".index.json")]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise AltDiffusionError(
            what, f"holds {' and '.join(path.name for path in found)}", "keep one of them: which is meant is unclear"
        )
    if not found:
        raise AltDiffusionError(
            what, f"holds no weights in safetensors ({' or '.join(names[::2])})", "give a folder with its weights"
        )
    return found[0]


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _keys(names: list[str]) -> str:
    return f"the key {names[0]}" if len(names) == 1 else f"{len(names)} keys ({_named(names)})"


def _named(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
