"""The images of the concepts: SVG from artists' icon sets, drawn on white with resvg, cached as PNG."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from altdiffusion.errors import AltDiffusionError
from demo.artists import BY_NAME, artists, icon
from demo.npm import default_cache

STYLES: tuple[str, ...] = artists("generator")
MARGIN = 0.04  # of the side, white on each side, so that no shape touches the edge


def draw(style: str, key: str, size: int, cache: Path | None = None) -> npt.NDArray[np.uint8]:
    """Draw an image.

    Args:
        style: the name of an artist (`demo.artists`).
        key: the concept's key, e.g. "1f418".
        size: side in pixels.
        cache: the demo's cache folder.

    Returns:
        RGB, uint8, [size, size, 3].
    """
    from PIL import Image

    with Image.open(io.BytesIO(png(style, key, size, cache))) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def png(style: str, key: str, size: int, cache: Path | None = None) -> bytes:
    """Return the image as PNG bytes, drawn once and then read from `<cache>/pictures`.

    Raises:
        AltDiffusionError: unknown style, or the style has no such image.
    """
    root = cache or default_cache()
    if style not in BY_NAME:
        raise AltDiffusionError(f"image style {style!r}", "is unknown", f"use one of {', '.join(BY_NAME)}")
    path = root / "pictures" / f"{BY_NAME[style].package.stem}-{size}" / f"{key}.png"
    if path.exists():
        return path.read_bytes()
    import resvg_py

    drawn = bytes(resvg_py.svg_to_bytes(svg_string=svg(style, key, root), width=size, height=size))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(drawn)
    os.replace(scratch, path)
    return drawn


def svg(style: str, key: str, cache: Path | None = None) -> str:
    """Return the drawing as an SVG document on white, the margin included."""
    found = icon(style, key, cache)
    if found is None:
        raise AltDiffusionError(f"image {style}/{key}", "does not exist", "use a key that the artist drew")
    body, width, height = found
    side = max(width, height) * (1 + 2 * MARGIN)  # a square around the icon's own box, which need not be one
    left, top = (width - side) / 2, (height - side) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}">'
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="#fff"/>{body}</svg>'
    )
