"""The perceptual hash: near for what is the same image, far for others; and the verdict made of it."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from altdiffusion.curation.images.source_hash import judge
from altdiffusion.image_files.phash import distance, phash


def scene(number: int, width: int = 400, height: int = 300) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    draw = np.random.default_rng(number)
    coarse = draw.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def test_the_same_image_stays_near_and_others_are_far() -> None:
    for number in range(20):
        image = scene(number)
        own = phash(image)
        assert -(2**63) <= own < 2**63
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])
        again = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))
        small = np.asarray(cv2.resize(image, (100, 75), interpolation=cv2.INTER_AREA))
        brighter = np.clip(image.astype(int) + 15, 0, 255).astype(np.uint8)
        assert max(distance(own, phash(other)) for other in (again, small, brighter)) <= 6
        assert min(distance(own, phash(scene(number + step))) for step in range(1, 10)) >= 14


def test_grey_and_flat_images_have_a_hash_too() -> None:
    image = scene(1)
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    assert phash(grey) == phash(image)
    assert phash(np.full((40, 60), 7, np.uint8)) == phash(np.full((9, 9, 3), 7, np.uint8))


def test_the_hash_is_the_documented_one() -> None:
    """The definition, written out: DCT-II of 32 x 32 grey values, 8 x 8 of it against its median."""
    image = scene(3, 32, 32)
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)).astype(np.float64)
    low = np.asarray(cv2.dct(grey))[:8, :8]
    # cv2.dct is orthonormal: undo its scaling of the first row and column
    low[0, :] *= np.sqrt(2)
    low[:, 0] *= np.sqrt(2)
    bits = "".join("1" if value > np.median(low) else "0" for value in low.ravel())
    assert phash(image) & (2**64 - 1) == int(bits, 2)


def test_distance_ignores_the_sign() -> None:
    assert distance(-1, 2**64 - 1) == 0 and distance(-1, 0) == 64 and distance(5, 6) == 2


BODY = b"a picture"
SHA, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()


@pytest.mark.parametrize(
    ("expected", "verdict"),
    [
        (None, None),
        ("", None),
        (f"sha256:{SHA}", "match"),
        (f"SHA256:{SHA.upper()} ", "match"),
        (f"sha256:{SHA[::-1]}", "mismatch"),
        (f"md5:{MD5}", "match"),
        (f"md5:{MD5[::-1]}", "mismatch"),
        ("phash:ffffffffffffff00", "match"),
        ("phash:ffffffffffffff03", "drift"),
        ("phash:fffffffffffffcff", "drift"),
        ("phash:fffffffffffff8ff", "mismatch"),
        ("phash:0000000000000000", "mismatch"),
        ("phash:fff", None),
        ("crc32:00000000", None),
        (SHA, None),
    ],
)
def test_the_verdict(expected: str | None, verdict: str | None) -> None:
    assert judge(expected, BODY, SHA, -256, max_distance=10) == verdict
