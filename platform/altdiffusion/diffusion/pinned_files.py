"""Model files and folders by URI and digest: they are loaded only if their bytes are the pinned ones."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tempfile
from typing import Any

from altdiffusion.diffusion.folder import content_digest, missing_model
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files
from altdiffusion.storage.locks import held
from altdiffusion.storage.user_cache import user_cache

COPY_TIMEOUT_S = 3600.0
"""Longest wait for another process of this machine that copies the same model."""
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
    path = os.path.join(user_cache("models"), sha256)
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

    A folder elsewhere is copied into the user's cache folder under its digest; pinned, it is copied once per machine.

    Raises:
        AltDiffusionError: it is not there, or holds other files than those pinned.
    """
    if not files.is_local(uri):
        return _cached_folder(uri, digest)
    _check_digest(uri, folder_digest(uri), digest)
    return files.local_path(uri)


def _check_digest(uri: str, actual: str, digest: str | None) -> None:
    if digest is not None and actual != digest:
        raise AltDiffusionError(
            f"model {uri}", f"has digest {actual}, not {digest}", "use the pinned model, or pin the new one"
        )


def _cached_folder(uri: str, digest: str | None) -> str:
    """Return the folder in the cache; workers of one machine that need the same one wait for the first of them.

    Raises:
        AltDiffusionError: another process has held the copy for more than `COPY_TIMEOUT_S`.
    """
    root = user_cache("models")
    os.makedirs(root, exist_ok=True)
    lock = os.path.join(root, f".{files.sha256_hex(uri.encode())[:16]}.lock")
    with held(lock, f"copy of model {uri}", COPY_TIMEOUT_S):
        if digest is not None and _holds(os.path.join(root, digest), digest):
            return os.path.join(root, digest)
        staging = tempfile.mkdtemp(prefix=".tmp-", dir=root)
        try:
            _copy(uri, staging)
            actual = folder_digest(staging)
            _check_digest(uri, actual, digest)
            place = os.path.join(root, actual)
            if not _holds(place, actual):
                shutil.rmtree(place, ignore_errors=True)
                try:
                    os.rename(staging, place)
                except OSError:  # the same folder came from another URI at this moment
                    if not _holds(place, actual):
                        raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return place


def _holds(place: str, digest: str) -> bool:
    return os.path.isdir(place) and bool(os.listdir(place)) and folder_digest(place) == digest


def _copy(uri: str, target: str) -> None:
    """Copy the files of a folder elsewhere."""
    fs, path = files.filesystem(uri)
    root = str(path).rstrip("/")
    with files.naming(uri, "reading"):
        names = [str(name)[len(root) + 1 :] for name in fs.find(root)]
        if not names:
            raise missing_model(uri)
        for name in names:
            to = files.local_path(files.join(target, name))  # no name leads out of the folder
            os.makedirs(os.path.dirname(to), exist_ok=True)
            fs.get_file(f"{root}/{name}", to)
