"""Model folders as inputs: the digest of what is in them, and how lineage names them."""

from __future__ import annotations

import hashlib
import posixpath
import re

from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files

LINEAGE = "lineage.json"
"""Says what a folder was made from; it is about the content, not of it."""


def content_digest(folder: str) -> str:
    """SHA-256 (hex) over names and contents of the files of a model folder, without its lineage.json.

    Raises:
        AltDiffusionError: there is no such folder, or it is empty.
    """
    fs, path = files.filesystem(folder)
    root = str(path).rstrip("/")
    names = sorted(str(name)[len(root) + 1 :] for name in fs.find(root)) if fs.isdir(root) else []
    if not names:
        raise AltDiffusionError(f"model folder {folder}", "is missing or empty", "give the folder of a model")
    listing = {}
    for name in names:
        if name != LINEAGE:
            with fs.open(f"{root}/{name}", "rb") as file:
                listing[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return files.sha256_hex(files.canonical_json(listing))


def model_ref(folder: str, content: str) -> Ref:
    """How lineage names a model folder: by the digest in its lineage.json, else by its content."""
    name = re.sub(r"[^A-Za-z0-9._\-]", "-", posixpath.basename(folder.rstrip("/"))) or "model"
    try:
        document = files.read_json(files.join(folder, LINEAGE))
    except FileNotFoundError:
        return Ref("model", name, content)
    return Ref("model", name, str(document.get("digest") or files.sha256_hex(files.canonical_json(document))))
