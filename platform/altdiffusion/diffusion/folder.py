"""Model folders: the digest of their content, their name in lineage, and how a complete one is published."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.documents import Document, optional_document
from altdiffusion.storage.seals import check_checksum, digest_of_lineage, with_checksum, without_checksum

_TRIES = 3
LINEAGE = "lineage.json"
"""File that records what a folder was made from. It describes the content and is not part of it."""
CARD = "README.md"
"""The model card, for readers. It is not part of the content either: an evaluation may add to it without changing the
model."""


def content_digest(folder: str) -> str:
    """Return the SHA-256 (hex) over names and contents of a model folder's files, without lineage.json and card.

    Raises:
        AltDiffusionError: there is no such folder, or it is empty.
    """
    fs, path = files.filesystem(folder)
    root = str(path).rstrip("/")
    with files.naming(folder, "reading"):
        names = sorted(str(name)[len(root) + 1 :] for name in fs.find(root)) if fs.isdir(root) else []
    if not names:
        raise missing_model(folder)
    listing = {}
    for name in names:
        if name not in (LINEAGE, CARD):
            with fs.open(f"{root}/{name}", "rb") as file:
                listing[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return files.sha256_hex(files.canonical_json(listing))


def missing_model(folder: str) -> AltDiffusionError:
    """Return the error for a model folder that holds nothing."""
    return AltDiffusionError(f"model folder {folder}", "is missing or empty", "give the folder of a model")


def model_ref(folder: str, content: str) -> Ref:
    """Return the reference of a model folder: by the digest in its lineage.json, else by its content."""
    name = re.sub(r"[^A-Za-z0-9._\-]", "-", posixpath.basename(folder.rstrip("/"))) or "model"
    document = optional_document(files.join(folder, LINEAGE))
    return Ref("model", name, content if document is None else lineage_digest(document))


def read_lineage(folder: str) -> dict[str, Any] | None:
    """Return the lineage.json of a model folder, without its checksum; None where it has none.

    Raises:
        AltDiffusionError: it was changed after it was written.
    """
    document = optional_document(files.join(folder, LINEAGE))
    if document is None:
        return None
    check_checksum(document)
    return without_checksum(document.value)


def lineage_digest(document: Document) -> str:
    """Return the digest that a lineage.json names, else the digest of the document itself.

    Raises:
        AltDiffusionError: the named value is not a digest.
    """
    check_checksum(document)
    return digest_of_lineage(document)


def publish(target: str, write: Callable[[Path], None], lineage: Mapping[str, Any]) -> None:
    """Write a model folder next to its target and move it there, lineage.json last; an older folder is replaced.

    If several jobs make the same folder at once, the first one's stays, because the others may be reading it.

    Args:
        target: URI of the folder.
        write: fills an empty local folder.
        lineage: what the folder is made from; the digest of what was written is added to it as `content`.
    """
    local = files.is_local(target)
    parent = os.path.dirname(files.local_path(target)) if local else tempfile.gettempdir()
    os.makedirs(parent, exist_ok=True)
    staging = Path(parent) / f".tmp-{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        write(staging)
        document = with_checksum({**lineage, "content": content_digest(str(staging))})
        (staging / LINEAGE).write_bytes(files.canonical_json(document))
        if local:
            _move(staging, target, document)
        elif not _holds(target, document):
            files.remove_tree(target, below=posixpath.dirname(target.rstrip("/")))
            _upload(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _holds(target: str, document: Mapping[str, Any]) -> bool:
    """Return whether the complete folder exists already."""
    return read_lineage(target) == without_checksum(document) and content_digest(target) == document["content"]


def _move(staging: Path, target: str, document: Mapping[str, Any]) -> None:
    place = files.local_path(target)
    for last in [False] * _TRIES + [True]:
        try:
            os.rename(staging, place)  # which does not replace a folder that is not empty
            return
        except OSError as error:
            if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _holds(target, document):
            return
        files.remove_tree(target, below=posixpath.dirname(target.rstrip("/")))


def _upload(folder: Path, target: str) -> None:
    """Copy a local folder to another file system, lineage.json last."""
    fs, path = files.filesystem(target)
    names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
    for name in sorted(names, key=lambda name: name == LINEAGE):
        fs.put_file(str(folder / name), f"{path}/{name}")
