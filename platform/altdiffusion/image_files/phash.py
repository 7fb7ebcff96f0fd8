"""An image's perceptual hash: 64 bits that small changes (size, quality, a logo) leave nearly as they are.

The DCT hash in its usual form (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010):
the image as 32 x 32 grey values, its two-dimensional DCT-II, the 8 x 8 lowest frequencies, and one bit for each
that is set where it is above their median; row by row, the first bit the highest. Another program that resizes or
greys in another way differs in a few bits.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

_SIDE, _KEPT = 32, 8
_LEAST_BITS = 24
_NOISE = 6  # decimals: what is left of a flat image's frequencies must not decide bits


def _dct_rows() -> npt.NDArray[np.float64]:
    """Return the first 8 rows of the DCT-II matrix of length 32 (not normalised: only the order of values matters)."""
    k, n = np.mgrid[0:_KEPT, 0:_SIDE]
    rows: npt.NDArray[np.float64] = np.cos(np.pi * k * (2 * n + 1) / (2 * _SIDE))
    return rows


_DCT = _dct_rows()


def phash(image: npt.NDArray[np.uint8]) -> int:
    """Return the hash, as a signed 64-bit number.

    Args:
        image: uint8 [H, W] grey or [H, W, 3] BGR.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    small: Any = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = np.round(_DCT @ small.astype(np.float64) @ _DCT.T, _NOISE)
    ordered = np.sort(low, axis=None)
    median = (ordered[_KEPT * _KEPT // 2 - 1] + ordered[_KEPT * _KEPT // 2]) / 2
    bits = np.packbits((low > median).ravel())
    return int.from_bytes(bits.tobytes(), "big", signed=True)


def phash_rgb(image: npt.NDArray[np.uint8]) -> int:
    """Return the same hash of uint8 [H, W, 3] RGB."""
    return phash(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8))


def is_plain(value: int) -> bool:
    """Return whether a hash has too few bits set to recognise an image by: it has one colour, or hardly any structure.

    Half of the bits are above the median of 64 different frequencies; frequencies that are all 0 are not.
    """
    return (value & 0xFFFF_FFFF_FFFF_FFFF).bit_count() < _LEAST_BITS


def distance(one: int, other: int) -> int:
    """Return in how many of the 64 bits two hashes differ; each may be signed or unsigned."""
    return ((one ^ other) & 0xFFFF_FFFF_FFFF_FFFF).bit_count()


def distances(one: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return in how many bits a hash differs from each of [N] others, uint8 [N]."""
    differing = others.view(np.uint64) ^ np.uint64(one & 0xFFFF_FFFF_FFFF_FFFF)
    return np.asarray(np.bitwise_count(differing), np.uint8)
