"""ICC profiles of colour spaces that files name instead of describing: three primaries, a white and a curve.

Format: ICC.1:2001-04 (version 2), matrix/TRC display profiles, which every colour management system reads.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Point = tuple[float, float]
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_NEAR = 0.002  # of a chromaticity
SRGB_CURVE = 0.0
"""Denotes sRGB's transfer function (IEC 61966-2-1); any other curve is the exponent of a power law."""
_STEPS = 4096  # of a sampled curve


@dataclass(frozen=True, kw_only=True)
class Space:
    """Chromaticities (CIE 1931 x, y) of a colour space."""

    white: Point
    red: Point
    green: Point
    blue: Point

    @property
    def spans(self) -> bool:
        """Return whether these are chromaticities and the primaries form a triangle."""
        points = (self.white, self.red, self.green, self.blue)
        if not all(0 <= x <= 1 and 0 < y <= 1 for x, y in points):
            return False
        (rx, ry), (gx, gy), (bx, by) = points[1:]
        return abs((gx - rx) * (by - ry) - (bx - rx) * (gy - ry)) > 1e-3

    def near(self, other: Space) -> bool:
        """Return whether no chromaticity differs visibly."""
        pairs = zip((self.white, self.red, self.green, self.blue), _points(other), strict=True)
        return all(abs(a - b) <= _NEAR for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))

    def to_d50(self) -> npt.NDArray[np.float64]:
        """Return the [3, 3] matrix from linear RGB to XYZ, adapted to D50 (Bradford), as profiles have it."""
        columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in (self.red, self.green, self.blue)]).T
        x, y = self.white
        white = np.array([x / y, 1.0, (1 - x - y) / y])
        matrix = columns * np.linalg.solve(columns, white)
        gains = (_BRADFORD @ _D50) / (_BRADFORD @ white)
        adapted: npt.NDArray[np.float64] = np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD @ matrix
        return adapted


def _points(space: Space) -> tuple[Point, ...]:
    return (space.white, space.red, space.green, space.blue)


_D65: Point = (0.3127, 0.3290)
SRGB = Space(white=_D65, red=(0.64, 0.33), green=(0.30, 0.60), blue=(0.15, 0.06))
_601_525 = Space(white=_D65, red=(0.63, 0.34), green=(0.31, 0.595), blue=(0.155, 0.07))
PRIMARIES: dict[int, Space] = {
    1: SRGB,
    2: SRGB,
    4: Space(white=(0.310, 0.316), red=(0.67, 0.33), green=(0.21, 0.71), blue=(0.14, 0.08)),
    5: Space(white=_D65, red=(0.64, 0.33), green=(0.29, 0.60), blue=(0.15, 0.06)),
    6: _601_525,
    7: _601_525,
    9: Space(white=_D65, red=(0.708, 0.292), green=(0.170, 0.797), blue=(0.131, 0.046)),
    11: Space(white=(0.314, 0.351), red=(0.680, 0.320), green=(0.265, 0.690), blue=(0.150, 0.060)),
    12: Space(white=_D65, red=(0.680, 0.320), green=(0.265, 0.690), blue=(0.150, 0.060)),
    22: Space(white=_D65, red=(0.630, 0.340), green=(0.295, 0.605), blue=(0.155, 0.077)),
}
"""By H.273's number; 2 is "unspecified"."""
TRANSFERS: dict[int, float] = {
    **dict.fromkeys((1, 2, 6, 13, 14, 15), SRGB_CURVE), 4: 2.2, 5: 2.8, 8: 1.0,
}  # fmt: skip
"""By H.273's number. BT.709's and BT.2020's curves are those of a camera: a screen shows such images as sRGB's. PQ
(16) and HLG (18) are missing: their brightness has no place in sRGB without a taste in tone mapping."""


@functools.lru_cache(maxsize=64)
def matrix_profile(space: Space, curve: float) -> bytes:
    """Return the bytes of a profile.

    Args:
        curve: exponent of the power law from numbers to light, or SRGB_CURVE.
    """
    matrix = space.to_d50()
    shape = _sampled_srgb() if curve == SRGB_CURVE else _power(curve)
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"made\x00" + bytes(4 + 4 + 2 + 1 + 67),
        b"cprt": b"text" + bytes(4) + b"none\x00",
        b"wtpt": _xyz(_D50),
        **{name: _xyz(matrix[:, column]) for column, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), shape),
    }
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, at + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    size = at + len(data)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += b"".join(_fixed(value) for value in _D50)
    return head.ljust(128, b"\x00") + struct.pack(">I", len(tags)) + table + data


def _fixed(value: float) -> bytes:
    """Return a number as s15Fixed16Number."""
    return struct.pack(">i", round(value * 65536))


def _xyz(values: npt.NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(float(value)) for value in values)


def _power(exponent: float) -> bytes:
    if round(exponent * 256) / 256 == exponent or exponent > 255:
        return b"curv" + bytes(4) + struct.pack(">IHxx", 1, min(round(exponent * 256), 65535))
    return _curve(np.linspace(0, 1, _STEPS) ** exponent)


def _sampled_srgb() -> bytes:
    coded = np.linspace(0, 1, _STEPS)
    return _curve(np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4))


def _curve(light: npt.NDArray[np.float64]) -> bytes:
    samples = np.rint(light * 65535).astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", len(light)) + samples
