"""Model files by URI and SHA-256: a file is loaded only if its bytes are the pinned ones."""

from __future__ import annotations

import importlib.util
import io
import os
from typing import Any

from altdiffusion.diffusion.folder import content_digest
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files

_PACKAGE = "package://"


def resolve_uri(uri: str) -> str:
    """Turn `package://<python package>/<file>` into the path of that file; other URIs stay as they are.

    Raises:
        AltDiffusionError: the package is not installed.
    """
    if not uri.startswith(_PACKAGE):
        return uri
    package, _, name = uri[len(_PACKAGE) :].partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise AltDiffusionError(
            f"model {uri}", f"the Python package {package!r} is not installed", "install it, or give another URI"
        )
    return os.path.join(next(iter(spec.submodule_search_locations)), *name.split("/"))


def read_pinned(uri: str, sha256: str) -> bytes:
    """Return the bytes of a file, after its SHA-256 has been checked.

    Raises:
        AltDiffusionError: the file is not there, or has other bytes.
    """
    try:
        data = files.read_bytes(resolve_uri(uri))
    except FileNotFoundError as error:
        raise AltDiffusionError(f"model {uri}", "is not there", "check the URI in the config") from error
    actual = files.sha256_hex(data)
    if actual != sha256:
        raise AltDiffusionError(
            f"model {uri}", f"has SHA-256 {actual}, not {sha256}", "use the pinned file, or pin the new one"
        )
    return data


def local_pinned(uri: str, sha256: str) -> str:
    """Return a local path of the file, its SHA-256 checked: for libraries that only open paths.

    A remote file is copied once into the user's cache folder under its hash.
    """
    resolved = resolve_uri(uri)
    data = read_pinned(uri, sha256)
    if files.is_local(resolved):
        return files.local_path(resolved)
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(root, "altdiffusion", "models", sha256)
    files.write_atomic(path, data)
    return path


def load_tensors(uri: str, sha256: str) -> dict[str, Any]:
    """Return the tensors of a pinned weights file by name, on the CPU: safetensors by its ending, else a torch file.

    No code in it runs: torch reads nothing but tensors and plain containers.

    Raises:
        AltDiffusionError: it is not there, has other bytes, or is not a flat collection of tensors.
    """
    import torch
    from safetensors.torch import load

    data = read_pinned(uri, sha256)
    try:
        if uri.endswith(".safetensors"):
            return dict(load(data))
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are not weights, torch raises whatever its reader stumbles over
        raise AltDiffusionError(
            f"model {uri}",
            f"cannot be read as weights only ({first_line(error)})",
            "save its state dict as safetensors",
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise AltDiffusionError(
            f"model {uri}", "is not a flat collection of named tensors", "save its state dict alone, as safetensors"
        )
    return dict(tensors)


folder_digest = content_digest
"""The identity of a model folder: what `vae_digest`, `tokenizer_digest` and `clip_digest` pin."""


def check_folder(uri: str, digest: str | None) -> str:
    """Return the local path of a model folder, its digest checked where one is pinned.

    Raises:
        AltDiffusionError: it is not there, or holds other files than those pinned.
    """
    actual = folder_digest(uri)
    if digest is not None and actual != digest:
        raise AltDiffusionError(
            f"model {uri}", f"has digest {actual}, not {digest}", "use the pinned model, or pin the new one"
        )
    return files.local_path(uri)
