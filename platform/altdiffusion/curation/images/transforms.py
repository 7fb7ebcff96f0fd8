"""The four transforms of albumentations 1.4 that img2dataset's Resizer calls, pixel for pixel, without the import.

`import albumentations` takes 0.75 s of CPU and 60 MB in every decoder process, for four calls of OpenCV; each of its
calls costs another 0.1 ms. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


class SmallestMaxSize:
    """Resizes so that the shorter side has `max_size` pixels."""

    def __init__(self, *, max_size: int, interpolation: int, p: float = 1.0) -> None:
        self._max_size, self._interpolation = max_size, interpolation

    def __call__(self, *, image: Pixels) -> dict[str, Pixels]:
        """Return {"image": uint8 [H, W] or [H, W, 3], resized}."""
        return {"image": _resized(image, self._max_size / min(image.shape[:2]), self._interpolation)}


class LongestMaxSize:
    """Resizes so that the longer side has `max_size` pixels."""

    def __init__(self, *, max_size: int, interpolation: int, p: float = 1.0) -> None:
        self._max_size, self._interpolation = max_size, interpolation

    def __call__(self, *, image: Pixels) -> dict[str, Pixels]:
        """Return {"image": uint8 [H, W] or [H, W, 3], resized}."""
        return {"image": _resized(image, self._max_size / max(image.shape[:2]), self._interpolation)}


class CenterCrop:
    """Keeps the middle, `height` by `width` pixels of an image that has as many."""

    def __init__(self, *, height: int, width: int) -> None:
        self._height, self._width = height, width

    def __call__(self, *, image: Pixels) -> dict[str, Pixels]:
        """Return {"image": uint8 [height, width] or [height, width, 3]}."""
        top, left = (image.shape[0] - self._height) // 2, (image.shape[1] - self._width) // 2
        return {"image": image[top : top + self._height, left : left + self._width]}


class PadIfNeeded:
    """Puts an image in the middle of one of at least `min_height` by `min_width` pixels."""

    def __init__(
        self, *, min_height: int, min_width: int, border_mode: int, value: Sequence[int], p: float = 1.0
    ) -> None:
        self._sides, self._border_mode, self._value = (min_height, min_width), border_mode, list(value)

    def __call__(self, *, image: Pixels) -> dict[str, Pixels]:
        """Return {"image": uint8 [H, W] or [H, W, 3], padded}."""
        missing = [max(0, least - side) for least, side in zip(self._sides, image.shape, strict=False)]
        (top, left) = (number // 2 for number in missing)
        edges = (top, missing[0] - top, left, missing[1] - left)
        padded: Any = cv2.copyMakeBorder(image, *edges, self._border_mode, value=self._value)
        return {"image": padded}


def _resized(image: Pixels, scale: float, interpolation: int) -> Pixels:
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    resized: Pixels = cv2.resize(image, (width, height), interpolation=interpolation)  # type: ignore[assignment]
    return resized
