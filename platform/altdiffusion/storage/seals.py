"""The seal of a checkpoint's COMPLETE.json: its digest, and a checksum of the document itself."""

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
