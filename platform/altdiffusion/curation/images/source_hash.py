"""The verdict on whether an image is the one that the source saw, where the source states a hash.

`expected_hash` is `sha256:` or `md5:` and the hex digest of the file, or `phash:` and 16 hex digits.

match: the file's digest is the one stated, or the perceptual hashes are equal.
drift: the perceptual hashes differ in a few bits: the same image, encoded again, resized or lightly edited.
mismatch: they differ in more, or the file has another digest. A digest alone cannot distinguish another encoding from
    another image, and a link whose image was exchanged is what this is for: so it counts as a mismatch.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from altdiffusion.image_files.phash import distance

Verdict = Literal["match", "drift", "mismatch"]
VERDICTS: tuple[Verdict, ...] = ("match", "drift", "mismatch")
_EXPECTED = re.compile(r"(?:sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}|phash:[0-9a-f]{16})")


def judge(expected: str | None, body: bytes, sha256: str, phash: int, *, max_distance: int) -> Verdict | None:
    """Return the verdict on a downloaded file; None where the source states no hash, or none of this form.

    Args:
        expected: as in LINKS.
        sha256: hex, of the body.
        phash: of the whole image.
        max_distance: bits in which perceptual hashes of one image may differ.
    """
    stated = (expected or "").strip().lower()
    if not _EXPECTED.fullmatch(stated):
        return None
    kind, _, value = stated.partition(":")
    if kind != "phash":
        digest = sha256 if kind == "sha256" else hashlib.md5(body, usedforsecurity=False).hexdigest()
        return "match" if digest == value else "mismatch"
    bits = distance(phash, int(value, 16))
    return "match" if bits == 0 else "drift" if bits <= max_distance else "mismatch"
