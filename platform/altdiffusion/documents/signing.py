"""Content Credentials of generated images: a C2PA manifest inside the file, signed with the publisher's certificate.

The manifest (C2PA Technical Specification 2.x) states by the action `c2pa.created` and IPTC's digital source type
`trainedAlgorithmicMedia` that a model made the image. An assertion of our own holds the file's record: model, prompt,
seed and all settings. The record inside the file stays, so that `altdiffusion lineage up FILE` finds the origin of a
signed image. Only the optional library c2pa-python makes manifests; it is asked for no thumbnail and no network.
"""

from __future__ import annotations

import io
import json
from typing import Any

import altdiffusion
from altdiffusion.documents.certificates import algorithm, unusable
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.image_files.embed import MARK
from altdiffusion.image_files.extract import read_carried, read_file
from altdiffusion.image_files.record import FileRecord

ASSERTION = "org.altdiffusion.record"
"""Label of the assertion that holds an image's record."""
_TYPES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))
ENDINGS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
"""Ending of a file by its type."""
_UNTRUSTED = "signingCredential.untrusted"
"""What a reader reports of a certificate that its own list of trusted ones does not hold: no fault of the file."""


class Signer:
    """Signs images with one certificate.

    Args:
        certificates: path of a PEM file: the signing certificate, then those that vouch for it.
        key: path of the PEM file of its private key, not encrypted. Nothing of it is kept in errors or outputs.

    Raises:
        AltDiffusionError: c2pa-python is not installed, a file cannot be used, the key is not that of the certificate,
            or the certificate does not allow this use now.
    """

    def __init__(self, certificates: str, key: str) -> None:
        self._c2pa = _library()
        chain, private = read_file(certificates), read_file(key)
        name = getattr(self._c2pa.C2paSigningAlg, algorithm(certificates, chain, key, private))
        info = self._c2pa.C2paSignerInfo(alg=name, sign_cert=chain, private_key=private, ta_url=None)
        try:
            self._signer = self._c2pa.Signer.from_info(info)
        except self._c2pa.C2paError as error:
            raise unusable(certificates, first_line(error)) from None
        settings = self._c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}})
        self._context = self._c2pa.Context(settings=settings)

    def sign(self, data: bytes, name: str) -> bytes:
        """Return the file with a signed manifest, after reading it back.

        Args:
            data: of a PNG, JPEG or WebP file that carries its record.
            name: of the file, for errors.

        Raises:
            AltDiffusionError: the file carries no record or an edited one, is already signed, or cannot be signed.
        """
        record = _record_of(data, name)
        mime, signed = media_type(data, name), io.BytesIO()
        if read_manifest(data, name) is not None:
            raise AltDiffusionError(f"image {name}", "is already signed", "sign images as the platform drew them")
        try:
            builder = self._c2pa.Builder(_manifest(record, mime), context=self._context)
            builder.sign(self._signer, mime, io.BytesIO(data), signed)
            found = read_manifest(signed.getvalue(), name)
        except self._c2pa.C2paError as error:
            raise AltDiffusionError(
                f"image {name}", f"cannot be signed ({first_line(error)})", "check the certificate chain and the file"
            ) from None
        if found is None or found["faults"]:
            faults = "no manifest" if found is None else ", ".join(found["faults"])
            raise AltDiffusionError(
                f"image {name}", f"is not valid once signed ({faults})", "check the certificate chain"
            )
        return signed.getvalue()


def read_manifest(data: bytes, name: str) -> dict[str, Any] | None:
    """Return the assertions of a file's active manifest by label, and what is wrong; None for a file without one.

    Returns:
        `assertions`, `issuer` (the certificate's organisation) and `faults`: codes of failed checks. That a reader
        does not know the certificate is not among them.

    Raises:
        AltDiffusionError: c2pa-python is not installed, or the file is not an image that it reads.
    """
    c2pa = _library()
    try:
        with c2pa.Reader(media_type(data, name), io.BytesIO(data)) as reader:
            found = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    active = found["manifests"][found["active_manifest"]]
    codes = [str(one["code"]) for one in found.get("validation_status", ())]
    return {
        "assertions": {one["label"]: one["data"] for one in active["assertions"]},
        "issuer": active["signature_info"].get("issuer"),
        "faults": [code for code in codes if code != _UNTRUSTED],
    }


def media_type(data: bytes, name: str) -> str:
    """Return the type of an image file by its first bytes.

    Raises:
        AltDiffusionError: it is none of PNG, JPEG and WebP.
    """
    for beginning, mime in _TYPES:
        if data.startswith(beginning) and (mime != "image/webp" or data[8:12] == b"WEBP"):
            return mime
    raise AltDiffusionError(f"image {name}", "is none of PNG, JPEG and WebP", "name image files, or a dataset")


def _record_of(data: bytes, name: str) -> FileRecord:
    carried = read_carried(data)
    record = carried.record
    if record is None or not record.is_consistent:
        problem = carried.problem or ("carries no record" if record is None else "carries a record that was edited")
        raise AltDiffusionError(
            f"image {name}", f"{problem}, so that nothing is known to sign", "sign images as the platform drew them"
        )
    return record


def _manifest(record: FileRecord, mime: str) -> dict[str, Any]:
    agent = {"name": "altdiffusion", "version": altdiffusion.__version__}
    created = {"action": "c2pa.created", "digitalSourceType": MARK, "softwareAgent": agent}
    return {
        "claim_generator_info": [agent],
        "format": mime,
        "title": record.row_key,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": ASSERTION, "data": json.loads(record.to_json()), "kind": "Json"},
        ],
    }


def _library() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise AltDiffusionError(
            "c2pa-python",
            f"cannot be used ({first_line(error)})",
            "install it: pip install 'altdiffusion-platform[c2pa]'",
        ) from error
    return c2pa
