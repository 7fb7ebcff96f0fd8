"""Seals of what a lake states about a thing: of a checkpoint's COMPLETE.json, and of a model folder's lineage.json.

COMPLETE.json has its digest and a checksum of the document itself. lineage.json has a checksum alone; those of earlier
versions have none, and count as unsealed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.documents import Document

_SEALS = ("digest", "checksum")


def seal(head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of COMPLETE.json: `head` with the checkpoint's digest and a checksum of the document itself.

    The digest leaves out `files`, which depend on how the tensors were split up.
    """
    digest = files.sha256_hex(files.canonical_json({key: value for key, value in head.items() if key != "files"}))
    document = {**head, "digest": digest}
    return {**document, "checksum": files.sha256_hex(files.canonical_json(document))}


def check_seal(document: Document) -> None:
    """Refuse a COMPLETE.json that was changed after it was written.

    Raises:
        AltDiffusionError: a seal is not that of the content.
    """
    if seal({key: value for key, value in document.value.items() if key not in _SEALS}) != document.value:
        raise AltDiffusionError(
            f"file {document.uri}",
            "is damaged: its checksum is not that of its content",
            "restore it from a copy, or remove the checkpoint's folder",
        )


CHECKSUM = "checksum"


def with_checksum(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of lineage.json: `lineage` with a checksum of all of it."""
    return {**lineage, CHECKSUM: files.sha256_hex(files.canonical_json(dict(lineage)))}


def without_checksum(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the checksum of a lineage.json covers."""
    return {key: value for key, value in lineage.items() if key != CHECKSUM}


def is_sealed(document: Document) -> bool:
    """Return whether a lineage.json has a checksum."""
    return CHECKSUM in document.value


def check_checksum(document: Document) -> None:
    """Refuse a lineage.json that was changed after it was written; one without a checksum is accepted.

    Raises:
        AltDiffusionError: the checksum is not that of the content.
    """
    if is_sealed(document) and with_checksum(without_checksum(document.value)) != document.value:
        raise AltDiffusionError(
            f"file {document.uri}",
            "is damaged: its checksum is not that of its content",
            "restore it from a copy, or remove the folder and make it again",
        )


def digest_of_lineage(document: Document) -> str:
    """Return the digest that a lineage.json names, else that of its content without the checksum.

    Raises:
        AltDiffusionError: the named value is not a digest.
    """
    if document.value.get("digest"):
        return document.digest("digest")
    return files.sha256_hex(files.canonical_json(without_checksum(document.value)))
