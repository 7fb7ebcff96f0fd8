"""ICC profiles made of published numbers, byte by byte (ICC.1:2001-04), for tests of colour conversion.

Matrices are those of the colour spaces' specifications, adapted to D50: Adobe RGB (1998) 4.3.5.1, ROMM RGB (ISO
22028-2). Nothing of the product is used.
"""

from __future__ import annotations

import itertools
import struct

import numpy as np

_D50 = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def build(color: bytes, pcs: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    """Return a profile of these tags in addition to those that each has."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\x00" + bytes(78), b"wtpt": _xyz(*_D50), **tags}
    table, data, at = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, at + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(data), b"test", 0x02200000, kind, color, pcs) + bytes(12) + b"acsp"
    head = (head + bytes(28) + _fixed(*_D50)).ljust(128, b"\x00")
    return head + struct.pack(">I", len(tags)) + table + data


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


def curve(values: np.ndarray | float) -> bytes:
    """Return a power law, or samples of light from 0 to 1."""
    if isinstance(values, float):
        return b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(values * 256))
    return b"curv" + bytes(4) + struct.pack(">I", len(values)) + np.rint(values * 65535).astype(">u2").tobytes()


def matrix(columns: list[tuple[float, float, float]], shape: bytes) -> bytes:
    """Return an RGB profile of three primaries (XYZ at D50) and one curve."""
    tags = {name: _xyz(*column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return build(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), shape))


_SRGB_PRIMARIES = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]
_coded = np.linspace(0, 1, 1024)
_SRGB_CURVE = np.where(_coded <= 0.04045, _coded / 12.92, ((_coded + 0.055) / 1.055) ** 2.4)

SRGB = matrix(_SRGB_PRIMARIES, curve(_SRGB_CURVE))
LINEAR = matrix(_SRGB_PRIMARIES, curve(1.0))
ADOBE_RGB = matrix(
    [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)], curve(2.19921875)
)
PROPHOTO = matrix([(0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491)], curve(1.80078125))
DISPLAY_P3 = matrix(
    [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)], curve(_SRGB_CURVE)
)
GRAY_22 = build(b"GRAY", b"XYZ ", {b"kTRC": curve(2.19921875)})
# Light that ink leaves whose dots are a fifth wider in the middle (Murray-Davies).
_ink = 1 - _coded
DOT_GAIN_20 = build(b"GRAY", b"XYZ ", {b"kTRC": curve(1 - (_ink + 0.2 * 4 * _ink * (1 - _ink)).clip(0, 1))})


def table(color: bytes, lab: np.ndarray, channels: int) -> bytes:
    """Return a profile of a table (lut8) with two grid points per channel.

    `lab`: [2^channels, 3], L* 0 to 100, a* and b* -128 to 127.
    """
    coded = np.rint(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], -1)).clip(0, 255).astype(np.uint8)
    straight = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes((channels, 3, 2, 0)) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return build(color, b"Lab ", {b"A2B0": lut + straight * channels + coded.tobytes() + straight * 3}, b"prtr")


def _inks() -> np.ndarray:
    """Return [16, 3] Lab of no, one or several inks, the first one slowest."""
    paper, each = np.array([95.0, 0, 2]), np.array([[-40.0, -36, -48], [-45, 74, -4], [-8, -5, 90], [-85, 0, 0]])
    mixed = [paper + np.array(use) @ each for use in itertools.product((0, 1), repeat=4)]
    return np.clip(np.array(mixed), [4, -100, -100], [100, 100, 100])


CMYK = table(b"CMYK", _inks(), 4)
_cube = np.array(list(itertools.product((0, 1), repeat=3)), float)
RGB_TABLE = table(
    b"RGB ",
    np.stack([100 * _cube @ [0.3, 0.55, 0.15], 80 * (_cube[:, 0] - _cube[:, 1]), 80 * (_cube[:, 1] - _cube[:, 2])], -1),
    3,
)
