"""Aspect-ratio buckets: shapes of about the same area. An image goes to the shape nearest to its own.

The list follows NovelAI's published rule ("Aspect ratio bucketing", 2022). For each width that is a multiple of `step`,
it has the largest height that is also a multiple and keeps the area at or below resolution squared, and the same with
width and height exchanged. An image then loses a few percent on average, where a square crop would cost it a third.

Shapes are (W, H), pixels.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from altdiffusion.diffusion.image_crop import Size


@functools.cache
def bucket_sizes(resolution: int, step: int, max_aspect: float) -> tuple[Size, ...]:
    """Return the buckets, from the tallest to the widest; of several with the same shorter side, the largest one.

    Raises:
        ValueError: the resolution is not a multiple of `step`, so that the square would not be a bucket.
    """
    if resolution % step:
        raise ValueError(f"a resolution of {resolution} is not a multiple of the buckets' step of {step}")
    wide: dict[int, Size] = {}
    width = resolution
    while (height := resolution**2 // width // step * step) and width <= max_aspect * height:
        wide[height] = (width, height)  # a wider one of this height comes later
        width += step
    tall = [(height, width) for width, height in wide.values() if width != height]
    return tuple(sorted({*wide.values(), *tall}, key=lambda size: size[0] / size[1]))


def nearest(
    sizes: tuple[Size, ...], widths: npt.NDArray[np.int64], heights: npt.NDArray[np.int64]
) -> npt.NDArray[np.intp]:
    """Return the number of the bucket whose aspect ratio is nearest to each image's, int [images].

    The distance |log(w / h) - log(W / H)| treats tall and wide alike. Of two equally near buckets, the first is taken.
    """
    aspects = np.log(np.array([width / height for width, height in sizes]))
    numbers: npt.NDArray[np.intp] = np.abs(np.log(widths / heights)[:, None] - aspects).argmin(axis=1)
    return numbers
